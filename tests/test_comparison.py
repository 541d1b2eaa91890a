"A comparison refuses what would mislead, and its report says what its JSON says"
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lmnotes.app.cli import main
from lmnotes.app.run_explorer import find_runs
from lmnotes.comparison.cells import read_cell, write_cell
from lmnotes.comparison.comparison import compare, compare_models, rerun
from lmnotes.comparison.executors import pending_cells
from lmnotes.comparison.outcomes import analyse_cells
from lmnotes.comparison.plan import load_plan
from lmnotes.comparison.result import Comparison
from lmnotes.comparison.statistics.paired import paired_difference
from lmnotes.comparison.statistics.verdicts import verdict
from lmnotes.core import InputError, RunError
from lmnotes.data.dataloader import spread_rows
from lmnotes.data.load import load_data
from lmnotes.evaluation.held_out.score_model import score_model
from lmnotes.evaluation.item_files import read_items, rescore_items
from lmnotes.evaluation.metrics import evaluate_lm, unigram_scores
from lmnotes.evaluation.reference_compressors import KneserNey
from lmnotes.files import read_json, read_jsonl, step_name, write_json
from lmnotes.models.build import build_model
from lmnotes.models.hf.trained_model import load_trained
from lmnotes.reports.document import as_html
from lmnotes.reports.run_report import read_runs, runs_document
from lmnotes.reports.run_summary import read_run

tiny = dict(
    dim=32, n_layer=2, n_head=2, max_length=32, batch_size=4, limit=60, pieces=48, device='cpu', eval_max_batches=4,
)
quiet = dict(say=lambda line: None)
brief = dict(datasets='prose', budget='steps:3', costs=False, **tiny, **quiet)

@pytest.fixture(scope='module')
def data(): return load_data('arithmetic', max_length=32, bs=4, limit=60, device='cpu')

@pytest.fixture(scope='module')
def model(data):
    torch.manual_seed(0)
    return build_model(
        'standard', size='tiny', vocab_size=data.vocab_size, max_length=32, dim=32, n_layer=2, n_head=2
    )

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    return compare(
        'standard,reversible', 'prose', seeds=2, budget='steps:12', output_dir=tmp_path_factory.mktemp('c')/'run',
        **tiny, **quiet,
    )

# ---- metrics

def test_scores_do_not_depend_on_the_batch_size(data, model):
    one,many = (evaluate_lm(model, data, bs=bs, limit=23) for bs in (1, 9))
    assert abs(one.bits_per_byte-many.bits_per_byte) < 1e-6 and abs(one.loss-many.loss) < 1e-6
    assert (one.tokens == many.tokens).all() and (one.bytes == many.bytes).all()

def test_bits_per_byte_is_its_definition(data, model):
    s = evaluate_lm(model, data, limit=5)
    b = data.valid_blocks[spread_rows(len(data.valid_blocks), 5).tolist()]
    with torch.no_grad():
        z = model(b['input_ids']).logits.double()
    nll = torch.nn.functional.cross_entropy(z.flatten(0, 1), b['shift_labels'].flatten(), reduction='sum').item()
    assert math.isclose(
        s.bits_per_byte, nll / math.log(2) / data.token_bytes[b['shift_labels']].sum().item(), rel_tol=1e-5
    )

def test_a_model_that_looks_ahead_gets_no_score(data, model, capsys):
    class Cheat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner,self.config = model,model.config
        def forward(self, input_ids, **kw):
            out = self.inner(input_ids)
            out.logits = out.logits+out.logits.roll(-1, 1)
            return out
    with pytest.raises(RunError):
        evaluate_lm(Cheat(), data)
    assert capsys.readouterr().out == ''

def test_the_floors_stand_in_order(data, model):
    assert unigram_scores(data).bits_per_byte < evaluate_lm(model, data, limit=20).bits_per_byte

# ---- verdicts

