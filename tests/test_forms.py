"Files of one's own: what each form becomes, and one line with file, row and column for each wrong one"
import gzip
import json
from pathlib import Path

import pytest

from lmnotes.core import InputError
from lmnotes.data.load import load_data
from lmnotes.data.sft_examples import encode_rows, load_user_pairs, render_loss_mask
from lmnotes.data.sources.split_names import sort_by_split
from lmnotes.data.sources.user_files import find_user_files, read_user_rows, read_user_texts
from lmnotes.data.tokenizers import byte_tokenizer

def put(folder, name, content):
    "Write a file: bytes, text, or rows as jsonl"
    path = Path(folder)/name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list): content = ''.join(json.dumps(r) + '\n' for r in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def turns(*contents):
    "A conversation of which every second turn is an answer"
    return [dict(role=('user', 'assistant')[i%2], content=c) for i,c in enumerate(contents)]


PAIR = dict(prompt='2+2?', response='4')
WRONG = { # name of the file, content, parts of the one line; `FILE` stands for the path
    'an unclosed quote': ('a.csv', 'prompt,response\na,b\nc,"d\ne,f\n',
                          ("FILE row 2 (line 3), column 'response'", 'never closed')),
    'a quote closed by a later one': ('a.csv', 'prompt,response\n"a,b\nc,"d"\n',
                                      ("FILE row 1 (line 2), column 'prompt'",)),
    'a short row': ('a.csv', 'prompt,response\na,b\nc\n', ("FILE row 2 (line 3), column 'response'", '1 of 2 cells')),
    'a long row': ('a.csv', 'prompt,response\na,b,c\n', ('FILE row 1 (line 2), column 3', '3 cells')),
    'a duplicate header': ('a.csv', 'prompt,response,prompt\na,b,c\n', ("'prompt' twice", 'columns 1 and 3')),
    'semicolons': ('a.csv', 'prompt;response\na;b\n', ("separated by ';'",)),
    'a header alone': ('a.csv', 'prompt,response\n', ('FILE holds no rows',)),
    'a null answer': ('a.jsonl', [PAIR, dict(prompt='c', response=None)], ("FILE row 2, column 'response' is null",)),
    'a missing answer': ('a.jsonl', [PAIR, dict(prompt='c')], ("FILE row 2, column 'response' is null",)),
    'a NaN answer': ('a.jsonl', '{"prompt": "a", "response": NaN}\n', ("FILE row 1, column 'response' is NaN",)),
    'an empty answer': ('a.csv', 'prompt,response\na,b\nc,\n', ("FILE row 2, column 'response' has no answer",)),
    'no right answer': ('a.jsonl', [dict(question='a', answers=[])], ("FILE row 1, column 'answers' has no answer",)),
    'an object as an answer': ('a.json', json.dumps([PAIR, dict(prompt='a', response=dict(b=1))]),
                               ("FILE row 2, column 'response' holds an object ({'b': 1}), not",)),
    'a list as a prompt': ('a.jsonl', [dict(prompt=['a'], response='b')], ("row 1, column 'prompt' holds a list",)),
    'lists of lists as answers': ('a.jsonl', [dict(prompt='a', response=[['b']])], ("column 'response' holds a list",)),
    'turns as text': ('a.jsonl', [dict(messages='hi')], ("FILE row 1, column 'messages' is a list of",)),
    'no turns': ('a.jsonl', [dict(messages=[])], ("FILE row 1, column 'messages' is a list of", '[] came')),
    'null turns': ('a.jsonl', [dict(messages=None)], ("FILE row 1, column 'messages' is a list of", 'None came')),
    'no answer in a chat': ('a.jsonl', [dict(messages=turns('a'))], ('FILE row 1, column', "no 'assistant' turn")),
    'an unknown role': ('a.jsonl', [dict(messages=[dict(role='asistant', content='a')])],
                        ("FILE row 1, turn 1 of column 'messages'", "did you mean 'assistant'?")),
    'an unknown speaker': ('a.json', json.dumps([dict(conversations=[{'from': 'humn', 'value': 'a'}])]),
                           ("FILE row 1, turn 1 of column 'conversations'", "did you mean 'human'?")),
    'a picture in a turn': ('a.jsonl', [dict(messages=[dict(role='user', content=[dict(type='image_url')])])],
                            ("row 1, turn 1 of column 'messages'", "'image_url'; only text")),
    'a torn line': ('a.jsonl', '{"prompt": "a", "response": "b"}\n{"prompt": "c', ('FILE line 2 is not JSON',)),
    'a line that is no object': ('a.jsonl', '["a"]\n', ('FILE line 1 holds a list',)),
    'a key given twice': ('a.jsonl', '{"prompt": "a", "prompt": "b"}\n', ("FILE line 1 has the column 'prompt'",)),
    'an item that is no object': ('a.json', '[{"prompt": "a", "response": "b"}, 3]', ('FILE row 2 is a int',)),
    'an object in the place of a list': ('a.json', '{"data": []}', ('FILE is damaged: expected a JSON list',)),
    'half a gzip file': ('a.jsonl.gz', gzip.compress(json.dumps(PAIR).encode()*99)[:-9], ('FILE is damaged',)),
    'no Zstandard': ('a.jsonl.zst', b'{}', ('FILE is damaged', 'whole zst file')),
    'no gzip': ('a.csv.gz', b'prompt,response\n', ('FILE', 'gz')),
    'no UTF-8': ('a.csv', 'prompt,response\né,b\n'.encode('latin-1'), ('FILE is not UTF-8 text (byte 0xe9 at 16)',)),
}


@pytest.mark.parametrize('name,content,parts', WRONG.values(), ids=list(WRONG))
def test_a_wrong_form_is_one_line_with_file_row_and_column(tmp_path, name, content, parts):
    path = put(tmp_path, name, content)
    with pytest.raises(InputError) as e: load_user_pairs(path)
    said = str(e.value).replace(str(path), 'FILE')
    assert '\n' not in said and all(p in said for p in parts), said


@pytest.mark.parametrize('content,what', [
    ([dict(text='one'), dict(text=None)], "row 2, column 'text' is null"),
    ([dict(text='one'), dict(text=['two'])], "row 2, column 'text' holds list, not text"),
    ([dict(text='one'), dict(other='two')], "row 2, column 'text' is null"),
    ('{"text": NaN}\n', "row 1, column 'text' is NaN"),
])
def test_a_wrong_text_is_refused_with_its_row(tmp_path, content, what):
    with pytest.raises(InputError, match=what): read_user_texts(put(tmp_path, 'a.jsonl', content))


def test_parquet_columns_of_one_name_and_nulls_are_refused(tmp_path):
    pa = pytest.importorskip('pyarrow')
    pq = pytest.importorskip('pyarrow.parquet')
    pq.write_table(pa.table([['a'], ['b'], ['c']], names=['prompt', 'response', 'response']), tmp_path/'twice.parquet')
    with pytest.raises(InputError, match="twice.parquet has the column 'response' more than once"):
        load_user_pairs(tmp_path/'twice.parquet')
    pq.write_table(pa.table(dict(prompt=['a', 'b'], label=[1., float('nan')])), tmp_path/'nan.parquet')
    with pytest.raises(InputError, match="nan.parquet row 2, column 'label' is NaN"):
        load_user_pairs(tmp_path/'nan.parquet', 'prompt', 'label')
    pq.write_table(pa.table(dict(prompt=['a', 'b'], label=['x', None])), tmp_path/'null.parquet')
    with pytest.raises(InputError, match="null.parquet row 2, column 'label' is null"):
        load_user_pairs(tmp_path/'null.parquet', 'prompt', 'label')


def test_no_cell_is_written_as_python(tmp_path):
    rows = [dict(q=None, answer=['4', 'four']), dict(q=True, answer=4.5)]
    ds,splits = load_user_pairs(put(tmp_path, 'a.jsonl', rows), 'q', 'answer')
    assert [(ds.prompt(r), ds.target(r)) for r in splits['train']] == [('', ' 4'), ('true', ' 4.5')]


def test_every_right_answer_counts_in_the_score(tmp_path):
    rows = [dict(context='c', question='q', answers=dict(text=['1776', 'in 1776', '1776'], answer_start=[0, 1, 2]))]
    ds,splits = load_user_pairs(put(tmp_path, 'squad.jsonl', rows))
    row, = splits['train']
    assert ds.target(row) == ' 1776' and ds.references(row) == ['1776', 'in 1776']
    assert [ds.score(row, t) for t in ('In 1776.', '1776', '1777')] == [1., 1., 0.]


CHATS = dict( # rows that are the same conversation
    messages=dict(messages=turns('a', 'b', 'c', 'd', 'thanks')),
    sharegpt=dict(conversations=[{'from': f, 'value': v} for f,v in zip(['human', 'gpt']*2, 'abcd')]),
    trl=dict(prompt=turns('a', 'b', 'c'), completion=[dict(role='assistant', content='d')]),
    completion_as_text=dict(prompt=turns('a', 'b', 'c'), completion='d'),
    parts=dict(messages=[t | dict(content=[dict(type='text', text=t['content'])]) for t in turns(*'abcd')]),
)

@pytest.mark.parametrize('row', CHATS.values(), ids=list(CHATS))
def test_a_conversation_has_its_turns_whatever_its_form(tmp_path, row):
    ds,splits = load_user_pairs(put(tmp_path, 'chat.json', json.dumps([row])))
    read, = splits['train']
    assert ds.messages(read) == turns(*'abcd')
    assert ds.prompt(read) + ds.target(read) == 'User: a\nAssistant: b\nUser: c\nAssistant: d'
    example, = encode_rows(ds, [read], byte_tokenizer())
    shown = render_loss_mask(byte_tokenizer(), example, 'plain')
    assert shown == 'User: a\nAssistant: b\nUser: c\nAssistant:[[ d<eos>]]'


LAYOUTS = [ # files of a folder
    ['train/a.csv', 'validation/a.csv', 'test/a.csv'],
    ['train/a.csv', 'train/b/c.csv', 'my-test/a.csv', 'notes.csv'],
    ['my_train.csv', 'training.csv', 'data-test.csv', 'eval.csv', 'dev.csv', 'valid1.csv', 'other.csv'],
    ['data/train-00000-of-00002.csv', 'data/train-00001-of-00002.csv', 'data/test-00000-of-00001.csv'],
    ['train-00000-of-00002.csv', 'train-00001-of-00002.csv', 'validation-00000-of-00001.csv'],
    ['a.csv', 'b/c.csv', 'testfile.csv'],
    ['.old/train.csv', '__pycache__/test.csv', '.test.csv', 'rows.csv'],
    ['split=train/a.csv', 'en/train.csv', 'en/dev.csv', 'de/train.csv'],
]

@pytest.mark.parametrize('names', LAYOUTS, ids=[n[0] for n in LAYOUTS])
def test_splits_are_those_that_datasets_finds(tmp_path, names):
    data_files = pytest.importorskip('datasets.data_files')
    for name in names: put(tmp_path, name, 'text\na\n')
    patterns = data_files.get_data_patterns(str(tmp_path))
    theirs = data_files.DataFilesDict.from_patterns(patterns, str(tmp_path))
    ours = find_user_files(tmp_path).splits
    assert {s: sorted(map(str, f)) for s,f in ours.items()} == {str(s): sorted(f) for s,f in theirs.items()}


def test_a_folder_of_splits_is_trained_on_without_its_test_rows(tmp_path):
    for split,n in dict(train=60, validation=5, test=20).items():
        put(tmp_path, f'own/{split}/rows.jsonl', [dict(prompt=f'{split} {i}', response=f'{i}') for i in range(n)])
    put(tmp_path, 'own/.cache/train.jsonl', [PAIR])
    put(tmp_path, 'own/readme.pdf', 'no rows')
    data = load_data(data_path=str(tmp_path/'own'), mode='sft', max_length=32, device='cpu')
    assert {s: len(r) for s,r in data.rows.items()} == dict(train=60, validation=5)
    assert data.notes[:3] == [
        'files: 1 train (train/rows.jsonl); 1 validation (validation/rows.jsonl); 1 test (test/rows.jsonl)',
        'left out: .cache/train.jsonl (hidden)',
        'left out: readme.pdf (cannot be read; rows stand in .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .txt)',
    ]
    for split in ('train', 'validation', 'test'): put(tmp_path, f'text/{split}.txt', f'{split} '*200)
    data = load_data(data_path=str(tmp_path/'text'), max_length=32, device='cpu')
    assert data.notes[0].startswith('files: 1 train (train.txt)')
    assert 'test' not in data.tokenizer.decode(data.train_ids)


def test_a_folder_without_training_files_says_which_it_has(tmp_path):
    put(tmp_path, 'test.csv', 'prompt,response\na,b\n')
    put(tmp_path, 'rows.csv', 'prompt,response\na,b\n')
    for mode in ('sft', 'pretrain'):
        with pytest.raises(InputError, match=r'has no train split \(files: 1 test \(test.csv\); left out: rows.csv'):
            load_data(data_path=str(tmp_path), mode=mode, max_length=16, device='cpu')
    with pytest.raises(InputError, match='named for two splits'): sort_by_split(['train-test.csv', 'a.csv'])
    assert list(read_user_rows(tmp_path)) == ['test']
