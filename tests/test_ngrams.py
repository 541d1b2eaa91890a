"Tables of n-grams beside the embedding: with every part, packed and padded rows, beams, quantizers, files and refusals"
import pytest
import torch

from lmnotes.core import InputError, RunError
from lmnotes.models import build_model
from lmnotes.models.blocks import residuals
from lmnotes.models.causality import check_causal
from lmnotes.models.generation import generate_batch
from lmnotes.models.layers import mixers
from lmnotes.quantizers.packed_model import pack
from lmnotes.quantizers.ste import QuantizedEmbedding

small = dict(vocab_size=40, dim=32, n_layer=2, n_head=2, num_frequencies=4, embedding='ngram', ngram=3, ngram_rows=64)
ids = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(0))
def model(name='standard', **more): return build_model(name, **small | more).eval()

parts = [('residual', r) for r in residuals.names()] + [('mixer', m) for m in mixers.names()]

@pytest.mark.parametrize('kind, name', parts)
def test_parts(kind, name):
    m = model(**{kind: name})
    check_causal(m)
    with_tables = m(ids).logits
    for t in m.context_embed.tables: torch.nn.init.zeros_(t.weight)
    assert (m(ids).logits - with_tables).abs().max() > 1e-3
    m.train()(ids, labels=ids).loss.backward()
    assert all(t.weight.grad.abs().max() > 0 for t in m.context_embed.tables)

def test_tables_that_read_the_next_token_are_refused():
    m = model()
    class Ahead(type(m.context_embed)):
        def forward(self, ids, ctx): return super().forward(ids.roll(-1, 1), ctx)
    m.context_embed.__class__ = Ahead
    with pytest.raises(RunError, match='sees the future'): check_causal(m)

@pytest.mark.parametrize('mixer', ['attention', 'resonance'])
def test_a_packed_row_is_its_documents(mixer):
    m = model(mixer=mixer)
    documents = torch.tensor([[0]*7 + [1]*4 + [2]*9])
    whole = m(ids[:1], documents=documents).logits
    for a,b in ((0, 7), (7, 11), (11, 20)):
        torch.testing.assert_close(whole[:,a:b], m(ids[:1,a:b]).logits, atol=2e-5, rtol=1e-4)

def test_beams_follow_their_rows():
    m = model()
    options = dict(max_new_tokens=9, num_beams=3, do_sample=False, pad_token_id=0)
    a,b = (m.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(a, b)

def test_texts_do_not_depend_on_neighbours():
    from lmnotes.data.tokenizers import byte_tokenizer
    t = byte_tokenizer()
    m,prompts = model(vocab_size=len(t)),['a', 'the second of them', '']
    together = generate_batch(m, t, prompts, 12, temperature=0)
    assert together == [generate_batch(m, t, [p], 12, temperature=0)[0] for p in prompts]
    assert together == generate_batch(m, t, prompts, 12, temperature=0, use_cache=False)

def test_packed_files_hold_the_tables(tmp_path):
    m = build_model('standard+ternary:all', **small).eval()
    assert all(isinstance(t, QuantizedEmbedding) for t in m.context_embed.tables)
    pack(m, tmp_path, verbose=False)
    torch.testing.assert_close(build_model(str(tmp_path)).eval()(ids).logits, m(ids).logits, atol=1e-4, rtol=1e-3)

def test_init_gives_no_tables(tmp_path):
    build_model('standard', **small | dict(embedding=None)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match='context_embed'): build_model('fast', init=str(tmp_path))
    with pytest.raises(InputError, match="unknown embedding 'trigram'"): model(embedding='trigram')
    with pytest.raises(InputError, match='ngram=1 leaves no n-grams'): model(ngram=1)
