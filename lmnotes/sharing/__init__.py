"Let layers use one another's weights, and count what that saves"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from .strategies import *
from .sharing_report import *
from .shared_codes import *
