"The ladder: words of known courses, budgets and rates of each size, and going on after a kill"
import json
from types import SimpleNamespace

import numpy as np
import pytest

from lmnotes.app.cli import main
from lmnotes.comparison.ladder import Ladder, go_on, ladder
from lmnotes.comparison.statistics.trends import SizeDifferences, contrast, line_weights, slope_weights, trend_words
from lmnotes.core import InputError
from lmnotes.files import write_json

X = np.array([12., 13., 14.5])
SHAPES = dict(tiny=(130_000, 64), small=(25_000_000, 512), medium=(85_000_000, 768))

def runs(course, n=20_000, seeds=3, sd=.01, items=0., rng=0):
    "Ladders with a true course: noise of seeds at each size, and of items that all sizes share"
    rng = np.random.default_rng(rng)
    x = np.array(course)[:,None] + sd*rng.standard_normal((n, len(course), seeds))
    x += items*rng.standard_normal((n, 1, 1))
    variance = x.var(-1, ddof=1)/seeds
    counts = np.full(len(course), seeds), np.full(len(course), 64)
    return SizeDifferences(X[:len(course)], x.mean(-1), variance, np.full_like(variance, items**2), *counts)

def share(words, *asked): return float(np.isin(words, asked).mean())

@pytest.mark.parametrize('items', [0., .005, .02])
@pytest.mark.parametrize('seeds', [3, 5])
def test_false_words_stay_below_five_percent(seeds, items):
    most = .05 + 2*(.05*.95/20_000)**.5
    how = dict(seeds=seeds, items=items)
    assert share(trend_words(runs((0, 0, 0), **how)), 'flips', 'holds', 'shrinks', 'grows') <= most
    assert share(trend_words(runs((.08, .08, .08), **how)), 'flips', 'shrinks', 'grows') <= most
    assert share(trend_words(runs((.08, .04, 0), **how)), 'flips') <= most
    assert share(trend_words(runs((.08, .06, .04), **how)), 'holds') <= most
    assert share(trend_words(runs((.03, .05, .06), **how)), 'holds', 'shrinks', 'flips') <= most
    assert share(trend_words(runs((0, 0, .03), **how), margin=.03), 'holds') <= most

def test_true_words_are_found():
    known = dict(holds=(.1, .1, .1), shrinks=(.1, .05, .01), grows=(.01, .05, .1), flips=(.08, 0, -.08))
    for word,course in known.items():
        for sign in (1, -1): assert share(trend_words(runs(sign*np.array(course), seeds=5)), word) > .9

@pytest.mark.parametrize('items', [0., .01])
def test_intervals_of_slope_and_line_cover_the_truth(items):
    s = runs((.05, .05 - .02*1, .05 - .02*2.5), items=items)
    for c,truth in ((slope_weights(s), -.02), (line_weights(s, 16.), .05 - .02*4)):
        _,low,high = contrast(s, c)
        assert .945 <= ((low <= truth) & (truth <= high)).mean()

def judged(mean, rng):
    x = mean + .003*rng.standard_normal(3)
    se = float(x.std(ddof=1)/3**.5)
    d = dict(dataset='embedded/prose', arm='idea', name='embedded/prose', metric='bits_per_byte', higher=False)
    d |= dict(primary=True, mean=float(x.mean()), per_seed=x.tolist())
    d |= dict(low=d['mean'] - 4.3*se, high=d['mean'] + 4.3*se)
    return d | dict(se=(se, se), n_seeds=3, n_clusters=64, verdict='better', reason='')

