"Each option of each command changes something, or a message says that it does not; a run's command is its options"
import dataclasses
import random
import shlex
import typing

import pytest

from lmnotes.app.cli import main, parse
from lmnotes.app.options import CompareOptions, EvaluateOptions, GenerateOptions, option_classes
from lmnotes.core import InputError
from lmnotes.training.options import TrainOptions, check_options
from lmnotes.training.planning.command_line import command_line, negated_switches
from lmnotes.training.planning.option_effects import Condition, check_effects, default_of

options = [(c, f) for c in option_classes.names() for f in dataclasses.fields(option_classes[c])]
conditional = [(c, f) for c,f in options if f.metadata.get('needs')]
WORDS = 'a', 'two words', "it's", '$HOME', 'ü', '-dash', 'x=y', 'a,b', '"', '#', 'new\nline'

def value_for(t, draw): # of an annotated type
    origin,args = typing.get_origin(t),typing.get_args(t)
    if origin is typing.Literal: return draw.choice(args)
    if origin is tuple: # only the first of a list may begin with a dash
        values = [value_for(args[0], draw) for _ in range(draw.randrange(1, 4))]
        return tuple([values[0], *(v for v in values[1:] if v != '-dash')])
    if args: return value_for(draw.choice([a for a in args if a is not type(None)]), draw)
    if t is bool: return draw.random() < .5
    if t is int: return draw.randrange(1, 999)
    if t is float: return draw.choice([.5, 1e-6, 2., 1/3])
    return draw.choice(WORDS)

def random_options(cls, seed):
    draw,o = random.Random(seed),cls()
    for f in dataclasses.fields(cls):
        if f.name != 'imports' and draw.random() < .5: setattr(o, f.name, value_for(f.type, draw))
    return o

@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('cls', [TrainOptions, CompareOptions, EvaluateOptions, GenerateOptions])
def test_a_command_line_is_read_back_to_the_options_that_wrote_it(cls, seed):
    o,name = random_options(cls, seed),next(n for n in option_classes.names() if option_classes[n] is cls)
    _,command,*words = shlex.split(command_line(name, o))
    try:
        assert parse(command, words)[0] == o
    except InputError as e: # a value out of range is refused before it is compared
        assert 'must' in str(e) or 'lies in' in str(e) or 'holds' in str(e), e

def test_what_is_on_by_default_can_be_turned_off():
    for name in option_classes.names():
        for switch,field in negated_switches(option_classes[name]).items():
            assert getattr(parse(name, [f'--{switch}'])[0], field) is False
    assert set(negated_switches(TrainOptions)) == {'no_separate_mixture_eval', 'no_log_eval_spread', 'no_plots'}

def changed(f): # another value of an option
    draw = random.Random(1)
    values = (value_for(f.type, draw) for _ in range(200))
    return next(v for v in values if v != default_of(f) and v not in f.metadata['off'])

@pytest.mark.parametrize(('command', 'field'), conditional, ids=[f'{c}-{f.name}' for c,f in conditional])
def test_an_option_whose_condition_fails_is_named(command, field, monkeypatch):
    cls = option_classes[command]
    for c in field.metadata['needs']:
        monkeypatch.setattr(Condition, '__call__', lambda self, o, c=c: self is not c)
        o = cls(**{field.name: changed(field)})
        shown = f"--{'import' if field.name == 'imports' else field.name}"
        try:
            said = check_effects(o, {field.name})
            assert len(said) == 1 and c.harmless and field.name in said[0]
        except InputError as e:
            assert not c.harmless and (shown in str(e) or f'--no_{field.name}' in str(e)) and c.otherwise in str(e)

without = [
    ('--lora_r 4', 'without --use_lora'),
    ('--packing_max_length 64', 'without --use_packing'),
    ('--size small --model gpt2', 'its own size'),
    ('--mixture_by tokens', 'several --datasets'),
    ('--mixture_cap 0.5', 'several --datasets'),
    ('--tokens_per_chunk 9', '--streaming'),
    ('--stream_walk sample', '--streaming'),
    ('--text_column a', 'without --data_path'),
    ('--prompt_column a', 'without --data_path'),
    ('--prompt_template {a} --mode pretrain', 'no answers'),
    ('--chat_template', 'no answers'),
    ('--grpo_beta 0.2', 'outside --mode rl'),
    ('--rl_learning_rate 0.1', 'outside --mode rl'),
    ('--reward_model x', 'outside --mode rl'),
    ('--allow_execution', 'outside --mode rl'),
    ('--mode rl --dataset arithmetic --learning_rate 0.1', 'in --mode rl: give --rl_learning_rate'),
    ('--mode rl --dataset arithmetic --warmup_ratio 0.1', 'in --mode rl: give --rl_warmup_steps'),
    ('--dataset python --data_path x.txt', 'beside --data_path'),
    ('--limit 9 --streaming', '--max_chunks limits'),
    ('--vocab_size 500', 'vocabulary is fixed'),
    ('--metric_for_best_model loss', '--load_best_model_at_end'),
    ('--save_steps 9 --save_strategy no', 'with --save_strategy no'),
    ('--num_frequencies 9', 'no resonance layers'),
    ('--load_in_4bit', 'model of lmnotes'),
    ('--no_log_eval_spread', 'several --datasets'),
    ('--num_train_epochs 2 --budget tokens:1k', 'beside --budget'),
    ('--mode rl --dataset arithmetic --budget tokens:1k', 'unless it counts steps'),
    ('--parameters 9000 --model gpt2', 'its own size'),
    ('--warmup_steps 5 --lr_scheduler_type constant', 'constant_with_warmup'),
]

@pytest.mark.parametrize(('line', 'said'), without, ids=[line for line,_ in without])
def test_an_option_without_effect_is_refused(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LMNOTES_DATA_DIR', raising=False)
    assert main(['train', '--dry_run', *shlex.split(line)]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('warning')] # of imports
    assert len(err) == 1 and said in err[0], err

def test_a_resumed_run_knows_its_own_options():
    check_options(TrainOptions(resume_from_checkpoint='r', metric_for_best_model='loss'), {'metric_for_best_model'})
