"""Check the structure of the project: imports, width, sizes, names and references.

`python tools/structure.py` prints the problems, one a line as `file:line: what`, and exits with 1 when there are any.
`--table` prints the width of the code beside that of installed libraries. `--fix-links` rewrites notebook links."""
import argparse
import ast
import importlib.util
import io
import json
import os
import re
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'lmnotes'
MAX_MEAN = 52         # characters a code line, on average
MAX_OVER_120 = 1.     # percent of code lines
MAX_JOINED = 0.5      # joined statements per 100 code lines
MAX_FUNCTION = 1200   # characters of code
MAX_PARAMETERS = 7    # reported in the table only
MAX_LINES = 300       # of a module
MAX_MODULES = 20      # of a folder
MAX_LAZY = 30         # imports of our own modules inside functions
LIBRARIES = ('fastcore', 'nbdev', 'fastai', 'lm_eval')

# imports of our own modules inside functions: 'module:function' -> why it cannot stand at the top
LAZY_ALLOWED = {}

# functions over MAX_FUNCTION characters: 'module:function' -> why it is one piece
LONG_ALLOWED = {}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef)
TOP = float('inf')    # layer of `lmnotes`, `lmnotes.all` and `lmnotes.__main__`


class Problem(NamedTuple):
    "A broken rule and its place"
    place: str    # 'file:line', or 'notebook:cell N:line'
    what: str

    def __str__(self):
        return f'{self.place}: {self.what}'


class Import(NamedTuple):
    "One imported module of ours"
    source: str      # importing module
    target: str      # imported module or package
    line: int
    function: str    # qualified name of the function that contains it; '': module level


# %% Sources

@dataclass(eq=False)
class Module:
    "A module of the package, parsed"
    name: str
    path: Path
    text: str

    @cached_property
    def tree(self):
        "Return the syntax tree"
        return ast.parse(self.text)

    @cached_property
    def nodes(self):
        "List `(node, names of enclosing scopes, inside a function)` of all syntax nodes"
        return list(scoped(self.tree))

    @property
    def is_package(self):
        "Tell whether this is an `__init__.py`"
        return self.path.name == '__init__.py'

    @cached_property
    def exported(self):
        "List the names in `__all__`"
        assigned = [n for n in self.tree.body if isinstance(n, (ast.Assign, ast.AugAssign))]
        found = [n.value for n in assigned if '__all__' in bound(n)]
        return [e.value for v in found if isinstance(v, (ast.List, ast.Tuple)) for e in v.elts
                if isinstance(e, ast.Constant)]

    @cached_property
    def defined(self):
        "Collect the names bound at module level"
        return {name for n, scope, _ in self.nodes if not scope for name in bound(n)} | set(self.exported)


class Cell(NamedTuple):
    "A notebook cell"
    number: int      # from 1, over all cells, as ruff counts
    kind: str        # 'code' or 'markdown'
    source: str


@dataclass(eq=False)
class Notebook:
    "A notebook page"
    path: Path
    text: str

    @cached_property
    def cells(self):
        "List the cells"
        raw = json.loads(self.text)['cells']
        return [Cell(i + 1, c['cell_type'], ''.join(c['source'])) for i, c in enumerate(raw)]

    @cached_property
    def title(self):
        "Return the first heading"
        found = re.search(r'^# +(.+?) *$', '\n'.join(c.source for c in self.cells if c.kind == 'markdown'), re.M)
        return found[1] if found else ''

    @cached_property
    def exports_to(self):
        "Return the module that `#| default_exp` names, or None"
        for cell in self.cells:
            found = cell.kind == 'code' and re.search(r'^#\| *default_exp +(\S+)', cell.source, re.M)
            if found: return found[1]
        return None


