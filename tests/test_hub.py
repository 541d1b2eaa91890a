"Models of Hugging Face families without the hub: loading, patched forward, few bits, LoRA, attention, and errors"
import copy
import hashlib
import inspect
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from lmnotes.core import InputError, RunError
from lmnotes.files import write_json
from lmnotes.models import *
from lmnotes.models.hf.hf_attention import *
from lmnotes.models.hf.hf_auto_class import *
from lmnotes.models.hf.hf_checks import *
from lmnotes.models.hf.hf_config import *
from lmnotes.models.hf.hf_families import *
from lmnotes.models.hf.hf_load import *
from lmnotes.models.hf.hf_patch import *
from lmnotes.models.hf.hf_quantization import *
from lmnotes.models.lora import *

logging.set_verbosity_error()
logging.disable_progress_bar()
V = 61
TEXT = [f for f in tiny_configs.names() if f != 'bert']
CAUSAL = [f for f in TEXT if f not in ('t5', 'switch', 'bart')]
PAIRS = ['t5', 'switch', 'bart']

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

@pytest.fixture(autouse=True)
def _silent(monkeypatch):
    monkeypatch.setattr('lmnotes.data.sources.hub_requests.hub_accepts_connections', lambda *a: False)

@pytest.fixture(scope='module')
def saved(tmp_path_factory): # family -> folder
    root = tmp_path_factory.mktemp('hub')
    torch.manual_seed(0)
    for f in TEXT: hub_model(f'tiny:{f}', vocab_size=V).save_pretrained(root/f)
    return lambda f: root/f

def tokens(B=2, T=13): return torch.randint(V, (B, T))
@torch.no_grad()
def logits(m, ids): return (decoder_logits(m, ids) if m.config.is_encoder_decoder else m(input_ids=ids).logits)


@pytest.mark.parametrize('family', TEXT)
def test_a_folder_gives_the_same_logits(family, saved):
    from transformers import AutoConfig
    ids = tokens()
    a,b = hub_model(saved(family)).eval(),build_model(str(saved(family))).eval()
    assert torch.equal(logits(a, ids), logits(b, ids))
    config = AutoConfig.from_pretrained(saved(family))
    theirs = auto_class(config).from_pretrained(saved(family)).eval() # transformers alone reads it, and agrees
    assert config.architectures == [type(theirs).__name__] == [type(a).__name__]
    assert torch.equal(logits(theirs, ids), logits(a, ids))

@pytest.mark.parametrize('family', CAUSAL)
def test_patched_loss_and_gradients_equal_the_plain_ones(family):
    ours = hub_model(f'tiny:{family}', vocab_size=V).eval()
    theirs = copy.deepcopy(ours)
    theirs.__class__ = ours.original_class
    ids,y = tokens(),tokens()
    y[0,:5] = -100
    z = theirs(ids).logits
    loss = F.cross_entropy(z.flatten(0, 1), y.flatten())
    loss.backward()
    out = ours(ids, shift_labels=y)
    out.loss.backward()
    assert ours.skips_logits and out.logits is None and abs(out.loss - loss) < 1e-5
    assert out.n_correct == ((z.argmax(-1) == y) & (y != -100)).sum()
    for (k,p),q in zip(ours.named_parameters(), theirs.parameters()):
        if q.grad is not None: torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=k)
    nll,right = token_scores(ours, ids, y)
    assert abs(nll.sum()/(y != -100).sum() - loss) < 1e-4 and right.sum() == out.n_correct
    assert abs(ours(ids, shift_labels=y, num_items_in_batch=7).loss*7 - loss*(y != -100).sum()) < 1e-3
    torch.testing.assert_close(ours(ids, shift_labels=y, return_logits=True).logits, z)
    # without shift_labels nothing is ours
    assert torch.equal(ours(ids, labels=ids).loss, theirs(ids, labels=ids).loss)

