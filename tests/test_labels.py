"Labels from rows to scores: none reversed, every tag on its word, every span on its answer, each counted once"
import json
import os
import random

import numpy as np
import pytest
import torch

from lmnotes.core import InputError
from lmnotes.data.catalog import find_dataset
from lmnotes.data.classification.alignment import encode_for_head
from lmnotes.data.classification.data import LabelLoader, label_data
from lmnotes.data.classification.labels import head_input_text
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.rows.row_encoding import encode_with_offsets
from lmnotes.data.tokenizers import get_tokenizer
from lmnotes.models.build import build_model
from lmnotes.training.build import model_facts, model_from_options
from lmnotes.training.build_data import data_from_options
from lmnotes.training.checkpoints import load_run
from lmnotes.training.learner import lm_learner
from lmnotes.training.learner_metrics import evaluate
from lmnotes.training.options import TrainOptions
from lmnotes.training.planning.sketch import sketch_model_facts
from lmnotes.training.train import train

tasks = dict(classify='opinions', tag='entities', span='reading')
quick = dict(
    device='cpu',
    tokenizer='words',
    quiet=True,
    viz_interval=10**6,
    save_strategy='no',
    eval_strategy='no',
)
real = pytest.mark.skipif(
    not os.environ.get('LMNOTES_DATA_DIR'),
    reason='LMNOTES_DATA_DIR names no folder of real datasets',
)

def write(root, id, **splits):
    folder = root/id.replace('/', '__')/'default'
    folder.mkdir(parents=True)
    for name,rows in splits.items():
        (folder/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))

@pytest.fixture(scope='module')
def framed(tmp_path_factory): # WordPiece in BERT's frame, as a hub tokenizer is
    from tokenizers import Tokenizer, models as m, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(m.WordPiece(unk_token='[UNK]'))
    t.normalizer,t.pre_tokenizer = normalizers.BertNormalizer(),pre_tokenizers.BertPreTokenizer()
    rows = load_rows(find_dataset('entities'))['train'][:200]
    t.train_from_iterator(
        [' '.join(r['tokens']) for r in rows]
        + ['Who asked? A question and its context, with an answer.'],
        trainers.WordPieceTrainer(
            vocab_size=220, special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]'], show_progress=False
        ),
    )
    t.post_processor = TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    t.enable_truncation(8) # as some files have it
    path = tmp_path_factory.mktemp('bert')
    PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token='[PAD]',
        unk_token='[UNK]',
        cls_token='[CLS]',
        sep_token='[SEP]',
    ).save_pretrained(path)
    return str(path)

def test_labels_are_those_of_the_rows(tmp_path):
    "Ids in the order of the dataset's own names, from the rows and back"
    names = ['bearish', 'bullish', 'neutral']
    rows = [
        dict(text=f'stock {i} goes {w}', label=i % 3)
        for i, w in enumerate(['down', 'up', 'on'] * 30)
    ]
    write(tmp_path, 'zeroshot/twitter-financial-news-sentiment', train=rows, validation=rows[:9])
    d = label_data('twitter', data_dir=tmp_path, device='cpu', max_length=64)
    assert d.names == names and d.train_blocks.labels == [r['label'] for r in rows]
    assert (
        [d.tokenizer.decode(i[:-1]) for i in d.train_blocks.ids]
        == [r['text'] for r in rows]
        == d.texts()
    )
    assert [names[y] for y in d.train_blocks.labels] == [d.task.answer(r) for r in d.rows['train']]
    assert d.valid.batch(0)[0]['labels'].tolist() == [r['label'] for r in rows[:8]]

def test_published_tags_and_hidden_words(tmp_path):
    rows = [
        dict(
            tokens=['Ada', 'Byron', 'of', 'New\xa0York', '', 'x' * 90], ner_tags=[1, 2, 0, 5, 0, 3]
        )
    ] * 60
    write(tmp_path, 'conll2003', train=rows, validation=rows[:4])
    d = label_data('conll', task='tag', data_dir=tmp_path, device='cpu', max_length=40)
    y = d.train_blocks.labels[0]
    # an empty word has no token, a long one no room
    assert [d.names[t] for t in y[y != -100]] == ['B-PER', 'I-PER', 'O', 'B-LOC']
    assert any('120 of 360 words' in n for n in d.notes)

