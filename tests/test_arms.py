"An arm is any difference: each form of a comparison trains what it says, pairs its items and judges by its metric"
import numpy as np
import pytest

from lmnotes.comparison.cells import read_cell, waits_for
from lmnotes.comparison.comparison import compare
from lmnotes.comparison.ledger import confirming_experiment
from lmnotes.comparison.plan import cell_options, load_plan, plan_cells
from lmnotes.comparison.planning import plan_comparison
from lmnotes.core import InputError
from lmnotes.files import read_json

tiny = dict(
    dim=32, n_layer=2, n_head=2, batch_size=4, limit=60, pieces=48, device='cpu', eval_max_batches=4,
    costs=False, say=lambda line: None,
)
short = dict(max_length=32, budget='steps:4', **tiny)
rows = dict(max_length=64, budget='steps:2', eval_limit=6, **tiny) # room for whole rows of `recall` in bytes

def differences(c): return {(d['arm'], d['name'], d['metric']): d for d in c.result['differences']}

def args(c, cell): # options of the run of a cell
    return read_json(c.path/cell['run']/'args.json')['options']

# ---- a factorial design

@pytest.fixture(scope='module')
def factorial(tmp_path_factory):
    factors = ['optimizer=adamw,muon', 'model=standard,reversible']
    return compare(vary=factors, datasets='prose', seeds=2, output_dir=tmp_path_factory.mktemp('f')/'c', **short)

def test_a_factorial_design_trains_every_combination(factorial):
    assert factorial.result['arms'] == ['adamw standard', 'adamw reversible', 'muon standard', 'muon reversible']
    assert factorial.result['factors'] == dict(optimizer=['adamw', 'muon'], model=['standard', 'reversible'])
    trained = {(c['arm'], args(factorial, c)['optimizer'], args(factorial, c)['model']) for c in factorial.cells}
    assert trained == {(f'{o} {m}', o, m) for o in ('adamw', 'muon') for m in ('standard', 'reversible')}

def test_effects_and_interaction_are_those_of_a_regression(factorial):
    "Of the scores on contrasts of -1/2 and 1/2; the interaction is the difference of differences"
    scores = {k: s.mean for k,(s,) in factorial.scores.items()}
    x,y = [],[]
    for (arm,_,_),value in scores.items():
        o,m = (.5 if word in arm else -.5 for word in ('muon', 'reversible'))
        x.append([1, o, m, o*m])
        y.append(value)
    _,optimizer,model,both = np.linalg.lstsq(np.array(x), np.array(y), rcond=None)[0]
    found = {tuple(e['effect'].items()): e['mean'] for e in factorial.result['effects']}
    muon,reversible = ('optimizer', 'muon'),('model', 'reversible')
    wanted = {(muon,): optimizer, (reversible,): model, (muon, reversible): both}
    assert found == {k: pytest.approx(v, abs=1e-6) for k,v in wanted.items()}

def test_its_experiment_asks_it_again(factorial):
    "With its factors, so that a ladder or a confirmation has the same arms"
    asked = factorial.result['experiment']
    again = plan_comparison(**asked)
    assert again.factors == factorial.result['factors']
    assert [a.name for a in again.arms] == factorial.result['arms']

def test_a_confirmation_of_a_factorial_idea_has_the_arms_of_both_names(factorial):
    baseline,arm = factorial.result['arms'][::3]
    entry = dict(n=1, confirms=None, baseline=baseline, arm=arm, n_seeds=2, baseline_key='k', seeds=[0, 1])
    e = confirming_experiment([entry], entry | dict(experiment=factorial.result['experiment']))
    assert e['arms'][baseline] == dict(optimizer='adamw', model='standard')
    assert e['arms'][arm] == dict(optimizer='muon', model='reversible')
    assert 'vary' not in e and e['seeds'] == [2, 3]

# ---- stages

@pytest.fixture(scope='module')
def staged(tmp_path_factory):
    first,second = dict(mode='pretrain', dataset='prose'),dict(mode='sft', dataset='recall')
    arms = {
        'full': dict(stages=[first, second]),
        'lora': dict(stages=[first, second | dict(use_lora=True, lora_r=4)]),
        'direct': dict(stages=[second]),
    }
    return compare(arms, seeds=1, output_dir=tmp_path_factory.mktemp('s')/'c', **rows)

