"Wrong command lines and damaged files: one line, the right exit code, nothing written, never a traceback"
import contextlib
import io
import json
import os
import random
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from lmnotes.app.cli import main
from lmnotes.app.options import option_classes
from lmnotes.option_values import option_range

# %% One invocation

def invoke(words):
    "Exit code and the lines on standard error of one command line"
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code,err.getvalue().splitlines()

def tree(root):
    "Names, sizes and times of everything below a folder"
    found = [Path(d)/n for d,folders,files in os.walk(root) for n in [*folders, *files]]
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found}

log_of_a_run = '/logs', '/logs/training.log', '/summary.json' # where a resumed run says why it failed
locked = '/killed', '/lora', '/comp' # folders in which a lock comes and goes

def fault(words, codes, root='.', said=''):
    "What is wrong with the answer to a command line; None: nothing. A run that is resumed keeps a log of it"
    before = tree(root)
    code,lines = invoke(words)
    shown = f"{' '.join(w if len(w) < 60 else w[:57] + '...' for w in words)!r}: exit {code}, {lines}"
    told = [l for l in lines if l.startswith('lmnotes: ')]
    if code not in codes: return f'{shown}, expected {codes}'
    if code and not 1 <= len(told) <= 2: return f'{shown}, one or two lines of lmnotes expected'
    if any(len(l) > 500 for l in lines): return f'{shown}, a line is too long'
    if 'Traceback' in '\n'.join(lines): return f'{shown}, a traceback'
    if code == 2 and said and said not in '\n'.join(told): return f'{shown}, {said!r} is not named'
    written = {p for p,facts in tree(root).items() if before.get(p) != facts} | before.keys() - tree(root).keys()
    if '--resume' in words: written = {p for p in written if not p.endswith(log_of_a_run)}
    if {'--resume', '--rerun'} & {*words}: written = {p for p in written if not p.endswith(locked)}
    if code == 2 and written: return f'{shown}, written: {sorted(written)[:3]}'
    return None

def check(faults):
    faults = list(filter(None, faults))
    assert not faults, f'{len(faults)} faults:\n' + '\n'.join(faults)


# %% Options: every field of every command, with values it cannot have

def kinds(t):
    "The types that an annotation allows"
    origin,args = get_origin(t),get_args(t)
    if origin is Literal: return {'literal'}
    if origin is tuple: return kinds(args[0])
    if hasattr(t, '__metadata__'): return kinds(args[0])
    return {k for a in args for k in kinds(a)} if args else {t}

def bad_values(f):
    "Values that an option must refuse"
    types,r = kinds(f.type),option_range(f)
    bad = []
    if {int, float} & types:
        bad += ['nan', 'inf', '-inf', 'four', '', '1,5x', str(10**400)]
        if int in types: bad += [str(2**63), str(-10**30), '1.5']
        if r.least is not None: bad.append(str(r.least - 1))
        if r.above is not None: bad.append(str(r.above))
        if r.most is not None: bad.append(str(r.most + 1))
        if r.below is not None: bad.append(str(r.below))
    elif 'literal' in types: bad += ['', 'nonsense', 'x'*300, 'a\0b']
    elif str in types:
        bad += ['\udcff'] + ([] if r.empty or f.default == '' else [''])
        if not r.text: bad += ['x'*300, 'a\0b', 'runs/' + 'y'*256 + '/z', '/a'*3000]
    return bad

def option_lines():
    "Command lines, each with one option that has a value it cannot have"
    for name in option_classes.names():
        for f in fields(option_classes[name]):
            spelled = '--import' if f.name == 'imports' else f'--{f.name}'
            positional = 'Positional' in str(f.type) or hasattr(f.type, '__metadata__')
            for value in bad_values(f): yield [name, value] if positional else [name, f'{spelled}={value}']

def sampled(things, n):
    "So many of them, the same each time"
    return random.Random(0).sample(things, min(n, len(things)))

option_cases = list(option_lines())

@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path.parent/'cache'))
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path.parent/'state'))
    return tmp_path

