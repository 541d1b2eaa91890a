"Counts before anything is loaded: known models, what fits, FLOPs against PyTorch's counter, and the model builder"

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmnotes.core import InputError
from lmnotes.models import *
from lmnotes.models.blocks import residuals
from lmnotes.models.flops_and_memory import *
from lmnotes.models.hf.hf_published import *
from lmnotes.models.layers import ffns, mixers, norms
from lmnotes.models.model_zoo import *

# millions of parameters as published (paper, card, or size of the checkpoint), tied heads once;
# for models with experts, also those active for a token
PUBLISHED = {
    'openai-community/gpt2': 124.4,
    'openai-community/gpt2-medium': 354.8,
    'openai-community/gpt2-large': 774.0,
    'openai-community/gpt2-xl': 1557.6,
    'microsoft/DialoGPT-small': 124.4,
    'microsoft/DialoGPT-medium': 354.8,
    'microsoft/DialoGPT-large': 774.0,
    'Qwen/Qwen2-0.5B': 494.0,
    'Qwen/Qwen2-1.5B': 1543.7,
    'Qwen/Qwen2-7B': 7615.6,
    'Qwen/Qwen2.5-0.5B': 494.0,
    'Qwen/Qwen2.5-1.5B': 1543.7,
    'Qwen/Qwen2.5-3B': 3085.9,
    'Qwen/Qwen2.5-0.5B-Instruct': 494.0,
    'Qwen/Qwen2.5-1.5B-Instruct': 1543.7,
    'Qwen/Qwen2.5-3B-Instruct': 3085.9,
    'Qwen/Qwen3-0.6B': 600,
    'Qwen/Qwen3-1.7B': 1700,
    'Qwen/Qwen3-4B': 4000,
    'Qwen/Qwen3-0.6B-Base': 600,
    'Qwen/Qwen3-1.7B-Base': 1700,
    'Qwen/Qwen3-4B-Base': 4000,
    'Qwen/Qwen3-4B-Instruct-2507': 4000,
    'Qwen/Qwen3-30B-A3B': (30_500, 3300),
    'Qwen/Qwen3-235B-A22B': (235_000, 22_000),
    'meta-llama/Llama-3.2-1B': 1230,
    'meta-llama/Llama-3.2-3B': 3210,
    'google-t5/t5-small': 60.5,
    'google-t5/t5-base': 222.9,
    'google-t5/t5-large': 737.7,
    'google-t5/t5-3b': 2851.6,
    'facebook/bart-base': 139.4,
    'facebook/bart-large': 406.3,
    'mistralai/Mixtral-8x7B-v0.1': (46_700, 12_900),
    'mistralai/Mixtral-8x22B-v0.1': (141_000, 39_000),
    'google/switch-base-8': 222.9 + 12 * 7 * 4.72,
    'google/switch-base-16': 222.9 + 12 * 15 * 4.72,
    'google/switch-base-32': 2000,
    'google/switch-base-128': 7400,
    'deepseek-ai/deepseek-moe-16b-base': (16_400, 2800),
    'Snowflake/snowflake-arctic-base': (480_000, 17_000),
}

def test_all_are_there(): assert set(known_models) == set(PUBLISHED) and len(PUBLISHED) == 41

@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_as_published(name):
    total,active = p if isinstance(p := PUBLISHED[name], tuple) else (p, None)
    c = count_config(known_config(name))
    assert abs(c['total']/1e6/total - 1) < .02 and sum(c['kinds'].values()) == c['total']
    if active: assert abs(c['active']/1e6/active - 1) < .03
    b = c['bytes']
    assert b['fp32'] == 4*c['total'] and b['bf16'] == 2*c['total']
    assert b['bf16'] > b['8bit'] > b['4bit'] > c['total']/2

def test_counts_are_kept():
    assert count_config(known_config('gpt2')) is count_config(known_config('gpt2'))

def test_names():
    assert known_id('gpt2') == known_id('openai-community/gpt2')
    assert known_id('qwen3-0.6b') == 'Qwen/Qwen3-0.6B'
    assert known_id('Mixtral-8x22B') == 'mistralai/Mixtral-8x22B-v0.1'
    assert known_id('prajjwal1/bert-tiny') is None and len({known_id(n.split('/')[1]) for n in known_models}) == 41
    with pytest.raises(InputError, match="did you mean 'gpt2-large'") as e:
        known_config('gpt2-lage')
    assert '\n' not in str(e.value)

ONE_OF_EACH = [
    'gpt2', 'Qwen3-0.6B', 't5-small', 'bart-base', 'Mixtral-8x7B', 'switch-base-8', 'deepseek-moe-16b-base',
    'snowflake-arctic-base',
]

