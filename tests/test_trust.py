"Data is never obeyed: whatever a file of a run, a model or a config says, code that was not asked for does not run"
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmnotes.app.cli import main
from lmnotes.comparison.arms import make_arm
from lmnotes.comparison.plan import stages_of
from lmnotes.comparison.planning import plan_comparison
from lmnotes.core import InputError
from lmnotes.files import read_json, write_json
from lmnotes.models.hf.hf_load import hub_model
from lmnotes.trust import TRUST_OPTIONS

BOMB = "import pathlib; pathlib.Path({!r}).write_text('this code ran')\n"
SMALL = '--dataset arithmetic --limit 60 --max_length 32 --batch_size 4 --device cpu'.split()

class Loader:
    "Pickles as a call that runs code when it is read"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return exec, (BOMB.format(self.marker),)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of four steps with two checkpoints, and a comparison of one cell each, made once"
    root = tmp_path_factory.mktemp('made')
    state,here = root/'state',Path.cwd()
    os.environ['XDG_STATE_HOME'] = str(state)
    os.chdir(root)
    try:
        words = ['train', *SMALL, '--max_steps', '4', '--save_steps', '2', '--output_dir', 'run']
        assert main(words) == 0
        words = '--models standard,gpt --datasets prose --seeds 1 --budget steps:2 --limit 60 --max_length 32 '
        words += '--batch_size 4 --pieces 48 --no_costs --device cpu --output_dir comparison'
        assert main(['compare', *words.split()]) == 0
    finally:
        os.chdir(here)
        del os.environ['XDG_STATE_HOME']
    return root

@pytest.fixture
def place(made, tmp_path, monkeypatch):
    "Copies of both in the working directory, a file that marks that it ran, and a user who says yes to every question"
    for name in ('run', 'comparison'): shutil.copytree(made/name, tmp_path/name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path/'state'))
    monkeypatch.setattr('builtins.input', lambda *a: 'y')
    (tmp_path/'bomb.py').write_text(BOMB.format(str(tmp_path/'MARK')), encoding='utf-8')
    return tmp_path

def unfinished(run):
    "Take the end of a run away, so that it has something to resume"
    shutil.rmtree(run/'final')
    (run/'summary.json').unlink()
    shutil.rmtree(run/'checkpoints/step_000004', ignore_errors=True)
    (run/'checkpoints/latest').write_text('step_000002\n', encoding='utf-8')

def change(path, **values):
    "Set entries of a JSON file; nested ones as `options__seed`"
    content = read_json(path)
    for key,value in values.items():
        *outer,last = key.split('__')
        at = content
        for k in outer: at = at.setdefault(k, {})
        at[last] = value
    write_json(path, content)

def call(capsys, *words):
    "Run a command; its exit code and what it complained of, in at most one line"
    capsys.readouterr()
    code = main(list(map(str, words)))
    err = capsys.readouterr().err
    assert 'Traceback' not in err
    return code,err.strip().splitlines()[-1] if err.strip() else ''

def assert_quiet(place): assert not (place/'MARK').exists(), 'planted code ran'


@pytest.mark.parametrize('option', TRUST_OPTIONS)
@pytest.mark.parametrize('value', [True, 'yes'])
def test_args_of_a_run_grant_nothing_on_resume(place, capsys, option, value):
    unfinished(place/'run')
    change(place/'run/args.json', **{f'options__{option}': value, f'asked__{option}': value})
    before = sorted(p for p in (place/'run').rglob('*'))
    code,err = call(capsys, 'train', '--resume', 'run')
    assert code == 2 and f'add --{option} to the command line' in err
    assert before == sorted(p for p in (place/'run').rglob('*')) # nothing was written
    assert call(capsys, 'train', '--resume', 'run/checkpoints/step_000002')[0] == 2

@pytest.mark.parametrize('option', TRUST_OPTIONS)
def test_a_plan_grants_nothing_on_rerun(place, capsys, option):
    shutil.rmtree(next((place/'comparison/cells').iterdir()))
    change(place/'comparison/plan.json', **{f'base__{option}': True})
    for launcher in ('local', 'processes'):
        code,err = call(capsys, 'compare', '--rerun', 'comparison', '--launcher', launcher)
        assert code == 2 and f'add --{option} to the command line' in err

