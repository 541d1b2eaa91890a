"Each option of `train` that needs no other one changes plan, learner or files of a run, or is refused aloud"
import os
import sys
import warnings
from dataclasses import asdict, fields
from functools import lru_cache

import pytest
import torch

from lmnotes.core import InputError
from lmnotes.files import read_json, read_jsonl
from lmnotes.training.options import TrainOptions
from lmnotes.training.planning.prepare import prepare_job
from lmnotes.training.train import train

base = dict(dataset='arithmetic', mode='pretrain', limit=2, dim=16, n_layer=1, n_head=2, max_length=32, batch_size=4,
            max_steps=6, eval_max_batches=1, device='cpu')
free = [f.name for f in fields(TrainOptions) if not f.metadata.get('needs')]

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a run, a text and a plugin"
    root,before = tmp_path_factory.mktemp('changes'),os.getcwd()
    os.chdir(root)
    (root/'own.txt').write_text('one two three four five\n'*200, encoding='utf-8')
    (root/'idea.py').write_text('NAME = 1\n', encoding='utf-8')
    train(quiet=True, **base, output_dir='run')
    yield root
    os.chdir(before)

def plan_of(**options):
    "What a dry run says, also in warnings, without the time of day; or why it refuses"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always', UserWarning)
            plan = train(quiet=True, **options, dry_run=True)
        told = [str(w.message) for w in said if type(w.message) is UserWarning]
        return {k: v for k,v in plan.items() if k != 'writes'} | dict(said=told)
    except InputError as e:
        return str(e)

@lru_cache
def plan_without(*names): return plan_of(**{k: v for k,v in base.items() if k not in names})

# options that a plan shows, or refuses here with a line that names them or what they ask for
planned = dict(
    model='reversible', dim=32, n_layer=2, n_head=4, ffn_dim=48, init='run', attn_implementation='eager',
    use_flash_attention=True, task='classify', use_lora=True, mode='sft', datasets=('arithmetic', 'recall'),
    data_path='own.txt', tokenizer='chars', batch_size=3, gradient_accumulation_steps=2, max_steps=5, max_seconds=9.,
    test=True, optimizer='lion', lr_scheduler_type='linear', weight_decay=.3, fp16=True, bf16=True, device='mps',
    multi_gpu=True, fsdp=True, wandb=True, compile=True, resume_from_checkpoint='nowhere',
)
without = dict(data_path=('dataset',), datasets=('dataset',), max_seconds=('max_steps',), task=('mode',),
               resume_from_checkpoint=('mode',)) # what does not go beside it

quick = 'ffn_dim', 'init', 'tokenizer', 'weight_decay', 'wandb', 'test' # one of each group of options

@pytest.mark.parametrize('name', [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in planned])
def test_a_plan_shows_it(name, home, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None) # as if it were not installed
    fixed = {k: v for k,v in base.items() if k not in without.get(name, ())}
    before,after = plan_without(*without.get(name, ())),plan_of(**fixed | {name: planned[name]})
    assert isinstance(before, dict) and after != before

# options that a learner shows before its first step
def trained(learn): # weights after two steps
    learn.dls.train.n_batches = 2
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

learned = dict(
    dropout=(.5, trained),
    seed=(1, trained),
    max_grad_norm=(.01, trained),
    gradient_checkpointing=(True, lambda learn: getattr(learn.model, 'is_gradient_checkpointing', None)),
    no_mixed_precision=(True, lambda learn: learn.spec['precision']),
)

@pytest.mark.parametrize('name', learned)
def test_a_learner_shows_it(name, home):
    value,observe = learned[name]
    planned = (TrainOptions(**base | more, dry_run=True) for more in ({}, {name: value}))
    before,after = (observe(prepare_job(o).learn) for o in planned)
    assert not torch.equal(before, after) if torch.is_tensor(before) else before != after

# options that the folder of a run shows, all of them in two runs
def rows(name): return lambda run: len(read_jsonl(run/name))

written = dict(
    eval_strategy=('no', rows('evals.jsonl')),
    viz_interval=(1, lambda run: len([*(run/'viz').iterdir()])),
    display_samples_every=(1, rows('samples.jsonl')),
    save_strategy=('no', lambda run: len([*(run/'checkpoints').glob('step_*')])),
    logging_steps=(2, rows('metrics.jsonl')),
    imports=(('idea.py',), lambda run: [*read_json(run/'env.json').get('plugins', {})]),
    output_dir=('elsewhere', lambda run: run.name),
)
best = dict(
    eval_steps=(1, lambda run: [r['step'] for r in read_jsonl(run/'evals.jsonl')]),
    early_stopping_patience=(1, lambda run: read_json(run/'summary.json')['steps']),
    load_best_model_at_end=(True, lambda run: read_json(run/'summary.json').get('best_step')),
    plots=(False, lambda run: (run/'viz/training_latest.png').exists()),
)

@pytest.mark.parametrize('changed', [written, best], ids=['logs', 'evaluations'])
def test_a_run_shows_it(changed, home):
    more = dict(learning_rate=1e-9, greater_is_better=True) if changed is best else {}
    options = base | dict(output_dir=f'changed_{len(changed)}') | {k: v for k,(v,_) in changed.items()} | more
    run = train(quiet=True, **options).path
    same = [name for name,(_,observe) in changed.items() if observe(run) == observe(home/'run')]
    assert not same

def test_a_dry_run_writes_nothing_and_a_timeout_is_kept(home):
    before = sorted(home.iterdir())
    train(quiet=True, **base, dry_run=True, hub_timeout=7)
    assert os.environ['LMNOTES_HUB_TIMEOUT'] == '7' and sorted(home.iterdir()) == before

def test_no_option_is_forgotten():
    elsewhere = {'dry_run', 'hub_timeout'}
    assert set(free) == {*planned, *learned, *written, *best, *elsewhere}
    defaults = asdict(TrainOptions())
    values = planned | {k: v for k,(v,_) in (learned | written | best).items()}
    assert not [k for k,v in values.items() if defaults[k] == v]
