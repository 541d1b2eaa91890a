"The structure holds: imports go down, lines are short, names are single, links show titles, parameters are described"
import importlib
import importlib.util
import inspect
import json
import re
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest
from fastcore.docments import docments

ROOT = Path(__file__).resolve().parents[1]


def load_tool():
    "Import `tools/structure.py`"
    spec = importlib.util.spec_from_file_location('structure', ROOT/'tools/structure.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['structure'] = module    # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


structure = load_tool()
project = structure.Project()


def listing(problems, most=40):
    "Return the problems as text, at most so many of them"
    more = [f'... {len(problems) - most} more'] if len(problems) > most else []
    return '\n'.join(['', *map(str, problems[:most]), *more])


@pytest.mark.parametrize('kind', structure.CHECKS)
def test_project(kind):
    found = structure.CHECKS[kind](project)
    measured = f'\n{structure.table(project)}' if found and kind == 'width' else ''
    assert not found, f'{len(found)} problems{measured}{listing(found)}'


# %% Each check finds a planted fault, and is silent without it

def notebook(title, *cells, exports=None):
    "Return a notebook as JSON; cells that begin with `%code` hold code"
    cells = [f'# {title}\n> A page.', *([f'%code#| default_exp {exports}'] if exports else []), *cells]
    made = [dict(cell_type='code' if c.startswith('%code') else 'markdown', id=f'{i:08}', metadata={},
                 source=c.removeprefix('%code').splitlines(keepends=True)) for i, c in enumerate(cells)]
    for c in made:
        if c['cell_type'] == 'code': c.update(outputs=[], execution_count=None)
    whole = dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)
    return json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


CLEAN = {
    'toy/__init__.py': '"A toy"\n__version__ = "1"\n',
    'toy/all.py': 'from toy.core import *\nfrom toy.data.rows import *\nfrom toy.models.net import *\n',
    'toy/core.py': '__all__ = ["start"]\nfrom toy import __version__\ndef start(): return __version__\n',
    'toy/data/__init__.py': '',
    'toy/data/rows.py': '__all__ = ["Rows"]\nfrom ..core import *\nclass Rows: size = 1\n',
    'toy/models/__init__.py': '',
    'toy/models/net.py': '__all__ = ["Net"]\nfrom ..data import rows\nclass Net: width = rows.Rows.size\n',
    'nbs/00_core.ipynb': notebook('Core', 'Next: [Data](01_data/index.ipynb).', exports='core'),
    'nbs/01_data/index.ipynb': notebook('Data', '- [Rows of data](01_rows.ipynb): what is read'),
    'nbs/01_data/01_rows.ipynb': notebook(
        'Rows of data', 'See `toy.data.rows`. Next: [Net](../02_models/01_net.ipynb).', exports='data.rows'),
    'nbs/02_models/01_net.ipynb': notebook('Net', 'Uses [rows](../01_data/01_rows.ipynb).', '%code%time\nx = 1',
                                           exports='models.net'),
    'docs/page.md': 'It is `toy.data.rows.Rows`, on https://toy.github.io, in toy.css.\n',
}
def core(text):
    "Return the notebook of `toy.core` with a cell"
    return {'nbs/00_core.ipynb': notebook('Core', text, exports='core')}


LONG = 'def long():\n    "Do much"\n' + ''.join(f'    value_{i} = compute_something({i}) # why\n' for i in range(50))
SHORT = ('def short():\n    """' + 'A long docstring. '*200 + '"""\n    def inner():\n        "' + 'Another. '*200
         + '"\n        # ' + 'c'*1500 + '\n        return 1\n')