@pytest.mark.parametrize('option', TRUST_OPTIONS)
@pytest.mark.parametrize('place_of', ['stages', 'arm', 'stages of an arm', 'data', 'rates', 'tune_option'])
def test_no_part_of_a_plan_adds_to_what_was_typed(option, place_of):
    arms = [make_arm('a'), make_arm('b', dict(learning_rate=.01))]
    more = {option: True}
    plan = plan_comparison(arms, 'prose', budget='steps:2')
    ds = next(iter(plan.datasets))
    if place_of == 'arm': plan.arms[1] = replace(plan.arms[1], options=plan.arms[1].options | more)
    elif place_of == 'stages of an arm': plan.arms[1] = replace(plan.arms[1], stages=(more,))
    elif place_of == 'data': plan.datasets[ds] = plan.datasets[ds] | more
    elif place_of == 'rates': plan.rates[ds] = dict(b=more)
    else: setattr(plan, place_of, (more,) if place_of == 'stages' else more)
    with pytest.raises(InputError, match=f'add --{option} to the command line'): stages_of(plan, 'b', ds)
    typed = replace(plan, base=plan.base | more)
    assert all(o[option] for o in stages_of(typed, 'b', ds))

@pytest.mark.parametrize('text', [
    'arms: {a: {}, b: {learning_rate: 0.01, stages: [{mode: pretrain, OPTION: true}]}}',
    'arms: {a: {}, b: {OPTION: true}}',
    'stages: [{mode: pretrain, OPTION: true}]\narms: {a: {}, b: {learning_rate: 0.01}}',
    'arms: {a: {}, b: {learning_rate: 0.01}}\nbase: {OPTION: true}',
    'vary: {OPTION: [true, false]}',
])
@pytest.mark.parametrize('option', TRUST_OPTIONS)
def test_an_experiment_file_grants_nothing(place, capsys, option, text):
    asked = f'datasets: prose\nbudget: steps:2\n{text}\n'.replace('OPTION', option)
    (place/'e.yaml').write_text(asked, encoding='utf-8')
    code,err = call(capsys, 'compare', 'e.yaml', '--dry_run')
    assert code == 2 and option in err and err.startswith('lmnotes: ')

def test_a_worker_gets_its_trust_from_its_parent(place):
    "A plan that changed after the parent read it is refused in the worker"
    from lmnotes.comparison.executors import load_worker_plan, run_processes
    from lmnotes.comparison.plan import plan_cells, save_plan
    root = place/'comparison'
    plan = load_worker_plan(root)
    save_plan(replace(plan, base=plan.base | dict(trust_remote_code=True)), root/'plan.json')
    (line,) = run_processes(plan, root, plan_cells(plan)[:1], workers=1)
    assert line['status'] == 'failed' and 'ended with code' in line['reason']
    assert 'add --trust_remote_code' in (root/'logs/worker_0.log').read_text(encoding='utf-8')
    assert load_worker_plan(root, ('trust_remote_code',)).base['trust_remote_code']

@pytest.mark.parametrize('command, text', [
    ('train', 'trust_remote_code: true'),
    ('train', 'trust-remote-code: 1'),
    ('train', 'allow_execution: yes'),
    ('train', 'imports: [bomb.py]'),
    ('train', 'import: bomb.py'),
    ('train', '{"options": {}, "asked": {"trust_remote_code": true}}'),
    ('train', '{"options": {}, "asked": {"imports": ["bomb.py"]}}'),
    ('compare', 'trust_remote_code: true'),
    ('compare', 'imports: bomb.py'),
    ('evaluate', 'allow_execution: true'),
    ('evaluate', 'trust_remote_code: [1]'),
    ('generate', 'trust_remote_code: true'),
    ('pack', 'imports: [bomb.py]'),
    ('report', 'imports: [bomb.py]'),
    ('train', '!!python/object/apply:os.system ["touch MARK"]'),
    ('train', 'model: !!python/name:os.system'),
])
def test_a_config_file_grants_nothing(place, capsys, command, text):
    (place/'c.yaml').write_text(text + '\n', encoding='utf-8')
    code,err = call(capsys, command, '--config', 'c.yaml')
    assert code == 2 and err.startswith('lmnotes: ')
    assert_quiet(place)

def test_a_file_that_only_data_names_is_not_imported(place, capsys):
    bomb = str(place/'bomb.py')
    unfinished(place/'run')
    change(place/'run/args.json', options__imports=[bomb])
    change(place/'comparison/plan.json', plugins={bomb: '0'*64})
    assert call(capsys, 'train', '--resume', 'run')[0] == 2
    assert call(capsys, 'compare', '--rerun', 'comparison')[0] == 2
    sys.path.insert(0, str(place)) # as `python -m lmnotes` does
    try:
        for name in ('bomb', 'bomb.more'):
            change(place/'run/args.json', options__imports=[name])
            assert call(capsys, 'train', '--resume', 'run')[0] == 2
    finally:
        sys.path.remove(str(place))
    assert_quiet(place)

