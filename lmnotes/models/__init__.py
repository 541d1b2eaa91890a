"Language models made of exchangeable parts"
from ..core import hide_broken_torchvision
hide_broken_torchvision() # before transformers is imported
import transformers
from .attention import *
from .blocks import *
from .build import *
from .causality import *
from .chunked_loss import *
from .config import *
from .decoder import *
from .generation import *
from .layers import *
from .task_heads import *
models.import_packages() # the recipes, mixers, feed-forwards and residuals of `architectures`
transformers.AutoConfig.register('lmnotes', LMConfig, exist_ok=True)
for c in (LM, *task_heads.values()): getattr(transformers, c.auto_class).register(LMConfig, c, exist_ok=True)
transformers.AutoModelForMaskedLM.register(LMConfig, LM, exist_ok=True)
