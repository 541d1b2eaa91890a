"The ids that are trained on, scored and generated from are those the tokenizer gives for a row's whole text"
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lmnotes.core import InputError
from lmnotes.data.bin_packing import one_per_row, pack_sequences
from lmnotes.data.catalog import Dataset
from lmnotes.data.load import load_data
from lmnotes.data.rows.conversations import add_system_prompt, chat_example
from lmnotes.data.rows.row_encoding import answer_start, encode_example, encode_pairs, encode_prompt
from lmnotes.data.seq2seq import pair_loader
from lmnotes.data.sequence_packing import PackedDataset, PackedLoader
from lmnotes.data.sft_examples import encode_rows, load_user_pairs
from lmnotes.data.token_encoding import decode_documents, encode_documents
from lmnotes.data.tokenizers import get_tokenizer
from lmnotes.evaluation import eval_model
from lmnotes.evaluation.generation_eval import generate_answers, make_requests
from lmnotes.rl.prompts import rl_prompts
from lmnotes.training.options import TrainOptions, check_options

# ---- tokenizers of every construction, trained on a page

PAGE = ['Question: what is the capital of France?\nAnswer: Paris. The answer is Paris, naïve as it is.',
        'Frage: 2+2=4 und 3+4=7; Antwort: vier. "the cat sat on the mat", said the answer.']*20
ENDS = ['<unk>', '<s>', '</s>']
BYTES = [f'<0x{b:02X}>' for b in range(256)]

def wrap(rust, **special):
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token='</s>', unk_token='<unk>', **special)

def frame(rust, form): # tokens that are added to every text
    names = [n for n in ('<s>', '</s>', '[CLS]', '[SEP]') if n in form]
    rust.post_processor = TemplateProcessing(form, special_tokens=[(n, rust.token_to_id(n)) for n in names])
    return rust

def byte_level(prefix):
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer,rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix),decoders.ByteLevel()
    rust.train_from_iterator(PAGE, trainers.BpeTrainer(
        vocab_size=360, special_tokens=ENDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return rust

def spm_bpe(): # as Llama 2: a dummy prefix by a normalizer, bytes for what is unknown
    rust = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    rust.train_from_iterator(PAGE, trainers.BpeTrainer(vocab_size=160, special_tokens=ENDS, show_progress=False))
    made = json.loads(rust.to_str())
    for b in BYTES: made['model']['vocab'][b] = len(made['model']['vocab'])
    rust = Tokenizer.from_str(json.dumps(made))
    rust.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(' ', 1, 0)])
    return rust

def metaspace_bpe(scheme): # as Mistral
    rust = Tokenizer(models.BPE(unk_token='<unk>'))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    rust.decoder = decoders.Metaspace(prepend_scheme=scheme)
    rust.train_from_iterator(PAGE, trainers.BpeTrainer(vocab_size=200, special_tokens=ENDS, show_progress=False))
    return rust

def unigram(): # as T5, whose normalizer joins spaces
    rust = Tokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')])
    rust.pre_tokenizer,rust.decoder = pre_tokenizers.Metaspace(),decoders.Metaspace()
    rust.train_from_iterator(PAGE, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=ENDS, unk_token='<unk>', show_progress=False))
    return rust

def word_level():
    rust = Tokenizer(models.WordLevel(unk_token='<unk>'))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.train_from_iterator(PAGE, trainers.WordLevelTrainer(special_tokens=ENDS, show_progress=False))
    return rust

def word_piece():
    rust = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    rust.normalizer,rust.pre_tokenizer = normalizers.BertNormalizer(),pre_tokenizers.BertPreTokenizer()
    names = ['[UNK]', '[CLS]', '[SEP]', '[PAD]']
    rust.train_from_iterator(PAGE, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False))
    rust.decoder = decoders.WordPiece()
    rust = frame(rust, '[CLS] $A [SEP]')
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token='[SEP]', unk_token='[UNK]', pad_token='[PAD]')

