"Quantized weights, in every spelling and on every model, are what is computed with, saved, loaded and trained"
import itertools

import pytest
import torch

import lmnotes.quantizers
from lmnotes.benchmarks.bench_distributed import build_case
from lmnotes.core import InputError
from lmnotes.models.build import build_model, models
from lmnotes.quantizers import *
from lmnotes.training.checkpoints import load_checkpoint, save_checkpoint
from lmnotes.training.distributed.equivalence import relative_difference, train_distributed, write_letters_dataset
from lmnotes.training.distributed.launchers import run_distributed
from lmnotes.training.learner import *

SPELLINGS = [
    'binary',
    'binary:row:all',
    'ternary',
    'ternary:all',
    'ternary:act8:norm:head',
    'int2',
    'int3:row',
    'int4:group32:embeddings',
    'int8:all',
    'codebook',
    'codebook:5:head',
    'codebook:256',
    'bits:2.5',
    'bits:1.58:all',
    'route:1.5',
]
HUB = ['tiny:gpt2', 'tiny:llama', 'tiny:t5', 'tiny:qwen3']

def tokens(*shape, n=200): return torch.randint(n, shape, generator=torch.Generator().manual_seed(0))
def make(name, **kw):
    torch.manual_seed(0)
    return build_model(name, **kw).eval()
def logits(m, ids):
    with torch.no_grad():
        return m(input_ids=ids, **(dict(decoder_input_ids=ids) if m.config.is_encoder_decoder else {})).logits

