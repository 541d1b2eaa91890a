"Shared weights are one storage: in memory, in the optimizer, on two ranks, in a file, after quantizing and packing"

import pytest
import torch
from torch import nn

from lmnotes.app.cli import main
from lmnotes.core import InputError
from lmnotes.models import build_model
from lmnotes.quantizers import quantize, quantized_layers
from lmnotes.sharing import (
    safetensors_header_bytes,
    share,
    shared_quantized_layers,
    sharing_presets,
    tied_parameters,
    unique_storage_bytes,
    weight_file_bytes,
)
from lmnotes.sharing.strategies import layer_part, layer_stacks
from lmnotes.training.distributed.equivalence import relative_difference, train_distributed, write_letters_dataset
from lmnotes.training.distributed.launchers import run_distributed

four = {'tiny:t5': dict(num_layers=4, num_decoder_layers=4), 'tiny:bart': dict(encoder_layers=4, decoder_layers=4)}
models = {
    'standard': dict(tie=False),
    'reversible': {},
    'midpoint': dict(residual='midpoint'),
    'resonance': {},
    'moe': {},
    'rnn': {},
    'tiny:gpt2': {},
    'tiny:llama': {},
    'tiny:qwen3': {},
    'tiny:mixtral': {},
}
ways = (
    'embeddings',
    'encoder-decoder',
    'attention',
    'ffn-2',
    'layers',
    'sequential-3',
    'alternate',
    'neighbours-2',
    'groups-0.2-1.3',
    'attention-2:ffn:lora-2',
    *sharing_presets,
)
ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))

def make(name, **kw):
    torch.manual_seed(0)
    base = 'standard' if name == 'midpoint' else name
    return build_model(base, vocab_size=61, **(four.get(name) or dict(models.get(name, {}), n_layer=4)), **kw).eval()

@torch.no_grad()
def logits(m): return (m(input_ids=ids, decoder_input_ids=ids) if m.config.is_encoder_decoder else m(ids)).logits

def fits(name, what):
    return not (
        what == 'encoder-decoder'
        and name not in four
        or what in ('embeddings', 'conservative')
        and name not in ('standard', 'tiny:llama', 'tiny:mixtral')
    )

@pytest.mark.parametrize('name', [*models, *four])
def test_storage_is_what_is_reported_and_what_lies_in_the_file(name, tmp_path):
    whole = make(name)
    n = unique_storage_bytes(whole)
    for what in filter(lambda w: fits(name, w), ways):
        m = share(make(name), what, verbose=False)
        path = tmp_path/what.replace(':', '_')
        m.save_pretrained(path)
        in_file = weight_file_bytes(path) - safetensors_header_bytes(path/'model.safetensors')
        assert unique_storage_bytes(m) == in_file < n, what
        assert unique_storage_bytes(m) == sum(
            t.numel() * t.element_size()
            for t in (*m.parameters(), *(b for k, b in m.named_buffers() if k in m.state_dict()))
        ), what
        assert all(
            len({dict(m.named_parameters(remove_duplicate=False))[k].data_ptr() for k in names}) == 1
            for names in tied_parameters(m)
        ), what
        again = build_model(path).eval()
        assert (
            tied_parameters(again) == tied_parameters(m)
            and torch.allclose(logits(again), logits(m), atol=1e-6, rtol=0)
            and getattr(again.config, 'rewrites', None) == getattr(m.config, 'rewrites', None)
        ), what

def test_alternating_twelve_layers_keeps_two(): # and not half of them
    m = make('standard')
    layer = sum(p.numel() for p in m.blocks[0].parameters())
    twelve, shared = (
        build_model('standard', n_layer=12),
        share(build_model('standard', n_layer=12), 'alternate', verbose=False),
    )
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(twelve) - count(shared) == 10*layer and len({id(b.ffn.norm.weight) for b in shared.blocks}) == 2