def own(name): return get_tokenizer(name, lambda: PAGE, 300 if name == 'bpe' else None)

MARKS = ("{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
         "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}<assistant>{% endif %}")
PLAIN = MARKS.replace('{% generation %}', '').replace('{% endgeneration %}', '')

BUILD = {
    'byte-level BPE': lambda: wrap(byte_level(False)),
    'byte-level with a prefix space': lambda: wrap(byte_level(True)),
    'SentencePiece BPE, dummy prefix, BOS': lambda: wrap(frame(spm_bpe(), '<s> $A'), bos_token='<s>'),
    'metaspace first, BOS': lambda: wrap(frame(metaspace_bpe('first'), '<s> $A'), bos_token='<s>'),
    'metaspace always': lambda: wrap(metaspace_bpe('always')),
    'unigram, EOS': lambda: wrap(frame(unigram(), '$A </s>')),
    'byte-level, BOS': lambda: wrap(frame(byte_level(False), '<s> $A'), bos_token='<s>'),
    'byte-level, BOS and EOS': lambda: wrap(frame(byte_level(False), '<s> $A </s>'), bos_token='<s>'),
    'byte-level, the end token as BOS': lambda: wrap(frame(byte_level(False), '</s> $A'), bos_token='</s>'),
    'word level': lambda: wrap(word_level()),
    'WordPiece, CLS and SEP': word_piece,
    **{f'our {n}': partial(own, n) for n in ('bytes', 'chars', 'words', 'bpe')},
}
_made = {}

@pytest.fixture(params=BUILD, scope='session')
def tok(request):
    name = request.param
    if name not in _made: _made[name] = BUILD[name]()
    return _made[name]

# ---- what is right, by the tokenizer's own call

def whole(tok, text): return tok(text)['input_ids']

def closed(tok, text):
    ids = whole(tok, text)
    return ids if ids[-1:] == [tok.eos_token_id] else [*ids, tok.eos_token_id]

ROWS = [('Question: what is the capital of France?\nAnswer:', ' Paris'), ('Answer: ', 'Paris'), ('Answer: ', '4'),
        ('the answer', 's are four'), ('2+2=', '4'), ('Antwort:\n', 'vier'), ('', 'the cat'), ('naïve ', 'naïve 戦'),
        ('the mat', '. '), ('Answer:  ', ' Paris')]

class Pairs(Dataset):
    "Rows of a prompt and a target"
    id, kind, modes = 'toy/pairs', 'questions', ('sft', 'rl')
    def prompt(self, row): return row['p']
    def target(self, row): return row['t']

DS,LINES = Pairs(),[dict(p=p, t=t) for p,t in ROWS]

def letters(text): return ''.join(text.split()).lower()

# ---- seven uses of a row

def test_pretrain(tok):
    texts = [p + t for p,t in ROWS]
    assert encode_documents(tok, texts).tolist() == [i for t in texts for i in closed(tok, t)]

def test_sft(tok):
    for e,(p,t) in zip(encode_rows(DS, LINES, tok), ROWS):
        assert e['ids'].tolist() == closed(tok, p + t) and e['ids'].dtype == np.int32
        assert e['loss'].dtype == bool and e['loss'][-1]
        start = e['loss'].argmax()
        assert e['loss'][start:].all()
        # a token more would have letters of the target, a token less would lack letters of the prompt
        said = tok.decode(e['ids'][start:], skip_special_tokens=True)
        if tok.unk_token_id not in e['ids'] or tok.unk_token_id == tok.eos_token_id:
            assert letters(said).endswith(letters(t).replace('ï', 'i') if 'ï' not in said else letters(t))
            before = tok.decode(e['ids'][:start], skip_special_tokens=True)
            want = letters(p if 'ï' in before else p.replace('ï', 'i'))
            assert letters(before) + letters(e.get('overlap', '')) == want

