"Recipes: every arm searched as hard as its neighbour, what was typed stands, and hub models keep their defaults"
import json
from dataclasses import asdict, replace

import pytest

from lmnotes.benchmarks.bench_recipes import RECIPE_DATASETS, RECIPE_MODELS, bench_recipes, recipe_regret
from lmnotes.core import InputError, RunError
from lmnotes.training import recipe_search as R
from lmnotes.training.options import TrainOptions
from lmnotes.training.recipe_search import choose_lr, search_recipes
from lmnotes.training.recipes import (
    apply_recipe,
    general_recipe,
    hub_recipe,
    recipe_for,
    recipe_table,
    recipes_file,
    save_recipes,
    searched_lrs,
)

table = recipe_table()
small = dict(mode='pretrain', dim=32, n_layer=1, n_head=1, max_length=32, batch_size=4, limit=200, device='cpu')

# ---- the table of the package

def test_every_arm_of_a_dataset_had_the_same_trials():
    assert table
    for d in {r.dataset for r in table}:
        searches = {
            (
                r.mode,
                r.size,
                r.steps,
                r.seed,
                r.batch_size,
                r.max_length,
                r.fingerprint,
                tuple(x for x, _ in r.trials),
            )
            for r in table
            if r.dataset == d
        }
        assert len(searches) == 1, d

