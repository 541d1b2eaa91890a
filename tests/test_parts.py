"Parts that carry a state, add a loss or change the residual work in any combination"
import pytest
import torch

from lmnotes.core import InputError
from lmnotes.models.architectures.moe import *
from lmnotes.models.build import build_model
from lmnotes.models.causality import causal_leakage

V = 47
CELLS = ['lstm', 'gru']

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def make(name, **kw): return build_model(name, 'tiny', V, **kw)
def tokens(B=2, T=29): return torch.randint(V, (B, T))
def grads(model, ids, **kw):
    torch.manual_seed(7)
    model.zero_grad()
    loss = model(ids, labels=ids, **kw).loss
    loss.backward()
    return loss.detach(),[p.grad.clone() for p in model.parameters()]
def far(a, b):
    return max(((x - y).abs().max()/y.abs().max().clamp(min=1e-12)).item() for x,y in zip(a, b, strict=True))
def twins(name, **kw):
    a,b = make(name, **kw),make(name, plain=True, **kw)
    b.load_state_dict(a.state_dict())
    return a.double(),b.double()


@pytest.mark.parametrize('cell', CELLS)
class TestRecurrent:
    @torch.no_grad()
    def test_cached_decoding_equals_uncached_with_left_padding(self, cell):
        m,ids = make('rnn', mixer=cell).double().eval(),tokens(3, 9)
        real = torch.ones_like(ids)
        real[0,:4] = 0
        real[1,:1] = 0
        a, b = (
            m.generate(ids, attention_mask=real, max_new_tokens=15, do_sample=False, use_cache=c, pad_token_id=0)
            for c in (True, False)
        )
        assert torch.equal(a, b)
        alone = m.generate(ids[:1,4:], max_new_tokens=15, do_sample=False, pad_token_id=0)
        assert torch.equal(alone[0], a[0,4:])

    @torch.no_grad()
    def test_packed_documents_equal_separate_rows(self, cell):
        m,ids = make('rnn', mixer=cell).double().eval(),tokens(2, 20)
        docs = torch.tensor([[0]*7 + [1]*1 + [2]*12, [3]*15 + [4]*5])
        y = m(ids, documents=docs).logits
        for row,cuts in ((0, (0, 7, 8, 20)), (1, (0, 15, 20))):
            for a,b in zip(cuts, cuts[1:]):
                torch.testing.assert_close(m(ids[row:row+1,a:b]).logits, y[row:row+1,a:b], atol=1e-12, rtol=0)

    @torch.no_grad()
    @pytest.mark.parametrize('cuts', [(5, 24), (1, 1, 27), (28, 1)])
    def test_prefill_in_chunks(self, cell, cuts):
        m,ids = make('rnn', mixer=cell).double().eval(),tokens()
        whole,cache,parts = m(ids).logits,None,[]
        for c in ids.split(cuts, 1):
            out = m(c, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)

    def test_state_is_constant_and_batch_first(self, cell):
        m = make('rnn', mixer=cell).eval()
        shapes = []
        for T in (1, 40):
            shapes.append(
                [t.shape for s in m(tokens(3, T), use_cache=True).past_key_values.states.values() for t in s]
            )
        assert shapes[0] == shapes[1] == [(3, 64)]*(2*(2 if cell == 'lstm' else 1))

    def test_packed_gradients_equal_separate_ones(self, cell):
        m,ids = make('rnn', mixer=cell).double(),tokens(1, 20)
        docs = torch.tensor([[0]*7 + [1]*13])
        y = ids.roll(-1, 1)
        y[0,6] = y[0,-1] = -100
        packed = torch.autograd.grad(m(ids, shift_labels=y, documents=docs).loss*18, list(m.parameters()))
        rows = ((slice(0, 7), 6), (slice(7, 20), 12))
        losses = [m(ids[:,s], shift_labels=y[:,s]).loss*n for s,n in rows]
        separate = [torch.autograd.grad(loss, list(m.parameters())) for loss in losses]
        assert far(packed, [a + b for a,b in zip(*separate)]) < 1e-10

    def test_reversible_equals_plain(self, cell):
        a,b = twins('rnn', mixer=cell, residual='reversible', dropout=.2)
        ids = tokens()
        mask = torch.ones_like(ids)
        mask[0,:5] = 0
        assert far(grads(a, ids, attention_mask=mask)[1], grads(b, ids, attention_mask=mask)[1]) < 1e-10

    def test_mixes_with_attention(self, cell):
        m = make('standard', mixer=['attention', cell, 'attention']).double().eval()
        ids = tokens(2, 6)
        real = torch.ones_like(ids)
        real[1,:3] = 0
        assert causal_leakage(m) <= 1e-12
        a, b = (
            m.generate(ids, attention_mask=real, max_new_tokens=8, do_sample=False, use_cache=c, pad_token_id=0)
            for c in (True, False)
        )
        assert torch.equal(a, b)

    def test_looks_one_way(self, cell):
        with pytest.raises(InputError, match='both ways'):
            make('rnn', mixer=cell, causal=False)


