"Scores that pair: pieces of text against a count by hand, whatever the tokenizer, the context and the batch"
import math

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models as tokenizer_models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lmnotes.core import InputError, RunError, set_seed
from lmnotes.data.catalog import DatasetColumns
from lmnotes.data.load import load_data
from lmnotes.data.sources.prompt_form import PromptForm
from lmnotes.data.token_encoding import encode_separately
from lmnotes.data.tokenizers import bpe_tokenizer, byte_tokenizer
from lmnotes.evaluation.held_out.held_out_data import load_held_out
from lmnotes.evaluation.held_out.run_scores import run_scores
from lmnotes.evaluation.held_out.score_model import score_model
from lmnotes.evaluation.item_files import rescore_items
from lmnotes.evaluation.scores import Scores, load_scores, pair_scores, save_scores
from lmnotes.evaluation.text_pieces import SECTION_BYTES, section_ends, text_piece_scores
from lmnotes.models.build import build_model
from lmnotes.training.train import train

DOCS = ['The cat sat on the mat.\r\nThe end.', '', 'Zoë – naïve 猫猫 café\n', 'x', 'a lone \ud800 half and half']

def hub_like(): # knows the letters of plain English, begins each text with <s>, and calls what it does not know [UNK]
    letters = sorted(set('The cat sat on the mat. The end. a lone half and half x\n'))
    tok = Tokenizer(tokenizer_models.WordLevel({c: i for i,c in enumerate([*letters, '[UNK]'])}, unk_token='[UNK]'))
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated'),decoders.Fuse()
    tok.add_special_tokens(['<s>', '</s>', '[UNK]'])
    begin = [('<s>', tok.token_to_id('<s>'))]
    tok.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=begin)
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', eos_token='</s>', unk_token='[UNK]')

def metaspace(): # one token for a word with the space before it, and a space before each text, as Llama's has
    words = sorted({'▁' + w for d in DOCS for w in d.replace('\ud800', '?').split(' ')})
    tok = Tokenizer(tokenizer_models.WordLevel({w: i for i,w in enumerate([*words, '[UNK]'])}, unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always', split=True)
    tok.decoder = decoders.Metaspace(prepend_scheme='always', split=True)
    tok.add_special_tokens(['</s>', '[UNK]'])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='</s>', unk_token='[UNK]')

TOKENIZERS = dict(bytes=byte_tokenizer, bpe=lambda: bpe_tokenizer([d for d in DOCS if '\ud800' not in d], 280),
                  hub=hub_like, metaspace=metaspace)

def model_for(tok, seed=0, **options):
    set_seed(seed)
    model = build_model('standard', dim=16, n_layer=1, n_head=2, vocab_size=len(tok), **options).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=.2) # far from uniform
    return model

def token_texts(name, tok, text): # the tokens of a text and the bytes of each, found by hand
    if name == 'bytes': return [(b, 1) for b in text.encode()]
    if name == 'hub':
        known = tok.get_vocab()
        return [(known.get(c, tok.unk_token_id), len(c.encode())) for c in text]
    ids = tok(text, add_special_tokens=False)['input_ids']
    if name == 'bpe': return [(i, len(tok.convert_ids_to_tokens(i))) for i in ids] # one letter of its name for a byte
    sizes = [len(w.encode()) + 1 for w in text.split(' ')] if text else [1]
    return list(zip(ids, [sizes[0] - 1, *sizes[1:]]))

@torch.no_grad()
def by_hand(name, tok, model, text, T): # nats of each byte, one token at a time
    start = tok.bos_token_id if name == 'hub' else tok.eos_token_id
    costs,read = [],[start]
    for i,(token,n) in enumerate(token_texts(name, tok, text)):
        if i % T == 0: read = read[-1:] # a new window begins with the token before
        nats = -model(torch.tensor([read])).logits[0, -1].double().log_softmax(-1)[token].item()
        if token == tok.unk_token_id: nats += (n + 1)*math.log(257)
        costs += [nats/n]*n
        read.append(token)
    return costs

@pytest.mark.parametrize('T', [7, 64])
@pytest.mark.parametrize('name', TOKENIZERS)
def test_pieces_equal_a_count_by_hand(name, T):
    tok = TOKENIZERS[name]()
    model = model_for(tok)
    s, = text_piece_scores(model, tok, DOCS, 'toy', piece_bytes=10, max_length=T, limit=None)
    wanted,sizes = [],[]
    for text in (d.encode('utf-8', 'replace').decode() for d in DOCS):
        costs = by_hand(name, tok, model, text, T)
        assert len(costs) == len(text.encode())
        pieces = [costs[i:i+10] for i in range(0, len(costs), 10)]
        wanted += [sum(p)/len(p)/math.log(2) for p in pieces]
        sizes += map(len, pieces)
    assert np.allclose(s.values, wanted, rtol=1e-5, atol=1e-6) and list(s.weights) == sizes
    assert s.mean == pytest.approx(np.average(wanted, weights=sizes), rel=1e-5)
    assert rescore_items([i | dict(weight=w) for i,w in zip(s.items, s.weights)])[0]['changed'] == 0

