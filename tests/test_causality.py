"The causality probe refuses every planted leak and accuses no sound model"
import copy

import pytest
import torch
import torch.nn.functional as F

from lmnotes.core import InputError, RunError
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.task_suite import evaluate_tasks
from lmnotes.models.attention import attentions
from lmnotes.models.build import build_model, models
from lmnotes.models.causality import causal_leakage, causality_findings, check_causal
from lmnotes.models.conformance import conformance_models
from lmnotes.models.decoder import LM
from lmnotes.models.model_readings import ModelReader
from lmnotes.models.planted_leaks import border_leak, planted_leaks
from lmnotes.training.train import train

SOUND = [n for n in conformance_models() if n not in ('encoder', 'tiny:bert')]
OF_THE_ISSUE = ['next token at every 24th', 'next token at every 64th', 'next token beyond position 100',
                'next token when the batch has several rows', 'next token beside a masked logit',
                'next token in training alone']

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def first_fault(model, **kwargs): return next((f for f in causality_findings(model, **kwargs) if f.is_fault), None)

# ---- what leaks is refused

@pytest.fixture(scope='module')
def _sound_draw(): # of the model that the leaks are planted in
    return check_causal(build_model('standard', 'tiny', 64, n_layer=2), drawn=True)

@pytest.mark.parametrize('name', planted_leaks.names())
def test_a_planted_leak_is_refused(name, _sound_draw):
    with pytest.raises(RunError, match=r'future|rows of its batch|labels|how much text|cache'):
        check_causal(planted_leaks[name](), name, drawn=True)

def test_the_leaks_of_the_issue_and_ten_more_are_planted():
    assert set(OF_THE_ISSUE) < set(planted_leaks.names()) and len(planted_leaks) >= len(OF_THE_ISSUE) + 10

@pytest.mark.parametrize('width', range(2, 65))
def test_each_chunk_width_is_refused(width):
    assert first_fault(border_leak(width), noise=0).kind == 'future'

def test_a_leak_is_named_by_what_it_reads():
    kinds = {'next token in training alone': ('future', 'training'), 'row above': ('batch', 'scores'),
             'next token in the scores alone': ('future', 'scores'), 'label in the loss': ('labels', 'loss'),
             'number of tokens': ('prefix', 'scores'), 'cache off by one': ('cache', 'scores')}
    found = {n: first_fault(planted_leaks[n](), noise=0) for n in kinds}
    assert {n: (f.kind, f.reading) for n,f in found.items()} == kinds

def test_a_leak_beyond_the_scored_length_is_found_at_that_length():
    model = planted_leaks['next token beyond position 100']()
    assert first_fault(model, length=90, noise=0) is None
    assert first_fault(model, length=110, noise=0).kind == 'future'

def test_a_leak_that_only_real_text_wakes():
    class Rare(LM): # after one sequence of three tokens, that random text has once in 262,144
        def forward_features(self, input_ids=None, *args, **kwargs):
            h = super().forward_features(input_ids, *args, **kwargs)
            x = torch.nn.functional.pad(input_ids, (2, 0), value=-1)
            here = (x[:,:-2] == 5) & (x[:,1:-1] == 6) & (x[:,2:] == 7)
            return h + here[...,None]*self.embed(input_ids.roll(-1, 1))
    model = build_model('standard', 'tiny', 64, n_layer=1)
    model.__class__ = Rare
    windows = torch.arange(64)[None].expand(4, 64)
    assert first_fault(model, windows=windows, noise=0).kind == 'future'

# ---- what is sound passes

@pytest.mark.parametrize('name', SOUND)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_sound_model_is_not_accused(name, dtype):
    assert first_fault(conformance_models()[name](), length=48, dtype=dtype) is None

@pytest.mark.parametrize('seed', range(1, 4))
@pytest.mark.parametrize('name', ['moe', 'tiny:mixtral', 'tiny:switch', 'resonance'])
def test_other_draws_accuse_no_experts(name, seed):
    assert first_fault(conformance_models()[name](), length=64, seed=seed) is None

def test_dropout_and_noise_in_training_are_no_leak():
    assert first_fault(build_model('standard', 'tiny', 31, dropout=0.3), length=24, noise=0) is None
    class Noisy(LM):
        def forward_features(self, *args, **kwargs):
            h = super().forward_features(*args, **kwargs)
            return h + torch.randn_like(h) if self.training else h
    model = build_model('standard', 'tiny', 31)
    model.__class__ = Noisy
    assert first_fault(model, length=24, noise=0) is None

@pytest.mark.parametrize('max_length', [2, 16, 32, 99])
def test_a_model_of_few_positions_is_probed_as_far_as_they_go(max_length):
    model = build_model('gpt', 'tiny', 31, max_length=max_length)
    assert {f.length for f in causality_findings(model, noise=0)} >= {max_length}
    assert check_causal(model) == 0

def test_packed_and_frozen_models_are_read_as_they_are(monkeypatch):
    monkeypatch.setattr('lmnotes.models.model_readings.is_fixed_model', lambda model: True)
    monkeypatch.setattr('lmnotes.models.causality.is_fixed_model', lambda model: True)
    model = build_model('standard', 'tiny', 31).train()
    before = copy.deepcopy(model.state_dict())
    assert check_causal(model, length=24) == 0 and model.training
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    with pytest.raises(RunError, match='sees the future'): check_causal(border_leak(5), length=24)

