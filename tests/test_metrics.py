"Metrics equal the published ones (SQuAD, sacrebleu, rouge-score, nervaluate, scikit-learn, scipy) at any batch size"
import math
import random
import re
import string
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from lmnotes.core import *
from lmnotes.data.answer_metrics import *
from lmnotes.data.catalog import find_dataset
from lmnotes.data.load import load_data
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.eval_model import EvalModel, choice_nll
from lmnotes.evaluation.metrics import evaluate_lm, validation_windows
from lmnotes.evaluation.task_suite import eval_rows
from lmnotes.evaluation.tasks.classification import classification_metrics, score_classification
from lmnotes.evaluation.tasks.generative_tasks import tagging_metrics
from lmnotes.evaluation.tasks.likelihood_tasks import correlations
from lmnotes.evaluation.tasks.math_tasks import pass_at_k
from lmnotes.evaluation.tasks.text_generation import text_metrics
from lmnotes.models import build_model

# -- SQuAD: the official evaluation script (Rajpurkar et al. 2016, v1.1 and v2.0), written out from its definition
def _normal(s):
    s = s.lower()
    s = ''.join(c for c in s if c not in set(string.punctuation))
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', s).split())
def _em(said, gold): return float(_normal(said) == _normal(gold))
def _f1_v1(said, gold):
    a,b = _normal(said).split(),_normal(gold).split()
    same = sum((Counter(a) & Counter(b)).values())
    if same == 0: return 0
    p,r = same/len(a),same/len(b)
    return 2*p*r/(p + r)
def _f1_v2(said, gold):
    a,b = _normal(said).split(),_normal(gold).split()
    if not a or not b: return float(a == b)
    return _f1_v1(said, gold)

NASTY = [
    '',
    ' ',
    'the',
    'The the a an',
    'A.',
    'a.b',
    'an apple',
    'Apple!',
    'apple, apple',
    "Apple's",
    'theatre',
    'U.S.A.',
    'the U.S.',
    '1,000',
    '1000',
    '“quoted”',
    'naïve',
    'NAÏVE',
    'a\tb\nc',
    'b  c',
    'İstanbul',
    'straße',
    'STRASSE',
    'the-end',
    'theend',
    'co-op',
    'coop',
    '...',
    '$5',
    '5',
    'x' * 300,
    'aaa the aaa',
    'Ⅳ',
    '٣',
    'a\u00a0b',
    'an\u200bapple',
    "don't",
    'dont',
    '½',
    'the\u2019s',
    'apple the pear',
    'pear an apple',
]

def test_squad():
    for a in NASTY:
        assert normalize_answer(a) == _normal(a), a
        for b in NASTY:
            assert exact_match(a, b) == _em(a, b), (a, b)
            assert abs(token_f1(a, b) - _f1_v1(a, b)) < 1e-12, (a, b)
            assert abs(token_f1(a, b, empty=True) - _f1_v2(a, b)) < 1e-12, (a, b)
    rng = random.Random(0)
    words = [w for t in NASTY for w in t.split()] + ['the', 'a', 'of', 'Paris', 'paris.']
    for _ in range(500): # the best of several references
        said,*gold = (' '.join(rng.choices(words, k=rng.randint(0, 5))) for _ in range(4))
        assert (
            exact_match(said, gold) == max(_em(said, g) for g in gold)
            and abs(token_f1(said, gold) - max(_f1_v1(said, g) for g in gold)) < 1e-12
        )

def test_squad_against_lm_eval():
    "and against the copy of the official functions that lm-evaluation-harness carries"
    import importlib.util
    from pathlib import Path
    if find_spec('lm_eval') is None: pytest.skip("lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'")
    spec = importlib.util.spec_from_file_location(
        'theirs', Path(find_spec('lm_eval').origin).parent / 'tasks' / 'qasper' / 'metrics.py'
    )
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    for a in NASTY:
        for b in NASTY:
            assert (
                m.normalize_answer(a) == normalize_answer(a)
                and abs(m.f1_abstractive([a], [b]) - token_f1(a, b)) < 1e-12
            ), (a, b)

def test_text_report():
    "BLEU, chrF and ROUGE are those of the libraries, called directly"
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer
    said = ['the cat sat on a mat .', 'hello there general', '', 'Ein Haus, zwei Häuser', 'same same same same']
    gold = ['the cat sat on the mat .', 'hello general there', 'nothing', 'Ein Haus und zwei Häuser', 'same']
    r = text_metrics(said, gold)
    s = RougeScorer(['rouge1', 'rouge2', 'rougeL'])
    assert (
        r['bleu'] == sacrebleu.corpus_bleu(said, [gold]).score
        and r['chrf'] == sacrebleu.corpus_chrf(said, [gold]).score
    )
    for k in ('rouge1', 'rouge2', 'rougeL'):
        assert abs(r[k] - np.mean([s.score(g, t)[k].fmeasure for t,g in zip(said, gold)])) < 1e-12
    assert r['distinct'] == 1 and text_metrics(['x']*5, gold)['distinct'] == .2

def _tags(rng, n, kinds=('PER', 'ORG', 'LOC')): # well-formed
    out = []
    while len(out) < n:
        k = rng.choice((*kinds, None, None))
        out += ['O'] if k is None else [f'B-{k}'] + [f'I-{k}']*rng.randint(0, 2)
    out = out[:n]
    return out

def _noisy(rng, tags): return [t if rng.random() < .7 else rng.choice(_tags(rng, 5)) for t in tags]
def _well_formed(tags): # an `I-` without its beginning becomes one
    out,last = [],'O'
    for t in tags:
        out.append('B-' + t[2:] if t[0] == 'I' and last[2:] != t[2:] else t)
        last = t
    return out

