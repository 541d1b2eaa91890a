"The suite tells models apart by what they do, refuses what it should, and measures nothing it was not asked"
import contextlib
import io
import json
import os
import random
from shutil import copytree

import numpy as np
import pytest
import torch

import lmnotes.evaluation.eval_model as eval_model
from lmnotes.app.cli import main
from lmnotes.core import *
from lmnotes.data.catalog import find_dataset
from lmnotes.data.classification.alignment import encode_for_head
from lmnotes.data.classification.labels import head_input_text
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.sft_examples import encode_rows
from lmnotes.data.sources.files import Rows
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.eval_model import EvalModel
from lmnotes.evaluation.evaluate import *
from lmnotes.evaluation.scores import Scores, item_standard_error
from lmnotes.evaluation.task_suite import eval_rows, eval_tasks, evaluate_tasks
from lmnotes.evaluation.tasks.classification import score_classification
from lmnotes.files import *
from lmnotes.models import build_model
from lmnotes.models.task_heads import add_task_head
from lmnotes.quantizers.packed_export import pack_and_report
from lmnotes.training.checkpoints import save_pretrained_model
from lmnotes.training.train import train

TOK = byte_tokenizer()

def fresh(name='standard', seed=0, **kw):
    set_seed(seed)
    return build_model(name, 'tiny', len(TOK), max_length=768, **kw)

def teach(model, ds, rows, steps, lr=5e-3):
    "Train on the answers of rows, all in one batch"
    made = encode_rows(ds, rows, TOK)
    T = max(len(e['ids']) for e in made) - 1
    x,y = torch.zeros(len(made), T, dtype=torch.long),torch.full((len(made), T), -100)
    for i,e in enumerate(made):
        ids = torch.as_tensor(e['ids']).long()
        x[i,:len(ids)-1] = ids[:-1]
        y[i,:len(ids)-1] = torch.where(torch.from_numpy(e['loss'][1:]), ids[1:], -100)
    opt = torch.optim.AdamW(model.parameters(), lr, betas=(.9, .98))
    model.train()
    for k in range(steps):
        for g in opt.param_groups: g['lr'] = lr*min(1, (k + 1)/10)
        loss = model(x, shift_labels=y).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
        if loss.item() < .01: break
    return model.eval()

GENERATED = dict(tagging='entities', qa='reading', generation='prose', math='arithmetic', code='python')

@pytest.mark.parametrize('group,name', [*GENERATED.items(), ('qa', 'recall')])
def test_trained_against_untrained(group, name):
    "A model that has seen the answers writes them; one that has not does not"
    score = eval_tasks[group]
    ds,rows = score.spec.load(name, None, 2, 0)
    plain = fresh().eval()
    before = score(EvalModel(plain, TOK, draws=0), ds, rows)[0]
    after = score(EvalModel(teach(fresh(), ds, rows, 150), TOK, draws=0), ds, rows)[0]
    assert before.n == after.n == len(rows) and after.mean > before.mean + .2, (before.mean, after.mean)
    assert after.samples[0]['output'] != before.samples[0]['output'] and after.samples[0]['score'] == after.values[0]

def mood_rows(n, seed, shuffle=False):
    rng = random.Random(seed)
    labels = [i % 2 for i in range(n)]
    said = rng.sample(labels, n)
    rows = [
        dict(text=f'{rng.choice(("film", "song", "soup"))} {rng.randrange(1000)}: {("bad", "good")[l]}', label=l)
        for l in said
    ]
    if shuffle:
        mixed = [r['label'] for r in rows]
        random.Random(seed + 1).shuffle(mixed)
        rows = [dict(r, label=l) for r,l in zip(rows, mixed)]
    return Rows(rows, labels=dict(label=['negative', 'positive']))