def scores(effect, seeds=3, noise=.01):
    rng = np.random.default_rng(0)
    base = rng.normal(2, .3, (seeds, 80))
    return base, base+effect+rng.normal(0, noise, base.shape)

@pytest.mark.parametrize('effect,word', [(-.1, 'better'), (.1, 'worse'), (0., 'cannot tell')])
def test_verdicts(effect, word): assert verdict(paired_difference(*scores(effect))).word == word

def test_one_seed_or_none_that_is_finite_means_no_verdict():
    base,arm = scores(-1., seeds=1)
    assert verdict(paired_difference(base, arm)) == (
        'cannot tell',
        'one seed: the spread between seeds is unknown; use at least 3',
    )
    base,arm = scores(-1.)
    arm[1,2] = np.inf
    assert verdict(paired_difference(base, arm)).word == 'cannot tell'

def test_the_wider_interval_rules():
    base,arm = scores(.05)
    d = paired_difference(base, arm)
    assert d.high-d.low == pytest.approx(max(b-a for a,b in (d.t, d.bootstrap)))

def test_higher_can_be_better():
    assert verdict(paired_difference(*scores(.1)), lower_is_better=False).word == 'better'

# ---- wrong input

two = dict(a={}, b=dict(optimizer='muon'))
wrong_inputs = [
    (dict(arms='standard,reversable'), "did you mean 'reversible'?"),
    (dict(arms='standard'), "one arm ('standard') cannot be compared"),
    (dict(arms='standard,standard'), 'given twice'),
    (dict(arms='standard,standard@ternry'), "did you mean 'ternary'?"),
    (dict(arms='standard,nowhere/run'), 'nowhere'),
    (dict(arms=dict(a={}, b={})), "arms 'a' and 'b' do not differ"),
    (dict(arms=dict(a={}, b=dict(optimizer='muon')), optimizer='muon'), "arms 'a' and 'b' do not differ"),
    (dict(arms=dict(a={}, b=dict(seed=1))), 'a change of the seed alone is luck'),
    (dict(arms=dict(a={}, b=dict(output_dir='x'))), 'the comparison chooses the folder'),
    (dict(arms=dict(a={}, b=dict(max_steps=9))), 'under one budget'),
    (dict(arms=dict(a={}, b=dict(learning_rat=1))), "did you mean 'learning_rate'?"),
    (dict(arms=dict(a={}, b=dict(batch_size=0))), 'batch_size'),
    (dict(arms=dict(a=dict(tokenizer='bytes'), b=dict(tokenizer='chars')), budget='tokens:2k'), '--budget bytes:8k'),
    (dict(arms=dict(a=dict(dataset='prose'), b=dict(dataset='python')), datasets=None), '--eval_datasets'),
    (dict(arms=two, mode='sft', margin=.1), 'name it, such as --metric'),
    (dict(margin=0), '--margin must be above 0'),
    (dict(arms=two, stages=[dict(mode='pretrain'), dict(mode='sft', dim=64)]), 'stage 2 sets dim'),
    (dict(arms=two, stages=[dict(mode='sft', task='classify', dataset='opinions'), dict(mode='sft')], datasets=None),
     'stage 1 ends with a head for labels'),
    (dict(arms=(), vary=['optimizer=adamw']), 'at least two'),
    (dict(arms=(), vary=['seed=1,2']), 'luck'),
    (dict(vary=['optimizer=adamw,muon']), 'arms beside vary: give one of the two'),
    (dict(datasets='arithmetik'), "did you mean 'arithmetic'?"),
    (dict(datasets=''), 'no dataset'),
    (dict(dataset='prose'), 'named twice'),
    (dict(seeds=0), '--seeds'),
    (dict(seeds=-1), '--seeds'),
    (dict(seeds='4..2'), '--seeds'),
    (dict(seeds=[1, 1]), 'different'),
    (dict(budget='tokens'), 'number above 0'),
    (dict(budget='tokens:0'), 'number above 0'),
    (dict(budget='watts:5'), 'unknown budget'),
    (dict(budget='parameters:1M'), 'unknown budget'),
    (dict(budget='flops:10'), 'less than one step'),
    (dict(tune=2), '3, 5, 7'),
    (dict(launcher='proceses'), "did you mean 'processes'?"),
    (dict(tasks='taging', full_eval=True), "did you mean 'tagging'?"),
    (dict(budget='seconds:1', launcher='processes', workers=2), 'take each other'),
    (dict(learning_rat=1), 'did you mean'),
    (dict(max_steps=5), 'set by the comparison'),
    (dict(batch_size=0), 'batch_size'),
]