@pytest.mark.parametrize('pack', [pack_sequences, one_per_row])
def test_packed(tok, pack):
    examples = encode_rows(DS, LINES, tok)
    packed = PackedDataset(examples, 64, pack=pack)
    found = []
    for b, in PackedLoader(packed, bs=2, shuffle=False):
        for x,y,d in zip(b['input_ids'], b['shift_labels'], b['documents']):
            for i in range(int(d.max()) + 1):
                if (y[d == i] != -100).any(): found.append((x[d == i].tolist(), y[d == i].tolist()))
    want = [closed(tok, p + t) for p,t in ROWS]
    assert sorted(ids for ids,_ in found) == sorted(w[:-1] for w in want)
    for ids,labels in found:
        n = next(k for k,l in enumerate(labels) if l != -100)
        assert labels[n:] == [*ids[n+1:], tok.eos_token_id]

def test_seq2seq(tok):
    examples = encode_rows(DS, LINES, tok, two_texts=True)
    dl = pair_loader(PackedDataset(examples, 96, pack=one_per_row), bs=1, shuffle=False, begin=0)
    for (b,),(p,t) in zip(dl, ROWS):
        assert b['input_ids'][0].tolist() == (whole(tok, p) or [tok.eos_token_id])
        assert b['shift_labels'][0].tolist() == closed(tok, t)

def test_likelihood(tok, monkeypatch):
    seen = []
    def nll(model, prompt, answers):
        seen.extend((prompt, answer) for answer in answers)
        return [0.]*len(answers)
    monkeypatch.setattr(eval_model, 'answer_nll', nll)
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    for p,options in (('Answer:', [' Paris', ' 4']), ('2+2=', ['4', '7']), ('Answer: ', ['Paris', '4'])):
        seen.clear()
        eval_model.choice_nll(model, tok, [p], [options])
        text = [whole(tok, p + o) for o in options]
        text = [ids[:-1] if ids[-1] == tok.eos_token_id else ids for ids in text]
        firsts = [first for _,first,*_ in encode_pairs(tok, [p]*2, options)]
        begin = [] if min(firsts) else eval_model.start_ids(tok) # `2+2=4` may be one token: nothing stands before it
        assert [prompt + answer for prompt,answer in seen] == [begin + ids for ids in text]
        assert len({tuple(prompt) for prompt,_ in seen}) == 1 and len(seen[0][0]) == max(min(firsts), 1)

def test_generation(tok):
    for r,(p,t) in zip(make_requests(DS, LINES, tok), ROWS):
        ids = closed(tok, p + t)
        assert r.ids == ids[:len(r.ids)] and len(r.ids) + r.n_target == len(ids)
        alone = encode_prompt(tok, p.rstrip(' '))
        if p.strip() and not r.overlap and type(tok.backend_tokenizer.model).__name__ != 'Unigram':
            assert r.ids == alone # what a prompt without a known answer gives

def test_rl(tok):
    rows = [r for r in LINES if r['p']]
    data = SimpleNamespace(name='toy', task=DS, tokenizer=tok, rows=dict(train=rows),
                           examples=dict(train=encode_rows(DS, rows, tok)))
    for q,r in zip(rl_prompts(data), make_requests(DS, rows, tok)):
        assert q['ids'] == r.ids == closed(tok, r.row['p'] + r.row['t'])[:len(r.ids)]

