"Packing: full rows, nothing lost, nothing leaked, the same batches after a restart"
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lmnotes.core import InputError
from lmnotes.data.bin_packing import best_fit
from lmnotes.data.sequence_packing import (
    PackedDataset,
    PackedLoader,
    fill_rate,
    fit_to_rows,
    one_per_row,
    pack_sequences,
    padded_loader,
    unpack_batch,
)

real = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')
needs_real = pytest.mark.skipif(
    not (real / 'MANIFEST.json').is_file(),
    reason=f'no sample of the real datasets at {real}; set LMNOTES_DATA_DIR',
)

def learnt_from(ids, start): # an example that is learnt from a place on
    return dict(ids=ids, loss=np.arange(len(ids)) >= start)

def examples(n=60, vocab=97, longest=40, seed=0):
    g = np.random.default_rng(seed)
    def one():
        L = int(g.integers(3, longest))
        return learnt_from(g.integers(1, vocab, L).astype(np.int32), int(g.integers(1, L)))
    return [one() for _ in range(n)]

def targets(batches): # (token before, target) of every supervised place, sorted
    return sorted(
        (int(x), int(y))
        for b in batches
        for x, y in zip(b['input_ids'].flatten(), b['shift_labels'].flatten())
        if y != -100
    )

# ---- bins

@pytest.mark.parametrize('seed', range(12))
def test_every_document_once_and_no_row_too_long(seed):
    g = np.random.default_rng(seed)
    size = int(g.integers(2, 700))
    l = g.integers(1, size + 1, int(g.integers(1, 400)))
    bins = pack_sequences(l, size)
    assert (
        sorted(i for b in bins for i in b) == list(range(len(l)))
        and max(sum(l[i] for i in b) for b in bins) <= size
    )
    assert -(-l.sum() // size) <= len(bins) <= len(best_fit(l, size)) and bins == pack_sequences(
        list(map(int, l)), size
    )

@pytest.mark.parametrize('lengths,size,rows', [
    ([4, 4, 3, 3, 3, 3], 10, 2),
    ([10], 10, 1),
    ([1]*100, 10, 10),
    ([6]*7, 10, 7),
    ([], 10, 0),
    ([7, 5, 4, 3, 3, 3, 3, 2], 10, 3),
])
def test_small_cases_have_the_fewest_rows(lengths, size, rows):
    assert len(pack_sequences(lengths, size)) == rows

@pytest.mark.parametrize('lengths,size,words', [
    ([11], 10, 'document 0 has 11 tokens'),
    ([3, 0], 10, 'document 1 has length 0'),
    ([1], 0, 'at least 1 place'),
])
def test_what_cannot_be_packed_is_said(lengths, size, words):
    with pytest.raises(InputError, match=words):
        pack_sequences(lengths, size)

@needs_real
@pytest.mark.parametrize('name,bound', [('sst2', .995), ('gsm8k', .995), ('imdb', .97)])
def test_real_rows_fill_their_windows(name, bound):
    from lmnotes.benchmarks.bench_packing import packing_examples
    p = PackedDataset(packing_examples(name, real)[0], 512)
    assert (
        p.fill >= bound
        and p.n_cut == (0 if name != 'imdb' else p.n_cut)
        and (name != 'imdb' or p.n_cut > 0)
    )
    print(name, p)

# ---- long documents

def test_texts_are_cut_without_losing_a_target():
    e = learnt_from(np.arange(1, 1001), 0)
    got = [b for b, in PackedLoader(PackedDataset([e], 64), bs=3, shuffle=False)]
    assert targets(got) == [(i, i+1) for i in range(1, 1000)]

@pytest.mark.parametrize('n,start,size', [(100, 90, 32), (100, 50, 32), (40, 38, 8), (100, 5, 32)])
def test_long_prompts_keep_their_ends(n, start, size):
    (e,),_,cut,parted = fit_to_rows([learnt_from(np.arange(n), start)], size)
    first = e['loss'].argmax()
    assert (
        len(e['ids']) == size + 1
        and cut == n - size - 1
        and not parted
        and e['ids'][0] == 0
        and e['ids'][first] == start
        and e['ids'][first - 1] == start - 1
    )
    if n - start <= size - size//4: assert e['ids'][-1] == n - 1

