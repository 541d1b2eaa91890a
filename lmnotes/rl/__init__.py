"Learning from rewards: what an answer earns, where its code may run, and GRPO"
from ..core import hide_broken_torchvision
hide_broken_torchvision()