class Comparisons:
    "Stand in for `compare` and `rerun`; `die` is the call that is killed"
    def __init__(self, die=None): self.calls,self.die,self.rng = [],die,np.random.default_rng(0)
    def compare(self, output_dir, say=None, **experiment):
        self.calls.append((output_dir.name, experiment))
        if not (output_dir/'plan.json').exists(): write_json(output_dir/'plan.json', experiment)
        if len(self.calls) == self.die: raise KeyboardInterrupt
        size = output_dir.name.removeprefix('size_')
        cells = [dict(arm='base', status='done', flops=6e6*SHAPES[size][0]), dict(arm='idea', status='done', flops=1.)]
        mean = dict(tiny=-.08, small=-.04, medium=-.01)[size]
        return SimpleNamespace(result=dict(cells=cells, baseline='base', differences=[judged(mean, self.rng)]))
    def rerun(self, folder, say=None): return self.compare(folder, rerun=True)

def facts(e): return SHAPES[(e.get('base') or {}).get('size', 'tiny')]

EXPERIMENT = dict(
    base=dict(size='tiny', learning_rate=.004), seeds='3..12', budget='tokens:1M',
    arms={'base': {}, 'idea': dict(optimizer='muon', learning_rate=.02)},
)

def start(folder, made, **more):
    how = dict(facts=facts, compare=made.compare, rerun=made.rerun, say=lambda line: None)
    return ladder(EXPERIMENT, ('medium', 'tiny', 'small'), output_dir=folder, **how, **more)

def test_budget_rates_and_seeds_of_each_size(tmp_path):
    made = Comparisons()
    done = start(tmp_path/'l', made)
    assert [name for name,_ in made.calls] == ['size_tiny', 'size_small', 'size_medium']
    asked = [e for _,e in made.calls]
    assert [e['budget'] for e in asked] == ['tokens:2600000', 'tokens:20000000', 'tokens:20000000']
    assert [e['base']['size'] for e in asked] == ['tiny', 'small', 'medium']
    assert [e['base']['learning_rate'] for e in asked] == pytest.approx([.004, .004/8, .004/12])
    assert [e['arms']['idea']['learning_rate'] for e in asked] == pytest.approx([.02, .02/8, .02/12])
    assert all(e['seeds'] == [0, 1, 2] for e in asked)
    assert done.words == {('embedded/prose', 'idea'): 'shrinks'}
    page = done.report().read_text(encoding='utf-8')
    assert page.count('<svg') == 1 and 'extrapolates' in page and 'stroke-dasharray' in page

@pytest.mark.parametrize('die', [1, 2, 3])
def test_a_killed_ladder_goes_on_and_comes_to_the_same(tmp_path, die):
    killed = Comparisons(die)
    with pytest.raises(KeyboardInterrupt): start(tmp_path/'killed', killed)
    before = len(killed.calls)
    again = go_on(Ladder.load(tmp_path/'killed'), killed.compare, killed.rerun, say=lambda line: None)
    assert [name for name,_ in killed.calls[before:]] == ['size_tiny', 'size_small', 'size_medium'][die - 1:]
    assert killed.calls[before][1] == dict(rerun=True)
    whole = start(tmp_path/'whole', Comparisons())
    assert json.dumps(again.result) == json.dumps(json.loads(json.dumps(whole.result)))
    assert go_on(again, lambda **_: 1/0, lambda *_: 1/0).result == again.result # nothing is left to do

def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path/'e.yaml').write_text('arms: {a: {}, b: {optimizer: lion}}\n')
    for words,said in (
        ([str(tmp_path/'e.yaml'), '--sizes', 'tiny'], 'at least two sizes'),
        ([str(tmp_path/'e.yaml'), '--cap', 'steps:9'], 'such as tokens:20M'),
        (['--rerun', str(tmp_path)], 'holds no ladder.json'),
        (['--rerun', str(tmp_path), '--cap', 'tokens:1M'], 'with --rerun'),
        ([], 'no experiment was named'),
    ):
        assert main(['ladder', *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count('lmnotes:') == 1
    with pytest.raises(InputError, match='cannot follow a rule'):
        ladder(dict(vary=dict(learning_rate=[.1, .2])), ('tiny', 'small'), facts=facts)