# kind -> (files with the fault, words of the problem)
FAULTS = {
    'cycle through a function': (
        'cycles',
        {'toy/core.py': '__all__ = ["start"]\ndef start():\n    from .data.rows import Rows\n    return Rows\n'},
        'toy.core -> toy.data.rows',
    ),
    'cycle through a package': (
        'cycles',
        {
            'toy/data/__init__.py': 'from .rows import *\n',
            'toy/data/rows.py': '__all__ = ["Rows"]\nfrom toy.data import *\nclass Rows: pass\n',
        },
        'toy.data.rows -> toy.data',
    ),
    'cycle by name': (
        'cycles',
        {'toy/core.py': 'def start():\n    import importlib\n    return importlib.import_module("toy.data.rows")\n'},
        'cycle of 2 modules',
    ),
    'upward': (
        'layers',
        {'toy/data/rows.py': '__all__ = ["Rows"]\ndef f():\n    from ..models.net import Net\n'},
        'toy.data.rows imports toy.models.net from a higher layer',
    ),
    'upward to all': (
        'layers',
        {'toy/models/net.py': '__all__ = []\nimport toy.all\n'},
        'imports toy.all from a higher layer',
    ),
    'upward by built name': (
        'layers',
        {'toy/core.py': 'from importlib import import_module\ndef f(n): return import_module(f"toy.models.{n}")\n'},
        'imports toy.models',
    ),
    'no layer': ('layers', {'toy/odd/__init__.py': ''}, 'toy.odd has no layer'),
    'private import': (
        'private',
        {'toy/models/net.py': 'from ..data.rows import _hidden\n'},
        'toy.data.rows._hidden',
    ),
    'private access': (
        'private',
        {'toy/models/net.py': 'from ..data import rows as r\nx = r._hidden\n'},
        'toy.data.rows._hidden',
    ),
    'private chain': (
        'private',
        {'toy/models/net.py': 'import toy.data.rows\nx = toy.data.rows._hidden\n'},
        '_hidden',
    ),
    'private export': ('private', {'toy/core.py': '__all__ = ["_x"]\n_x = 1\n'}, '_x in __all__'),
    'lazy': (
        'lazy',
        {'toy/models/net.py': 'class Net:\n    def f(self):\n        from ..data import rows\n'},
        'toy.models.net:Net.f imports toy.data.rows',
    ),
    'registry': (
        'registries',
        {'toy/core.py': 'modes = dict()\nmodes.lazy("rl", "toy.models.net:Nut")\n'},
        'net:Nut',
    ),
    'wide': ('width', {'toy/core.py': 'x = 1\n' * 20 + f'y = "{"a" * 155}"\n'}, '161 characters'),
    'wide notebook': ('width', core(f'%code# c\ny = "{"a" * 155}"'), 'cell 3:2: 161 characters'),
    'many over 120': ('width', {'toy/core.py': 'x = 1\n' * 20 + f'y = "{"a" * 120}"\n'}, '% of code lines over 120'),
    'long lines': ('width', {'toy/core.py': f'y = "{"a" * 80}"\n' * 60}, 'characters a code line'),
    'joined': ('width', {'toy/core.py': 'if 1:\n    x = 1; y = 2\n'}, 'joined statements'),
    'long function': ('functions', {'toy/core.py': LONG}, 'toy.core:long has 1,'),
    'long parent': (
        'functions',
        {'toy/core.py': 'def outer():\n' + ''.join(f'    {s}\n' for s in LONG.splitlines())},
        'toy.core:outer has 1,',
    ),
    'long module': ('sizes', {'toy/core.py': '\n' * 301}, '301 lines'),
    'full folder': ('sizes', {f'toy/data/m{i}.py': '' for i in range(20)}, '21 modules'),
    'doubled name': (
        'names',
        {'toy/models/net.py': '__all__ = ["Net", "Rows"]\nclass Rows: pass\n'},
        'Rows is exported by toy.data.rows and toy.models.net',
    ),
    'lost link': ('links', core('See [it](01_data/09_gone.ipynb#x).'), '09_gone.ipynb, which does not exist'),
    'next': ('links', core('Next: [the rows](01_data/01_rows.ipynb).'), "'the rows' is not the title 'Rows of data'"),
    'next nowhere': ('links', core('Next: the rows.'), 'without a link'),
    'list': (
        'links',
        {'nbs/01_data/index.ipynb': notebook('Data', '1. [Rows](01_rows.ipynb): read')},
        "'Rows' is not",
    ),
    'typed': ('links', core('Next: `32_rates`.'), '32_rates is typed'),
    'typed in a link': ('links', core('[`12_rows`](01_data/01_rows.ipynb)'), "'`12_rows`' is not the title"),
    'title of another': ('links', core('As in [Net](01_data/01_rows.ipynb).'), 'the title of another page'),
    'mention': ('mentions', core('See `toy.data.gone`.'), 'toy.data.gone does not exist'),
    'mention in docs': ('mentions', {'docs/page.md': 'a\ntoy.gone'}, 'docs/page.md:2: toy.gone'),
}


