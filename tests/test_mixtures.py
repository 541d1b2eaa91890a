"Mixtures: proportions that hold, draws that do not remember, lists that fit"
import numpy as np
import pytest
import torch

from lmnotes.core import InputError
from lmnotes.data.dataloader import BlockLoader, Blocks
from lmnotes.data.mixtures.data import (
    Mixture,
    MixtureLoader,
    SequentialLoader,
    cap_rates,
    check_rates,
    counts_before,
    draw_sources,
    find_mixture,
    mean_and_spread,
    mixture_name,
    round_percent,
    size_rates,
    stack_rows,
    token_rates,
)
from lmnotes.data.sequence_packing import PackedDataset, PackedLoader, padded_loader

def source(base, n=50, T=8, **kw):
    return BlockLoader(Blocks(base + np.arange(n*T + 1) % 100, T), **kw)
def mixed(rates=(.7, .3), **kw):
    return MixtureLoader(Mixture(dict(a=source(0), b=source(100, 200)), rates), **kw)

@pytest.mark.parametrize('rates', [[.7, .3], [.5, .5], [.05]*20, [.9, .09, .01], [.999, .001], [1/3]*3])
@pytest.mark.parametrize('seed', [0, 7])
def test_proportions_within_one_per_cent_over_10000_draws(rates, seed):
    s,i = draw_sources(0, 10_000, np.array(rates), seed)
    share = np.bincount(s, minlength=len(rates))/10_000
    assert np.abs(share - rates).max() <= .01 and np.abs(share - rates).max() <= .0015
    for j in range(len(rates)):
        assert (i[s == j] == np.arange((s == j).sum())).all()

def test_draws_are_the_same_after_a_resume():
    p = np.array([.6, .25, .15])
    s,i = draw_sources(0, 10_000, p, 5)
    for at in (0, 1, 999, 1000, 1001, 5555, 9990):
        a,b = draw_sources(at, 10, p, 5)
        assert (a == s[at:at+10]).all() and (b == i[at:at+10]).all()
        assert (counts_before(at, p, 5) == np.bincount(s[:at], minlength=3)).all()
    assert (draw_sources(0, 1000, p, 6)[0] != s[:1000]).any()

def test_far_draws_are_as_near_as_the_first():
    p = np.array([.7, .3])
    s,i = draw_sources(10**9, 4, p)
    assert abs(counts_before(10**9, p)[0]/10**9 - .7) < 1e-6 and i.max() < 10**9

def test_batches_resume_and_ranks_share():
    dl = mixed(bs=8, n_batches=100, seed=3)
    all_ = [b['input_ids'] for b, in dl]
    again = [b['input_ids'] for b, in mixed(bs=8, n_batches=100, seed=3, start=61)]
    assert all(torch.equal(a, b) for a,b in zip(all_[61:], again, strict=True))
    two = [
        mixed(bs=4, n_batches=100, seed=3, rank=r, world=2).batch(42)[0]['input_ids']
        for r in (0, 1)
    ]
    assert torch.equal(torch.cat(two), all_[42])

def test_realised_is_what_came():
    dl = mixed(bs=10, n_batches=1000)
    r = dl.realised(137)
    s = np.concatenate([dl.idxs(k)[0] for k in range(137)])
    assert r['a']['draws'] == (s == 0).sum()
    came = sum(int((dl.batch(k)[0]['input_ids'][:,0] < 100).sum()) for k in range(20))
    assert came == dl.realised(20)['a']['draws']
    assert (
        abs(dl.realised()['a']['examples'] - 0.7) < 0.01
        and abs(sum(v['tokens'] for v in dl.realised().values()) - 1) < 1e-9
    )

def test_every_example_of_a_source_once_a_round():
    dl = mixed((.5, .5), bs=10, n_batches=100)
    x = torch.cat([b['input_ids'] for b, in dl])
    of_a = x[x[:,0] < 100]
    rounds = [sorted(map(tuple, of_a[50*r:50*r+50].tolist())) for r in range(10)]
    assert all(r == rounds[0] for r in rounds) and len(of_a) == 500

def test_by_tokens():
    es = [dict(ids=np.arange(40) + 300, loss=np.arange(40) >= 1)]*30
    m = Mixture(
        dict(short=source(0), packed=PackedLoader(PackedDataset(es, 80))), [0.5, 0.5], by='tokens'
    )
    r = MixtureLoader(m, bs=10, n_batches=1000).realised()
    assert abs(r['packed']['tokens'] - .5) < .01 and r['packed']['examples'] < .1
    assert np.allclose(token_rates([.2, .8], [1, 1]), [.2, .8])

def test_rows_of_all_kinds_stand_in_one_batch():
    es = [dict(ids=np.arange(n) + 200, loss=np.arange(n) >= 1) for n in (9, 5, 3, 6, 7)]
    m = Mixture(
        dict(
            plain=source(0),
            packed=PackedLoader(PackedDataset(es, 16)),
            padded=padded_loader(es, 12),
        ),
        [0.4, 0.3, 0.3],
    )
    for b, in MixtureLoader(m, bs=6, n_batches=8):
        assert set(b) == {'input_ids', 'shift_labels', 'documents'} and {
            t.shape for t in b.values()
        } in (
            {(6, 16)},
            {(6, 8)},
        )
        alone = b['input_ids'][:,0] < 100
        assert (
            (b['shift_labels'][alone][:, 8:] == -100).all()
            and (b['documents'][alone][:, :8] == 0).all()
            and (b['documents'][alone][:, 8:] == 1).all()
        )
    from lmnotes.models import build_model
    assert torch.isfinite(build_model('standard', size='tiny', vocab_size=320)(**b).loss)