@pytest.mark.parametrize('kw,says', wrong_inputs)
def test_wrong_input_writes_nothing(tmp_path, monkeypatch, kw, says):
    monkeypatch.chdir(tmp_path)
    right = dict(arms='standard,reversible', datasets='arithmetic', seeds=2, budget='steps:2')
    with pytest.raises(InputError) as e:
        compare(**{**right, 'output_dir': tmp_path/'out', **tiny, **quiet, **kw})
    assert says in str(e.value) and '\n' not in str(e.value)
    assert not list(tmp_path.iterdir())

def test_dry_run_writes_nothing_and_says_what_differs_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    arms = dict(adamw={}, muon=dict(optimizer='muon', learning_rate=.02))
    compare(arms, 'prose', dry_run=True, say=lines.append, **tiny)
    assert not list(tmp_path.iterdir()) and 'cells    6 runs' in lines
    differ = [line.split()[1] for line in lines if line.startswith('differ')]
    assert differ == ['optimizer:', 'learning_rate:']

# ---- end to end

def leaves(o):
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, list): return {x for v in o for x in leaves(v)}
    return {float(o)} if isinstance(o, (int, float)) and not isinstance(o, bool) else set()

class Values(HTMLParser):
    def __init__(self):
        super().__init__()
        self.values,self.tags = [],set()
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == 'data': self.values.append(float(dict(attrs)['value']))

def test_a_real_comparison(done):
    r = done.result
    assert r['status'] == 'done' and len(done.cells) == 4 and not done.failed
    assert {c['tokens'] for c in done.cells} == {12*4*32} and len({c['parameters'] for c in done.cells}) == 1
    for c in done.cells:
        assert c['flops'] > 0 and c['seconds'] > 0 and (done.path/c['path']/'summary.json').is_file()
    controls = r['controls']['embedded/prose']
    assert set(controls) == {'unigram', 'lzma', 'kneser_ney_5'} and r['alarms'] == []
    assert controls['lzma']['training_bytes'] <= 12*4*32 # no more than the arms have read
    assert set(r['measures']['standard']) >= {'training_tokens_per_s', 'peak_bytes'} and not r['not_measured']
    assert set(r['cost_ratios']) == {'reversible'}
    assert all(x['low'] <= x['ratio'] <= x['high'] for x in r['cost_ratios']['reversible'].values())
    assert list(done.verdicts) == [('embedded/prose', 'reversible')]
    assert r['arm_options'] == dict(model=dict(standard='standard', reversible='reversible'))

def test_a_run_has_one_number(done):
    explored = {r['path']: r for r in find_runs(done.path/'cells')}
    assert len(explored) == len(done.cells)
    for c in done.cells:
        path = done.path/c['path']
        run,(scores,) = read_run(path),done.scores[c['arm'], c['dataset'], c['seed']]
        assert c['bits_per_byte'] == scores.mean and c['loss'] == scores.metrics['loss']
        numbers = [read_json(path/'summary.json'), run['summary'], run['evals'][-1], explored[str(path)]]
        assert len({x['bits_per_byte'] for x in numbers}) == 1
        assert run['summary']['standard_error']['bits_per_byte'] > 0
        kept = rescore_items(path/'items'/f"{step_name(run['summary']['steps'])}.jsonl.gz")
        assert [x['after'] for x in kept] == pytest.approx([run['summary']['bits_per_byte']])
        page = as_html(runs_document(read_runs([path])))
        assert f"{run['summary']['bits_per_byte']:.3f}" in page