def toy(folder, files=(), **tables):
    "Write a clean toy project with some files replaced"
    for name, text in (CLEAN | dict(files)).items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(text, encoding='utf-8')
    return structure.Project(folder, 'toy', **(dict(lazy_allowed={}, long_allowed={}) | tables))


@pytest.mark.parametrize('kind', structure.CHECKS)
def test_clean_toy_has_no_problems(tmp_path, kind):
    assert structure.CHECKS[kind](toy(tmp_path)) == []


@pytest.mark.parametrize('fault', FAULTS)
def test_planted_fault_is_found(tmp_path, fault):
    kind, files, words = FAULTS[fault]
    found = listing(structure.CHECKS[kind](toy(tmp_path, files)))
    assert words in found


def test_every_check_has_a_planted_fault():
    assert {kind for kind, _, _ in FAULTS.values()} == set(structure.CHECKS)


def test_docstrings_and_comments_do_not_count(tmp_path):
    assert structure.CHECKS['functions'](toy(tmp_path, {'toy/core.py': SHORT})) == []


def test_size_of_a_function_is_exact(tmp_path):
    text = 'def f(x,  # first\n      y):\n    "Add"\n    return x + \\\n        y # sum\n'
    module = toy(tmp_path, {'toy/core.py': text}).modules['toy.core']
    (node, name), = structure.functions(module)
    assert name == 'f'
    assert structure.code_length(node, structure.token_lines(module)) == len('def f(x,' + 'y):' + 'return x +' + 'y')


def test_width_is_exact():
    width = structure.width_of(['# comment\n\nx = 1 # one\nif x: y = 2; z = 3\nfor i in x:\n    a; b; c\n'])
    assert (width.lines, width.joined) == (4, 3)
    assert width.characters == len('x = 1 # one' + 'if x: y = 2; z = 3' + 'for i in x:' + '    a; b; c')


def test_table_shows_our_code_beside_that_of_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, 'LIBRARIES', ('fastcore', 'no_such_library'))
    head, ours, pages, library, functions = structure.table(toy(tmp_path)).splitlines()
    assert [line.split()[0] for line in (head, ours, pages, library)] == ['code', 'toy', 'notebooks', 'fastcore']
    assert ours.split()[1] == '14' and float(library.split()[2]) > 20 and functions.startswith('1 functions, 0 of')


def test_exceptions_need_a_reason_and_a_use(tmp_path):
    lazy = {'toy/models/net.py': 'def f():\n    from ..data import rows\n'}
    check = structure.CHECKS['lazy']
    assert check(toy(tmp_path, lazy, lazy_allowed={'toy.models.net:f': 'rows are heavy'})) == []
    assert 'has no reason' in listing(check(toy(tmp_path, lazy, lazy_allowed={'toy.models.net:f': ''})))
    assert 'not needed' in listing(check(toy(tmp_path, lazy_allowed={'toy.models.net:f': 'rows are heavy'})))
    check = structure.CHECKS['functions']
    assert check(toy(tmp_path, {'toy/core.py': LONG}, long_allowed={'toy.core:long': 'a table'})) == []
    assert 'not needed' in listing(check(toy(tmp_path, long_allowed={'toy.core:long': 'a table'})))


def test_too_many_lazy_imports_are_a_problem_though_excused(tmp_path):
    lines = [f'def f{i}():\n    from ..data import rows\n' for i in range(structure.MAX_LAZY + 1)]
    excused = {f'toy.models.net:f{i}': 'heavy' for i in range(structure.MAX_LAZY + 1)}
    found = structure.CHECKS['lazy'](toy(tmp_path, {'toy/models/net.py': ''.join(lines)}, lazy_allowed=excused))
    assert [p.what for p in found] == [f'{structure.MAX_LAZY + 1} lazy imports, at most {structure.MAX_LAZY}']


def test_registries_may_name_what_is_above(tmp_path):
    above = {'toy/core.py': 'modes = dict()\ndef fill():\n    modes.lazy("net", "toy.models.net:Net")\n'}
    for kind in ('cycles', 'layers', 'lazy', 'registries'):
        assert structure.CHECKS[kind](toy(tmp_path, above)) == []