@pytest.mark.parametrize('family', CAUSAL)
def test_a_patched_model_looks_like_its_class(family, tmp_path):
    m = hub_model(f'tiny:{family}', vocab_size=V).eval()
    cls,was = type(m),m.original_class
    ids = tokens()
    names = lambda c: (c.__name__, c.__module__, c.__qualname__)
    assert names(cls) == names(was) and isinstance(m, was)
    assert inspect.signature(cls.forward) == inspect.signature(was.forward) and patch_forward(m) is m
    m.save_pretrained(tmp_path)
    assert json.loads((tmp_path/'config.json').read_text(encoding='utf-8'))['architectures'] == [was.__name__]
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(logits(twin, ids), logits(m, ids)) and type(twin) is cls

@pytest.mark.parametrize('family', PAIRS)
def test_pairs(family):
    m = hub_model(f'tiny:{family}', vocab_size=V)
    ids,y = tokens(),tokens()
    y[0,:3] = -100
    m(input_ids=ids, labels=y).loss.backward()
    with pytest.raises(InputError, match='trains on pairs'):
        m(ids, shift_labels=y)
    assert check_causal(m, family) <= 1e-6
    m.eval()
    theirs = m(input_ids=ids, labels=y)
    past = m.prepare_decoder_input_ids_from_labels(y)
    out = m(input_ids=ids, decoder_input_ids=past, shift_labels=y)
    z = theirs.logits
    assert m.skips_logits and out.logits is None and abs(out.loss - theirs.loss) < 1e-5
    assert out.n_correct == ((z.argmax(-1) == y) & (y != -100)).sum()
    seventh = m(input_ids=ids, decoder_input_ids=past, shift_labels=y, num_items_in_batch=7).loss
    assert abs(seventh*7 - theirs.loss*(y != -100).sum()) < 1e-3