def test_a_score_is_that_of_the_saved_model(done):
    c = done.cells[0]
    model,tokenizer = load_trained(str(done.path/c['path']/'final'))
    (again,),missing = score_model(model, tokenizer, ['prose'], limit=64, pieces=48, seed=0, max_length=32)
    (scores,) = done.scores[c['arm'], c['dataset'], c['seed']]
    assert not missing and again.ids == scores.ids and np.allclose(again.values, scores.values, rtol=1e-5)

def test_an_implausible_score_raises_an_alarm_and_gets_no_verdict(tmp_path, done):
    shutil.copytree(done.path, tmp_path/'c')
    for c in [c for c in done.cells if c['arm'] == 'reversible']:
        r = read_cell(tmp_path/'c'/c['path'])
        leaking = replace(r.scores[0], values=np.full(r.scores[0].n, .046))
        r.cell['bits_per_byte'] = .046
        write_cell(tmp_path/'c'/c['path'], replace(r, scores=[leaking]))
    c = rerun(tmp_path/'c', **quiet)
    alarm, = c.result['alarms']
    assert alarm['arm'] == 'reversible' and alarm['blocks'] and .046 < alarm['least'] < alarm['reference_bits']
    d, = c.result['differences']
    assert d['verdict'] == 'cannot tell' and d['implausible'] and d['p'] is None and d['more_seeds'] is None
    assert repr(c).startswith('Alarm: reversible scores 0.046 bits per byte')
    for form in ('html', 'md', 'tex'):
        assert 'Alarm: reversible' in (c.path/f'report.{form}').read_text(encoding='utf-8')

def naive_kneser_ney(train, text, order=3): # Chen and Goodman 1998, equation 4.2, with dictionaries
    grams = {order: Counter(train[i:i+order] for i in range(len(train) - order + 1))}
    for n in range(order - 1, 0, -1): grams[n] = Counter(g[1:] for g in grams[n + 1])
    def discounts(counts):
        n1,n2,n3,n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        if not min(n1, n2, n3): return [0, .5, 1., 1.5]
        y = n1/(n1 + 2*n2)
        d = [0, *(k - (k + 1)*y*b/a for k,a,b in ((1, n1, n2), (2, n2, n3), (3, n3, n4)))]
        return d if min(d[1:]) > 0 else [0, .5, 1., 1.5]
    ds = {n: discounts(c) for n,c in grams.items()}
    def p(g): # of the last byte of g
        if not g: return 1/256
        counts = {k: c for k,c in grams[len(g)].items() if k[:-1] == g[:-1]}
        if not counts: return p(g[1:])
        d,total = ds[len(g)],sum(counts.values())
        own = counts.get(g, 0)
        left = sum(d[min(c, 3)] for c in counts.values())
        return (own - d[min(own, 3)])/total + left/total*p(g[1:])
    return [p(text[max(i - order + 1, 0):i + 1]) for i in range(len(text))]

def test_kneser_ney_is_its_definition():
    train,text = b'the cat sat on the mat and the rat ran at the hat '*4 + b'a cab, a cap',b'that fat cat ran on; xyz'
    assert np.allclose(KneserNey(train, 3).probabilities(text), naive_kneser_ney(train, text))

def test_arms_see_the_same_tokens(done):
    def first_loss(c): return read_jsonl(done.path/c['path']/'metrics.jsonl')[0]['loss']
    first = {c['arm']: first_loss(c) for c in done.cells if c['seed'] == 0}
    other = [first_loss(c) for c in done.cells if c['seed'] == 1]
    assert abs(first['standard']-first['reversible']) < .2 and first['standard'] != other[0]

