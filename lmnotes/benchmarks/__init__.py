"Measure what this project claims: one module a benchmark"
from ..core import hide_broken_torchvision
hide_broken_torchvision()
