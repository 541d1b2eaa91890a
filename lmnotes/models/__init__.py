"Language models made of swappable parts"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
import transformers
from .layers import *
from .chunked_loss import *
from .decoder import *
from .reversible import *
from .midpoint import *
from .recurrent import *
from .resonance import *
from .moe import *
from .causality import *
from .generation import *
from .task_heads import *
from .hf_load import *
transformers.AutoConfig.register('lmnotes', LMConfig, exist_ok=True)
for c in (LM, *task_heads.values()): getattr(transformers, c.auto_class).register(LMConfig, c, exist_ok=True)
transformers.AutoModelForMaskedLM.register(LMConfig, LM, exist_ok=True)
