"""The race against nanoGPT's recipe: what is compared, and what is refused."""
from dataclasses import replace

import pytest
import torch

from lmnotes.benchmarks.bench import benches
from lmnotes.benchmarks.steps import bench_speedrun as m
from lmnotes.benchmarks.steps.bench_speedrun import *
from lmnotes.core import InputError

text = load_characters(limit=3000)
small = dict(dim=16, n_head=2, max_length=16)
def shrunk(arm): return replace(arm, options={k: v for k,v in arm.options.items() if k != 'ffn_dim'} | small, length=16)

def test_named(): assert 'speedrun' in benches.names()

def test_rates(): # warm-up, then down to a tenth (nanoGPT) or to nothing
    for arm,last in ((shrunk(NANOGPT), 0.1), (shrunk(FAST), 0.)):
        model = m.build_model(arm.model, vocab_size=text.vocab_size, **arm.options)
        opt = m.optimizers.build(arm.optimizer, model, lr=arm.learning_rate, wd=0.1)
        rates = []
        for k in range(100):
            train_step(model, opt, make_batch(text.train, arm, torch.Generator().manual_seed(k)), arm, k, 100)
            rates.append(opt.param_groups[0]['lr']/arm.learning_rate)
        assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.) and rates.index(max(rates)) in (4, 5)
        assert last <= rates[-1] < last + 0.02

@pytest.mark.parametrize('part', FAST_PARTS)
def test_each_part_changes_the_run(part):
    fast,other = (run_arm(shrunk(a), text, steps=12).points[-1][3] for a in (FAST, without_part(part)))
    assert fast != other

def test_windows_are_of_the_training_part():
    b = make_batch(torch.arange(100), replace(FAST, length=10, batch_size=50), torch.Generator().manual_seed(0))
    assert b['input_ids'].shape == (50, 10) and (b['shift_labels'] == b['input_ids'] + 1).all()
    assert int(b['shift_labels'].max()) <= 99

def test_speedup_is_of_the_first_score_below():
    nano = SpeedRun([(10, 60., 30., 2.)], 1.)
    short = SpeedRun([(1, 5., 4., 2.1), (2, 10., 6., 1.9), (3, 15., 9., 1.8)], 1.)
    assert m._speedup(nano, short) == (6., 5.)
    assert m._speedup(SpeedRun([(10, 60., 30., 1.)], 1.), short) == (None, None)

def test_unknown_part():
    with pytest.raises(InputError, match='there is: n-grams'): without_part('mu')