def of_seeds(r):
    "Means and standard deviations over the seeds of an arm, which the report prints beside what the JSON holds"
    out = []
    for a,d in {(c['arm'], c['dataset']) for c in r['cells']}:
        cells = [c for c in r['cells'] if (c['arm'], c['dataset']) == (a, d)]
        for k in cells[0]:
            values = [c[k] for c in cells if isinstance(c.get(k), (int, float))]
            if len(values) == len(cells): out += [np.mean(values), np.std(values, ddof=1)]
    return out

def test_every_figure_of_the_report_is_in_the_json(done):
    r = json.loads((done.path/'comparison.json').read_text(encoding='utf-8'))
    page = (done.path/'report.html').read_text(encoding='utf-8')
    v = Values()
    v.feed(page)
    assert len(v.values) > 40
    assert all(any(np.isclose([*leaves(r), *of_seeds(r)], x, rtol=1e-9, atol=0)) for x in set(v.values))
    assert 'script' not in v.tags and 'link' not in v.tags
    assert not re.search(r'(src|href)="(https?:|//)', page) and 'url(http' not in page

def test_it_loads_again_with_its_scores(done):
    again = Comparison.load(done.path)
    assert again.verdicts == done.verdicts and again.scores.keys() == done.scores.keys()
    assert same_scores(again, done)

def test_a_failed_cell_is_reported_and_the_rest_go_on(tmp_path):
    from lmnotes.training.train import train
    def flaky(**o):
        if not o.get('dry_run') and o['model'] == 'reversible' and o['seed'] == 0: raise RunError('<disk> full')
        return train(**o)
    c = compare('standard,reversible', seeds=2, output_dir=tmp_path/'c', train=flaky, **brief)
    assert [x['reason'] for x in c.failed] == ['RunError: <disk> full'] and c.result['status'] == 'partial'
    assert c.result['differences'][0]['n_seeds'] == 1
    assert c.verdicts['embedded/prose', 'reversible'] == 'cannot tell'
    assert '&lt;disk&gt; full' in (tmp_path/'c/report.html').read_text(encoding='utf-8')

def test_when_all_cells_fail_it_is_an_error(tmp_path):
    def broken(**o): raise RunError('no luck')
    with pytest.raises(RunError, match='no luck'):
        compare('standard,reversible', seeds=1, output_dir=tmp_path/'c', train=broken, **brief)
    assert Comparison.load(tmp_path/'c').result['status'] == 'partial'

def test_seconds_give_each_arm_the_same_time(tmp_path):
    c = compare('standard,reversible', seeds=1, output_dir=tmp_path/'c', **brief | dict(budget='seconds:0.5'))
    assert all(x['seconds'] < 2 and x['tokens'] > 0 for x in c.cells)

# ---- tuning, tasks

def test_equal_trials_for_every_arm(tmp_path):
    c = compare('standard,reversible', seeds=1, tune=3, output_dir=tmp_path/'c', **brief)
    t = c.result['tuning']['embedded/prose']
    assert t['standard']['values'] == t['reversible']['values'] and {len(x['losses']) for x in t.values()} == {3}
    assert all(x['edge'] == (x['best'] in (x['values'][0], x['values'][-1])) for x in t.values())
    assert {x['arm']: x['learning_rate'] for x in c.cells} == {a: x['best'] for a,x in t.items()}

def test_full_evaluation_pairs_items_and_controls_itself(tmp_path):
    asked = brief | dict(max_length=256, limit=1000, budget='steps:2') # room for whole items
    groups = dict(full_eval=True, tasks='classification,similarity', eval_limit=6)
    c = compare('standard,reversible', seeds=1, output_dir=tmp_path/'c', **groups, **asked)
    r = read_json(c.path/'comparison.json')
    ds = r['differences']
    assert {d['task'] for d in ds} == {'lm', 'classification'}
    wanted = {'name', 'metric', 'higher', 'p', 'holm', 'verdict', 'reason', 'detectable', 'equivalence', 'primary'}
    assert all(wanted <= set(d) for d in ds)
    assert [d['metric'] for d in ds if d['primary']] == ['bits_per_byte']
    assert all(d['arm'] == 'standard again' for d in r['aa']) and len(r['aa']) == len(ds)
    assert {x['arm'] for x in r['cells']} == {'standard', 'reversible', 'standard again'}
    assert {t['arm'] for t in r['tasks']} == {'standard', 'reversible'}
    assert any('similarity' in n for n in r['not_measured'])
    assert set(r['dynamics']['embedded/prose']) == {'standard', 'reversible'}

