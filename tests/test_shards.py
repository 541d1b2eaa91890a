"Shards: every fault in a line, no pickle opened, splits that share nothing, reading that holds nothing"
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lmnotes.app.cli import main
from lmnotes.app.size_advice import recommend
from lmnotes.core import InputError
from lmnotes.data.shards.data import shard_data
from lmnotes.data.shards.loader import ShardLoader, Shards, block_shuffle
from lmnotes.data.shards.split import split_shards
from lmnotes.data.shards.tokenize import tokenize_dataset
from lmnotes.data.shards.validate import (
    MAX_TOKEN_ID,
    find_anomalies,
    is_shards,
    open_shard,
    order_gain,
    scan_rows,
    shard_files,
    shard_splits,
    token_entropy,
    validate_shards,
)
from lmnotes.data.tokenizers import get_tokenizer
from lmnotes.training.train import train

def text_rows(n, L=1024, seed=0, vocab=400): # order and frequencies as text has them: words from a list, by Zipf's law
    g = np.random.default_rng(seed)
    words = [g.integers(0, vocab, g.integers(3, 9)) for _ in range(300)]
    flow = np.concatenate([words[i] for i in np.minimum(g.zipf(1.3, n*L//2), 300) - 1])[:n*L]
    return flow.reshape(n, L)

def make(folder, files=3, rows=8, dtype=np.uint16, L=1024, kind='npy'):
    folder.mkdir(parents=True, exist_ok=True)
    a = text_rows(files*rows, L).astype(dtype)
    for i in range(files):
        part = a[i*rows:(i+1)*rows]
        if kind == 'npy': np.save(folder/f'{i:03d}.npy', part)
        else: torch.save(torch.from_numpy(part), folder/f'{i:03d}.pt')
    return a

class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (Path(self.path),))

# ---- what is wrong with a file

def plain(p, t): p.write_bytes(pickle.dumps(Trap(t)))
def inside_npy(p, t): np.save(p, np.array([Trap(t)], dtype=object), allow_pickle=True)
def cut(p, t):
    if p.suffix == '.npy': np.save(p, np.ones((4, 64), np.int32))
    else: torch.save(torch.ones(4, 64, dtype=torch.int32), p)
    p.write_bytes(p.read_bytes()[:-90])
FAULTS = {
    'plain.npy': (plain, 'pickle'),
    'plain.pt': (plain, 'pickle'),
    'inside.npy': (inside_npy, 'pickle'),
    'inside.pt': (lambda p, t: torch.save(Trap(t), p), 'pickle'),
    'old.pt': (
        lambda p, t: torch.save(dict(a=Trap(t)), p, _use_new_zipfile_serialization=False),
        'pickle',
    ),
    'cut.npy': (cut, 'truncated'),
    'cut.pt': (cut, 'truncated'),
    'head.npy': (lambda p, t: p.write_bytes(b'\x93NUMPY\x01\x00'), 'head.npy'),
    'empty.pt': (lambda p, t: p.touch(), 'zero bytes'),
    'floats.npy': (lambda p, t: np.save(p, np.ones((2, 9))), 'float64 numbers'),
    'half.pt': (lambda p, t: torch.save(torch.ones(2, 9).bfloat16(), p), 'bfloat16 numbers'),
    'bools.npy': (lambda p, t: np.save(p, np.ones((2, 9), bool)), 'bool numbers'),
    'cube.npy': (lambda p, t: np.save(p, np.ones((2, 2, 2), int)), 'shape'),
    'norows.npy': (lambda p, t: np.save(p, np.ones((0, 9), int)), 'no rows'),
    'zip.npy': (lambda p, t: np.savez(open(p, 'wb'), a=np.ones(3)), 'not a .npy'),
    'list.pt': (lambda p, t: torch.save([1, 2], p), 'not a tensor'),
}

@pytest.mark.parametrize('name', FAULTS)
def test_every_fault_is_a_line_and_nothing_runs(tmp_path, name):
    make(tmp_path/'s')
    write,word = FAULTS[name]
    write(tmp_path/'s'/name, tmp_path/'sprung')
    report = validate_shards(tmp_path/'s')
    line, = report.problems
    assert (
        name in line
        and word in line
        and '\n' not in line
        and len(line) < 250
        and not (tmp_path / 'sprung').exists()
    )
    assert report.rows == 24 and not report.ok
    with pytest.raises(InputError, match=name):
        Shards(tmp_path/'s')
    with pytest.raises(InputError, match=name):
        split_shards(tmp_path/'s', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_unequal_lengths_and_ids_beyond_the_vocabulary(tmp_path):
    make(tmp_path)
    np.save(tmp_path/'long.npy', text_rows(2, 2048).astype(np.uint16))
    np.save(
        tmp_path / 'big.npy', np.where(np.arange(1024) == 3, 70_000, text_rows(1)).astype(np.int32)
    )
    np.save(tmp_path/'minus.npy', (text_rows(2) - 1).astype(np.int64))
    lines = {l.split()[0]: l for l in validate_shards(tmp_path, 500).problems}
    assert (
        'rows of 2048 tokens, the others of 1024' in lines.pop('long.npy')
        and '1 tokens outside 0..499' in lines.pop('big.npy')
        and 'tokens outside' in lines.pop('minus.npy')
        and not lines
    )
    with pytest.raises(InputError, match='one length in a folder'):
        Shards(tmp_path)

def test_nothing_there(tmp_path):
    for p,words in ((tmp_path/'no', 'there is no'), (tmp_path, 'no shard at')):
        assert not is_shards(p)
        with pytest.raises(InputError, match=words):
            validate_shards(p)

# ---- numbers

@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize('L', [8, 63])
def test_counts_are_exact_with_and_without_numba(dtype, L):
    a = np.random.default_rng(0).integers(0, 120, (5, L)).astype(dtype)
    a[1] = a[0]
    fast,slow = scan_rows(a, 100), scan_rows(a, 100, compiled=False)
    assert (
        (fast[0] == slow[0]).all()
        and (fast[0] == np.bincount(a[a < 100], minlength=100)).all()
        and fast[2] == slow[2] == (a >= 100).sum()
    )
    for _,h,_ in (fast, slow): assert len(set(h.tolist())) == 4 and h[0] == h[1]

def test_hashes_of_different_types_agree_when_asked():
    a = text_rows(3)
    h = [scan_rows(a.astype(d), words=False)[1].tolist() for d in (np.uint16, np.int32, np.int64)]
    assert h[0] == h[1] == h[2]

def test_a_report_sums_up(tmp_path):
    a = make(tmp_path)
    r = validate_shards(tmp_path)
    assert (
        (r.rows, r.length, r.tokens, r.unique, r.vocab)
        == (24, 1024, a.size, len(np.unique(a)), a.max() + 1)
        and r.ok
        and not r.warnings
    )
    assert (
        abs(r.mean - a.mean()) < 1e-9
        and abs(r.entropy - token_entropy(np.bincount(a.flatten()))) < 1e-9
        and json.dumps(r.as_dict())
    )

def test_copies_across_types_are_found(tmp_path):
    a = make(tmp_path, 1)
    torch.save(torch.from_numpy(a[:3].astype(np.int64)), tmp_path/'b.pt')
    r = validate_shards(tmp_path)
    assert r.duplicates == 3 and '3 of 11 rows are copies' in r.warnings[0]

def test_noise_and_patterns():
    g,a = np.random.default_rng(1),text_rows(4, 8192)
    said = lambda a: ' '.join(find_anomalies(scan_rows(a)[0], list(a)))
    assert said(a) == '' and order_gain(a[0]) > .1
    assert (
        'random noise' in said(g.integers(0, 50_000, a.shape))
        and 'random noise' in said(g.permuted(a, axis=1))
        and 'repeated data' in said(np.tile(a[:, :32], (1, 256)))
    )

# ---- split

@pytest.mark.parametrize('files,ratio', [(1, .01), (1, .5), (4, .25), (4, .3), (10, .01)])
@pytest.mark.parametrize('kind', ['npy', 'pt'])
def test_a_split_is_links_that_share_nothing(tmp_path, files, ratio, kind):
    a = make(tmp_path/'s', files, kind=kind, dtype=np.int32)
    done = split_shards(tmp_path/'s', tmp_path/'o', ratio)
    inodes = {os.stat(f).st_ino for f in shard_files(tmp_path/'s')}
    assert {os.stat(f).st_ino for f in shard_files(tmp_path/'o')} == inodes
    t,v = (Shards(p) for p in shard_splits(tmp_path/'o').values())
    assert (done['train'], done['validation']) == (len(t), len(v)) and abs(
        len(v) - ratio * len(a)
    ) <= max(1, ratio * len(a) / 4)
    assert [r.tolist() for s in (t, v) for r in s] == a.tolist()

def test_copies_do_not_stand_on_both_sides(tmp_path):
    a = make(tmp_path/'s', 2, 10)
    np.save(tmp_path/'s/001.npy', np.concatenate([a[:4], a[14:20]]))
    done = split_shards(tmp_path/'s', tmp_path/'o', .5)
    t,v = (Shards(p) for p in shard_splits(tmp_path/'o').values())
    assert (
        done['copies_left_out'] == 4 and [r.tolist() for r in v] == a[14:].tolist() and len(t) == 10
    )
    np.save(tmp_path/'s/001.npy', a[:10])
    with pytest.raises(InputError, match='stands in the training part too'):
        split_shards(tmp_path/'s', tmp_path/'o2', .5)
    assert not (tmp_path/'o2').exists()

def test_a_border_goes_back_to_where_a_document_begins(tmp_path):
    a = text_rows(20).astype(np.uint16)
    a[14, -1] = 999
    (tmp_path/'s').mkdir()
    np.save(tmp_path/'s/0.npy', a)
    (tmp_path/'s/meta.json').write_text(json.dumps(dict(eos=999, vocab_size=1000)))
    done = split_shards(tmp_path/'s', tmp_path/'o', .1)
    assert done == dict(by='document', train=15, validation=5, copies_left_out=0)

# ---- reading

@pytest.mark.parametrize('n', [1, 15, 16, 17, 1023, 1024, 1040, 3001])
def test_an_epoch_is_every_window_once(n):
    for e in (0, 1):
        assert sorted(block_shuffle(range(n), n, 3, e)) == list(range(n))
    if n > 16: assert (block_shuffle(range(n), n, 3, 0) != block_shuffle(range(n), n, 3, 1)).any()

def test_any_batch_without_those_before_it(tmp_path):
    a = make(tmp_path, 5, 7, kind='pt', dtype=np.int32)
    dl = ShardLoader(Shards(tmp_path, 511), bs=4, seed=2, n_batches=60)
    assert len(dl.dataset) == 70
    all_ = [b for b, in dl]
    for k in (59, 0, 18):
        assert torch.equal(
            ShardLoader(Shards(tmp_path, 511), bs=4, seed=2, n_batches=60).batch(k)[0][
                'shift_labels'
            ],
            all_[k]['shift_labels'],
        )
    assert torch.equal(
        torch.cat([dl.new(bs=2, rank=r, world=2).batch(18)[0]['input_ids'] for r in (0, 1)]),
        all_[18]['input_ids'],
    )
    seen = torch.cat([b['input_ids'] for b in all_])[:70]
    assert sorted(map(tuple, seen.tolist())) == sorted(
        map(tuple, np.concatenate([a[:, :511], a[:, 511:1022]]).tolist())
    )
    valid = torch.cat([b['input_ids'] for b, in dl.new(shuffle=False, n_batches=None)])
    assert valid.tolist() == a[:, :1022].reshape(-1, 511).tolist()

def test_memory_does_not_grow_with_files(tmp_path):
    from lmnotes.benchmarks.bench_shards import anonymous_bytes
    if anonymous_bytes() is None: pytest.skip('the system does not tell')
    one = text_rows(1, 2**19).astype(np.uint16)
    for i in range(120): np.save(tmp_path/f'{i}.npy', np.roll(one, i)) # 120 MB
    dl = ShardLoader(Shards(tmp_path), bs=1, n_batches=120)
    dl.batch(0)
    base = anonymous_bytes()
    worst = max(anonymous_bytes() - base for b, in dl)
    assert worst < 40*2**20

# ---- making and advising

def test_tokenize_validate_train_windows(tmp_path):
    meta = tokenize_dataset(
        'prose', tmp_path / 't', 'bpe', length=512, vocab_size=400, limit=80, rows_per_file=16
    )
    for s,d in shard_splits(tmp_path/'t').items():
        r = validate_shards(d).check()
        assert (
            r.rows == meta['splits'][s]['rows']
            and r.vocab <= 400
            and 0 <= meta['splits'][s]['left_out'] < 512
        )
    assert (
        len(shard_files(tmp_path / 't/train')) > 1
        and open_shard(shard_files(tmp_path / 't/train')[0]).dtype == np.uint16
    )
    assert get_tokenizer(tmp_path/'t/tokenizer').eos_token_id == meta['eos']
    with pytest.raises(InputError, match='exists already'):
        tokenize_dataset('prose', tmp_path/'t')
    with pytest.raises(InputError, match='divided already'):
        split_shards(tmp_path/'t', tmp_path/'x')

def test_advice_has_a_command_and_costs(tmp_path):
    make(tmp_path)
    r = recommend(tmp_path, vocab_size=400, device='cpu', memory=10**9)
    best, = (row for row in r['rows'] if row['recommended'])
    assert best['size'] == 'tiny'
    assert len({(row['size'], row['batch_size']) for row in r['rows']}) == len(r['rows']) > 2
    for row in r['rows']:
        assert row['seconds'] > 0 and 16*row['parameters'] < row['memory_bytes'] <= 10**9
        assert row['command'].startswith('lmnotes train --data_path')

def test_tokens_beyond_any_vocabulary(tmp_path):
    a = text_rows(2).astype(np.int64)
    a[0, 0] = MAX_TOKEN_ID
    np.save(tmp_path/'a.npy', a)
    assert 'outside' in validate_shards(tmp_path).problems[0]

def test_a_divided_folder_counts_each_row_once(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/'a').mkdir()
    for i in range(2): np.save(tmp_path/f'a/{i}.npy', rng.integers(0, 300, (50, 64)).astype(np.uint16))
    split_shards(tmp_path/'a', tmp_path/'b', .1)
    found = {p: validate_shards(tmp_path/p) for p in ('b', 'b/train', 'b/validation')}
    assert {p: (r.rows, r.duplicates) for p,r in found.items()} == {
        'b': (100, 0), 'b/train': (90, 0), 'b/validation': (10, 0)}

def test_shards_keep_the_tokenizer_they_were_made_with(tmp_path):
    tokenize_dataset('recall', tmp_path/'t', tokenizer='bytes', length=256, limit=200)
    one = tmp_path/'one'
    shutil.copytree(tmp_path/'t/train', one)
    shutil.copytree(tmp_path/'t/tokenizer', one/'tokenizer')
    shutil.copy(tmp_path/'t/meta.json', one)
    split_shards(one, tmp_path/'divided', .1)
    data = shard_data(tmp_path/'divided', device='cpu')
    assert data.tokenizer is not None and data.sample_prompt(4)
    changed = tmp_path/'divided/tokenizer/tokenizer.json'
    changed.write_text(changed.read_text(encoding='utf-8') + ' ', encoding='utf-8')
    with pytest.raises(InputError, match='not the tokenizer that the shards were made with'):
        shard_data(tmp_path/'divided', device='cpu')
    assert shard_data(tmp_path/'divided', tokenizer=str(one/'tokenizer'), device='cpu').tokenizer is not None

def trained_on(shards, folder):
    train(data_path=str(shards), model='standard', max_steps=2, batch_size=2, device='cpu', quiet=True,
          output_dir=str(folder))
    return ['--model', str(folder), '--device', 'cpu']

def test_a_run_on_shards_generates_and_is_evaluated(tmp_path, capsys):
    tokenize_dataset('recall', tmp_path/'whole', tokenizer='bytes', length=128, limit=100)
    split_shards(tmp_path/'whole/train', tmp_path/'divided', .1)
    model = trained_on(tmp_path/'divided', tmp_path/'run')
    assert (tmp_path/'run/final/tokenizer.json').is_file()
    assert main(['generate', *model, '--max_new_tokens', '4']) == 0
    assert main(['evaluate', *model, '--tasks', 'lm', '--datasets', 'prose', '--limit', '2']) == 0
    assert 'bits/byte' in capsys.readouterr().out

def test_a_run_on_shards_without_tokenizer_says_so(tmp_path, capsys):
    tokenize_dataset('recall', tmp_path/'bare', tokenizer='bytes', length=128, limit=100)
    shutil.rmtree(tmp_path/'bare/tokenizer')
    model = trained_on(tmp_path/'bare', tmp_path/'run')
    for command in ('generate', 'evaluate'):
        capsys.readouterr()
        assert main([command, *model]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and 'final has no tokenizer' in said[0]
    assert 'no tokenizer lies beside the shards' in ' '.join(shard_data(tmp_path/'bare', device='cpu').notes)