def test_entity_f1():
    rng = random.Random(0)
    gold = [_tags(rng, rng.randint(1, 15)) for _ in range(60)]
    said = [_well_formed(_noisy(rng, g)) for g in gold]
    assert 0 < entity_f1(said, gold) < 1
    if find_spec('seqeval'):
        from seqeval.metrics import f1_score
        assert abs(f1_score(gold, said) - entity_f1(said, gold)) < 1e-12
    ner = pytest.importorskip('nervaluate', reason="nervaluate is not installed: pip install 'nervaluate>=1.1,<2'")
    r = ner.Evaluator(gold, said, tags=['PER', 'ORG', 'LOC'], loader='list').evaluate()['overall']['strict']
    assert abs(r.f1 - entity_f1(said, gold)) < 1e-9 and abs(tagging_metrics(said, gold)['entity_f1'] - r.f1) < 1e-9

def test_label_report():
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score
    rng = random.Random(1)
    for labels in (['n', 'p'], list('abcd')):
        for _ in range(30):
            gold = rng.choices(labels, k=40)
            said = [g if rng.random() < .5 else rng.choice(labels) for g in gold]
            r = classification_metrics(said, gold, labels)
            assert (
                r['accuracy'] == accuracy_score(gold, said) and abs(r['mcc'] - matthews_corrcoef(gold, said)) < 1e-12
            )
            for k,f in dict(precision=precision_score, recall=recall_score, f1=f1_score).items():
                assert abs(r[k] - f(gold, said, labels=labels, average='macro', zero_division=0)) < 1e-12

def test_agreement():
    from scipy.stats import pearsonr, spearmanr
    rng = np.random.default_rng(0)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50)
    r = correlations(a, b)
    assert abs(r['pearson'] - pearsonr(a, b)[0]) < 1e-12 and abs(r['spearman'] - spearmanr(a, b)[0]) < 1e-12

def test_pass_at_k():
    "equal to the mean over all ways to draw k of n"
    from itertools import combinations
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert (
                    abs(pass_at_k(n, c, k) - np.mean([any(i < c for i in d) for d in combinations(range(n), k)]))
                    < 1e-12
                )

@pytest.mark.parametrize('name', ['standard', 'reversible', 'resonance'])
def test_bits_per_byte(name):
    "the same for any batch size, and window by window as all together"
    data = load_data('prose', max_length=64, bs=8, limit=60, device='cpu')
    set_seed(0)
    model = build_model(name, 'tiny', data.vocab_size, max_length=64).eval()
    scores = {bs: evaluate_lm(model, data, bs=bs, limit=30) for bs in (1, 7, 30)}
    one = scores[1]
    for s in scores.values():
        assert (
            abs(s.bits_per_byte - one.bits_per_byte) < 1e-6
            and np.abs(s.nll / s.bytes - one.nll / one.bytes).max() < 1e-5
            and (s.bytes == one.bytes).all()
        )
    with torch.no_grad(): # by the definition, from the logits
        total = sum(
            torch.nn.functional.cross_entropy(
                model(x).logits.double().transpose(1, 2), y, ignore_index=-100, reduction='sum'
            ).item()
            for x, y in validation_windows(data, 10, 30)
        )
    assert abs(total/math.log(2)/one.bytes.sum() - one.bits_per_byte) < 1e-6

@pytest.mark.parametrize('name', ['standard', 'reversible', 'resonance', 'rnn'])
def test_choices_in_any_company(name):
    tok = byte_tokenizer()
    set_seed(0)
    model = build_model(name, 'tiny', len(tok), max_length=256).eval()
    prompts = ['One', 'A longer question with more words', 'Q'*40]
    choices = [[' yes', ' no'], [' a', ' much longer answer'], [' x']]
    many = choice_nll(model, tok, prompts, choices)
    for p,c,b in zip(prompts, choices, many): assert (choice_nll(model, tok, [p], [c])[0] == b).all()

def test_a_label_is_all_of_its_tokens():
    "the sum over the tokens of a label, and not the logits of ids 0 and 1"
    tok = byte_tokenizer()
    set_seed(0)
    model = build_model('standard', 'tiny', len(tok), max_length=256).eval()
    ds = find_dataset('opinions')
    rows,_ = eval_rows(ds, limit=6)
    (nll,*_) = choice_nll(model, tok, [ds.prompt(rows[0])], [ds.choices(rows[0])])
    for c,v in zip(ds.choices(rows[0]), nll):
        ids = tok(ds.prompt(rows[0]) + c, add_special_tokens=False)['input_ids']
        n = len(tok(c, add_special_tokens=False)['input_ids'])
        with torch.no_grad():
            z = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert abs(v + sum(z[i-1,ids[i]].item() for i in range(len(ids) - n, len(ids)))) < 1e-3
    class Biased(type(model)): # ids 0 and 1 are made as likely as can be: nothing changes
        def forward_features(self, *a, **k): return super().forward_features(*a, **k)
    before = score_classification(EvalModel(model, tok), ds, rows)[0].values
    other = build_model('standard', 'tiny', len(tok), max_length=256, tie=False).eval()
    with torch.no_grad():
        a = choice_nll(other, tok, [ds.prompt(r) for r in rows], [ds.choices(r) for r in rows])
        other.head.weight[[0, 1]] *= 5
        b = choice_nll(other, tok, [ds.prompt(r) for r in rows], [ds.choices(r) for r in rows])
    assert [int(np.argmin(x)) for x in a] == [int(np.argmin(x)) for x in b] and len(before) == 6