def test_a_bad_value_of_an_option_is_one_line(empty):
    cheap = [c for c in option_cases if c[0] not in ('train', 'compare')]
    dear = [c for c in option_cases if c[0] in ('train', 'compare')]
    cases = sampled(cheap, 260) + sampled(dear, 90)
    assert len(option_cases) > 800
    check(fault(words, {2}) for words in cases)

@pytest.mark.slow
def test_every_bad_value_of_every_option_is_one_line(empty):
    check(fault(words, {2}) for words in option_cases)


# %% Files: every file of a run, a packed model, a comparison and data, with every damage

small = '--dim 16 --n_layer 1 --n_head 2 --max_length 32 --batch_size 2 --eval_max_batches 1'.split()

def make_run(path, *more, steps=4):
    "A run of seconds, its last checkpoint before its end"
    words = ['train', '--dataset', 'recall', '--mode', 'pretrain', *small, '--max_steps', str(steps), '--limit', '20']
    assert invoke([*words, '--save_steps', '2', '--output_dir', str(path), *more])[0] == 0

def make_data(root):
    "A file of text or tokens in every format, and a file of options"
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    rows = [dict(text=f'the number {i} comes before {i + 1}') for i in range(200)]
    (root/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows), encoding='utf-8')
    (root/'rows.json').write_text(json.dumps(rows), encoding='utf-8')
    (root/'rows.csv').write_text('text\n' + ''.join(f"\"{r['text']}\"\n" for r in rows), encoding='utf-8')
    (root/'rows.txt').write_text('\n'.join(r['text'] for r in rows), encoding='utf-8')
    pq.write_table(pa.Table.from_pylist(rows), root/'rows.parquet')
    ids = np.random.default_rng(0).integers(0, 250, (64, 33)).astype(np.uint16)
    np.save(root/'ids.npy', ids)
    torch.save(torch.from_numpy(ids.astype(np.int32)), root/'ids.pt')
    (root/'options.yaml').write_text('batch_size: 4\nmax_length: 32\n', encoding='utf-8')

NUMBER = re.compile(rb'-?\d+(\.\d+)?(e-?\d+)?')

def other_kind(path, data):
    "The bytes of a file that is whole and holds something else"
    if path.suffix in ('.json', '.jsonl'): return b'[1, "two", {"three": null}]\n'
    if path.suffix in ('.npy', '.npz', '.safetensors', '.pt', '.parquet', '.gz'): return b'{"text": "not this"}\n'
    return b'PK\x03\x04' + data[:100]

