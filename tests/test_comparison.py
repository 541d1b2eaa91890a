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

from lmnotes.app.run_explorer import find_runs
from lmnotes.comparison.cell_result import read_cell, write_cell
from lmnotes.comparison.compare_checkpoints import compare_models
from lmnotes.comparison.comparison import compare, finish_comparison, rerun
from lmnotes.comparison.executors import pending_cells
from lmnotes.comparison.experiment_run import run_cell
from lmnotes.comparison.planning import plan_comparison
from lmnotes.comparison.result import Comparison
from lmnotes.comparison.spec import ComparisonSpec
from lmnotes.comparison.statistics.paired import paired_difference
from lmnotes.comparison.statistics.verdicts import verdict
from lmnotes.core import InputError, RunError
from lmnotes.data.dataloader import spread_rows
from lmnotes.data.load import load_data
from lmnotes.evaluation.item_files import read_items, rescore_items
from lmnotes.evaluation.metrics import evaluate_lm, unigram_scores
from lmnotes.evaluation.reference_compressors import KneserNey
from lmnotes.files import read_json, read_jsonl, step_name
from lmnotes.models.build import build_model
from lmnotes.reports.document import as_html
from lmnotes.reports.run_report import read_runs, runs_document
from lmnotes.reports.run_summary import read_run

tiny = dict(dim=32, n_layer=2, n_head=2, max_length=32, batch_size=4, limit=60, device='cpu')
quiet = dict(say=lambda line: None)

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
        'standard,reversible',
        'arithmetic',
        seeds=2,
        budget='steps:12',
        output_dir=tmp_path_factory.mktemp('c') / 'run',
        **tiny,
        **quiet,
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

wrong_inputs = [
    (dict(models='standard,reversable'), "did you mean 'reversible'?"),
    (dict(models='standard'), 'one model'),
    (dict(models='standard,standard'), 'given twice'),
    (dict(datasets='arithmetik'), "did you mean 'arithmetic'?"),
    (dict(datasets=''), 'no dataset'),
    (dict(seeds=0), '--seeds'),
    (dict(seeds=-1), '--seeds'),
    (dict(seeds=[1, 1]), 'different'),
    (dict(budget='tokens'), 'number above 0'),
    (dict(budget='tokens:0'), 'number above 0'),
    (dict(budget='watts:5'), 'unknown budget'),
    (dict(budget='params:1M'), 'not how long'),
    (dict(tune=2), '3, 5, 7'),
    (dict(launcher='proceses'), "did you mean 'processes'?"),
    (dict(tasks='taging', full_eval=True), "did you mean 'tagging'?"),
    (dict(budget='seconds:1', launcher='processes', workers=2), 'take each other'),
    (dict(models='standard,standard@ternry'), "did you mean 'ternary'?"),
    (dict(models='standard,nowhere/run'), 'nowhere'),
    (dict(budget='flops:10'), 'less than one step'),
    (dict(learning_rat=1), 'did you mean'),
    (dict(max_steps=5), 'set by the comparison'),
    (dict(batch_size=0), 'batch_size'),
]

@pytest.mark.parametrize('kw,says', wrong_inputs)
def test_wrong_input_writes_nothing(tmp_path, monkeypatch, kw, says):
    monkeypatch.chdir(tmp_path)
    right = dict(models='standard,reversible', datasets='arithmetic', seeds=2, budget='steps:2')
    with pytest.raises(InputError) as e:
        compare(**{**right, 'output_dir': tmp_path/'out', **tiny, **quiet, **kw})
    assert says in str(e.value) and '\n' not in str(e.value)
    assert not list(tmp_path.iterdir())

def test_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    compare('standard,reversible', 'arithmetic', dry_run=True, say=lines.append, **tiny)
    assert not list(tmp_path.iterdir()) and any('6 runs' in l for l in lines)

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
    controls = r['controls']['embedded/arithmetic']
    assert set(controls) == {'unigram', 'untrained', 'lzma', 'kneser_ney_5'} and r['alarms'] == []
    assert controls['lzma']['training_bytes'] <= 12*4*32 # no more than the arms have read
    assert all(c['bits_per_byte'] < controls['untrained']['bits_per_byte'] for c in done.cells)
    assert set(r['measures']['standard']) >= {'training_tokens_per_s', 'peak_bytes'} and not r['not_measured']
    assert list(done.verdicts) == [('embedded/arithmetic', 'reversible')]

