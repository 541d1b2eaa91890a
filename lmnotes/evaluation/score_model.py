
__all__=['score_model','control_scores']
import numpy as np
from .scores import Scores
from .metrics import *
from .tasks.language_modelling import lm_data
from .task_suite import evaluate_tasks
from ..data.catalog import find_dataset
from ..data.dataset_splits import scored_documents
def score_model(model, tokenizer, datasets, *, data_dir=None, limit=64, pieces=512, seed=0, max_length=128, form=None, trained_on=None, run=None, columns=None, draws=0, allow_execution=False):
    out,missing=[],[]
    for name in datasets:
        ds=find_dataset(name)
        if ds.kind in ('corpus','code'):
            docs,_=scored_documents(ds,data_dir,None)
            data=lm_data(tokenizer,docs,ds.name,max_length)
            s=evaluate_lm(model,data,limit=pieces)
            v,w=window_bits_per_byte(s)
            out.append(Scores('lm',ds.name,'bits_per_byte',v,False,weights=w,metrics=lm_metrics(s)))
        else:
            a,b=evaluate_tasks(model,tokenizer,'all',datasets=[name],data_dir=data_dir,limit=limit,seed=seed,trained_on=trained_on)
            out+=a; missing+=[m for m in b if 'none of the datasets' not in m['reason'] and 'makes' not in m['reason']]
    return out,missing
def control_scores(*a, **k): return {}
