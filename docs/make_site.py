"""Build the site into `_docs/`: nbdev processes the notebooks, Sphinx lays them out in the order `_quarto.yml` gives.

nbdev runs the exported cells and the imports of every notebook and lets `show_doc` write the API;
what it leaves in `_proc/` is Quarto's dialect. This file turns that into the dialect of MyST, page by page, and runs
Sphinx, whose warnings are errors: a link that leads nowhere fails the build.
`python docs/make_site.py 02_models/06_decoder.ipynb` builds only what changed pages alter, after a whole build."""
import ast
import inspect
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore import docments
from fastcore.parallel import parallel
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults, exec_show_docs

ROOT = Path(__file__).resolve().parents[1]
NBS, PROC = ROOT/'nbs', ROOT/'_proc'
SITE, OUT = PROC/'site', ROOT/'_docs'
CFG = get_config(path=ROOT)
SITE_URL = CFG.doc_host.rstrip('/') + '/' + CFG.doc_baseurl.strip('/') + '/'
BLOB_URL = f'{CFG.git_url}/blob/{CFG.branch}/'

class Section(NamedTuple):
    "A part of the sidebar"
    title: str
    href: str|None    # its first page; None: a caption
    contents: list    # pages and sections

def section(entry):
    "Read an entry of the sidebar: a page, or a section"
    if isinstance(entry, str): return entry
    return Section(entry['section'], entry.get('href'), [section(o) for o in entry['contents']])

def contents()->list:
    "Entries of the sidebar"
    side = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    return [section(o) for o in side]

def walk(entries):
    "Yield every page in reading order and every section after its first page"
    for o in entries:
        if isinstance(o, str):
            yield o
            continue
        if o.href: yield o.href
        yield o
        yield from walk(o.contents)

def pages()->list[str]:
    "Every page in reading order, relative to `nbs/`"
    return [o for o in walk(contents()) if isinstance(o, str)]

CORE = 'core_path/index.ipynb'

def core_path()->list[str]:
    "Pages of the core path in their order"
    return next(o.contents for o in walk(contents()) if isinstance(o, Section) and o.href == CORE)

def docname(page)->str: # '01_data/02_tokenizers.ipynb' -> '01_data/tokenizers', the address nbdev's links use
    "Where a page stands on the site"
    folder, name = posixpath.split(page)
    return posixpath.join(folder, re.sub(r'^\d+[a-zA-Z0-9]*_', '', name.lower()).removesuffix('.ipynb'))

def slug(title)->str: # `Registry.build` stands at #registry.build
    "The anchor nbdev's links use for a heading"
    return title.strip().lower().replace(' ', '-')

# --- nbdev's own processing

SHOWS = {'export', 'exports', 'exporti', 'exec_doc'}

def shows(cell): return SHOWS & cell.directives_.keys() or re.search(r'^show_doc\(', cell.source or '', re.M)

class exec_docs(exec_show_docs):
    "As nbdev does, but of a cell that exports nothing only the imports run"
    def __call__(self, cell):
        if cell.cell_type != 'code' or shows(cell): return super().__call__(cell)
        if not self.nb.has_docs_ or cell.directives_.get('eval:', [''])[0].lower() == 'false': return
        imports = [t for t in cell.parsed_() or [] if isinstance(t, (ast.Import, ast.ImportFrom))]
        if imports: self.k.run_cell('\n'.join(map(ast.unparse, imports)))

class Filter(FilterDefaults):
    def base_procs(self): return [exec_docs if p is exec_show_docs else p for p in super().base_procs()]

def signature(o, **kwargs):
    "A signature whose annotations stay as written when they cannot be evaluated here, as in `transformers`"
    try:
        return inspect.signature(o, **kwargs)
    except NameError:
        return inspect.signature(o)

SECTION = re.compile(r'^(Parameters|Returns):\n((?: +.*(?:\n|$))+)', re.M)
parse_docstring = docments.parse_docstring

def sections(o):
    "A parsed docstring with the comments that `tools/export.py` moved there; those of `__init__` stand in the class"
    parsed = parse_docstring(o)
    if not (getattr(o, '__module__', None) or '').startswith(CFG.lib_name): return parsed
    doc = inspect.getdoc(o) or ''
    if inspect.isfunction(o) and o.__name__ == '__init__' and not o.__doc__:
        doc = inspect.getdoc(vars(sys.modules[o.__module__]).get(o.__qualname__.partition('.')[0])) or ''
    found = {k: re.sub(r'\n {5,}', ' ', v) for k, v in SECTION.findall(doc)}
    for names, comment in re.findall(r'^ {4}([\w, ]+): (.*)', found.get('Parameters', ''), re.M):
        for n in names.split(', '): parsed['Parameters'].setdefault(n, SimpleNamespace(desc=[comment]))
    if 'Returns' in found: parsed['Returns'] = SimpleNamespace(desc=[found['Returns'].strip()])
    return parsed

