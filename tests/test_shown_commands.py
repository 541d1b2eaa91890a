"Commands that pages and README show: each exists, and takes the options that it is shown with"
import json
import re
import shlex
from pathlib import Path

import pytest

from lmnotes.app.cli import normalize, parse, take_option
from lmnotes.app.options import option_classes
from lmnotes.core import InputError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    p
    for p in [*sorted((ROOT/'nbs').rglob('*.ipynb')), ROOT/'README.md']
    if not any(part[0] in '._' for part in p.relative_to(ROOT).parts) and 'runs' not in p.parts
]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)
LEFT_OUT = '…', '...', 'COMMAND' # they stand for other words
ENDS = re.compile(r'\|\|?|&&?|;|\d?>>?') # a command ends before them
STARTS = re.compile(r'(\$ |[A-Z_]+=\S+ |torchrun .*-m |python -m |pipx run |time )*lmnotes( |$)')

def prose(path):
    "The Markdown of a page"
    if path.suffix == '.md': return path.read_text(encoding='utf-8')
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')

def shell_lines(text):
    "Lines of blocks, a continued one joined, and code within sentences"
    blocks = '\n'.join(body for kind, body in FENCE.findall(text) if kind in ('', 'sh', 'bash', 'console'))
    outside = FENCE.sub('', text)
    indented = '\n'.join(re.findall(r'^(?: {4}|\t)(.*)$', outside, re.M))
    lines = re.sub(r'\\\n\s*', ' ', f'{blocks}\n{indented}').splitlines()
    return lines + [' '.join(code.split()) for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', outside)]

def shown(line):
    "What follows `lmnotes` in a line that begins with it, or with what starts it; None: no command"
    if not STARTS.match(line): return None
    words = shlex.split(line, comments=True)
    words = words[words.index('lmnotes') + 1:]
    stop = next((i for i, w in enumerate(words) if ENDS.fullmatch(w)), len(words))
    return [w for w in words[:stop] if w not in LEFT_OUT]

def shown_commands(text): return [words for line in shell_lines(text) if (words := shown(line))]

def problem(words):
    "Why the command line would refuse these words, or None"
    if words in (['--help'], ['--version']): return None
    name, *rest = words
    if name not in option_classes: return f'there is no command {name}'
    try:
        rest, _ = normalize(rest, option_classes[name])
        for option in ('config', 'imports'): rest, _ = take_option(rest, option) # files that are not here
        parse(name, [w for w in rest if w != '--help'])
    except InputError as e: return str(e)

TORCHRUN = ('max-restarts',) # options of another program that pages name

def inline_options(text):
    "Names of options that sentences of a page name"
    return re.findall(r'`--([a-z][\w-]*)[^`]*`', FENCE.sub('', text))

def is_option(name):
    "Whether a command has the option"
    def has(options):
        try: return bool(normalize([f'--{name}'], options))
        except InputError: return False
    return name in ('help', 'version', *TORCHRUN) or any(has(option_classes[c]) for c in option_classes.names())

def name(path): return str(path.relative_to(ROOT))

@pytest.mark.parametrize('path', [p for p in PAGES if shown_commands(prose(p))], ids=name)
def test_commands_on_pages_are_taken(path):
    refused = {' '.join(words): why for words in shown_commands(prose(path)) if (why := problem(words))}
    assert refused == {}

@pytest.mark.parametrize('path', [p for p in PAGES if inline_options(prose(p))], ids=name)
def test_options_in_sentences_exist(path):
    assert [o for o in inline_options(prose(path)) if not is_option(o)] == []

def test_commands_are_found_in_blocks_and_in_sentences():
    text = """Type `lmnotes doctor`, or

```sh
OMP_NUM_THREADS=1 lmnotes train --model standard \\
    --seed 1 … # another
torchrun -m lmnotes train --multi_gpu > log
echo lmnotes
```

    lmnotes data show prose | head -3
"""
    trained = [['train', '--model', 'standard', '--seed', '1'], ['train', '--multi_gpu']]
    assert shown_commands(text) == [*trained, ['data', 'show', 'prose'], ['doctor']]
    tutorials = [p for p in PAGES if p.parent.name == 'tutorials']
    assert sum(len(shown_commands(prose(p))) for p in tutorials) > 20

def test_a_wrong_command_is_found():
    assert problem(['train', '--config', 'mine.yaml', '--lora_r', '4']) is None
    for words, why in (
        (['trian'], 'no command trian'),
        (['train', '--lora_rank', '4'], "unknown option '--lora_rank'"),
        (['models', 'list'], 'Unrecognized options: list'),
        (['train', '--max_steps', 'many'], 'max_steps'),
    ):
        assert why in problem(words)
    assert is_option('use_lora') and not is_option('use_lorra')
