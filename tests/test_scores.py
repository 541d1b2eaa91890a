"Scores that pair: pieces of text against a count by hand, whatever the tokenizer, the context and the batch"
import math

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models as tokenizer_models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lmnotes.core import InputError, RunError, set_seed
from lmnotes.data.token_encoding import encode_separately
from lmnotes.data.tokenizers import bpe_tokenizer, byte_tokenizer
from lmnotes.evaluation.item_files import rescore_items
from lmnotes.evaluation.scores import Scores, load_scores, pair_scores, save_scores
from lmnotes.evaluation.text_pieces import SECTION_BYTES, section_ends, text_piece_scores
from lmnotes.models.build import build_model

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