@pytest.mark.parametrize('tokenizer', ['bytes', 'chars', 'words', 'bpe', 'sentencepiece', 'framed'])
@pytest.mark.parametrize('at', ['first', 'last'])
def test_every_tag_stands_on_its_word(tokenizer, at, framed):
    d = label_data(
        'entities',
        task='tag',
        tokenizer=framed if tokenizer == 'framed' else tokenizer,
        vocab_size=400 if tokenizer in ('bpe', 'sentencepiece') else None,
        limit=200,
        tag_at=at,
        device='cpu',
    )
    fold = str.lower if tokenizer == 'framed' else str
    for r,ids,y in zip(d.rows['train'], d.train_blocks.ids, d.train_blocks.labels):
        put = np.flatnonzero(y != -100)
        assert [d.names[t] for t in y[put]] == d.task.tags(r)
        begin = tokenizer == 'framed'
        # a word's tokens: up to the next one's first, or from the last one's last
        edges = [*put, len(ids) - 1] if at == 'first' else [begin, *(put + 1)]
        pieces = [ids[a:b] for a,b in zip(edges, edges[1:])]
        said = [
            ''.join(d.tokenizer.convert_ids_to_tokens(p.tolist())).replace('##', '')
            if begin
            else d.tokenizer.decode(p).strip()
            for p in pieces
        ]
        assert all('[UNK]' in s or s == fold(w) for s, w in zip(said, r['tokens'])) and len(
            said
        ) == len(r['tokens'])

@pytest.mark.parametrize('tokenizer', ['bytes', 'words', 'bpe', 'sentencepiece'])
def test_spans_read_as_the_answer(tokenizer):
    d = label_data(
        'reading',
        task='span',
        tokenizer=tokenizer,
        vocab_size=430 if tokenizer in ('bpe', 'sentencepiece') else None,
        max_length=512,
        limit=200,
        device='cpu',
    )
    for r,ids,(s,e) in zip(d.rows['train'], d.train_blocks.ids, d.train_blocks.labels):
        said = d.tokenizer.decode(ids[s:e+1]).strip()
        answer = r['answers']['text'][0]
        # a word keeps its full stop
        assert said == answer or tokenizer == 'words' and said.rstrip('.,') == answer

def test_a_framed_text_keeps_its_frame(framed):
    tok = get_tokenizer(framed)
    (ids,a,b), = encode_with_offsets(tok, ['Who asked? [SEP] A question'])
    # what looks special is text; the file's own limit of 8 does not count
    assert (ids[0], ids[-1], (ids == 3).sum()) == (2, 3, 1) and len(ids) > 8
    assert all(
        np.array_equal(x, y)
        for x, (y, _, _) in zip(
            encode_for_head(tok, ['a', 'question, with']),
            encode_with_offsets(tok, ['a', 'question, with']),
        )
    )
    d = label_data('opinions', tokenizer=framed, max_length=12, limit=100, device='cpu')
    assert all(i[0] == 2 and i[-1] == 3 and len(i) <= 12 for i in d.train_blocks.ids) and any(
        'lose their end' in n for n in d.notes
    )

def test_answers_that_are_cut_are_counted(tmp_path):
    row = lambda at: dict(
        context='x' * at + ' Ada wrote it.',
        question='Who?',
        answers=dict(text=['Ada'], answer_start=[at + 1]),
    )
    bad = dict(row(3), answers=dict(text=['Ada'], answer_start=[0]))
    none = dict(row(3), answers=dict(text=[], answer_start=[]))
    write(
        tmp_path,
        'squad_v2',
        train=[row(3)] * 50 + [row(200)] * 6 + [bad] * 2 + [none] * 5,
        validation=[row(3)] * 3,
    )
    d = label_data('squad2', task='span', data_dir=tmp_path, device='cpu')
    assert (
        len(d.train_blocks) == 55
        and any('training: 8 of 63 answers' in n for n in d.notes)
        and any('5 of 63 questions' in n for n in d.notes)
    )
    assert [tuple(y) for y in d.train_blocks.labels[-5:]] == [(0, 0)]*5
    assert all(
        d.tokenizer.decode(i[s : e + 1]) == 'Ada'
        for i, (s, e) in zip(d.train_blocks.ids[:50], d.train_blocks.labels)
    )

