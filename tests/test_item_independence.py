"An item's score depends on that item alone: not on its batch, its place, the batch size, or the items beside it"
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import logging

from lmnotes.core import InputError, set_seed
from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.load import load_data
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.eval_model import EvalModel, choice_nll
from lmnotes.evaluation.evaluate import evaluate_model
from lmnotes.evaluation.generation_eval import *
from lmnotes.evaluation.item_files import read_items, rescore_items
from lmnotes.evaluation.task_suite import eval_tasks, evaluate_tasks
from lmnotes.evaluation.tasks.math_tasks import sample_answers
from lmnotes.models import build_model, generate_batch
from lmnotes.models.hf.hf_generation import *
from lmnotes.models.task_heads import add_task_head
from lmnotes.rl.prompts import rl_prompts
from lmnotes.rl.rl_evaluation import held_out_scores

logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings('ignore')
TOK = byte_tokenizer()

N = len(TOK)

def fresh(name='standard', max_length=512, vocab_size=N, **options):
    set_seed(0)
    own = dict(size='tiny', n_layer=1, max_length=max_length)
    options = options if name.startswith('tiny:') else own | options
    return build_model(name, vocab_size=vocab_size, **options).eval()

# every group of tasks: alone, in any order, in any batch, beside any other items

GROUPS = dict(
    classification='opinions', tagging='entities', qa='reading', generation='prose', math='arithmetic', code='python',
    choice='reading',
)

def found(score, s, ds, rows): # (name, id of the item) -> what was answered and scored
    return {
        (t.name, i['id']): {k: i.get(k) for k in ('output', 'score', 'cut', 'draws', 'right', 'log_probs')}
        for t in score(s, ds, rows)
        for i in t.items
    }

def same(a, b): # to the last bit
    return str(a) == str(b) and a.keys() == b.keys()

@pytest.mark.parametrize('group', GROUPS)
def test_alone_in_any_order_and_in_any_batch(group):
    score = eval_tasks[group]
    n = 3 if group in ('math', 'code') else 5 # they write much
    ds,rows = score.spec.load(GROUPS[group], None, n, 0)
    rows = list(rows)
    s = EvalModel(fresh(), TOK, draws=1, bs=4)
    whole = found(score, s, ds, rows)
    assert len(whole) % n == 0
    alone = {k: v for row in rows for k,v in found(score, s, ds, [row]).items()}
    shuffled = found(score, replace(s, bs=2), ds, random.Random(1).sample(rows, n))
    assert same(whole, {k: alone[k] for k in whole}) and same(whole, {k: shuffled[k] for k in whole})

@pytest.mark.parametrize('group', ['qa', 'math'])
def test_a_neighbour_with_a_long_answer_takes_no_room(group):
    "Before: room for the longest answer of all rows was taken from every prompt"
    score = eval_tasks[group]
    ds,rows = score.spec.load(GROUPS[group], None, 3, 0)
    long = dict(rows[0], answers=dict(text=['word '*60], answer_start=[0]), answer='A long way.\n'*60 + '#### 7')
    s = EvalModel(fresh(), TOK, draws=0)
    before = found(score, s, ds, list(rows))
    requests = s.requests(ds, [*rows, long])
    fits = [fit_request(s.model, r) for r in requests]
    assert [f.ids for f in fits[:3]] == [r.ids for r in requests[:3]] and [f.cut for f in fits[:3]] == ['']*3
    texts = generate_answers(s.model, TOK, requests)
    assert texts[:3] == [v['output'] for v in before.values()]

def test_heads_answer_each_text_alone():
    model = fresh()
    for task,name,labels in (('classify', 'opinions', ['negative', 'positive']), ('span', 'reading', [])):
        s = EvalModel(add_task_head(model, task, labels) if labels else add_task_head(model, task), TOK)
        group = dict(classify='classification', span='qa')[task]
        ds,rows = eval_tasks[group].spec.load(name, None, 4, 0)
        rows = list(rows)
        whole = found(eval_tasks[group], s, ds, rows)
        alone = {k: v for row in rows for k,v in found(eval_tasks[group], s, ds, [row]).items()}
        assert same(whole, alone)

