"Language models made of swappable parts"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
from importlib.util import find_spec as _find
from transformers import AutoConfig, AutoModelForCausalLM
from .decoder import *
if _find('lmnotes.models.reversible'): from . import reversible as _reversible
AutoConfig.register('lmnotes', LMConfig, exist_ok=True)
AutoModelForCausalLM.register(LMConfig, LM, exist_ok=True)