@pytest.mark.parametrize('template', [MARKS, PLAIN], ids=['marks', 'no marks'])
def test_chat(tok, template, monkeypatch):
    monkeypatch.setattr(tok, 'chat_template', template, raising=False)
    talk = [dict(role='user', content='2+2?'), dict(role='assistant', content='4'),
            dict(role='user', content='the capital?'), dict(role='assistant', content='Paris, is it')]
    want = tok.apply_chat_template(talk, return_dict=False)
    for train_on,turns in (('all', 2), ('last', 1)):
        e = chat_example(tok, talk, train_on)
        assert e['ids'].tolist() == want
        assert np.diff(np.append(e['loss'], False), prepend=False).sum() == 2*turns # as many runs
        assert (e['ids'][e['loss']] == tok.eos_token_id).sum() == turns
    before = tok.apply_chat_template(talk[:3], add_generation_prompt=True, return_dict=False)
    if 'byte' in str(tok.backend_tokenizer.pre_tokenizer).lower(): assert want[:answer_start(e)] == before
    made = tok.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    if template is MARKS: assert chat_example(tok, talk)['loss'].tolist() == [bool(m) for m in made['assistant_masks']]

@pytest.mark.parametrize('template', [MARKS, PLAIN], ids=['marks', 'no marks'])
def test_assistant_turns_of_a_prompt_are_not_learnt(template, tmp_path):
    tok = get_tokenizer('bytes')
    tok.chat_template = template
    talk = [dict(role='user', content='2+2?'), dict(role='assistant', content='4'), dict(role='user', content='3+3?')]
    row = dict(prompt=talk, completion=[dict(role='assistant', content='6')])
    (tmp_path/'trl.jsonl').write_text(json.dumps(row), encoding='utf-8')
    (tmp_path/'turns.jsonl').write_text(json.dumps(dict(messages=talk + row['completion'])), encoding='utf-8')
    said = {}
    for name in ('trl', 'turns'):
        ds,rows = load_user_pairs(tmp_path/f'{name}.jsonl')
        e, = encode_rows(ds, rows['train'], tok, chat=True, system_prompt='Hm.')
        said[name] = tok.decode(e['ids'][e['loss']])
        assert e['ids'].tolist() == tok.apply_chat_template(add_system_prompt(ds.messages(rows['train'][0]), 'Hm.'),
                                                            return_dict=False)
    assert said['trl'].split() == ['6<eos>'] and said['turns'].replace('<eos>', ' ').split() == ['4', '6']

# ---- the test can fail: what was done before

def test_two_sides_encoded_apart_are_other_ids():
    differ = {}
    for name in BUILD:
        t = _made.setdefault(name, BUILD[name]())
        def ids(text, t=t): return t(text, add_special_tokens=False)['input_ids']
        apart = [ids(p) + ids(a) for p,a in ROWS]
        differ[name] = sum(x + [t.eos_token_id] != closed(t, p + a) for x,(p,a) in zip(apart, ROWS))
    assert {n for n,k in differ.items() if not k} == {'our bytes', 'our chars'}
    assert differ['SentencePiece BPE, dummy prefix, BOS'] == len(ROWS)

@pytest.mark.parametrize('name', ['bytes', 'chars', 'words', 'bpe'])
def test_catalog_rows_keep_their_ids(name):
    "Where a prompt ends without a space and a target begins with one, apart and whole are the same in our tokenizers"
    data = load_data('opinions', mode='sft', tokenizer='bytes', limit=40, device='cpu')
    ds,rows = data.task,data.rows['train'][:20]
    t = own(name)
    for e,r in zip(encode_rows(ds, rows, t), rows):
        apart = [t(x, add_special_tokens=False)['input_ids'] for x in (ds.prompt(r), ds.target(r))]
        assert e['ids'].tolist() == [*apart[0], *apart[1], t.eos_token_id]
        assert e['loss'].argmax() == len(apart[0])

# ---- the border