def test_generated_scores_of_a_run_and_of_rewards():
    data = load_data('arithmetic', mode='sft', max_length=400, limit=60, packing=False, device='cpu')
    model = fresh(max_length=400)
    requests = validation_requests(data, 3)
    def answers(some, **options):
        items = score_requests(model, TOK, some, **options)['items']
        return {r.target: i['output'] for r,i in zip(some, items)}
    whole = answers(requests)
    assert whole == answers(requests[::-1], bs=2) and all(answers([r])[r.target] == whole[r.target] for r in requests)
    prompts = rl_prompts(data, 'validation')[:3]
    options = dict(k=2, max_new_tokens=12)
    items = held_out_scores(model, data, prompts, **options)['items']
    backwards = held_out_scores(model, data, prompts[::-1], bs=2, **options)['items'][::-1]
    for p,a,b in zip(prompts, items, backwards):
        one, = held_out_scores(model, data, [p], **options)['items']
        written = [(i['output'], i['draws'], i['score']) for i in (one, a, b)]
        assert written == written[:1]*3

# families of transformers, under padding

V = 300
_plain = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
    pad_token_id=1, bos_token_id=2, eos_token_id=2,
)
_gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=128)
_pair = dict(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, decoder_start_token_id=2,
)
FAMILIES = dict(
    gpt2=_gpt,
    opt=dict(_plain, ffn_dim=64, word_embed_proj_dim=32),
    bloom=dict(hidden_size=32, n_layer=2, n_head=2),
    gpt_neo=dict(
        hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
        max_position_embeddings=128,
    ),
    gptj=dict(_gpt, rotary_dim=8),
    xglm=dict(d_model=32, ffn_dim=64, num_layers=2, attention_heads=2, max_position_embeddings=128),
    biogpt=_plain,
    mamba=dict(hidden_size=32, num_hidden_layers=2, state_size=8),
    falcon=dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True),
    mpt=dict(d_model=32, n_heads=2, n_layers=2, max_seq_len=128),
    rwkv=dict(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64),
    bart=_pair,
    pegasus=_pair,
    m2m_100=dict(_pair, pad_token_id=1),
    t5=dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0),
)

def family(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **dict(FAMILIES[name], vocab_size=V))
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config).eval()
    for p in model.parameters():
        if p.dim() > 1: p.data.mul_(5) # so that positions count
    model.generation_config.eos_token_id = None
    return model

@pytest.mark.parametrize('name', FAMILIES)
def test_padding_changes_no_text(name):
    model = family(name)
    prompts = [list(range(3, 3 + n)) for n in (40, 5, 19, 5)]
    alone = [generate_batch(model, TOK, [p], 10, temperature=0)[0] for p in prompts]
    assert generate_batch(model, TOK, prompts, 10, temperature=0) == alone
    assert generate_batch(model, TOK, prompts[::-1], 10, temperature=0, bs=3) == alone[::-1]

def test_the_side_of_the_padding_matters_to_bart():
    "Padded on the left, as a decoder's prompts are, its learned positions moved with the longest neighbour"
    model = family('bart')
    left,mask = pad_rows([list(range(3, 43)), list(range(3, 8))], 1)
    right,mask_right = pad_rows([list(range(3, 43)), list(range(3, 8))], 1, left=False)
    start = torch.full((2, 1), 2)
    with torch.no_grad():
        single = model(input_ids=right[1:,:5], decoder_input_ids=start[:1]).logits[0]
        on_the_left = model(input_ids=left, attention_mask=mask, decoder_input_ids=start).logits[1]
        on_the_right = model(input_ids=right, attention_mask=mask_right, decoder_input_ids=start).logits[1]
    assert (single - on_the_left).abs().max() > .1 and (single - on_the_right).abs().max() < 1e-4

# what a published model asks for