def test_long_range_arms_are_trained_on_the_items_and_reported_by_length(tmp_path):
    groups = dict(full_eval=True, tasks='long_range', eval_limit=4)
    c = compare('standard,standard@ternary', seeds=1, output_dir=tmp_path/'c', **groups, **brief)
    r = c.result
    assert not c.failed and not r['not_measured']
    asked = {t['metrics']['length'] for t in r['tasks']}
    assert asked == {32, 64, 128, 256} and max(asked) > tiny['max_length']
    assert {t['metrics']['trained_to'] for t in r['tasks']} == {128} and all(t['floor'] is not None for t in r['tasks'])
    items = read_items(c.path/c.cells[0]['path']/'items.jsonl.gz')
    again = [x for x in rescore_items(items) if x['task'] == 'long_range']
    assert len(again) == 20 and not any(x['changed'] for x in again)
    run = read_json(c.path/c.cells[0]['path']/'long_range/run/args.json')['options']
    assert run['mode'] == 'sft' and run['max_length'] > 256
    long_range = [d for d in r['differences'] if d['task'] == 'long_range']
    assert len(long_range) == 5*4 and not any(d['primary'] for d in long_range)
    assert all(d['uninformative'] for d in long_range if d['base_mean'] == d['arm_mean'] == 0)
    page = (c.path/'report.html').read_text(encoding='utf-8')
    assert 'Long range by length' in page and '256* characters' in page and 'uninformative' in page

def test_what_the_training_text_holds_stands_in_the_verdict(done):
    "The items' own overlap, and where it is not known that of the validation part"
    def said(share, **fields):
        d = dict(done.result['differences'][0], overlap=share and dict(share=share))
        c = Comparison(dict(done.result, differences=[d], **fields))
        return '12.0 % of the scored items stand in the training text.' in repr(c)
    data = {k: dict(d, overlap={'x': dict(share=.12)}) for k,d in done.result['data'].items()}
    little = {k: dict(d, overlap={'x': dict(share=.01)}) for k,d in done.result['data'].items()}
    assert said(.12) and not said(.01) and not said(.01, data=data)
    assert said(None, data=data) and not said(None, data=little)

# ---- engines, and going on

def same_scores(c, other):
    "Whether the scores of each cell of `c` equal those of `other` to the bit"
    pairs = [(x, y) for k,found in c.scores.items() for x,y in zip(found, other.scores[k], strict=True)]
    return all(x.ids == y.ids and (x.values == y.values).all() for x,y in pairs) and len(pairs) > 0

def test_processes_find_what_this_process_finds(tmp_path, done, forked_workers):
    engine = dict(launcher='processes', workers=2, output_dir=tmp_path/'c')
    c = compare('standard,reversible', seeds=2, **engine, **brief | dict(budget='steps:12'))
    assert not c.failed and same_scores(c, done)
    assert c.result['differences'] == done.result['differences'] and c.result['plan_hash'] == done.result['plan_hash']

def test_ray_finds_what_this_process_finds(tmp_path, done):
    pytest.importorskip('ray', reason='ray is an extra: pip install lmnotes[ray]')
    engine = dict(launcher='ray', workers=1, output_dir=tmp_path/'c')
    c = compare('standard,reversible', seeds=[0], **engine, **brief | dict(budget='steps:12'))
    assert not c.failed and same_scores(c, done)