def test_a_run_has_one_number(done):
    explored = {r['path']: r for r in find_runs(done.path/'cells')}
    assert len(explored) == len(done.cells)
    for c in done.cells:
        path = done.path/c['path']
        run,scores = read_run(path),done.scores[c['arm'], c['dataset'], c['seed']]
        numbers = [read_json(path/'summary.json'), run['summary'], run['evals'][-1], explored[str(path)], c]
        assert {x['bits_per_byte'] for x in numbers} == {scores.bits_per_byte}
        assert run['perplexity'] == pytest.approx(c['perplexity']) and run['summary']['eval_loss'] == c['loss']
        assert run['summary']['eval_rows'] == len(scores.nll) and run['summary']['standard_error']['bits_per_byte'] > 0
        kept = [path/'items.jsonl.gz', path/'items'/f"{step_name(run['summary']['steps'])}.jsonl.gz"]
        again = [x for file in kept for x in rescore_items(file)]
        assert [x['after'] for x in again] == pytest.approx([scores.bits_per_byte]*2) and not any(
            x['changed'] for x in again
        )
        page = as_html(runs_document(read_runs([path])))
        assert f"{c['bits_per_byte']:.3f}" in page

def test_the_windows_of_a_trained_cell_are_scored_once(tmp_path, monkeypatch):
    spec = plan_comparison('standard,reversible', 'arithmetic', seeds=2, budget='steps:4', **tiny)
    spec,scored = replace(spec, arms=['standard', 'standard@ternary']),[]
    real = evaluate_lm
    monkeypatch.setitem(run_cell.__globals__, 'evaluate_lm', lambda *a, **k: scored.append(1) or real(*a, **k))
    plain,rewritten = (run_cell(spec, a, spec.datasets[0], 0, tmp_path) for a in spec.arms)
    assert len(scored) == 1 and plain.cell['status'] == rewritten.cell['status'] == 'done'
    windows = min(spec.max_windows, len(spec.data[spec.datasets[0]].valid_blocks))
    assert len(plain.scores.nll) == len(rewritten.scores.nll) == windows
    again = real(build_model(str(tmp_path/plain.cell['path']/'final')), spec.data[spec.datasets[0]], limit=windows)
    assert again.bits_per_byte == pytest.approx(plain.scores.bits_per_byte, rel=1e-6)

def test_an_implausible_score_raises_an_alarm_and_gets_no_verdict(tmp_path, done):
    shutil.copytree(done.path, tmp_path/'c')
    for c in [c for c in done.cells if c['arm'] == 'reversible']:
        r = read_cell(tmp_path/'c'/c['path'])
        leaking = replace(r.scores, nll=.046*math.log(2)*r.scores.bytes)
        write_cell(tmp_path/'c'/c['path'], replace(r, scores=leaking))
    c = Comparison.load(tmp_path/'c')
    c = finish_comparison(c, ComparisonSpec.load(tmp_path/'c/plan.json'))
    alarm, = c.result['alarms']
    assert alarm['arm'] == 'reversible' and alarm['blocks'] and .046 < alarm['least'] < alarm['reference_bits']
    d, = c.result['differences']
    assert d['verdict'] == 'cannot tell' and d['implausible'] and d['family'] == 0 and d['holm'] is None
    assert repr(c).startswith('Alarm: reversible scores 0.046 bits per byte')
    for form in ('html', 'md', 'tex'):
        assert 'Alarm: reversible' in (c.path/f'report.{form}').read_text(encoding='utf-8')
    assert c.result['matrix']['rows'][0]['verdicts']['reversible'] == 'implausible'

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

