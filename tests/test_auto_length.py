"`--max_length auto` keeps 99 % of prompts with answers whole, and all that follows reads a number"
import json
import re
import shlex

import pytest

from lmnotes.app.cli import main, parse
from lmnotes.comparison.planning import plan_comparison
from lmnotes.core import InputError
from lmnotes.files import read_json
from lmnotes.models import build_model
from lmnotes.training import memory_check
from lmnotes.training.build_data import data_from_options
from lmnotes.training.distributed.resume import resolve_options
from lmnotes.training.memory_check import StepTooLargeError, probe_memory
from lmnotes.training.options import TrainOptions
from lmnotes.training.planning import prepare
from lmnotes.training.planning.auto_length import use_auto_length
from lmnotes.training.planning.lengths import length_warning
from lmnotes.training.train import train

small = dict(dim=16, n_layer=1, n_head=2, batch_size=4, max_steps=2, eval_strategy='no', eval_max_batches=1,
             eval_generate=0, device='cpu')

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    "Rows whose answers take 100 to 299 bytes, and one answer of 3,000"
    home = tmp_path_factory.mktemp('rows')
    sizes = [*range(100, 299), 3000]
    rows = [dict(question=f'row {i}', answer='a'*n) for i,n in enumerate(sizes)]
    for split,some in dict(train=rows, validation=rows[:8]).items():
        (home/f'{split}.jsonl').write_text('\n'.join(map(json.dumps, some)), encoding='utf-8')
    return str(home)

@pytest.fixture(scope='module')
def run(path, tmp_path_factory):
    options = small | dict(save_steps=1, output_dir=str(tmp_path_factory.mktemp('runs')/'run'))
    return train(quiet=True, data_path=path, max_length='auto', **options)

@pytest.fixture(scope='module')
def best(path):
    "The length that the warning names where rows are short"
    warned = length_warning(data_from_options(TrainOptions(data_path=path, max_length=32)))
    return int(re.search(r'--max_length (\d+) keeps 99 %', warned).group(1))

def test_the_length_that_the_warning_names_is_taken_and_recorded(path, run, best):
    data,args = run.learn.dls,read_json(run.path/'args.json')
    assert data.max_length == args['options']['max_length'] == args['data']['max_length'] == best
    assert sum(len(e['ids']) <= best + 1 for e in data.examples['train']) == 198
    assert data.train_blocks.n_cut > 2000 # of the one long answer
    said = f'{best} tokens (--max_length auto) keep 198 of 200 prompts with their answers whole'
    assert said in (run.path/'logs/training.log').read_text(encoding='utf-8')
    _,_,*words = shlex.split((run.path/'args.txt').read_text(encoding='utf-8'))
    assert parse('train', words)[0].max_length == best

def test_a_run_goes_on_with_the_length_that_it_found(run, best, monkeypatch):
    monkeypatch.setattr('lmnotes.training.planning.auto_length.length_that_keeps', lambda *a, **k: 1/0)
    again = dict(resume_from_checkpoint=str(run.path))
    for typed in ({}, dict(max_length='auto')): # what was typed may be typed again
        given = again | typed
        assert resolve_options(TrainOptions(**given), given)[0].max_length == best
    with pytest.raises(InputError, match='--max_length was auto when run began and cannot become 64'):
        train(quiet=True, **again, max_length=64)
    assert train(quiet=True, **again).learn.dls.max_length == best

@pytest.mark.parametrize('more', [dict(use_packing=True), dict(model='tiny:t5'), dict(model='tiny:gpt2')])
def test_packed_rows_and_models_of_the_hub_take_the_same_length(more, path, best):
    assert use_auto_length(TrainOptions(data_path=path, max_length='auto', device='cpu', **more)).max_length == best

def test_a_model_bounds_it(path, best, tmp_path):
    build_model('standard', 'tiny', 258, dim=16, n_layer=1, n_head=2, max_length=64).save_pretrained(tmp_path/'short')
    options = {k: v for k,v in small.items() if k not in ('dim', 'n_layer', 'n_head')}
    plan = train(quiet=True, data_path=path, dry_run=True, max_length='auto', model=str(tmp_path/'short'),
                 tokenizer='bytes', **options)
    assert plan['length'] == ('64 tokens (--max_length auto) keep 0 of 200 prompts with their answers whole; '
                              f'{best} would keep 99 %, and the model reads no more')

def test_a_test_run_says_what_it_kept(path):
    plan = train(quiet=True, data_path=path, dry_run=True, max_length='auto', test=True, **small)
    assert plan['length'].endswith('and a test run has short rows') and '--max_length auto became' in plan['test']

def job(path, length, typed): # before its first step
    o = TrainOptions(data_path=path, **small, max_length=length, dry_run=True)
    return prepare.prepare_job(o, given=dict(max_length=typed))

def test_it_is_halved_until_a_step_fits(path, best, monkeypatch):
    def probe(learn, o):
        if o.max_length > 100: raise StepTooLargeError('too large')
        return probe_memory(learn, o)
    monkeypatch.setattr(prepare, 'probe_memory', probe)
    made = job(path, best, 'auto')
    assert made.learn.dls.max_length == made.options.max_length == best//4
    assert made.plan['length'].endswith(f'{best} would keep 99 %, and a step on them does not fit into memory')
    with pytest.raises(StepTooLargeError): job(path, best, best) # a number that was typed is never changed

def test_halving_ends(path, best, monkeypatch):
    tried = []
    def probe(learn, o):
        tried.append(o.max_length)
        raise StepTooLargeError('too large')
    monkeypatch.setattr(prepare, 'probe_memory', probe)
    with pytest.raises(StepTooLargeError): job(path, best, 'auto')
    assert tried == [best >> k for k in range(len(tried))] and 16 <= tried[-1] < 32

def test_a_step_that_does_not_fit_has_an_error_of_its_own(path, monkeypatch):
    learn = job(path, 64, 64).learn
    with pytest.raises(InputError, match='gradients and moments need') as e: probe_memory(learn, free=1)
    assert not isinstance(e.value, StepTooLargeError) # shorter rows would not help
    monkeypatch.setattr(memory_check, 'gradient_and_optimizer_bytes', lambda learn: 0)
    with pytest.raises(StepTooLargeError, match='a step of 4 x 64 tokens needs'): probe_memory(learn, free=1)

refused = [
    ('--dataset prose', 'has no effect as auto'),
    ('--dataset prose --streaming', 'has no effect as auto'),
    ('--datasets arithmetic recall', 'has no effect as auto'),
    ('--dataset arithmetic --mode pretrain', 'has no effect as auto'),
    ('--dataset opinions --task classify', 'has no effect as auto'),
    ('--dataset arithmetic --mode rl', '--max_prompt_length'),
    ('--dataset arithmetic --use_packing --packing_max_length 64', 'sets the length of rows'),
    ('--dataset gsm8k', 'are on the hub'),
]

@pytest.mark.parametrize(('line', 'said'), refused, ids=[line for line,_ in refused])
def test_where_no_length_can_be_found_one_line_says_so(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LMNOTES_DATA_DIR', raising=False)
    assert main(['train', '--dry_run', '--max_length', 'auto', *line.split()]) == 2
    err = [x for x in capsys.readouterr().err.splitlines() if not x.startswith('warning')]
    assert len(err) == 1 and '--max_length' in err[0] and said in err[0], err

def test_a_comparison_of_running_text_refuses_it():
    with pytest.raises(InputError, match='has no effect as auto'):
        plan_comparison(['standard', 'reversible'], ['prose'], max_length='auto', device='cpu')
