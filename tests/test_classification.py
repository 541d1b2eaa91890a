"""A label goes from its number to a word and back as the data's own features say.

Prompts end with their cue, and only the target is worth 1."""
import json
import os
from pathlib import Path

import pytest

from lmnotes.core import InputError
from lmnotes.data.catalog import catalog, dataset_kinds, find_dataset, short_names
from lmnotes.data.dataset_splits import load_rows, make_row_splits
from lmnotes.data.dataset_types import ClassificationDataset, MultipleChoiceDataset, TaggingDataset
from lmnotes.data.datasets.classification import glue_tasks
from lmnotes.data.sources.files import Rows

real = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')
has_real = pytest.mark.skipif(
    not real.is_dir(), reason=f'no real rows at {real}; set LMNOTES_DATA_DIR to a root in hub layout'
)

mood,entails = ['negative', 'neutral', 'positive'],['entailment', 'not_entailment']
two = dict(sentence1='A man sings.', sentence2='Somebody sings.')
quiz = dict(question='Which is a prime?', subject='global_facts', choices=['8', '9', '11', '12'])
pro = dict(
    question_id=1,
    question='Which is a prime?',
    options='4 6 8 9 10 12 14 15 16 17'.split(),
    category='math',
    src='ours',
    cot_content='',
)
ner = 'O B-PER I-PER B-ORG I-ORG B-LOC I-LOC B-MISC I-MISC'.split()
upos = 'NOUN PUNCT ADP NUM SYM SCONJ ADJ PART DET CCONJ PROPN PRON X _ ADV INTJ VERB AUX'.split()

def each(row, names, column='label'): return [dict(row, **{column: i}) for i in range(len(names))], {column: names}

made = {  # name -> rows in the published schema, the label names of the published features
    'imdb': each(dict(text='A joy.'), ['neg', 'pos']),
    'glue/cola': each(dict(sentence='They drank.', idx=0), ['unacceptable', 'acceptable']),
    'glue/sst2': each(dict(sentence='a gem ', idx=0), ['negative', 'positive']),
    'glue/mrpc': each(dict(two, idx=0), ['not_equivalent', 'equivalent']),
    'glue/qqp': each(dict(question1='Why?', question2='How?', idx=0), ['not_duplicate', 'duplicate']),
    'glue/mnli': each(
        dict(premise='It rains.', hypothesis='It is wet.', idx=0), ['entailment', 'neutral', 'contradiction']
    ),
    'glue/qnli': each(dict(question='Who?', sentence='Ada did.', idx=0), entails),
    'glue/rte': each(dict(two, idx=0), entails),
    'glue/wnli': each(dict(two, idx=0), entails[::-1]),
    'phrasebank': each(dict(sentence='Sales rose .'), mood),
    'twitter': ([dict(text='$A down', label=i) for i in range(3)], {}),
    'fiqa_sentiment': (
        [
            dict(_id='0', sentence='Up.', target='A', aspect="['Stock']", score=s, type='post')
            for s in (-0.5, 0.01, 0.5)
        ],
        {},
    ),
    'AdaptLLM/finance-tasks/FPB': (
        [
            dict(id=i, input='Sales rose.', options=['Negative', 'Neutral', 'Positive'], gold_index=i, class_id=i)
            for i in range(3)
        ],
        {},
    ),
    'AdaptLLM/finance-tasks/Headline': (
        [dict(id=i, input='gold up? ', options=['No', 'Yes'], gold_index=i, class_id=i) for i in range(2)],
        {},
    ),
    'mmlu': each(quiz, list('ABCD'), 'answer'),
    'mmlu_pro': ([dict(pro, answer='ABCDEFGHIJ'[i], answer_index=i) for i in range(10)], {}),
    'listops': ([dict(Source='( [MAX 1 ) ] )', Target=i) for i in range(10)], {}),
    'opinions': each(dict(text='Fine.'), ['negative', 'positive']),
}

def loaded(name, rows, names):
    ds = find_dataset(name)
    return ds, ds.prepare({'train': Rows(rows, names)})['train']

def known(name): # the order to expect where the file carries none
    return {
        'twitter': ['bearish', 'bullish', 'neutral'],
        'fiqa_sentiment': mood,
        'listops': list('0123456789'),
        'mmlu_pro': list('ABCDEFGHIJ'),
    }.get(name)

