"What a trained model scores: language modelling, tasks, long range, memory and speed"
from ..core import hide_broken_torchvision
hide_broken_torchvision()
