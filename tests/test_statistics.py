"The rules behind a verdict: p values that agree with intervals, families, few items, few seeds"
import math

import numpy as np
import pytest

from lmnotes.comparison.statistics.intervals import half_widths, standard_errors
from lmnotes.comparison.statistics.multiplicity import *
from lmnotes.comparison.statistics.paired import *
from lmnotes.comparison.statistics.verdicts import *
from lmnotes.core import InputError

rng = np.random.default_rng(0)
def scores(effect, seeds=3, items=80, noise=.05):
    base = rng.normal(2, .3, (seeds, items))
    return base, base+effect+rng.normal(0, noise, (seeds, 1))+rng.normal(0, noise, base.shape)

def test_p_is_below_a_level_exactly_when_the_wider_interval_of_that_level_leaves_out_zero():
    for _ in range(40):
        base,arm = scores(rng.normal(0, .1), seeds=int(rng.integers(2, 6)), items=int(rng.integers(20, 90)))
        p = paired_difference(base, arm).p
        for alpha in (p*.98, min(p*1.02, .999)):
            d = paired_difference(base, arm, alpha=alpha)
            assert (not d.low <= 1e-6 or not d.high >= -1e-6) == (p < alpha)

def test_many_comparisons_at_once_are_judged_as_one_by_one():
    m = rng.normal(0, 1, (7, 3, 20))
    W = np.full(20, 1/20)
    se,df = standard_errors(m, W)
    for i in range(7):
        one,ones = standard_errors(m[i], W)
        assert np.allclose(one, se[:,i]) and np.allclose(ones, df[:,i])

def test_holm_against_its_definition():
    ps = rng.random(12)**3
    order = np.argsort(ps)
    adjusted = holm(ps)
    rejected = set()
    for k,i in enumerate(order): # Holm 1979: go on while p_(k) <= alpha/(m-k)
        if ps[i] > .05/(12-k): break
        rejected.add(i)
    assert {i for i in range(12) if adjusted[i] <= .05} == rejected
    assert (adjusted >= ps).all() and (adjusted <= 1).all()

def entry(effect, **kw):
    d = paired_difference(*scores(effect, **kw), n_boot=400)
    return d.as_dict() | dict(verdict=verdict(d).word, reason=verdict(d).reason, higher=False)

def test_a_family_is_everything_that_was_tested_and_nothing_else():
    es = judge([entry(-1.), entry(0.), entry(-1., seeds=1)])
    assert [e['family'] for e in es] == [2, 2, 2] and es[2]['holm'] is None and es[2]['verdict'] == 'cannot tell'
    assert es[0]['verdict'] == 'better' or 'among 2' in es[0]['reason']

def test_alone_the_corrected_verdict_is_the_verdict():
    e = entry(-.3)
    before = e['verdict']
    judge([e])
    assert e['verdict'] == before and e['holm'] == pytest.approx(e['p'])
    assert e['detectable'] == pytest.approx(e['detectable_alone'])

def test_the_stated_effect_of_a_family_is_found_after_holm():
    found = n = 0
    for _ in range(80):
        es = [entry(0., seeds=5) for _ in range(5)]
        effect = judge([dict(e) for e in es])[0]['detectable']
        d = es[0]
        se,df = np.array(d['se']),np.array(d['df'])
        n += 1
        found += abs(d['mean']+effect) > half_widths(se, df, .05/5).max()
    assert found/n >= .7 # of 0.8 promised, at 80 trials

def test_accuracies_are_better_when_higher():
    right = (rng.random((3, 200)) < .2).astype(float)
    more = (rng.random((3, 200)) < .9).astype(float)
    assert verdict(paired_difference(right, more), lower_is_better=False).word == 'better'
    assert verdict(paired_difference(more, right), lower_is_better=False).word == 'worse'

@pytest.mark.parametrize('k', [0, 1, 3, 5])
def test_few_items_that_differ_give_no_verdict(k):
    base = np.zeros((3, 64))
    arm = base.copy()
    arm[:,:k] = 1
    d = paired_difference(base, arm)
    assert verdict(d, False).word == 'cannot tell' and d.n_informative == k
    if not k: assert d.p == 1 and math.isnan(d.detectable)

def test_clusters_that_move_together_widen_the_interval():
    d = np.repeat(rng.normal(0, 1, 8), 16)+rng.normal(0, .1, (3, 128))
    c = np.repeat(np.arange(8), 16)
    apart,together = (paired_difference(0*d, d, clusters=x) for x in (None, c))
    assert together.high-together.low > 1.5*(apart.high-apart.low) and together.n_clusters == 8

def test_weights_alone_speak_of_weights():
    base,arm = scores(.2, seeds=1)
    d = weights_difference(base, arm)
    assert d.about == 'weights' and verdict(d).word == 'worse'
    assert verdict(paired_difference(base, arm)).word == 'cannot tell'

def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match='cannot be paired'):
        paired_difference(np.ones((3, 4)), np.ones((3, 5)))
