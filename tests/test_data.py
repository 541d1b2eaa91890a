"""What cuts across data: real rows, a root in hub layout, the same data in another process, and wrong input."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmnotes.core import InputError
from lmnotes.data.catalog import catalog, find_dataset
from lmnotes.data.dataloader import BlockLoader
from lmnotes.data.dataset_splits import load_documents, load_rows, scored_documents, scored_rows
from lmnotes.data.load import load_data
from lmnotes.data.token_encoding import document_bytes, encode_documents, token_bytes
from lmnotes.data.tokenizers import get_tokenizer

real = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')
needs_real = pytest.mark.skipif(
    not (real / 'MANIFEST.json').is_file(), reason=f'no sample of the real datasets at {real}; set LMNOTES_DATA_DIR'
)

@pytest.fixture
def root(tmp_path):
    "A root in hub layout with a few rows of gsm8k, as jsonl, so that pyarrow is not needed"
    home = tmp_path/'hub/openai__gsm8k/main'
    home.mkdir(parents=True)
    rows = [
        dict(question=f'What is {i} plus 1?', answer=f'{i}+1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}')
        for i in range(200)
    ]
    for split,part in dict(train=rows[:160], test=rows[160:]).items():
        (home/f'{split}.jsonl').write_text('\n'.join(map(json.dumps, part)))
    return tmp_path/'hub'

# ---- real rows

@needs_real
@pytest.mark.parametrize('name', [
    'wikitext', 'wikitext/wikitext-2-v1', 'enwik8', 'enwik8/enwik8', 'gsm8k', 'imdb', 'tiny_shakespeare', 'squad',
    'sst2',
])
def test_real_documents(name):
    splits,notes = load_documents(find_dataset(name), real)
    assert set(splits) == {'train', 'validation'} and all(d.strip() for s in splits.values() for d in s)
    if name not in ('sst2', 'squad'):
        assert not set(splits['train']) & set(splits['validation']) # those two repeat themselves as published
    assert bool(notes) == (name not in ('wikitext', 'wikitext/wikitext-2-v1', 'sst2'))

@needs_real
def test_wikitext_has_its_articles(): # Merity et al. 2016, table 1: 600 training and 60 validation articles
    splits,_ = load_documents(find_dataset('wikitext/wikitext-2-v1'), real)
    assert [len(splits[s]) for s in ('train', 'validation')] == [600, 60]

@needs_real
def test_enwik8_keeps_every_byte():
    ds = find_dataset('enwik8')
    splits,_ = load_documents(ds, real)
    assert splits['train'][0] + splits['validation'][0] == load_rows(ds, real)['train'][0]['text']

@needs_real
def test_label_words_come_from_the_data():
    for name in ('imdb', 'sst2'):
        ds = find_dataset(name)
        rows = load_rows(ds, real)['train']
        assert {ds.target(r) for r in rows} == {' negative', ' positive'}
        assert all(ds.prompt(r).endswith('Sentiment:') for r in rows[:20])

@needs_real
@pytest.mark.parametrize('name', ['wikitext', 'enwik8', 'gsm8k'])
def test_real_batches(name):
    data = load_data(name, data_dir=real, bs=4, max_length=64, limit=50, device='cpu')
    assert data.train_ids.numel() + data.valid_ids.numel() == sum(len(d.encode()) + 1 for d in sample_of(name))
    x, = data.train.batch(3)
    assert x['input_ids'].shape == (4, 64) and 0 <= x['input_ids'].min() and x['input_ids'].max() < data.vocab_size

def sample_of(name): return sum(load_documents(find_dataset(name), real, limit=50)[0].values(), [])

# ---- hub layout

def test_hub_layout(root, monkeypatch):
    data = load_data('gsm8k', data_dir=root, device='cpu')
    assert data.name == 'openai/gsm8k/main' and 'held out by content hash' in data.notes[0]
    monkeypatch.setenv('LMNOTES_DATA_DIR', str(root))
    same = load_data('math', device='cpu')
    assert same.fingerprint == data.fingerprint and same.spec['data_dir'] == str(root)
    assert load_data('recall', device='cpu').spec['data_dir'] is None

def test_test_rows_are_never_trained_on(root):
    data = load_data('gsm8k', data_dir=root, tokenizer='bpe', vocab_size=300, device='cpu')
    text = data.tokenizer.decode(data.train_ids) + data.tokenizer.decode(data.valid_ids)
    assert 'What is 150 plus' in text and 'What is 170 plus' not in text

@pytest.mark.parametrize('tokenizer,vocab_size', [('bytes', None), ('chars', None), ('bpe', 400)])
def test_spec_brings_the_data_back(root, tokenizer, vocab_size):
    data = load_data(
        'gsm8k',
        data_dir=root,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        bs=2,
        max_length=32,
        seed=3,
        limit=100,
        device='cpu',
    )
    again = load_data(**json.loads(json.dumps(data.spec)))
    assert again.fingerprint == data.fingerprint and torch.equal(
        again.train.batch(5)[0]['input_ids'], data.train.batch(5)[0]['input_ids']
    )
    assert (
        data.vocab_size == len(data.tokenizer) == len(data.token_bytes)
        and data.tokenizer.pad_token_id != data.tokenizer.eos_token_id
    )

# ---- order

def seen(dl): return [b['input_ids'].tolist() for b, in dl]

def test_order_over_epochs_ranks_and_restarts():
    blocks = load_data('recall', max_length=64, bs=4, limit=300, device='cpu').train_blocks
    n = len(blocks)//4*2 + 3 # over two epochs
    whole = seen(BlockLoader(blocks, bs=8, seed=5, n_batches=n))
    ranks = [seen(BlockLoader(blocks, bs=2, seed=5, n_batches=n, rank=r, world=4)) for r in range(4)]
    assert [sum(parts, []) for parts in zip(*ranks)] == whole
    assert seen(BlockLoader(blocks, bs=8, seed=5, n_batches=n, start=n-2)) == whole[-2:]

def test_each_window_once_an_epoch():
    data = load_data('recall', max_length=64, bs=4, limit=300, device='cpu')
    n = len(data.train_blocks)
    rows = sum(seen(BlockLoader(data.train_blocks, bs=1, n_batches=2*n)), [])
    assert sorted(rows[:n]) == sorted(rows[n:]) == sorted(data.train_blocks[list(range(n))]['input_ids'].tolist())
    assert rows[:n] != rows[n:]
    assert sum(seen(data.valid), []) == data.valid_blocks[list(range(len(data.valid_blocks)))]['input_ids'].tolist()

def test_another_process_has_the_same_data():
    "Also with another hash seed, and on a machine without `datasets` and `pyarrow`"
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from lmnotes.data.load import load_data\n"
        "d = load_data('arithmetic', tokenizer='bpe', vocab_size=400, limit=500, "
        "device='cpu'); print(d.fingerprint, d.train.batch(7)[0]['input_ids'].sum().item())"
    )
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env=dict(os.environ, PYTHONHASHSEED='7'),
        capture_output=True,
        text=True,
    )
    d = load_data('arithmetic', tokenizer='bpe', vocab_size=400, limit=500, device='cpu')
    assert out.stdout.split() == [d.fingerprint, str(d.train.batch(7)[0]['input_ids'].sum().item())], out.stderr

# ---- tokenizers

def test_every_tokenizer_counts_the_same_bytes(root):
    docs = load_documents(find_dataset('gsm8k'), root)[0]['train']
    for name in ('bytes', 'chars', 'bpe'):
        tok = get_tokenizer(name, lambda: docs)
        ids = encode_documents(tok, docs)
        assert token_bytes(tok)[torch.from_numpy(ids)].sum() == sum(len(d.encode()) for d in docs)
        ends = np.flatnonzero(ids == tok.eos_token_id)
        assert len(ends) == len(docs)
        assert tok.decode(ids[:ends[0]]) == docs[0]

def test_saved_tokenizer_is_the_same_data(root, tmp_path):
    data = load_data('gsm8k', data_dir=root, tokenizer='bpe', vocab_size=300, device='cpu')
    data.tokenizer.save_pretrained(tmp_path/'tok')
    again = load_data('gsm8k', data_dir=root, tokenizer=tmp_path/'tok', device='cpu')
    assert torch.equal(again.train_ids, data.train_ids) and torch.equal(again.token_bytes, data.token_bytes)

# ---- the catalog

@pytest.mark.parametrize('id', list(catalog))
def test_every_class_says_what_it_must(id):
    ds = catalog[id](catalog[id].config or next(iter(catalog[id].configs), None))
    assert (
        ds.id == id
        and ds.role in ('train', 'eval', 'both')
        and ds.name.startswith(id)
        and find_dataset(ds.name).name == ds.name
    )

# ---- wrong input: one line, and the fix in it

def own(tmp, name, text):
    (tmp/name).write_text(text, encoding='utf-8')
    return tmp/name

@pytest.mark.parametrize('kw,says', [
    (dict(dataset='pros'), "did you mean 'prose'"),
    (dict(dataset='gsm8k', config='mian'), "did you mean 'main'"),
    (dict(dataset='gsm8k', data_dir='{tmp}/hbu'), "did you mean 'hub'"),
    (dict(dataset='imdb', data_dir='{tmp}/hub'), "'stanfordnlp/imdb' is not under"),
    (dict(dataset='gsm8k', config='socratic', data_dir='{tmp}/hub'), "did you mean 'main'|there is: main"),
    (dict(data_path='{tmp}/nothing'), 'there is no'),
    (dict(data_path='{tmp}/zero.txt'), 'zero bytes'),
    (dict(data_path='{tmp}/short.txt'), 'tokens are too few'),
    (dict(data_path='{tmp}/other.jsonl'), 'name one with --text_column'),
    (dict(data_path='{tmp}/other.jsonl', text_column='bdoy'), "did you mean 'body'"),
    (dict(data_path='{tmp}/empty'), 'no file under'),
    (dict(dataset='recall', max_length=0), 'at least 1'),
    (dict(dataset='recall', bs=0), 'at least 1'),
    (dict(dataset='recall', limit=0), 'at least 1'),
    (dict(dataset='recall', tokenizer='byts'), "did you mean 'bytes'"),
    (dict(dataset='recall', vocab_size=300), "belongs to the tokenizer 'bpe'"),
    (dict(dataset='recall', tokenizer='bpe', vocab_size=90), 'too small'),
])
def test_wrong_input(root, tmp_path, monkeypatch, kw, says):
    own(tmp_path, 'zero.txt', '')
    own(tmp_path, 'short.txt', 'one line\n')
    own(tmp_path, 'other.jsonl', '{"body": "b"}\n')
    (tmp_path/'empty').mkdir()
    kw = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k,v in kw.items()}
    with pytest.raises(InputError, match=says) as e:
        load_data(**{'device': 'cpu', **kw})
    assert '\n' not in str(e.value)

# ---- kept for evaluation

@pytest.fixture
def exams(tmp_path):
    "A root with sixty questions of MMLU-Pro as a test, and as many of MMLU as a validation part"
    for home, split, row in (
        (
            'TIGER-Lab__MMLU-Pro/default',
            'test',
            lambda i: dict(
                question=f'What is {i} plus one?', options=[str(i + 1), str(i)], answer='A', answer_index=0
            ),
        ),
        (
            'cais__mmlu/all',
            'validation',
            lambda i: dict(
                question=f'What is {i} less one?', subject='s', choices=[str(i), str(i - 1), '7', '9'], answer='B'
            ),
        ),
    ):
        (tmp_path/home).mkdir(parents=True)
        (tmp_path/home/f'{split}.jsonl').write_text('\n'.join(json.dumps(row(i)) for i in range(60)))
    return tmp_path

ways = dict(
    sft=lambda **kw: load_data(mode='sft', **kw), pretrain=load_data, masked=lambda **kw: load_data(masked=True, **kw)
)

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('name', ['mmlu_pro', 'mmlu'])
def test_no_mode_trains_on_an_evaluation_set_unasked(exams, way, name):
    kw = dict(dataset=name, data_dir=exams, max_length=32, bs=2, device='cpu')
    with pytest.raises(InputError, match='--allow_eval_data') as e:
        ways[way](**kw)
    data = ways[way](**kw, allow_eval_data=True)
    assert data.tainted == [find_dataset(name).name] and 'tainted' in data.notes[0] and '\n' not in str(e.value)
    assert sum('tainted' in n for n in data.notes) == 1 and any('takes its place' in n for n in data.notes)
    again = load_data(**json.loads(json.dumps(data.spec)))
    assert again.tainted == data.tainted and again.fingerprint == data.fingerprint

def test_streams_shards_and_mixtures_keep_them_too(exams, tmp_path):
    from lmnotes.data.mixtures.data import mixture_data
    from lmnotes.data.shards.data import shard_data
    from lmnotes.data.shards.tokenize import tokenize_dataset
    from lmnotes.data.streaming.data import stream_data
    calls = dict(
        stream=lambda **kw: stream_data('mmlu', data_dir=exams, **kw),
        shards=lambda **kw: tokenize_dataset('mmlu', tmp_path / 't', 'bytes', 64, data_dir=exams, **kw),
        mixture=lambda **kw: mixture_data(
            ['recall', 'mmlu'], rates=[0.5, 0.5], data_dir=exams, limit=50, max_length=64, device='cpu', **kw
        ),
        text=lambda **kw: mixture_data(
            ['recall', 'mmlu'],
            rates=[0.5, 0.5],
            data_dir=exams,
            limit=50,
            max_length=64,
            device='cpu',
            objective='pretrain',
            tokenizer='bpe',
            vocab_size=300,
            **kw,
        ),
    )
    for f in calls.values():
        with pytest.raises(InputError, match='--allow_eval_data'):
            f()
    calls['shards'](allow_eval_data=True)
    for data in (calls['mixture'](allow_eval_data=True), shard_data(tmp_path/'t', device='cpu')):
        assert data.tainted == ['cais/mmlu/all'] and any('tainted' in n for n in data.notes)
    assert (
        mixture_data(['recall', 'opinions'], limit=50, max_length=64, device='cpu').tainted
        == load_data('recall', device='cpu').tainted
        == []
    )

# ---- nothing held out is read

def test_a_tokenizer_of_a_mixture_reads_training_rows_only(tmp_path, monkeypatch):
    "Every row has a character of its own, so the vocabulary tells which rows were read"
    from lmnotes.data.mixtures.data import mixture_data
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    home = tmp_path/'openai__gsm8k/main'
    home.mkdir(parents=True)
    (home / 'train.jsonl').write_text(
        '\n'.join(json.dumps(dict(question=f'{i}: {chr(0x4E00 + i)}?', answer=f'#### {i}')) for i in range(300))
    )
    for objective in ('sft', 'pretrain'):
        data = mixture_data(
            ['gsm8k', 'recall'],
            rates=[0.5, 0.5],
            data_dir=tmp_path,
            tokenizer='chars',
            max_length=64,
            limit=300,
            device='cpu',
            objective=objective,
        )
        part, vocab = data.parts['openai/gsm8k/main'],data.tokenizer.get_vocab()
        held,read = ({c for t in part.texts(s) for c in t if '\u4e00' <= c} for s in ('validation', 'train'))
        if objective == 'pretrain': held = set() # what is held out reads as <unk>, and so does not come back
        assert (
            len(read) == 285
            and read <= set(vocab)
            and sum('\u4e00' <= c <= '\u5e00' for c in vocab) == 285
            and not held & set(vocab)
        )

# ---- what a run shares with its validation

def test_a_run_tells_what_it_shares(tmp_path):
    from lmnotes.data.contamination import data_overlap
    say = lambda i: ' '.join(f'w{i}x{j}' for j in range(20))
    (tmp_path/'train.txt').write_text('\n\n'.join(map(say, range(50))))
    (tmp_path/'validation.txt').write_text('\n\n'.join(map(say, [3, 99, 7, 98])))
    data = load_data(data_path=tmp_path, max_length=32, device='cpu')
    own,other = data_overlap(data, dict(other=[say(5), 'short one'])).values()
    assert (
        own.dirty == [0, 2] and own.n_examples == 4 and other.dirty == [0] and own.whole and json.dumps(own.as_dict())
    )
    rows = lambda ids: '\n'.join(json.dumps(dict(prompt=say(i), response='yes')) for i in ids)
    (tmp_path/'qa').mkdir()
    (tmp_path/'qa/train.jsonl').write_text(rows(range(60)))
    (tmp_path/'qa/validation.jsonl').write_text(rows([70, 4]))
    found, = data_overlap(load_data(data_path=tmp_path/'qa', mode='sft', max_length=256, device='cpu')).values()
    assert found.dirty == [1] == found.exact and '1 of 2 examples (50.0%)' in str(found)

def test_text_copied_whole_is_said_to_be_copied_whole(tmp_path):
    "Short paragraphs are not counted as clean: a validation text inside the training text shares all of it"
    from lmnotes.data.contamination import data_overlap
    part = lambda i: f'Heading {i}\n\n' + ' '.join(f'w{i}x{j}' for j in range(20)) + f'\n\nA short line {i}.'
    held = '\n\n'.join(part(i) for i in range(40))
    (tmp_path/'train.txt').write_text('\n\n'.join(part(i) for i in range(100, 130)) + '\n\n' + held)
    (tmp_path/'validation.txt').write_text(held)
    found, = data_overlap(load_data(data_path=tmp_path, max_length=32, device='cpu')).values()
    assert found.share == 1. and len(found.exact) == found.n_examples >= 40 and found.n_short == 0

# ---- which split an evaluation is about

def layout(root, folder, **splits):
    "Write splits as jsonl in hub layout"
    (root/folder).mkdir(parents=True)
    for name,rows in splits.items(): (root/folder/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return root

def questions(n):
    return [
        dict(id=str(i), title='t', context=f'Town {i} lies by river {i}.', question=f'Where does town {i} lie?',
             answers=dict(text=[f'by river {i}'], answer_start=[10]))
        for i in range(n)
    ]

def test_an_evaluation_split_is_scored_whole(tmp_path):
    "Training has to hold out a part of the only split there is, and says so; an evaluation takes all of it"
    root,squad = layout(tmp_path, 'squad/default', validation=questions(200)),find_dataset('squad')
    rows = scored_rows(squad, root)
    assert (len(rows), rows.split) == (200, 'validation')
    data = load_data('squad', data_dir=root, mode='sft', max_length=256, device='cpu')
    assert (len(data.rows['train']), len(data.rows['validation'])) == (190, 10)
    assert data.notes[:2] == [
        'no training split: validation takes its place',
        'no validation split: 10 of 200 rows are held out by content hash',
    ]
    with pytest.raises(InputError, match="'squad' has no test rows here; there is: validation"):
        scored_rows(squad, root, 'test')

def test_the_test_split_of_a_corpus_by_name(tmp_path):
    lines = lambda word: [dict(text=''), dict(text=f' = {word} = \n'), dict(text=''), dict(text=f'{word} text. '*9)]
    root = layout(tmp_path, 'wikitext/wikitext-2-raw-v1', validation=lines('Held'), test=lines('Last'))
    wikitext = find_dataset('wikitext')
    assert scored_documents(wikitext, root)[1] == 'validation'
    docs,split = scored_documents(wikitext, root, 'test')
    assert split == 'test' and len(docs) == 1 and 'Last text.' in docs[0]
    (root/'wikitext/wikitext-2-raw-v1/validation.jsonl').unlink()
    assert scored_documents(wikitext, root)[1] == 'test' # all there is, and nothing is cut from it

@needs_real
def test_real_splits_are_scored_whole():
    for name,split,n in ('squad2', 'validation', 5690), ('gsm8k', 'test', 319), ('imdb', 'test', 2500):
        rows = scored_rows(find_dataset(name), real)
        assert (len(rows), rows.split) == (n, split)
    assert len(scored_documents(find_dataset('wikitext'), real)[0]) == 60 # articles of the validation split

# ---- unknown words

def paragraphs(root):
    "Write a training text and a validation text with words that training never saw"
    root.mkdir()
    read = 'the cat sat on the mat and the dog lay by the door of the house\n'
    held = 'the wombat sat on a café table and the dog ate the übermensch of the house\n'
    (root/'train.txt').write_text(read*60, encoding='utf-8')
    (root/'validation.txt').write_text(held*20, encoding='utf-8')
    return held*20

def test_bits_per_byte_of_unknown_words_by_hand(tmp_path):
    "Each unknown word costs its token, and log2 257 bits for each of its bytes and for its end"
    from lmnotes.evaluation.metrics import unigram_scores
    held = paragraphs(tmp_path/'text')
    data = load_data(data_path=tmp_path/'text', tokenizer='words', vocab_size=12, max_length=10, device='cpu')
    known = set(data.tokenizer.get_vocab()) - {'<unk>'}
    pieces = [w for line in held.splitlines() for w in [*line.replace(' ', '| ').split('|'), '\n']]
    assert ''.join(pieces) == held and len(data.valid_ids) == len(pieces) + 1
    n = len(data.valid_blocks)*10 # of the first token on, nothing is predicted before it
    scored = [*pieces, ''][1:n + 1]
    unknown = [len(w.encode()) for w in scored if w and w not in known]
    s = unigram_scores(data)
    assert s.bytes.sum() == sum(len(w.encode()) for w in scored)
    bits = s.nll.sum()/np.log(2) + sum(k + 1 for k in unknown)*np.log2(257)
    assert len(unknown) > n/3 and abs(s.bits_per_byte - bits/s.bytes.sum()) < 1e-9
    assert list(data.texts('validation')) == [held] # the text itself, not what is left of it in tokens
    assert 'are unknown, spelled at 8 bits a byte' in data.notes[-1]

def test_a_coarse_vocabulary_never_beats_bytes(tmp_path):
    from lmnotes.evaluation.metrics import unigram_scores, window_bits_per_byte
    paragraphs(tmp_path/'text')
    bits = {
        n: unigram_scores(load_data(data_path=tmp_path/'text', tokenizer=t, vocab_size=n, max_length=16, device='cpu'))
        for n,t in {None: 'bytes', 4: 'words', 8: 'words', 12: 'words'}.items()
    }
    for n in (4, 8, 12):
        assert bits[n].bits_per_byte > bits[None].bits_per_byte
        per_window,weights = window_bits_per_byte(bits[n])
        assert abs(np.average(per_window, weights=weights) - bits[n].bits_per_byte) < 1e-9
    assert bits[4].bits_per_byte > 8 # three words in four are spelled, and the end of each costs, too

def test_one_formula_in_training_and_evaluation(tmp_path):
    from lmnotes.evaluation.metrics import evaluate_lm
    from lmnotes.models import build_model
    from lmnotes.training.learner import lm_learner
    from lmnotes.training.learner_metrics import evaluate
    paragraphs(tmp_path/'text')
    data = load_data(data_path=tmp_path/'text', tokenizer='words', vocab_size=12, max_length=10, bs=3, device='cpu')
    model = build_model('standard', size='tiny', vocab_size=data.vocab_size, max_length=64)
    scored = evaluate_lm(model, data)
    assert abs(evaluate(lm_learner(model, data))['bits_per_byte'] - scored.bits_per_byte) < 1e-4

def test_questions_with_unknown_words_have_no_bits_per_byte(tmp_path):
    rows = [dict(prompt=f'item {i % 7} is', response=f'thing{i}') for i in range(200)]
    (tmp_path/'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    data = load_data(data_path=tmp_path/'train.jsonl', mode='sft', tokenizer='words', max_length=32, device='cpu')
    assert not hasattr(data, 'token_bytes') and 'unknown tokens; tokens are unknown' in data.notes[-1]
    assert hasattr(load_data(data_path=tmp_path/'train.jsonl', mode='sft', max_length=64, device='cpu'), 'token_bytes')

@needs_real
def test_bytes_are_those_of_the_text():
    docs = load_documents(find_dataset('wikitext'), real)[0]
    for name in ('words', 'chars'):
        tok = get_tokenizer(name, lambda: docs['train'])
        ids = encode_documents(tok, docs['validation'])
        assert document_bytes(tok, docs['validation'], ids).sum() == sum(len(d.encode()) for d in docs['validation'])

@pytest.mark.parametrize('kind', ['text', 'sft', 'stream', 'shards', 'mixture'])
def test_unknown_tokens_are_charged_or_refused_and_it_is_said(kind, tmp_path, capsys):
    "Whatever tokens come from: bits per byte are charged for the spelling, or there are none, and the run says which"
    from lmnotes.data.shards.tokenize import tokenize_dataset
    from lmnotes.training.train import train
    paragraphs(tmp_path/'text')
    rows = [dict(prompt=f'item {i % 7} is', response=f'thing{i}') for i in range(200)]
    (tmp_path/'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    words = dict(tokenizer='words', vocab_size=40, max_length=16)
    if kind == 'shards':
        tokenize_dataset('arithmetic', tmp_path/'shards', 'words', vocab_size=40, length=32)
        words = dict(max_length=16)
    options = dict(
        text=dict(data_path=str(tmp_path/'text')),
        sft=dict(data_path=str(tmp_path/'rows.jsonl'), mode='sft', max_length=32),
        stream=dict(dataset='prose', streaming=True),
        mixture=dict(datasets=('opinions', 'arithmetic'), limit=60, mode='pretrain'),
        shards=dict(data_path=str(tmp_path/'shards')),
    )[kind]
    small = dict(dim=16, n_layer=1, n_head=1, batch_size=2, max_steps=1, eval_max_batches=2, eval_generate=0)
    run = train(**words | options | small, device='cpu', output_dir=str(tmp_path/'run'))
    said = ' '.join(capsys.readouterr().out.split())
    charged,refused = 'spelled at 8 bits a byte' in said, 'no bits per byte' in said
    assert charged != refused
    assert (run.summary['bits_per_byte'] is None) == refused and ('bits per byte on' in said) == charged
