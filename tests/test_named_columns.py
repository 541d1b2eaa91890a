"Datasets that the catalog does not know: trained on, evaluated, shown and answered by their columns"
import json

import pytest

from lmnotes.app.cli import main
from lmnotes.data.sources.prompt_form import PromptForm
from lmnotes.training.train import train

def write(folder, rows):
    folder.mkdir(parents=True)
    for split in ('train', 'validation', 'test'):
        (folder/f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A root in hub layout with prompts, labelled texts and running text"
    root = tmp_path_factory.mktemp('hub')
    write(root/'me/quiz', [dict(q=f'{i}+1?', a=str(i + 1)) for i in range(60)])
    write(root/'me/moods', [dict(said=f'tale {i}', mood=('glad', 'sad')[i%2], id=str(i)) for i in range(60)])
    write(root/'me/tales', [dict(text=f'Once upon a time there was a hen. It laid {i} eggs. '*9) for i in range(60)])
    return str(root)

QUIZ = 'me/quiz', dict(prompt_column='q', target_column='a')
MOODS = 'me/moods', dict(label_column='mood', text_column='said')

@pytest.fixture(scope='module', params=[QUIZ, MOODS], ids=['prompts', 'labels'])
def trained(request, root, tmp_path_factory):
    "Name of the dataset, its columns, folder of a run"
    name,columns = request.param
    run = train(dataset=name, data_dir=root, model='standard', max_steps=2, batch_size=2, max_length=128, device='cpu',
                quiet=True, output_dir=str(tmp_path_factory.mktemp('run')/'run'), **columns)
    return name, columns, run.path

def refused(capsys, *words):
    capsys.readouterr()
    assert main([*words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('lmnotes: ')]
    assert len(said) == 1, said
    return said[0]

def test_columns_are_remembered_in_evaluation(trained, root):
    name,columns,run = trained
    form = PromptForm.load(run/'final')
    assert (form.dataset, {k: getattr(form, k) for k in columns}) == (name, columns)
    words = ['evaluate', '--model', str(run), '--device', 'cpu', '--data_dir', root, '--datasets', name, '--limit', '4']
    task = 'generation' if name == 'me/quiz' else 'classification'
    assert main([*words, '--tasks', task]) == 0
    found = json.loads((run/'evaluation.json').read_text())
    assert [t['n'] for t in found['tasks']][:1] == [4] and not found['not_measured']
    (run/'evaluation.json').rename(run/'remembered.json')
    typed = [w for k,v in columns.items() for w in (f'--{k}', v)]
    assert main([*words, '--tasks', task, *typed]) == 0
    again = json.loads((run/'evaluation.json').read_text())
    assert again['tasks'] == found['tasks'] and again['asked']['columns'] == columns

def test_rows_are_answered(trained, capsys):
    name,_,run = trained
    row = dict(q='2+1?') if name == 'me/quiz' else dict(said='a tale')
    assert main(['generate', '--model', str(run), '--device', 'cpu', '--max_new_tokens', '2',
                 '--row', json.dumps(row)]) == 0
    wrong = refused(capsys, 'generate', '--model', str(run), '--device', 'cpu', '--row', '{"other": "x"}')
    assert 'other' in wrong

def test_rows_are_shown(root, capsys):
    for name,columns in (QUIZ, MOODS, ('me/tales', {})):
        typed = [w for k,v in columns.items() for w in (f'--{k}', v)]
        assert main(['data', 'show', name, '--data_dir', root, '--rows', '1', *typed]) == 0
        assert f'{name}: ' in capsys.readouterr().out
    assert "no column 'nothing'" in refused(capsys, 'data', 'show', 'me/tales', '--data_dir', root,
                                            '--text_column', 'nothing')

def test_text_is_a_corpus(trained, root):
    *_,run = trained
    assert main(['evaluate', '--model', str(run), '--device', 'cpu', '--data_dir', root, '--datasets', 'me/tales',
                 '--tasks', 'lm', '--limit', '2', '--output', str(run/'lm.json')]) == 0
    assert [r['name'] for r in json.loads((run/'lm.json').read_text())['lm']] == ['me/tales']

@pytest.mark.parametrize('words, message', [
    ('--datasets recall --text_column text', '--text_column'),
    ('--datasets recall --prompt_column q --target_column a', '--prompt_column'),
    ('--datasets me/quiz --prompt_column q', 'come together'),
    ('--datasets me/quiz --prompt_column nothing --target_column a', "no column 'nothing'"),
    ('--datasets me/moods --label_column nothing --text_column said', "no column 'nothing'"),
    ('--datasets me/moods --label_column mood --prompt_column said --target_column mood', '--prompt_column is for'),
    ('--datasets me/tales --dataset_revision main', '--dataset_revision'),
])
def test_wrong_columns_are_one_line(trained, root, capsys, words, message):
    *_,run = trained
    assert message in refused(capsys, 'evaluate', '--model', str(run), '--device', 'cpu', '--data_dir', root,
                              *words.split())