def test_a_stage_that_arms_share_is_trained_once(staged):
    assert not staged.failed
    made = sorted(p.parent.relative_to(staged.path/'cells').as_posix() for p in staged.path.glob('cells/**/args.json'))
    place = 'embedded__recall/seed_0'
    assert made == [f'direct/{place}', f'full/{place}/stage_1', f'full/{place}/stage_2', f'lora/{place}/stage_2']
    plan = load_plan(staged.path/'plan.json')
    assert {c.arm: waits_for(plan, c) for c in plan_cells(plan)} == dict(full=set(), lora={'full'}, direct=set())

def test_a_stage_starts_from_the_one_before(staged):
    by_arm = {c['arm']: c for c in staged.cells}
    first = str(staged.path/'cells/full/embedded__recall/seed_0/stage_1/final')
    assert {a: args(staged, by_arm[a])['model'] for a in ('full', 'lora')} == dict(full=first, lora=first)
    assert by_arm['full']['steps'] == by_arm['lora']['steps'] == 4 and by_arm['direct']['steps'] == 2

def test_a_stage_that_cannot_start_from_the_one_before_is_one_line(tmp_path):
    arms = dict(a={}, b=dict(learning_rate=.1))
    head,then = dict(mode='sft', task='classify', dataset='opinions'),dict(mode='sft', dataset='recall')
    heads,sizes = [head, then],[then, then | dict(size='small')]
    for stages,says in [(heads, 'stage 1 ends with a head for labels'), (sizes, 'sets size')]:
        with pytest.raises(InputError) as e: compare(arms, stages=stages, output_dir=tmp_path/'c', **rows)
        assert says in str(e.value) and '\n' not in str(e.value) and not list(tmp_path.iterdir())

# ---- modes

def test_packing_of_rows_with_answers(tmp_path):
    base = dict(dataset='recall', mode='sft')
    c = compare(dict(plain={}, packed=dict(use_packing=True)), base=base, seeds=1, output_dir=tmp_path/'c', **rows)
    d = differences(c)['packed', 'recall', 'exact_match']
    assert not c.failed and d['primary'] and d['n_items'] == 6 and d['n_seeds'] == 1
    packed = {c_['arm']: args(c, c_)['use_packing'] for c_ in c.cells}
    assert packed == dict(plain=False, packed=True)
    assert c.result['metric'] == 'own score' and c.result['status'] == 'done'

def test_rl_with_the_random_reward_as_an_arm(tmp_path):
    lengths = dict(max_prompt_length=48, max_completion_length=8)
    base = dict(dataset='recall', mode='rl', grpo_group_size=2, **lengths)
    asked = {k: v for k,v in tiny.items() if k != 'eval_max_batches'} | dict(budget='steps:2', eval_limit=6)
    c = compare(dict(task={}, random=dict(reward='random')), base=base, seeds=1, output_dir=tmp_path/'c', **asked)
    assert not c.failed and {x['arm']: args(c, x)['reward'] for x in c.cells}['random'] == 'random'
    assert differences(c)['random', 'recall', 'exact_match']['primary']
    assert c.result['arm_options']['reward']['random'] == 'random'

def test_a_head_for_labels(tmp_path):
    base = dict(dataset='opinions', task='classify')
    arms = dict(slow={}, fast=dict(learning_rate=.01))
    c = compare(arms, base=base, seeds=2, output_dir=tmp_path/'c', **short | dict(max_length=64, eval_limit=8))
    assert not c.failed and any(d['primary'] and d['metric'] == 'accuracy' for d in c.result['differences'])

def test_a_masked_model(tmp_path):
    base = dict(model='encoder', dataset='prose')
    arms = dict(slow={}, fast=dict(learning_rate=.01))
    c = compare(arms, base=base, seeds=2, output_dir=tmp_path/'c', **short | dict(max_length=64))
    assert not c.failed and c.verdicts.keys() == {('embedded/prose', 'fast')}
    assert all(s.n > 1 for found in c.scores.values() for s in found)

# ---- data and tokenizers