def test_the_answer_is_nowhere_in_the_batch():
    "Two rows that differ in their label alone read the same"
    ds = find_dataset('mnli')
    rows = [dict(premise='A dog runs.', hypothesis='It moves.', label=i, idx=0) for i in range(3)]
    assert len({head_input_text(ds, r) for r in rows}) == 1

@pytest.mark.parametrize('task', tasks)
def test_ranks_share_a_batch_and_a_restart_goes_on(task):
    d = label_data(tasks[task], task=task, limit=60, max_length=400, device='cpu')
    dl = d.train.new(bs=8)
    for k in (0, 5, 11):
        whole = dl.batch(k)[0]
        parts = [dl.new(bs=4, world=2, rank=r).batch(k)[0] for r in (0, 1)]
        rows = lambda b: [
            (x[m.bool()].tolist(), y[m.bool()].tolist() if task == 'tag' else y.tolist())
            for x, m, y in zip(b['input_ids'], b['attention_mask'], b['labels'])
        ]
        assert rows(whole) == rows(parts[0]) + rows(parts[1])
    again = [b[0]['labels'] for b in dl.new(start=5, n_batches=9)]
    assert (
        all(torch.equal(a, dl.batch(k)[0]['labels']) for k, a in zip(range(5, 9), again))
        and type(dl.new()) is LabelLoader
    )

@pytest.mark.parametrize('model', ['encoder', 'standard', 'tiny:bert', 'tiny:gpt2'])
@pytest.mark.parametrize('task', tasks)
def test_two_batches_of_four_are_one_of_eight(task, model):
    def weights(bs, accumulate):
        o = TrainOptions(
            model=model,
            task=task,
            dataset=tasks[task],
            batch_size=bs,
            max_length=360,
            limit=60,
            device='cpu',
            seed=1,
        )
        d = data_from_options(o)
        learn = lm_learner(
            model_from_options(o, d.vocab_size, d),
            d,
            lr=0.1,
            optimizer='sgd',
            accumulate=accumulate,
            max_grad_norm=0,
            weight_decay=0,
            precision='fp32',
            betas=None,
        )
        learn.model.eval()
        learn.model.train = lambda mode=True: learn.model # no dropout
        learn.dls.train.n_batches = 2*accumulate
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
        return (
            torch.cat([p.detach().flatten() for p in learn.model.parameters()]),
            float(learn.step_loss),
            float(learn.step_accuracy),
            learn.step,
        )
    (w,loss,right,steps),(w2,loss2,right2,steps2) = weights(8, 1),weights(4, 2)
    assert steps == steps2 == 2 and abs(loss - loss2) < 1e-4 and abs(right - right2) < 1e-6
    assert (w - w2).abs().max() < 2e-5

def test_tokens_are_tokens_and_labels_are_labels():
    o = TrainOptions(
        model='encoder',
        task='classify',
        dataset='opinions',
        max_length=48,
        tokenizer='words',
        limit=60,
        device='cpu',
    )
    d = data_from_options(o)
    learn = lm_learner(model_from_options(o, d.vocab_size, d), d)
    learn.dls.train.n_batches = 3
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert learn.tokens == sum(int(d.train.batch(k)[0]['attention_mask'].sum()) for k in range(3))
    s = evaluate(learn)
    assert (
        s['tokens'] == len(d.valid_blocks) and 'bits_per_byte' not in s and {'macro_f1', 'mcc'} <= set(s)
    )
    right = sum(
        int(
            (
                learn.model.eval()(b['input_ids'], b['attention_mask']).logits.argmax(-1)
                == b['labels']
            ).sum()
        )
        for (b,) in d.valid
    )
    assert s['accuracy'] == right/len(d.valid_blocks)

def test_a_plan_counts_the_head():
    for model in ('encoder', 'standard', 'tiny:bert', 'tiny:gpt2'):
        o = TrainOptions(model=model, task='tag', dataset='entities', limit=60, device='cpu')
        d = data_from_options(o)
        assert (
            sketch_model_facts(o, d.vocab_size, d.labels).parameters
            == model_facts(model_from_options(o, d.vocab_size, d)).parameters
        )

