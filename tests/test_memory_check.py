"Memory is probed before a run, running out of it gives advice, non-finite gradients stop, lr_find leaves no trace"
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback

from lmnotes.core import InputError, RunError
from lmnotes.data.load import load_data
from lmnotes.data.mixtures.data import mixture_data
from lmnotes.data.streaming.data import stream_data
from lmnotes.files import find_checkpoint, read_json
from lmnotes.models import build_model
from lmnotes.training.checkpoints import Checkpoints, load_checkpoint
from lmnotes.training.learner import SkipValidation, lm_learner
from lmnotes.training.memory_check import *
from lmnotes.training.optimizers import optimizers

pytestmark = pytest.mark.filterwarnings('ignore')
env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
base = dict(max_length=64, bs=4, device='cpu')

def prose(**kw): return load_data('prose', limit=40, **(base | kw))
def learner(data=None, name='standard', steps=3, cbs=None, **kw):
    data = data or prose()
    torch.manual_seed(0)
    model = (
        build_model(name, vocab_size=data.vocab_size, max_length=data.max_length, dropout=0.1)
        if not name.startswith('tiny:')
        else build_model(name, vocab_size=data.vocab_size)
    )
    data.train.n_batches = steps
    return lm_learner(model, data, lr=3e-3, cbs=cbs, **kw)
def fit(learn):
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(SkipValidation()):
        learn.fit(1)
    return learn
