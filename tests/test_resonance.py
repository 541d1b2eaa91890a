"Resonance and hybrid across notebooks: caches, documents, precision, the reversible residual, limits, the bench"
import math

import pytest
import torch
from torch import nn

from lmnotes.core import InputError
from lmnotes.models import *
from lmnotes.models.architectures.oscillators import oscillator_kernel
from lmnotes.models.architectures.resonance import *

V,ARMS = 61,[('resonance', {}), ('resonance', dict(mixer='associative')), ('hybrid', {})]

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

@pytest.fixture(params=ARMS, ids=['resonance', 'associative', 'hybrid'])
def make(request):
    name,kw = request.param
    return lambda **more: build_model(name, 'tiny', V, **{**kw, **more})

def tokens(B=2, T=29): return torch.randint(1, V, (B, T)) # 0 is padding
def grads(model, ids, **kw):
    torch.manual_seed(7)
    model.zero_grad()
    model(ids, labels=ids, **kw).loss.backward()
    return [p.grad.clone() for p in model.parameters()]
def far(a, b):
    return max(((x - y).abs().max()/y.abs().max().clamp(min=1e-12)).item() for x,y in zip(a, b, strict=True))

# ---- decoding

@torch.no_grad()
def test_generate_with_cache_equals_without_padded_or_not(make):
    m,ids = make().double().eval(),tokens(3, 6)
    real = torch.ones_like(ids)
    real[0,:2] = 0
    real[2,:5] = 0
    a, b = (
        m.generate(ids, attention_mask=real, max_new_tokens=15, do_sample=False, use_cache=c, pad_token_id=0)
        for c in (True, False)
    )
    assert torch.equal(a, b)
    alone = m.generate(ids[:1,2:], max_new_tokens=15, do_sample=False, pad_token_id=0)
    assert torch.equal(a[0,2:], alone[0])

@torch.no_grad()
def test_beam_search_carries_states(make):
    m,ids = make().double().eval(),tokens(2, 6)
    a, b = (
        m.generate(ids, max_new_tokens=8, num_beams=3, do_sample=False, use_cache=c, pad_token_id=0)
        for c in (True, False)
    )
    assert torch.equal(a, b)

@torch.no_grad()
@pytest.mark.parametrize('cuts', [[29], [1]*29, [20, 9], [2, 1, 1, 25], [28, 1]])
def test_a_prompt_in_chunks_equals_one_pass(make, cuts):
    m,ids = make().double().eval(),tokens()
    whole,cache,at,out = m(ids).logits,LMCache(),0,[]
    for n in cuts:
        out.append(m(ids[:,at:at+n], past_key_values=cache, use_cache=True).logits)
        at += n
    torch.testing.assert_close(torch.cat(out, 1), whole, atol=1e-10, rtol=0)

@torch.no_grad()
@pytest.mark.parametrize('mixer', ['resonance', 'associative'])
def test_the_state_does_not_grow(mixer):
    m,size = build_model('resonance', 'tiny', V, mixer=mixer),[]
    for n in (3, 50, 300):
        cache = LMCache()
        m(tokens(1, n), past_key_values=cache, use_cache=True)
        size.append(sum(t.numel()*t.element_size() for s in cache.states.values() for t in s))
    assert size[0] == size[1] == size[2] > 0

@torch.no_grad()
def test_gradients_of_a_short_context_and_one_token(make):
    m = make().double().eval()
    a = m(tokens(2, 1)[:,:1]).logits
    assert a.isfinite().all() and a.shape == (2, 1, V)

# ---- documents

def test_a_packed_row_equals_separate_rows(make):
    m,docs = make().double(),[tokens(1, n) for n in (9, 1, 16, 3)]
    packed,number = torch.cat(docs, 1),torch.cat([torch.full((1, d.shape[1]), i) for i,d in enumerate(docs)], 1)
    weight = torch.randn(1, packed.shape[1], V, dtype=torch.float64)
    def run(outs):
        m.zero_grad()
        y = torch.cat(outs(), 1)
        (y*weight).sum().backward()
        return y.detach(),[p.grad.clone() for p in m.parameters()]
    a,ga = run(lambda: [m(packed, documents=number).logits])
    b,gb = run(lambda: [m(d).logits for d in docs])
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    assert far(ga, gb) < 1e-9
    m.float()
    weight = weight.float()
    torch.testing.assert_close(
        m(packed, documents=number).logits, torch.cat([m(d).logits for d in docs], 1), atol=1e-5, rtol=0
    )

def test_documents_do_not_affect_each_other(make):
    m,ids,number = make().double().eval(),tokens(1, 24),torch.tensor([[0]*10 + [1]*14])
    other = ids.clone()
    other[0,:10] = (other[0,:10] + 1) % V
    a,b = (m(i, documents=number).logits[:,10:] for i in (ids, other))
    assert torch.equal(a, b)

# ---- causality and appending

@torch.no_grad()
def test_appending_changes_nothing_before(make):
    m,ids = make().double().eval(),tokens()
    whole = m(ids).logits
    for T in (1, 2, 7, 28):
        torch.testing.assert_close(m(ids[:,:T]).logits, whole[:,:T], atol=1e-10, rtol=0)
    assert causal_leakage(make().double()) < 1e-6