def test_sharing_is_more_than_an_entry(): # what one layer learns, the other knows
    m = share(make('standard'), 'alternate', verbose=False)
    with torch.no_grad():
        m.blocks[0].mixer.part.q_proj.weight.fill_(7.)
    assert (
        m.blocks[2].mixer.part.q_proj.weight.unique().tolist() == [7.0]
        and m.blocks[1].mixer.part.q_proj.weight.ne(7.0).all()
    )

@pytest.mark.parametrize('words', [61, 64]) # 64 is the width too
def test_an_embedding_ties_to_a_head_of_its_shape(words):
    m = build_model('standard', vocab_size=words, dim=64, tie=False)
    share(m, 'embeddings', verbose=False)
    assert m.head.weight is m.embed.weight and m.config.tie and m.config.rewrites == []
    odd = build_model('standard', vocab_size=words, tie=False)
    odd.head = nn.Linear(64, words + 1, bias=False)
    with pytest.raises(InputError, match='cannot be one'):
        share(odd, 'embeddings')

@pytest.mark.parametrize('name', [k for k in (*models, *four) if k not in ('tiny:qwen3', 'tiny:mixtral')])
def test_gradients_add(name):
    m = share(make(name), 'encoder-decoder:alternate' if name in four else 'alternate', verbose=False).double()
    twin = make(name).double()
    twin.load_state_dict(m.state_dict())
    twin_groups = tied_parameters(twin)
    for one in (m, twin): (one(input_ids=ids, labels=ids)).loss.backward()
    own,grads = (dict(x.named_parameters(remove_duplicate=False)) for x in (m, twin))
    for names in tied_parameters(m):
        total = sum(grads[k].grad for k in {id(grads[k]): k for k in names}.values() if grads[k].grad is not None)
        assert (own[names[0]].grad - total).abs().max() < 1e-9, names
    assert len(tied_parameters(m)) > len(twin_groups)

@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'lion', 'sgd'])
def test_an_optimizer_holds_a_weight_once(optimizer, tmp_path):
    from lmnotes.data.load import load_data
    from lmnotes.training.learner import lm_learner
    data = load_data(data_path=write_letters_dataset(tmp_path/'letters.jsonl'), max_length=16, bs=2, device='cpu')
    m = build_model('standard+share:alternate', n_layer=4, vocab_size=data.vocab_size)
    learn = lm_learner(m, data, optimizer=optimizer)
    learn.create_opt()
    held = [p for group in learn.opt.all_params() for p in [group[0]]] if hasattr(learn.opt, 'all_params') else []
    inner = learn.opt.opt
    inner = getattr(inner, 'parts', [inner])
    held = [id(p) for o in inner for g in o.param_groups for p in g['params']]
    assert len(held) == len(set(held)) == len(list(m.parameters()))

@pytest.mark.parametrize('model,how', [
    ('standard+share:alternate', 'ddp'),
    ('reversible+share:alternate:lora-2+ternary', 'ddp'),
    ('standard+share:alternate', 'fsdp'),
])
def test_two_ranks_agree_on_a_shared_weight(model, how, tmp_path):
    letters = write_letters_dataset(tmp_path/'letters.jsonl')
    data = dict(data_path=str(letters), max_length=16)
    case = lambda bs: dict(model=model, data=dict(data, bs=bs), options=dict(n_layer=4), steps=2, lr=1e-3)
    a,(b,c) = train_distributed(**case(4)),run_distributed(train_distributed, 2, how=how, **case(2))
    assert how == 'fsdp' or relative_difference(c, b) == 0
    assert relative_difference(b, a, 'grads') < 1e-5 and relative_difference(b, a) < 1e-4

@pytest.mark.parametrize('order', ['share:alternate+{}', '{}+share:alternate'])
@pytest.mark.parametrize('bits', ['ternary', 'int4', 'codebook:8'])
def test_codes_stay_shared(order, bits, tmp_path):
    m = make(f'standard+{order.format(bits)}')
    groups = shared_quantized_layers(m)
    layers = quantized_layers(m)
    assert len(groups) == 2*7 and all(len(g) == 2 for g in groups)
    for names in groups:
        a,b = (layers[k].quantized_weight() for k in names)
        assert a.codes.equal(b.codes) and a.scale.equal(b.scale)
    m.save_pretrained(tmp_path/'m')
    again = build_model(tmp_path/'m').eval()
    assert shared_quantized_layers(again) == groups and logits(again).equal(logits(m))