@pytest.fixture(scope='module')
def moods():
    "A dataset whose labels are easy, and a language model and a head that have learned them"
    ds = find_dataset('opinions')
    train = mood_rows(24, 0)
    ds.prepare(dict(train=train))
    model = teach(fresh(), ds, train, 150)
    head = add_task_head(fresh(), 'classify', ['negative', 'positive'])
    opt = torch.optim.AdamW(head.parameters(), 3e-3)
    head.train()
    ids = encode_for_head(TOK, [head_input_text(ds, r) for r in train])
    n = max(map(len, ids))
    x = torch.tensor([[*map(int, i)] + [0]*(n - len(i)) for i in ids])
    m = torch.tensor([[1]*len(i) + [0]*(n - len(i)) for i in ids])
    y = torch.tensor([r['label'] for r in train])
    for _ in range(60):
        head(x, attention_mask=m, labels=y).loss.backward()
        opt.step()
        opt.zero_grad()
    return ds,dict(lm=model, head=head.eval())

def test_shuffled_labels(moods):
    "Every classifier is right on the true labels, and at chance once they are shuffled"
    ds,models = moods
    ways = {}
    for labels in ('true', 'shuffled'):
        rows = mood_rows(60, 7, labels == 'shuffled')
        for m in models.values():
            for t in score_classification(EvalModel(m, TOK), ds, rows):
                ways.setdefault((t.name, type(m).__name__), {})[labels] = t
    assert len(ways) == 3
    for k,t in ways.items():
        assert t['true'].mean > .9, (k, t['true'].mean)
        shuffled = t['shuffled']
        assert abs(shuffled.mean - .5) < .2 and abs(shuffled.metrics['mcc']) < .4, (k, shuffled.metrics)
        assert t['true'].chance == .5

def test_learned_from_shuffled_labels(moods):
    "A classifier that was taught shuffled labels is at chance on true ones"
    ds,_ = moods
    rows = mood_rows(60, 9)
    found = [
        score_classification(EvalModel(teach(fresh(seed=s), ds, mood_rows(24, s, True), 40), TOK), ds, rows)[0].mean
        for s in (0, 1)
    ]
    assert all(m < .85 for m in found), found

class Ahead(type(fresh())):
    "Each position is told what comes next"
    def forward(self, *args, **kw):
        out = super().forward(*args, **kw)
        out.logits = out.logits + out.logits.roll(-1, 1)
        return out

def test_the_gate(tmp_path):
    "A model wired to see the future is refused, nothing is printed, nothing is written"
    model = fresh().eval()
    model.__class__ = Ahead
    printed = io.StringIO()
    for what in ('lm', 'qa', 'lm,choice,long_range'):
        with contextlib.redirect_stdout(printed), pytest.raises(RunError, match='sees the future'):
            evaluate_model(model, what, TOK, datasets=['prose', 'recall'], limit=2, output=tmp_path/'e.json')
    assert printed.getvalue() == '' and not (tmp_path/'e.json').exists()

# -- traps
def test_what_is_scored_is_what_was_written(monkeypatch):
    model = fresh().eval()
    s = EvalModel(model, TOK, draws=0)
    for group,name in GENERATED.items():
        score = eval_tasks[group]
        ds,rows = score.spec.load(name, None, 4, 0)
        monkeypatch.setattr(
            eval_model, 'generate_answers', lambda m, t, asked, **k: [a.target.strip('\n') for a in asked]
        )
        right, = score(s, ds, rows)
        monkeypatch.setattr(eval_model, 'generate_answers', lambda m, t, asked, **k: ['positive']*len(asked))
        same, = score(s, ds, rows)
        assert right.mean > .99, (group, right.mean)
        assert same.mean < .3 and same.metrics['distinct'] == 1/same.n, (group, same.mean)
        monkeypatch.setattr(eval_model, 'generate_answers', lambda m, t, asked, **k: ['']*len(asked))
        assert score(s, ds, rows)[0].mean == 0., group # and not one half

def test_an_error_is_no_zero(monkeypatch):
    monkeypatch.setattr(eval_model, 'generate_answers', lambda *a, **k: 1/0)
    with pytest.raises(ZeroDivisionError):
        evaluate_tasks(fresh().eval(), TOK, 'qa', datasets=['recall'], limit=2)

def test_missing_is_listed_with_its_reason(tmp_path):
    (tmp_path/'squad').mkdir()
    found,missing = evaluate_tasks(fresh().eval(), TOK, 'qa,similarity,tagging', data_dir=tmp_path, limit=2)
    assert found == [] and {m['name'] for m in missing} == {'squad', 'squad2', 'stsb', 'conll', 'ud'}
    assert all(len(m['reason']) > 20 for m in missing)

