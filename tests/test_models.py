"Every registered recipe passes the same tests; reversible equals its plain twin, also over two processes"
import json
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn import functional as F

from lmnotes.core import InputError
from lmnotes.models import *
from lmnotes.models.weight_converters import from_qwen3

RECIPES = [
    *(n for n in models.names() if n != 'encoder'),
    'standard+ternary',
    'reversible+ternary',
    'reversible+ternary:head',
]
V = 61

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def make(name, **kw): return build_model(name, 'tiny', V, n_layer=3, **kw)
def tokens(B=2, T=29): return torch.randint(V, (B, T))
def grads(model, ids, **kw):
    torch.manual_seed(7)
    model.zero_grad()
    out = model(ids, labels=ids, **kw)
    out.loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]
def far(a, b): return max(((x - y).abs().max()/y.abs().max()).item() for x,y in zip(a, b, strict=True))


@pytest.mark.parametrize('name', RECIPES)
class TestRecipes:
    def test_causal(self, name): check_causal(make(name), name)

    @torch.no_grad()
    def test_appending_changes_nothing_before(self, name):
        m,ids = make(name).double().eval(),tokens()
        whole = m(ids).logits
        for T in (1, 2, 7, 28):
            torch.testing.assert_close(m(ids[:,:T]).logits, whole[:,:T], atol=1e-10, rtol=0)

    def test_untrained_loss_is_ln_v(self, name):
        ids = tokens(8, 64)
        assert abs(make(name)(ids, labels=ids).loss.item() - math.log(V)) < 0.1

    def test_every_parameter_gets_a_gradient(self, name):
        m,ids = make(name),tokens()
        grads(m, ids)
        learns = lambda g: g is not None and g.isfinite().all() and g.abs().max() > 0
        assert not [k for k,p in m.named_parameters() if not learns(p.grad)]

    @torch.no_grad()
    def test_save_and_load(self, name, tmp_path):
        from transformers import AutoModelForCausalLM
        m,ids = make(name).eval(),tokens()
        m.save_pretrained(tmp_path)
        for again in (build_model(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)):
            assert torch.equal(again.eval()(ids).logits, m(ids).logits) and again.head.weight is again.embed.weight
        assert (tmp_path/'model.safetensors').stat().st_size < 4.2*count_parameters(m)['total'] + 9000

    @torch.no_grad()
    def test_cached_generation_equals_uncached(self, name):
        m,ids = make(name).double().eval(),tokens(2, 5).clamp(min=1) # 0 would be taken for padding
        real = torch.ones_like(ids)
        real[0,:2] = 0 # one prompt is padded on the left
        a, b = (
            m.generate(ids, attention_mask=real, max_new_tokens=12, do_sample=False, use_cache=c, pad_token_id=0)
            for c in (True, False)
        )
        assert torch.equal(a, b)
        alone = m.generate(ids[:1,2:], max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert torch.equal(alone[0], a[0,2:])

    def test_bf16_is_close(self, name):
        m,ids = make(name),tokens(4, 64)
        exact = m(ids, labels=ids).loss
        with torch.autocast('cpu', torch.bfloat16):
            rough = m(ids, labels=ids).loss
        assert abs(exact - rough) < 0.02*exact
        assert abs(m.bfloat16()(ids, labels=ids).loss - exact) < 0.05*exact

    def test_scores_equal_loss(self, name):
        m,ids = make(name).eval(),tokens()
        y = ids[:,1:].clone()
        y[0,:9] = -100
        nll,right = token_scores(m, ids[:,:-1], y)
        out = m(ids[:,:-1], shift_labels=y)
        assert abs(nll.sum()/(y != -100).sum() - out.loss) < 1e-5
        assert right.sum() == out.n_correct and nll[0,:9].sum() == 0

    def test_learns(self, name):
        m = make(name)
        opt = torch.optim.AdamW(m.parameters(), 5e-3)
        ids = tokens(2, 16)
        for _ in range(60):
            loss = m(ids, labels=ids).loss
            opt.zero_grad()
            loss.backward()
            opt.step()
        assert loss < 0.5*math.log(V)


@pytest.mark.parametrize('name', ['standard', 'rnn', 'reversible', 'resonance', 'tiny:gpt2'])
def test_a_peak_is_never_below_what_is_held(name):
    from lmnotes.evaluation.memory import training_memory
    from lmnotes.evaluation.memory_limits import random_token_batch
    batch = random_token_batch(V, 4, 64)
    if ':' in name: batch = dict(input_ids=batch['input_ids'], labels=batch['input_ids'])
    r = training_memory(build_model(name, vocab_size=V), batch)
    assert 0 < r['saved'] <= r['held'] <= r['peak']

@pytest.mark.parametrize('name', ['standard', 'gpt', 'reversible+ternary', 'standard+share:alternate'])
@pytest.mark.parametrize('fault', ['missing', 'unexpected', 'shape', 'dtype', 'cut'])
def test_a_file_of_other_weights_is_refused(name, fault, tmp_path):
    from safetensors.torch import load_file, save_file
    make(name).save_pretrained(tmp_path)
    file = tmp_path/'model.safetensors'
    state = load_file(file)
    norm = state.pop('norm.weight')
    changed = dict(missing={}, unexpected={'norm.weight': norm, 'more.weight': norm.clone()},
                   shape={'norm.weight': norm[:3]}, dtype={'norm.weight': norm.to(torch.int8)}, cut={})[fault]
    save_file(state | changed, file, {'format': 'pt'})
    if fault == 'cut': file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r'model\.safetensors') as e:
        build_model(str(tmp_path))
    named = dict(unexpected='more.weight', cut='is damaged').get(fault, 'norm.weight')
    assert named in str(e.value) and '\n' not in str(e.value)