def test_tokenizers_and_contexts_pair():
    scores = {}
    for name,make in TOKENIZERS.items():
        tok = make()
        model = model_for(tok)
        for T in (4, 64) if name == 'bpe' else (64,):
            scores[name, T], = text_piece_scores(model, tok, DOCS, 'toy', piece_bytes=16, max_length=T)
    first = scores['bytes', 64]
    assert first.metrics['bytes'] == sum(len(d.encode('utf-8', 'replace')) for d in DOCS) == first.weights.sum()
    for s in scores.values():
        assert s.ids == first.ids and len(pair_scores(first, s)[0]) == first.n
    assert len({s.mean for s in scores.values()}) == len(scores)

def test_batch_size_and_sample_change_no_score():
    tok = byte_tokenizer()
    model = model_for(tok).train()
    texts = [f'{i} and then {i*i} and so on ' * (i + 1) for i in range(40)]
    whole, = text_piece_scores(model, tok, texts, 'toy', piece_bytes=32, max_length=24, limit=None)
    for bs in (1, 5, 64):
        some, = text_piece_scores(model, tok, texts, 'toy', piece_bytes=32, max_length=24, limit=31, bs=bs)
        assert some.n == 31 and set(some.ids) < set(whole.ids)
        x,y,*_ = pair_scores(some, whole, partial=True)
        assert np.allclose(x, y, rtol=1e-5)
    assert model.training and len(set(whole.clusters)) == 40

