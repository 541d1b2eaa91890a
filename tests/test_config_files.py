"Options from a file: YAML, JSON and the `args.json` of a run, for `train`, `evaluate` and `compare`"
from pathlib import Path

import pytest

from lmnotes.app.cli import main, parse
from lmnotes.files import read_json

@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def write(text, name='x.yaml'):
    Path(name).write_text(text, encoding='utf-8')
    return name

def test_the_command_line_wins():
    o,given = parse('train', ['--config', write('batch_size: 4\nseed: 3\n'), '--seed', '5'])
    assert (o.batch_size, o.seed, given) == (4, 5, {'batch_size', 'seed'})

@pytest.mark.parametrize('command, text, field, value', [
    ('train', 'datasets: [prose, python]\n', 'datasets', ('prose', 'python')),
    ('train', 'mixture-rates: [0.7, 0.3]\n', 'mixture_rates', (.7, .3)),
    ('train', 'learning_rate: 3e-4\n', 'learning_rate', 3e-4),
    ('train', 'test: true\n', 'test', True),
    ('train', 'test: false\n', 'test', False),
    ('train', 'steps: 7\n', 'max_steps', 7),
    ('train', '{"model": "gpt"}', 'model', 'gpt'),
    ('compare', 'models: [standard, gpt]\n', 'models', ('standard', 'gpt')),
    ('compare', 'budget: "tokens:2M"\n', 'budget', 'tokens:2M'),
    ('evaluate', 'tasks: [lm, qa]\n', 'tasks', ('lm', 'qa')),
])
def test_values_of_every_kind(command, text, field, value):
    assert getattr(parse(command, ['--config', write(text)])[0], field) == value

@pytest.mark.parametrize('command, text, says', [
    ('train', 'batchsize: 4\n', "did you mean 'batch_size'?"),
    ('compare', 'modles: [a]\n', "did you mean 'models'?"),
    ('evaluate', 'task: [a]\n', "did you mean 'tasks'?"),
    ('train', 'batch_size: four\n', 'batch_size'),
    ('train', 'model: {a: 1}\n', 'not a mapping'),
    ('train', '- a\n', 'and got list'),
    ('train', 'a: [\n', 'expected options as YAML'),
    ('train', 'trust_remote_code: true\n', 'lets code run'),
    ('train', 'imports: [a.py]\n', 'type --import'),
])
def test_wrong_files_cost_one_line(command, text, says, capsys):
    assert main([command, '--config', write(text)]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1
    assert [p.name for p in Path('.').iterdir()] == ['x.yaml']

def test_args_of_a_run_are_a_config(capsys):
    assert main('train --dataset arithmetic --max_steps 2 --max_length 32 --device cpu --output_dir r'.split()) == 0
    assert main('train --config r/args.json --seed 1 --output_dir again'.split()) == 0, capsys.readouterr().err
    first,second = (read_json(f'{r}/args.json')['options'] for r in ('r', 'again'))
    different = {k for k in first if first[k] != second[k]}
    assert different == {'seed', 'output_dir'}