def test_refusals_are_one_line():
    for options, said in [
        (dict(task='tag', dataset='opinions'), 'use --task classify'),
        (dict(task='classify'), 'take another dataset'),
        (dict(task='span', dataset='arithmetic'), 'no places of answers'),
        (dict(task='classify', dataset='opinions', mode='rl'), '--mode rl learns texts'),
        (dict(task='classify', dataset='opinions', chat_template=True), '--chat_template'),
        (dict(task='classify', dataset='opinions', model='tiny:t5'), 'is an encoder-decoder'),
        (dict(task='classify', datasets=('opinions', 'recall')), 'a mixture'),
    ]:
        with pytest.raises(InputError, match=said) as e:
            data_from_options(TrainOptions(device='cpu', **options))
        assert '\n' not in str(e.value)

# trainings

@pytest.mark.parametrize('model', ['encoder', 'standard', 'tiny:bert'])
def test_tags_are_learnt_and_the_run_loads_again(model, tmp_path):
    r = train(
        model=model,
        dataset='entities',
        task='tag',
        max_length=32,
        max_steps=80,
        batch_size=16,
        limit=600,
        learning_rate=4e-3,
        output_dir=str(tmp_path / 'run'),
        **quick,
    )
    s = r.summary
    most = (
        np.bincount(np.concatenate([y[y != -100] for y in r.learn.dls.valid_blocks.labels])).max()
        / s['eval_tokens']
    )
    assert s['accuracy'] > max(most + .1, .85) and s['entity_f1'] > .6
    again = load_run(tmp_path/'run')
    b = again.dls.valid.batch(0)[0]
    assert again.dls.fingerprint == r.learn.dls.fingerprint
    with torch.no_grad():
        assert torch.equal(again.model.eval()(**b).logits, r.model.eval()(**b).logits)
    m = build_model(str(tmp_path/'run'/'final'))
    assert type(m).__name__ == type(r.model).__name__ and m.config.id2label == dict(
        enumerate(r.learn.dls.names)
    )
    assert not (tmp_path/'run'/'samples.jsonl').exists()

def test_opinions_are_learnt(tmp_path):
    r = train(
        model='encoder',
        dataset='opinions',
        task='classify',
        max_length=48,
        max_steps=500,
        batch_size=16,
        learning_rate=1e-3,
        output_dir=str(tmp_path / 'run'),
        **quick,
    )
    # half of them are positive, and one word can turn each remark round
    assert r.summary['accuracy'] > .6 and r.summary['mcc'] > .2

def test_places_are_learnt(tmp_path):
    r = train(
        model='encoder',
        dataset='reading',
        task='span',
        max_length=128,
        max_steps=100,
        batch_size=16,
        limit=2000,
        output_dir=str(tmp_path / 'run'),
        **quick,
    )
    # a place among sixty, a pair among thousands
    assert r.summary['accuracy'] > .05 and r.summary['exact_match'] > .02

def test_labels_that_mean_nothing_are_not_learnt(tmp_path):
    "The same texts with their labels dealt anew stay at chance; with their own they are learnt in the same steps"
    rng = random.Random(0)
    rows = [
        dict(text=' '.join([*rng.choices('one two three four five six'.split(), k=6), w]))
        | dict(label=w)
        for w in rng.choices(('left', 'right'), k=600)
    ]
    said = {}
    for how in ('true', 'dealt'):
        labels = (
            [r['label'] for r in rows]
            if how == 'true'
            else rng.sample([r['label'] for r in rows], len(rows))
        )
        f = tmp_path/f'{how}.jsonl'
        f.write_text(
            '\n'.join(
                json.dumps(dict(prompt=r['text'] + f' {i}', response=y))
                for i, (r, y) in enumerate(zip(rows, labels))
            )
        )
        r = train(
            data_path=str(f),
            model='encoder',
            task='classify',
            max_length=16,
            max_steps=60,
            batch_size=16,
            learning_rate=3e-3,
            output_dir=str(tmp_path / how),
            **quick,
        )
        said[how] = r.summary['accuracy'],r.summary['eval_tokens']
    n = said['dealt'][1]
    assert said['true'][0] > .95 and abs(said['dealt'][0] - .5) < 3*(.25/n)**.5

