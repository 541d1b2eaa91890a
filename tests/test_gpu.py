"What runs on a CPU gives the same on a GPU; LMNOTES_TEST_DEVICE=cpu tries these tests without one"
import os

import pytest
import torch

from lmnotes.core import set_seed
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.models import build_model
from lmnotes.models.causality import check_causal
from lmnotes.models.generation import generate_batch
from lmnotes.training.train import train

pytestmark = pytest.mark.gpu
device = os.environ.get('LMNOTES_TEST_DEVICE', 'cuda')
tok = byte_tokenizer()

def made(name, where=device):
    set_seed(0)
    return build_model(name, 'tiny', vocab_size=len(tok), max_length=128).to(where).eval()

NAMES = ['standard', 'gpt', 'reversible', 'resonance', 'hybrid', 'moe']

@pytest.mark.parametrize('name', NAMES)
def test_logits_are_those_of_the_cpu(name):
    ids = torch.randint(256, (2, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here,there = made(name, 'cpu')(ids).logits,made(name)(ids.to(device)).logits.cpu()
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_those_of_the_cpu(name):
    ids = torch.randint(256, (2, 65), generator=torch.Generator().manual_seed(0))
    found = []
    for where in ('cpu', device):
        model = made(name, where)
        model(input_ids=ids[:,:-1].to(where), shift_labels=ids[:,1:].to(where)).loss.backward()
        found.append({n: p.grad.cpu() for n,p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for n,g in found[0].items(): torch.testing.assert_close(found[1][n], g, rtol=1e-2, atol=1e-4, msg=n)

@pytest.mark.parametrize('name', NAMES)
def test_no_model_sees_the_future(name): assert check_causal(made(name), name, length=64) < 1e-3

@pytest.mark.parametrize('name', ['standard', 'resonance'])
def test_greedy_texts_are_those_of_the_cpu(name):
    prompts = [tok.encode(t) for t in ('Once', 'There was a king')]
    write = lambda where: generate_batch(made(name, where), tok, prompts, max_new_tokens=16, temperature=0)
    assert write(device) == write('cpu')

@pytest.mark.parametrize('mixed', [False, True])
def test_training_reaches_the_score_of_the_cpu(tmp_path, mixed):
    common = dict(model='standard', dataset='prose', max_length=64, batch_size=8, max_steps=30, plots=False, quiet=True)
    def score(folder, where, mixed):
        run = train(**common, device=where, no_mixed_precision=not mixed, output_dir=tmp_path/folder)
        return run.summary['bits_per_byte']
    assert score('there', device, mixed) == pytest.approx(score('here', 'cpu', False), abs=0.05)
