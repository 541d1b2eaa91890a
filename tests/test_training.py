"A run as a process: killed, resumed, out of disk; and the wrong things a stranger types"
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from forked import Popen, run as run_forked
from ranks import run_ranks
from safetensors.torch import load_file

from lmnotes.files import read_json, read_jsonl

shape = '--dim 32 --n_layer 2 --n_head 2 --max_length 32 --batch_size 4 --dataset arithmetic --limit 300'.split()
env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')

def lmnotes(*words, cwd, **kwargs):
    return run_forked(
        [sys.executable, '-m', 'lmnotes', *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        **kwargs,
    )

def train_in_process(*words, cwd):
    return Popen([sys.executable, '-m', 'lmnotes', 'train', *shape, *words], cwd=cwd, env=env,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def losses(run): return [r['loss'] for r in read_jsonl(run/'metrics.jsonl')]

def test_sigkill_then_resume_gives_the_same_bits(tmp_path):
    "The run that died between two checkpoints ends with the weights and the log of the one that did not"
    options = (
        '--max_steps 120 --save_steps 15 --logging_steps 5 --dropout 0.1 --gradient_accumulation_steps 2'.split()
    )
    whole = train_in_process(*options, '--output_dir', 'whole', cwd=tmp_path)
    killed = train_in_process(*options, '--output_dir', 'killed', cwd=tmp_path)
    latest = tmp_path/'killed/checkpoints/latest'
    end = time.time() + 120
    while not latest.exists() and time.time() < end and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert latest.exists() and not (tmp_path/'killed/final').exists(), 'the kill must come in the middle of the run'
    r = lmnotes('train', '--resume', 'killed', cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    assert whole.wait() == 0
    a,b = (load_file(tmp_path/n/'final/model.safetensors') for n in ('whole', 'killed'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert losses(tmp_path/'whole') == losses(tmp_path/'killed') and len(losses(tmp_path/'whole')) == 24
    assert read_json(tmp_path/'killed/summary.json')['resumed_at_step'] >= 15

@pytest.mark.parametrize('sign', ['SIGTERM', 'SIGINT'])
def test_a_signal_saves_first_and_the_run_goes_on_exactly(sign, tmp_path):
    "As a cluster sends it, and as a person does"
    # the only checkpoint is that of the signal
    options = '--max_steps 60 --save_steps 1000 --logging_steps 1 --dropout 0.1'.split()
    whole = train_in_process(*options, '--output_dir', 'whole', cwd=tmp_path)
    told = Popen(
        [sys.executable, '-m', 'lmnotes', 'train', *shape, *options, '--output_dir', 'told'],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.time() + 120
    while len(read_jsonl(tmp_path/'told/metrics.jsonl')) < 5 and time.time() < end and told.poll() is None:
        time.sleep(0.005)
    told.send_signal(getattr(signal, sign))
    _,err = told.communicate(timeout=60)
    said = err.strip().splitlines()[-1]
    assert (
        told.returncode == 1 and said.startswith(f'lmnotes: stopped by {sign} after step') and 'Traceback' not in err
    ), err
    s = read_json(tmp_path/'told/summary.json')
    assert s['status'] == 'stopped' and 5 <= s['steps'] < 60
    assert lmnotes('train', '--resume', 'told', cwd=tmp_path).returncode == 0 and whole.wait() == 0
    a,b = (load_file(tmp_path/n/'final/model.safetensors') for n in ('whole', 'told'))
    assert all(torch.equal(a[k], b[k]) for k in a) and losses(tmp_path/'whole') == losses(tmp_path/'told')

def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch, capsys):
    "It says at which step, and the last good checkpoint loads"
    from lmnotes.app.cli import main
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                'train',
                *shape,
                *(
                    '--optimizer sgd --learning_rate 99 --max_grad_norm 0 --warmup_ratio 0 '
                    '--lr_scheduler_type constant --max_steps 60 --save_steps 1 --output_dir run'
                ).split(),
            ]
        )
        == 1
    )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'stopped being finite at step' in said and 'lower learning rate' in said, said
    from lmnotes.files import find_checkpoint
    ck = find_checkpoint(tmp_path/'run')
    assert all(torch.isfinite(t).all() for t in load_file(ck/'model.safetensors').values())
    assert read_json(tmp_path/'run/summary.json') == dict(status='failed', reason=said.removeprefix('lmnotes: '))

def test_samples_are_what_the_model_wrote(tmp_path, monkeypatch):
    "Another model writes other text into `text_samples.json`; the prompts stay"
    from lmnotes.training.train import train
    same = dict(
        quiet=True,
        dim=32,
        n_layer=1,
        n_head=2,
        max_length=32,
        batch_size=4,
        dataset='arithmetic',
        mode='pretrain',
        limit=200,
        max_steps=2,
        eval_max_batches=2,
    )
    def samples(**more):
        r = train(**same, **more, output_dir=str(tmp_path/f'{len(list(tmp_path.iterdir()))}'))
        return read_json(r.path/'viz/text_samples.json', list)
    a,again,other = samples(),samples(),samples(model='reversible', seed=0, dropout=0.5)
    assert (
        a == again
        and [s['input'] for s in a] == [s['input'] for s in other]
        and [s['output'] for s in a] != [s['output'] for s in other]
    )
    from lmnotes.evaluation import text_samples
    monkeypatch.setattr(
        text_samples, 'generate_batch', lambda model, tok, prompts, *args, **kwargs: ['xyz'] * len(prompts)
    )
    assert {s['output'] for s in samples()} == {'xyz'} # nothing else is written there

small = dict(quiet=True, dim=32, n_layer=1, n_head=2, dataset='opinions', limit=200, device='cpu', eval_generate=0)

def pick(row, *names): return [row[n] for n in names]

def test_a_limited_evaluation_is_one_number(tmp_path):
    "The last line of evals.jsonl, the summary and the loaded run agree, and another seed scores the same rows"
    from lmnotes.training.checkpoints import load_run
    from lmnotes.training.learner_metrics import evaluate
    from lmnotes.training.train import train
    same = dict(small, mode='sft', max_length=256, max_steps=4, eval_steps=2, eval_max_batches=3)
    runs = [train(**same, seed=seed, output_dir=str(tmp_path/f'{seed}')) for seed in (0, 1)]
    rows = [r.learn.dls.valid.sample.tolist() for r in runs]
    s,evals = runs[0].summary,read_jsonl(tmp_path/'0/evals.jsonl')
    assert rows[0] == rows[1] and len(rows[0]) == 24 == s['eval_rows'] < s['eval_all_rows']
    assert max(rows[0]) > 0.9*s['eval_all_rows'] # not the first ones
    names = 'loss', 'accuracy', 'bits_per_byte', 'rows', 'standard_error'
    assert pick(evals[-1], *names) == pick(s, 'eval_loss', 'accuracy', 'bits_per_byte', 'eval_rows', 'standard_error')
    assert s['standard_error']['loss'] > 0 and {e['rows'] for e in evals} == {24}
    assert abs(evaluate(load_run(tmp_path/'0'))['loss'] - s['eval_loss']) < 1e-6
    whole = evaluate(load_run(tmp_path/'0'), runs[0].learn.dls.valid.sampled(10**6))
    assert whole['rows'] == whole['all_rows'] and abs(whole['loss'] - s['eval_loss']) < 5*s['standard_error']['loss']

def test_a_sorted_file_is_not_scored_by_its_first_rows(tmp_path):
    "A model that knows one answer of two is right in half of a limited evaluation, although the file is sorted"
    import json

    from lmnotes.training.build_data import data_from_options
    from lmnotes.training.options import TrainOptions
    for name,n in (('train', 40), ('validation', 400)):
        rows = [dict(prompt=f'{i} is', response='low' if i < n//2 else 'top') for i in range(n)]
        (tmp_path/f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    o = TrainOptions(data_path=str(tmp_path), mode='sft', max_length=32, batch_size=8, device='cpu')
    data = data_from_options(o)
    def answers(dl): return [b['shift_labels'][b['shift_labels'] == ord('l')].numel() for b, in dl]
    assert len(data.valid_blocks) == 400 and sum(answers(data.valid.sampled(64))) == 32

@pytest.mark.parametrize('packing', [False, True])
def test_tokens_are_those_of_the_rows(tmp_path, packing):
    "One pass over rows of answers is one pass, and its tokens are those of the data, packed or padded"
    from lmnotes.training.train import train
    same = dict(small, mode='sft', max_length=256, eval_strategy='no')
    r = train(**same, use_packing=packing, output_dir=str(tmp_path/'a'))
    lengths,log = r.data.train_blocks.lengths,read_jsonl(tmp_path/'a/metrics.jsonl')
    rows = len(r.data.train_blocks)//8*8
    assert r.summary['passes'] == rows/len(r.data.train_blocks) and r.summary['tokens'] == log[-1]['tokens']
    if rows == len(r.data.train_blocks):
        assert pick(r.summary, 'tokens', 'supervised_tokens') == [lengths.sum(), r.data.train_blocks.n_supervised]
    assert 0 < r.summary['supervised_tokens'] < r.summary['tokens'] <= lengths.sum() < 200*256

def test_an_encoder_and_a_decoder_both_count():
    from lmnotes.data.load import load_data
    from lmnotes.training.accumulation import batch_tokens
    d = load_data('opinions', mode='sft', packing=False, decoder_start=1, max_length=256, bs=8, limit=80, device='cpu')
    n = sum(batch_tokens(b, b['shift_labels']) for b, in d.train.new(shuffle=False))
    assert n == d.train_blocks.lengths.sum() + len(d.train_blocks) == round(d.train.row_tokens*len(d.train_blocks))

def test_the_rate_after_a_resume_is_of_what_came_after(tmp_path):
    from lmnotes.training.train import train
    same = dict(small, mode='sft', max_length=256, max_steps=6, save_steps=4, eval_strategy='no')
    whole = train(**same, output_dir=str(tmp_path/'a')).summary
    before = read_json(tmp_path/'a/checkpoints/step_000004/state.json')
    again = train(quiet=True, resume_from_checkpoint=str(tmp_path/'a/checkpoints/step_000004')).summary
    names = 'tokens', 'supervised_tokens', 'eval_loss'
    assert pick(again, *names) == pick(whole, *names)
    assert before['tokens'] + round(again['tokens_per_s']*again['train_seconds']) == whole['tokens']

def test_every_row_of_an_evaluation_is_kept(tmp_path):
    "Each line of evals.jsonl is made again from the rows on disk, and a resumed run drops those of later steps"
    from lmnotes.evaluation.item_files import read_items, rescore_items
    from lmnotes.training.train import train
    same = dict(small, mode='sft', max_length=256, max_steps=6, save_steps=2, eval_steps=2, eval_max_batches=2)
    train(**same | dict(eval_generate=2), output_dir=str(tmp_path/'a'))
    kept = sorted((tmp_path/'a/items').iterdir())
    for file,line in zip(kept, read_jsonl(tmp_path/'a/evals.jsonl'), strict=True):
        again = {x['task']: x for x in rescore_items(file)}
        assert again['validation']['after'] == pytest.approx(line['bits_per_byte'], rel=1e-9)
        assert again['validation']['n'] == line['rows'] == 16 and not any(x['changed'] for x in again.values())
        assert again['']['n'] == line['task_score_n'] and again['']['after'] == pytest.approx(line['task_score'])
    ids = [[i['id'] for i in read_items(f) if i.get('rule') == 'tokens'] for f in kept]
    assert ids[0] == ids[1] == ids[2] and len(set(ids[0])) == 16 # the same rows each time
    last = read_items(kept[2])
    (tmp_path/'a/items/step_000099.jsonl.gz').write_bytes(b'of another attempt')
    train(quiet=True, resume_from_checkpoint=str(tmp_path/'a/checkpoints/step_000004'))
    assert sorted((tmp_path/'a/items').iterdir()) == kept and read_items(kept[2]) == last

@pytest.mark.parametrize('precision,off', [('fp32', 1e-5), ('bf16', 2e-2)])
def test_validation_does_not_depend_on_the_batch_size(precision, off):
    from lmnotes.core import set_seed
    from lmnotes.data.load import load_data
    from lmnotes.models.build import build_model
    from lmnotes.training.learner import lm_learner
    from lmnotes.training.learner_metrics import evaluate
    found = []
    for bs in (1, 4, 7):
        d = load_data('reading', mode='sft', packing=False, max_length=128, bs=bs, limit=30, device='cpu')
        set_seed(0)
        model = build_model('standard', dim=32, n_layer=1, n_head=2, vocab_size=d.vocab_size, max_length=128)
        model.head.weight.data *= 20 # so that losses of rows differ
        learn,scores = lm_learner(model, d, precision=precision),None
        with learn.no_bar(), learn.no_logging():
            loss = learn.validate()[0]
        scores = evaluate(learn)
        found += [loss, scores['loss']]
        assert scores['rows'] == len(d.valid_blocks)
    assert max(found) - min(found) < off*max(found)

def test_resume_refuses_other_data(tmp_path, monkeypatch, capsys):
    from lmnotes.app.cli import main
    monkeypatch.chdir(tmp_path)
    (tmp_path/'mine.txt').write_text('A sentence about nothing in particular. ' * 200)
    typed = [
        'train',
        *[w for w in shape if w not in ('--dataset', 'arithmetic')],
        '--data_path',
        'mine.txt',
        '--max_steps',
        '6',
        '--save_steps',
        '3',
        '--output_dir',
        'run',
    ]
    assert main(typed) == 0
    import shutil
    shutil.rmtree('run/final')
    (tmp_path/'mine.txt').write_text('Another sentence, which was not there before. ' * 200)
    assert main(['train', '--resume', 'run']) == 2 and 'was trained on other data' in capsys.readouterr().err

def small_disk(path):
    "A disk of 2 MB, where we are allowed to make one"
    path.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(path)], capture_output=True).returncode:
        pytest.skip('making a small disk needs root')
    return path

def test_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    disk = small_disk(tmp_path/'disk')
    try:
        r = lmnotes(
            'train',
            *shape,
            '--max_steps',
            '60',
            '--save_steps',
            '5',
            '--save_total_limit',
            '50',
            '--output_dir',
            'disk/run',
            cwd=tmp_path,
        )
        assert r.returncode == 1 and 'Traceback' not in r.stderr, r.stderr
        assert 'No space left' in r.stderr.splitlines()[-1]
        from lmnotes.files import find_checkpoint
        ck = find_checkpoint(disk/'run')
        assert load_file(ck/'model.safetensors') and torch.load(ck/'trainer.pt', weights_only=True)['optimizer']
    finally:
        subprocess.run(['umount', str(disk)])

class Clock:
    "The time module, with a clock that training alone moves"
    now = 0.
    def __getattr__(self, name): return getattr(time, name)
    def perf_counter(self): return self.now

@pytest.mark.parametrize('step', [.25, .125])
def test_max_seconds_is_met(step, tmp_path, monkeypatch):
    "However fast a step is: the probe finds out, and the run takes that time"
    from lmnotes.models.decoder import LM
    from lmnotes.training.train import train
    clock,forward = Clock(),LM.forward
    def timed(self, *args, **kwargs):
        clock.now += step*self.training
        return forward(self, *args, **kwargs)
    monkeypatch.setattr(LM, 'forward', timed)
    for module in 'monitor', 'train', 'run_summary': monkeypatch.setattr(f'lmnotes.training.{module}.time', clock)
    words = {k.removeprefix('--'): v for k,v in zip(shape[::2], shape[1::2])}
    options = {k: v if k == 'dataset' else int(v) for k,v in words.items()}
    run = train(quiet=True, **options, max_seconds=6, device='cpu', output_dir=str(tmp_path/'run'))
    assert run.summary['steps'] == round(6/step) and run.summary['train_seconds'] == pytest.approx(6)

wrong = {
    'a misspelt model': ('train --model reversable', "did you mean 'reversible'?"),
    'a misspelt option': ('train --learning-rat 0.1', "did you mean '--learning_rate'?"),
    'a misspelt dataset': ('train --dataset pros', "did you mean 'prose'?"),
    'a missing folder': ('train --data_path nowhere', 'nowhere'),
    'an empty text file': ('train --data_path empty.txt', 'empty'),
    'no seeds': ('compare --models standard,reversible --datasets arithmetic --seeds 0', 'seeds'),
    'a lonely model': ('compare --models standard --datasets arithmetic', 'at least one other'),
    'another vocabulary': ('train --model saved --tokenizer chars --dataset arithmetic', 'has 258 words, the data'),
    'a bad budget': ('compare --budget much', 'much'),
    'an unknown bench': ('bench headd', "did you mean 'head'?"),
    'two precisions': ('train --fp16 --bf16', 'contradict each other'),
    'many GPUs on one': ('train --multi_gpu --device cpu', 'at least two GPUs'),
    'evaluations and none': ('train --eval_strategy no --load_best_model_at_end', 'needs evaluations'),
    'a misspelt metric': (
        'train --dataset arithmetic --max_steps 1 --load_best_model_at_end --metric_for_best_model acuracy',
        "did you mean 'accuracy'?",
    ),
    'a folder in proc': (
        'train --dataset arithmetic --max_steps 1 --output_dir /proc/run',
        'cannot write into /proc/run',
    ),
    'a misspelt schedule': ('train --lr_scheduler_type cosin', "did you mean 'cosine'?"),
    'rewards without answers': ('train --mode rl --dataset prose', 'no answers to reward'),
    'an absent tracker': ('train --wandb', 'pip install wandb'),
    'no model to generate': ('generate --model nowhere', 'nowhere'),
    'nothing to resume': ('train --resume nowhere', 'nowhere'),
}

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    from lmnotes.training.train import train
    path = tmp_path_factory.mktemp('saved')
    train(
        quiet=True,
        dim=32,
        n_layer=1,
        n_head=2,
        max_length=32,
        batch_size=4,
        dataset='arithmetic',
        limit=200,
        max_steps=2,
        output_dir=str(path / 'run'),
    )
    return path/'run/final'

@pytest.mark.parametrize('case', wrong)
def test_wrong_input_costs_one_line(case, tmp_path, saved, monkeypatch, capsys):
    from lmnotes.app.cli import main
    words,expected = wrong[case]
    (tmp_path/'empty.txt').touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert main([str(saved) if w == 'saved' else w for w in words.split()]) == 2
    err = [l for l in capsys.readouterr().err.splitlines() if not l.startswith('warning:')]
    assert len(err) == 1 and expected in err[0], err
    assert sorted(tmp_path.rglob('*')) == before

def test_a_saved_run_generates(saved, capsys):
    from lmnotes.app.cli import main
    assert main(['generate', '--model', str(saved), '--prompt', 'Tom has 3', '--max_new_tokens', '8']) == 0
    assert capsys.readouterr().out.startswith('Tom has 3')

def test_an_adapter_alone_generates(tmp_path, capsys):
    "Of a base in 4 bits a run saves nothing else"
    from lmnotes.app.cli import main
    from lmnotes.data.tokenizers import get_tokenizer
    from lmnotes.models.build import build_model
    from lmnotes.models.lora import add_lora, save_lora
    build_model('tiny:qwen3', vocab_size=258).save_pretrained(tmp_path/'base')
    save_lora(add_lora(build_model(str(tmp_path/'base')), r=2, verbose=False), tmp_path/'run/final')
    for folder in ('base', 'run/final'): get_tokenizer('bytes').save_pretrained(tmp_path/folder)
    words = ['generate', '--model', str(tmp_path/'run'), '--prompt', 'Once', '--max_new_tokens', '4', '--device', 'cpu']
    assert not main(words), capsys.readouterr().err
    assert capsys.readouterr().out.startswith('Once')

def test_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    from lmnotes.app.cli import main
    monkeypatch.chdir(tmp_path)
    assert main(['train', *shape, '--dry_run']) == 0
    assert 'parameters' in capsys.readouterr().out and not list(tmp_path.iterdir())

def test_the_notebook_api(tmp_path, monkeypatch):
    "The lines of the README as they are written there"
    import pyarrow as pa
    import pyarrow.parquet as pq
    root = tmp_path/'root/stanfordnlp__imdb/default'
    root.mkdir(parents=True)
    rows = dict(
        text=[f'A film about {i} things, and a good one. ' * 12 for i in range(48)],
        label=[i % 2 for i in range(48)],
    )
    for split in ('train', 'test'):
        pq.write_table(pa.table(rows), root/f'{split}.parquet')
    monkeypatch.setenv('LMNOTES_DATA_DIR', str(tmp_path/'root'))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(
        '''
from lmnotes.all import *
data  = load_data('imdb', tokenizer='bytes', max_length=128, bs=8)
model = build_model('reversible+ternary', size='tiny', vocab_size=data.vocab_size)
learn = lm_learner(model, data); learn.fit_one_cycle(1, 3e-3)
save_run(learn, 'runs/mine'); learn = load_run('runs/mine')
text  = generate(model, data.tokenizer, 'Once', max_new_tokens=64, temperature=0.8, top_p=0.95, seed=0)
''',
        scope,
    )
    assert scope['text'].startswith('Once')
    asked = dict(dry_run=True, say=lambda line: None)
    plan = scope['compare'](['standard', 'reversible'], ['prose'], **asked)
    assert plan.budget == 'tokens:200000' # twenty times as much
    small_model = dict(dim=32, n_layer=2, n_head=2, costs=False)
    scope['compare'] = partial(scope['compare'], budget='tokens:10k', pieces=64, **small_model)
    exec("c = compare(['standard', 'reversible'], ['prose'], seeds=3); c.table(); c.report('report.html')", scope)
    assert (tmp_path/'report.html').stat().st_size > 10_000

def test_a_split_model_leaves_a_whole_run(tmp_path):
    "FSDP on two ranks, by the command line: generated answers, a checkpoint, a final model that one process reads"
    typed = (
        "lmnotes train --multi_gpu --fsdp --device cpu --dataset arithmetic --max_length 64 --dim 64 --n_layer 2 "
        "--batch_size "
        "2 --max_steps 4 --save_steps 2 --eval_max_batches 2 --eval_generate 2 --limit 200 "
        "--output_dir run"
    )
    r = run_ranks(typed.split(), cwd=tmp_path, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    s = read_json(tmp_path/'run/summary.json')
    assert (s['status'], s['ranks'], s['task_score_n']) == ('done', 2, 2)
    from lmnotes.models import build_model
    from lmnotes.models.flops_and_memory import parameter_kinds
    m = build_model(str(tmp_path/'run/final'))
    assert sum(parameter_kinds(m).values()) == s['parameters'] and len(read_jsonl(tmp_path/'run/metrics.jsonl')) == 4
    alone = lmnotes('train', '--resume', 'run/checkpoints/step_000002', '--batch_size', '4', cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr # one process takes the same rows a step