@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_counts_are_those_of_a_real_model(name):
    "Shrunk until it can be built, each family has on the CPU what it is said to have on the meta device"
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    small = dict(
        hidden_size=32,
        d_model=32,
        n_embd=32,
        vocab_size=50,
        intermediate_size=48,
        d_ff=48,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        n_layer=2,
        num_layers=2,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=4,
        n_head=4,
        num_heads=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        d_kv=8,
        num_experts=4,
        num_local_experts=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        shared_expert_intermediate_size=24,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    have = known_config(name).to_dict()
    ids = {k: 0 for k in have if k.endswith('token_id')}
    c = known_config(name, **{k: v for k,v in small.items() if k in have}, **ids)
    real = (AutoModelForSeq2SeqLM if c.is_encoder_decoder else AutoModelForCausalLM).from_config(c)
    assert count_config(c)['total'] == sum(p.numel() for p in real.parameters())

def test_quantized_bytes_are_those_of_bitsandbytes():
    bnb = pytest.importorskip('bitsandbytes')
    lin = torch.nn.Linear(128, 96, bias=False)
    codes,state = bnb.functional.quantize_4bit(lin.weight.data, blocksize=64, quant_type='nf4')
    m = build_model('standard', vocab_size=20, dim=128, n_layer=1, n_head=2, ffn_dim=96)
    rest = sum(p.numel() for p in m.parameters()) - 4*128*128 - 3*128*96
    per = lambda r, c: r*c//2 + 4*(r*c//64)
    kinds,products = parameter_kinds(m),matmul_weights(m)
    up = m.blocks[0].ffn.part.up_proj
    packed = bnb.nn.Linear4bit(128, 96, bias=False)
    packed.weight = bnb.nn.Params4bit(up.weight.data, requires_grad=False)
    assert codes.nbytes + state.absmax.nbytes == per(96, 128)
    assert weight_bytes(m, '4bit') == 2*rest + 4*per(128, 128) + 3*per(96, 128)
    m.blocks[0].ffn.part.up_proj = packed.to('cpu')
    assert parameter_kinds(m) == kinds and matmul_weights(m) == products # counted as what they stand for

AMOUNTS = [
    ('24GB', 24e9), ('24G', 24e9), ('24gb', 24e9), ('800MB', 8e8), ('800 mb', 8e8), ('1.5T', 1.5e12), ('16GiB', 2**34),
    ('512k', 512e3),
]

@pytest.mark.parametrize('text,n', AMOUNTS)
def test_memory(text, n): assert parse_memory(text) == n

@pytest.mark.parametrize('text', ['24', 'GB', '-1GB', '0GB', '24PB', '24 G B', '1e3GB', '', None, '24GB, 8GB'])
def test_memory_that_is_none(text):
    with pytest.raises(InputError, match='24GB, 800MB or 16GiB') as e:
        parse_memory(text)
    assert '\n' not in str(e.value)

def test_what_fits():
    def fits(m): return {r['name']: [p for p in precisions if r['fits'][p]] for r in hub_model_rows(parse_memory(m))}
    rows = {m: fits(m) for m in ('1GB', '24GB', '80GB', '1TB')}
    mix = lambda m: rows[m]['mistralai/Mixtral-8x7B-v0.1']
    assert mix('24GB') == [] and mix('80GB') == ['8bit', '4bit'] and mix('1TB') == list(precisions)
    assert rows['24GB']['Qwen/Qwen2-7B'] == ['bf16', '8bit', '4bit']
    assert rows['1GB']['openai-community/gpt2'] == list(precisions)
    for a,b in (('1GB', '24GB'), ('24GB', '80GB'), ('80GB', '1TB')):
        assert all(set(rows[a][n]) <= set(rows[b][n]) for n in known_models) # more memory holds more
    c = count_config(known_config('gpt2'))
    need = inference_memory(c, 'bf16')
    assert need == round(1.1*c['bytes']['bf16']) + c['cache']
    assert hub_model_rows(need)[0]['fits']['bf16'] and not hub_model_rows(need - 1)[0]['fits']['bf16']

def test_the_table_lists_all(capsys):
    show_models('24GB')
    out = capsys.readouterr().out
    assert all(n in out for n in known_models) and '24GB' in out
    assert all(f'{n} {s}' in out for n in models.names() for s in getattr(models[n], 'sizes', model_sizes))
    assert all(len(l) <= 100 for l in out.splitlines() if 'tiny:' not in l)
    assert all(t in out for t in tiny_model_names())
    with pytest.raises(InputError, match='not an amount'):
        show_models('much')

@pytest.mark.parametrize('name', ['standard', 'gpt', 'reversible'])
def test_recipe_rows_are_real_counts(name):
    row = next(r for r in recipe_rows(10**9) if r['name'] == f'{name} tiny')
    assert row['total'] == sum(p.numel() for p in build_model(name, 'tiny', vocab_size=258).parameters())


def _counted(run):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()

FLOP_PARTS = [
    {},
    dict(ffn='relu2', norm='layernorm'),
    dict(pos='learned', max_length=64),
    dict(n_kv_head=1, tie=False),
    dict(residual='reversible'),
    dict(ffn='moe'),
    dict(causal=False),
]

@pytest.mark.parametrize('parts', FLOP_PARTS, ids=str)
def test_flops_as_pytorch_counts(parts):
    if parts.get('ffn', 'gelu') not in ffns: pytest.skip(f"no {parts['ffn']} here")
    torch.manual_seed(0)
    B,T = 2,64
    m = build_model('standard', vocab_size=80, dim=64, n_layer=2, n_head=4, plain=True, **parts).train()
    ids = torch.randint(80, (B, T))
    forward = _counted(lambda: m(ids))
    training = _counted(lambda: m(ids).logits.sum().backward())
    assert abs(B*T*forward_flops(m, T, causal=False)/forward - 1) < .05
    assert abs(model_flops(m, B*T, T, causal=False)/training - 1) < .05

@pytest.mark.parametrize('mixer', ['lstm', 'gru'])
def test_recurrent_flops(mixer):
    if mixer not in mixers: pytest.skip(f'no {mixer} here')
    m = build_model('standard', vocab_size=80, dim=64, n_layer=2, n_head=4, mixer=mixer, pos='none')
    own = 2*sum(p.numel() for p in m.parameters() if p.dim() == 2)
    assert forward_flops(m, 10) == forward_flops(m, 1000) == own # products only, whatever the length

@pytest.mark.parametrize('mixer', ['resonance', 'associative'])
def test_resonance_flops(mixer):
    if mixer not in mixers: pytest.skip(f'no {mixer} here')
    m = build_model('standard', vocab_size=80, dim=64, n_layer=2, n_head=4, mixer=mixer, pos='none')
    T = 256
    parts = [b.mixer.part for b in m.blocks]
    assert len(parts) == 2 and all(type(p).__mro__[1].__name__ in ('Resonance', 'Module') for p in parts)
    # the counter has no transforms (2T = 2**9) and no taps
    products = forward_flops(m, T) - sum(64*(p.gates or 1)*(10*9 + 6) + 2*p.taps.numel() for p in parts)
    with torch.no_grad():
        assert T*products/_counted(lambda: m(torch.zeros(1, T, dtype=torch.long))) == pytest.approx(1, abs=.05)
    looking = lambda T: forward_flops(m, T) - 2*matmul_weights(m)
    assert 1 < looking(32768)/looking(2048) < 1.4

def test_tied_head_and_frozen_body():
    m = build_model('standard', vocab_size=80, dim=64, n_layer=2, n_head=4)
    assert model_flops(m, 7, 9) == pytest.approx(21*forward_flops(m, 9))
    m.requires_grad_(False)
    # attention has no weights to freeze
    assert model_flops(m, 7, 9) == pytest.approx(21*forward_flops(m, 9) - 14*matmul_weights(m))

def test_a_shared_layer_works_twice():
    m = build_model('standard', vocab_size=80, dim=64, n_layer=2, n_head=4)
    before = forward_flops(m, 9)
    n = sum(parameter_kinds(m).values())
    m.blocks[1] = m.blocks[0]
    assert forward_flops(m, 9) == before and sum(parameter_kinds(m).values()) < n


PARTS = (
    [dict(mixer=m) for m in mixers]
    + [dict(ffn=f) for f in ffns]
    + [dict(residual=r, n_layer=5) for r in residuals]
    + [dict(norm=n, tie=False) for n in norms]
)
LAYER_BY_LAYER = dict(mixer=['attention']*3, n_layer=3, ffn=['gelu', 'relu2', 'swiglu'])
@pytest.mark.parametrize('parts', [*PARTS, LAYER_BY_LAYER], ids=str)
def test_describe_is_the_real_model(parts):
    from lmnotes.app.model_builder import describe
    d = describe(dict(vocab_size=90, **parts), batch=3, length=20)
    real = eval(d['code'])
    assert d['total'] == count_parameters(real)['total']
    assert d['memory']['weights'] == sum(p.nbytes for p in real.parameters())
    # cells keep workspaces that hooks on shapes cannot see
    if parts.get('mixer') in ('lstm', 'gru'): return
    storages = {}
    def pack(t):
        storages[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        h = real.train().forward_features(torch.zeros(3, 20, dtype=torch.long)) # holds what was saved
    del h
    kept = sum(storages.values()) - sum(storages.get(p.untyped_storage()._cdata, 0) for p in real.parameters())
    assert d['memory']['activations'] == pytest.approx(kept, rel=.02)

def test_the_builder_shows_errors_in_its_panel():
    from lmnotes.app.model_builder import model_builder
    b = model_builder(dim=64, n_head=4)
    assert b.description['total'] and bytes(b.chart.value[:4]) == b'\x89PNG'
    assert set(b.controls['mixer'].options) == set(mixers) and set(b.controls['residual'].options) == set(residuals)
    b.controls['n_head'].value = 3
    assert b.description is None and 'does not divide dim=64' in b.panel.value and '\n' not in b.panel.value
    b.controls['dim'].value = 768
    assert b.description['total'] == count_parameters(eval(b.description['code']))['total']
    with pytest.raises(InputError, match="no control 'layers'"):
        model_builder(layers=3)