# ---- what was sound is read again once it changes

def test_a_model_that_changes_is_read_again():
    model = build_model('standard', 'tiny', 31)
    assert check_causal(model, length=16) == 0
    hook = model.norm.register_forward_hook(lambda m, x, h: h + h.roll(-1, 1))
    with pytest.raises(RunError, match='sees the future'): check_causal(model, length=16)
    hook.remove()
    assert check_causal(model, length=16) == 0
    model.config.causal = False
    with pytest.raises(RunError, match='sees the future'): check_causal(model, length=16)

def test_a_second_draw_of_the_same_code_is_not_read_again(monkeypatch):
    draw = lambda n_layer=1: build_model('standard', 'tiny', 31, n_layer=n_layer)
    leak,read,logits = check_causal(draw(), length=16, drawn=True),[],ModelReader.logits
    monkeypatch.setattr(ModelReader, 'logits', lambda self, *args: read.append(self) or logits(self, *args))
    assert check_causal(draw(), length=16, drawn=True) == leak and not read
    for model,options in [(draw(), {}), (draw(), dict(drawn=True, seed=1)), (draw(2), dict(drawn=True)),
                          (draw().double(), dict(drawn=True))]:
        read.clear()
        check_causal(model, **dict(length=16) | options)
        assert read

def test_code_that_was_replaced_is_read_again(monkeypatch):
    draw = lambda: build_model('standard', 'tiny', 31, n_layer=1)
    assert check_causal(draw(), length=16, drawn=True) == 0
    plain = attentions['sdpa']
    monkeypatch.setitem(attentions, 'sdpa', lambda q, k, v, mask, causal: plain(q, k, v + v.roll(-1, 2), mask, causal))
    with pytest.raises(RunError, match='sees the future'): check_causal(draw(), length=16, drawn=True)

def test_an_encoder_leaks(): assert causal_leakage(build_model('encoder', 'tiny', 31), length=16, noise=0) > 1e-4

# ---- where numbers are made

def _registered(name):
    def build(**kw):
        model = build_model('standard', 'tiny', kw['vocab_size'])
        model.__class__ = type(planted_leaks['next token in training alone']())
        return model
    models[name] = build
    return name

def test_a_leak_in_training_reaches_no_table(tmp_path):
    from lmnotes.training.train import train
    name = _registered('leaks_in_training')
    try:
        with pytest.raises(RunError, match='sees the future'):
            train(quiet=True, model=name, dataset='arithmetic', max_length=24, batch_size=4, max_steps=2, device='cpu',
                  output_dir=str(tmp_path))
    finally:
        del models[name]
    assert not list(tmp_path.rglob('metrics.jsonl')) # the log that the table of dynamics reads

def test_a_gpt_of_32_positions_is_trained_and_scored(tmp_path):
    from lmnotes.training.train import train
    run = train(quiet=True, model='gpt', dataset='arithmetic', max_length=32, batch_size=4, max_steps=2, device='cpu',
                output_dir=str(tmp_path))
    assert run.summary['steps'] == 2

def test_wrong_windows_are_refused():
    with pytest.raises(InputError, match='rows of tokens'):
        check_causal(build_model('standard', 'tiny', 31), windows=torch.arange(9))

def test_tasks_are_probed_at_the_length_they_are_scored_at():
    "A leak beyond position 400 was not seen by a probe of 256 tokens"
    tok = byte_tokenizer()
    model = build_model('standard', 'tiny', len(tok), n_layer=1, dim=16, n_head=2, max_length=1100)
    cls = type(model)
    def features(self, input_ids=None, *args, **kwargs):
        h = cls.forward_features(self, input_ids, *args, **kwargs)
        following = F.pad(self.embed(input_ids.roll(-1, 1))[:,:-1], (0, 0, 0, 1))
        return h + following*(torch.arange(h.shape[1]) > 400)[:,None]
    check_causal(model, length=256, noise=0)
    model.__class__ = type(cls.__name__, (cls,), dict(forward_features=features))
    check_causal(model, length=256, noise=0)
    with pytest.raises(RunError, match='sees the future'):
        evaluate_tasks(model, tok, 'long_range', limit=2)


def test_train_names_the_model_that_sees_the_future(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path/'state'))
    (tmp_path/'leaky.py').write_text('''from torch import nn
from torch.nn.functional import avg_pool1d
from lmnotes.models.build import models
from lmnotes.models.decoder import LM, LMConfig
from lmnotes.models.layers import mixers

@mixers('leaky_neighbours')
class Neighbours(nn.Module):
    @classmethod
    def from_config(cls, cfg, layer): return cls()
    def forward(self, x, ctx): return avg_pool1d(x.mT, 3, stride=1, padding=1).mT

@models('my_leaky')
def leaky(**options): return LM(LMConfig(**{'mixer': 'leaky_neighbours', **options}))
''', encoding='utf-8')
    small = dict(dim=16, n_layer=1, n_head=2, max_length=24, batch_size=2, limit=60, max_steps=2, device='cpu')
    with pytest.raises(RunError, match='my_leaky sees the future'):
        train(model='my_leaky', imports=[str(tmp_path/'leaky.py')], dataset='prose', output_dir=tmp_path/'r', **small)
    assert not (tmp_path/'r').exists()
