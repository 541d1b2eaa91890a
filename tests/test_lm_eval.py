"lm-evaluation-harness, unmodified, scores a saved model of ours on local task files, and its figures are our own"
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.models import *
from lmnotes.training.checkpoints import save_pretrained_model

pytestmark = pytest.mark.skipif(
    find_spec('lm_eval') is None, reason="lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'"
)

SUMS = [
    dict(question=f'{a}+{b}=', choices=[str(a + b), str(a + b + 1), str(a * b + 7)], answer=0)
    for a in range(2, 6)
    for b in range(3, 6)
]
PAGES = [
    'It was a bright cold day in April. ' * 3,
    'The clocks were striking thirteen, and nobody minded: naïve, perhaps.',
]
TASK = '''task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{name}.jsonl
test_split: test
output_type: {kind}
{columns}
metric_list:
{metrics}
metadata:
  version: 1
'''

def _task(folder, name, rows, kind, columns, metrics):
    (folder/f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    lines = '\n'.join(
        f'  - metric: {m}\n    higher_is_better: {str(up).lower()}' + (f'\n    aggregation: {how}' if how else '')
        for m, up, how in metrics
    )
    (folder / f'{name}.yaml').write_text(
        TASK.format(name=name, folder=folder, kind=kind, columns=columns, metrics=lines)
    )

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a model that has learned some of the sums by heart, and two tasks"
    root = tmp_path_factory.mktemp('lm_eval')
    tasks = root/'tasks'
    tasks.mkdir()
    _task(
        tasks,
        'local_sums',
        SUMS,
        'multiple_choice',
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\ntarget_delimiter: ""',
        [('acc', True, 'mean')],
    )
    _task(
        tasks,
        'local_pages',
        [dict(text=t) for t in PAGES],
        'loglikelihood_rolling',
        'doc_to_text: ""\ndoc_to_target: "{{text}}"',
        [('bits_per_byte', False, 'bits_per_byte'), ('byte_perplexity', False, 'weighted_perplexity')],
    )
    torch.manual_seed(0)
    tok = byte_tokenizer()
    model = build_model('reversible', 'tiny', len(tok))
    seen = tok([r['question'] + r['choices'][0] for r in SUMS[:8]], padding=True, return_tensors='pt')
    labels = seen['input_ids'].masked_fill(seen['attention_mask'] == 0, -100)
    opt = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(30):
        model(seen['input_ids'], attention_mask=seen['attention_mask'], labels=labels).loss.backward()
        opt.step()
        opt.zero_grad()
    save_pretrained_model(model.eval(), tok, root/'model')
    return root,model,tok

def _loglikelihood(model, tok, context, text): # of `text` after `context`, a list of ids
    ids = tok(text, add_special_tokens=False)['input_ids']
    x = torch.tensor([context + ids])
    y = x[:,1:].clone()
    y[:,:len(context) - 1] = -100
    return -token_scores(model, x[:,:-1], y)[0].sum().item()

def _ours(model, tok):
    "Accuracy on the sums, bits per byte on the pages, by our own scores"
    def right(r):
        return (
            max(
                range(3),
                key=lambda i: _loglikelihood(
                    model, tok, tok(r['question'], add_special_tokens=False)['input_ids'], r['choices'][i]
                ),
            )
            == r['answer']
        )
    pages = [_loglikelihood(model, tok, [tok.eos_token_id], t) for t in PAGES]
    return sum(map(right, SUMS))/len(SUMS), -sum(pages)/math.log(2)/sum(len(t.encode()) for t in PAGES), pages

def test_the_library(place, monkeypatch):
    root,model,tok = place
    import datasets
    import lm_eval
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', root/'cache')
    from lm_eval.tasks import TaskManager
    out = lm_eval.simple_evaluate(
        model='hf',
        model_args=f"pretrained={root / 'model'},trust_remote_code=True",
        tasks=['local_sums', 'local_pages'],
        device='cpu',
        batch_size=4,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(root / 'tasks'), include_defaults=False),
    )
    acc,bits,pages = _ours(model, tok)
    got = out['results']
    assert 8/12 <= acc and got['local_sums']['acc,none'] == acc
    assert abs(got['local_pages']['bits_per_byte,none'] - bits) < 1e-4
    theirs = sorted(s['resps'][0][0] for s in out['samples']['local_pages'])
    assert all(abs(a - b) < 1e-2 for a,b in zip(theirs, sorted(pages)))
    for s in out['samples']['local_sums']:
        for (question,answer),((nll,_),) in zip(s['arguments'], s['resps']):
            assert (
                abs(nll - _loglikelihood(model, tok, tok(question, add_special_tokens=False)['input_ids'], answer))
                < 1e-3
            )

def test_the_command_line(place):
    "`lm_eval` knows nothing of us but the folder"
    root,model,tok = place
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', HF_HOME=str(root/'hf'), OMP_NUM_THREADS='1')
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'lm_eval',
            '--model',
            'hf',
            '--model_args',
            f"pretrained={root / 'model'},trust_remote_code=True",
            '--tasks',
            'local_sums,local_pages',
            '--include_path',
            str(root / 'tasks'),
            '--device',
            'cpu',
            '--batch_size',
            '1',
            '--output_path',
            str(root / 'out'),
        ],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next((root/'out').rglob('results_*.json')).read_text(encoding='utf-8'))['results']
    acc,bits,_ = _ours(model, tok)
    assert (
        results['local_sums']['acc,none'] == acc and abs(results['local_pages']['bits_per_byte,none'] - bits) < 1e-4
    )

@pytest.mark.parametrize('name', ['standard', 'gpt', 'resonance', 'rnn', 'moe', 'hybrid'])
def test_every_recipe(name, tmp_path):
    "Each kind of model of ours loads there, and is given our own log-likelihoods"
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    torch.manual_seed(0)
    tok = byte_tokenizer()
    model = build_model(name, 'tiny', len(tok)).eval()
    save_pretrained_model(model, tok, tmp_path/'model')
    theirs = HFLM(pretrained=str(tmp_path/'model'), trust_remote_code=True, device='cpu', batch_size=2)
    said = theirs.loglikelihood(
        [Instance('loglikelihood', {}, (r['question'], r['choices'][0]), i) for i, r in enumerate(SUMS[:4])],
        disable_tqdm=True,
    )
    for (nll,_),r in zip(said, SUMS[:4]):
        assert (
            abs(
                nll
                - _loglikelihood(
                    model, tok, tok(r['question'], add_special_tokens=False)['input_ids'], r['choices'][0]
                )
            )
            < 1e-3
        )

def test_other_programs_stop_at_the_end_token(tmp_path):
    "A saved model names it, so that `generate` of transformers stops there without being told"
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    model,tok = build_model('standard', 'tiny', 258, dim=16, n_layer=1, n_head=2).eval(),byte_tokenizer()
    x,asked = torch.tensor([[65, 66]]),dict(do_sample=False, max_new_tokens=12)
    free = model.generate(x, pad_token_id=0, **asked)[0,2:].tolist()
    tok.eos_token = tok.convert_ids_to_tokens(free[0])
    save_pretrained_model(model, tok, tmp_path/'m')
    found = AutoModelForCausalLM.from_pretrained(tmp_path/'m', trust_remote_code=True)
    assert len(free) == 12 and found.generate(x, **asked)[0,2:].tolist() == free[:1]
    tok.eos_token = '<eos>'
    save_pretrained_model(found, tok, tmp_path/'again') # what a model says of itself stays
    assert found.generation_config.eos_token_id == free[0]