def test_looking_for_a_module_imports_none_above_it(place):
    from lmnotes.plugins import import_plugins
    (place/'pack').mkdir()
    shutil.copy(place/'bomb.py', place/'pack/__init__.py')
    (place/'pack/idea.py').write_text('x = 1\n', encoding='utf-8')
    sys.path.insert(0, str(place))
    try:
        with pytest.raises(InputError, match='have not imported before'):
            import_plugins(['pack.idea'], {})
    finally:
        sys.path.remove(str(place))
    assert_quiet(place)


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    "A saved model of another library, which every planted model begins with"
    root = tmp_path_factory.mktemp('foreign')
    hub_model('tiny:llama', vocab_size=258).save_pretrained(root/'model')
    from lmnotes.data.tokenizers import get_tokenizer
    get_tokenizer('bytes').save_pretrained(root/'model')
    return root/'model'

CODE = '''import pathlib; pathlib.Path({mark!r}).write_text('this code ran')
from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T
class Config(C): model_type = 'planted'
class Model(M): config_class = Config
class Tokenizer(T): pass
def generate(model, *args, **kwargs): return model.generate(*args, **kwargs)
'''

def plant(folder, mark, what):
    "Let the files of a saved model name code"
    (folder/'custom_generate').mkdir(exist_ok=True)
    code = CODE.format(mark=str(mark))
    for name in ('planted.py', 'custom_generate/generate.py', 'modeling_planted.py'):
        (folder/name).write_text(code, encoding='utf-8')
    auto = dict(AutoConfig='planted.Config', AutoModelForCausalLM='planted.Model', AutoModel='planted.Model')
    if what in ('config', 'both'): change(folder/'config.json', auto_map=auto, architectures=['Model'])
    if what in ('type', 'both'): change(folder/'config.json', model_type='planted', auto_map=auto)
    if what in ('tokenizer', 'both'):
        change(
            folder/'tokenizer_config.json', tokenizer_class='Tokenizer',
            auto_map=dict(AutoTokenizer=['planted.Tokenizer', 'planted.Tokenizer'])
        )
    return folder

USES = [
    ('evaluate', '--model', 'm', '--tasks', 'speed', '--limit', '2', '--device', 'cpu'),
    ('generate', '--model', 'm', '--max_new_tokens', '2', '--device', 'cpu'),
    ('pack', 'm', '--output_path', 'packed', '--quantize', 'ternary'),
    ('train', '--model', 'm', *SMALL, '--max_steps', '1'),
    ('train', '--model', 'standard', '--init', 'm', *SMALL, '--max_steps', '1'),
    ('train', '--model', 'standard', '--tokenizer', 'm', *SMALL, '--max_steps', '1', '--dry_run'),
    ('report', 'm', '--card'),
    ('compare', '--models', 'standard,m', '--datasets', 'arithmetic', '--budget', 'steps:1', '--dry_run'),
]

SLOW = pytest.mark.slow # the same commands with one file changed instead of all

@pytest.mark.parametrize('what', ['both', *(pytest.param(w, marks=SLOW) for w in ('config', 'type', 'tokenizer'))])
def test_a_model_that_brings_code_does_not_run_it(place, foreign, capsys, what):
    shutil.copytree(foreign, place/'m')
    plant(place/'m', place/'MARK', what)
    for words in USES:
        code,err = call(capsys, *words)
        assert code in (0, 2), words
        if words[0] == 'pack': assert code == 2 and 'so it cannot be packed; save the model as a class' in err
        assert_quiet(place)

@pytest.mark.parametrize('what', ['tokenizer', *(pytest.param(w, marks=SLOW) for w in ('config', 'type'))])
def test_a_run_whose_model_brings_code_does_not_run_it(place, capsys, what):
    plant(place/'run/final', place/'MARK', what)
    plant(place/'run/checkpoints/step_000004', place/'MARK', what)
    shutil.copytree(place/'run', place/'m')
    for words in USES:
        code,_ = call(capsys, *words)
        assert code in (0, 2), words
        assert_quiet(place)
    unfinished(place/'run')
    plant(place/'run/checkpoints/step_000002', place/'MARK', what)
    call(capsys, 'train', '--resume', 'run')
    assert_quiet(place)