def test_every_figure_of_the_report_is_in_the_json(done):
    r = json.loads((done.path/'comparison.json').read_text(encoding='utf-8'))
    page = (done.path/'report.html').read_text(encoding='utf-8')
    v = Values()
    v.feed(page)
    assert len(v.values) > 40 and set(v.values) <= leaves(r)
    assert (
        'script' not in v.tags
        and 'link' not in v.tags
        and not re.search(r'(src|href)="(https?:|//)', page)
        and 'url(http' not in page
    )
    assert (done.path/'report.md').read_text(encoding='utf-8').startswith('# standard · reversible')

def test_it_loads_again_with_its_scores(done):
    again = Comparison.load(done.path)
    assert again.verdicts == done.verdicts and again.scores.keys() == done.scores.keys()
    for k,s in done.scores.items(): assert (again.scores[k].nll == s.nll).all()

def test_a_failed_cell_is_reported_and_the_rest_go_on(tmp_path):
    from lmnotes.training.train import train
    def flaky(**o):
        if o['model'] == 'reversible' and o['seed'] == 0: raise RunError('<disk> full')
        return train(**o)
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=2,
        budget='steps:2',
        output_dir=tmp_path / 'c',
        train=flaky,
        costs=False,
        **tiny,
        **quiet,
    )
    assert [x['reason'] for x in c.failed] == ['RunError: <disk> full'] and c.result['status'] == 'partial'
    assert (
        c.result['differences'][0]['n_seeds'] == 1
        and c.verdicts['embedded/arithmetic', 'reversible'] == 'cannot tell'
    )
    assert '&lt;disk&gt; full' in (tmp_path/'c/report.html').read_text(encoding='utf-8')

def test_when_all_cells_fail_it_is_an_error(tmp_path):
    def broken(**o): raise RunError('no luck')
    with pytest.raises(RunError, match='no luck'):
        compare(
            'standard,reversible',
            'arithmetic',
            seeds=1,
            budget='steps:2',
            output_dir=tmp_path / 'c',
            train=broken,
            costs=False,
            **tiny,
            **quiet,
        )
    assert Comparison.load(tmp_path/'c').result['status'] == 'partial'

def test_seconds_give_each_arm_the_same_time(tmp_path):
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=1,
        budget='seconds:0.5',
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    assert all(x['seconds'] < 2 and x['tokens'] > 0 for x in c.cells)


# ---- arms and budgets

def test_an_arm_rewritten_after_training_has_the_weights_of_its_base(tmp_path, done):
    c = compare(
        'standard,standard@ternary',
        'arithmetic',
        seeds=1,
        budget='steps:4',
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    base,late = c.cells
    assert (
        late['weights_of'] == base['path']
        and not (c.path / late['path'] / 'final').exists()
        and late['bits_per_byte'] != base['bits_per_byte']
    )
    folder = compare(
        f"standard,{c.path / base['path']}",
        'arithmetic',
        seeds=2,
        budget='steps:4',
        output_dir=tmp_path / 'd',
        costs=False,
        **tiny,
        **quiet,
    )
    assert len(folder.cells) == 3 and folder.result['differences'][0]['about'] == 'weights'
    assert (
        folder.scores[folder.result['arms'][1], 'embedded/arithmetic', 0].nll
        == c.scores['standard', 'embedded/arithmetic', 0].nll
    ).all()

def test_a_folder_that_reads_other_tokens_is_refused(tmp_path, done):
    with pytest.raises(InputError, match='compare_models'):
        plan_comparison(f"standard,{done.path/done.cells[0]['path']}", 'arithmetic', tokenizer='chars', **tiny)

def test_parameters_are_matched_within_two_percent():
    p = plan_comparison('standard,moe,gpt', 'arithmetic', budget='steps:5,parameters:baseline', **tiny)
    assert max(p.parameters.values()) / min(p.parameters.values()) < 1.04 and all(
        abs(n / p.parameters['standard'] - 1) <= 0.02 for n in p.parameters.values()
    )

def test_equal_trials_for_every_arm(tmp_path):
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=1,
        budget='steps:4',
        tune=3,
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    t = c.result['tuning']['embedded/arithmetic']
    assert t['standard']['rates'] == t['reversible']['rates'] and all(
        len(x['losses']) == 3 and x['edge'] == (x['best'] in (x['rates'][0], x['rates'][-1])) for x in t.values()
    )
    assert {x['arm']: x['learning_rate'] for x in c.cells} == {a: x['best'] for a,x in t.items()}

# ---- tasks

def test_full_evaluation_pairs_items_and_controls_itself(tmp_path):
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=2,
        budget='steps:4',
        full_eval=True,
        tasks='classification,similarity',
        eval_limit=6,
        output_dir=tmp_path / 'c',
        costs=False,
        **(tiny | dict(max_length=256, limit=1000)), # room for whole items
        **quiet,
    )
    r = read_json(c.path/'comparison.json')
    ds = r['differences']
    assert {d['task'] for d in ds} == {'lm', 'classification'} and all(
        {'name', 'metric', 'higher', 'p', 'holm', 'verdict', 'reason', 'detectable'} <= set(d) for d in ds
    )
    assert (
        all(d['arm'] == 'standard again' for d in r['aa'])
        and len(r['aa']) == len(ds)
        and {x['arm'] for x in r['cells']} == {'standard', 'reversible', 'standard again'}
    )
    assert (
        len({d['family'] for d in ds}) == 1
        and len(r['matrix']['rows']) == len(ds)
        and {t['arm'] for t in r['tasks']} == {'standard', 'reversible'}
    )
    assert any('similarity' in n for n in r['not_measured']) and set(r['dynamics']['embedded/arithmetic']) == {
        'standard',
        'reversible',
    }

