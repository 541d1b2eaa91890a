"Let layers use one another's weights, and count what that saves"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from .strategies import *
from .accounting import *
from .with_quantizing import *
