"A text from 16 MB on: its tokens come from a file, equal to the bit, in little memory"
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from forked import Popen

from lmnotes.data import load as loading
from lmnotes.data.load import load_data
from lmnotes.data.token_cache.token_cache import TOKEN_CACHE_FROM

LINES = ''.join(f'{i:,} lines of text, and one "quoted" word\n' for i in range(20_000))

MEASURE = '''
import json, sys
from pathlib import Path
import lmnotes.training.learner
from lmnotes.data.load import load_data
from lmnotes.evaluation.memory import release_memory
def status(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(l for l in lines if l.startswith(key)).split()[1])*1024
release_memory()
Path('/proc/self/clear_refs').write_text('5') # the high-water mark begins here
base = status('VmHWM')
data = load_data(data_path=sys.argv[1], device='cpu')
data.train.batch(7)
sum(len(t) for t in data.texts())
print(json.dumps(dict(took=status('VmHWM') - base, n=data.n_tokens, fingerprint=data.fingerprint)))
'''

@pytest.fixture
def big(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    path = tmp_path/'big.txt'
    path.write_text(LINES*(TOKEN_CACHE_FROM//len(LINES) + 2), encoding='utf-8')
    return path

def test_tokens_from_the_cache_equal_those_in_memory(big, capfd, monkeypatch):
    kept = load_data(data_path=big, device='cpu')
    assert 'are kept in' in capfd.readouterr().err
    monkeypatch.setattr(loading, 'is_big_text', lambda path: False)
    held = load_data(data_path=big, device='cpu')
    assert 'are kept in' not in capfd.readouterr().err
    assert (kept.train_ids.dtype, held.train_ids.dtype) == (torch.uint16, torch.int32)
    assert (kept.fingerprint, kept.notes, kept.n_tokens) == (held.fingerprint, held.notes, held.n_tokens)
    for k in (0, 5, 1000):
        for ours,theirs in zip(kept.train.batch(k)[0].values(), held.train.batch(k)[0].values()):
            assert torch.equal(ours, theirs)
    assert torch.equal(kept.valid_blocks[3]['input_ids'], held.valid_blocks[3]['input_ids'])
    assert list(kept.texts('validation')) == list(held.texts('validation'))

@pytest.mark.skipif(sys.platform != 'linux', reason='/proc tells the memory')
def test_three_bytes_of_memory_for_a_byte_of_text(big, tmp_path):
    run = subprocess.run([sys.executable, '-c', MEASURE, str(big)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert sum(found['n']) == big.stat().st_size + 2
    assert found['took'] <= 3*big.stat().st_size + 2**25, f"{found['took']/big.stat().st_size:.1f} bytes a byte"

TWICE = '''
import sys, time
from lmnotes.data.token_cache import token_cache
made,make = [],token_cache._make_tokens
def slow(*args):
    made.append(1)
    time.sleep(1) # the other process comes in meanwhile
    return make(*args)
token_cache._make_tokens = slow
kept = token_cache.kept_tokens(sys.argv[1])
print(len(made), kept.facts.fingerprint, int(kept.train[:1000].long().sum()))
'''

def test_of_two_processes_one_makes_the_tokens_and_both_read_them(tmp_path):
    path = tmp_path/'text.txt'
    path.write_text(LINES, encoding='utf-8')
    env = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path/'cache')}
    both = [Popen([sys.executable, '-c', TWICE, str(path)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                  text=True) for _ in range(2)]
    said = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    (a,*ours),(b,*theirs) = (out.split() for out,_ in said)
    assert sorted([a, b]) == ['0', '1'] and ours == theirs
    assert sum('are kept in' in err for _,err in said) == 1

def test_a_second_start_reads_neither_text_nor_tokens(big, monkeypatch):
    first = load_data(data_path=big, device='cpu')
    old = time.time() - 60
    os.utime(big, (old, old))
    later = time.time_ns() + 3*10**9
    monkeypatch.setattr('time.time_ns', lambda: later) # the file is no longer of now
    load_data(data_path=big, device='cpu')
    loading._kept_tokens.cache_clear()
    monkeypatch.setattr('hashlib.file_digest', None)
    monkeypatch.setattr('zlib.crc32', None)
    assert load_data(data_path=big, device='cpu').fingerprint == first.fingerprint