@pytest.mark.parametrize('family', TEXT)
def test_cached_text_equals_uncached(family, saved):
    m,ids = hub_model(saved(family)).eval(),tokens(2, 5)
    greedy = dict(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(m.generate(use_cache=True, **greedy), m.generate(use_cache=False, **greedy))

def test_logits_that_are_not_the_heads_output_are_computed():
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM
    same = dict(
        vocab_size=V,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    gemma = Gemma2ForCausalLM(Gemma2Config(head_dim=16, **same))
    cohere = CohereForCausalLM(CohereConfig(logit_scale=0.25, **same))
    for m in (patch_forward(gemma), patch_forward(cohere)):
        m.eval()
        ids,y = tokens(),tokens()
        z = m(ids).logits
        assert not m.skips_logits and m.head is None
        out = m(ids, shift_labels=y)
        assert abs(out.loss - F.cross_entropy(z.flatten(0, 1), y.flatten())) < 1e-5
        assert out.n_correct == (z.argmax(-1) == y).sum()
        assert abs(token_scores(m, ids, y)[0].mean() - out.loss) < 1e-5

def test_router_loss_is_added_in_training_only():
    m = hub_model('tiny:mixtral', vocab_size=V, output_router_logits=True)
    ids = tokens()
    alone,whole = m.eval()(ids, shift_labels=ids).loss,m.train()(ids, shift_labels=ids).loss
    assert abs(whole - alone - m.config.router_aux_loss_coef*m(ids, labels=ids).aux_loss) < 1e-5

def test_checkpointing_compiling_and_bf16_change_nothing():
    m = hub_model('tiny:qwen3', vocab_size=V)
    ids = tokens()
    a = m(ids, shift_labels=ids).loss
    a.backward()
    g = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    m.gradient_checkpointing_enable()
    m.train()(ids, shift_labels=ids).loss.backward()
    m.gradient_checkpointing_disable()
    for p,q in zip(m.parameters(), g): torch.testing.assert_close(p.grad, q)
    torch.testing.assert_close(torch.compile(m, backend='eager')(ids, shift_labels=ids).loss, a)
    with torch.autocast('cpu', torch.bfloat16):
        assert abs(m(ids, shift_labels=ids).loss - a) < 0.02*a
    assert abs(m.bfloat16()(ids, shift_labels=ids).loss - a) < 0.05*a

@pytest.mark.parametrize('family', ['gpt2', 'llama', 'mixtral', 'deepseek', 'llava', 'switch'])
def test_lora_and_the_patched_forward_live_together(family, tmp_path):
    base = hub_model(f'tiny:{family}', vocab_size=V)
    ids,y = tokens(),tokens()
    pairs = base.config.is_encoder_decoder
    loss = lambda m: m(input_ids=ids, **{'labels' if pairs else 'shift_labels': y}).loss
    before = loss(base.eval()).item()
    m = add_lora(base, r=2, dropout=0., verbose=False)
    assert abs(loss(m.eval()) - before) < 1e-6 and 0 < trainable_share(m)['share'] < 0.1
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 3e-3)
    for _ in range(20):
        l = loss(m)
        opt.zero_grad()
        l.backward()
        opt.step()
    after = loss(m).item()
    assert after < before
    save_lora(m, tmp_path)
    torch.manual_seed(0)
    again = load_lora(hub_model(f'tiny:{family}', vocab_size=V).eval(), tmp_path)
    assert abs(loss(again.eval()) - after) < 1e-5
    if not pairs:
        assert m(ids, shift_labels=y).n_correct is not None
        assert torch.equal(token_scores(m, ids, y)[0], token_scores(m.get_base_model(), ids, y)[0])
    assert m.generate(input_ids=ids[:,:4], max_new_tokens=3).shape[0] == 2
    whole = merge_lora(m)
    assert type(whole) is type(base) and abs(loss(whole.eval()) - after) < 1e-5

@pytest.mark.parametrize('name', [n for n in models.names() if n not in ('encoder',)])
def test_lora_on_every_recipe(name):
    m = build_model(name, 'tiny', V).eval()
    ids = tokens()
    before = logits(m, ids)
    m = add_lora(m, r=2, verbose=False, dropout=0.).eval()
    torch.testing.assert_close(logits(m, ids), before, atol=1e-6, rtol=0)
    for k,p in m.named_parameters():
        if 'lora_B' in k: nn.init.normal_(p, std=0.1)
    z = logits(m, ids)
    assert (z - before).abs().max() > 1e-3
    m(input_ids=ids, shift_labels=ids).loss.backward()
    got = {k for k,p in m.named_parameters() if p.grad is not None}
    assert got and all('lora_' in k for k in got)
    torch.testing.assert_close(logits(merge_lora(m).eval(), ids), z, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('family', ['qwen3', 'gpt2', 'mixtral', 'deepseek', 'switch', 't5'])
def test_few_bits(family, bits, saved, tmp_path):
    full,few = hub_model(saved(family)).eval(),hub_model(saved(family), **{f'load_in_{bits}bit': True}).eval()
    ids = tokens()
    a,b = logits(full, ids),logits(few, ids)
    assert (a - b).norm()/a.norm() < {4: 0.25, 8: 0.03}[bits] and quantized_share(few) > 0.4
    assert not any(p.requires_grad for p in few.parameters())
    if is_moe(full.config): assert quantized_share(few) > 0.8 # experts too
    # training first, then evaluating, is the same
    again = hub_model(saved(family), **{f'load_in_{bits}bit': True}).train()
    if not full.config.is_encoder_decoder:
        m = add_lora(again, r=2, dropout=0., verbose=False)
        m(input_ids=ids, shift_labels=ids).loss.backward()
        assert all(p.grad is not None for p in m.parameters() if p.requires_grad)
        for k,p in m.named_parameters():
            if 'lora_B' in k: nn.init.normal_(p, std=0.05)
        z = logits(m.eval(), ids)
        whole = merge_lora(m).eval()
        off = (logits(whole, ids) - z).norm()/z.norm()
        assert off < {4: 1e-5, 8: 0.05}[bits] and not is_quantized(whole) # an 8-bit product rounds what comes in, too
        whole.save_pretrained(tmp_path)
        assert torch.equal(logits(hub_model(tmp_path).eval(), ids), logits(whole, ids))

def test_random_models_in_few_bits(): assert quantized_share(hub_model('tiny:qwen3', load_in_4bit=True)) > 0.5

def test_experts_apart(saved):
    m = hub_model(saved('mixtral'), load_in_8bit=True, moe_load_in_4bit=True)
    assert m.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8
    assert m.model.layers[0].mlp.experts.parametrizations.down_proj.original.dtype == torch.uint8
    s = hub_model(saved('switch'), moe_load_in_4bit=True)
    assert type(s.encoder.block[1].layer[1].mlp.experts.expert_0.wi).__name__ == 'Linear4bit'
    assert type(s.encoder.block[0].layer[0].SelfAttention.q) is nn.Linear
    with pytest.raises(InputError, match='cannot be saved'):
        m.save_pretrained('nowhere')
    for kw in (dict(load_in_4bit=True, load_in_8bit=True), dict(moe_load_in_4bit=True, moe_load_in_8bit=True)):
        with pytest.raises(InputError, match='exclude each other'):
            hub_model(saved('mixtral'), **kw)
    with pytest.raises(InputError, match='no experts'):
        hub_model(saved('gpt2'), moe_load_in_8bit=True)

def test_without_bitsandbytes(monkeypatch, saved):
    monkeypatch.setattr('importlib.util.find_spec', lambda n, *a: None)
    with pytest.raises(InputError, match=r"pip install 'lmnotes\[quant\]'"):
        import_bitsandbytes()
    with pytest.raises(InputError, match='LoRA needs peft'):
        import_peft()


def cls(family): return model_class(c := tiny_config(family), auto_class(c))

KERNELS = [
    ('auto', 'cpu', 'qwen3', 'sdpa'),
    ('auto', 'cuda', 'gpt2', 'sdpa'),
    ('auto', 'mps', 'qwen3', 'eager'),
    ('auto', 'cpu', 'switch', 'eager'),
    ('eager', 'cpu', 'qwen3', 'eager'),
    ('sdpa', 'mps', 'llama', 'sdpa'),
    ('sdpa', 'cpu', 'switch', 'has no sdpa'),
    ('flash_attention_2', 'cpu', 'qwen3', 'pip install flash-attn'),
    ('flash_attention_3', 'cpu', 'qwen3', 'hopper'),
    ('flex_attention', 'cpu', 'qwen3', 'needs a CUDA GPU'),
    ('flex_attention', 'cuda', 'gpt2', 'has no flex_attention'),
    ('flex_attention', 'cuda', 'qwen3', 'flex_attention'),
    ('spda', 'cpu', 'qwen3', 'did you mean'),
]

@pytest.mark.parametrize('wish,device,family,want', KERNELS)
def test_attention(wish, device, family, want):
    if want in ('eager', 'sdpa', 'flex_attention'):
        assert resolve_attention(wish, device, cls(family)) == want
        return
    with pytest.raises(InputError, match=want):
        resolve_attention(wish, device, cls(family))

def test_flash_is_a_wish(monkeypatch):
    with pytest.warns(UserWarning, match='pip install flash-attn') as w:
        assert resolve_attention('auto', 'cpu', cls('qwen3'), True) == 'sdpa'
    assert len(w) == 1
    monkeypatch.setattr('transformers.utils.is_flash_attn_2_available', lambda: True)
    assert resolve_attention('auto', 'cuda', cls('qwen3'), True) == 'flash_attention_2'
    assert resolve_attention('flash_attention_2', 'cuda', LM) == 'flash_attention_2'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert resolve_attention('eager', 'cpu', cls('qwen3'), True) == 'eager'

def test_the_resolved_attention_is_recorded(saved):
    assert [attention_implementation(hub_model(saved(f))) for f in ('qwen3', 'switch')] == ['sdpa', 'eager']
    assert attention_implementation(hub_model(saved('qwen3'), attn_implementation='eager')) == 'eager'
    ids = tokens()
    torch.testing.assert_close(
        logits(hub_model(saved('qwen3'), attn_implementation='eager').eval(), ids),
        logits(hub_model(saved('qwen3')).eval(), ids),
    )


def refused(match, *a, **kw):
    with pytest.raises(InputError, match=match) as e:
        hub_model(*a, **kw)
    assert '\n' not in str(e.value)

misspelt = [('reversibel', 'reversible'), ('Standart', 'standard'), ('resonence', 'resonance')]

@pytest.mark.parametrize('name, near', misspelt)
def test_a_misspelt_recipe_is_asked_of_no_hub(name, near, monkeypatch, tmp_path):
    asked = []
    def refuse():
        asked.append(name)
        raise OSError('we cannot connect')
    monkeypatch.setattr('lmnotes.models.hf.hf_config.hub_access', refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"there is no model '{name}': did you mean '{near}'"): build_model(name)
    assert not asked
    with pytest.raises(InputError, match='hub cannot be reached'): build_model(f'me/{name}')
    assert asked
    (tmp_path/name).mkdir() # a folder of that name is taken at its word
    with pytest.raises(InputError, match='holds no model'): build_model(name)

def test_mistakes_are_one_line(saved, tmp_path, monkeypatch):
    refused('bert is an encoder', 'tiny:bert')
    refused("did you mean 'gpt2'", 'tiny:gtp2')
    refused('there is no folder', './nowhere')
    refused('max_length=600, and tiny:gpt2 reads at most 512', 'tiny:gpt2', max_length=600)
    refused('the tokenizer has 258 words', saved('gpt2'), vocab_size=258)
    refused('dim cannot be chosen', saved('gpt2'), dim=32)
    refused("unknown option 'hiden_size'", 'tiny:llama', hiden_size=3)
    refused("did you mean 'mlm'", 'tiny:bert', task='mln')
    refused('has no head|no head for task', 'tiny:mixtral', task='mlm')
    refused("unknown dtype 'fp33'", 'tiny:gpt2', dtype='fp33')
    refused('no gpt2 model has these sizes', 'tiny:gpt2', n_head=3)
    refused('holds no model', tmp_path)
    refused('is not a folder', saved('gpt2')/'config.json')
    refused('neither a folder nor a hub id', 'a b')
    refused("hub cannot be reached; did you mean .*'gpt2'", 'gtp2')
    refused('which cannot be reached', 'gpt2')
    refused('hub cannot be reached. Two ways on', 'nobody/nothing-known')
    refused('reads at most 1024', 'gpt2', max_length=4096)
    monkeypatch.setattr('lmnotes.models.hf.hf_checks.free_memory', lambda d: 1000)
    refused('are free; choose a smaller model', saved('gpt2'))

def test_folders_that_cannot_be_trusted_or_do_not_fit(saved, tmp_path):
    def folder(name, config_of, weights_of, weights='model.safetensors'):
        p = tmp_path/name
        p.mkdir()
        shutil.copy(saved(config_of)/'config.json', p)
        if weights_of: shutil.copy(saved(weights_of)/'model.safetensors', p/weights)
        return p
    refused('holds its weights only as a pickle', folder('pickle', 'gpt2', 'gpt2', 'pytorch_model.bin'))
    refused('holds a config and no weights', p := folder('empty', 'gpt2', None))
    assert hub_model(p, from_scratch=True).config.vocab_size == V
    refused('does not hold the weights of this model: it lacks', folder('other', 'gpt2', 'qwen3'))
    refused('other shapes: lm_head', _resized(folder('sizes', 'llama', 'llama')))
    auto_map = dict(AutoConfig='configuration_strange.StrangeConfig')
    for name,extra in (('code', dict(auto_map=auto_map)), ('unknown', {})):
        (tmp_path/name).mkdir()
        write_json(tmp_path/name/'config.json', dict(model_type='strange', **extra))
    (tmp_path/'code'/'configuration_strange.py').write_text('raise SystemExit("this code ran")')
    refused('--trust_remote_code', tmp_path/'code')
    refused('does not know', tmp_path/'unknown')

def _resized(p):
    c = json.loads((p/'config.json').read_text(encoding='utf-8'))
    c['hidden_size'] = 32
    write_json(p/'config.json', c)
    return p

def _altered(source, to, change): # a copy of a saved model whose tensors were changed
    shutil.copytree(source, to)
    file = next(to.glob('*.safetensors'))
    state = load_file(file)
    change(state)
    save_file(state, file, {'format': 'pt'})
    return to

@pytest.mark.parametrize('family', TEXT)
def test_a_file_that_lacks_a_norm_or_has_a_layer_too_many_is_refused(family, saved, tmp_path):
    state = load_file(saved(family)/'model.safetensors')
    norm = [k for k,t in state.items() if k.endswith('weight') and t.dim() == 1][-1]
    refused(f'it lacks .*{norm}', _altered(saved(family), tmp_path/'less', lambda s: s.pop(norm)))
    layer = next(k for k in state if '.0.' in k and k.endswith('weight')).replace('.0.', '.7.', 1)
    more = _altered(saved(family), tmp_path/'more', lambda s: s.update({layer: torch.ones(3)}))
    refused(r'the model has no .*\.7\.', more) # some names are converted
    codes = state[norm].to(torch.int8)
    refused(f'{norm} is saved as I8', _altered(saved(family), tmp_path/'codes', lambda s: s.update({norm: codes})))

def test_a_new_head_is_said_and_one_that_was_saved_must_be_there(tmp_path):
    hub_model('tiny:bert', task='mlm', vocab_size=V).save_pretrained(tmp_path/'base')
    with pytest.warns(UserWarning, match='new and random: .*classifier.bias, classifier.weight'):
        m = hub_model(tmp_path/'base', task='classify')
    assert m.random_head[-2:] == ['classifier.bias', 'classifier.weight']
    m.save_pretrained(tmp_path/'head')
    assert hub_model(tmp_path/'head').random_head == []
    less = _altered(tmp_path/'head', tmp_path/'less', lambda s: s.pop('classifier.weight'))
    refused('it lacks classifier.weight', less)
    refused('it lacks classifier.weight', less, task='classify')
    norm = 'bert.encoder.layer.0.output.LayerNorm.weight'
    refused(f'it lacks {norm}', _altered(tmp_path/'base', tmp_path/'body', lambda s: s.pop(norm)), task='classify')

def test_an_adapter_must_be_whole(saved, tmp_path):
    m = add_lora(hub_model(saved('qwen3')), r=2, verbose=False)
    save_lora(m, tmp_path/'whole')
    name = next(iter(load_file(tmp_path/'whole'/'adapter_model.safetensors')))
    def load(path): return load_lora(hub_model(saved('qwen3')), path)
    load(tmp_path/'whole')
    changes = (
        lambda s: s.pop(name),
        lambda s: s.update({f'{name}.x': s[name].clone()}),
        lambda s: s.update({name: s[name].to(torch.int8)}),
    )
    for n,change in enumerate(changes):
        with pytest.raises(InputError, match='does not hold the weights of this model') as e:
            load(_altered(tmp_path/'whole', tmp_path/str(n), change))
        assert '\n' not in str(e.value) and 'adapter_model.safetensors' in str(e.value)

@pytest.mark.parametrize('name', ['standard', 'gpt', 'tiny:gpt2', 'tiny:qwen3'])
def test_an_adapted_tied_head_is_untied_by_the_merge(name, tmp_path):
    m = build_model(name, vocab_size=V)
    m = add_lora(m, r=2, targets=['head' if name in models else 'lm_head'], dropout=0., verbose=False).eval()
    for k,p in m.named_parameters():
        if 'lora_B' in k: nn.init.normal_(p, std=0.1)
    ids = tokens()
    z = logits(m, ids)
    whole = merge_lora(copy.deepcopy(m)).eval()
    torch.testing.assert_close(logits(whole, ids), z, atol=1e-5, rtol=1e-4)
    whole.save_pretrained(tmp_path/'whole')
    torch.testing.assert_close(logits(build_model(str(tmp_path/'whole')).eval(), ids), z, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('name', ['tiny:t5', 'tiny:bart', 'standard+share:layers'])
def test_corrections_of_a_shared_weight_are_refused(name):
    targets = None if 'share' in name else ['lm_head']
    m = add_lora(build_model(name, vocab_size=V), r=2, targets=targets, verbose=False)
    with pytest.raises(InputError, match='are one weight'):
        merge_lora(m)

def test_a_merge_that_gives_another_model_is_an_error(monkeypatch):
    m = add_lora(build_model('standard', vocab_size=V), r=2, targets=['head'], dropout=0., verbose=False)
    for k,p in m.named_parameters():
        if 'lora_B' in k: nn.init.normal_(p, std=0.1)
    monkeypatch.setattr('lmnotes.models.lora._untie_head', lambda m: None) # as it was
    with pytest.raises(RunError, match='merging the adapters gives another model'):
        merge_lora(m)

def test_memory_is_checked_before_weights_are_read(saved, tmp_path):
    shutil.copytree(saved('llama'), tmp_path/'huge')
    c = json.loads((tmp_path/'huge'/'config.json').read_text(encoding='utf-8'))
    c.update(hidden_size=65536, intermediate_size=262144, num_hidden_layers=80)
    write_json(tmp_path/'huge'/'config.json', c)
    refused('GB are free', tmp_path/'huge')

def test_bytes_needed_are_the_bytes_of_the_weights(saved):
    for f in TEXT:
        m = hub_model(saved(f))
        c = m.config
        assert bytes_needed(c, auto_class(c)) == sum(p.numel()*p.element_size() for p in m.parameters())
    q = hub_model(saved('mixtral'), load_in_8bit=True)
    size = sum(p.numel()*p.element_size() for p in q.parameters())
    assert abs(bytes_needed(q.config, auto_class(q.config), bits=8)/size - 1) < 0.02

def test_ours_and_adapters_are_models_too(tmp_path):
    m = build_model('reversible', vocab_size=V).eval()
    m.save_pretrained(tmp_path/'run'/'final')
    ids = tokens()
    assert find_model(tmp_path/'run') == ('ours', tmp_path/'run'/'final')
    assert torch.equal(logits(hub_model(tmp_path/'run').eval(), ids), logits(m, ids))
    a = add_lora(hub_model(tmp_path/'run'), r=2, verbose=False).eval()
    for k,p in a.named_parameters():
        if 'lora_B' in k: nn.init.normal_(p, std=0.1)
    save_lora(a, tmp_path/'adapter')
    assert torch.equal(logits(hub_model(tmp_path/'adapter').eval(), ids), logits(a, ids))

@pytest.mark.parametrize('family', TEXT)
def test_sizes_can_be_chosen_where_weights_are_random(family, saved):
    for name,kw in ((f'tiny:{family}', {}), (saved(family), dict(from_scratch=True))):
        m = hub_model(name, vocab_size=V, n_layer=3, dim=96, **kw).eval()
        text = m.config.get_text_config()
        assert (text.hidden_size, text.num_hidden_layers) == (96, 3) and logits(m, tokens()).isfinite().all()

def test_an_id_of_the_hub_in_the_local_cache(saved, tmp_path, monkeypatch):
    "Offline, what was fetched before is found by its id"
    home = tmp_path/'models--someone--tiny'
    (home/'refs').mkdir(parents=True)
    (home/'refs'/'main').write_text('0'*40)
    shutil.copytree(saved('llama'), home/'snapshots'/('0'*40))
    ids = tokens()
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    for kw in ({}, dict(load_in_8bit=True)):
        m = build_model('someone/tiny', vocab_size=V, **kw).eval()
        a,b = logits(m, ids),logits(hub_model(saved('llama'), **kw).eval(), ids)
        assert torch.equal(a, b)
    (home/'snapshots'/('0'*40)/'model.safetensors').unlink()
    refused('cannot be reached', 'someone/tiny')

def test_a_few_bits_model_counts_all_its_weights(saved):
    n = sum(p.numel() for p in hub_model(saved('mixtral')).parameters())
    for kw in (dict(load_in_4bit=True), dict(load_in_8bit=True), dict(moe_load_in_4bit=True)):
        m = hub_model(saved('mixtral'), **kw)
        assert trainable_share(m)['total'] == sum(true_numel(k, p) for k,p in m.named_parameters()) == n
        assert causal_leakage(m, vocab_size=V) <= 1e-6

def test_encoders_take_their_tasks():
    ids = tokens()
    assert hub_model('tiny:bert', vocab_size=V, task='classify', num_labels=3)(ids).logits.shape == (2, 3)
    assert hub_model('tiny:bert', vocab_size=V, task='tag', num_labels=5)(ids).logits.shape == (2, 13, 5)
    assert abs(hub_model('tiny:bert', vocab_size=V, task='mlm').eval()(ids, labels=tokens()).loss - math.log(V)) < 0.2
    assert hub_model('tiny:bert', vocab_size=V, task='span')(ids).start_logits.shape == (2, 13)

def test_wrong_targets():
    m = build_model('standard', vocab_size=V)
    with pytest.raises(InputError, match="did you mean 'q_proj'"):
        add_lora(m, targets='q_prj')
    adapted = add_lora(m, targets='q_proj,v_proj', verbose=False)
    assert set(adapted.active_peft_config.target_modules) == {'q_proj', 'v_proj'}

# ---- a hub of one's own

class _Hub(BaseHTTPRequestHandler): # answers for the files below `root` as the hub does
    def log_message(self, *args): pass
    def do_HEAD(self): self.answer(body=False)
    def do_GET(self): self.answer(body=True)
    def answer(self, body):
        repo,_,name = self.path.partition('/resolve/main/')
        file = Path(self.server.root)/repo.strip('/')/name.partition('?')[0]
        found = bool(name) and file.is_file()
        data = file.read_bytes() if found else b'{}'
        self.send_response(200 if found else 404)
        for k,v in {'Content-Length': len(data), 'ETag': f'"{hashlib.sha1(data).hexdigest()}"', 'X-Repo-Commit': 'a'*40,
                    **({} if found else {'X-Error-Code': 'EntryNotFound'})}.items():
            self.send_header(k, str(v))
        self.end_headers()
        if body: self.wfile.write(data)

_load_by_id = '''
from lmnotes.core import InputError
from lmnotes.models.hf.hf_load import hub_model
for name in ('org/whole', 'org/codes', 'org/less'):
    try:
        print(name, 'loaded', hub_model(name).num_parameters() > 0)
    except InputError as e:
        print(name, e)
'''

def test_weights_that_come_by_a_hub_id_are_checked_too(saved, tmp_path):
    state = load_file(saved('gpt2')/'model.safetensors')
    norm = next(k for k in state if k.endswith('ln_f.weight'))
    shutil.copytree(saved('gpt2'), tmp_path/'org/whole')
    _altered(saved('gpt2'), tmp_path/'org/codes', lambda s: s.update({norm: state[norm].to(torch.int8)}))
    _altered(saved('gpt2'), tmp_path/'org/less', lambda s: s.pop(norm))
    server = ThreadingHTTPServer(('127.0.0.1', 0), _Hub)
    server.root = tmp_path
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = dict(os.environ, HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path/'cache'),
                   HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1', DISABLE_SAFETENSORS_CONVERSION='1')
        out = subprocess.run([sys.executable, '-c', _load_by_id], env=env, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
    assert out.returncode == 0, out.stderr
    whole,codes,less = out.stdout.splitlines()
    assert whole == 'org/whole loaded True'
    assert f'{norm} is saved as I8 where floats are expected' in codes and f'it lacks {norm}' in less