PARTS = [
    dict(mixer='attention', ffn='relu2'),
    dict(ffn=['gelu', 'swiglu', 'relu2'], norm='layernorm', bias=True),
    dict(pos='learned', max_length=64),
    dict(pos='none', qk_norm=False),
    dict(tie=False, n_kv_head=2),
    dict(head_dim=16, n_head=6, n_kv_head=3),
]
@pytest.mark.parametrize('residual', residuals.names())
@pytest.mark.parametrize('parts', PARTS, ids=str)
def test_parts_combine(parts, residual, tmp_path):
    m,ids = make('standard', residual=residual, **parts),tokens()
    assert check_causal(m, length=33) == 0 and all(g.abs().max() > 0 for g in grads(m, ids))
    m.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(LM.from_pretrained(tmp_path).eval()(ids).logits, m(ids).logits)

def test_an_encoder_sees_both_ways(): assert causal_leakage(make('standard', causal=False)) > 1e-4


class TestHead:
    @pytest.mark.parametrize('n,vocab', [(1, 2), (300, 7), (700, 5003), (5000, 17)])
    def test_equals_cross_entropy(self, n, vocab):
        h,w = torch.randn(n, 12, requires_grad=True),torch.randn(vocab, 12, requires_grad=True)
        y = torch.randint(vocab, (n,))
        if n > 1: y[::3] = -100
        loss,right = linear_cross_entropy(h, w, y)
        ref = F.cross_entropy(h@w.T, y)
        torch.testing.assert_close(loss, ref)
        for a,b in zip(torch.autograd.grad(loss, (h, w)), torch.autograd.grad(ref, (h, w))):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert right == ((h@w.T).argmax(-1) == y).sum()

    def test_constant_logits_are_never_right(self):
        h,w,y = torch.ones(9, 4),torch.ones(5, 4),torch.zeros(9, dtype=torch.long)
        assert linear_cross_entropy(h, w, y)[1] == 0 and not linear_token_scores(h, w, y)[1].any()

    def test_nothing_supervised_is_an_error(self):
        ids = tokens()
        with pytest.raises(InputError, match='no token of this batch'):
            make('standard')(ids, shift_labels=torch.full_like(ids, -100))

    def test_wrapped_head(self):
        m,ids = make('standard'),tokens()
        a = m(ids, labels=ids).loss
        m.head.register_forward_hook(lambda mod, i, o: o)
        b = m(ids, labels=ids).loss
        torch.testing.assert_close(a, b)

    def test_scores_of_foreign_models(self):
        ours,theirs = _qwen3()
        ids = tokens(3, 12)
        y = ids.roll(-1, 1)
        for a,b in zip(token_scores(ours, ids, y), token_scores(theirs, ids, y)):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def _qwen3(**kw):
    from transformers import Qwen3Config, Qwen3ForCausalLM
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=64,
            **kw,
        )
    ).eval()
    for p in theirs.parameters(): p.data += 0.1*torch.randn_like(p)
    return from_qwen3(theirs).eval(),theirs

@pytest.mark.parametrize('tie', [True, False])
@torch.no_grad()
def test_qwen3_logits(tie):
    ours,theirs = _qwen3(tie_word_embeddings=tie)
    ids = tokens(2, 40)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