def test_a_token_across_the_border_is_learnt_and_its_letters_are_no_answer(monkeypatch):
    rust = Tokenizer(models.BPE({c: i for i,c in enumerate(['<unk>', '</s>', *'2+=4', '=4'])}, [('=', '4')]))
    t = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token='</s>', unk_token='<unk>')
    e = encode_example(t, '2+2=', '4')
    assert t.convert_ids_to_tokens(e['ids']) == ['2', '+', '2', '=4', '</s>']
    assert e['loss'].tolist() == [False]*3 + [True]*2 and e['overlap'] == '='
    r, = make_requests(DS, [dict(p='2+2=', t='4')], t)
    assert t.convert_ids_to_tokens(r.ids) == ['2', '+', '2'] and r.overlap == '='
    from lmnotes.evaluation import generation_eval
    monkeypatch.setattr(generation_eval, 'generate_batch', lambda *a, **k: ['=4', '4'])
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False, max_position_embeddings=64))
    monkeypatch.setattr(generation_eval, 'max_positions', lambda model: 64)
    assert generate_answers(model, t, [r, r]) == ['4', '4']

def test_special_tokens_of_a_template_are_ids_and_those_of_the_data_are_text(tok):
    eos = tok.eos_token
    e, = encode_rows(DS, [dict(p='Answer:', t=f' Paris{eos}')], tok, template=f'{eos}{{prompt}}{eos}')
    n = sum(i == tok.eos_token_id for i in whole(tok, 'Answer: Paris'))
    assert (e['ids'] == tok.eos_token_id).sum() == 2 + max(n, 1) + (whole(tok, 'a')[0] == tok.eos_token_id
                                                                   and tok.bos_token_id != tok.eos_token_id)

def test_bos_of_a_template_is_not_doubled():
    t = _made.setdefault('byte-level, BOS', BUILD['byte-level, BOS']())
    e, = encode_rows(DS, [dict(p='Answer:', t=' Paris')], t, template='<s>{prompt}')
    assert e['ids'].tolist() == closed(t, 'Answer: Paris')
    assert encode_prompt(t, '<s>Answer:') == encode_prompt(t, 'Answer:') == whole(t, 'Answer:')

def test_documents_come_back_where_they_begin_with_the_end_token():
    t = _made.setdefault('byte-level, the end token as BOS', BUILD['byte-level, the end token as BOS']())
    assert list(decode_documents(t, encode_documents(t, PAGE[:2]))) == PAGE[:2]

def test_a_length_in_tokenizer_json_cuts_nothing():
    t = BUILD['byte-level, BOS']()
    t.backend_tokenizer.enable_truncation(4)
    t.backend_tokenizer.enable_padding(length=50)
    assert len(encode_example(t, 'Question: what is the capital?', ' Paris')['ids']) not in (4, 5, 50)

# ---- options

def test_chat_options_need_a_chat_template():
    both = dict(system_prompt='Be brief.', train_on='last')
    check_options(TrainOptions(chat_template=True, **both), set(both))
    for name,value in both.items():
        o = TrainOptions(**{name: value})
        with pytest.raises(InputError, match='without --chat_template'): check_options(o, {name})

def test_a_system_prompt_and_the_turns_reach_the_tokens(tmp_path):
    t = get_tokenizer('bytes')
    t.chat_template = PLAIN
    t.save_pretrained(tmp_path/'tok')
    lines = [json.dumps(dict(prompt=f'{i}+1?', response=str(i + 1))) for i in range(50)]
    (tmp_path/'rows.jsonl').write_text('\n'.join(lines))
    files = dict(data_path=tmp_path/'rows.jsonl', tokenizer=str(tmp_path/'tok'))
    made = partial(load_data, **files, mode='sft', device='cpu', packing=False)
    data = made(chat_template=True, system_prompt='Be brief.')
    e,row = data.examples['train'][0],data.rows['train'][0]
    i = row['prompt'].split('+')[0]
    text = f'<system>Be brief.\n<user>{i}+1?\n<assistant>{int(i) + 1}<eos>\n'
    assert t.decode(e['ids']) == text
    assert t.decode(e['ids'][e['loss']]) == f'{int(i) + 1}<eos>'
    assert torch.equal(data.train.batch(0)[0]['input_ids'], made(**{k: v for k,v in data.spec.items() if k in (
        'chat_template', 'system_prompt', 'seed', 'max_length', 'bs')}).train.batch(0)[0]['input_ids'])
