"Optimizers, schedules and loss scaler: by their formulas, beside transformers, bit for bit through a checkpoint"
import math

import pytest
import torch
from fastai.callback.core import Callback

from lmnotes.core import InputError, RunError, set_seed
from lmnotes.data.load import load_data
from lmnotes.models.build import build_model
from lmnotes.training.checkpoints import load_checkpoint, save_checkpoint
from lmnotes.training.learner import SkipValidation, default_betas, default_lr, default_weight_decay, lm_learner
from lmnotes.training.optimizers import Lion, hidden_matrices, opt_func_for, optimizers
from lmnotes.training.schedules import Schedule, lr_factor, schedules

def learner(optimizer='adamw', precision='fp32', seed=0, **kwargs):
    data = load_data('opinions', max_length=32, bs=4, limit=100, device='cpu')
    set_seed(seed)
    return lm_learner(
        build_model('standard', size='tiny', vocab_size=data.vocab_size, dropout=0.1),
        data,
        optimizer=optimizer,
        precision=precision,
        cbs=SkipValidation(),
        **kwargs,
    )

def go(learn, until, total=8): # steps up to number `until` of a run of `total`
    if not hasattr(learn, 'schedule'): learn.add_cb(Schedule('cosine', learn.lr, total, 2))
    learn.dls.train.n_batches = until
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    return learn

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.model.parameters(), b.model.parameters(), strict=True))

# ---- optimizers

@pytest.mark.parametrize('name', optimizers.names())
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_checkpoint_goes_on_bit_for_bit(name, precision, tmp_path):
    whole = go(learner(name, precision), 8)
    half = go(learner(name, precision), 3)
    save_checkpoint(half, tmp_path/'ck')
    assert not same(half, whole)
    rest = learner(name, precision, seed=1)
    load_checkpoint(rest, tmp_path/'ck')
    go(rest, 8)
    assert rest.step == 8 and same(rest, whole)

def test_lion_is_its_formula():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 3))
    w,m = p.detach().clone().double(),torch.zeros(5, 3).double()
    o = Lion([p], lr=0.01, betas=(0.8, 0.95), weight_decay=0.3)
    for _ in range(20):
        p.grad = torch.randn(5, 3)
        g = p.grad.double()
        o.step()
        w = w*(1 - 0.01*0.3) - 0.01*(0.8*m + 0.2*g).sign()
        m = 0.95*m + 0.05*g
    torch.testing.assert_close(p.detach().double(), w, atol=1e-5, rtol=0)
    torch.testing.assert_close(o.state[p]['exp_avg'].double(), m, atol=1e-6, rtol=0)

def test_lion_leaves_alone_what_got_no_gradient_and_takes_a_closure():
    a,b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    o = Lion([a, b], lr=0.1)
    def closure():
        o.zero_grad()
        loss = a.sum()
        loss.backward()
        return loss
    assert (
        o.step(closure) == 2
        and torch.equal(b, torch.ones(2))
        and torch.allclose(a, torch.full((2,), 0.9))
        and b not in o.state
    )

@pytest.mark.parametrize('name', optimizers.names())
def test_it_learns(name):
    learn = learner(name, lr=0.3 if name == 'sgd' else None)
    start = float(learn.model(**learn.dls.valid.one_batch()[0]).loss.detach())
    go(learn, 60, total=60)
    learn.model.eval()
    assert float(learn.model(**learn.dls.valid.one_batch()[0]).loss) < start - 1

def test_betas_and_epsilon_reach_every_group():
    for name in ('adamw', 'muon'):
        learn = learner(name, betas=(0.7, 0.8), eps=1e-5)
        learn.create_opt()
        assert all(g['betas'] == (0.7, 0.8) for g in learn.opt.opt.param_groups)
        assert {g['eps'] for g in learn.opt.opt.param_groups if 'momentum' not in g} == {1e-5}
    learn = learner('lion', betas=(None, 0.8))
    learn.create_opt()
    assert [g['betas'] for g in learn.opt.opt.param_groups] == [(0.9, 0.8)]*2
    learn = learner()
    learn.create_opt()
    assert learn.opt.opt.param_groups[0]['betas'] == (0.9, 0.95)

def test_defaults_of_ours_and_of_the_hub():
    m = build_model('tiny:gpt2')
    assert (default_weight_decay(m), default_betas(m)) == (0.1, (None, None)) and default_lr(m) == pytest.approx(
        0.3 / m.config.hidden_size
    )
    m.random_weights = False
    assert (default_lr(m), default_weight_decay(m), default_betas(m)) == (5e-5, 0.0, (0.9, 0.999)) and default_lr(
        m, 'lion'
    ) == pytest.approx(1e-5)

@pytest.mark.parametrize(
    'kw,why',
    [(dict(betas=(1., 0.9)), r'\[0,1\)'), (dict(betas=(0.9, -1.)), r'\[0,1\)'), (dict(eps=-1.), 'above 0')],
)
def test_bad_numbers_are_refused(kw, why):
    with pytest.raises(InputError, match=why):
        opt_func_for('adamw', torch.nn.Linear(2, 2), **kw)

# ---- schedules

