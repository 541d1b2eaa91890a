"The rules behind a verdict: p values that agree with intervals, families, few items, few seeds"
import math

import numpy as np
import pytest
from scipy import special, stats

from lmnotes.comparison.statistics.equivalence import equivalence_p, tost_p
from lmnotes.comparison.statistics.factorial import factorial_effects
from lmnotes.comparison.statistics.further_seeds import decision_chances, futility, more_seeds
from lmnotes.comparison.statistics.intervals import half_widths, standard_errors
from lmnotes.comparison.statistics.looks import look_alphas, sequential_p
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

# ---- seeds that are added

@pytest.mark.parametrize('looks', [range(3, 13), [2, 4, 8], [5]])
def test_the_levels_of_the_looks_hold_together(looks):
    looks = list(looks)
    x = np.random.default_rng(77).normal(size=(20_000, looks[-1]))
    crossed = np.zeros(len(x), bool)
    for n,a in zip(looks, look_alphas(looks)): crossed |= stats.ttest_1samp(x[:,:n], 0, axis=1).pvalue <= a
    assert abs(crossed.mean() - .05) < 4*(.05*.95/len(x))**.5

def test_p_of_all_looks_is_below_alpha_exactly_when_the_interval_of_this_look_leaves_out_zero():
    looks = [3, 4, 6]
    for n in looks:
        base,arm = scores(.1, seeds=n)
        p = sequential_p(.004, n, looks)
        assert p > sequential_p(.003, n, looks) > 0
        for effect in np.linspace(-.2, .2, 9):
            d = paired_difference(base, arm+effect, looks=looks)
            assert (d.low > 1e-6 or d.high < -1e-6) == (d.p <= d.alpha) and d.level < .05

def test_a_look_that_was_not_planned_is_refused():
    with pytest.raises(InputError, match='more than the 4 that were planned'):
        paired_difference(*scores(.1, seeds=5), looks=[3, 4])

# ---- equivalence

def test_two_one_sided_tests_are_those_of_scipy():
    x = rng.normal(.1, .3, (40, 7))
    se = x.std(1, ddof=1)/7**.5
    ours = tost_p(x.mean(1), np.stack([se, se]), np.full((2, 40), 6.), .4)
    theirs = [stats.ttest_1samp(x, m, axis=1, alternative=a).pvalue for m,a in ((-.4, 'greater'), (.4, 'less'))]
    assert np.allclose(ours, np.max(theirs, 0))

@pytest.mark.parametrize('effect, margin, word', [
    (0., .2, 'equivalent'), (-.15, .3, 'equivalent'),
    (-.15, .05, 'better'), (.15, .05, 'worse'), (0., .001, 'cannot tell'),
])
def test_the_four_words(effect, margin, word):
    base,_ = scores(0., seeds=5)
    d = paired_difference(base, base+effect+.01*np.arange(-2, 3)[:,None])
    assert verdict(d, margin=margin).word == word
    assert (equivalence_p(d, margin) <= .05) == (-margin < d.equivalence[0] and d.equivalence[1] < margin)

def test_ties_are_equivalent_after_three_seeds_where_scores_are_fine_enough():
    base = scores(0.)[0]
    assert verdict(paired_difference(base, base), margin=.01).word == 'equivalent'
    assert verdict(paired_difference(base[:2], base[:2]), margin=.01).word == 'cannot tell'
    few,many = (np.ones((3, n)) for n in (64, 400))
    assert 'too few' not in verdict(paired_difference(many, many), margin=.01).reason
    assert verdict(paired_difference(few, few), margin=.01).word == 'cannot tell'

@pytest.mark.parametrize('margin', [0, -1., float('nan'), True, '.1'])
def test_a_margin_is_a_positive_number(margin):
    with pytest.raises(InputError, match='largest difference that would not matter'):
        verdict(paired_difference(*scores(0.)), margin=margin)

def test_a_primary_outcome_is_tested_by_itself():
    first,one = dict(entry(-.3), primary=True),entry(0.)
    others = [dict(one) for _ in range(125)]
    p = first['p']
    judge([first, *others])
    assert first['holm'] == pytest.approx(p) and first['family'] == 1 and others[0]['family'] == 125
    assert first['verdict'] == 'better'