damages = dict( # name -> function of path and content: what the file holds then
    empty=lambda path, data: b'',
    truncated=lambda path, data: data[:len(data)//2],
    other=other_kind,
    null=lambda path, data: b'null\n',
    deep=lambda path, data: b'['*100_000 + b'\n',
    huge=lambda path, data: NUMBER.sub(b'1' + b'0'*30, data) if len(data) < 2**18 else data[:64] + b'\xff'*64,
    digits=lambda path, data: NUMBER.sub(b'9'*5000, data, count=3),
    binary=lambda path, data: bytes(range(256))*4,
)
places = 'unreadable', 'folder', 'link', 'missing' # something else in a file's place

@contextlib.contextmanager
def damaged(path, damage):
    "The file with that damage within a block"
    data,times = path.read_bytes(),path.stat().st_mtime_ns
    try:
        if damage in places: path.unlink()
        if damage == 'folder': path.mkdir()
        elif damage == 'link': path.symlink_to('nowhere/at/all')
        elif damage in damages: path.write_bytes(damages[damage](path, data))
        with as_other_user(path, data) if damage == 'unreadable' else contextlib.nullcontext(): yield
    finally:
        if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
        elif os.path.lexists(path): path.unlink()
        path.write_bytes(data)
        os.utime(path, ns=(times, times))

@contextlib.contextmanager
def as_other_user(path, data):
    "Without the right to read the file: it is somebody else's, where root runs the tests"
    path.write_bytes(data)
    path.chmod(0)
    if os.geteuid(): yield
    else:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

plan = 'train --mode pretrain --dim 16 --n_layer 1 --n_head 2 --max_length 32 --batch_size 2 --max_steps 2 --dry_run'
ask = 'generate --max_new_tokens 1 --device cpu --model'
readers = [ # files, command that reads them, exit codes that are right for a damage
    ('run/final/config.json', f'{ask} run', {2}),
    ('run/final/model.safetensors', f'{ask} run', {2}),
    ('run/final/tokenizer*.json', f'{ask} run', {0, 2}),
    ('run/final/generation_config.json', f'{ask} run', {0, 2}),
    ('run/final/model.safetensors', 'pack run --quantize ternary --output_path packed_again', {2}),
    ('packed/config.json', f'{ask} packed', {2}),
    ('packed/model.safetensors', f'{ask} packed', {2}),
    ('packed/*token*.json', f'{ask} packed', {0, 2}),
    ('packed/generation_config.json', f'{ask} packed', {0, 2}),
    ('run/args.json', 'report run --output_path report', {2}), # some of its numbers are only notes: see `noted`
    ('run/args.json', f'{plan} --config run/args.json', {0, 2}),
    ('run/*.json', 'report run --output_path report', {0, 1, 2}),
    ('run/*.jsonl', 'report run --output_path report', {0, 1, 2}),
    ('run/*.json', 'report --card run', {0, 1, 2}),
    ('run/training_text.npz', 'evaluate --model run --tasks lm --datasets recall --limit 1 --device cpu', {0, 2}),
    ('killed/checkpoints/*/state.json', 'train --resume killed', {2}),
    ('killed/checkpoints/*/trainer.pt', 'train --resume killed', {1, 2}),
    ('killed/checkpoints/*/model.safetensors', 'train --resume killed', {1, 2}),
    ('killed/args.json', 'train --resume killed', {2}),
    ('rows.*', f'{plan} --data_path FILE', {0, 2}), # any text is text
    ('ids.*', f'{plan} --data_path FILE', {2}),
    ('options.yaml', f'{plan} --config FILE', {0, 2}),
]
more_readers = [ # of a comparison, of adapters, and of a user's own code
    ('comp/plan.json', 'compare --rerun comp', {2}),
    ('comp/*.json', 'report comp --output_path report', {0, 1, 2}),
    ('comp/comparison.json', 'compare --rerun comp', {0, 1, 2}), # made again from the cells
    ('comp/cells/*/*/*/cell.json', 'compare --rerun comp', {0, 1, 2}), # a cell without it is trained again
    ('comp/cells/*/*/*/scores.npz', 'compare --rerun comp', {0, 1, 2}),
    ('comp/cells/*/*/*/items.jsonl.gz', 'compare --rerun comp', {0, 1, 2}),
    ('comp/cells/*/*/*/final/config.json', f'{ask} comp/cells/standard/embedded__recall/seed_0', {0, 2}),
    ('lora/checkpoints/step_000002/adapter_model.safetensors', 'train --resume lora', {1, 2}),
    ('lora/checkpoints/step_000002/adapter_config.json', 'train --resume lora', {0, 1, 2}), # the run knows its own
    ('lora/checkpoints/step_000002/adapter_*', f'{ask} lora/checkpoints/step_000002', {0, 2}),
    ('idea.py', f'{plan} --dataset recall --import idea.py', {0, 2}), # any expression is Python
    ('idea.py', 'train --resume lora', {2}), # the run has its hash
]
file_cases = [(*r, damage) for r in readers for damage in (*damages, *places)]
more_cases = [(*r, damage) for r in more_readers for damage in (*damages, *places)]

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder with a run, a run that was killed, a packed model and data"
    root,before = tmp_path_factory.mktemp('files'),os.getcwd()
    os.chdir(root)
    make_run('run')
    shutil.copytree('run', 'killed')
    for part in ('final', 'checkpoints/step_000004'): shutil.rmtree(f'killed/{part}')
    os.unlink('killed/summary.json')
    Path('killed/checkpoints/latest').write_text('step_000002\n', encoding='utf-8')
    assert invoke('pack run --quantize ternary --output_path packed'.split())[0] == 0
    make_data(root)
    for d,_,_ in os.walk(root): os.chmod(d, 0o755)
    yield root
    os.chdir(before)

@pytest.fixture(scope='module')
def more_files(tmp_path_factory):
    "A folder with a comparison, a run with adapters that was killed, and user code"
    root,before = tmp_path_factory.mktemp('more_files'),os.getcwd()
    os.chdir(root)
    (root/'idea.py').write_text('\n'.join(f'NAME_{i} = {i}' for i in range(9)), encoding='utf-8')
    tiny = '--limit 20 --max_length 32 --batch_size 2 --device cpu'
    arms = '--models standard,reversible --datasets recall --mode pretrain --seeds 1 --budget steps:1 --output_dir comp'
    assert invoke(f'compare {arms} {tiny} --no_costs'.split())[0] == 0
    lora = '--model tiny:qwen3 --use_lora --lora_r 2 --mode pretrain --max_steps 3 --save_steps 2 --eval_max_batches 1'
    assert invoke(f'train --dataset recall {lora} {tiny} --import idea.py --output_dir lora'.split())[0] == 0
    for part in ('final', 'checkpoints/step_000003'): shutil.rmtree(f'lora/{part}')
    os.unlink('lora/summary.json')
    Path('lora/checkpoints/latest').write_text('step_000002\n', encoding='utf-8')
    for d,_,_ in os.walk(root): os.chmod(d, 0o755)
    yield root
    os.chdir(before)

def noted(path, damage): # the exit codes that are right besides: of numbers that nothing depends on
    return {0} if damage == 'huge' and path.name == 'args.json' else set()

def damage_fault(pattern, command, codes, damage, root):
    "The fault that one damage of one file of a pattern brings to light; None: none"
    found = sorted(root.glob(pattern))
    path = random.Random(pattern + damage).choice(found)
    shutil.rmtree(root/'copy', ignore_errors=True)
    top = root/path.relative_to(root).parts[0]
    if top.is_dir(): shutil.copytree(top, root/'copy')
    words = [str(path.relative_to(root)) if w == 'FILE' else w for w in command.split()]
    with damaged(path, damage): found = fault(words, codes | noted(path, damage), root)
    if top.is_dir(): # as it was, also after a command that writes
        shutil.rmtree(top)
        shutil.move(root/'copy', top)
    for made in ('report', 'packed_again', 'runs'): shutil.rmtree(root/made, ignore_errors=True)
    return found and f'{path.name} {damage}: {found}'

def run_cases(cases, root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv('XDG_STATE_HOME', str(root/'state'))
    (root/'state').mkdir(exist_ok=True)
    check(damage_fault(*case, root) for case in cases)

def test_an_older_checkpoint_is_used_and_said(files):
    shutil.copytree('run', 'cut')
    shutil.rmtree('cut/final')
    for lost in 'cut/summary.json', 'cut/checkpoints/step_000004/state.json': os.unlink(lost)
    code,lines = invoke('train --resume cut'.split())
    said = [line for line in lines if 'step_000004 is damaged or gone (no state.json): step_000002 is used' in line]
    assert code == 0 and len(said) == 1, lines
    for name in 'final/model.safetensors', 'checkpoints/step_000004/state.json':
        assert Path('cut', name).read_bytes() == Path('run', name).read_bytes()
    shutil.rmtree('cut')

def test_damaged_files_are_one_line(files, monkeypatch):
    quick = [c for c in file_cases if c[1].split()[0] in ('generate', 'report') or 'FILE' in c[1]]
    run_cases(sampled(quick, 50), files, monkeypatch)

def test_damages_of_a_comparison_and_of_user_code_are_one_line(more_files, monkeypatch):
    quick = [c for c in more_cases if c[0] in ('comp/plan.json', 'comp/*.json', 'idea.py') and '--dry_run' not in c[1]]
    run_cases(sampled(quick, 12), more_files, monkeypatch)

@pytest.mark.slow
def test_every_damage_of_every_file_is_one_line(files, monkeypatch):
    run_cases(file_cases, files, monkeypatch)

@pytest.mark.slow
def test_every_damage_of_comparisons_adapters_and_user_code_is_one_line(more_files, monkeypatch):
    run_cases(more_cases, more_files, monkeypatch)
