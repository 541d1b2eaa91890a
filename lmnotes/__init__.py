"A notebook lab where small language models are changed, trained and compared truthfully"
__version__ = "0.1.0"
from importlib import import_module

_modules = { # module -> the names it offers here, imported when they are first used
    'lmnotes.core': 'Registry InputError',
    'lmnotes.data.catalog': 'find_dataset register_dataset',
    'lmnotes.data.load': 'load_data',
    'lmnotes.data.tokenizers': 'get_tokenizer',
    'lmnotes.models.build': 'build_model count_parameters',
    'lmnotes.models.causality': 'check_causal',
    'lmnotes.models.config': 'LMConfig',
    'lmnotes.models.decoder': 'LM',
    'lmnotes.models.generation': 'generate',
    'lmnotes.models.lora': 'add_lora',
    'lmnotes.quantizers.packed_model': 'pack',
    'lmnotes.quantizers.quantization': 'quantize',
    'lmnotes.sharing.weight_sharing': 'share',
    'lmnotes.evaluation.evaluate': 'evaluate_model',
    'lmnotes.evaluation.metric_names': 'register_metric',
    'lmnotes.evaluation.metrics': 'evaluate_lm',
    'lmnotes.training.checkpoints': 'save_run load_run',
    'lmnotes.training.learner': 'lm_learner',
    'lmnotes.training.options': 'TrainOptions',
    'lmnotes.training.train': 'train',
    'lmnotes.rl.grpo': 'grpo',
    'lmnotes.comparison.comparison': 'compare rerun',
    'lmnotes.comparison.result': 'Comparison',
    'lmnotes.comparison.statistics.paired': 'paired_difference',
    'lmnotes.reports.run_report': 'report_runs',
}
_patches = 'lmnotes.training.interface.fastai_methods' # gives fastai's own methods to learners
_patched = 'lm_learner', 'load_run'
_module_of = {name: module for module,names in _modules.items() for name in names.split()}
__all__ = ['__version__', *_module_of]

def __getattr__(name):
    if name not in _module_of: raise AttributeError(f"module 'lmnotes' has no attribute '{name}'")
    if name in _patched: import_module(_patches)
    value = globals()[name] = getattr(import_module(_module_of[name]), name)
    return value

def __dir__(): return sorted({*globals(), *_module_of})