def test_tokenizers_by_bytes_and_their_pieces_pair(tmp_path):
    arms = dict(bytes={}, bpe=dict(tokenizer='bpe', vocab_size=300))
    asked = short | dict(budget='bytes:2k')
    c = compare(arms, base=dict(dataset='prose'), seeds=1, output_dir=tmp_path/'c', **asked)
    a,b = (found[0] for found in c.scores.values())
    assert not c.failed and a.ids == b.ids and (a.weights == b.weights).all() and (a.weights[:-1] <= 256).all()
    assert all(':' in i for i in a.ids) and a.tokenizer != b.tokenizer
    read = {x['arm']: x['bytes'] for x in c.cells}
    assert min(read.values()) >= 2000 and max(read.values())/min(read.values()) < 1.3
    assert differences(c)['bpe', a.name, 'bits_per_byte']['n_items'] == a.n

def test_a_mixture_is_scored_on_what_was_named(tmp_path):
    arms = dict(prose=dict(dataset='prose'), both=dict(datasets=['prose', 'python'], mixture_rates=[.5, .5]))
    with pytest.raises(InputError, match='--eval_datasets'): compare(arms, output_dir=tmp_path/'no', **short)
    c = compare(arms, eval_datasets=['prose', 'python'], seeds=1, output_dir=tmp_path/'c', **short)
    names = {d['name'] for d in c.result['differences'] if d['primary'] and d['metric'] == 'bits_per_byte'}
    assert not c.failed and names == {'embedded/prose', 'embedded/python'}
    assert {x['arm']: list(args(c, x)['datasets']) for x in c.cells}['both'] == ['prose', 'python']

# ---- after training

def test_a_rewrite_after_training_has_the_weights_of_its_base(tmp_path):
    c = compare('standard,standard@int4,standard@ternary', 'prose', seeds=1, output_dir=tmp_path/'c', **short)
    base,int4,ternary = c.cells
    made = [p.relative_to(c.path).as_posix() for p in c.path.glob('cells/**/final')]
    assert made == [f"{base['path']}/final"] and {x['run'] for x in c.cells} == {base['path']}
    assert len({x['bits_per_byte'] for x in (base, int4, ternary)}) == 3
    assert [x['shared'] for x in (base, int4, ternary)] == [False, True, True]
    again = compare(['standard', str(c.path/base['path'])], 'prose', seeds=2, output_dir=tmp_path/'d', **short)
    assert len(again.cells) == 3 and again.result['differences'][0]['about'] == 'weights'
    folder = again.scores[again.result['arms'][1], 'embedded/prose', 0][0]
    assert (folder.values == c.scores['standard', 'embedded/prose', 0][0].values).all()

# ---- seeds until decided

def test_seeds_are_added_while_the_verdict_is_open(tmp_path):
    lines = []
    asked = short | dict(say=lines.append)
    arms = dict(slow={}, same=dict(weight_decay=.02))
    c = compare(arms, base=dict(dataset='prose'), margin=1e-9, seeds='2..3', output_dir=tmp_path/'c', **asked)
    looks,seeds = [x['seeds'] for x in c.result['looks']],c.result['seeds']
    assert looks == list(range(2, len(seeds) + 1)) and c.result['most_seeds'] == 3
    assert len(c.cells) == 2*len(seeds) and {x['seed'] for x in c.cells} == set(seeds)
    assert len([line for line in lines if line.startswith('open')]) == len(seeds) - 2
    d, = c.result['differences']
    assert d['n_seeds'] == len(seeds) and d['margin'] == 1e-9

def test_a_decided_question_gets_no_more_seeds(tmp_path):
    arms,asked = dict(right={}, far=dict(learning_rate=1.)),short | dict(budget='steps:12')
    c = compare(arms, base=dict(dataset='prose'), seeds='3..6', output_dir=tmp_path/'c', **asked)
    assert c.verdicts == {('embedded/prose', 'far'): 'worse'} and len(c.result['seeds']) < 6
    assert c.result['looks'][-1]['seeds'] == len(c.result['seeds'])

# ---- the plan

def test_options_of_a_run_are_those_of_the_plan(factorial):
    plan = load_plan(factorial.path/'plan.json')
    for cell in plan_cells(plan):
        one, = cell_options(plan, cell, factorial.path)
        run = read_json(factorial.path/cell.folder/'args.json')['options']
        assert all(run[k] == one[k] for k in ('optimizer', 'model', 'seed', 'dim'))
        assert read_cell(factorial.path/cell.folder).cell['arm'] == cell.arm