@dataclass
class Project:
    "A package, its notebooks and its documents"
    root: Path = ROOT
    package: str = PACKAGE
    lazy_allowed: dict = field(default_factory=lambda: LAZY_ALLOWED)
    long_allowed: dict = field(default_factory=lambda: LONG_ALLOWED)

    @property
    def nbs(self):
        "Return the folder of notebooks"
        return self.root/'nbs'

    @cached_property
    def modules(self):
        "Read the modules by dotted name, without nbdev's index"
        paths = [p for p in sorted((self.root/self.package).rglob('*.py')) if p.name != '_modidx.py']
        found = [Module(dotted(p.relative_to(self.root)), p, p.read_text(encoding='utf-8')) for p in paths]
        return {m.name: m for m in found}

    @cached_property
    def notebooks(self):
        "Read the notebooks by path"
        paths = [p for p in sorted(self.nbs.rglob('*.ipynb')) if is_page(p.relative_to(self.nbs))]
        return {p: Notebook(p, p.read_text(encoding='utf-8')) for p in paths}

    @cached_property
    def layers(self):
        "Map the first name below the package to the numbers of the notebook folders that export it"
        numbers = defaultdict(set)
        for path, notebook in self.notebooks.items():
            number = re.match(r'\d+(?=_)', path.relative_to(self.nbs).parts[0])
            if notebook.exports_to and number: numbers[notebook.exports_to.split('.')[0]].add(int(number[0]))
        return numbers

    def layer(self, name:str):
        "Return the layer of a module, or None where no numbered notebook exports it"
        parts = name.split('.')[1:]
        if not parts: return TOP
        if parts[0] in self.layers: return min(self.layers[parts[0]])
        return TOP if parts in (['all'], ['__main__']) else None

    @cached_property
    def imports(self):
        "List the imports of our own modules, those inside functions included"
        return [i for m in self.modules.values() for i in module_imports(m, self.modules)]

    def place(self, path, line=1):
        "Return `file:line` relative to the root"
        path = Path(path)
        return f'{path.relative_to(self.root) if path.is_absolute() else path}:{line}'

    def at(self, name:str, line=1):
        "Return the place of a line of a module"
        return self.place(self.modules[name].path, line)

    def in_cell(self, notebook, cell, position):
        "Return the place of a character of a cell"
        return self.place(notebook.path, f"cell {cell.number}:{cell.source.count(chr(10), 0, position) + 1}")


def is_page(path)->bool:
    "Tell whether a path below the notebook folder belongs to the book"
    return 'runs' not in path.parts and not any(p[0] in '._' for p in path.parts)


def dotted(path)->str:
    "Return the module name of a relative path"
    parts = path.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def is_private(name:str)->bool:
    "Tell whether a name starts with an underscore and is no dunder"
    return name.startswith('_') and not (name.startswith('__') and name.endswith('__'))