def split_title(nb):
    "Title and quote in a cell of their own: nbdev makes them the page's head and drops what else their cell holds"
    first = next(c for c in nb.cells if c.cell_type == 'markdown')
    head, rest = re.match(r'(\s*# [^\n]*\n*(?:> [^\n]*(?:\n|$))*)(.*)', first.source, re.S).groups()
    first.source = head.strip()
    if rest.strip(): nb.cells.insert(nb.cells.index(first)+1, mk_cell(rest.strip(), 'markdown'))
    for i, c in enumerate(nb.cells): c.idx_ = i
    return first.source

def process(page):
    "What nbdev makes of a notebook: links, the API where something is exported, nothing hidden"
    docments.signature,docments.parse_docstring = signature,sections
    (PROC/page).parent.mkdir(parents=True, exist_ok=True)
    nb = read_nb(NBS/page)
    head = split_title(nb)
    Filter()(nb)
    nb.cells.insert(0, mk_cell(NbdevLookup().linkify(head), 'markdown'))
    write_nb(nb, PROC/page)

# --- from Quarto's dialect to MyST's

FENCE = re.compile(r'^(```.*?^```[^\n]*$)', re.M | re.S)
LINK = re.compile(r'(?<=\]\()([^)\s]+)(?=\))')
LINKED_CODE = re.compile(r'\[(`[^`\n]+`)\]\([^)\s]*\)') # nbdev links names in comments of a signature too
SOURCE = re.compile(r'\[source\]\(([^)]*)\)\{[^}]*\}')
STATIC = re.compile(r'(?<=src=")\.\./docs/static/|(?<=srcset=")\.\./docs/static/') # pictures of the front page
CALLOUT = {'note': 'note', 'tip': 'tip', 'warning': 'warning', 'important': 'important', 'caution': 'caution'}

def relink(page):
    "A function that leads the links of `page` to pages of this site, and those to other files to the repository"
    def one(m):
        to, at, anchor = m[1].partition('#')
        if m[1].startswith(SITE_URL):
            return '/' + to.removeprefix(SITE_URL).removesuffix('.html') + '.ipynb' + at + anchor
        if not to or re.match(r'[a-z]+:', to): return m[1]
        path = posixpath.normpath(posixpath.join('nbs', posixpath.dirname(page), to))
        if path.endswith('.ipynb') and path.startswith('nbs/'):
            return '/' + docname(path.removeprefix('nbs/')) + '.ipynb' + at + anchor
        return m[1] if re.search(r'\.(png|svg|jpg|gif)$', to) else BLOB_URL + path
    return one

def div(m):
    "A Quarto div: callouts become admonitions, the others only their content"
    kind = re.search(r'callout-(\w+)', m[2])
    return f'{m[1]}{{{CALLOUT.get(kind[1], "note")}}}' if kind else ''

def to_myst(text, page)->str:
    "Markdown as MyST reads it"
    parts = FENCE.split(text)
    parts[1::2] = [LINKED_CODE.sub(r'\1', p) for p in parts[1::2]] # fenced code
    for i in range(0, len(parts), 2):
        s = re.sub(r'\{\{<.*?>\}\}', '', parts[i])
        s = re.sub(r'^(:::+) *(\S.*)$', div, s, flags=re.M)
        if '{' not in ''.join(re.findall(r'^:::.*$', s, re.M)): s = re.sub(r'^:::+ *$', '', s, flags=re.M)
        s = SOURCE.sub(r'<a class="source" href="\1">source</a>', s)
        s = STATIC.sub('_static/', s)
        parts[i] = LINK.sub(relink(page), s)
    return ''.join(parts)

def directives(source)->tuple[dict, str]:
    "Leading `#| key: value` lines of a code cell, and the code without them"
    lines = source.split('\n')
    found = {}
    while lines and (m := re.match(r'\s*#\|\s*([\w-]+):?\s*(.*)', lines[0])):
        found[m[1]] = m[2]
        lines.pop(0)
    return found, '\n'.join(lines)

def markdown(source, page): return dict(cell_type='markdown', metadata={}, source=to_myst(source, page))

def api(cell)->str: # what `show_doc` printed, without the rule in front
    text = next((o['data']['text/markdown'] for o in cell['outputs'] if 'text/markdown' in o.get('data', {})), '')
    return ''.join(text).removeprefix('---\n').strip()

