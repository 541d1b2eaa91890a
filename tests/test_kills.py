"A run that is killed before any change of its folder goes on to the end, and ends with the same bytes"
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmnotes.evaluation.scores import load_scores
from lmnotes.files import atomic_write, read_json, read_jsonl
from lmnotes.folders import lock_folder

HERE = Path(__file__).parent
MODULES = '''lmnotes.app.cli lmnotes.training.train lmnotes.comparison.comparison lmnotes.models
lmnotes.reports.model_card lmnotes.data.datasets.corpora peft datasets
torch.utils.tensorboard matplotlib.backends.backend_agg'''.split()

class Server:
    "Runs commands in forks of one process"
    def __init__(self, home, *modules):
        env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PYTHONPATH=str(HERE.parent),
                                XDG_CACHE_HOME=str(home/'cache'), XDG_STATE_HOME=str(home/'state'))
        command = [sys.executable, str(HERE/'fork_server.py'), *MODULES, *modules]
        self.home,self.process = home,subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                       stderr=subprocess.DEVNULL, text=True, env=env)
    def run(self, words, watch, kill_at=None, ranks=1, sign='SIGKILL'):
        "Exit codes, changes of the folder, and what was printed"
        out = self.home/'out'
        out.unlink(missing_ok=True)
        env = [{}] if ranks == 1 else rank_environments(ranks)
        job = dict(argv=words, cwd=str(self.home), out=str(out), watch=str(watch), kill_at=kill_at, sign=sign, env=env)
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer['codes'],answer['changes'],out.read_text(encoding='utf-8')

def rank_environments(n): # as torchrun says it
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    shared = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    return [dict(shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(n)]

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp('kills'))
    yield s
    s.process.stdin.close()
    s.process.wait()

small = dict(device='cpu', no_mixed_precision=True, dim=32, n_layer=2, n_head=2, max_length=32, batch_size=4, limit=200,
             max_steps=4, save_steps=2, save_total_limit=1, logging_steps=1, eval_max_batches=2, eval_generate=2,
             viz_interval=1000)
hub = {k: v for k,v in small.items() if k not in ('dim', 'n_layer', 'n_head')}
kinds = dict(
    best=dict(small, dataset='arithmetic', mode='pretrain', dropout=0.1, gradient_accumulation_steps=2, save_steps=3,
              eval_steps=2, load_best_model_at_end=True, eval_on_start=True),
    packed=dict(small, dataset='arithmetic', mode='sft', use_packing=True, max_length=128, eval_steps=3),
    mixture=dict(small, datasets='opinions,recall', mixture_rates='0.6,0.4', max_length=256, batch_size=2),
    stream=dict(small, dataset='prose', max_chunks=40, tokens_per_chunk=256),
    shards=dict({k: v for k,v in small.items() if k != 'limit'}, data_path='shards'),
    lora=dict(hub, model='tiny:qwen3', dataset='recall', use_lora=True, lora_r=2, max_length=64, batch_size=2),
    ternary=dict(small, dataset='prose', model='standard+ternary:warm'),
    rl={k: v for k,v in small.items() if k != 'max_length'} | dict(
        mode='rl', dataset='arithmetic', grpo_group_size=2, max_prompt_length=32, max_completion_length=6,
        rl_learning_rate=0.01, rl_warmup_steps=0, reward='random', save_steps=1,
        lr_scheduler_type='cosine', weight_decay=0.1),
    ranks=dict(small, dataset='arithmetic', mode='pretrain', multi_gpu=True),
    compare=dict(device='cpu', models='standard,reversible', datasets='prose', seeds=1, budget='steps:3',
                 limit=100, max_length=32, batch_size=4, pieces=48, no_costs=True),
) # name -> options

def command(name):
    flags = [[f'--{k}'] if v is True else [f'--{k}', str(v)] for k,v in kinds[name].items()]
    return ['compare' if name == 'compare' else 'train', *sum(flags, [])]

timed = 'time tokens_per_s memory_bytes train_seconds resumed_at_step seconds'.split() # not the same twice

def untimed(o):
    if isinstance(o, dict): return {k: untimed(v) for k,v in o.items() if k not in timed}
    return [untimed(v) for v in o] if isinstance(o, list) else o

def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

def content(path): # of a file of a run, as far as it is the same twice
    if path.suffix == '.jsonl': return untimed(read_jsonl(path))
    if path.name in ('summary.json', 'cell.json', 'state.json', 'metrics_history.json'):
        return untimed({k: v for k,v in read_json(path).items() if k != 'throughput'})
    if path.name == 'comparison.json':
        measured = 'created', 'env', 'how', 'measures', 'cost_ratios', 'dynamics'
        return untimed({k: v for k,v in read_json(path).items() if k not in measured})
    if path.name == 'scores.npz': return [(s.name, s.ids, s.values.tolist()) for s in load_scores(path)]
    if path.suffix == '.pt': return torch.load(path, weights_only=True)
    again = ('args.json', 'args.txt', 'env.json', 'README.md', 'training_args.bin', 'rng_state.pth',
             'trainer_state.json', 'plan.json', 'training_text.npz')
    if path.name in again or path.suffix in ('.png', '.log', '.html', '.md', '.tex'): return None
    return path.read_bytes()

