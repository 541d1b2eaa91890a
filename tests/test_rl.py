"Rewards against cheating, and runs from the command line: killed, resumed, on two ranks, with a reward model"
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Popen
from ranks import run_ranks

from lmnotes.core import InputError
from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_rows
from lmnotes.files import read_json, read_jsonl
from lmnotes.rl.rewards import compute_reward, correct_threshold, format_total, rewarded_hacks
from lmnotes.training.train import train

ROOT = Path(__file__).resolve().parents[1]
SETS = [
    'openai/gsm8k',
    'stanfordnlp/imdb',
    'glue/mrpc',
    'glue/sst2',
    'glue/stsb',
    'squad',
    'squad_v2',
    'phrasebank',
    'twitter',
    'fiqa',
    'fiqa_sentiment',
    'financemath',
    'conll',
    'ud',
    'mmlu',
    'mmlu_pro',
    'bigcodebench',
    'math_dataset',
    'listops',
]

@pytest.fixture(scope='session')
def rows():
    root = os.environ.get('LMNOTES_DATA_DIR') or ROOT.parent/'shared/data'
    if not Path(root).is_dir(): pytest.skip('needs real rows: set LMNOTES_DATA_DIR to a folder in hub layout')
    return str(root)

def known(name, root, n=40):
    ds = find_dataset(name)
    try:
        splits = load_rows(ds, root)
    except InputError as e:
        pytest.skip(f'{name}: {str(e)[:80]}')
    return ds, [r for s in splits.values() for r in list(s)[:n] if ds.has_answer(r)][:n]

@pytest.mark.parametrize('name', SETS)
def test_no_cheat_pays_on_real_rows(name, rows):
    ds, some = known(name, rows)
    assert some and format_total < correct_threshold(ds)
    assert rewarded_hacks(ds, some) == []
    worth = [compute_reward(ds, r, ds.target(r)) for r in some]
    assert (
        min(w['correctness'] for w in worth) >= correct_threshold(ds)
        and min(w['reward'] for w in worth) > format_total
    )

@pytest.mark.parametrize('name', ['openai/gsm8k', 'stanfordnlp/imdb', 'squad'])
def test_answers_of_other_rows_do_not_pay(name, rows):
    ds, some = known(name, rows)
    for a, b in zip(some, some[1:]):
        if compute_reward(ds, a, ds.target(b))['correctness']:
            assert (
                set(x.lower() for x in ds.references(a)) & set(x.lower() for x in ds.references(b))
                or ds.kind == 'questions'
            )

small = dict(
    mode='rl',
    dataset='arithmetic',
    model='standard',
    reward='random',
    test=True,
    device='cpu',
    grpo_beta=0.05,
    rl_learning_rate=1e-3,
    save_steps=1,
    save_total_limit=9,
    max_steps=4,
    max_completion_length=8,
    eval_generate=2,
    quiet=True,
)

def weights(run):
    from safetensors.torch import load_file
    return load_file(Path(run)/'final/model.safetensors')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return train(**small, output_dir=str(tmp_path_factory.mktemp('rl')/'whole'))

def test_a_run_leaves_what_every_run_leaves(whole):
    have = {p.name for p in whole.path.iterdir()}
    assert {
        'args.json',
        'args.txt',
        'env.json',
        'summary.json',
        'metrics.jsonl',
        'samples.jsonl',
        'evals.jsonl',
        'viz',
        'checkpoints',
        'final',
        'tensorboard',
        'logs',
    } <= have
    lines = read_jsonl(whole.path/'metrics.jsonl')
    assert [r['step'] for r in lines] == [1, 2, 3, 4] and {
        'loss',
        'accuracy',
        'reward',
        'correctness',
        'format',
        'no_signal',
        'kl',
        'grad_norm',
        'learning_rate',
        'tokens_per_s',
        'tokens',
        'memory_bytes',
    } <= set(lines[0])
    assert {'training_latest.png', 'metrics_history.json', 'text_samples.json'} <= {
        p.name for p in (whole.path / 'viz').iterdir()
    }
    assert {'input', 'output', 'reference', 'reward', 'correctness', 'format'} <= set(
        read_jsonl(whole.path / 'samples.jsonl')[0]
    )
    s = read_json(whole.path/'summary.json')
    assert (
        s['before']['n'] == s['after']['n'] == 2
        and 'pass@4' in s['before']
        and [r['step'] for r in read_jsonl(whole.path / 'evals.jsonl')] == [0, 4]
    )

def test_options_reach_trl(whole):
    a = whole.trainer.args
    assert (a.num_generations, a.beta, a.learning_rate, a.max_completion_length, a.warmup_steps, a.max_steps) == (
        4,
        0.05,
        1e-3,
        8,
        2,
        4,
    )
    assert a.per_device_train_batch_size == 2*4 and a.reward_weights == [0., 0., 1.]