def test_adapters_that_name_code_are_refused(place, foreign):
    from lmnotes.models.lora import add_lora, save_lora
    save_lora(add_lora(hub_model(foreign), r=2, verbose=False), place/'m')
    change(place/'m/adapter_config.json', base_model_name_or_path=str(foreign))
    hub_model('m') # as it was written
    prompt = dict(peft_type='PROMPT_TUNING', prompt_tuning_init='TEXT', prompt_tuning_init_text='a')
    prompt |= dict(num_virtual_tokens=2, tokenizer_kwargs=dict(trust_remote_code=True))
    prompt |= dict(tokenizer_name_or_path=str(plant_tokenizer(place)))
    sys.path.insert(0, str(place))
    try:
        for planted in dict(megatron_config=dict(a=1), megatron_core='bomb'), prompt:
            change(place/'m/adapter_config.json', **planted)
            with pytest.raises(InputError, match='adapter_config.json'):
                hub_model('m')
            assert_quiet(place)
    finally:
        sys.path.remove(str(place))

def plant_tokenizer(place):
    "A folder whose tokenizer brings code"
    from lmnotes.data.tokenizers import get_tokenizer
    get_tokenizer('bytes').save_pretrained(place/'tokenizer')
    return plant(place/'tokenizer', place/'MARK', 'tokenizer')

PICKLES = [
    'final/model.safetensors', 'final/pytorch_model.bin', 'final/adapter_model.bin', 'final/training_args.bin',
    'final/tokenizer.json', 'final/fingerprint.npz', 'fingerprint.npz', 'checkpoints/step_000002/trainer.pt',
    'checkpoints/step_000002/optimizer.pt', 'checkpoints/step_000002/model.safetensors', 'summary.json', 'args.json',
]

@pytest.mark.parametrize('name', PICKLES)
def test_pickles_are_not_opened(place, capsys, name):
    path = place/'run'/name
    existed = path.exists()
    if name.endswith('.bin'): # the only weights there are
        (place/'run/final/model.safetensors').unlink()
    if name.startswith('checkpoints'): unfinished(place/'run')
    with open(path, 'wb') as f:
        pickle.dump(dict(a=Loader(place/'MARK')), f)
    for words in (
        ('train', '--resume', 'run'),
        ('generate', '--model', 'run', '--max_new_tokens', '2', '--device', 'cpu'),
        ('report', 'run'),
    ):
        try:
            main(list(words))
        except (Exception, SystemExit):
            pass # which line it costs is the matter of the readers of files; here it is that nothing runs
        assert_quiet(place)
    assert existed or name.endswith(('.bin', '.npz', '.pt'))

@pytest.mark.parametrize('form', ['pickle', 'torch', 'numpy'])
def test_arrays_of_objects_are_not_opened(place, capsys, form):
    import numpy as np
    bomb = Loader(place/'MARK')
    (place/'shards').mkdir()
    with open(place/'shards'/('0.npy' if form == 'numpy' else '0.pt'), 'wb') as f:
        if form == 'pickle': pickle.dump(bomb, f)
        if form == 'torch': torch.save(bomb, f)
        if form == 'numpy': np.save(f, np.array([bomb], dtype=object), allow_pickle=True)
    for words in (('data', 'validate'), ('train', '--max_steps', '1')):
        code,err = call(capsys, *words, '--data_path', 'shards')
        assert code in (1, 2) and 'pickle' in err
        assert_quiet(place)

def test_widgets_read_a_planted_run_without_running_it(place):
    from lmnotes.app.live_monitor import LiveMonitor
    from lmnotes.app.run_explorer import RunExplorer
    plant(place/'run/final', place/'MARK', 'both')
    change(place/'run/args.json', options__imports=[str(place/'bomb.py')], options__trust_remote_code=True)
    RunExplorer(place)
    LiveMonitor(place/'run')
    assert_quiet(place)

def test_what_is_asked_for_still_works(place, capsys, foreign):
    "The same planted model runs its code once the command line says so"
    shutil.copytree(foreign, place/'m')
    plant(place/'m', place/'MARK', 'type')
    shutil.rmtree(place/'m/custom_generate')
    words = '--max_steps 2 --save_steps 1 --trust_remote_code --output_dir r'.split()
    code,err = call(capsys, 'train', '--model', 'm', *SMALL, *words)
    assert code == 0, err
    assert (place/'MARK').exists()
    (place/'MARK').unlink()
    unfinished_steps = place/'r/checkpoints/step_000002'
    shutil.rmtree(unfinished_steps, ignore_errors=True)
    shutil.rmtree(place/'r/final')
    (place/'r/summary.json').unlink()
    code,err = call(capsys, 'train', '--resume', 'r')
    assert code == 2 and 'add --trust_remote_code' in err
    code,err = call(capsys, 'train', '--resume', 'r', '--trust_remote_code')
    assert code == 0, err