@pytest.mark.parametrize('name', ['opinions', 'entities', 'reading', 'recall', 'arithmetic'])
def test_nobody_trained_on_them(name):
    "Items come from the test split, apart from training and from the validation that picks a checkpoint"
    ds = find_dataset(name)
    rows,split = eval_rows(ds, limit=200)
    splits = load_rows(ds)
    key = lambda r: json.dumps(r, sort_keys=True, default=str)
    assert split == 'test' and not {key(r) for s in ('train', 'validation') for r in splits[s]} & {
        key(r) for r in rows
    }
    assert rows == eval_rows(ds, limit=200)[0] and rows != eval_rows(ds, limit=200, seed=1)[0]

def test_error_bars_are_over_items():
    values = np.array([0., 1.]*8)
    a = Scores('qa', 'a', 'f1', values)
    b = Scores('qa', 'b', 'f1', values, clusters=np.repeat(np.arange(4), 4))
    # every cluster has the same mean
    assert abs(item_standard_error(a) - np.std(a.values, ddof=1)/4) < 1e-12 and item_standard_error(b) < 1e-9

def test_no_execution_unless_asked():
    score = eval_tasks['code']
    t, = score(EvalModel(fresh().eval(), TOK), *score.spec.load('python', None, 2, 0))
    assert not any(k.startswith('pass@') for k in t.metrics)

def test_long_texts_are_not_measured():
    found,missing = evaluate_tasks(fresh().eval(), TOK, 'long_range', limit=2)
    assert {m['name'].split('_')[-1] for m in missing} == {'1024'} and len(found) == 10
    assert all('the model takes 768' in m['reason'] for m in missing)

RECIPES = 'standard reversible resonance rnn moe hybrid encoder tiny:gpt2'.split()

@pytest.mark.parametrize('name', RECIPES)
def test_any_saved_model(name, tmp_path, capsys):
    "Each recipe, saved, is asked by the command; what it cannot be asked is listed"
    set_seed(0)
    options = {} if name.startswith('tiny:') else dict(size='tiny', max_length=512)
    save_pretrained_model(build_model(name, vocab_size=len(TOK), **options).eval(), TOK, tmp_path/'m')
    words = ['--tasks', 'lm,qa,choice', '--datasets', 'recall,reading,prose', '--limit', '2', '--device', 'cpu']
    assert main(['evaluate', '--model', str(tmp_path/'m'), *words]) == 0
    r = read_json(tmp_path/'m'/'evaluation.json')
    assert 'choice' in capsys.readouterr().out
    if name == 'encoder':
        assert not r['tasks'] and {m['task'] for m in r['not_measured']} == {'lm', 'qa', 'choice'}
        assert all('fills gaps' in m['reason'] for m in r['not_measured'])
    else:
        assert len(r['tasks']) == 3 and len(r['lm']) == 1 and r['not_measured'] == []
        assert r['lm'][0]['tokenizer'] == 'bytes'

def test_adapter(tmp_path):
    from lmnotes.models.lora import add_lora
    save_pretrained_model(fresh().eval(), TOK, tmp_path/'base')
    model = build_model(str(tmp_path/'base'))
    adapted = add_lora(model, r=2, verbose=False)
    adapted = adapted if adapted is not None else model
    adapted.save_pretrained(tmp_path/'lora')
    TOK.save_pretrained(tmp_path/'lora')
    r = evaluate_model(tmp_path/'lora', 'qa', datasets=['recall'], limit=2, device='cpu')
    assert r['tasks'][0]['n'] == 2 and (tmp_path/'lora'/'evaluation.json').exists()

def test_recipe_is_refused(capsys):
    assert main(['evaluate', '--model', 'standard', '--tasks', 'qa']) == 2
    assert 'recipe with random weights' in capsys.readouterr().err

@pytest.mark.skipif('LMNOTES_DATA_DIR' not in os.environ, reason='LMNOTES_DATA_DIR names no folder of real rows')
def test_real_rows():
    "With a data root each group asks real data, and what is not there is listed"
    groups = 'classification,tagging,qa,math,similarity,choice'
    found,missing = evaluate_tasks(fresh().eval(), TOK, groups, limit=2, draws=0)
    names = {t.name for t in found} | {m['name'] for m in missing}
    assert {'sst2', 'squad', 'gsm8k', 'stsb', 'mmlu'} <= names
    assert not {'opinions', 'entities', 'reading', 'arithmetic'} & names
    assert all(np.isfinite(t.values).all() and t.n for t in found) and all(m['reason'] for m in missing)