def test_flattening():
    assert (
        np.allclose(size_rates([4, 1]), [0.8, 0.2])
        and np.allclose(size_rates([4, 1], 2), [2 / 3, 1 / 3])
        and np.allclose(size_rates([10**12, 1], 1e12), 0.5)
    )
    p = size_rates([10**6, 100, 1], 2, cap=.5)
    assert p.max() <= .5 + 1e-9 and abs(p.sum() - 1) < 1e-9 and np.isclose(p[1]/p[2], 10)
    assert np.allclose(cap_rates(np.array([.5, .5]), .5), .5)

@pytest.mark.parametrize('names,rates,words', [
    ('ab', [.7, .2], 'must sum to 1'),
    ('ab', [.7, .3 + 2e-6], 'must sum to 1'),
    ('ab', [1.], '2 datasets and 1 mixture rates'),
    ('a', [.5, .5], '1 datasets and 2'),
    ('ab', [1., 0.], 'above 0'),
    ('ab', ['x', 1], 'are numbers'),
    ('ab', [float('nan'), 1], 'above 0'),
])
def test_rates_that_do_not_fit(names, rates, words):
    with pytest.raises(InputError, match=words) as e:
        check_rates(names, rates)
    assert '\n' not in str(e.value)

def test_rates_may_be_off_by_rounding():
    assert check_rates('abc', [.333333, .333333, .3333333]).sum() == pytest.approx(1, abs=1e-15)

@pytest.mark.parametrize('args,words', [
    ((['imdb', 'sst2'], [None]), '2 datasets and 1 dataset_configs'),
    ((['imdb', 'glue'], ['None', 'sst3']), "did you mean 'sst2'"),
    ((['imbd', 'sst2'],), "did you mean 'imdb'"),
    ((['imdb', 'imdb'],), 'named twice'),
    ((['imdb'],), 'at least two'),
    ((['imdb', 'sst2'], None, [.5, .6]), 'must sum to 1'),
])
def test_lists_that_do_not_fit(args, words):
    with pytest.raises(InputError, match=words):
        find_mixture(*args)

def test_names():
    found,p = find_mixture(['imdb', 'glue'], [None, 'sst2'], ['0.7', '0.3'])
    assert mixture_name(found, p) == 'mix_imdb-sentiment-70_glue-sentiment-30'
    for r in ([1/3]*3, [1/7]*7, [.005, .995], [.125]*8):
        assert (
            sum(round_percent(r)) == 100
            and np.abs(np.array(round_percent(r)) - 100 * np.array(r)).max() < 1
        )

def test_a_sample_holds_every_source_by_its_weight():
    parts = dict(a=source(0, 50, shuffle=False), b=source(100, 200, shuffle=False, bs=3))
    whole = SequentialLoader(parts, [.7, .3])
    part = whole.sampled(20)
    first = [[b['input_ids'][:,0].tolist() for b, in dl] for dl in part.loaders]
    assert [dl.n_rows for dl in part.loaders] == [14, 6] and part.n_rows == 20 and len(whole.dataset) == 250
    assert [part.source_of(k) for k in range(len(part))] == [0]*2 + [1]*2
    assert [b['input_ids'][:,0].tolist() for b, in part] == sum(first, [])
    assert [part.batch(k)[0]['input_ids'].tolist() for k in range(4)] == [b['input_ids'].tolist() for b, in part]
    again = SequentialLoader({n: dl.new(bs=7) for n,dl in parts.items()}, [.7, .3]).sampled(20)
    rows = lambda dl: torch.cat([b['input_ids'] for b, in dl])
    assert torch.equal(rows(again), rows(part)) # for any batch size
    assert mean_and_spread(dict(a=dict(loss=1.), b=dict(loss=2.))) == dict(mean=dict(loss=1.5), spread=dict(loss=.5))
    with pytest.raises(InputError, match='no source was measured'):
        mean_and_spread({})

def test_sources_of_one_kind_stay_as_they_were():
    assert set(mixed(bs=2).batch(0)[0]) == {'input_ids', 'shift_labels'}
    assert set(
        stack_rows([dict(input_ids=torch.ones(1, 3), shift_labels=torch.ones(1, 3))] * 2)
    ) == {
        'input_ids',
        'shift_labels',
        'documents',
    }

def test_shares_are_those_of_the_steps_that_were_made(tmp_path):
    "Though the run is stopped early"
    from lmnotes.training.train import train
    tiny = dict(dim=16, n_layer=1, n_head=2, max_length=32, batch_size=2, limit=40, eval_max_batches=1, device='cpu')
    run = train(quiet=True, datasets=('opinions', 'recall'), mode='pretrain', max_steps=40, eval_steps=2,
                learning_rate=1e-9, metric_for_best_model='accuracy', early_stopping_patience=1,
                output_dir=str(tmp_path/'r'), **tiny)
    steps,realised = run.summary['steps'],run.summary['realised']
    assert 'early stopping' in run.summary['stopped'] and steps < 40, run.summary
    assert sum(s['draws'] for s in realised.values()) == 2*steps
