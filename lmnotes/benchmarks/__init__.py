"What a model is worth: language-modelling scores, memory, speed, and comparisons that know their own uncertainty"
from ..core import hide_broken_torchvision
hide_broken_torchvision()