def bits(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# numbers that are none

class Poison(Callback):
    order = 60
    def __init__(self, at): self.at = at
    def after_step(self):
        if self.learn.step == self.at: next(self.learn.model.parameters()).data.view(-1)[0] = float('nan')

@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_gradient_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stands(tmp_path, accumulate):
    learn = learner(steps=20, accumulate=accumulate, cbs=[Checkpoints(tmp_path, every=2, keep=2), Poison(5)])
    with pytest.raises(RunError, match='stopped being finite at step 6'):
        fit(learn)
    ck = find_checkpoint(tmp_path)
    assert read_json(ck/'state.json')['step'] == 4
    again = learner(steps=20, accumulate=accumulate)
    load_checkpoint(again, ck)
    assert again.step == 4 and all(v.isfinite().all() for v in bits(again).values())
    again.dls.train.n_batches = 6*accumulate
    fit(again)
    assert again.step == 6 and all(v.isfinite().all() for v in bits(again).values())

def test_an_infinite_loss_is_not_applied():
    learn = learner(steps=5)
    class Blow(Callback):
        order = 9
        def after_loss(self):
            if self.learn.step == 2:
                self.learn.loss_grad = self.learn.loss_grad*float('inf')
                Blow.before = bits(self.learn)
    learn.add_cb(Blow())
    with pytest.raises(RunError, match='step 3'):
        fit(learn)
    assert same(bits(learn), Blow.before), 'the step was applied all the same'

# before a run

kinds = dict(
    blocks=lambda: prose(),
    packed=lambda: load_data('recall', mode='sft', limit=80, packing=True, **base),
    padded=lambda: load_data('recall', mode='sft', limit=80, packing=False, **base),
    mixture=lambda: mixture_data(['prose', 'recall'], tokenizer='bytes', limit=40, packing=False, **base),
    stream=lambda: stream_data('prose', tokens_per_chunk=512, max_chunks=40, **base),
    masked=lambda: prose(masked=True),
)

@pytest.mark.parametrize('kind', kinds)
def test_the_probe_leaves_no_trace_in_a_run(kind):
    name = 'encoder' if kind == 'masked' else 'standard'
    plain,probed = (learner(kinds[kind](), name) for _ in 'ab')
    before,dice = bits(probed),torch.get_rng_state()
    got = probe_memory(probed, exact=True)
    assert (
        same(bits(probed), before)
        and torch.equal(torch.get_rng_state(), dice)
        and probed.opt is None
        and (probed.step, probed.tokens) == (0, 0)
    )
    assert (
        got['tried'] == got['rows'] == 4 and got['width'] <= 64 and 0 < got['at_least'] < got['at_most'] < got['free']
    )
    fit(plain)
    fit(probed)
    assert plain.step == probed.step == 3 and same(bits(plain), bits(probed))

@pytest.mark.parametrize('name', ['adamw', 'muon', 'lion', 'sgd'])
def test_standing_still_moves_no_weight_under_any_optimizer(name):
    assert name in optimizers
    learn = learner(optimizer=name, weight_decay=0.5)
    before = bits(learn)
    with zero_lr_steps(learn) as step:
        for n in (1, 4): step(largest_batch(learn.dls, n))
        state = learn.opt.opt.state
        state = [t for s in state.values() for t in s.values() if torch.is_tensor(t) and t.numel() > 1]
    assert same(bits(learn), before) and sum(t.numel() for t in state) >= learn.model.num_parameters(), (
        'there are no moments to take room'
    )

@pytest.mark.parametrize('name', ['reversible', 'rnn', 'resonance', 'moe', 'tiny:gpt2'])
def test_the_probe_takes_any_model(name):
    learn = learner(name=name)
    before = bits(learn)
    probe_memory(learn)
    assert same(bits(learn), before)

def test_the_probe_takes_questions_for_an_encoder_decoder():
    t5 = build_model('tiny:t5', vocab_size=258)
    data = load_data(
        'recall', mode='sft', limit=80, packing=False, decoder_start=t5.config.decoder_start_token_id, **base
    )
    learn = lm_learner(t5, data)
    before = bits(learn)
    assert probe_memory(learn)['rows'] == 4 and same(bits(learn), before)

def test_the_longest_rows_are_the_ones_that_are_tried():
    data = load_data('opinions', mode='sft', max_length=256, bs=4, limit=100, packing=False, device='cpu')
    assert largest_batch(data)['input_ids'].shape == (4, max(b[0]['input_ids'].shape[1] for b in data.train))

def test_what_the_probe_says_is_what_training_takes():
    "Measured over the steps of a real fit, in a process of its own"
    code = '''
from lmnotes.training.memory_check import *
from lmnotes.data.load import load_data
from lmnotes.models import build_model
from lmnotes.training.learner import lm_learner
data = load_data('prose', limit=60, max_length=512, bs=8, device='cpu')
learn = lm_learner(build_model('standard', vocab_size=data.vocab_size, dim=128, n_layer=4, max_length=512), data)
said = probe_memory(learn, exact=True)['at_most']
data.train.n_batches = 3
def fit():
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
print(said, peak_memory_of(fit))'''
    said, took = map(
        int,
        subprocess.run(
            [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
        ).stdout.split()[-2:],
    )
    assert took > 50e6 and 1 <= said/took < 1.5, (said/1e6, took/1e6)

def test_a_run_that_cannot_fit_is_refused_with_options_to_paste():
    data = prose(max_length=512, bs=8)
    learn = learner(data)
    probe_memory(learn, exact=True) # what is taken once and kept by the process is no part of a step
    need = probe_memory(learn, exact=True)['at_least']
    before = bits(learn)
    o = SimpleNamespace(batch_size=8, gradient_accumulation_steps=3, max_length=512, gradient_checkpointing=False)
    with pytest.raises(InputError) as e:
        probe_memory(learn, o, free=need//3)
    said = str(e.value)
    assert '\n' not in said and 'a step of 8 x 512 tokens needs more than' in said
    order = [
        said.index(w)
        for w in (
            '--batch_size 4 --gradient_accumulation_steps 6',
            '--gradient_checkpointing',
            '--max_length 256',
            'smaller --size',
        )
    ]
    assert order == sorted(order) and same(bits(learn), before)

def test_no_more_rows_are_tried_than_are_sure_to_fit():
    from lmnotes.training.memory_check import memory_readings
    data = prose(max_length=512, bs=8)
    learn = learner(data)
    batch = largest_batch(data)
    need = probe_memory(learn, exact=True)['at_least']
    for share in (0.3, 0.5, 0.9):
        readings = list(memory_readings(learn, batch, int(need*share), False))
        assert max(r[1] for r in readings) <= need*share*1.1 and readings[-1][0] < 8

def test_hub_weights_get_an_adapter_and_recipes_do_not():
    learn = learner(name='tiny:gpt2')
    assert not any('lora' in w for w in memory_suggestions(learn))
    learn.model.random_weights = False
    assert any('--use_lora' in w for w in memory_suggestions(learn)) and not any(
        '--size' in w for w in memory_suggestions(learn)
    )
    o = SimpleNamespace(
        batch_size=1, gradient_accumulation_steps=1, max_length=64, gradient_checkpointing=True, use_lora=True
    )
    assert not any(x in w for w in memory_suggestions(learn, o) for x in ('lora', 'batch_size', 'checkpointing'))

# what the advice promises

def gradient(accumulate, bs, checkpointing=False):
    grads = {}
    class Notes(Callback):
        order = 13 # after clipping, which brings them to one count of tokens
        def before_step(self): grads.update({k: p.grad.clone() for k,p in self.learn.model.named_parameters()})
    data = load_data('recall', mode='sft', limit=80, packing=False, **(base | dict(bs=bs)))
    torch.manual_seed(0)
    model = build_model('standard', vocab_size=data.vocab_size, max_length=64)
    if checkpointing: model.gradient_checkpointing_enable()
    data.train.n_batches = accumulate
    fit(lm_learner(model, data, accumulate=accumulate, precision='fp32', cbs=[Notes()]))
    return torch.cat([g.flatten() for g in grads.values()])

def test_half_the_batch_accumulated_twice_and_recomputing_have_the_same_gradient():
    whole = gradient(1, 8)
    assert whole.norm() > 0
    for other in (gradient(2, 4), gradient(8, 1), gradient(1, 8, checkpointing=True)):
        assert (whole - other).norm() < 1e-5*whole.norm()

# when it runs out all the same

def test_memory_that_really_runs_out_is_known_for_what_it_is():
    "The address space of a process is limited in the middle of its run"
    code = '''
import resource
from fastai.basics import Callback
from lmnotes.training.memory_check import *
from lmnotes.data.load import load_data
from lmnotes.models import build_model
from lmnotes.training.learner import lm_learner
class Shrinks(Callback):
    order = 60
    def after_step(self):
        if self.learn.step == 2:
            now = int(open('/proc/self/statm', encoding='utf-8').read().split()[0])*4096
            resource.setrlimit(resource.RLIMIT_AS, (now + 20*2**20,)*2)
data = load_data('prose', limit=60, max_length=512, bs=64, device='cpu')
learn = lm_learner(build_model('standard', vocab_size=data.vocab_size, dim=128, n_layer=4, max_length=512), data)
learn.add_cb(Shrinks()); data.train.n_batches = 50
try:
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
except Exception as e: found,said = is_oom(e),oom_advice(learn)
print(found, said)'''
    if sys.platform != 'linux': pytest.skip('needs limits on the address space')
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    line = r.stdout.strip().splitlines()[-1]
    assert (
        line.startswith('True out of memory at step ') and '--batch_size 32 --gradient_accumulation_steps 2' in line
    )

def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not any(
        map(
            is_oom,
            [
                RuntimeError('mat1 and mat2 shapes cannot be multiplied'),
                ValueError('out of memory'),
                KeyError('x'),
                None,
            ],
        )
    )
    try:
        try:
            raise MemoryError
        except MemoryError as e:
            raise RunError('a step failed') from e
    except RunError as e:
        assert is_oom(e)

# the rate finder

@pytest.mark.parametrize('kind', ['blocks', 'padded', 'stream', 'mixture'])
def test_lr_find_leaves_no_trace_in_a_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain,found = (learner(kinds[kind](), accumulate=2, steps=6) for _ in 'ab')
    with found.no_bar():
        rate = found.lr_find(num_it=24, show_plot=False).valley
    assert 1e-7 <= rate <= 10 and (found.step, found.tokens, found.opt, found.dls.train.start) == (0, 0, None, 0)
    assert list(tmp_path.iterdir()) == [] and found.path == plain.path
    assert same(bits(plain), bits(found))
    fit(plain)
    fit(found)
    assert plain.step == 3 and same(bits(plain), bits(found))

def test_lr_find_in_the_middle_of_a_run_keeps_its_optimizer():
    plain,found = (fit(learner(steps=3)) for _ in 'ab')
    with found.no_bar():
        found.lr_find(num_it=12, show_plot=False)
    fit(plain)
    fit(found)
    assert plain.step == found.step == 6 and same(bits(plain), bits(found))