def test_where_equivalence_does_not_survive_a_difference_may():
    base = scores(0., seeds=5)[0]
    close = paired_difference(base, base-.05+.01*np.arange(-2, 3)[:,None]).as_dict()
    margin = next(m for m in np.arange(.055, .1, .0005) if equivalence_p(close, float(m)) <= .045)
    es = [dict(close, verdict='equivalent', reason='', higher=False, margin=float(margin)) for _ in range(4)]
    judge(es)
    assert {e['verdict'] for e in es} == {'better'} and 'among 4 questions it is not' in es[0]['reason']

# ---- further seeds

def test_more_seeds_of_every_word():
    base = scores(0., seeds=4)[0]
    spread = .1*np.array([-1., -.5, .5, 1.])[:,None]
    cases = (1., None, True), (-1., None, True), (0., 1., True), (0., .1, False), (.1, None, False)
    for effect,margin,decided in cases:
        need = more_seeds(paired_difference(base, base+effect+spread), margin)
        assert need == 0 if decided else need > 0
    few = paired_difference(np.zeros((4, 5)), .01*spread+np.array([1., -1., .5, 2., -2.]))
    assert more_seeds(few) is None and more_seeds(paired_difference(base[:1], base[:1]+1)) is None

def test_more_seeds_are_predicted_more_surely_and_futility_needs_both():
    base = scores(0., seeds=6)[0]
    d = paired_difference(base, base+.1*np.array([-1., .9, .3, -.4, .8, -.6])[:,None], looks=range(3, 13))
    chances = decision_chances(d, np.arange(7, 60), .1).any
    assert (np.diff(chances) > -1e-9).all() and chances[-1] > .8
    assert futility(d, range(3, 13)) and futility(d, range(3, 13), margin=.3) is None and futility(d, [3, 6]) is None

# ---- factorial designs and many ideas

def test_factorial_effects_are_those_of_a_regression():
    factors = dict(a=['x', 'y'], b=['p', 'q', 'r'], c=[0, 1])
    cells = [(i, j, k) for i in factors['a'] for j in factors['b'] for k in factors['c']]
    y = {c: rng.normal(size=(4, 30)) for c in cells}
    def columns(level, levels): # 1 for the level, less its mean, for each level but the first
        return [float(level == x) - 1/len(levels) for x in levels[1:]]
    rows = []
    for i,j,k in cells:
        (a,),b,(c,) = (columns(v, factors[f]) for v,f in zip((i, j, k), 'abc'))
        rows.append([1, a, *b, c, *(a*x for x in b), a*c, *(x*c for x in b), *(a*x*c for x in b)])
    fitted = np.linalg.lstsq(np.array(rows), np.array([y[c].mean() for c in cells]), rcond=None)[0]
    effects = factorial_effects(y, factors, n_boot=50)
    assert np.allclose([e['difference'].mean for e in effects], fitted[1:])

def test_discoveries_by_p_values_are_those_by_their_e_values():
    ps = rng.random(60)**6
    beta = np.r_[.5, .5*(1+np.cumsum(1/np.arange(1, 60)))]
    units = .05*np.arange(1, 61)**-1.6/special.zeta(1.6)
    ranks = [np.searchsorted(beta, p/u) for p,u in zip(ps, units)] # equation 4 of the page on many questions
    es = [1/(u*(r+1)) if r < 60 else 0. for r,u in zip(ranks, units)]
    by_p,by_e = elond(ps).found,elond(np.array(es)*(1+1e-12), kind='e').found
    assert by_p.sum() > 3 and (by_p == by_e).all()

def test_a_winner_shrinks_by_what_all_ideas_show():
    truth = np.random.default_rng(0).normal(0, .02, 4000)
    seen = truth+np.random.default_rng(1).normal(0, .04, 4000)
    spread = effect_spread(seen, np.full(4000, .04))
    assert abs(spread - .02) < .003 and shrunken_effect(.1, .04, spread).effect == pytest.approx(.02, abs=.005)
    assert effect_spread([0., 0.], [.1, .1]) == 0
