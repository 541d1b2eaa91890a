"Scores while training: of generated text, on the same rows every time, and without a change to the run"
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, CancelFitException
from torch import nn

from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_rows, make_row_splits
from lmnotes.data.load import load_data
from lmnotes.data.mixtures.data import mixture_data
from lmnotes.evaluation.early_stopping import EarlyStopping, EvalLog
from lmnotes.evaluation.generation_eval import *
from lmnotes.evaluation.metric_names import eval_metrics, score_name
from lmnotes.evaluation.text_samples import TextSamples, text_samplers
from lmnotes.files import append_jsonl, read_jsonl
from lmnotes.models import LMConfig, build_model, generate, generate_batch
from lmnotes.models.build import models
from lmnotes.models.hf.hf_load import tiny_configs
from lmnotes.training.checkpoints import load_checkpoint, save_checkpoint
from lmnotes.training.learner import lm_learner
from lmnotes.training.monitor import truncate_log

pytestmark = pytest.mark.filterwarnings('ignore')
questions = dict(mode='sft', max_length=224, bs=4, limit=80, packing=False, device='cpu')

class Says(nn.Module):
    "A model that writes the same answer to everything, and remembers what it was asked"
    def __init__(self, tokenizer, text):
        super().__init__()
        self.w, self.config, self.asked, self.autocast = (
            nn.Parameter(torch.zeros(1)),
            LMConfig(vocab_size=len(tokenizer), max_length=4096),
            [],
            [],
        )
        self.said = [*tokenizer(text)['input_ids'], tokenizer.eos_token_id]
    def can_generate(self): return True
    def generate(self, ids, attention_mask, generation_config, **kwargs):
        self.asked += [r[m > 0].tolist() for r,m in zip(ids, attention_mask)]
        self.autocast.append(torch.is_autocast_enabled('cpu'))
        said = torch.tensor(self.said[:generation_config.max_new_tokens])
        return torch.cat([ids, said.expand(len(ids), -1)], 1)

# a batch is many texts, each as if alone

causal = [m for m in models.names() if m != 'encoder']
hub = [f'tiny:{f}' for f in tiny_configs.names() if f not in ('bert', 'llava')]

@pytest.mark.parametrize('name', causal + hub)
def test_a_batch_writes_what_each_prompt_writes_alone(name):
    tok = load_data('prose', limit=20, device='cpu').tokenizer
    torch.manual_seed(0)
    m = build_model(name, vocab_size=258).eval()
    prompts = ['Hello there', 'x', 'the quick brown fox jumped', 'abc de']
    for how in (dict(temperature=0), dict(seed=3, temperature=0.8, top_p=0.95), dict(seed=1, stop='e')):
        alone = [generate(m, tok, p, max_new_tokens=16, **how) for p in prompts]
        alone = alone if m.config.is_encoder_decoder else [t[len(p):] for t,p in zip(alone, prompts)]
        assert generate_batch(m, tok, prompts, max_new_tokens=16, **how) == alone
        assert generate_batch(m, tok, prompts, max_new_tokens=16, bs=3, **how) == alone

# what is scored is what was written

def test_outputs_come_from_the_model_and_from_nothing_else():
    data = load_data('opinions', **questions)
    tok,rows = data.tokenizer,[a.row for a in validation_requests(data, 12)]
    torch.manual_seed(0)
    model = build_model('standard', vocab_size=data.vocab_size, max_length=224)
    turned = [dict(r, label=1 - r['label']) for r in rows]
    honest,lied = task_score(model, tok, data.task, rows, 224), task_score(model, tok, data.task, turned, 224)
    assert [i['output'] for i in honest['items']] == [i['output'] for i in lied['items']], (
        'the answers know the targets'
    )
    assert [i['prompt'] for i in honest['items']] == [i['prompt'] for i in lied['items']] and [
        i['target'] for i in honest['items']
    ] != [i['target'] for i in lied['items']]
    right = task_score(Says(tok, ' positive'), tok, data.task, rows)
    wrong = task_score(Says(tok, ' positive'), tok, data.task, turned)
    assert right['score'] + wrong['score'] == pytest.approx(1) and right['items'][0]['output'] == ' positive'
    for i,r in zip(right['items'], rows):
        assert i['score'] == data.task.score(r, i['output'])

