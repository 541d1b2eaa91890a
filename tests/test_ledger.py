"The ledger: what is noted, what is refused, what survives, and how an edit by hand is told from a killed write"
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lmnotes.app.cli import main
from lmnotes.chained_log import append_chained, entry_hash, read_chained
from lmnotes.comparison.ledger import confirm, ledger_table, note_comparison, read_ledger
from lmnotes.core import InputError

def result(name, mean=-.05, p=1e-5, seeds=(0, 1, 2), **options):
    "A comparison with the fields that the ledger reads"
    d = dict(dataset='embedded/prose', arm=name, task='lm', name='embedded/prose', metric='bits_per_byte', higher=False)
    d |= dict(mean=mean, low=mean - .02, high=mean + .02, p=p, se=(.004, .005), df=(2., 5.), per_seed=[mean]*len(seeds))
    d |= dict(n_seeds=len(seeds), n_items=64, n_clusters=64, verdict='better', reason='', primary=True)
    experiment = dict(base=dict(dataset='prose'), arms={'base': {}, name: options}, seeds=list(seeds), datasets=None)
    about = dict(baseline='base', baseline_key='k', metric='bits_per_byte', created='2026-11-20 14:32', question='')
    return about | dict(seeds=list(seeds), differences=[d], experiment=experiment, plan_hash=f'{name}{mean}{p}')

def fill(folder, n=5):
    for i in range(n): note_comparison(result(f'idea{i}', mean=-.01*i, dropout=i/10), folder/f'c{i}')
    return folder/'ledger.jsonl'

EDITS = {
    'a figure': (lambda lines: [l.replace('"mean": -0.02', '"mean": -0.09') for l in lines], 'line 3 is not as it was'),
    'removed': (lambda lines: lines[:2] + lines[3:], 'before line 3 an entry is missing'),
    'two removed': (lambda lines: lines[:1] + lines[3:], 'before line 2 2 entries are missing'),
    'moved': (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], 'before line 3 an entry is missing'),
    'copied': (lambda lines: [*lines[:3], lines[1], *lines[3:]], 'line 4 holds entry 2 again'),
    'last removed': (lambda lines: lines[:-1], 'entry 5 is missing or cut short at the end'),
    'last cut short': (lambda lines: [*lines[:-1], lines[-1][:50]], 'entry 5 is missing or cut short at the end'),
    'all removed': (lambda lines: [], 'entries 1 to 5 are missing'),
    'a line of text': (lambda lines: [*lines[:2], 'a note\n', *lines[2:]], 'line 3 is not as it was written'),
    'first removed': (lambda lines: lines[1:], 'before line 1 an entry is missing'),
}

@pytest.mark.parametrize('edit', EDITS)
def test_an_edit_by_hand_is_named_by_file_and_line(tmp_path, edit, capsys):
    change,words = EDITS[edit]
    path = fill(tmp_path)
    path.write_text(''.join(change(path.read_text().splitlines(keepends=True))))
    edited = path.read_text()
    with pytest.raises(InputError) as e: read_ledger(path)
    assert words in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(InputError): note_comparison(result('new', optimizer='lion'), tmp_path/'new')
    assert path.read_text() == edited # nothing is repaired, and nothing added
    assert main(['ledger', 'list', '--ledger', str(path)]) == 2
    assert words in capsys.readouterr().err

def test_a_forged_line_with_a_right_hash_is_found(tmp_path):
    path = fill(tmp_path)
    lines = path.read_text().splitlines()
    for i,words in ((1, 'line 2 is not the one that line 3'), (4, 'entry 5 was replaced')):
        e = json.loads(lines[i]) | dict(mean=-.5)
        forged = [*lines[:i], json.dumps(e | dict(hash=entry_hash(e))), *lines[i + 1:]]
        path.write_text('\n'.join(forged) + '\n')
        with pytest.raises(InputError, match=words): read_ledger(path)