TWINS = [{}, dict(dropout=.2), dict(tie=False, ffn='gelu', norm='layernorm'), dict(rewrites=['ternary'])]
def twins(**kw):
    a,b = make('reversible', **kw),make('reversible', plain=True, **kw)
    b.load_state_dict(a.state_dict())
    return a.double(),b.double()

class TestReversible:
    @pytest.mark.parametrize('kw', TWINS, ids=str)
    def test_equals_plain(self, kw):
        a,b = twins(**kw)
        ids = tokens()
        assert far(grads(a, ids), grads(b, ids)) < 1e-10

    def test_checkpointing_equals_plain(self):
        a,b = twins(dropout=.2)
        a.gradient_checkpointing_enable()
        ids = tokens()
        assert far(grads(a, ids), grads(b, ids)) < 1e-10

    def test_generators_move_as_in_the_twin(self):
        a,b = twins(dropout=.2)
        ids = tokens()
        grads(a, ids)
        x = torch.rand(3)
        grads(b, ids)
        assert torch.equal(x, torch.rand(3))

    def test_padding_and_accumulation(self):
        a,b = twins()
        ids = tokens()
        mask = torch.ones_like(ids)
        mask[0,:5] = 0
        assert far(grads(a, ids, attention_mask=mask), grads(b, ids, attention_mask=mask)) < 1e-10
        for m in (a, b):
            m.zero_grad()
            for i in ids.split(1): m(i, labels=i).loss.backward()
        assert far([p.grad for p in a.parameters()], [p.grad for p in b.parameters()]) < 1e-10

    def test_autocast_no_worse_than_the_twin(self):
        ids = tokens(4, 64)
        exact = grads(twins()[1], ids)
        torch.manual_seed(0)
        tokens(4, 64)
        errors = []
        for m in twins():
            with torch.autocast('cpu', torch.bfloat16):
                g = grads(m.float(), ids)
            errors.append(sum((x - y).square().sum() for x,y in zip(g, exact)).sqrt())
        assert errors[0] <= 1.1*errors[1]

    def test_nothing_more_is_saved_by_more_layers(self):
        def saved(n):
            m,ids,seen = build_model('reversible', 'tiny', V, n_layer=n),tokens(),{}
            own = {p.data_ptr() for p in m.parameters()}
            def pack(t):
                seen.update({t.data_ptr(): t.numel()*t.element_size()} if t.data_ptr() not in own else {})
                return t
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = m(ids, labels=ids).loss # noqa: F841 holds the graph
            return sum(seen.values())
        assert saved(8) == saved(2)

    def test_the_tape_is_let_go(self):
        import gc
        import weakref
        m,ids = make('reversible'),tokens()
        out = m(ids, labels=ids)
        tape = out.loss.grad_fn
        refs = []
        def walk(f):
            if f is None: return
            if hasattr(f, 'tape'): refs.append(weakref.ref(f.tape))
            for g,_ in f.next_functions: walk(g)
        walk(tape)
        out.loss.backward()
        assert refs and all(r().streams is None for r in refs)
        del out, tape
        gc.collect()
        assert all(r() is None for r in refs)

    def test_two_processes(self, tmp_path):
        "DDP over gloo gives the gradients of the whole batch"
        script = tmp_path/'ddp.py'
        script.write_text(DDP, encoding='utf-8')
        subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=100)
        ddp,whole = (torch.load(tmp_path/f'{n}.pt', weights_only=True) for n in ('ddp', 'whole'))
        assert far(ddp, whole) < 1e-10

DDP = '''
import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from lmnotes.models import build_model
from lmnotes.training.distributed.process_groups import leave_process_group
def model(): torch.manual_seed(0); return build_model('reversible', 'tiny', 61, n_layer=3).double()
def work(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=rank, world_size=2)
    ids = torch.load(f'{path}/ids.pt', weights_only=True)
    m = torch.nn.parallel.DistributedDataParallel(model(), bucket_cap_mb=0.05); own = ids[2*rank:2*rank+2]
    m(own, labels=own).loss.backward()
    if rank == 0: torch.save([p.grad for p in m.module.parameters()], f'{path}/ddp.pt')
    leave_process_group()
if __name__ == '__main__':
    path = sys.argv[1]; torch.manual_seed(1); ids = torch.randint(61, (4, 20)); torch.save(ids, f'{path}/ids.pt')
    m = model(); m(ids, labels=ids).loss.backward(); torch.save([p.grad for p in m.parameters()], f'{path}/whole.pt')
    mp.start_processes(work, (path,), nprocs=2, start_method='fork')
'''


