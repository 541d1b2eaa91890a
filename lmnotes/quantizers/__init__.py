"Rewrites that compute with fewer bits a weight"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from .ste import *
from .quantization import *
from .ternary import *
from .uniform import *
from .binary import *
from .codebook import *
from .mixed_bits import *
from .packed_layers import *
from .bit_allocation import *
from .bit_router import *
from .size_report import *