def test_long_range_arms_are_trained_on_the_items_and_reported_by_length(tmp_path):
    c = compare(
        'standard,standard@ternary',
        'arithmetic',
        seeds=2,
        budget='steps:3',
        full_eval=True,
        tasks='long_range',
        eval_limit=4,
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    r = c.result
    assert not c.failed and not r['not_measured']
    asked = {t['metrics']['length'] for t in r['tasks']}
    assert asked == {32, 64, 128, 256} and max(asked) > tiny['max_length']
    assert {t['metrics']['trained_to'] for t in r['tasks']} == {128} and all(t['floor'] is not None for t in r['tasks'])
    items = read_items(c.path/c.cells[0]['path']/'items.jsonl.gz')
    again = [x for x in rescore_items(items) if x['task'] == 'long_range']
    assert len(again) == 20 and not any(x['changed'] for x in again)
    assert {i['rule'] for i in items} == {'tokens', 'pieces'} and all(i['target'] for i in items)
    run = read_json(c.path/c.cells[0]['path']/'long_range/run/args.json')['options']
    assert run['mode'] == 'sft' and run['max_length'] > 256
    long_range = [d for d in r['differences'] if d['task'] == 'long_range']
    assert len(long_range) == 5*4
    assert all(d['uninformative'] for d in long_range if d['base_mean'] == d['arm_mean'] == 0)
    assert {d['family'] for d in r['differences']} == {sum(d['p'] is not None for d in r['differences'])}
    page = (c.path/'report.html').read_text(encoding='utf-8')
    assert 'Long range by length' in page and '256* characters' in page and 'uninformative' in page

def test_what_the_training_text_holds_stands_in_the_verdict(tmp_path, done):
    r = dict(done.result, data={k: dict(d, overlap={'x': dict(share=.12)}) for k,d in done.result['data'].items()})
    assert '12.0 % of the scored items stand in the training text.' in repr(Comparison(r))
    r['data'] = {k: dict(d, overlap={'x': dict(share=.01)}) for k,d in r['data'].items()}
    assert 'of the scored items' not in repr(Comparison(r))

# ---- engines, and going on

def test_processes_find_what_this_process_finds(tmp_path, done):
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=[0],
        budget='steps:12',
        launcher='processes',
        workers=2,
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    for (a,d,s),x in c.scores.items():
        assert (x.nll == done.scores[a, d, s].nll).all()

def test_a_killed_cell_is_run_again_alone(tmp_path, forked_workers):
    def kill(root):
        while not list(root.glob('cells/standard/*/seed_0/args.json')):
            time.sleep(.01)
        os.kill(read_json(next(root.glob('logs/worker_*.json')))['pid'], signal.SIGKILL)
    root = tmp_path/'c'
    threading.Thread(target=kill, args=(root,), daemon=True).start()
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=[0],
        budget='steps:100',
        launcher='processes',
        workers=1,
        output_dir=root,
        costs=False,
        **tiny,
        **quiet,
    )
    lost, = c.failed
    assert lost['arm'] == 'standard' and 'SIGKILL' in lost['reason'] and c.result['status'] == 'partial'
    kept = root/next(x['path'] for x in c.cells if x['arm'] == 'reversible')/'cell.json'
    stamp = kept.stat().st_mtime_ns
    again = rerun(root, launcher='local', **quiet)
    assert (
        again.result['status'] == 'done'
        and kept.stat().st_mtime_ns == stamp
        and list(again.verdicts) == [('embedded/arithmetic', 'reversible')]
    )