def test_a_killed_cell_is_run_again_alone(tmp_path, forked_workers):
    def kill(root):
        while not list(root.glob('cells/standard/*/seed_0/args.json')):
            time.sleep(.01)
        os.kill(read_json(next(root.glob('logs/worker_*.json')))['pid'], signal.SIGKILL)
    root = tmp_path/'c'
    threading.Thread(target=kill, args=(root,), daemon=True).start()
    engine = dict(launcher='processes', workers=1, output_dir=root)
    c = compare('standard,reversible', seeds=[0], **engine, **brief | dict(budget='steps:100'))
    lost, = c.failed
    assert lost['arm'] == 'standard' and 'SIGKILL' in lost['reason'] and c.result['status'] == 'partial'
    kept = root/next(x['path'] for x in c.cells if x['arm'] == 'reversible')/'cell.json'
    stamp = kept.stat().st_mtime_ns
    again = rerun(root, launcher='local', **quiet)
    assert again.result['status'] == 'done' and kept.stat().st_mtime_ns == stamp
    assert list(again.verdicts) == [('embedded/prose', 'reversible')]

def repeatable(r):
    "What a comparison found, without what differs in each run: dates, the machine and how long it took"
    timed = 'created', 'env', 'how', 'measures', 'cost_ratios', 'dynamics'
    cells = [{k: v for k,v in c.items() if k not in ('seconds', 'curve', 'held_out')} for c in r['cells']]
    for c,timed_cell in zip(cells, r['cells']):
        if h := timed_cell.get('held_out'): c['held_out'] = {k: v for k,v in h.items() if k != 'seconds'}
    return {k: v for k,v in r.items() if k not in timed} | dict(cells=cells)

@pytest.mark.parametrize('lost', ['cell.json', 'scores.npz', 'final', '.'])
def test_a_rerun_after_a_kill_finds_the_same(tmp_path, done, lost):
    root = tmp_path/'c'
    shutil.copytree(done.path, root)
    for name in ('comparison.json', 'report.html'): (root/name).unlink()
    gone = root/done.cells[-1]['path']
    for name in dict.fromkeys((lost, 'cell.json')): # that is written last
        path = gone/name
        if path.is_dir(): shutil.rmtree(path)
        else: path.unlink(missing_ok=True)
    kept = (root/done.cells[0]['path']/'cell.json').stat().st_mtime_ns
    begun = dict(cells=[], differences=[], status='running', how=dict(costs=False))
    write_json(root/'comparison.json', done.result | begun)
    again = rerun(root, **quiet)
    assert repeatable(read_json(root/'comparison.json')) == repeatable(read_json(done.path/'comparison.json'))
    assert same_scores(again, done) and (root/done.cells[0]['path']/'cell.json').stat().st_mtime_ns == kept

def test_damaged_and_missing_cells_are_named_and_the_rest_reported(tmp_path, done):
    root = tmp_path/'c'
    shutil.copytree(done.path, root)
    a,b = [root/x['path'] for x in done.cells if x['seed'] == 1]
    (a/'scores.npz').write_bytes(b'no')
    shutil.rmtree(b)
    plan = load_plan(root/'plan.json')
    assert len(pending_cells(plan, root)) == 2
    found = analyse_cells(plan, root, plan.seeds)
    reasons = [x['reason'] for x in found['cells'] if x['status'] != 'done']
    assert sorted('is damaged' in x for x in reasons) == [False, True] and 'is missing' in ' '.join(reasons)
    d, = found['differences']
    assert d['verdict'] == 'cannot tell' and d['n_seeds'] == 1

@pytest.mark.parametrize('asked,kept', [(None, False), (True, True)])
def test_costs_of_the_call_win_over_those_of_the_file(tmp_path, asked, kept):
    def broken(**options): raise RuntimeError('no cell is trained here')
    file = tmp_path/'e.json'
    write_json(file, dict(models='standard,reversible', datasets='prose', budget='steps:3', seeds=1, costs=False))
    with pytest.raises(RunError): compare(file, costs=asked, train=broken, output_dir=tmp_path/'c', **tiny, **quiet)
    assert read_json(tmp_path/'c/comparison.json')['how']['costs'] is kept