def test_links_are_fixed(tmp_path):
    index = notebook('Data', '- [a](01_rows.ipynb), [b](../02_models/01_net.ipynb): read')
    wrong = core('After `01_rows`. Next: [x](01_data/01_rows.ipynb#a).') | {'nbs/01_data/index.ipynb': index}
    assert len(structure.fix_links(toy(tmp_path, wrong))) == 2
    made = structure.Project(tmp_path, 'toy')
    assert structure.CHECKS['links'](made) == [] and structure.fix_links(made) == []
    cells = made.notebooks[tmp_path/'nbs/00_core.ipynb'].cells
    assert cells[-1].source == ('After [Rows of data](01_data/01_rows.ipynb). '
                                'Next: [Rows of data](01_data/01_rows.ipynb#a).')


# %% What `help()` shows

def module_names():
    "List the modules that export names"
    return [m.name for m in project.modules.values() if m.exported]


def public(name):
    "Yield `(name, object)` of the functions and classes that a module defines and exports"
    module = importlib.import_module(name)
    for key in module.__all__:
        thing = getattr(module, key)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == name: yield key, thing


def own_parameters(thing):
    "List the parameters of a function, or of the `__init__` or fields that a class defines itself"
    if inspect.isclass(thing) and not is_dataclass(thing) and '__init__' not in vars(thing): return []
    own = vars(thing).get('__annotations__', {}) if is_dataclass(thing) and inspect.isclass(thing) else None
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in inspect.signature(thing).parameters.values() if p.kind not in kinds and p.name != 'self']
    return [n for n in names if own is None or n in own]


def written_doc(thing):
    "Return the docstring, with the comments of parameters that the export moved into it"
    init = thing.__init__.__doc__ or '' if inspect.isclass(thing) and '__init__' in vars(thing) else ''
    doc = thing.__doc__ if has_docstring(thing) else ''
    return f'{doc}\n{init}'


def comments(thing):
    "Return the comments of the parameters that have one"
    return {k: v for k, v in docments(thing, returns=False).items() if v and str(v).strip()}


def has_docstring(thing):
    "Tell whether a docstring was written, neither inherited nor made by `dataclass` from the signature"
    doc = vars(thing).get('__doc__') if inspect.isclass(thing) else thing.__doc__
    return bool(doc) and not doc.startswith(f'{thing.__name__}(')


def undescribed(thing):
    "List the parameters with neither a comment nor a mention in the docstring"
    described = comments(thing)
    return [p for p in own_parameters(thing) if p not in described and not re.search(rf'\b{p}\b', written_doc(thing))]


def hidden_comments(thing):
    "List the parameters whose comment `help()` does not show; fields keep theirs beside them for `--help`"
    if inspect.isclass(thing) and is_dataclass(thing): return []
    shown = ' '.join((thing.__doc__ or '').split())
    return [p for p, comment in comments(thing).items() if p in own_parameters(thing)
            and ' '.join(str(comment).split()) not in shown]


@pytest.mark.parametrize('name', module_names())
def test_public_names_have_docstrings(name):
    assert [key for key, thing in public(name) if not has_docstring(thing)] == []


@pytest.mark.parametrize('name', module_names())
def test_parameters_are_described(name):
    found = {key: undescribed(thing) for key, thing in public(name)}
    assert {key: names for key, names in found.items() if names} == {}


@pytest.mark.parametrize('name', module_names())
def test_help_shows_the_comments_of_parameters(name):
    found = {key: hidden_comments(thing) for key, thing in public(name) if inspect.isfunction(thing)}
    assert {key: names for key, names in found.items() if names} == {}


def commented(
    x, # rows
    y=1,
    *args, z=2, **kwargs):
    "Add `z`"


class Holder:
    "Hold `a`"
    def __init__(self, a, b): pass


@dataclass
class Bare:
    a: int
    b: int = 1    # in metres


def test_missing_descriptions_are_found():
    assert [has_docstring(x) for x in (commented, Holder, Bare)] == [True, True, False]
    assert undescribed(Bare) == ['a']
    assert own_parameters(commented) == ['x', 'y', 'z']
    assert undescribed(commented) == ['y']
    assert hidden_comments(commented) == ['x']
    assert undescribed(Holder) == ['b']


def test_all_does_not_shadow_fastai():
    import fastai.basics as basics

    import lmnotes.all as everything
    names = [n for n in vars(basics) if not n.startswith('_')]
    ours = [n for n in names if hasattr(everything, n) and getattr(everything, n) is not getattr(basics, n)]
    assert ours == []