@pytest.mark.parametrize('total,warmup', [(50, 0), (50, 7), (7, 3), (1, 0)])
@pytest.mark.parametrize('name', schedules.names())
def test_rates_are_those_of_transformers_after_warmup(name, total, warmup):
    from transformers import get_scheduler
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    theirs = get_scheduler(name, opt, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        if step >= warmup:
            assert lr_factor(name, step, total, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        opt.step()
        theirs.step()

@pytest.mark.parametrize('name', [*schedules.names(), 'cosine_with_restarts:3', 'polynomial:0.5', 'inverse_sqrt:20'])
def test_a_rate_is_a_pure_function_in_range(name):
    rates = [lr_factor(name, s, 30, 5) for s in range(40)] # also past the end
    assert (
        rates == [lr_factor(name, s, 30, 5) for s in range(40)]
        and all(0 <= r <= 1 for r in rates)
        and rates[0] > 0
        and max(rates) == 1
    )

def test_a_name_is_refused_when_the_callback_is_made():
    for bad, why in [
        ('cosin', "'cosine'"),
        ('cosine:2', 'takes no number'),
        ('polynomial:0', 'above 0'),
        ('polynomial:nan', 'above 0'),
        ('linear:', ''),
    ]:
        if why:
            with pytest.raises(InputError, match=why):
                Schedule(bad, 0.1, 10)
        else: Schedule(bad, 0.1, 10)

# ---- the loss scaler, without a GPU

class Poison(Callback):
    "Make the gradient overflow at some steps, as float16 would"
    order,run_valid = 9,False # before unscaling (10)
    def __init__(self, at): self.at = at
    def before_step(self):
        if self.learn.step in self.at:
            next(p for p in self.learn.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf

class Watch(Callback):
    order,run_valid = 90,False
    def before_fit(self): self.rows = getattr(self, 'rows', [])
    def after_step(self):
        l = self.learn
        state = l.opt.opt.state
        self.rows.append(
            (l.step, l.scaler.get_scale(), l.skipped, max((int(s['step']) for s in state.values()), default=0))
        )

def scaled(seed=0, at=(0, 1, 5), growth=2):
    learn = learner(seed=seed)
    learn.add_cbs([Poison(at), Watch()])
    learn.scaler = torch.amp.GradScaler('cpu', init_scale=1024., growth_interval=growth)
    return learn

def test_a_skipped_step_lowers_the_scale_and_moves_nothing_else():
    learn = go(scaled(at={0, 1}), 2)
    start = learner()
    # step number, scale, skipped, steps of Adam
    assert same(learn, start) and learn.watch.rows == [(1, 512., 1, 0), (2, 256., 2, 0)]

def test_after_good_steps_the_scale_grows_and_the_step_number_never_stops():
    learn = go(scaled(), 8)
    assert [r[0] for r in learn.watch.rows] == list(range(1, 9))
    assert [r[1] for r in learn.watch.rows] == [512., 256., 256., 512., 512., 256., 256., 512.]
    assert learn.skipped == 3 and learn.watch.rows[-1][3] == 5 # Adam's own count is of the steps it took
    assert learn.opt.opt.param_groups[0]['lr'] == pytest.approx(learn.lr*lr_factor('cosine', 7, 8, 2))

def test_scaling_changes_no_weight():
    plain = go(learner(), 6)
    learn = go(scaled(at=()), 6)
    for a,b in zip(plain.model.parameters(), learn.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('stop', [1, 3, 5])
def test_the_scale_goes_through_a_checkpoint(stop, tmp_path):
    whole = go(scaled(), 8)
    half = go(scaled(), stop)
    save_checkpoint(half, tmp_path/'ck')
    rest = scaled(seed=1)
    load_checkpoint(rest, tmp_path/'ck')
    go(rest, 8)
    assert [r[:2] + r[3:] for r in rest.watch.rows] == [r[:2] + r[3:] for r in whole.watch.rows[stop:]] and same(
        rest, whole
    )

def test_a_loss_that_is_broken_ends_the_run():
    learn = scaled(at=range(100))
    learn.scaler = torch.amp.GradScaler('cpu', init_scale=1.)
    with pytest.raises(RunError, match='steps were skipped, and at step 10 the gradient is not finite'):
        go(learn, 50, total=50)

def test_float16_needs_a_gpu():
    with pytest.raises(InputError, match='fp16 needs a GPU'):
        learner(precision='fp16')

def test_bfloat16_on_a_cpu_learns_what_float32_learns():
    losses = {}
    for p in ('fp32', 'bf16'):
        learn = go(learner(precision=p), 30, total=30)
        learn.model.eval()
        with torch.no_grad():
            losses[p] = float(learn.model(**learn.dls.valid.one_batch()[0]).loss)
        assert learn.scaler is None and all(w.dtype == torch.float32 for w in learn.model.parameters())
    assert abs(losses['fp32'] - losses['bf16']) < 0.05

def test_muon_leaves_filters_and_oscillators_to_adamw():
    m = build_model('resonance', size='tiny', vocab_size=50)
    hidden = {id(p) for p in hidden_matrices(m)}
    for n,p in m.named_parameters():
        if n.endswith(('taps', 'magnitude', 'phase')): assert p.ndim == 2 and id(p) not in hidden
        if n.endswith('proj.weight'): assert id(p) in hidden
    decays = {id(p): g['weight_decay'] for g in optimizers.build('muon', m, lr=0.1, wd=0.1).param_groups
              for p in g['params']}
    assert set(decays) == {id(p) for p in m.parameters()}
    assert all(decays[id(p)] == 0 for n,p in m.named_parameters() if n.endswith('taps'))