SHOWN = re.compile(r'show_doc\(\s*([\w.]+)')

def defined(source):
    "Yield the names that an exported cell defines; a patched method with the name of its class"
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): yield node.name
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        args = [*node.args.posonlyargs, *node.args.args]
        if not any(ast.unparse(d).startswith('patch') for d in node.decorator_list) or not args:
            yield node.name
        elif args[0].annotation:
            for owner in ast.unparse(args[0].annotation).split('|'): yield f'{owner.strip()}.{node.name}'

def exported_code(page)->dict:
    "Map each name that a notebook exports to the code of its cell, without directives"
    found = {}
    for cell in read_nb(NBS/page).cells:
        if cell.cell_type != 'code': continue
        keys, code = directives(cell.source)
        if {'export', 'exports', 'exporti'} & keys.keys():
            found |= dict.fromkeys(defined(code), code.strip())
    return found

def with_code(entries, codes, unfolded=False)->list:
    "Append to signatures `(name, text)` the code of their cells; a cell of several names stands under the last"
    last = {codes[name]: i for i, (name, _) in enumerate(entries) if name in codes}
    state = ' open' if unfolded else ''
    folded = {i: f'\n\n<details class="code"{state}><summary>Code</summary>\n\n```python\n{code}\n```\n\n</details>\n'
              for code, i in last.items()}
    return [text + folded.get(i, '') for i, (_, text) in enumerate(entries)]

def line_number(text): return int((re.search(r'#L(\d+)', text) or [0, 0])[1])

LABEL = re.compile(r'''(?:set_|\b)(title|ylabel|xlabel)\s*[=(]\s*f?(['"])(.*?)\2''')

def plain(markdown)->str:
    "Prose without the signs of Markdown"
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', FENCE.sub('', markdown))
    return ' '.join(re.sub(r'[`*$#>|]', '', text).split())

def alt_text(code, before, asked='')->str: # `asked`: what `#| fig-alt` says; `before`: the Markdown above
    "Describe the figure that a cell draws: as it says itself, or by its labels and the sentence above it"
    if asked: return asked.strip('\'"')
    labels = {}
    for name, _, text in LABEL.findall(code): labels.setdefault(name, text)
    axes = ' against '.join(labels[k] for k in ('ylabel', 'xlabel') if labels.get(k))
    above = plain(before.strip().rpartition('\n\n')[2])
    sentence = re.split(r'(?<=[.?!:]) (?=[A-Z])', above)[-1]
    return '. '.join(t.rstrip('.:') for t in (labels.get('title'), axes, sentence) if t)

def named_drawings(output, alt):
    "Give the drawings of an HTML output that have no text of their own the one of their cell"
    data = output.get('data', {})
    if 'text/html' not in data: return output
    text = ''.join(data['text/html']).replace('aria-label=""', f'aria-label="{escape(alt)}"')
    return output | dict(data=data | {'text/html': text})

def convert_cells(cells, page, codes=None, unfolded=False):
    "Cells for MyST-NB; a run of `show_doc` cells comes in the order of the source, each with its code from `codes`"
    run, above = [], ''
    for cell in [*cells, None]:
        source = ''.join(cell['source']) if cell else ''
        if cell and cell['cell_type'] == 'code':
            found, code = directives(source)
            if code.startswith('show_doc'):
                run.append((SHOWN.match(code)[1], api(cell)))
                continue
        run.sort(key=lambda entry: line_number(entry[1]))
        for text in with_code(run, codes or {}, unfolded): yield markdown(text, page)
        run = []
        if not cell or cell['cell_type'] == 'raw' or source.startswith('<!-- WARNING: THIS FILE'): continue
        if cell['cell_type'] == 'markdown':
            above = source
            yield markdown(source, page)
            continue
        if found.get('include') == 'false' or not code.strip(): continue
        tags = [t for key, value, t in (('echo', 'false', 'remove-input'), ('output', 'false', 'remove-output'),
                                        ('code-fold', 'true', 'hide-input')) if found.get(key) == value]
        alt = alt_text(code, above, found.get('fig-alt', ''))
        yield dict(
            cell_type='code',
            metadata=dict(tags=tags, mystnb=dict(image=dict(alt=alt))),
            source=code,
            outputs=[named_drawings(o, alt) for o in cell.get('outputs', [])],
            execution_count=None,
        )