def test_long_documents_are_read_in_sections(monkeypatch):
    tok,line = byte_tokenizer(), 'one two three four five six seven\r\n'
    text = line*(3*SECTION_BYTES//len(line))
    ends = section_ends(text.encode())
    assert len(ends) == 4 and all(text[:e].endswith('\n') for e in ends) and max(np.diff([0, *ends])) <= SECTION_BYTES
    model,read = model_for(tok),[]
    def counted(tokenizer, texts):
        read.extend(map(len, texts))
        return encode_separately(tokenizer, texts)
    monkeypatch.setattr('lmnotes.evaluation.text_pieces.encode_separately', counted)
    s, = text_piece_scores(model, tok, ['', text], 'toy', limit=2)
    assert s.n == 2 and sum(read) < 2.5*SECTION_BYTES # not all of it became tokens
    alone = text_piece_scores(model, tok, [text[:ends[0]]], 'toy', limit=None)[0]
    at = int(s.ids[0].split(':')[1])
    assert s.values[0] == pytest.approx(alone.values[at//256], rel=1e-5)

def test_equal_documents_have_names_of_their_own():
    tok = byte_tokenizer()
    s, = text_piece_scores(model_for(tok), tok, ['same', 'same'], 'toy')
    assert len(set(s.ids)) == 2 and s.ids[1].endswith('#2')

def test_what_cannot_be_scored():
    tok = byte_tokenizer()
    with pytest.raises(RunError, match='sees the future'):
        text_piece_scores(model_for(tok, causal=False), tok, DOCS, 'toy')
    with pytest.raises(InputError, match='every document is empty'):
        text_piece_scores(model_for(tok), tok, ['', ''], 'toy')

def test_scores_come_back_from_disk(tmp_path):
    tok = byte_tokenizer()
    s, = text_piece_scores(model_for(tok), tok, DOCS, 'toy', piece_bytes=16, split='validation')
    save_scores(tmp_path/'s.npz', [s, Scores('qa', 'a', 'f1', [0., 1.], chance=.5)])
    again,qa = load_scores(tmp_path/'s.npz')
    assert (again.ids, again.split, again.metrics, again.mean) == (s.ids, 'validation', s.metrics, s.mean)
    assert qa.weights is None and list(again.clusters) == list(s.clusters) and not again.items
    assert all(np.array_equal(x, y) for x,y in zip(pair_scores(s, again)[:1], pair_scores(again, s)[:1]))

def write_files(folder): # of each form that a user may have
    (folder/'text.txt').write_bytes(''.join(f'Line {i} of the text.\r\n' for i in range(600)).encode())
    (folder/'pairs.csv').write_text('question,answer\n' + ''.join(f'{i} plus one?,{i + 1}\n' for i in range(300)))
    labels = [f'a {w} day {i},{w}\n' for i in range(150) for w in ('good', 'bad')]
    (folder/'labels.csv').write_text('text,mood\n' + ''.join(labels))
    for split,n in (('train', 90), ('validation', 40), ('test', 10)):
        (folder/'split').mkdir(exist_ok=True)
        (folder/'split'/f'{split}.jsonl').write_text(''.join(f'{{"text": "{split} {i} of all"}}\n' for i in range(n)))

FILES = dict(text=('text.txt', 'train (held out)'), pairs=('pairs.csv', 'train (held out)'),
             labels=('labels.csv', 'train (held out)'), split=('split', 'validation'))

@pytest.mark.parametrize('limit', [None, 20])
@pytest.mark.parametrize('kind', FILES)
def test_no_row_of_ones_own_files_is_a_training_row(kind, limit, tmp_path):
    write_files(tmp_path)
    path,split = tmp_path/FILES[kind][0],FILES[kind][1]
    columns = DatasetColumns(label='mood') if kind == 'labels' else None
    part = load_held_out(path, columns=columns)
    assert part.split == split
    how = dict(label_column='mood') if kind == 'labels' else {}
    data = load_data(data_path=path, mode='sft' if part.rows else 'pretrain', limit=limit, max_length=16, **how)
    if part.rows:
        rows = {s: {str(r) for r in data.rows[s]} for s in ('train', 'validation')}
        found = {str(r) for r in part.rows}
    else:
        rows = {s: set(data.texts(s)) for s in ('train', 'validation')}
        found = set(part.documents)
    assert found and rows['validation'] <= found and not rows['train'] & found
    assert limit or rows['validation'] == found

@pytest.mark.parametrize('name', ['prose', 'python', 'opinions', 'arithmetic', 'reading', 'entities', 'recall'])
def test_no_row_of_the_built_in_sets_is_a_training_row(name):
    part = load_held_out(name)
    data = load_data(name, mode='sft' if part.rows else 'pretrain')
    if part.rows: assert list(part.rows) == list(data.rows['validation'])
    else: assert list(part.documents) == list(data.texts('validation'))
    assert part.split in ('validation', 'train (held out)')

def leaky(tok): # adds the embedding of the token that follows
    model = model_for(tok)
    cls = type(model)
    def forward_features(self, input_ids=None, *args, **kwargs):
        h = cls.forward_features(self, input_ids, *args, **kwargs)
        return h + torch.nn.functional.pad(self.embed(input_ids.roll(-1, 1))[:,:-1], (0, 0, 0, 1))
    model.__class__ = type(cls.__name__, (cls,), dict(forward_features=forward_features))
    return model

@pytest.mark.parametrize('name', ['prose', 'opinions'])
def test_a_model_that_sees_the_future_gets_no_score(name):
    tok = byte_tokenizer()
    with pytest.raises(RunError, match='sees the future'): score_model(leaky(tok), tok, [name])

def test_items_have_one_name_in_every_form_of_prompt():
    tok = byte_tokenizer()
    plain,asked = (score_model(model_for(tok), tok, ['opinions'], limit=6, form=PromptForm(template=t))[0]
                   for t in (None, 'Review: {prompt}'))
    for a,b in zip(plain, asked):
        assert a.items[0]['prompt'] != b.items[0]['prompt'] and len(pair_scores(a, b)[0]) == 6

@pytest.mark.slow
def test_arms_with_tokenizers_of_their_own_pair_on_all_that_is_asked():
    found = []
    for tok in (byte_tokenizer(), TOKENIZERS['bpe']()):
        scores,missing = score_model(model_for(tok), tok, ['prose', 'arithmetic', 'shards'], limit=5, pieces=6)
        assert [m['name'] for m in missing] == ['shards']
        found.append(scores)
    assert [(s.task, s.metric, s.n) for s in found[0]] == [('lm', 'bits_per_byte', 6), ('math', 'exact_match', 5)]
    for a,b in zip(*found): assert len(pair_scores(a, b)[0]) == a.n

@pytest.mark.slow
def test_rows_of_masked_runs_pair(tmp_path):
    options = dict(model='encoder', size='tiny', dataset='prose', max_steps=2, max_length=32, quiet=True)
    runs = [run_scores(train(**options, seed=s, output_dir=tmp_path/f'{s}').path) for s in (0, 1)]
    loss,accuracy = zip(*runs)
    x,y,weights,_ = pair_scores(*loss)
    assert len(x) and (x != y).any() and weights.sum() > 0
    assert {s.metric for s in accuracy} == {'accuracy'} and all(0 <= s.mean <= 1 for s in accuracy)