@pytest.mark.parametrize('name', ['tiny:llama', 'tiny:t5', 'tiny:gpt2', 'tiny:qwen3', 'standard'])
def test_hub_models_go_all_the_way(name, tmp_path): # share, quantize, pack, load, generate
    from lmnotes.quantizers.packed_model import load_packed, pack
    m = make(name)
    share(m, 'aggressive', verbose=False)
    quantize(m, 'ternary:all', verbose=False)
    pack(m, tmp_path/'packed')
    again = load_packed(tmp_path/'packed')
    assert (logits(again) - logits(m)).abs().max() <= 1e-5
    texts = [one.generate(ids[:,:4], max_new_tokens=6, do_sample=False, pad_token_id=0) for one in (m, again)]
    assert texts[0].equal(texts[1])
    alone = make(name)
    quantize(alone, 'ternary:all', verbose=False)
    pack(alone, tmp_path/'alone')
    assert weight_file_bytes(tmp_path/'packed') < weight_file_bytes(tmp_path/'alone')
    with pytest.raises(InputError, match='packed'):
        share(again, 'alternate')

def test_adapters_go_onto_a_shared_model(tmp_path):
    from lmnotes.models.lora import add_lora
    m = share(make('standard'), 'alternate', verbose=False)
    before = logits(m)
    m = add_lora(m, dropout=0., verbose=False).eval()
    assert torch.allclose(logits(m), before, atol=1e-6) and sum(p.requires_grad for p in m.parameters()) == 2*4*7

def test_a_run_is_resumed_with_its_ties(tmp_path):
    from lmnotes.training.train import train
    letters = write_letters_dataset(tmp_path/'letters.jsonl')
    kw = dict(
        model='standard+share:alternate:lora-2+ternary',
        n_layer=4,
        data_path=str(letters),
        max_length=16,
        batch_size=2,
        device='cpu',
        save_steps=2,
        quiet=True,
    )
    train(max_steps=4, output_dir=str(tmp_path/'one'), **kw)
    state = lambda p: build_model(p).state_dict()
    import shutil
    shutil.copytree(tmp_path/'one', tmp_path/'two')
    shutil.rmtree(tmp_path/'two/final')
    shutil.rmtree(tmp_path/'two/checkpoints/step_000004')
    (tmp_path/'two/checkpoints/latest').write_text('step_000002', encoding='utf-8')
    train(resume_from_checkpoint=str(tmp_path/'two'), device='cpu', quiet=True)
    a,b = state(tmp_path/'one/final'),state(tmp_path/'two/final')
    assert (
        a.keys() == b.keys()
        and all(a[k].equal(b[k]) for k in a)
        and len(tied_parameters(build_model(tmp_path / 'two/final'))) == 2 * 11 + 1
    )