HABITS = dict(
    num_beams=4, num_return_sequences=2, do_sample=True, temperature=.3, top_k=3, repetition_penalty=3.,
    length_penalty=2., no_repeat_ngram_size=2, min_length=50, forced_eos_token_id=7, forced_bos_token_id=9,
    suppress_tokens=list(range(100)), begin_suppress_tokens=list(range(100)), bad_words_ids=[[5]], early_stopping=True,
)

@pytest.mark.parametrize('name', ['tiny:gpt2', 'tiny:bart', 'tiny:t5', 'standard'])
def test_inherited_habits_change_nothing(name):
    model = fresh(name)
    prompts = ['to be', 'or not to be, that']
    plain = generate_batch(model, TOK, prompts, 12, temperature=0)
    for k,v in HABITS.items(): setattr(model.generation_config, k, v)
    assert generate_batch(model, TOK, prompts, 12, temperature=0) == plain
    assert model.generation_config.num_beams == 4

@pytest.mark.parametrize('name', ['tiny:gpt2', 'standard'])
def test_any_of_several_end_tokens_ends_a_text(name):
    tok,model = byte_tokenizer(),fresh(name)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([tok('to be', add_special_tokens=False)['input_ids']])
    config = greedy_config(model, tok, 12)
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)[0,5:].tolist()
    end = written[3]
    model.generation_config.eos_token_id = [7, end]
    assert end_tokens(model, tok) == [tok.eos_token_id] # a byte like any other
    assert generate_batch(model, tok, ['to be'], 12, temperature=0) == [tok.decode(written)]
    tok.add_special_tokens(dict(additional_special_tokens=[tok.convert_ids_to_tokens(end)]))
    assert end_tokens(model, tok) == [tok.eos_token_id, end]
    cut = tok.decode(written[:written.index(end)], skip_special_tokens=True)
    assert generate_batch(model, tok, ['to be'], 12, temperature=0) == [cut]

# near ties

def test_a_near_tie_is_written_again_alone(monkeypatch):
    from lmnotes.models import generation
    from lmnotes.models.decoding import token_choice
    monkeypatch.setattr(token_choice, '_near', 1e9) # every step
    model,calls = fresh(),[]
    write = generation._write
    monkeypatch.setattr(generation, '_write', lambda m, t, rows, o: calls.append(len(rows)) or write(m, t, rows, o))
    prompts = ['to be', 'or', 'not']
    texts = generate_batch(model, TOK, prompts, 6, temperature=0)
    assert calls == [3, 1, 1, 1] and texts == [generate_batch(model, TOK, [p], 6, temperature=0)[0] for p in prompts]
    calls.clear()
    generate_batch(model.bfloat16(), TOK, prompts, 6, temperature=0)
    assert calls == [3] # in 16 bits it is left out, as said

# what does not fit

def test_rows_that_fit_whole_lose_nothing_and_the_rest_is_counted():
    for name in ('opinions', 'arithmetic', 'recall', 'reading', 'entities'):
        ds = find_dataset(name)
        rows = load_rows(ds)['validation']
        requests = make_requests(ds, rows, TOK)
        sizes = [len(r.ids) + r.n_target - 1 for r in requests]
        context = int(np.median(sizes)) - 1
        model = fresh(max_length=context)
        fits = [fit_request(model, r) for r in requests]
        for r,f,size in zip(requests, fits, sizes):
            assert len(f.ids) + f.n_new <= context and bool(f.cut) >= (size > context)
            if r.n_least == 1: assert bool(f.cut) == (size > context)
            if size <= context and r.n_least == 1: assert f.ids == r.ids and f.n_new >= r.n_target - 1
        assert not is_measured([f.cut for f in fits])

