"Rewrites that compute with fewer bits a weight"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from .coded import *
from .ternary import *
from .widths import *
from .bits import *
from .clusters import *
from .sizes import *
