"Benches give the figures they promise, and the instruments see what hides from one another"
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from lmnotes.benchmarks.bench import is_met, run_benches
from lmnotes.core import InputError
from lmnotes.dtypes import has_fast_bf16
from lmnotes.evaluation.memory import (
    LiveTensors,
    held_bytes,
    peak_memory,
    saved_bytes,
    training_memory,
)
from lmnotes.evaluation.speed import Timing, paired_ratio, time_interleaved

MB = 2**20

class Hoarder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mine = x*2
        return ctx.mine.sum()
    @staticmethod
    def backward(ctx, g): return (2*g).expand_as(ctx.mine)

# ---- memory

def test_tensors_kept_on_ctx_are_seen():
    w = torch.ones(4*MB, requires_grad=True) # 16 MiB
    h = held_bytes(lambda: Hoarder.apply(w), without=[w])
    assert h['saved'] == 0 and h['live'] == 16*MB and h['held'] >= 16*MB
    if h['real'] is not None: assert abs(h['real'] - 16*MB) < MB

def test_tensors_kept_in_a_list_are_seen():
    aside = []
    def loss():
        aside.clear()
        aside.append(torch.ones(4*MB))
        return aside[0].sum()
    h = held_bytes(loss)
    assert h['saved'] == 0 and h['live'] == 16*MB

def test_nothing_is_left_behind_by_the_instruments():
    w = torch.ones(256, 256, requires_grad=True)
    with LiveTensors() as t:
        loss = (w@w).relu().sum()
        loss.backward()
        w.grad = None
        del loss
    assert t.live == 0 and t.peak > 0
    assert saved_bytes(lambda: (w@w).relu().sum()) == w.numel()*4 # relu keeps its result; w was there before

@pytest.mark.skipif(sys.platform != 'linux', reason='no high-water mark')
def test_a_peak_is_above_what_is_in_use_and_forgets_older_ones():
    def fill(n): return lambda: torch.ones(n*MB//4).sum()
    peak_memory(fill(64))
    assert abs(peak_memory(fill(32)) - 32*MB) < 2*MB

def test_without_a_mark_tensors_are_counted_aloud(monkeypatch):
    monkeypatch.setattr('lmnotes.evaluation.memory._high_water', lambda device: None)
    with pytest.warns(UserWarning, match='no high-water mark'):
        assert peak_memory(lambda: torch.ones(MB).sum()) == 4*MB + 4

def test_training_memory_leaves_no_gradients():
    from lmnotes.models import build_model
    m = build_model('standard', size='tiny', vocab_size=64)
    ids = torch.randint(0, 64, (2, 33))
    r = training_memory(m, ({'input_ids': ids[:,:-1], 'shift_labels': ids[:,1:]},))
    assert 0 < r['saved'] <= r['held'] <= r['peak']
    assert all(p.grad is None for p in m.parameters())

def test_reversible_holds_nothing_per_layer():
    from lmnotes.benchmarks.bench_reversible import memory_slopes, random_batch
    r = memory_slopes('tiny', random_batch(2, 64), dropout=0.1)
    assert r['ratios']['saved'] == 0 and r['ratios']['live'] < 0.02

# ---- speed

def test_the_order_turns_around():
    seen = []
    time_interleaved(dict(a=lambda: seen.append('a'), b=lambda: seen.append('b')), repeats=2, warmup=0)
    assert ''.join(seen) in ('abba', 'baab')

def test_quotients_are_taken_within_rounds():
    assert paired_ratio(dict(a=Timing([1., 20., 3.]), b=Timing([2., 40., 6.])), 'a', 'b').median == 0.5

# ---- benches

@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    path = tmp_path_factory.mktemp('bench')/'b.json'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = run_benches(['reversible', 'head', 'learner', 'decode'], json=path, device='cpu', quick=True)
    return found,json.loads(path.read_text(encoding='utf-8'))

@pytest.mark.parametrize('name,figures', dict(
    reversible='grad_error_fp64 memory_slope_ratio',
    head='memory_ratio time_ratio grad_error' + ' memory_ratio_bf16'*has_fast_bf16('cpu'),
    learner='vs_loop vs_hf_trainer',
    decode='tiny_vs_generate small_vs_generate same_tokens',
).items())
def test_quick_benches_write_their_figures(quick, name, figures):
    r,written = quick
    for f in figures.split():
        assert isinstance(written[name][f], float) and written[name][f] == r[name][f]
        assert written[name]['met'][f] == is_met(r[name][f], r[name]['targets'][f])
    assert written[name]['variants'] and written[name]['env']['packages']['torch']

def test_exact_figures_hold_even_when_quick(quick):
    r,_ = quick
    assert r['reversible']['grad_error_fp64'] <= 1e-10 and r['head']['grad_error'] <= 1e-5

def test_benches_run_without_units_for_bf16(): # an AVX2 machine, imitated in a process of its own
    avx2 = dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2', OMP_NUM_THREADS='1')
    code = (
        "import torch\nfrom lmnotes.dtypes import bf16_slowdown\n"
        "from lmnotes.training.optimizers import product_dtype\n"
        "from lmnotes.benchmarks.bench_head import bench_head\n"
        "assert bf16_slowdown() > 3 and product_dtype('cpu') == torch.float32, bf16_slowdown()\n"
        "print([v['precision'] for v in bench_head(quick=True)['variants']])"
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          env={**os.environ, **avx2})
    assert done.stdout.strip().endswith("['fp32']"), done.stderr

def test_an_unknown_bench_is_answered_without_importing_any():
    code = (
        "from lmnotes.benchmarks.bench import benches; import sys\ntry: "
        "benches['haed']\nexcept ValueError as e: print(e, 'lmnotes.models' in sys.modules)"
    )
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True).stdout
    assert "did you mean 'head'?" in out and out.strip().endswith('False')

def test_a_wrong_name_among_right_ones_stops_all(tmp_path):
    with pytest.raises(InputError, match='reversible'):
        run_benches(['head', 'reversable'], json=tmp_path/'x.json')
    assert not (tmp_path/'x.json').exists()
