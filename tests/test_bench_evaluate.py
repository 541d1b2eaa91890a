"The bench of evaluation compares the same rows, answers and weights, and says what it needs"
import json

import pytest

from lmnotes.benchmarks.bench import benches, is_met, run_benches
from lmnotes.benchmarks.generation.bench_evaluate import *
from lmnotes.core import InputError
from lmnotes.data.catalog import find_dataset
from lmnotes.evaluation.task_suite import eval_rows
from lmnotes.models.hf.trained_model import load_trained

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('evaluate')/'model'
    save_bench_model(place, 'tiny', steps=8, dim=32, n_layer=1)
    return place

def _rows(name, n):
    ds = find_dataset(name)
    return ds,eval_rows(ds, limit=n)[0]

def test_quick_figures_are_written(tmp_path):
    found = run_benches(['evaluate'], json=tmp_path/'b.json', device='cpu', quick=True)
    written = json.loads((tmp_path/'b.json').read_text(encoding='utf-8'))
    assert 'evaluate' in benches.names() and found['same_log_likelihoods'] == 1.
    for f in ('vs_lm_eval', 'same_log_likelihoods'):
        assert isinstance(written[f], float) and written[f] == found[f]
        assert written['met'][f] == is_met(written[f], written['targets'][f])
    assert [v['dataset'] for v in written['variants']][1] == 'embedded/arithmetic'
    assert all(v['bound_ms_an_item'] > 0 and v['vs_lm_eval_by_processor'] > 0 for v in written['variants'])

@pytest.mark.parametrize('name', ['opinions', 'arithmetic'])
def test_both_are_asked_the_same(folder, name):
    ds,rows = _rows(name, 6)
    ways = evaluation_ways(folder, ds, rows, batch_size=4)
    same,scores = ways.agreement()
    assert len(ways.theirs()) == scores.n == 6
    assert same == 1.

def test_other_weights_do_not_agree(folder, tmp_path):
    save_bench_model(tmp_path/'other', 'tiny', steps=4, dim=32, n_layer=1)
    ds,rows = _rows('opinions', 6)
    ways = evaluation_ways(folder, ds, rows)
    ways.theirs = harness_way(tmp_path/'other', ds, rows)
    assert ways.agreement()[0] == 0.

def test_the_saved_model_is_the_trained_one(folder, tmp_path):
    save_bench_model(tmp_path/'drawn', 'tiny', dim=32, n_layer=1)
    trained,drawn = (load_trained(str(f), 'cpu')[0] for f in (folder, tmp_path/'drawn'))
    assert trained.config.dim == 32 and not trained.training
    assert all((a != b).any() for a,b in zip(trained.parameters(), drawn.parameters(), strict=True) if a.ndim > 1)

def test_without_the_harness(folder):
    with pytest.raises(InputError, match='pip install'):
        harness_way(folder, *_rows('opinions', 2), package='no_harness')