# ---- precision

def test_bf16_stays_near_fp32(make):
    m,ids = make(),tokens(4, 64)
    exact = m(ids, labels=ids).loss.item()
    with torch.autocast('cpu', torch.bfloat16):
        rough = m(ids, labels=ids).loss
    rough.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())
    assert abs(rough.item() - exact) < 0.02*exact
    assert abs(m.bfloat16()(ids, labels=ids).loss.item() - exact) < 0.05*exact

@torch.no_grad()
def test_double_is_computed_in_double(make):
    m,ids = make().double().eval(),tokens(1, 40)
    single = m(ids).logits
    m.float()
    assert 1e-12 < far([m(ids).logits.double()], [single]) < 1e-4
    assert single.dtype == torch.float64

# ---- other parts

@pytest.mark.parametrize('mixer', ['resonance', 'associative', ['resonance', 'attention', 'resonance']])
def test_reversible_gradients_equal_the_plain_twin(mixer):
    kw = dict(mixer=mixer, dropout=.2)
    m,twin = (build_model('reversible', 'tiny', V, plain=p, **kw).double() for p in (False, True))
    twin.load_state_dict(m.state_dict())
    ids,number = tokens(2, 20),torch.tensor([[0]*8 + [1]*12, [0]*20])
    assert far(grads(m, ids), grads(twin, ids)) < 1e-10
    assert far(grads(m, ids, documents=number), grads(twin, ids, documents=number)) < 1e-10

def test_checkpointing_changes_no_gradient(make):
    m,ids = make().double(),tokens()
    a = grads(m, ids)
    m.gradient_checkpointing_enable()
    assert far(grads(m, ids), a) < 1e-12

def test_a_replaced_projection_is_called():
    class Twice(nn.Module):
        def __init__(self, lin):
            super().__init__()
            self.lin = lin
        def forward(self, x): return 2*self.lin(x)
    layer,x = Resonance(16, 2, 8).double(),torch.randn(1, 9, 16, dtype=torch.float64)
    y = layer.project(x)
    layer.in_proj = Twice(layer.in_proj)
    torch.testing.assert_close(layer.project(x), 2*y)

def test_biases_and_quantizers_work_too():
    for m in (build_model('resonance', 'tiny', V, bias=True), build_model('resonance+ternary', 'tiny', V)):
        assert all(g.isfinite().all() for g in grads(m, tokens())) and causal_leakage(m.double()) < 1e-6

# ---- the kernel at its limits

def test_oscillators_stay_within_bounds_whatever_is_learned():
    layer = Resonance(8, 2, 6)
    with torch.no_grad():
        layer.damping.copy_(torch.tensor([-30., -5, 0, 1, 5, 20]))
        layer.frequency.copy_(torch.tensor([-40., -9, 0, 3, 9, 40]))
    gamma,omega,m,_ = layer.oscillators()
    assert (gamma > 0).all() and (omega >= 0).all() and (omega <= math.pi).all() and m.isfinite().all()
    h = layer.kernel(5000)
    assert h.isfinite().all() and h.abs().max() < 100
    y = layer(torch.randn(1, 5000, 8), ForwardContext())
    y.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())

def test_time_constants_and_frequencies_spread_at_the_start():
    gamma,omega,*_ = Resonance(16, 2, 32).oscillators()
    assert 1/gamma.max() < 4 and 1/gamma.min() > 3000 and omega.min() < .01 and omega.max() > 2.5

def test_every_kernel_parameter_learns_its_target():
    "A layer's oscillators find a given kernel: the gradient points the right way"
    layer = Resonance(4, 1, 4).double()
    parameters = (torch.tensor(v, dtype=torch.float64) for v in ([.05], [.5], [[1.]], [[.3]]))
    target = oscillator_kernel(*parameters, 100, torch.float64)
    opt,first = torch.optim.Adam([layer.damping, layer.frequency, layer.magnitude, layer.phase], 3e-2),None
    for _ in range(150):
        loss = (layer.kernel(100, torch.float64) - target).square().mean()
        first = first or loss.item()
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert loss.item() < .1*first

# ---- recipes

def test_sizes_are_those_promised():
    shapes = {k: (s['dim'], s['num_frequencies'], s['n_layer']) for k,s in resonance_lm.sizes.items() if k != 'tiny'}
    assert shapes == dict(small=(768, 64, 6), medium=(1024, 128, 12), large=(2048, 256, 16), xlarge=(4096, 512, 24))
    n = [count_parameters(build_model(name))['total'] for name in ('standard', 'resonance', 'hybrid')]
    assert max(n) < 1.05*min(n)

def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match='n_head=3'):
        build_model('resonance', 'tiny', V, dim=64, n_head=3)
    with pytest.raises(InputError, match='n_head=3'):
        Resonance(64, 3)

# ---- bench

def test_quick_bench():
    from lmnotes.benchmarks.bench import run_bench
    r = run_bench('resonance', device='cpu', quick=True)
    assert r['recurrence_error'] < 1e-4 and r['state_growth'] == 1 and r['met']['step_gb']
    assert {v['precision'] for v in r['variants']} >= {'fp32'}
