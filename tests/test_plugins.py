"A user's own file works in every command: in this process, in others, on Ray, on resume and on a rerun"
import importlib.util
import shutil
from pathlib import Path

import pytest

from lmnotes.app.cli import main
from lmnotes.files import read_json
from lmnotes.models.build import build_model
from lmnotes.plugins import import_plugins

IDEA = '''"My idea: a feed-forward of squared ReLU, and text of my own"
from lmnotes.data.builtin import builtin_sources
from lmnotes.data.catalog import Dataset, register_dataset
from lmnotes.data.sources.files import Rows
from lmnotes.models.build import models
from lmnotes.models.decoder import LM, LMConfig
@models('mine')
def my_model(**options): return LM(LMConfig(**{'ffn': 'relu2', **options}))
def sums(n): return Rows(dict(text=f'{i} and one make {i + 1}. '*20) for i in range(n))
@builtin_sources('embedded/mine')
def my_rows(): return dict(train=sums(300), validation=sums(40))
@register_dataset('mine')
class Mine(Dataset):
    id = 'embedded/mine'
'''

SMALL = '''--datasets mine --seeds 1 --budget steps:2 --max_length 32 --batch_size 4 --pieces 48 --no_costs
--device cpu'''.split()

@pytest.fixture
def idea(tmp_path, monkeypatch):
    "A file of fourteen lines, in a working directory of its own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path/'state'))
    Path('my_idea.py').write_text(IDEA, encoding='utf-8')
    return tmp_path/'my_idea.py'

def outcome(folder):
    "Status of a comparison, and where its cells ended"
    result = read_json(Path(folder)/'comparison.json')
    return result['status'], {(c['arm'], c['dataset']): c['status'] for c in result['cells']}

ALL_DONE = 'done', {('standard', 'embedded/mine'): 'done', ('mine', 'embedded/mine'): 'done'}

def compare(*words):
    return main(['compare', '--import', 'my_idea.py', '--models', 'standard,mine', *SMALL, *words])

def test_the_file_has_fourteen_lines():
    assert len(IDEA.splitlines()) == 14

def test_compare_in_this_process_and_rerun(idea, capsys):
    assert compare('--output_dir', 'c') == 0, capsys.readouterr().err
    assert outcome('c') == ALL_DONE
    hashes = read_json('c/plan.json')['plugins']
    assert list(hashes) == [str(idea)]
    shutil.rmtree('c/cells/mine')
    assert main(['compare', '--rerun', 'c']) == 0, capsys.readouterr().err
    assert outcome('c') == ALL_DONE

def test_compare_in_other_processes(idea, capsys, forked_workers):
    assert compare('--launcher', 'processes', '--workers', '2', '--output_dir', 'c') == 0, capsys.readouterr().err
    assert outcome('c') == ALL_DONE

@pytest.mark.slow # a cluster of its own takes a minute or two to start
@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason='ray is not installed')
def test_compare_on_ray(idea, capsys):
    assert compare('--launcher', 'ray', '--workers', '1', '--output_dir', 'c') == 0, capsys.readouterr().err
    assert outcome('c') == ALL_DONE

TRAIN = '--model mine --dataset mine --max_steps 4 --save_steps 2 --max_length 32 --batch_size 4 --device cpu'.split()

def test_train_records_the_file_and_resume_imports_it(idea, capsys):
    assert main(['train', '--import', 'my_idea.py', *TRAIN, '--output_dir', 'r']) == 0, capsys.readouterr().err
    assert str(idea) in read_json('r/env.json')['plugins']
    shutil.rmtree('r/final')
    Path('r/summary.json').unlink()
    shutil.rmtree('r/checkpoints/step_000004', ignore_errors=True)
    Path('r/checkpoints/latest').write_text('step_000002\n', encoding='utf-8')
    assert main(['train', '--resume', 'r']) == 0, capsys.readouterr().err
    assert read_json('r/summary.json')['steps'] == 4

def test_a_changed_file_is_refused(idea, capsys):
    assert main(['train', '--import', 'my_idea.py', *TRAIN, '--output_dir', 'r']) == 0, capsys.readouterr().err
    idea.write_text(IDEA.replace('one make', 'one is'), encoding='utf-8')
    assert main(['train', '--resume', 'r']) == 2
    assert 'has changed since the run began' in capsys.readouterr().err

def test_a_file_that_only_a_run_folder_names_is_not_run(idea, capsys, monkeypatch):
    assert main(['train', '--import', 'my_idea.py', *TRAIN, '--output_dir', 'r']) == 0, capsys.readouterr().err
    (idea.parent/'planted.py').write_text("raise SystemExit('this code ran')\n", encoding='utf-8')
    for name in ('args.json', 'env.json'):
        text = Path('r', name).read_text(encoding='utf-8').replace('my_idea.py', 'planted.py')
        Path('r', name).write_text(text, encoding='utf-8')
    assert main(['train', '--resume', 'r']) == 2
    err = capsys.readouterr().err
    assert 'planted.py' in err and 'this code ran' not in err

def test_other_commands_know_the_names(idea, capsys):
    assert main(['data', 'show', 'mine', '--import', 'my_idea.py']) == 0
    assert '0 and one make 1.' in capsys.readouterr().out
    assert main(['train', '--import', 'my_idea.py', '--model', 'mien', '--dry_run']) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err

@pytest.mark.parametrize('text, says', [
    ('from lmnotes.core import nothing_there\n', 'cannot import name'),
    ('x = (\n', 'SyntaxError'),
])
def test_a_broken_file_costs_one_line(tmp_path, monkeypatch, capsys, text, says):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    (tmp_path/'broken.py').write_text(text, encoding='utf-8')
    assert main(['train', '--import', str(tmp_path/'broken.py'), '--dry_run']) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_the_example_of_the_readme_has_as_many_parameters_as_the_baseline(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path/'state'))
    text = (Path(__file__).parent.parent/'README.md').read_text(encoding='utf-8')
    code = text.partition('# my_idea.py\n')[2].partition('```')[0]
    (tmp_path/'readme_idea.py').write_text(code.replace("'mine'", "'readme_mine'"), encoding='utf-8')
    import_plugins([tmp_path/'readme_idea.py']) # a path, not only its name
    for size in ('tiny', 'small'):
        mine,standard = (build_model(m, size=size, vocab_size=258) for m in ('readme_mine', 'standard'))
        assert mine.config.ffn == 'relu2' != standard.config.ffn
        assert mine.num_parameters() == standard.num_parameters()
    assert build_model('readme_mine', vocab_size=258, ffn_dim=96).config.ffn_dim == 96