@pytest.mark.parametrize('r', table, ids=lambda r: f'{r.dataset}-{r.model}')
def test_an_entry_follows_from_its_trials(r):
    rates = sorted(x for x,_ in r.trials)
    assert r.learning_rate == choose_lr(r.trials, rates[len(rates)//2])
    assert r.best <= 1.03*min(l for _,l in r.trials if l is not None)
    assert r.edge == (r.learning_rate in (rates[0], rates[-1]))
    assert r.python and len(r.fingerprint) == 16 and r.source == 'search'
    # so that filling them in changes nothing
    assert (r.batch_size, r.gradient_accumulation_steps, r.max_length) == (8, 1, 128)
    assert str(r).startswith(f'learning rate {r.learning_rate:.2g} for {r.dataset} x {r.model}')

def test_datasets_of_the_benchmarks_are_there_for_both_models():
    stand_ins = dict(code='embedded/python', squad='squad_v2') # where the trials read other rows, the recipe says so
    for d in RECIPE_DATASETS:
        both = [recipe_for(d, m) for m in RECIPE_MODELS]
        assert {r.source for r in both} == {'search'} and {r.rows for r in both} == {stand_ins.get(d)}
        assert searched_lrs(d, RECIPE_MODELS, mode=None) == {r.model: r.learning_rate for r in both}
        assert all(f'on rows of {r.rows}' in str(r) for r in both if r.rows)

def test_embedded_datasets_are_there_for_five_kinds():
    names = {(r.dataset, r.model) for r in table}
    for d in 'prose python arithmetic opinions reading entities recall'.split():
        for m in 'standard gpt reversible resonance rnn'.split():
            assert (f'embedded/{d}', m) in names, (d, m)

def test_the_file_holds_no_path_and_travels_with_the_package():
    text = recipes_file.read_text(encoding='utf-8')
    assert '/work' not in text and 'data_dir' not in text and json.loads(text)['version'] == 1
    root = recipes_file.parents[2]
    if (root/'MANIFEST.in').is_file():
        assert 'recursive-include lmnotes *.json' in (root/'MANIFEST.in').read_text(encoding='utf-8')

# ---- what a run gets

@pytest.mark.parametrize('model', ['gpt2', 'Qwen/Qwen3-0.6B', 'google-t5/t5-small'])
def test_hub_weights_keep_the_defaults_of_their_family(model):
    o,r = apply_recipe(TrainOptions(model=model, dataset='imdb'))
    assert r == hub_recipe and 'not searched' in str(r)
    assert (o.learning_rate, o.weight_decay, o.adam_beta1, o.adam_beta2, o.adam_epsilon) == (
        5e-5,
        0.0,
        0.9,
        0.999,
        1e-8,
    )
    assert (o.max_length, o.batch_size, o.gradient_accumulation_steps, o.warmup_steps) == (
        128,
        8,
        1,
        0,
    ) and o.warmup_ratio == 0

def test_only_open_options_change():
    before = TrainOptions()
    after,r = apply_recipe(before)
    changed = {k for k,v in asdict(after).items() if v != asdict(before)[k]}
    assert changed <= {'learning_rate', 'lr_scheduler_type', 'warmup_ratio'} and r.source == 'search'
    assert after.learning_rate == r.learning_rate

@pytest.mark.parametrize(
    'name,value',
    dict(
        learning_rate=0.1, lr_scheduler_type='linear', warmup_ratio=0., weight_decay=0.3, adam_beta2=0.9,
        batch_size=2, max_length=64,
    ).items(),
)
@pytest.mark.parametrize('model', ['standard', 'gpt2'])
def test_what_was_typed_stands(name, value, model):
    o,_ = apply_recipe(TrainOptions(model=model, **{name: value}), {name})
    assert getattr(o, name) == value

def test_a_none_that_was_passed_on_is_open():
    assert (
        apply_recipe(TrainOptions(), set(asdict(TrainOptions())))[0].learning_rate
        == recipe_for('prose', 'standard').learning_rate
    )

@pytest.mark.parametrize(
    'change',
    [
        dict(dim=32),
        dict(n_layer=1),
        dict(size='small'),
        dict(optimizer='lion'),
        dict(tokenizer='chars'),
        dict(model='standard+ternary'),
        dict(model='tiny:gpt2'),
        dict(datasets=('prose', 'python')),
        dict(max_chunks=3),
        dict(mode='sft', dataset='recall', tokenizer='bpe'),
    ],
)
def test_a_run_of_another_kind_takes_the_general_rule(change):
    o,r = apply_recipe(TrainOptions(**change))
    assert (
        r == general_recipe and o.learning_rate is None and (o.lr_scheduler_type, o.warmup_ratio) == ('cosine', 0.05)
    )

def test_unequal_searches_give_no_rates(tmp_path):
    a,b = (replace(recipe_for('prose', m)) for m in ('standard', 'gpt'))
    save_recipes([a, b], tmp_path/'r.json')
    assert searched_lrs('prose', ['standard', 'gpt'], path=tmp_path / 'r.json') == dict(
        standard=a.learning_rate, gpt=b.learning_rate
    )
    save_recipes([replace(b, trials=b.trials[1:4])], tmp_path/'r.json')
    assert searched_lrs('prose', ['standard', 'gpt'], path=tmp_path/'r.json') is None
    assert searched_lrs('prose', ['standard', 'gpt2']) is None

# ---- the search

def test_a_handful_of_rows_is_not_searched(tmp_path):
    with pytest.raises(InputError, match='a search needs 64 at least'):
        search_recipes('recall', 'standard', trials=3, steps=2, **small | dict(mode='sft', limit=20))

def test_the_bench_searches_all_alike_and_says_what_is_missing(monkeypatch):
    asked = []
    def search(name, models, **budget):
        assert budget.pop('rows_of') == dict(code='python', squad='squad_v2')
        asked.append((tuple(models), budget.pop('say') and tuple(sorted(budget.items(), key=str))))
        if name == 'code': raise InputError('no rows')
        return [replace(recipe_for('prose', m), dataset=name) for m in models]
    monkeypatch.setitem(bench_recipes.__globals__, 'search_recipes', search)
    figures = bench_recipes(data_dir='/rows')
    assert len(asked) == 5 and len(set(asked)) == 1 # the same models and the same budget for each dataset
    assert figures['not_searched'] == 1 and figures['missing'] == [dict(dataset='code', reason='no rows')]
    assert figures['equal_trials'] == 1 and len(figures['variants']) == 8

def test_regret_is_measured_on_the_new_trials():
    r = replace(table[0], trials=((1e-3, 2.), (2e-3, 1.), (4e-3, None)), learning_rate=2e-3)
    assert recipe_regret(r, r) == 0 and recipe_regret(r, replace(r, learning_rate=1e-3)) == 1
    assert recipe_regret(r, replace(r, learning_rate=4e-3)) is None # that trial failed


def test_a_search_that_was_stopped_goes_on_where_it_stood(tmp_path, monkeypatch):
    seen = []
    def trial(o, data, windows):
        if len(seen) == 4: raise KeyboardInterrupt()
        seen.append((o.model, o.learning_rate))
        return 2. + len(seen)
    monkeypatch.setattr(R, 'run_trial', trial)
    search = lambda: search_recipes('opinions', 'standard gpt', trials=3, steps=5, path=tmp_path/'r.json', **small)
    with pytest.raises(KeyboardInterrupt):
        search()
    assert [r.model for r in recipe_table(tmp_path/'r.json')] == ['standard'] # the arm that was whole
    seen[:] = [('past', 0)]*5
    found = search()
    assert [m for m,_ in seen[5:]] == ['gpt']*3 and [r.model for r in found] == ['standard', 'gpt']

def test_a_rate_that_breaks_the_run_counts_as_a_trial(tmp_path):
    r, = search_recipes('opinions', 'standard', trials=3, steps=20, factor=1e4, windows=16, **small)
    assert len(r.trials) == 3 and r.learning_rate < 1
    assert json.loads(save_recipes([r], tmp_path / 'r.json').read_text(encoding='utf-8'))['recipes'][0]['trials'] == [
        list(t) for t in r.trials
    ]

def test_bad_searches_are_refused_before_any_trial():
    for bad, why in [
        (dict(trials=4), 'not 4'),
        (dict(learning_rate=1.0), 'learning_rate'),
        (dict(batchsize=3), 'did you mean'),
        (dict(batch_size=0), 'above 0'),
    ]:
        with pytest.raises(InputError, match=why):
            search_recipes('opinions', 'standard', steps=5, **bad)
    with pytest.raises(RunError, match='failed'):
        choose_lr([(1., None)], 1.)