def test_wrong_input_is_one_line():
    for f, words in [
        (lambda: build_model('reversable'), "did you mean 'reversible'"),
        (lambda: build_model('standard', 'smal'), "did you mean 'small'"),
        (lambda: build_model('Qwen/Qwen3-0.6B'), 'on the hub, which'),
        (lambda: build_model('/nowhere'), 'there is no folder'),
        (lambda: build_model('standard', dim=65), 'does not divide'),
        (lambda: build_model('standard+ternari'), "did you mean 'ternary'"),
        (lambda: build_model('standard', n_layres=2), "did you mean 'n_layer'"),
    ]:
        with pytest.raises(InputError, match=words) as e:
            f()
        assert '\n' not in str(e.value)

def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    _qwen3()[1].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'qwen3' model"):
        load_lm(tmp_path)
    with pytest.raises(InputError, match="do not fit 'gpt'"):
        build_model('gpt', init=str(tmp_path))
    ours = build_model('reversible', init=str(tmp_path)).eval()
    assert ours.config.residual == 'reversible' and ours.config.dim == 48

def test_tools_that_cannot_import_us(tmp_path):
    "trust_remote_code finds the installed package through the shim"
    m = make('reversible').eval()
    m.save_pretrained(tmp_path)
    ids = tokens()
    torch.save((ids, m(ids).logits.detach()), tmp_path/'ref.pt')
    code = f'''import torch; from transformers import AutoModelForCausalLM
ids,ref = torch.load(r"{tmp_path}/ref.pt", weights_only=True)
m = AutoModelForCausalLM.from_pretrained(r"{tmp_path}", trust_remote_code=True).eval()
assert torch.equal(m(ids).logits, ref); m.save_pretrained(r"{tmp_path}/again")'''
    subprocess.run(
        [sys.executable, '-c', code],
        check=True,
        timeout=100,
        env=dict(os.environ, HF_HOME=str(tmp_path/'hf')),
    )
    assert sorted(p.name for p in (tmp_path/'again').glob('*.py')) == ['modeling_lmnotes.py']
    config = json.loads((tmp_path/'again'/'config.json').read_text(encoding='utf-8'))
    assert config['auto_map']['AutoModelForCausalLM'] == 'modeling_lmnotes.LM'

def test_generate_resumes_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make('standard').eval().generate(tokens(1, 4), max_new_tokens=3, do_sample=False, pad_token_id=0)

@pytest.mark.parametrize('name', ['standard', 'rnn', 'resonance', 'hybrid'])
@torch.no_grad()
def test_a_prompt_in_pieces_with_padding_equals_the_prompt_at_once(name):
    m,ids = make(name).double().eval(),tokens(2, 12)
    real = torch.ones_like(ids)
    real[0,:4] = 0 # a piece ends where the padding does
    pos,cache,parts = (real.cumsum(1) - 1).clamp(min=0),None,[]
    for i in range(0, 12, 4):
        at = dict(attention_mask=real[:,:i+4], position_ids=pos[:,i:i+4])
        out = m(ids[:,i:i+4], **at, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    whole = m(ids, attention_mask=real, position_ids=pos).logits
    torch.testing.assert_close(torch.cat(parts, 1)[real.bool()], whole[real.bool()], atol=1e-10, rtol=0)

def test_states_need_our_cache():
    from transformers import DynamicCache
    with pytest.raises(InputError, match='DynamicCache cannot hold'):
        make('rnn')(tokens(), past_key_values=DynamicCache())

def test_beams_take_their_states_along():
    m = make('hybrid').eval()
    ids = tokens(1, 6)
    a, b = (
        m.generate(ids, max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=0, use_cache=c)
        for c in (True, False)
    )
    assert torch.equal(a, b)

def test_a_missing_shard_is_named(tmp_path):
    build_model('standard', 'tiny', 61, n_layer=2, dim=16, n_head=2).save_pretrained(tmp_path/'m', max_shard_size='5KB')
    last = sorted((tmp_path/'m').glob('*.safetensors'))[-1]
    build_model(str(tmp_path/'m'))
    last.unlink()
    with pytest.raises(InputError, match=f'lacks {last.name}, which its index names'):
        build_model(str(tmp_path/'m'))