def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    o = dict(
        model='encoder',
        dataset='entities',
        task='tag',
        max_length=32,
        max_steps=8,
        batch_size=4,
        gradient_accumulation_steps=2,
        limit=200,
        save_steps=3,
        output_dir=str(tmp_path / 'run'),
        **{k: v for k, v in quick.items() if k != 'save_strategy'},
    )
    a = train(**o)
    w = {k: v.clone() for k,v in a.model.state_dict().items()}
    b = train(
        resume_from_checkpoint=str(tmp_path / 'run' / 'checkpoints' / 'step_000003'),
        device='cpu',
        quiet=True,
    )
    assert b.summary['resumed_at_step'] == 3 and all(
        torch.equal(v, w[k]) for k, v in b.model.state_dict().items()
    )

def test_the_best_by_a_score_of_the_head(tmp_path):
    r = train(
        model='encoder',
        dataset='entities',
        task='tag',
        max_length=32,
        max_steps=12,
        batch_size=8,
        limit=200,
        output_dir=str(tmp_path / 'run'),
        metric_for_best_model='entity_f1',
        load_best_model_at_end=True,
        eval_steps=4,
        save_steps=4,
        **{k: v for k, v in quick.items() if k not in ('save_strategy', 'eval_strategy')},
    )
    rows = [json.loads(l) for l in open(tmp_path/'run'/'evals.jsonl', encoding='utf-8')]
    assert r.summary['entity_f1'] == max(x['entity_f1'] for x in rows)

# rows of the hub

@real
@pytest.mark.parametrize('name,task,n', [
    ('imdb', 'classify', 2),
    ('sst2', 'classify', 2),
    ('stsb', 'classify', 1),
    ('mnli', 'classify', 3),
    ('conll', 'tag', 9),
    ('ud', 'tag', 18),
    ('squad', 'span', 0),
    ('squad2', 'span', 0),
])
@pytest.mark.parametrize('model', ['encoder', 'tiny:bert'])
def test_real_rows_train(name, task, n, model):
    o = TrainOptions(
        model=model,
        dataset=name,
        task=task,
        max_length=400 if task == 'span' else 256,
        batch_size=4,
        limit=200,
        device='cpu',
        **(dict(tokenizer='bpe') if task == 'span' else {}),
    )
    d = data_from_options(o)
    assert len(d.names) == n and len(d.train_blocks) + len(d.valid_blocks) > 100
    for r,y in zip(d.rows['train'], d.train_blocks.labels):
        if name in ('imdb', 'sst2', 'mnli'):
            assert d.names[y] == d.task.answer(r) and y == r['label']
        if name == 'stsb': assert y == pytest.approx(r['label'])
    if task == 'span':
        found = {
            d.tokenizer.decode(i[s : e + 1]).strip()
            for b in (d.train_blocks, d.valid_blocks)
            for i, (s, e) in zip(b.ids, b.labels)
            if e
        }
        said = {
            r['answers']['text'][0].strip()
            for b in ('train', 'validation')
            for r in d.rows[b]
            if r['answers']['text']
        }
        # a token may hold a bracket besides
        assert (
            len(found) > 50
            and len(found & said) > 0.9 * len(found)
            and all(any(a in f for a in said) for f in found)
        )
    learn = lm_learner(model_from_options(o, d.vocab_size, d), d, precision='fp32')
    learn.dls.train.n_batches = 3
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    s = evaluate(learn, d.valid.sampled(40))
    assert np.isfinite(s['loss']) and (task == 'classify' and n == 1 or s['loss'] < 8)

@real
def test_real_tags_stand_on_their_words():
    d = label_data('conll', task='tag', tokenizer='bpe', vocab_size=1000, limit=400, device='cpu')
    for r,ids,y in zip(d.rows['train'], d.train_blocks.ids, d.train_blocks.labels):
        put = np.flatnonzero(y != -100)
        assert [d.names[t] for t in y[put]] == d.task.tags(r)[:len(put)]
        assert [d.tokenizer.decode(ids[a:b]).strip() for a, b in zip(put, put[1:])] == r['tokens'][
            : len(put) - 1
        ] and len(put) > 0

@real
def test_sst2_is_learnt(tmp_path):
    r = train(
        model='encoder',
        dataset='sst2',
        task='classify',
        max_length=40,
        max_steps=200,
        batch_size=16,
        limit=4000,
        learning_rate=2e-3,
        output_dir=str(tmp_path / 'run'),
        **quick,
    )
    most = max(np.bincount(r.learn.dls.valid_blocks.labels))/len(r.learn.dls.valid_blocks)
    assert r.summary['accuracy'] > most + .1
