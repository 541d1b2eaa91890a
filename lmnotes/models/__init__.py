"Language models made of swappable parts"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
import transformers
from .layers import *
from .head import *
from .decoder import *
from .reversible import *
from .midpoint import *
from .recurrent import *
from .resonance import *
from .experts import *
from .probe import *
from .generation import *
from .heads import *
from .hub import *
transformers.AutoConfig.register('lmnotes', LMConfig, exist_ok=True)
for c in (LM, *task_heads.values()): getattr(transformers, c.auto_class).register(LMConfig, c, exist_ok=True)
transformers.AutoModelForMaskedLM.register(LMConfig, LM, exist_ok=True)
