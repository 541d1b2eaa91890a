"Metrics equal the published ones (SQuAD, sacrebleu, rouge-score, nervaluate, scikit-learn, scipy) at any batch size"
import math
import os
import random
import re
import string
from collections import Counter
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lmnotes.core import *
from lmnotes.data.answer_metrics import *
from lmnotes.data.answers.choices import parse_choice
from lmnotes.data.answers.numbers import last_number, parse_numbers
from lmnotes.data.answers.set_metrics import entity_contributions
from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.load import load_data
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation.eval_model import EvalModel, choice_nll
from lmnotes.evaluation.metric_names import score_name, task_metric
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
                assert abs(r[f'macro_{k}'] - f(gold, said, labels=labels, average='macro', zero_division=0)) < 1e-12

# -- metrics of a whole set: contributions average to the published figure, and their error is that of the bootstrap

real = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')

def _real_rows(name, split='validation'):
    if not real.is_dir(): pytest.skip(f'no rows in hub layout at {real}')
    ds = find_dataset(name)
    return ds,load_rows(ds, str(real))[split]

def test_tagging_is_scored_by_the_entities_of_all_sentences():
    ner = pytest.importorskip('nervaluate', reason="nervaluate is not installed: pip install 'nervaluate>=1.1,<2'")
    ds,rows = _real_rows('conll')
    rng,gold = random.Random(0),[ds.tags(r) for r in rows]
    some = [[t if rng.random() < .75 else 'O' for t in g] for g in gold]
    said = [_well_formed(t) for t in some]
    theirs = ner.Evaluator(gold, said, tags=['PER', 'ORG', 'LOC', 'MISC'], loader='list').evaluate()
    texts = [' '.join(t) for t in said]
    values = ds.score_set(rows, texts)
    assert abs(values.mean() - theirs['overall']['strict'].f1) < 1e-9
    # the mean of sentence scores is another number, and pays a tagger that marks nothing
    assert np.mean([ds.score(r, t) for r,t in zip(rows, texts)]) > values.mean() + .02
    nothing = [' '.join('O'*len(g)) for g in gold]
    assert np.mean([ds.score(r, t) for r,t in zip(rows, nothing)]) > .15
    assert ds.score_set(rows, nothing).mean() == 0 and task_metric(ds) == 'entity_f1'

def test_part_of_speech_accuracy_counts_words():
    ds,rows = _real_rows('ud', 'test')
    nouns = [' '.join(['NOUN']*len(ds.tags(r))) for r in rows]
    words = [t for r in rows for t in ds.tags(r)]
    assert abs(ds.score_set(rows, nouns).mean() - words.count('NOUN')/len(words)) < 1e-12
    assert task_metric(ds) == 'accuracy'

published = dict(cola='mcc', mrpc='f1', stsb='pearson', rte='accuracy', sst2='accuracy')

@pytest.mark.parametrize('name,metric', published.items())
def test_glue_is_scored_as_glue_does(name, metric):
    from scipy.stats import pearsonr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    ds,rows = _real_rows(name)
    rng,n = random.Random(0),len(rows)
    if metric == 'pearson':
        texts = [f"{rng.uniform(0, 5)/2 + row['label']/2:.1f}" for row in rows]
        theirs = pearsonr(list(map(float, texts)), [r['label'] for r in rows])[0]
    else:
        texts = [ds.answer(r) if rng.random() < .7 else rng.choice(list(ds.words)) for r in rows]
        said,gold = ([list(ds.words).index(t) for t in side] for side in (texts, map(ds.answer, rows)))
        theirs = dict(mcc=matthews_corrcoef, f1=f1_score, accuracy=accuracy_score)[metric](gold, said)
    values = ds.score_set(rows, texts)
    assert task_metric(ds) == metric and score_name(ds) == f'{name}_{metric}'
    assert abs(values.mean() - theirs) < 1e-9
    if metric == 'accuracy': return
    picks = np.random.default_rng(0).integers(0, n, (300, n)) # the error of the metric, by resampling the rows
    again = [ds.score_set([rows[i] for i in p], [texts[i] for i in p]).mean() for p in picks]
    assert abs(np.std(again)/(values.std(ddof=1)/n**.5) - 1) < .15

def test_a_constant_answer_is_worth_nothing_where_the_metric_says_so():
    for name,constant in dict(cola='acceptable', stsb='2.5').items():
        ds = find_dataset(name)
        labels = (1., 2., 4.) if name == 'stsb' else ('acceptable', 'acceptable', 'unacceptable')
        rows = [dict(label=l, sentence='', sentence1='', sentence2='') for l in labels]
        assert ds.score_set(rows, [constant]*3).mean() == 0

def test_a_comparison_judges_the_difference_of_the_metrics():
    from lmnotes.comparison.statistics.differences import score_difference
    from lmnotes.evaluation.scores import Scores
    rng,gold = random.Random(3),[_tags(random.Random(i), 9) for i in range(80)]
    def seeds(right): return {s: [[t if rng.random() < right else 'O' for t in g] for g in gold] for s in range(3)}
    arms = [seeds(.6), seeds(.9)]
    scores = [{s: Scores('tagging', 'x', 'entity_f1', entity_contributions(t, gold)) for s,t in a.items()}
              for a in arms]
    d = score_difference(*scores)
    f1 = [np.mean([entity_f1(t, gold) for t in a.values()]) for a in arms]
    assert abs(d['base_mean'] - f1[0]) < 1e-9 and abs(d['arm_mean'] - f1[1]) < 1e-9
    assert abs(d['mean'] - (f1[1] - f1[0])) < 1e-9 and d['verdict'] == 'better'

# -- answers in any form: a right one parses to itself

