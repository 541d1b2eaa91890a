"Texts written one step at a time have the tokens that `generate` of transformers finds for the same model"
import pytest
import torch
from transformers import GenerationMixin

from lmnotes.core import set_seed
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.models import build_model, models
from lmnotes.models.decoding.token_choice import NextToken, TextEnds, TextRow
from lmnotes.models.decoding.token_step import TokenStep, takes_steps, write_tokens
from lmnotes.models.hf.hf_generation import pad_rows
from lmnotes.models.layers import mixers
from lmnotes.quantizers.packed_model import load_packed, pack

TOK = byte_tokenizer()
PROMPTS = [list(range(40, 43 + n)) for n in (5, 1, 9, 3)] # padded on the left
CAUSAL = [n for n in models.names() if n != 'encoder']
OPTIONS = dict(
    learned=dict(pos='learned'), no_positions=dict(pos='none'), shared_keys=dict(n_head=4, n_kv_head=2),
    biased=dict(bias=True), plain_heads=dict(qk_norm=False), untied=dict(tie=False), layernorm=dict(norm='layernorm'),
    dropout=dict(dropout=.5), **{f'mixer_{m}': dict(mixer=[m, 'attention']) for m in mixers.names()},
)
REWRITES = (
    'ternary', 'ternary:all:act8', 'binary', 'int8', 'int4', 'int3', 'int2', 'codebook', 'bits:3', 'route:2.5',
    'ternary+share:all',
)

def fresh(name, **options):
    set_seed(0)
    return build_model(name, **dict(size='tiny', n_layer=2, vocab_size=len(TOK), max_length=256) | options).eval()

def by_generate(model, prompts, end, n, **options):
    ids,mask = pad_rows(prompts, 0)
    out = GenerationMixin.generate(
        model, ids, attention_mask=mask, max_new_tokens=n, eos_token_id=end, pad_token_id=0, **options
    )[:,ids.shape[1]:].tolist()
    return [row[:row.index(end) + 1] if end in row else row for row in out]

def by_steps(model, prompts, end, n, seed=None, **options):
    ids,mask = pad_rows(prompts, 0)
    rows = [TextRow(p, n) for p in prompts]
    ends = TextEnds(TOK, rows, eos=[end])
    generators = () if seed is None else [torch.Generator().manual_seed(seed) for _ in rows]
    write_tokens(model, ids, mask, NextToken(generators=generators, **options), ends, n)
    return ends.new

def check(model, n=16):
    assert takes_steps(model)
    greedy = dict(do_sample=False)
    end = by_generate(model, PROMPTS[:1], -1, n, **greedy)[0][6]
    for prompts in (PROMPTS, PROMPTS[:1]):
        assert by_steps(model, prompts, end, n) == by_generate(model, prompts, end, n, **greedy)
    for seed,top_p in ((3, 1.), (4, .8)): # one row, which draws what `torch.multinomial` draws
        torch.manual_seed(seed)
        drawn = by_generate(model, PROMPTS[:1], end, n, do_sample=True, temperature=.7, top_p=top_p, top_k=0)
        assert by_steps(model, PROMPTS[:1], end, n, seed, temperature=.7, top_p=top_p) == drawn
        together = by_steps(model, PROMPTS, end, n, seed, temperature=.7, top_p=top_p)
        alone = [by_steps(model, [p], end, n, seed, temperature=.7, top_p=top_p)[0] for p in PROMPTS]
        assert together == alone

@pytest.mark.parametrize('name', CAUSAL)
def test_every_recipe_writes_the_tokens_of_generate(name): check(fresh(name))

@pytest.mark.parametrize('name', OPTIONS)
def test_every_kind_of_layer_writes_the_tokens_of_generate(name): check(fresh('standard', **OPTIONS[name]))

@pytest.mark.parametrize('rewrite', REWRITES)
def test_rewritten_models_write_the_tokens_of_generate(rewrite): check(fresh(f'standard+{rewrite}'))

def test_a_packed_model_writes_the_tokens_of_generate(tmp_path):
    pack(fresh('standard+ternary:all:act8'), tmp_path/'packed', verbose=False)
    check(load_packed(tmp_path/'packed').eval())

def test_one_wrong_key_in_the_cache_is_seen():
    model,ids = fresh('standard'),torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        a,b = TokenStep(model, 20),TokenStep(model, 20)
        for s in (a, b): s.read(ids)
        b.cache.pairs[0][0][:,:,2] += 1
        assert (a(ids[:,0]) - b(ids[:,0])).abs().max() > 1e-4

def test_a_batch_shrinks_as_its_rows_end(monkeypatch):
    sizes,step = [],TokenStep.__call__
    monkeypatch.setattr(TokenStep, '__call__', lambda self, tokens: sizes.append(len(tokens)) or step(self, tokens))
    model,prompts = fresh('standard'),[[i] for i in range(60, 68)]
    ids,mask = pad_rows(prompts, 0)
    ends = TextEnds(TOK, [TextRow(p, 2 + 2*i) for i,p in enumerate(prompts)])
    write_tokens(model, ids, mask, NextToken(), ends, 16)
    assert [len(t) for t in ends.new] == [2 + 2*i for i in range(8)]
    assert sizes[0] == 8 and sizes[-1] < 4 and sizes == sorted(sizes, reverse=True)
    alone = [by_steps(model, [p], -1, 2 + 2*i)[0] for i,p in enumerate(prompts)]
    assert ends.new == alone