def test_damaged_and_missing_cells_are_named_and_the_rest_reported(tmp_path, done):
    root = tmp_path/'c'
    shutil.copytree(done.path, root)
    a,b = [root/x['path'] for x in done.cells if x['seed'] == 1]
    (a/'scores.npz').write_bytes(b'no')
    shutil.rmtree(b)
    p = ComparisonSpec.load(root/'plan.json')
    assert len(pending_cells(p, root)) == 2
    c = finish_comparison(Comparison.load(root), p)
    assert sorted('is damaged' in x['reason'] for x in c.failed) == [False, True] and 'is missing' in ' '.join(
        x['reason'] for x in c.failed
    )
    assert (
        c.result['differences'][0]['verdict'] == 'cannot tell'
        and c.result['differences'][0]['n_seeds'] == 1
        and 'is damaged' in (root / 'report.html').read_text(encoding='utf-8')
    )

def test_ray_finds_what_this_process_finds(tmp_path, done):
    pytest.importorskip('ray', reason='ray is an extra: pip install lmnotes[ray]')
    c = compare(
        'standard,reversible',
        'arithmetic',
        seeds=[0],
        budget='steps:12',
        launcher='ray',
        workers=1,
        output_dir=tmp_path / 'c',
        costs=False,
        **tiny,
        **quiet,
    )
    assert not c.failed
    for (a,d,s),x in c.scores.items():
        assert (x.nll == done.scores[a, d, s].nll).all()

# ---- models that are there

def test_models_are_compared_without_training(data, model):
    import copy
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.embed.weight.mul_(3)
    c = compare_models(dict(a=model, b=worse), ['lm'], data.tokenizer, dataset='arithmetic', limit=16)
    d, = c.result['differences']
    assert d['about'] == 'weights' and d['n_seeds'] == 1 and c.result['note'] in repr(c)
    with pytest.raises(InputError, match='bits_per_byte'):
        from lmnotes.data.tokenizers import get_tokenizer
        words = get_tokenizer('bpe', lambda: data.texts('train'), 300)
        compare_models(
            dict(a=model, b=build_model('standard', vocab_size=len(words), dim=32, n_layer=2, n_head=2)),
            ['lm'],
            dict(a=data.tokenizer, b=words),
            dataset='arithmetic',
            limit=4,
            metric='perplexity',
        )

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
    shared = dict(seeds=1, budget='steps:2', costs=False, output_dir=tmp_path/'c', imports=[str(mine)])
    c = compare('standard,mine_reversible', 'arithmetic', launcher='processes', workers=1, **shared, **tiny, **quiet)
    assert not c.failed and {x['arm'] for x in c.cells} == {'standard', 'mine_reversible'}
    shutil.rmtree(c.path/c.cells[1]['path'])
    assert not rerun(c.path, launcher='local', **quiet).failed
    mine.write_text(MY_IDEA + '\n', encoding='utf-8')
    with pytest.raises(InputError, match='changed'):
        rerun(c.path, **quiet)