def test_over_a_tenth_is_not_measured():
    ds = find_dataset('reading')
    rows = load_rows(ds)['test'][:20]
    model = fresh(max_length=330)
    _,missing = evaluate_tasks(model, TOK, 'qa', datasets=[(ds, rows)])
    assert [m['task'] for m in missing] == ['qa'] and 'prompts cut' in missing[0]['reason']
    s = EvalModel(model, TOK)
    with pytest.raises(InputError, match='prompts cut'): s.answer(ds, rows)
    found = task_score(model, TOK, ds, rows)
    assert found['score'] is None and found['n_cut'] > 2 and len(found['items']) == 20

def test_the_right_answer_is_not_told_by_the_room():
    ds = find_dataset('reading')
    row = load_rows(ds)['test'][0]
    other = dict(row, answers=dict(text=['a much longer answer than any'], answer_start=[0]))
    model = fresh(max_length=400)
    a,b = (fit_request(model, make_requests(ds, [r], TOK)[0]) for r in (row, other))
    assert (a.ids, a.n_new, a.max_bytes) == (b.ids, b.n_new, b.max_bytes)

shared = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')
REAL = ('sst2', 128), ('squad', 512), ('gsm8k', 512)

@pytest.mark.parametrize('name,context', REAL)
def test_real_rows_that_fit_lose_nothing(name, context):
    if not shared.is_dir(): pytest.skip(f'{shared} is not there: no real rows')
    ds = find_dataset(name)
    try:
        splits = load_rows(ds, shared)
    except InputError as e:
        pytest.skip(str(e))
    rows = [r for split in ('validation', 'test') for r in list(splits.get(split, ()))[:300] if ds.has_answer(r)]
    model = fresh(max_length=context)
    requests = make_requests(ds, rows, TOK, context)
    fitting = [r for r in requests if len(r.ids) + max(r.n_target - 1, r.n_least) <= context]
    assert fitting and all(fit_request(model, r).ids == r.ids and not fit_request(model, r).cut for r in fitting)

# on disk

def test_every_item_is_on_disk_and_scored_again(tmp_path):
    model = fresh()
    r = evaluate_model(model, ','.join([*GROUPS, 'lm']), TOK, limit=2, output=tmp_path/'evaluation.json', draws=2)
    items = read_items(tmp_path/r['items'])
    assert len(items) == sum(t['n'] for t in r['tasks']) + sum(l['windows'] for l in r['lm'])
    assert all({'id', 'prompt', 'output', 'target', 'score', 'cut'} <= set(i) for i in items)
    again = {(t['task'], t['name']): t for t in rescore_items(items)}
    for l in r['lm']: # windows of text weigh as much as their bytes
        assert again['lm', l['name']]['after'] == pytest.approx(l['bits_per_byte']) and 'items' not in l
    for t in r['tasks']:
        assert again[t['task'], t['name']]['changed'] == 0
        asked = [i for i in items if (i['task'], i['name']) == (t['task'], t['name'])]
        if t['metric'] == 'entity_f1': # of all items together
            ds = find_dataset(asked[0]['dataset'])
            ds.names = asked[0]['names']
            values = ds.score_set([i['row'] for i in asked], [i['output'] for i in asked])
            assert values.mean() == pytest.approx(t['mean'])
        else: assert again[t['task'], t['name']]['after'] == pytest.approx(t['mean'])
    assert all(len(i['log_probs']) == len(i['choices']) for i in items if i['rule'] == 'choice')
    assert all(len(i['draws']) == 2 for i in items if i['task'] == 'math')

def test_figures_of_choices_have_no_neighbours():
    model = fresh()
    prompts,choices = ['One', 'A longer question', 'Q'*90],[[' yes', ' no'], [' a', ' much longer answer'], [' x']]
    whole = choice_nll(model, TOK, prompts, choices)
    for i,(p,c) in enumerate(zip(prompts, choices)): assert (choice_nll(model, TOK, [p], [c])[0] == whole[i]).all()
    ds = find_dataset('arithmetic')
    s = EvalModel(model, TOK)
    requests = s.requests(ds, load_rows(ds)['test'][:3])
    assert sample_answers(s, requests, 2)[1] == sample_answers(s, requests[1:2], 2)[0]
