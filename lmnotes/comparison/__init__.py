"Compare ways of making a model: arms, seeds, statistics and verdicts"
from ..core import hide_broken_torchvision

hide_broken_torchvision()