@pytest.mark.parametrize('name', SPELLINGS)
def test_what_is_computed_with_is_what_is_stored(name):
    m = make(f'standard+{name}', n_layer=2)
    ids = tokens(2, 16)
    for l in quantized_layers(m).values():
        c = l.quantized_weight()
        assert torch.equal(l.effective_weight().detach(), c.dequantize()) and c.dequantize().dtype == torch.float32
        for p in c.row_parts:
            assert (
                p.kind in ('binary', 'ternary', 'int', 'codebook')
                and p.codes.dtype in (torch.int8, torch.uint8)
                and p.scale.dtype == torch.float16
            )
            if p.kind == 'ternary': assert p.codes.unique().tolist() == [-1, 0, 1] and p.scale.shape == ()
            if p.kind == 'int': assert p.codes.abs().max() <= 2**(p.bits - 1) - 1 and p.scale.shape[0] == len(p.codes)
            if p.kind == 'codebook':
                assert p.codes.max().item() < len(p.levels) <= 2**p.bits and p.levels.dtype == torch.float16
    m.train()(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

@pytest.mark.parametrize('name', SPELLINGS)
def test_ours_survive_saving(name, tmp_path):
    m = make(f'standard+{name}', n_layer=2)
    m.save_pretrained(tmp_path)
    again = build_model(str(tmp_path)).eval()
    assert again.config.rewrites == [name] and torch.equal(logits(again, tokens(2, 16)), logits(m, tokens(2, 16)))
    assert stored_bytes(again) == stored_bytes(m)

@pytest.mark.parametrize('base', [n for n in models.names() if n != 'encoder'])
def test_every_recipe_takes_codes(base):
    for name in ('ternary:all', 'int4'):
        m = make(f'{base}+{name}')
        ids = tokens(1, 16)
        assert logits(m, ids).isfinite().all() and quantized_layers(m)

@pytest.mark.parametrize('hub', HUB)
@pytest.mark.parametrize('name', ['ternary:all', 'int4:head', 'bits:2.5'])
def test_models_of_transformers_survive_saving(hub, name, tmp_path):
    m = make(f'{hub}+{name}')
    assert quantized_layers(m) and m.config.rewrites == [name]
    if ':' in name and name != 'bits:2.5' and m.config.tie_word_embeddings:
        ends = m.get_input_embeddings(), m.get_output_embeddings()
        assert all(isinstance(end, QuantizedLayer) for end in ends)
    m.save_pretrained(tmp_path)
    again = build_model(str(tmp_path)).eval()
    assert again.config.rewrites == [name] and torch.equal(
        logits(again, tokens(2, 9, n=50)), logits(m, tokens(2, 9, n=50))
    )

@pytest.mark.parametrize('budget', [1, 1.3, 1.58, 1.6, 1.9, 2, 2.25, 2.5, 3, 3.7, 4, 5.5, 7.99, 8])
def test_budgets_are_met(budget):
    for kw in (dict(), dict(adaptive_bits=False)):
        assert abs(QuantizedModel(make('standard'), QuantConfig(budget, **kw)).mean_bits() - budget) <= .01

@pytest.mark.parametrize('name,said', [
    ('ternary:3', 'three levels'), ('ternary:hed', "did you mean 'head'"), ('ternari', "did you mean 'ternary'"),
    ('int5', 'did you mean'), ('int1', 'did you mean'), ('int4:group0', 'did you mean'),
    ('int4:group48', 'do not fall into groups of 48'), ('int4:group100000', 'do not fall'),
    ('int4:act1', 'at least act2'), ('codebook:1', '2 to 256'), ('codebook:300', '2 to 256'),
    ('bits:0.5', 'no allocation'), ('bits:8.5', 'no allocation'), ('route:0.9', 'no allocation'),
    ('bits:x', 'needs a budget'), ('bits', 'needs a budget'), ('bits:nan', 'needs a budget'),
])
def test_bad_spellings_are_one_line(name, said):
    with pytest.raises(InputError, match=said) as e:
        build_model(f'standard+{name}')
    assert '\n' not in str(e.value)

TWICE = itertools.product(['ternary', 'int4', 'bits:3', 'codebook:8'], ['ternary', 'int8', 'bits:2'])
@pytest.mark.parametrize('first,then', TWICE)
def test_twice_is_refused(first, then):
    m = make(f'standard+{first}', n_layer=1)
    with pytest.raises(InputError, match=f'rewrites: {first}'):
        quantize(m, then, verbose=False)
    assert m.config.rewrites == [first]

def test_nothing_is_divided_by_zero():
    for name in SPELLINGS:
        m = make(f'standard+{name}', n_layer=1)
        for p in m.parameters(): p.data.zero_()
        for l in quantized_layers(m).values(): assert l.effective_weight().eq(0).all()
    for bits in (0, 1):
        with pytest.raises(InputError):
            quantize_groups(torch.ones(2, 2), bits)
        with pytest.raises(InputError):
            fake_quantize_tokens(torch.ones(2, 2), bits)

def test_scales_do_not_shrink_when_saved_again_and_again(tmp_path):
    m = make('standard+ternary', n_layer=1)
    scale = lambda: [l.quantized_weight().scale.item() for l in quantized_layers(m).values()]
    first = scale()
    for i in range(3):
        m.save_pretrained(tmp_path/str(i))
        m = build_model(str(tmp_path/str(i)))
    assert scale() == first

def test_averaged_weights_are_averaged_before_they_are_coded():
    average = torch.optim.swa_utils.AveragedModel(
        m := make('standard+ternary', n_layer=1), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    for p in m.parameters(): p.data.add_(.01*torch.randn_like(p))
    average.update_parameters(m)
    for l in quantized_layers(average.module).values():
        assert len(l.quantized_weight().dequantize().unique()) <= 3

def test_ties_are_coded_once():
    for name in ('standard', 'tiny:gpt2', 'tiny:t5'):
        m = make(f'{name}+int4:embeddings')
        a,b = m.get_input_embeddings(),m.get_output_embeddings()
        assert (a.weight is b.weight) == (isinstance(a, QuantizedLayer) and isinstance(b, QuantizedLayer))
        if a.weight is b.weight: assert torch.equal(a.quantized_weight().codes, b.quantized_weight().codes)
    whole,tied = make('standard+ternary', n_layer=1),make('standard+ternary:all', n_layer=1)
    assert stored_bytes(whole) - stored_bytes(tied) == 4*256*64 - (256*64//5 + 1 + 2)

def test_low_rank_on_a_coded_base():
    from lmnotes.models.lora import add_lora, merge_lora
    for name in ('standard+ternary', 'standard+bits:2.5', 'tiny:gpt2+int4', 'tiny:llama+codebook:4'):
        m = add_lora(make(name), r=4, dropout=0., verbose=False).train()
        ids = tokens(2, 12, n=50)
        m(input_ids=ids, labels=ids).loss.backward()
        got = [n for n,p in m.named_parameters() if p.grad is not None]
        assert got and all('lora_' in n for n in got)
        with pytest.raises(InputError, match='rounds its weights'):
            merge_lora(m)

def test_adapters_themselves_stay_whole():
    from lmnotes.models.lora import add_lora
    m = quantize(add_lora(make('standard'), r=4, dropout=0., verbose=False), 'ternary', verbose=False)
    assert quantized_layers(m) and not any('lora_' in k for k in quantized_layers(m))

@pytest.fixture(scope='module')
def letters(tmp_path_factory): return write_letters_dataset(tmp_path_factory.mktemp('data')/'letters.jsonl')

def small(letters):
    from lmnotes.data.load import load_data
    data = load_data(data_path=letters, mode='sft', packing=False, max_length=64, bs=4, device='cpu')
    torch.manual_seed(0)
    return lm_learner(
        build_model('standard+ternary:warm', n_layer=1, vocab_size=data.vocab_size), data, precision='fp32'
    )

class Until(lmnotes.training.learner.Callback):
    order = 90
    def __init__(self, step): self.step_ = step
    def after_step(self):
        if self.learn.step >= self.step_: raise lmnotes.training.learner.CancelFitException()

def fit(learn, until):
    with learn.no_bar(), learn.no_logging(), learn.added_cbs([*quantization_warmup(learn.model, 30), Until(until)]):
        learn.fit(1)

def test_warming_in_resumes_to_the_very_same_weights(letters, tmp_path):
    once = small(letters)
    fit(once, 8)
    half = small(letters)
    fit(half, 4)
    save_checkpoint(half, tmp_path/'half')
    again = small(letters)
    load_checkpoint(again, tmp_path/'half')
    fit(again, 8)
    for (k,a),b in zip(once.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), k
    other = small(letters)
    with other.no_bar(), other.no_logging(), other.added_cbs(Until(8)):
        other.fit(1)
    # it does make a difference
    assert not all(torch.equal(a, b) for a,b in zip(once.model.parameters(), other.model.parameters()))
    assert {m.lam for m in quantized_layers(once.model).values()} == {1.}

@pytest.mark.parametrize('name', ['standard+ternary', 'standard+bits:2.5:all'])
def test_two_ranks_train_what_one_does(letters, name):
    one = train_distributed(**build_case('standard', letters, accumulate=1, model=name), steps=3)
    halves = build_case('standard', letters, world=2, model=name)
    for how in ('ddp', 'fsdp'):
        a,b = run_distributed(train_distributed, 2, how=how, steps=3, **halves)
        assert relative_difference(a, one, 'grads') < 1e-5 and relative_difference(a, one) < 1e-4