def check_row(ds, row):
    prompt,target = ds.prompt(row),ds.target(row)
    assert (
        prompt.endswith(f'\n{ds.cue}:')
        and prompt.startswith(f'{ds.instruction}\n\n')
        and target[0] == ' '
        and target[1:].strip() == target[1:]
    )
    assert ds.has_answer(row) and ds.score(row, target) == 1 and ds.references(row)
    choices = ds.choices(row)
    if choices is not None:
        assert len(choices) == len(set(choices)) and choices.count(target) == 1
        for c in choices: assert ds.score(row, c) == (c == target)
        # all labels at once
        assert ds.score(row, ' '.join(choices)) == 0 and ds.score(row, ', '.join(reversed(choices))) == 0
    assert ds.score(row, '') < 1 and 0 <= ds.score(row, 'step 1 therefore calculate the answer') < 1

# ---- rows made in the published schema

@pytest.mark.parametrize('name', made)
def test_label_to_text_and_back(name):
    ds,rows = loaded(name, *made[name])
    order = next(iter(made[name][1].values()), known(name))
    back = {w: i for i,w in enumerate(order or [c.strip() for c in ds.choices(rows[0])])}
    ours = getattr(ds, 'words', {}) # the data's names -> the words asked for
    for i,row in enumerate(rows):
        check_row(ds, row)
        said = ds.target(row).strip()
        assert [back[n] for n in back if ours.get(n, n) == said] == [i]

@pytest.mark.parametrize('name', [n for n in made if made[n][1] and n != 'mmlu'])
def test_a_file_that_counts_the_other_way(name):
    rows,names = made[name]
    (column,order), = names.items()
    ds,rows = loaded(name, rows, {column: order[::-1]})
    for i,row in enumerate(rows):
        check_row(ds, row)
        assert ds.target(row).strip() == ds.words[order[::-1][i]]

@pytest.mark.parametrize('name', [n for n in made if made[n][1] and n not in ('mmlu',)])
def test_hidden_and_unnamed_labels(name):
    rows,names = made[name]
    (column,_), = names.items()
    ds,rows = loaded(name, [*rows, dict(rows[0], **{column: -1})], names)
    assert [ds.has_answer(r) for r in rows] == [True]*(len(rows) - 1) + [False]
    for f in (ds.target, ds.references, lambda r: ds.score(r, 'positive')):
        with pytest.raises(InputError, match='hides the label'):
            f(rows[-1])
    ds,rows = loaded(name, made[name][0], {}) # a jsonl of numbers
    with pytest.raises(InputError, match='does not say what it stands for') as e:
        ds.target(rows[0])
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='which the catalog does not know'):
        loaded(name, made[name][0], {column: ['left', 'right', 'up'][:len(rows)]})

def test_hidden_rows_never_reach_training():
    rows = [dict(two, sentence1=f'Man {i} sings.', label=i%3 - 1, idx=i) for i in range(300)]
    ds = find_dataset('glue/rte')
    splits,notes = make_row_splits(ds, ds.prepare({'train': Rows(rows, {'label': entails})}))
    assert (
        all(ds.has_answer(r) for s in splits.values() for r in s)
        and len(splits['train']) + len(splits['validation']) == 200
    )
    assert any('100 of 300 train rows have a hidden label' in n for n in notes)

def test_similarity():
    ds = find_dataset('stsb')
    row = dict(two, label=3.25, idx=0)
    check_row(ds, row)
    assert ds.kind == 'similarity' and ds.choices(row) is None and not ds.has_answer(dict(two, label=-1.))
    assert ds.target(row) in (' 3.2', ' 3.3') and ds.score(row, '0.0') < ds.score(row, '3.0') < 1

@pytest.mark.parametrize('name,tokens,column,tags,names', [
    ('conll2003', 'EU rejects German call'.split(), 'ner_tags', [3, 0, 7, 0], ner),
    ('universal_dependencies/en_ewt', ['late', '!'], 'upos', [6, 1], upos),
    ('entities', ['Ada', 'ran'], 'ner_tags', [1, 0], ner[:7]),
])
def test_tags(name, tokens, column, tags, names):
    for order in (names, names[::-1]):
        ds,rows = loaded(name, [{'tokens': tokens, column: [order.index(names[t]) for t in tags]}], {column: order})
        check_row(ds, rows[0])
        assert ds.target(rows[0]).split() == [names[t] for t in tags]
    ds,rows = loaded(name, [{'tokens': tokens, column: tags[:-1]}], {column: names})
    with pytest.raises(InputError, match='one to one'):
        ds.target(rows[0])