def test_killed_and_resumed_it_comes_to_the_same_weights(whole, tmp_path):
    out = tmp_path/'killed'
    words = [
        w
        for k, v in {**small, 'output_dir': out}.items()
        if k != 'quiet'
        for w in ([f'--{k}'] if v is True else [f'--{k}', str(v)])
    ]
    p = Popen(
        [sys.executable, '-m', 'lmnotes', 'train', *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'HF_HUB_OFFLINE': '1'},
    )
    try:
        for _ in range(3000):
            if (out/'checkpoints/step_000002/state.json').exists() or p.poll() is not None: break
            time.sleep(.02)
    finally:
        p.send_signal(signal.SIGKILL)
        p.wait()
    assert (out/'checkpoints/step_000002').exists()
    for ck in ('step_000003', 'step_000004'): # it may have come further before it died
        if (out/'checkpoints'/ck).exists(): __import__('shutil').rmtree(out/'checkpoints'/ck)
    (out/'checkpoints/latest').write_text('step_000002\n', encoding='utf-8')
    done = train(resume_from_checkpoint=str(out), quiet=True)
    assert done.summary['resumed_at_step'] == 2 and [r['step'] for r in read_jsonl(out / 'metrics.jsonl')] == [
        1,
        2,
        3,
        4,
    ]
    a, b = weights(whole.path), weights(out)
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_a_reward_model_pays(tmp_path):
    from lmnotes.rl.reward_models import opinion_pairs, train_reward_model
    train_reward_model(opinion_pairs(50), path=tmp_path/'kind', steps=2)
    run = train(
        **{
            **small,
            'reward': 'task',
            'reward_model': str(tmp_path / 'kind'),
            'max_steps': 1,
            'output_dir': str(tmp_path / 'run'),
        }
    )
    assert (
        run.trainer.args.reward_weights == [0.0, 0.0, 1.0]
        and run.history[0]['reward'] != run.history[0]['correctness'] + run.history[0]['format']
    )
    with pytest.raises(InputError, match='no score head'):
        train(**{**small, 'reward': 'task', 'reward_model': str(run.path/'final'), 'output_dir': str(tmp_path/'x')})
    assert not (tmp_path/'x').exists()

REFUSED = [
    (dict(grpo_group_size=1), 'nothing to be compared'),
    (dict(max_seconds=5, max_steps=None, test=False), 'give --max_steps'),
    (dict(load_best_model_at_end=True), 'not for --mode rl'),
    (dict(dataset='prose'), 'no answers to reward'),
    (dict(model='encoder'), 'choose a causal model'),
    (dict(model='tiny:t5'), 'encoder-decoder'),
    (dict(optimizer='muon'), 'use adamw'),
    (dict(reward_model='./nowhere', reward='task'), 'there is no folder'),
]

@pytest.mark.parametrize('more, said', REFUSED)
def test_what_would_not_work_is_refused(more, said, tmp_path):
    with pytest.raises(InputError, match=said):
        train(**{**small, 'output_dir': str(tmp_path/'x'), **more})
    assert not (tmp_path/'x').exists()

def test_small_groups_are_warned_of(tmp_path, capsys):
    train(
        **{
            **small,
            'grpo_group_size': 2,
            'dry_run': False,
            'max_steps': 1,
            'quiet': False,
            'output_dir': str(tmp_path / 'x'),
        }
    )
    out = capsys.readouterr().out
    # the table of samples has its columns
    assert 'below 4' in out and 'before' in out and 'pass@2' in out and 'reference' in out

@pytest.mark.parametrize('allowed', [False, True])
def test_programs_run_only_where_it_is_allowed(allowed, monkeypatch):
    from lmnotes.rl import reward_functions
    from lmnotes.rl.settings import RLSettings
    seen = []
    monkeypatch.setattr(
        reward_functions, 'run_tests', lambda code, tests: seen.append(code) or type('O', (), dict(ok=True))
    )
    row = dict(
        instruct_prompt='Add.',
        code_prompt='def add(a, b):\n',
        canonical_solution='    return a + b\n',
        entry_point='add',
        test='assert add(1, 2) == 3',
    )
    settings = RLSettings(allow_execution=allowed)
    scorer = reward_functions.RewardScorer(find_dataset('bigcodebench'), [row], settings)
    scorer.score_batch(['Add.'], ['```python\ndef add(a, b):\n    return a + b\n```'], [0], 0)
    assert scorer.scores[0]['correctness'] == 1 and len(seen) == int(allowed)

def test_real_tests_judge_real_programs():
    from lmnotes.rl.reward_functions import execution_reward
    row = dict(
        instruct_prompt='Add.',
        code_prompt='def add(a, b):\n',
        canonical_solution='    return a + b\n',
        entry_point='add',
        test='import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)',
    )
    task = find_dataset('bigcodebench')
    say = lambda body: execution_reward(task, row, f'```python\ndef add(a, b):\n    {body}\n```')
    assert [
        say(b)
        for b in (
            'return a + b',
            'return 3',
            'return a - b',
            'raise SystemExit(0)',
            'import os; os._exit(0)',
            'while True: pass',
        )
    ] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]

@pytest.mark.skipif(sys.platform != 'linux', reason='gloo between processes of one host')
def test_two_ranks_share_a_run(tmp_path):
    words = [
        w
        for k, v in {**small, 'max_steps': 2, 'output_dir': tmp_path / 'two'}.items()
        if k != 'quiet'
        for w in ([f'--{k}'] if v is True else [f'--{k}', str(v)])
    ]
    done = run_ranks(['lmnotes', 'train', '--multi_gpu', *words], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    s = read_json(tmp_path/'two/summary.json')
    assert s['ranks'] == 2 and s['steps'] == 2 and len(read_jsonl(tmp_path/'two/metrics.jsonl')) == 2
    assert '2 of 4 prompts, each with 4 completions' in done.stdout