def test_a_used_folder_is_refused_with_the_two_ways_to_go_on(done):
    with pytest.raises(InputError, match=r"lmnotes compare --rerun .*, in Python rerun\('"):
        compare('standard,reversible', seeds=1, output_dir=done.path, **brief)

def test_a_plan_that_was_changed_is_refused(tmp_path, done):
    shutil.copytree(done.path, tmp_path/'c')
    plan = read_json(tmp_path/'c/plan.json')
    for key,value in dict(margin=.5, metric='loss', most=9, eval_datasets=['python']).items():
        write_json(tmp_path/'c/plan.json', plan | {key: value})
        with pytest.raises(InputError, match='was changed after it was made'): rerun(tmp_path/'c', **quiet)

def test_a_program_gets_one_object(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = '--dim 32 --n_layer 2 --n_head 2 --max_length 32 --batch_size 4 --limit 60 --device cpu --no_costs'
    arms = ['--arm', 'adamw:', '--arm', 'muon: optimizer=muon, learning_rate=0.02', '--datasets', 'prose']
    words = [*arms, *'--seeds 2 --budget steps:2 --output_dir c --json -'.split(), *small.split()]
    assert main(['compare', *words]) == 0
    out,err = capsys.readouterr()
    found = json.loads(out)
    assert len(out.splitlines()) == 1 and 'muon on embedded/prose, seed 1' in err
    outcome, = found['outcomes']
    assert {'verdict', 'mean', 'low', 'high', 'n_seeds', 'more_seeds'} <= set(outcome) and found['folder'] == 'c'
    assert outcome['verdict'] == Comparison.load('c').verdicts['embedded/prose', 'muon']

# ---- models that are there

def test_models_are_compared_without_training(tmp_path, done):
    a,b = [done.path/c['path'] for c in done.cells if c['seed'] == 0]
    c = compare_models(dict(a=a, b=b), ['prose'], pieces=32, output_dir=tmp_path/'m')
    d, = c.result['differences']
    assert d['about'] == 'weights' and d['n_seeds'] == 1 and c.result['note'] in repr(c)
    with pytest.raises(InputError, match='do not differ'): compare_models(dict(a=a, again=a), ['prose'], pieces=32)
    with pytest.raises(InputError, match='there is: .*bits_per_byte'):
        compare_models(dict(a=a, b=b), ['prose'], pieces=32, metric='perplexity')
    with pytest.raises(InputError, match='is there already and holds something'):
        compare_models(dict(a=a, b=b), output_dir=tmp_path/'m')

# ---- a user's own file

MY_IDEA = '''
from lmnotes.models.build import models
from lmnotes.models.decoder import LM, LMConfig

@models('mine_reversible')
def mine_lm(**kw):
    "Build a model with a residual of its own"
    return LM(LMConfig(**kw, residual='reversible'))
'''

def test_an_imported_file_is_known_to_workers_and_to_rerun(tmp_path, forked_workers):
    mine = tmp_path/'my_idea.py'
    mine.write_text(MY_IDEA, encoding='utf-8')
    shared = dict(seeds=1, output_dir=tmp_path/'c', imports=[str(mine)])
    c = compare('standard,mine_reversible', launcher='processes', workers=1, **shared, **brief)
    assert not c.failed and {x['arm'] for x in c.cells} == {'standard', 'mine_reversible'}
    shutil.rmtree(c.path/c.cells[1]['path'])
    assert not rerun(c.path, launcher='local', **quiet).failed
    mine.write_text(MY_IDEA + '\n', encoding='utf-8')
    with pytest.raises(InputError, match='changed'):
        rerun(c.path, **quiet)