def test_the_prompt_holds_no_token_of_the_answer():
    data = load_data('recall', **questions)
    m = Says(data.tokenizer, ' 1')
    asked = validation_requests(data, 10)
    task_score(m, data.tokenizer, data.task, [a.row for a in asked])
    assert sorted(m.asked) == sorted(data.tokenizer(data.task.prompt(a.row))['input_ids'] for a in asked)

def test_an_empty_prompt_borrows_nothing_from_its_answer(tmp_path):
    (tmp_path / 'own.jsonl').write_text(
        ''.join(json.dumps(dict(prompt='', response=f'answer {i}')) + '\n' for i in range(40))
    )
    data = load_data(data_path=str(tmp_path/'own.jsonl'), **questions)
    m = Says(data.tokenizer, 'answer 1')
    score = task_score(m, data.tokenizer, data.task, [a.row for a in validation_requests(data, 5)])
    assert all(a == [data.tokenizer.eos_token_id] for a in m.asked) and score['metric'] == 'exact_match'
    assert score_name(data.task) == 'own_exact_match'

def test_text_samples_change_when_the_model_is_swapped(tmp_path):
    data = load_data('opinions', **questions)
    log = tmp_path/'samples.jsonl'
    cb = TextSamples(log, every=1)
    cb.learn = SimpleNamespace(
        dls=data,
        step=1,
        model=Says(data.tokenizer, ' positive'),
        forward_context=lm_learner(build_model('standard', vocab_size=data.vocab_size), data).forward_context,
    )
    cb.after_step()
    cb.learn.step,cb.learn.model = 2,Says(data.tokenizer, ' something else')
    cb.after_step()
    cb.write()
    rows = read_jsonl(log)
    before,after = rows[:3],rows[3:]
    assert len(rows) == 6 and [r['input'] for r in before] == [r['input'] for r in after]
    assert {r['output'] for r in before} == {' positive'} and {r['output'] for r in after} == {' something else'}
    assert all(r['accuracy'] in (0, 1) for r in before) and all(r['accuracy'] == 0 for r in after)

def test_a_reversed_answer_of_several_lines_is_not_cut_at_the_first():
    data = load_data('arithmetic', **questions | dict(max_length=512))
    a = validation_requests(data, 4)
    whole = task_score(Says(data.tokenizer, a[0].target), data.tokenizer, data.task, [a[0].row])
    assert (
        '\n' in a[0].target.strip()
        and whole['items'][0]['output'] == a[0].target
        and whole['score'] == 1
        and whole['metric'] == 'exact_match'
    )
    one = load_data('opinions', **questions)
    b = validation_requests(one, 1)
    model = Says(one.tokenizer, ' positive\nReview: ')
    assert task_score(model, one.tokenizer, one.task, [b[0].row])['items'][0]['output'] == ' positive'

# the same questions