class TestExperts:
    @pytest.mark.parametrize('residual', ['standard', 'reversible', 'midpoint'])
    def test_added_losses_reach_the_router(self, residual):
        ids = tokens(4, 32)
        kw = dict(residual=residual, dropout=.1)
        a,b = twins('moe', **kw)
        torch.manual_seed(0)
        c = make('moe', checkpointing=True, **kw)
        c.load_state_dict(a.state_dict())
        c.double()
        (la,ga),(lb,gb),(lc,gc) = (grads(m, ids) for m in (a, b, c))
        assert abs(la - lb) < 1e-12 and abs(lc - lb) < 1e-12
        assert far(ga, gb) < 1e-10 and far(gc, gb) < 1e-10
        for m in b.modules():
            if isinstance(m, MoE): m.aux_coef = m.z_coef = 0.
        lo,go = grads(b, ids)
        router = [i for i,(k,_) in enumerate(b.named_parameters()) if 'router' in k]
        assert lb > lo and len(router) == 3 and all((gb[i] - go[i]).abs().max() > 1e-6 for i in router)

    def test_added_losses_are_for_training_only(self):
        m,ids = make('moe'),tokens()
        inside = m(ids, labels=ids).loss
        m.eval()
        assert 0.005 < inside - m(ids, labels=ids).loss < 0.1

    @torch.no_grad()
    def test_a_token_does_not_notice_its_batch(self):
        m,ids = make('moe').double().eval(),tokens(4, 16)
        torch.testing.assert_close(m(ids).logits[:1], m(ids[:1]).logits, atol=1e-12, rtol=0)

    def test_idle_experts_have_gradients_of_zero(self):
        m,ids = make('moe', n_experts=16),torch.zeros(1, 3, dtype=torch.long)
        grads(m, ids)
        assert all(p.grad is not None for p in m.parameters()) and (expert_load(m) == 0).any()

    def test_counts_stay_out_of_the_checkpoint(self, tmp_path):
        m,ids = make('moe').eval(),tokens()
        y = m(ids).logits
        assert expert_load(m).sum().item() == 3*2*58
        assert not [k for k in m.state_dict() if 'counts' in k]
        m.save_pretrained(tmp_path)
        assert torch.equal(build_model(str(tmp_path)).eval()(ids).logits, y)

    def test_experts_take_rewrites(self):
        m,ids = make('moe+ternary'),tokens(4, 32)
        grads(m, ids)
        assert type(m.blocks[0].ffn.part.experts[0].up_proj).__name__ == 'TernaryLinear'

    def test_autocast_agrees_with_the_twin(self):
        ids = tokens(4, 32)
        a,b = (m.float() for m in twins('moe', residual='reversible'))
        with torch.autocast('cpu', torch.bfloat16):
            assert abs(grads(a, ids)[0] - grads(b, ids)[0]) < 1e-6


STEPS = [{}, dict(step=.05, dropout=.2), dict(step=2., ffn='gelu', norm='layernorm', tie=False)]

class TestMidpoint:
    @pytest.mark.parametrize('kw', STEPS, ids=str)
    def test_equals_plain(self, kw):
        a,b = twins('midpoint', **kw)
        ids = tokens()
        assert far(grads(a, ids)[1], grads(b, ids)[1]) < 1e-10

    def test_padding(self):
        a,b = twins('midpoint')
        ids = tokens()
        mask = torch.ones_like(ids)
        mask[0,:5] = 0
        assert far(grads(a, ids, attention_mask=mask)[1], grads(b, ids, attention_mask=mask)[1]) < 1e-10

    def test_half_a_step_is_the_reversible_stack(self):
        a,b = make('midpoint').double(),make('reversible').double()
        b.load_state_dict(a.state_dict())
        ids = tokens()
        for m in (a, b):
            m.blocks[-1].register_forward_hook(lambda mod, x, y, m=m: setattr(m, 'ends', y))
            m.norm.register_forward_pre_hook(lambda mod, x, m=m: setattr(m, 'head_reads', x[0]))
        with torch.no_grad():
            a(ids)
            b(ids)
        for x,y in zip(a.ends, b.ends): assert torch.equal(x, y)
        assert torch.equal(a.head_reads, a.ends[1]) and torch.equal(b.head_reads, (b.ends[0] + b.ends[1])/2)

    def test_step_must_be_positive(self):
        with pytest.raises(InputError, match='above 0'):
            make('midpoint', step=-1.)


class TestRecallBench:
    def test_quick(self):
        from lmnotes.benchmarks.bench_recall import bench_recall
        r = bench_recall(quick=True, steps=10)
        mixers = ['attention', 'resonance', 'associative', 'hybrid', 'lstm']
        assert set(r['targets']) <= set(r) and [v['mixer'] for v in r['variants']] == mixers
        n = [v['parameters'] for v in r['variants']]
        assert max(n) < 1.02*min(n)

    def test_batches(self):
        from lmnotes.benchmarks.bench_recall import copy_batch, recall_batch
        x,y = recall_batch(3, 7, 40, 5, 6)
        for row,labels in zip(x.tolist(), y.tolist()):
            book = dict(zip(row[:10:2], row[1:10:2]))
            assert len(book) == 5 and labels[:10] == [-100]*10
            assert all(book[row[t]] == labels[t] for t in range(10, 40, 2))
        x,y = copy_batch(3, 7, 9, 6)
        assert torch.equal(y[:,9:], x[:,:9]) and (y[:,:9] == -100).all()