def toctree(entries, caption=None): # hidden: the sidebar shows it
    lines = ['/' + docname(o) if isinstance(o, str) else f'{o.title} </{docname(o.href)}>' for o in entries]
    options = [':hidden:', *([f':caption: {caption}'] if caption else [])]
    return '\n'.join(['```{toctree}', *options, '', *lines, '```'])

def parts(sections)->str: # the theme's sidebar shows either captions or none: each part has one
    "Toctrees of the front page, one for each part of the site, under its title"
    return '\n\n'.join(toctree([*filter(None, [o.href]), *o.contents], o.title) for o in sections)

def write_page(page, below):
    "Convert one processed notebook; `below` is the toctree of the pages that stand under it"
    nb = json.loads((PROC/page).read_text())
    cells = list(convert_cells(nb['cells'], page, exported_code(page), page in core_path()))
    if below: cells.append(dict(cell_type='markdown', metadata={}, source=below))
    out = SITE/(docname(page) + '.ipynb')
    out.parent.mkdir(parents=True, exist_ok=True)
    kernel = dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'))
    write_changed(out, json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=4)))

def write_changed(path, text):
    "Write a file whose text is new: Sphinx reads again what is younger than its last build"
    if not path.exists() or path.read_text() != text: path.write_text(text)

def shown_names(page)->list[str]:
    "Names whose signatures stand on a processed page"
    cells = [c for c in json.loads((PROC/page).read_text())['cells'] if SHOWN.search(''.join(c['source']))]
    return [m[1] for c in cells if (m := re.search(r'^#+ (\S+)', api(c), re.M))]

def api_page(names)->str:
    "The index of names by package, then alphabetically; `names` maps a page to the names it shows"
    # a heading `A.__call__` is read as bold, so its anchor has no underscores
    def link(page, name): return f'[`{name}`](/{docname(page)}.ipynb#{slug(name.replace("__", ""))})'
    lines = ['# API index', '', '> Every public name, by package and alphabetically.', '', '## By package', '']
    by_package = {}
    for page, found in names.items(): by_package.setdefault(posixpath.dirname(page) or 'lmnotes', {})[page] = found
    for package, found in by_package.items():
        if not any(found.values()): continue
        lines += ['### ' + re.sub(r'\d+_', '', package).replace('/', '.'), '']
        for p, ns in found.items():
            if not ns: continue
            module = posixpath.basename(docname(p))
            lines.append(f'- [{module}](/{docname(p)}.ipynb): ' + ', '.join(link(p, n) for n in ns))
        lines.append('')
    lines += ['## Alphabetically', '']
    everything = sorted({(n, p) for p, ns in names.items() for n in ns}, key=lambda o: (o[0].lower(), o))
    return '\n'.join(lines + [f'- {link(p, n)}' for n, p in everything]) + '\n'

def glossary_page()->str:
    "The terms that pages explain as hover text"
    terms = yaml.safe_load((ROOT/'docs/glossary.yml').read_text())
    lines = [f'- **{k}**: {v}.' for k, v in sorted(terms.items(), key=lambda o: o[0].lower())]
    return '\n'.join(['# Glossary', '', '> Words that the other pages use, each in a sentence.', '', *lines]) + '\n'

def main(changed=()): # pages of `nbs/`; none: all of them
    "Build the site, or after a whole build only what `changed` pages alter"
    if unknown := set(changed) - set(pages()): sys.exit(f'not in _quarto.yml: {", ".join(sorted(unknown))}')
    if not changed: shutil.rmtree(PROC, ignore_errors=True)
    os.environ['IN_TEST'] = '1' # nothing is exported meanwhile
    parallel(process, list(changed) or pages(), n_workers=2, method='spawn')
    front, *rest = contents()
    rest[-1].contents.extend(['glossary', 'api'])
    below = {front: parts(rest)}
    for part in rest: below |= {o.href: toctree(o.contents) for o in walk(part.contents) if isinstance(o, Section)}
    for p in pages(): write_page(p, below.get(p))
    write_changed(SITE/'api.md', api_page({p: shown_names(p) for p in pages()}))
    write_changed(SITE/'glossary.md', glossary_page())
    cmd = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html',
           '-c', ROOT/'docs', '-d', PROC/'doctrees', SITE, PROC/'html']
    code = subprocess.run(cmd, cwd=PROC).returncode
    if code: return code
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(PROC/'html', OUT)
    for p in pages(): shutil.copy(NBS/p, OUT/(docname(p) + '.ipynb'))
    print(f'the site: {(OUT/"index.html").as_uri()}')

if __name__ == '__main__':
    import make_site  # by its name, since the shells that run notebooks take the place of __main__
    sys.exit(make_site.main(sys.argv[1:]))