@pytest.mark.parametrize('spelling,said', [
    ('share:groups-0.9', 'layer 9 is out of range: there are 4 layers, 0 to 3'),
    ('share:groups-0.1-1.2', 'layer 1 is in two groups'),
    ('share:groups-0', 'a dot joins'),
    ('share:alternat', "did you mean 'alternate'?"),
    ('share:attention-lora', 'there is'),
    ('share:embeddings', 'nothing to share'),
    ('share:alternate+share:alternate', 'nothing to share'),
    ('share:encoder-decoder', 'is no encoder-decoder'),
    ('share', 'such as share:alternate'),
    ('share:sequential', 'needs a whole number'),
])
def test_a_mistake_is_one_line(spelling, said, capsys, tmp_path):
    options = ['--n_layer', '4', '--device', 'cpu', '--output_dir', str(tmp_path/'run')]
    assert main(['train', '--model', f'standard+{spelling}', *options]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and '\n' not in err and not (tmp_path/'run').exists()

def test_layers_that_differ_are_refused():
    m = build_model('standard', n_layer=2, ffn=['swiglu', 'relu2'])
    with pytest.raises(InputError, match='are not alike'):
        share(m, 'groups', groups=[[0, 1]])
    assert tied_parameters(m) == [['embed.weight', 'head.weight']] and m.config.rewrites == []
    share(m, 'attention', verbose=False)
    assert len(tied_parameters(m)) == 1 + 6

# ---- named combinations, one by one: which parts are one parameter, and how many are left

def owners(model): # name of a parameter -> name of the first place it stands in
    first = {}
    return {k: first.setdefault(id(p), k) for k,p in model.named_parameters(remove_duplicate=False)}

def places(model, path): # (layer, part) -> the layers whose parameters stand there
    own,found = owners(model),{}
    for i,layer in enumerate(layer_stacks(model)[path]):
        for k,_ in layer.named_parameters(remove_duplicate=False):
            owner = own[f'{path}.{i}.{k}'].removeprefix(f'{path}.')
            found.setdefault((i, layer_part(k)), set()).add(int(owner.partition('.')[0]))
    return found

def stored(model, part): # parameters of that part of all layers, each counted once
    parts = {id(p): p.numel() for stack in layer_stacks(model).values() for layer in stack
             for k,p in layer.named_parameters() if layer_part(k) == part}
    return sum(parts.values())

# preset -> part -> owner of each of twelve layers
PRESETS = dict(
    conservative=dict(attention=list(range(12)), ffn=list(range(12)), norm=list(range(12))),
    moderate=dict(attention=[0, 1]*6, ffn=[i//2*2 for i in range(12)], norm=list(range(12))),
    aggressive=dict(attention=[0, 1]*6, ffn=[0, 1]*6, norm=[0, 1]*6),
)

@pytest.mark.parametrize('name', sharing_presets)
@pytest.mark.parametrize('model', ['standard', 'reversible', 'resonance', 'tiny:gpt2', 'tiny:llama'])
def test_a_preset_shares_these_parts_and_no_others(name, model):
    ours = {} if model.startswith('tiny:') else dict(tie=False)
    whole,m = (build_model(model, vocab_size=61, n_layer=12, **ours) for _ in range(2))
    if model == 'tiny:gpt2' and name == 'conservative': # whose head is its embedding already
        with pytest.raises(InputError, match='nothing to share'):
            share(m, name, verbose=False)
        return
    share(m, name, verbose=False)
    path, = layer_stacks(m)
    at = places(m, path)
    for part,owner in PRESETS[name].items():
        found = [at.get((i, part)) for i in range(12)]
        if part == 'norm' and found[0] is None: continue # norms without weights
        assert found == [{i} for i in owner], part
        assert stored(m, part)*12 == stored(whole, part)*len(set(owner)), part # 2 of 12, 6 of 12 or all
    assert m.get_input_embeddings().weight is m.get_output_embeddings().weight
    outside = [g for g in tied_parameters(m) if not any(k.startswith(f'{path}.') for k in g)]
    assert len(outside) == 1 and len(outside[0]) == 2 # head and embedding, and nothing else

@pytest.mark.parametrize('name', sharing_presets)
def test_presets_of_an_encoder_and_its_decoder(name):
    "Moderate and aggressive make the decoder's layers those of the encoder, as far as they have them"
    m = make('tiny:t5')
    if name == 'conservative': # its head is its embedding already
        with pytest.raises(InputError, match='nothing to share'):
            share(m, name, verbose=False)
        return
    share(m, name, verbose=False)
    groups = [{k.split('.')[0] for k in g} for g in tied_parameters(m) if 'block' in g[0]]
    assert any(g == {'encoder', 'decoder'} for g in groups)
    cross = [g for g in tied_parameters(m) if 'EncDecAttention' in g[0]]
    assert all({k.split('.')[0] for k in g} == {'decoder'} for g in cross) # which no encoder has