# ---- batches

def test_packed_padded_and_alone_teach_the_same():
    es = examples()
    want = sorted(
        (int(a), int(b))
        for e in es
        for j, (a, b) in enumerate(zip(e['ids'][:-1], e['ids'][1:]))
        if e['loss'][j + 1]
    )
    packed = [b for b, in PackedLoader(PackedDataset(es, 64), bs=3, shuffle=False)]
    assert targets(packed) == want == targets(u for b in packed for u in unpack_batch(b))
    for longest in (True, False):
        assert (
            targets(b for (b,) in padded_loader(es, 64, longest=longest, bs=7, shuffle=False))
            == want
        )

def test_documents_are_numbered_and_padding_is_another():
    for b, in PackedLoader(PackedDataset(examples(), 64), bs=4, shuffle=False):
        for y,d in zip(b['shift_labels'], b['documents']):
            assert (d.diff() >= 0).all() and (d.diff() <= 1).all() and d[0] == 0
            n = int(d[y != -100].max())
            assert (y[d > n] == -100).all() and d.max() <= n + 1

@pytest.mark.parametrize('make', [
    lambda es: PackedLoader(PackedDataset(es, 64), bs=3, seed=1),
    lambda es: padded_loader(es, 64, bs=3, seed=1),
])
def test_any_batch_without_those_before_it(make):
    es = examples()
    whole = make(es)
    n = len(whole)*2 + 1
    whole = whole.new(n_batches=n)
    all_ = [b['input_ids'] for b, in whole]
    again = [b['input_ids'] for b, in make(es).new(n_batches=n, start=n-4)]
    assert all(torch.equal(a, b) for a, b in zip(all_[n - 4 :], again, strict=True)) and type(
        whole.new()
    ) is type(whole)
    docs = [
        sorted(
            np.concatenate(
                sum((whole.rows(k) for k in range(n)), [])[
                    e * len(whole.dataset) : (e + 1) * len(whole.dataset)
                ]
            )
        )
        for e in (0, 1)
    ]
    # an epoch, over borders of batches, is every document once
    assert docs[0] == docs[1] == list(range(len(es)))

def test_ranks_share_a_batch():
    p = PackedDataset(examples(), 64)
    one = PackedLoader(p, bs=6, seed=2).batch(3)[0]
    two = [PackedLoader(p, bs=3, seed=2, rank=r, world=2).batch(3)[0] for r in (0, 1)]
    assert all(torch.equal(one[k], torch.cat([t[k] for t in two])) for k in one)
    for loader in (PackedLoader(p, bs=2, rank=r, world=2, shuffle=False) for r in (0, 1)):
        assert all(set(b) == set(one) for b, in loader)

def test_nothing_to_learn_is_an_error():
    with pytest.raises(InputError, match='example 1 has no token to learn'):
        PackedDataset([learnt_from([1, 2, 3], 1), learnt_from([1, 2, 3], 3)], 8)
    with pytest.raises(InputError, match='the split is empty'):
        PackedDataset([], 8)

# ---- models

@pytest.mark.parametrize('name', ['standard', 'reversible', 'resonance', 'hybrid', 'rnn', 'tiny:qwen3', 'tiny:gpt2'])
def test_packed_equals_unpacked(name):
    from lmnotes.benchmarks.bench_packing import model_packing_errors
    b, = PackedLoader(PackedDataset(examples(12), 64), bs=2, shuffle=False).batch(0)
    v, = model_packing_errors([name], b, 97)
    assert v['loss_error'] <= 1e-5 and v['grad_error'] <= 1e-5 and v['grad_error_fp64'] <= 1e-10, v

def test_fill_counts_places():
    assert fill_rate(one_per_row([3, 5], 8), [3, 5], 8) == .5 and fill_rate([], [], 8) == 0
