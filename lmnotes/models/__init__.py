"Language models made of swappable parts"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from transformers import AutoConfig, AutoModelForCausalLM
from .layers import *
from .head import *
from .decoder import *
from .reversible import *
from .probe import *
from .generation import *
AutoConfig.register('lmnotes', LMConfig, exist_ok=True)
AutoModelForCausalLM.register(LMConfig, LM, exist_ok=True)