def test_which_rows_are_asked_is_the_same_in_every_process():
    code = f"""
import random, torch
from lmnotes.data.load import load_data
from lmnotes.evaluation.generation_eval import validation_requests
from lmnotes.evaluation.text_samples import document_prompts
random.seed()
torch.seed()
requests = validation_requests(load_data('opinions', **{questions}), 9, seed=4)
print([r.ids for r in requests], document_prompts(load_data('prose', limit=30, device='cpu')))
"""
    def output(hash_seed):
        environment = os.environ | dict(PYTHONHASHSEED=hash_seed)
        command = [sys.executable, '-c', code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    outputs = {output(s) for s in ('1', '2')}
    assert len(outputs) == 1 and len(outputs.pop()) > 1000

def test_a_mixture_is_scored_by_source():
    data = mixture_data(
        ['opinions', 'recall', 'prose'],
        tokenizer='bytes',
        max_length=224,
        bs=4,
        limit=40,
        device='cpu',
        packing=False,
    )
    asked = validation_requests(data, 5)
    model = Says(data.tokenizer, ' positive')
    learn = SimpleNamespace(dls=data, model=model, forward_context=torch.no_grad)
    got = generated_scores(learn, asked)
    assert (
        set(got)
        == {'task_score', 'task_score_n', 'task_score_cut', 'opinions_accuracy', 'recall_exact_match'}
        == set(eval_metrics(data, asked)) - {'loss', 'accuracy', 'bits_per_byte'} | {'task_score_n', 'task_score_cut'}
    )
    assert (
        got['task_score_n'] == 10
        and got['task_score'] == pytest.approx((got['opinions_accuracy'] + got['recall_exact_match']) / 2)
        and got['recall_exact_match'] == 0
    )
    assert sum(len(f(model)) for f in text_samplers(data, 6)) == 6

def test_an_encoder_decoder_is_asked_what_it_was_taught():
    t5 = build_model('tiny:t5', vocab_size=258)
    data = load_data('recall', **questions, decoder_start=t5.config.decoder_start_token_id)
    asked = validation_requests(data, 4)
    batch = data.valid.batch(0)[0]
    taught = [
        r[m > 0].tolist()
        for k in range(len(data.valid))
        for b in [data.valid.batch(k)[0]]
        for r, m in zip(b['input_ids'], b['attention_mask'])
    ]
    assert all(a.ids in taught for a in asked) and 'decoder_input_ids' in batch
    score = task_score(t5, data.tokenizer, data.task, [a.row for a in asked], 224)
    assert score['n'] == 4 and not any(i['output'].startswith(i['prompt']) for i in score['items'])

root = os.environ.get('LMNOTES_DATA_DIR')
REAL = [
    ('imdb', 'imdb_accuracy', None),
    ('sst2', 'sst2_accuracy', None),
    ('gsm8k', 'gsm8k_exact_match', 'the answer is #### {}'),
    ('squad', 'squad_f1', None),
]

@pytest.mark.parametrize('name,metric,right', REAL)
def test_on_real_rows_the_right_answer_scores_one(name, metric, right):
    if not root: pytest.skip('set LMNOTES_DATA_DIR to a folder in hub layout to score real rows')
    ds = find_dataset(name)
    if not (Path(root)/ds.id.replace('/', '__')).is_dir(): pytest.skip(f'{ds.id} is not under LMNOTES_DATA_DIR')
    rows = make_row_splits(ds, load_rows(ds, root), 200)[0]['validation'][:3]
    tok = load_data('prose', limit=20, device='cpu').tokenizer
    assert score_name(ds) == metric
    for r in rows:
        text = right.format(ds.references(r)[0]) if right else ds.target(r)
        m = Says(tok, text)
        m.config.max_length = 10**5
        assert task_score(m, tok, ds, [r], max_new_tokens=4000)['score'] == 1
        assert task_score(Says(tok, ' nothing of the kind'), tok, ds, [r], 400)['score'] == 0

# nothing changes because somebody looked

prose = dict(dataset='prose', limit=40, max_length=64, bs=4, device='cpu')
class Evaluates(Callback):
    order = 55
    def __init__(self, path, losses): self.path,self.losses = path,losses
    def after_step(self): append_jsonl(self.path, dict(step=self.learn.step, loss=self.losses[self.learn.step-1]))
class Ends(Callback):
    order = 95
    def after_step(self):
        if self.learn.stop_request: raise CancelFitException()
class Dies(Callback):
    order = 99
    def __init__(self, at): self.at = at
    def after_step(self):
        if self.learn.step == self.at: raise KeyboardInterrupt

def run(folder, steps=9, die=None, save=None, resume=None, looks=True, precision='fp32'):
    data = load_data(**prose)
    torch.manual_seed(0)
    model = build_model('standard', vocab_size=data.vocab_size, max_length=64, dropout=0.1, n_layer=1)
    log = EvalLog(folder/'evals.jsonl', 'loss')
    cbs = [
        Evaluates(log.path, [5.0, 4.0, 3.0, 2.0, 3.0, 3.0, 3.0, 1.0, 1.0]),
        EarlyStopping(log, patience=3),
        Ends(),
        *([TextSamples(folder / 'samples.jsonl', 2, n=2, max_new_tokens=6)] if looks else []),
        *([Dies(die)] if die else []),
    ]
    learn = lm_learner(model, data, lr=3e-3, accumulate=2, cbs=cbs, precision=precision)
    if resume:
        load_checkpoint(learn, resume)
        for f in ('samples.jsonl', 'evals.jsonl'):
            truncate_log(folder/f, learn.step)
    data.train.n_batches = 2*steps
    if save:
        class Saves(Callback):
            order = 80
            def after_step(self):
                if self.learn.step == save: save_checkpoint(self.learn, folder/f'step_{save}')
        learn.add_cb(Saves())
    try:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
    except KeyboardInterrupt:
        pass
    return learn

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

@pytest.mark.parametrize('save,die', [(2, 5), (4, 6), (7, None)])
def test_killed_and_resumed_the_logs_and_the_stop_are_those_of_an_unbroken_run(tmp_path, save, die):
    whole,broken = tmp_path/'whole',tmp_path/'broken'
    whole.mkdir()
    broken.mkdir()
    a = run(whole)
    assert a.step == 7 and a.stop_request.startswith(
        'early stopping: 3 evaluations without a better loss than that of step 4'
    )
    run(broken, die=die, save=save)
    b = run(broken, resume=broken/f'step_{save}')
    assert b.step == 7 and b.stop_request == a.stop_request and all(map(torch.equal, weights(a), weights(b)))
    for f in ('samples.jsonl', 'evals.jsonl'):
        assert read_jsonl(whole/f) == read_jsonl(broken/f), f
    assert [r['step'] for r in read_jsonl(whole/'samples.jsonl')] == [2, 2, 4, 4, 6, 6]

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_looking_does_not_move_a_weight(tmp_path, precision):
    for n in 'ab': (tmp_path/n).mkdir()
    a,b = run(tmp_path/'a', 4, precision=precision),run(tmp_path/'b', 4, looks=False, precision=precision)
    assert all(map(torch.equal, weights(a), weights(b))) and a.model.training == b.model.training

def test_generation_runs_in_the_precision_of_the_run():
    data = load_data('opinions', **questions)
    m = Says(data.tokenizer, ' positive')
    for precision,on in (('bf16', True), ('fp32', False)):
        learn = lm_learner(
            build_model('standard', vocab_size=data.vocab_size, max_length=224), data, precision=precision
        )
        learn.model = m
        m.autocast.clear()
        generated_scores(learn, validation_requests(data, 2))
        assert m.autocast == [on]

def test_numbers_without_a_tokenizer_and_models_that_cannot_write_leave_no_samples(tmp_path):
    cb = TextSamples(tmp_path/'s.jsonl', 1)
    cb.learn = SimpleNamespace(
        step=1, dls=SimpleNamespace(tokenizer=None, masked=False), model=Says(load_data(**prose).tokenizer, 'x')
    )
    cb.after_step()
    assert not (tmp_path/'s.jsonl').exists()
    cb = TextSamples(tmp_path/'s.jsonl', 1)
    cb.learn = SimpleNamespace(step=1, dls=load_data(**prose), model=SimpleNamespace(can_generate=lambda: False))
    cb.after_step()
    assert not (tmp_path/'s.jsonl').exists()
