"Let layers use one another's weights, and count what that saves"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from .patterns import *
from .strategies import *
from .tying import *
from .depth_lora import *
from .weight_sharing import *
from .sharing_report import *
from .shared_codes import *