def test_a_multiword_is_given_in_parts_only():
    ds,rows = loaded('ud', [{'tokens': ["it's", 'it', "'s"], 'upos': [13, 11, 17]}], {'upos': upos})
    assert ds.prompt(rows[0]).endswith("Words: it 's\nTags:") and ds.target(rows[0]) == ' PRON AUX'

def test_glue_lists_the_nine():
    with pytest.raises(InputError) as e:
        find_dataset('glue')
    assert all(t in str(e.value) for t in glue_tasks) and len(glue_tasks) == 9

def test_every_set_says_what_it_is_for():
    for id,cls in catalog.items():
        ds = cls(cls.config or next(iter(cls.configs), None))
        assert (
            ds.kind in dataset_kinds
            and ds.modes
            and set(ds.modes) <= {'pretrain', 'sft', 'rl'}
            and ds.role in ('train', 'eval', 'both')
        ), id
        kinds = ClassificationDataset, MultipleChoiceDataset, TaggingDataset
        if isinstance(ds, kinds): assert ds.cue and ds.instruction
    assert {'imdb', 'sst2', 'mmlu', 'opinions', 'entities'} <= set(short_names)

# ---- real rows

def own_names(file): # column -> label names, from the features in the file, nested ones too
    import pyarrow.parquet as pq
    info = (
        json.loads((pq.read_schema(file).metadata or {}).get(b'huggingface', b'{}'))
        .get('info', {})
        .get('features', {})
    )
    inner = {k: f.get('feature', f) for k,f in info.items() if isinstance(f, dict)}
    return {k: f['names'] for k,f in inner.items() if isinstance(f, dict) and f.get('_type') == 'ClassLabel'}

there = [
    'imdb',
    *[f'glue/{t}' for t in glue_tasks],
    *[f'takala/financial_phrasebank/sentences_{a}agree' for a in ('all', 75, 66, 50)],
    'twitter',
    'fiqa_sentiment',
    'mmlu',
    'cais/mmlu/anatomy',
    'mmlu_pro',
    'conll2003',
    'universal_dependencies/en_ewt',
    'listops',
]

@has_real
@pytest.mark.parametrize('name', there)
def test_real_rows(name):
    ds = find_dataset(name)
    splits = load_rows(ds, real)
    folder = real/ds.id.replace('/', '__')/(ds.config or 'default')
    for split,rows in splits.items():
        names = own_names(folder/f'{ds.splits[split]}.parquet').get(ds.labels) if ds.labels else None
        for row in rows[:: max(1, len(rows)//60)]:
            if not ds.has_answer(row):
                assert row[ds.labels] == -1
                continue
            check_row(ds, row)
            if not names: continue
            if isinstance(ds, TaggingDataset):
                assert [names[i] for i in row[ds.labels] if names[i] != '_'] == ds.target(row).split()
            elif isinstance(ds, ClassificationDataset):
                assert ds.words[names[row[ds.labels]]] == ds.target(row).strip()
            else:
                assert names[row[ds.labels]] == ds.target(row).strip()

@has_real
def test_real_splits():
    mnli = load_rows(find_dataset('mnli'), real)
    assert mnli['validation'] == mnli['validation_matched'] != mnli['validation_mismatched']
    rte = load_rows(find_dataset('rte'), real)
    ds = find_dataset('rte')
    assert not any(ds.has_answer(r) for r in rte['test'])
    imdb = find_dataset('imdb')
    splits,notes = make_row_splits(imdb, load_rows(imdb, real))
    assert not {r['text'] for r in splits['train']} & {r['text'] for r in splits['validation']} and any(
        'held out' in n for n in notes
    )
    n = len(splits['train']) + len(splits['validation'])
    assert 0.045 < len(splits['validation'])/n < 0.056
    subjects = {r['subject'] for r in load_rows(find_dataset('mmlu'), real)['test']}
    assert {'all', *subjects} == set(catalog['cais/mmlu'].configs)