# ---- what the model was trained on

def problems(root, n=40):
    "Write word problems of `gsm8k` as a test split in hub layout, and as a file that somebody may train on"
    rows = [
        dict(question=f'Anna number {i} has {i} apples and buys {i + 3} more apples on the market of her town, '
                      f'how many apples does Anna number {i} have at the end of the day?',
             answer=f'She has {i} + {i + 3} = {2*i + 3} apples at the end.\n#### {2*i + 3}')
        for i in range(n)
    ]
    home = root/'hub/openai__gsm8k/main'
    home.mkdir(parents=True)
    text = '\n'.join(map(json.dumps, rows))
    (home/'test.jsonl').write_text(text)
    (root/'leaked.jsonl').write_text(text)
    return root/'hub',root/'leaked.jsonl'

def test_training_on_the_test_rows_is_told(tmp_path, capsys):
    "Of a saved run alone: the rows it was trained on are found, in another form, and those of another set are not"
    hub,leaked = problems(tmp_path)
    run = train(data_path=str(leaked), mode='sft', size='tiny', max_length=512, batch_size=2, max_steps=1,
                device='cpu', output_dir=str(tmp_path/'run'), quiet=True, eval_generate=0)
    asked = ['evaluate', '--model', str(run.path), '--tasks', 'math,qa', '--datasets', 'gsm8k,squad', '--device', 'cpu']
    assert main([*asked, '--data_dir', str(hub), '--limit', '6', '--draws', '0']) == 0
    r = read_json(run.path/'evaluation.json')
    found = {t['name']: t['overlap'] for t in r['tasks']}['gsm8k']
    assert found['n_judged'] == 6 and found['share'] > .8 and found['n_whole'] > 3 and found['contaminated']
    assert r['tasks'][0]['split'] == 'test' and 'contamination' in capsys.readouterr().out
    honest = evaluate_model(run.path/'final', 'qa', datasets=['reading'], limit=6, device='cpu')
    assert honest['tasks'][0]['overlap']['n_shared'] == 0 and honest['training_text']['start_known']

def test_evaluating_on_the_training_file_says_so(tmp_path):
    (tmp_path/'text').mkdir()
    text = '\n\n'.join(' '.join(f'w{i}x{j}' for j in range(20)) for i in range(60))
    (tmp_path/'text/train.txt').write_text(text)
    (tmp_path/'text/validation.txt').write_text(' '.join(f'other{j}' for j in range(200)))
    run = train(data_path=str(tmp_path/'text'), size='tiny', max_length=64, batch_size=2, max_steps=1, device='cpu',
                output_dir=str(tmp_path/'run'), quiet=True)
    own,other = (
        evaluate_model(run.path, 'lm', data_path=tmp_path/'text', split=s, limit=4, device='cpu')['lm'][0]
        for s in ('train', 'validation')
    )
    assert own['split'] == 'train' and own['overlap']['whole_share'] == 1. and own['overlap']['n_items'] == 60
    assert other['overlap']['n_shared'] == 0
    known = evaluate_model(fresh().eval(), 'lm', TOK, datasets=['prose'], limit=2)
    assert known['training_text'] is None and known['lm'][0]['overlap'] is None # nobody knows, and nothing is said
    pack_and_report(str(run.path), str(tmp_path/'packed'), quantize='ternary')
    packed = evaluate_model(tmp_path/'packed', 'lm', data_path=tmp_path/'text', split='train', limit=4, device='cpu')
    assert packed['lm'][0]['overlap'] == own['overlap'] and packed['training_text']['n_documents'] == 1
    copied = copytree(tmp_path/'packed', tmp_path/'elsewhere') # alone, without its run
    again = evaluate_model(copied, 'lm', data_path=tmp_path/'text', split='train', limit=4, device='cpu')
    assert again['lm'][0]['overlap'] == own['overlap']