ROUND = ('{}', '{}.', '**{}**', '${}$', r'\boxed{{{}}}', r'\(\boxed{{\text{{{}}}}}\)', 'The answer is {} dollars.',
         '#### {}', 'x = {}', '({})', r'\${}', r'{}\%', r'{}\text{{ cm}}^2', '{} m²', '≈ {}', 'A: {}\n', '“{}”')
SPELT = { # value -> ways to write it
    1234567: ('1234567', '1,234,567', '12,34,567', '1 234 567', '1\u202f234\u202f567', '1\u2009234\u2009567',
              '1\u00a0234\u00a0567', "1'234'567", '1’234’567', '1_234_567', '1{,}234{,}567', r'1\,234\,567',
              r'1,\!234,\!567', '1.234.567', '1.234.567,0', '1234567.00', '1.234567e6', r'1.234567\times 10^6',
              r'1.234567 \cdot 10^{6}', '1.234567×10⁶', '１２３４５６７'),
    '3/4': ('3/4', '3 / 4', '0.75', '.75', '¾', r'\frac{3}{4}', r'\dfrac34', r'\tfrac{3}{4}', '3⁄4', '75e-2',
            r'\frac 3 4'),
    '-5/2': ('-5/2', '−2.5', '–2.5', '-2 1/2', '−2½', r'-2\frac{1}{2}', r'-\frac{5}{2}', '-2.50'),
    1000: ('10^3', '10³', '10**3', '10^{3}', '1e3', '1,000', '1 000', '1000.'),
    '1/1000': ('10^{-3}', '10⁻³', '1e-3', '0.001', '10^-3'),
    409500: ('409 500', '409,500', '4,09,500', '409.500,0'),
}

def test_a_number_is_read_however_it_is_written():
    for value,ways in SPELT.items():
        for way in ways:
            for frame in ROUND:
                if frame.endswith(('m²', '^2')) and way.endswith('.'): continue
                assert last_number(frame.format(way)) == Fraction(value), frame.format(way)

@pytest.mark.parametrize('text,numbers', [
    ('1,2', [1, 2]), ('3,14', [3, 14]), ('1,2003', [1, 2003]), ('1.234', [Fraction('1.234')]),
    ('100 200 300', [100, 200, 300]),
    ('m²', []), ('x_2', []), ('x^2', []), ('2\\pi', []), ('√2', []), ('H2O', []), ('10-3', [10, 3]), ('3/0', [3, 0]),
    ('on 12/25', [Fraction(12, 25)]), ('- 3 eggs', [3]), ('0^-1', [0]), ('9'*200, []), ('5–7', [5, 7]), ('', []),
])
def test_what_is_several_numbers_or_none(text, numbers): assert parse_numbers(text) == numbers

def test_right_answers_of_real_problems_score_1():
    for name in ('gsm8k', 'financemath'):
        ds,rows = _real_rows(name, 'train')
        for row in rows:
            if not ds.has_answer(row): continue
            gold, = ds.references(row)
            plain = Fraction(re.sub('[,$%]', '', gold))
            assert last_number(gold) == plain and ds.score(row, ds.target(row)) == 1
            for form in (rf'\boxed{{{gold}}}', f'**{gold}**.', gold.replace(',', '{,}'), gold.replace(',', r'\,')):
                assert last_number(form) == plain, form

@pytest.mark.parametrize('name', ['mmlu', 'mmlu_pro'])
def test_right_letters_of_real_questions_are_read(name):
    ds,rows = _real_rows(name, 'test')
    for row in list(rows)[::3]:
        letter,options = ds.answer(row),ds.options(row)
        text = options[string.ascii_uppercase.index(letter)]
        for form in (f'{letter}. {text}', f'({letter}) {text}', rf'$\boxed{{{letter}}}$', f'Option {letter}'):
            assert ds.score(row, form) == 1, form
        copy = '\n'.join(f'{l}. {o}' for l,o in zip(string.ascii_uppercase, options))
        assert parse_choice(copy, len(options), options) is None and ds.score(row, ds.prompt(row)) == 0

@pytest.mark.parametrize('text,letter', [
    ('B. Vitamin C', 'B'), ('(A) I was there', 'A'), ('Option B', 'B'), ('Answer: option (J)', 'J'), ('J', 'J'),
    ('I', 'I'), ('A dog', None), ('I think', None), ('I think the answer is I.', 'I'), ('The answer is a dog', None),
    ('A or B', None), ('The answer is B or C', None), ('B is wrong', None), ('A, B', None),
    ('B, because C is smaller', 'B'), ('I am A', None),
    ('We get 3. Therefore, the answer is (D).', 'D'), (r'$\boxed{\mathrm{E}}$', 'E'), ('A B C D', None), ('K', None),
])
def test_a_letter_among_ten(text, letter): assert parse_choice(text, 10) == letter

@pytest.mark.parametrize('text', [
    'Она читает эту книгу.', 'Η γάτα κοιμάται.', 'القط نائم على السجادة',
    'बिल्ली चटाई पर बैठी है', '고양이가 매트 위에 있다', '猫坐在垫子上。',
    'ネコはマットの上に座った。', 'แมวนั่งอยู่บนเสื่อ', 'The cat sat on the mat.', 'Größe und Maß des Häuserblocks',
])
def test_the_same_text_has_full_marks_in_any_script(text):
    r = text_metrics([text], [text])
    bleu, = (v for k,v in r.items() if k.startswith('bleu'))
    assert [r[k] for k in ('rouge1', 'rouge2', 'rougeL')] == [1, 1, 1] and abs(r['chrf'] - 100) < 1e-9
    if len(text.split()) != 3: assert abs(bleu - 100) < 1e-9 # BLEU of three words has no 4-gram in any tokenizer
    other = text_metrics(['xyz'], [text])
    assert other['rouge1'] == 0 and other['chrf'] < 5

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
