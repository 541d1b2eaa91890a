"Answers that share the tokens of their prompt cost what each costs alone, in every kind of model"
import pytest
import torch

from lmnotes.core import InputError, set_seed
from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.eval_model import EvalModel, choice_nll
from lmnotes.evaluation.tasks.likelihood_tasks import score_choice
from lmnotes.models import build_model
from lmnotes.models.decoding.answer_scores import answer_nll, pack_answers, takes_answer_masks
from lmnotes.models.hf.hf_load import hub_model

TOK = byte_tokenizer()
KINDS = dict(standard=True, gpt=True, moe=True, reversible=True, rnn=False, resonance=False, hybrid=False)

def _alone(model, prompt, answer): # one sequence at a time, from the logits
    x = torch.tensor([prompt + answer])
    with torch.no_grad(): z = model(x).logits[0].double().log_softmax(-1)
    return -sum(z[len(prompt) - 1 + i, t].item() for i,t in enumerate(answer))

def _check(model, prompt, answers):
    for found,answer in zip(answer_nll(model, prompt, answers), answers, strict=True):
        assert found == pytest.approx(_alone(model, prompt, answer), rel=1e-5, abs=1e-4)

def _ids(text): return TOK(text, add_special_tokens=False)['input_ids']

ITEMS = [
    ('It is a charming journey. Sentiment:', [' negative', ' positive']),
    ('Q', ['A', 'B', 'C', 'D']), # of one token: nothing but the prompt is read
    ('How many?', [' 1', ' twenty-seven', '3', ' a']), # of several lengths
    ('Count:', [f' number {k}' for k in range(30)]), # more than one row has room for
]

@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('prompt,answers', ITEMS)
def test_answers_cost_what_they_cost_alone(name, prompt, answers):
    set_seed(0)
    model = build_model(name, 'tiny', len(TOK)).eval()
    assert takes_answer_masks(model) == KINDS[name]
    _check(model, _ids(prompt), [_ids(a) for a in answers])

def test_models_of_the_hub():
    model = hub_model('tiny:gpt2', vocab_size=len(TOK))
    model.eval()
    assert not takes_answer_masks(model)
    _check(model, [5, 6, 7, 8], [[9, 10], [11], [12, 13, 14]])

def test_an_encoder_decoder_is_refused():
    model = hub_model('tiny:t5', vocab_size=len(TOK))
    ds = find_dataset('reading')
    with pytest.raises(InputError, match='writes text left to right'):
        score_choice(EvalModel(model, TOK), ds, load_rows(ds)['test'][:1])

@pytest.mark.parametrize('options', [dict(n_kv_head=2), dict(attn_implementation='eager'), dict(qk_norm=False)])
def test_parts_of_the_attention(options):
    set_seed(0)
    attn = options.pop('attn_implementation', None)
    model = build_model('standard', 'tiny', len(TOK), **options).eval()
    if attn: model.config._attn_implementation = attn
    assert takes_answer_masks(model)
    _check(model, _ids('Is it?'), [_ids(' yes'), _ids(' perhaps')])

def _read_lengths(model, prompt, answers):
    seen = []
    hook = model.embed.register_forward_hook(lambda m, args, out: seen.append(args[0].numel()))
    answer_nll(model, prompt, answers)
    hook.remove()
    return seen

def test_a_row_is_no_longer_than_the_positions():
    model = build_model('gpt', 'tiny', len(TOK), max_length=32).eval()
    prompt,answers = _ids('x'*20),[_ids('y'*12), _ids('z'*12), _ids('a'*4), _ids('b'*4)]
    assert _read_lengths(model, prompt, answers) == [31, 31, 26]
    _check(model, prompt, answers)

def test_no_answer_sees_another():
    prompt,answers = [1, 2, 3], [[4, 5, 6], [7, 8], [9]]
    ids,positions,mask,places = pack_answers(prompt, answers)
    for answer,at in zip(answers, places):
        seen = mask[0,0,at[-1]].nonzero()[:,0]
        assert ids[0,seen].tolist() == (prompt + answer)[:-1]
        assert positions[0,seen].tolist() == list(range(len(prompt) + len(answer) - 1))

def test_the_prompt_is_read_once():
    model = build_model('standard', 'tiny', len(TOK)).eval()
    assert _read_lengths(model, _ids('x'*100), [_ids(' negative'), _ids(' positive')]) == [100 + 2*8]
    with_one = answer_nll(model, _ids('x'*100), [_ids(' negative')])
    both = answer_nll(model, _ids('x'*100), [_ids(' negative'), _ids(' positive')])
    assert with_one[0] == pytest.approx(both[0], rel=1e-5)

def test_items_have_no_neighbours():
    set_seed(0)
    model = build_model('standard', 'tiny', len(TOK)).eval()
    prompts,choices = [p for p,_ in ITEMS],[c for _,c in ITEMS]
    together = choice_nll(model, TOK, prompts, choices)
    for p,c,found in zip(prompts, choices, together): assert (choice_nll(model, TOK, [p], [c])[0] == found).all()