def left(run): # all that a run leaves: file -> content
    files = (p for p in sorted(run.rglob('*')) if p.is_file() and 'tensorboard' not in p.parts)
    return {str(p.relative_to(run)): content(p) for p in files}

class Kind:
    "A kind of run: the command that starts it, the one that goes on with it, and how it ends when it is left alone"
    def __init__(self, server, name):
        self.server,self.name,self.words = server,name,command(name)
        self.ranks,self.run = 2 if name == 'ranks' else 1,server.home/f'{name}_killed'
        if name == 'shards': self.shards()
        whole = server.home/f'{name}_whole'
        codes,self.changes,said = server.run([*self.words, '--output_dir', str(whole)], whole, ranks=self.ranks)
        assert set(codes) == {0}, said
        self.whole = left(whole)
    def shards(self):
        if (self.server.home/'shards').exists(): return
        words = '''data tokenize --dataset arithmetic --limit 200 --output_path shards --tokenizer bytes'''.split()
        codes,_,said = self.server.run(words, self.server.home/'shards')
        assert codes == [0], said
    def go_on(self):
        "Words of the command that goes on with what a killed run has left"
        if self.name == 'compare':
            again = ['compare', '--rerun', str(self.run)] if (self.run/'plan.json').is_file() else None
        else:
            again = ['train', '--resume', str(self.run)] if (self.run/'args.json').is_file() else None
            if again and self.ranks > 1: again += ['--multi_gpu']
        return again or [*self.words, '--output_dir', str(self.run)]
    def killed(self, k):
        "Kill before the k-th change, and go on"
        shutil.rmtree(self.run, ignore_errors=True)
        codes,changes,said = self.server.run([*self.words, '--output_dir', str(self.run)], self.run, k, self.ranks)
        where = f'{self.name}, killed before change {k}: {changes[-1:]}'
        assert codes[0] == -9, f'{where}: {codes}\n{said}'
        self.ends_well(where)
    def ends_well(self, where):
        "Go on, and find no difference"
        codes,_,said = self.server.run(self.go_on(), self.run, ranks=self.ranks)
        assert set(codes) == {0}, f'{where}: {codes}\n{said}'
        found = left(self.run)
        assert found.keys() == self.whole.keys(), f'{where}: {found.keys() ^ self.whole.keys()}'
        wrong = {name: (found[name], self.whole[name]) for name in found if not same(found[name], self.whole[name])}
        assert not wrong, f'{where}: {wrong}'

def moments(changes, *names): # where an error would hide: the last renames of files of these names
    places = [[i for i,c in enumerate(changes, 1) if re.search(rf'rename .*\.{n}\.[0-9]+\.tmp$', c)] for n in names]
    return [found[-1] for found in places]

@pytest.fixture(scope='module')
def best(server): return Kind(server, 'best')

def test_a_killed_run_goes_on_to_the_same_bytes(best):
    for k in moments(best.changes, 'args.json', 'latest', 'summary.json'): best.killed(k)

def test_a_signal_in_the_last_evaluation_loses_nothing(best, server):
    "Though `save_steps` does not divide the steps"
    k = max(i for i,c in enumerate(best.changes, 1) if c == 'open evals.jsonl')
    shutil.rmtree(best.run, ignore_errors=True)
    codes,_,said = server.run([*best.words, '--output_dir', str(best.run)], best.run, k, sign='SIGTERM')
    assert codes == [1] and 'stopped by SIGTERM after step 4 of 4; everything is saved' in said, said
    assert read_json(best.run/'summary.json')['status'] == 'stopped' and not (best.run/'final').exists()
    best.ends_well('SIGTERM in the last evaluation')

def test_one_process_writes_to_a_run(best, server):
    "The second is refused with exit code 2; a finished run may be finished again"
    whole = server.home/'best_whole'
    with lock_folder(whole):
        codes,changes,said = server.run(['train', '--resume', str(whole)], whole)
    assert codes == [2] and {*changes} <= {'open .lock'}
    refusal = [line for line in said.splitlines() if line.startswith('lmnotes: ')]
    assert len(refusal) == 1 and 'another process is writing to' in refusal[0]
    codes,_,said = server.run(['train', '--resume', str(whole)], whole)
    assert codes == [0] and same(left(whole), best.whole), said

def test_a_run_trains_in_its_own_folder(best, server):
    whole = server.home/'best_whole'
    latest = (whole/'checkpoints/latest').read_text(encoding='utf-8')
    try:
        atomic_write(whole/'checkpoints/latest', '../../best/checkpoints/step_000004\n')
        codes,_,said = server.run(['train', '--resume', str(whole)], whole)
        assert codes == [2] and 'which is not a checkpoint such as step_000200' in said
    finally:
        atomic_write(whole/'checkpoints/latest', latest)

def test_files_have_the_modes_of_the_umask(best, server):
    (server.home/'plain').touch()
    files = [p for p in (server.home/'best_whole').rglob('*') if p.is_file()]
    assert {p.stat().st_mode for p in files} == {(server.home/'plain').stat().st_mode}

@pytest.mark.slow
@pytest.mark.parametrize('name', [*kinds])
def test_every_kill_of_a_run(name, server):
    kind = Kind(server, name)
    for k in range(1, len(kind.changes) + 1): kind.killed(k)