@pytest.mark.parametrize('kept', [1, 40, -2, -1])
def test_a_killed_write_is_no_edit(tmp_path, kept):
    path = fill(tmp_path, 3)
    whole,end = path.read_bytes(),(tmp_path/'.ledger.jsonl.end').read_bytes()
    note_comparison(result('late', optimizer='lion'), tmp_path/'late')
    line = path.read_bytes()[len(whole):]
    path.write_bytes(whole + line[:kept])                  # what a kill leaves
    (tmp_path/'.ledger.jsonl.end').write_bytes(end)
    log = read_chained(path)
    assert len(log.entries) == (4 if kept == -1 else 3) and len(log.torn) == (kept != -1)
    note_comparison(result('late', optimizer='lion'), tmp_path/'late')
    assert [e['arm'] for e in read_ledger(path)] == ['idea0', 'idea1', 'idea2', 'late'] # `--rerun` notes it again, once

def test_writers_that_are_killed_leave_a_ledger_that_can_be_read(tmp_path):
    path = tmp_path/'ledger.jsonl'
    code = 'import sys\nfrom lmnotes.chained_log import *\n' \
           'while True: append_chained(sys.argv[1], lambda e: [dict(x="y"*9000)]*2)'
    writers = [subprocess.Popen([sys.executable, '-c', code, str(path)]) for _ in range(2)]
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < 80_000:
        assert time.monotonic() < deadline, 'no entry was written'
        time.sleep(.02)
    for w in writers: w.send_signal(signal.SIGKILL)
    for w in writers: w.wait()
    append_chained(path, lambda entries: [dict(x='last')])
    numbers = [e['n'] for e in read_chained(path).entries]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 4

def test_a_change_of_seed_alone_is_no_idea(tmp_path):
    said = []
    for options in ({}, dict(seed=7), dict(seed=7, output_dir='x')):
        assert note_comparison(result('lucky', **options), tmp_path/'c', say=said.append) == []
    assert len(said) == 3 and all('by its seed alone' in s for s in said) and not (tmp_path/'ledger.jsonl').exists()

def test_the_same_idea_counts_again(tmp_path):
    for i,name in enumerate(('muon', 'other name', 'muon')):
        e, = note_comparison(result(name, mean=-.01*i, optimizer='muon'), tmp_path/f'c{i}')
        assert (e['asked'], e['confirms']) == (i + 1, None)
    assert len({e['idea'] for e in read_ledger(tmp_path/'ledger.jsonl')}) == 1
    assert note_comparison(result('muon', mean=-.02, optimizer='muon'), tmp_path/'c2') == [] # `--rerun`

def test_of_two_hundred_ideas_of_nothing_hardly_a_list_keeps_one(tmp_path):
    rng = np.random.default_rng(0)
    about = dict(baseline_key='k', options={}, question='', asked=1, confirms=None, seeds=[0], folder='')
    def idea(i): return result('x', mean=rng.normal(), p=rng.random())['differences'][0] | about | dict(n=i)
    lists = [[idea(i) for i in range(200)] for _ in range(100)]
    rows = [ledger_table(entries)['k'] for entries in lists]
    false = np.mean([any(r['survives'] for r in t) for t in rows])
    naive = np.mean([sum(r['naive'] == 'keep' for r in t) for t in rows])
    assert false <= .05 + 2*(.05*.95/100)**.5 and 90 < naive < 110

def test_confirm_takes_fresh_seeds_and_one_arm(tmp_path):
    path,asked = fill(tmp_path),{}
    note_comparison(result('wide', mean=-.03, seeds=(3, 9), dim=96), tmp_path/'wide')
    def compare(**keywords):
        asked.update(keywords)
        return SimpleNamespace(result=result('idea4', mean=-.02, seeds=keywords['seeds'], dropout=.4))
    done = confirm(5, path, compare, say=lambda line: None)
    assert asked['seeds'] == [10, 11, 12] and asked['arms'] == dict(base={}, idea4=dict(dropout=.4))
    assert asked['base'] == dict(dataset='prose') and asked['output_dir'].parent == tmp_path
    assert (done['second']['confirms'], done['second']['asked']) == (5, 2)
    assert 0 <= abs(done['shrunken']['effect']) <= abs(done['first']['mean'])
    with pytest.raises(InputError, match='is itself a confirmation'): confirm(7, path, compare)