def bound(node)->list:
    "List the names that a statement binds"
    if isinstance(node, SCOPES): return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)): return [(a.asname or a.name).split('.')[0] for a in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
    return [n.id for t in targets if isinstance(t, ast.AST) for n in ast.walk(t) if isinstance(n, ast.Name)]


def scoped(node, scope=(), inside=False):
    "Yield `(node, names of enclosing scopes, inside a function)` for all nodes below `node`"
    for child in ast.iter_child_nodes(node):
        yield child, scope, inside
        below = (*scope, child.name) if isinstance(child, SCOPES) else scope
        yield from scoped(child, below, inside or isinstance(child, FUNCTIONS))


# %% Imports

def longest_known(name:str, modules):
    "Return the longest prefix of a dotted name that is one of our modules, or None"
    parts = name.split('.')
    prefixes = ['.'.join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((p for p in prefixes if p in modules), None)


def base_of(node, module)->str:
    "Return the absolute name of the module after `from`"
    if not node.level: return node.module
    parts = module.name.split('.')
    parts = parts[:len(parts) - node.level + module.is_package]
    return '.'.join([*parts, *([node.module] if node.module else [])])


def by_name(node):
    "Return the constant start of the name given to `import_module`, or None"
    named = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    if named not in ('import_module', '__import__') or not node.args: return None
    arg = node.args[0]
    if isinstance(arg, ast.JoinedStr): arg = arg.values[0]
    return arg.value if isinstance(arg, ast.Constant) and isinstance(arg.value, str) else None


def targets(node, module, modules)->set:
    "Collect our modules that a node imports"
    if isinstance(node, ast.Import): names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = base_of(node, module)
        # a dunder of a parent package, such as its version, is there before its modules run
        names = [f'{base}.{a.name}' for a in node.names if is_private(a.name) or not a.name.startswith('__')]
    elif isinstance(node, ast.Call): names = [(by_name(node) or '').rstrip('.')]
    else: return set()
    return {longest_known(n, modules) for n in names} - {None}


def module_imports(module, modules)->list:
    "List the imports of our own modules in one module"
    return [Import(module.name, t, node.lineno, '.'.join(scope) if inside else '')
            for node, scope, inside in module.nodes for t in sorted(targets(node, module, modules))]


def components(graph)->list:
    "List the strongly connected components with more than one node (Tarjan 1972)"
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in sorted(graph.get(node, ())):
            if to not in index: visit(to)
            if to in stack: low[node] = min(low[node], low[to])
        if low[node] == index[node]:
            start = stack.index(node)
            found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index: visit(node)
    return [c for c in found if len(c) > 1]


def check_cycles(project)->list:
    "Find import cycles between modules"
    graph = defaultdict(set)
    for i in project.imports:
        if i.source != i.target: graph[i.source].add(i.target)
    problems = []
    for names in components(graph):
        edges = [i for i in project.imports if i.source in names and i.target in names and i.source != i.target]
        said = ', '.join(f'{s} -> {t}' for s, t in sorted({(i.source, i.target) for i in edges}))
        first = min(edges)
        problems.append(Problem(project.at(first.source, first.line), f'cycle of {len(names)} modules: {said}'))
    return problems


def check_layers(project)->list:
    "Find imports of a higher layer, and modules without a layer"
    problems = [Problem(project.at(m), f'{m} has no layer: no numbered notebook exports it')
                for m in project.modules if project.layer(m) is None]
    problems += [Problem(project.place(project.nbs), f'{name} comes from folders {sorted(numbers)}, not one')
                 for name, numbers in project.layers.items() if len(numbers) > 1]
    for i in project.imports:
        low, high = project.layer(i.source), project.layer(i.target)
        if low is not None and high is not None and low < high:
            problems.append(
                Problem(project.at(i.source, i.line), f'{i.source} imports {i.target} from a higher layer')
            )
    return problems


def aliases(module, modules)->dict:
    "Map names of a module to those of our modules that they stand for"
    found = {}
    for node, _, _ in module.nodes:
        if isinstance(node, ast.Import):
            for a in node.names:
                found[a.asname or a.name.split('.')[0]] = a.name if a.asname else a.name.split('.')[0]
        if isinstance(node, ast.ImportFrom):
            for a in node.names:
                found[a.asname or a.name] = f'{base_of(node, module)}.{a.name}'
    return {k: v for k, v in found.items() if v in modules}


def dotted_expression(node, known)->str:
    "Return the absolute name of `a.b.c`, its first part looked up in `known`; '' for other expressions"
    if isinstance(node, ast.Name): return known.get(node.id, '')
    if not isinstance(node, ast.Attribute): return ''
    base = dotted_expression(node.value, known)
    return base and f'{base}.{node.attr}'


def private_uses(module, modules):
    "Yield `(line, name)` of private names of other modules"
    known = aliases(module, modules)
    for node, _, _ in module.nodes:
        if isinstance(node, ast.ImportFrom) and longest_known(base_of(node, module), modules):
            yield from ((node.lineno, f'{base_of(node, module)}.{a.name}') for a in node.names if is_private(a.name))
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = dotted_expression(node.value, known)
            if owner in modules and owner != module.name: yield node.lineno, f'{owner}.{node.attr}'


def check_private(project)->list:
    "Find private names imported from or accessed on other modules, or exported"
    problems = []
    for m in project.modules.values():
        problems += [Problem(project.at(m.name, line), f'private name {name} of another module')
                     for line, name in private_uses(m, project.modules)]
        problems += [Problem(project.at(m.name), f'private name {n} in __all__') for n in m.exported if is_private(n)]
    return problems


def lazy_imports(project)->list:
    "List the imports of our own modules inside functions"
    return [i for i in project.imports if i.function]


def check_lazy(project)->list:
    "Find lazy imports that are not excused, or too many of them, and excuses that are no longer needed"
    lazy = lazy_imports(project)
    used = {f'{i.source}:{i.function}' for i in lazy}
    problems = [Problem(project.at(i.source, i.line), f'{i.source}:{i.function} imports {i.target} inside a function')
                for i in lazy if f'{i.source}:{i.function}' not in project.lazy_allowed]
    problems += stale(project.lazy_allowed, used, 'LAZY_ALLOWED')
    if len(lazy) > MAX_LAZY:
        problems.append(Problem('tools/structure.py:1', f'{len(lazy)} lazy imports, at most {MAX_LAZY}'))
    return problems


def stale(allowed, used, table)->list:
    "Find entries of a table of exceptions that are not needed, or have no reason"
    said = [f'{table}: {k} is not needed any more' for k in allowed if k not in used]
    said += [f'{table}: {k} has no reason' for k, reason in allowed.items() if not reason]
    return [Problem('tools/structure.py:1', what) for what in said]


def check_registries(project)->list:
    "Find `registry.lazy(name, 'module:attribute')` whose target does not exist"
    problems = []
    for m in project.modules.values():
        for node, _, _ in m.nodes:
            target = lazy_target(node)
            if target and target.startswith(f'{project.package}.') and not exists(target.replace(':', '.'), project):
                problems.append(Problem(project.at(m.name, node.lineno), f'lazy entry {target} does not exist'))
    return problems


def lazy_target(node):
    "Return the 'module:attribute' of a `registry.lazy` call, or None"
    if not isinstance(node, ast.Call) or getattr(node.func, 'attr', '') != 'lazy' or len(node.args) < 2: return None
    value = getattr(node.args[1], 'value', None)
    return value if isinstance(value, str) and ':' in value else None


def exists(name:str, project)->bool:
    "Tell whether a dotted name is one of our modules or defined in one"
    module = longest_known(name, project.modules)
    rest = name[len(module) + 1:].split('.') if module else []
    return bool(module) and (rest in ([], ['']) or rest[0] in project.modules[module].defined)


# %% Width

@dataclass
class Width:
    "Counts over code lines"
    lines: int = 0        # lines that are neither blank nor only a comment
    characters: int = 0   # with indentation and trailing comments
    over_120: int = 0
    over_160: int = 0
    joined: int = 0       # statements that begin on the line where their neighbour ends

    def add(self, text:str):
        "Add the code of a file or cell"
        lengths = [len(line) for _, line in code_lines(text)]
        self.lines += len(lengths)
        self.characters += sum(lengths)
        self.over_120 += sum(n > 120 for n in lengths)
        self.over_160 += sum(n > 160 for n in lengths)
        self.joined += len(joined_lines(text))
        return self

    @property
    def mean(self):
        "Return the characters a line"
        return self.characters/max(self.lines, 1)

    def percent(self, count):
        "Return a count per 100 lines"
        return 100*count/max(self.lines, 1)


def code_lines(text:str)->list:
    "List `(number, line)` without blank lines and comment lines"
    return [(i, line) for i, line in enumerate(text.split('\n'), 1)
            if line.strip() and not line.lstrip().startswith('#')]


def without_magics(text:str)->str:
    "Replace the magics and shell commands of a notebook cell, so that Python can parse it"
    if text.lstrip().startswith('%%'): return ''
    return re.sub(r'^( *)[%!].*', r'\1pass', text, flags=re.M)


def bodies(node):
    "Yield the lists of statements at and below a node"
    for name in ('body', 'orelse', 'finalbody'):
        body = getattr(node, name, None)
        if body: yield body
    for name in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
        for child in getattr(node, name, ()): yield from bodies(child)


def joined_lines(text:str)->list:
    "List the lines on which a second statement of the same body begins"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    return [b.lineno for body in bodies(tree) for a, b in zip(body, body[1:]) if a.end_lineno == b.lineno]


def width_of(texts)->Width:
    "Measure the code of several files or cells"
    width = Width()
    for text in texts: width.add(text)
    return width


def notebook_code(project)->list:
    "List `(notebook, cell, code)` of all code cells"
    return [(n, c, without_magics(c.source)) for n in project.notebooks.values() for c in n.cells if c.kind == 'code']


def package_texts(folder)->list:
    "List the sources of a package"
    return [p.read_text(encoding='utf-8') for p in sorted(folder.rglob('*.py')) if p.name != '_modidx.py']


def check_width(project)->list:
    "Find widths over the limits, in the package and in the code of the notebooks"
    cells = notebook_code(project)
    problems = over_limits(project.package, width_of(m.text for m in project.modules.values()))
    problems += over_limits('nbs', width_of(code for _, _, code in cells))
    for m in project.modules.values():
        problems += too_wide(m.text, project.place(m.path, ''))
    for n, c, code in cells:
        problems += too_wide(code, project.place(n.path, f'cell {c.number}:'))
    return problems


def over_limits(where:str, width)->list:
    "Find the limits that a measured width exceeds"
    said = [(width.mean, MAX_MEAN, 'characters a code line'),
            (width.percent(width.over_120), MAX_OVER_120, '% of code lines over 120 characters'),
            (width.percent(width.joined), MAX_JOINED, 'joined statements per 100 code lines')]
    return [Problem(f'{where}:1', f'{value:.1f} {what}, at most {limit}')
            for value, limit, what in said if value > limit]


def too_wide(text:str, place:str)->list:
    "Find the lines over 160 characters"
    return [Problem(f'{place}{i}', f'{len(line)} characters, at most 160')
            for i, line in code_lines(text) if len(line) > 160]


# %% Functions

def docstrings(module)->set:
    "Collect the positions of the docstrings of functions and classes"
    firsts = [n.body[0] for n, _, _ in module.nodes if isinstance(n, SCOPES) and isinstance(n.body[0], ast.Expr)]
    return {(e.lineno, e.col_offset) for e in firsts if isinstance(getattr(e.value, 'value', None), str)}


def token_lines(module)->dict:
    "Map line numbers to the tokens that start there, comments and docstrings left out"
    found, dropped = defaultdict(list), docstrings(module)
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skip and token.start not in dropped: found[token.start[0]].append(token)
    return found


def token_length(tokens)->int:
    "Count the characters of the tokens of a line and of the gaps between them"
    gaps = sum(max(b.start[1] - a.end[1], 0) for a, b in zip(tokens, tokens[1:]))
    return gaps + sum(string_length(t.string) for t in tokens)


def string_length(text:str)->int:
    "Count the characters of a token; a string of several lines counts without indentation"
    return sum(len(line.strip()) for line in text.split('\n')) if '\n' in text else len(text)


def code_length(function, tokens)->int:
    "Count the characters of a function without docstrings, comments, indentation and line breaks"
    lines = [tokens.get(i) for i in range(function.lineno, function.end_lineno + 1)]
    return sum(token_length(line) for line in lines if line)


def functions(module)->list:
    "List `(node, qualified name)` of the functions and methods of a module"
    return [(n, '.'.join([*scope, n.name])) for n, scope, _ in module.nodes if isinstance(n, FUNCTIONS)]


def long_functions(module)->list:
    "List `(node, 'module:function', characters)` of the functions over the limit"
    tokens = token_lines(module)
    lengths = [(n, f'{module.name}:{name}', code_length(n, tokens)) for n, name in functions(module)]
    return [x for x in lengths if x[2] > MAX_FUNCTION]


def check_functions(project)->list:
    "Find functions that are too long and not excused"
    found = [(m, *x) for m in project.modules.values() for x in long_functions(m)]
    problems = [Problem(project.at(m.name, n.lineno), f'{key} has {size:,} characters, at most {MAX_FUNCTION:,}')
                for m, n, key, size in found if key not in project.long_allowed]
    return problems + stale(project.long_allowed, {key for _, _, key, _ in found}, 'LONG_ALLOWED')


def parameters(function)->int:
    "Count the named parameters of a function"
    a = function.args
    return len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)


# %% Sizes and names

def check_sizes(project)->list:
    "Find modules with too many lines and folders with too many modules"
    counts = {m: len(m.text.splitlines()) for m in project.modules.values()}
    problems = [Problem(project.place(m.path, n), f'{n} lines, at most {MAX_LINES}')
                for m, n in counts.items() if n > MAX_LINES]
    folders = Counter(m.path.parent for m in counts if not m.path.name.startswith('__'))
    return problems + [Problem(project.place(f), f'{n} modules, at most {MAX_MODULES}')
                       for f, n in sorted(folders.items()) if n > MAX_MODULES]


def check_names(project)->list:
    "Find public names that two modules export; hand-written modules only collect names"
    homes = defaultdict(list)
    for m in project.modules.values():
        if m.is_package or project.layer(m.name) == TOP: continue
        for name in m.exported: homes[name].append(m.name)
    return [Problem(project.at(where[-1]), f"{name} is exported by {' and '.join(where)}")
            for name, where in sorted(homes.items()) if len(where) > 1]


# %% References

LINK = re.compile(r'\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?![a-z]+:)([^()\s#]+\.ipynb)(#[^()\s]*)?\)')
PAGE = re.compile(r'(?<!\]\()(?<![\w./#:-])(`?)([\w./]*(?<![\w.])\d\d_[a-z]\w*(?:\.ipynb)?)\1(?![\w/])')
NEXT = re.compile(r'\bNext(?: \w+)?: *')
LIST_HEAD = re.compile(r'\s*(?:[-*]|\d+\.|\|)\s*(?:\[[^\]]*\]\([^)]*\)(?:,| and|, and)? *)*')
DOTTED = re.compile(r'(?<![\w/@.-])PACKAGE((?:\.[A-Za-z_]\w*)+)(?![\w/-])')
FILE_ENDINGS = {'py', 'css', 'js', 'png', 'svg', 'egg', 'html', 'toml', 'ini', 'log', 'json'}


def prose(notebook):
    "Yield `(cell, text)` of the markdown cells; fenced code becomes empty lines"
    for cell in notebook.cells:
        if cell.kind == 'markdown':
            yield cell, re.sub(r'```.*?```', lambda m: '\n'*m[0].count('\n'), cell.source, flags=re.S)


def target_of(notebook, match, project):
    "Return the notebook that a link points at, or None"
    return project.notebooks.get(Path(os.path.normpath(notebook.path.parent/match[2])))


def shows_title(notebook, match)->bool:
    "Tell whether a link stands where its text must be the title: after `Next:`, in an index list, for a file name"
    before = match.string[:match.start()].rpartition('\n')[2]
    if re.search(NEXT.pattern + '$', before) or re.fullmatch(r'`\d\d_\w+`', match[1]): return True
    return notebook.path.name == 'index.ipynb' and bool(LIST_HEAD.fullmatch(before))


def link_problem(notebook, match, project):
    "Return what is wrong with a link, or None"
    target = target_of(notebook, match, project)
    if target is None: return f'link to {match[2]}, which does not exist'
    if match[1] == target.title: return None
    if shows_title(notebook, match): return f"link text '{match[1]}' is not the title '{target.title}'"
    titles = {n.title.casefold() for n in project.notebooks.values()}
    if match[1].casefold() in titles - {target.title.casefold()}:
        return f"link text '{match[1]}' is the title of another page; this one is '{target.title}'"
    return None


def names_page(match, project)->bool:
    "Tell whether a typed name looks like a notebook or a folder of notebooks"
    first = match[2].split('/')[0]
    return first in ('nbs', '.', '..') or bool(re.match(r'\d\d_', first)) or (project.nbs/first).is_dir()


def check_links(project)->list:
    "Find lost links between notebooks, link texts that are not titles, and page names that are typed"
    problems = []
    for notebook in project.notebooks.values():
        for cell, text in prose(notebook):
            found = [(m, link_problem(notebook, m, project)) for m in LINK.finditer(text)]
            unlinked = LINK.sub(lambda m: '_'*len(m[0]), text)
            found += [(m, f'{m[2]} is typed: link it') for m in PAGE.finditer(unlinked) if names_page(m, project)]
            found += [(m, "'Next:' without a link") for m in NEXT.finditer(text) if not next_link(m)]
            problems += [Problem(project.in_cell(notebook, cell, m.start()), what) for m, what in found if what]
    return problems


def next_link(match)->bool:
    "Tell whether the paragraph after `Next:` has a link to a notebook, or a typed name, which is reported by itself"
    paragraph = match.string[match.start():].partition('\n\n')[0]
    return bool(LINK.search(paragraph) or PAGE.search(paragraph))


def check_mentions(project)->list:
    "Find dotted names of our modules, in prose and documents, that do not exist"
    pattern = re.compile(DOTTED.pattern.replace('PACKAGE', project.package))
    found = [(project.in_cell(n, c, m.start()), m) for n in project.notebooks.values()
             for c, text in prose(n) for m in pattern.finditer(text)]
    for path in documents(project):
        text = path.read_text(encoding='utf-8')
        found += [(project.place(path, text.count('\n', 0, m.start()) + 1), m) for m in pattern.finditer(text)]
    return [Problem(place, f'{m[0]} does not exist') for place, m in found
            if m[1][1:].split('.')[0] not in FILE_ENDINGS and not exists(m[0], project)]


def documents(project)->list:
    "List the documents outside the notebooks; the changelog names what was"
    endings = {'.md', '.rst', '.txt', '.py', '.html'}
    pages = [p for p in sorted((project.root/'docs').rglob('*')) if p.suffix in endings]
    return pages + [p for p in sorted(project.root.glob('*.md')) if p.name != 'CHANGELOG.md']


def find_page(notebook, name:str, project):
    "Return the notebook that a typed name means, whatever its number, or None"
    wanted = re.sub(r'^\d+_', '', name.removesuffix('.ipynb').split('/')[-1])
    pages = [n for p, n in project.notebooks.items() if wanted == re.sub(r'^\d+_', '', p.stem)
             or p.name == 'index.ipynb' and wanted == re.sub(r'^\d+_', '', p.parent.name)]
    near = [n for n in pages if n.path.parent == notebook.path.parent]
    return near[0] if len(near) == 1 else pages[0] if len(pages) == 1 else None


def fixed_links(notebook, text:str, project)->str:
    "Return prose whose links show titles and whose typed page names are links"
    def retitle(m):
        target = target_of(notebook, m, project)
        return f'[{target.title}]({m[2]}{m[3] or ""})' if target and shows_title(notebook, m) else m[0]

    def link(m):
        page = find_page(notebook, m[2], project) if names_page(m, project) else None
        return (
            f'[{page.title}]({Path(os.path.relpath(page.path, notebook.path.parent)).as_posix()})' if page else m[0]
        )

    parts = re.split(r'(```.*?```)', text, flags=re.S)
    parts[::2] = [outside_links(PAGE, link, LINK.sub(retitle, p)) for p in parts[::2]]
    return ''.join(parts)


def outside_links(pattern, replace, text:str)->str:
    "Substitute a pattern outside links"
    made, end = [], 0
    for m in LINK.finditer(text):
        made += [pattern.sub(replace, text[end:m.start()]), m[0]]
        end = m.end()
    return ''.join([*made, pattern.sub(replace, text[end:])])


def fix_links(project)->list:
    "Rewrite the links of all notebooks and return the paths of those that changed"
    changed = []
    for path, notebook in project.notebooks.items():
        raw = json.loads(notebook.text)
        for cell in raw['cells']:
            if cell['cell_type'] == 'markdown':
                cell['source'] = fixed_links(notebook, ''.join(cell['source']), project).splitlines(keepends=True)
        text = json.dumps(raw, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
        if text == notebook.text: continue
        path.write_text(text, encoding='utf-8')
        changed.append(path)
    return changed


# %% Command line

CHECKS = dict(cycles=check_cycles, layers=check_layers, private=check_private, lazy=check_lazy,
              registries=check_registries, width=check_width, functions=check_functions, sizes=check_sizes,
              names=check_names, links=check_links, mentions=check_mentions)


def library_folder(name:str):
    "Return the folder of an installed package, or None"
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec else None


def row(name:str, texts)->str:
    "Return the row of the table for one body of code"
    w = width_of(texts)
    shares = [w.percent(n) for n in (w.over_120, w.over_160, w.joined)]
    return f'{name:<16}{w.lines:>8}{w.mean:>12.0f}' + ''.join(f'{s:>10.1f}' for s in shares)


def table(project=None)->str:
    "Return the width of our code beside that of installed libraries"
    project = project or Project()
    head = f"{'code':<16}{'lines':>8}{'chars/line':>12}{'>120 %':>10}{'>160 %':>10}{'joined %':>10}"
    rows = [head, row(project.package, [m.text for m in project.modules.values()]),
            row('notebooks', [code for _, _, code in notebook_code(project)])]
    folders = {name: library_folder(name) for name in LIBRARIES}
    rows += [row(name, package_texts(folder)) for name, folder in folders.items() if folder]
    everything = [n for m in project.modules.values() for n, _ in functions(m)]
    many = sum(parameters(n) > MAX_PARAMETERS for n in everything)
    rows.append(f'{len(everything)} functions, {many} of them with more than {MAX_PARAMETERS} parameters; '
                f'{len(lazy_imports(project))} lazy imports')
    return '\n'.join(rows)


def main()->int:
    "Run the command line and return the exit code"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kinds', nargs='*', metavar='kind', help=f"checks to run: {', '.join(CHECKS)}; none: all")
    parser.add_argument('--table', action='store_true', help='print the width table as well')
    parser.add_argument('--fix-links', action='store_true', help="make titles of link texts and links of page names")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(CHECKS): parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.fix_links:
        for path in fix_links(Project()):
            print(f'changed {path.relative_to(ROOT)}')
    project = Project()
    if options.table: print(table(project))
    problems = {kind: CHECKS[kind](project) for kind in options.kinds or CHECKS}
    for found in problems.values():
        print(*found, sep='\n', end='\n' if found else '')
    said = ', '.join(f'{len(found)} {kind}' for kind, found in problems.items() if found)
    print(f'structure: {said or "no problems"}', file=sys.stderr)
    return int(bool(said))


if __name__ == '__main__': sys.exit(main())
