"The translation of nbdev's pages for Sphinx; building the whole site is `make docs`"
import importlib.util
import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip('nbdev')

@pytest.fixture(scope='module')
def site():
    spec = importlib.util.spec_from_file_location('make_site', ROOT/'docs/make_site.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_pages_stand_where_nbdev_links_to(site):
    assert site.docname('00_core.ipynb') == 'core'
    assert site.docname('06_training/07_learner.ipynb') == '06_training/learner'

def test_links_stay_on_the_site(site):
    page = '06_training/07_learner.ipynb'
    assert site.to_myst(f'[`f`]({site.SITE_URL}core.html#f)', page) == '[`f`](/core.ipynb#f)'
    assert (
        site.to_myst('[on](03_optimizers.ipynb#muon), [up](../00_core.ipynb)', page)
        == '[on](/06_training/optimizers.ipynb#muon), [up](/core.ipynb)'
    )
    assert site.to_myst('[out](https://example.org/a.ipynb)', page) == '[out](https://example.org/a.ipynb)'
    assert site.to_myst('[how](../../CONTRIBUTING.md)', page) == f'[how]({site.BLOB_URL}CONTRIBUTING.md)'

def test_no_quarto_leaks(site):
    text = ':::{.callout-note}\nmind\n:::\n\n::: {.border}\nplain\n:::\n\n{{< include x >}}'
    out = site.to_myst(text, 'index.ipynb')
    assert ':::{note}\nmind\n:::' in out and '{{<' not in out and '.border' not in out
    assert site.to_myst('```python\nx = "{{< kept >}}"\n```', 'index.ipynb') == '```python\nx = "{{< kept >}}"\n```'

def test_the_api_comes_in_the_order_of_the_source(site):
    def doc(name, line):
        return dict(
            cell_type='code',
            metadata={},
            source=f'#| echo: false\n#| output: asis\nshow_doc({name})',
            outputs=[
                dict(
                    output_type='execute_result',
                    data={
                        'text/markdown': [
                            '---\n',
                            '\n',
                            f'[source](http://x/y.py#L{line}){{target="_blank"}}\n\n### {name}\n',
                        ]
                    },
                )
            ],
        )
    out = list(site.convert_cells([doc('second', 20), doc('first', 10)], 'index.ipynb'))
    assert [c['source'].split('### ')[1] for c in out] == ['first', 'second']
    assert all(c['source'].startswith('<a class="source" href="http://x/y.py#L') for c in out)

def test_words_of_a_shell_command_are_no_names_of_ours():
    "A name in backticks becomes a link: `torchrun` must not lead to a helper"
    from lmnotes._modidx import d
    names = {name.removeprefix(f'{module}.') for module, found in d['syms'].items() for name in found}
    commands = {e.name for e in entry_points(group='console_scripts')}
    assert 'torchrun' in commands and 'build_model' in names
    assert not names & {*commands, 'learn', 'equal'}

def test_code_has_no_links(site):
    text = '```python\nx=None, # an [`LMCache`](https://example.org/a.html#b)\n```'
    assert site.to_myst(text, 'index.ipynb') == '```python\nx=None, # an `LMCache`\n```'

def test_the_code_of_a_cell_stands_once_under_its_last_signature(site):
    code = 'class A: pass\n@patch\ndef f(self:A): return 1'
    codes = dict.fromkeys(site.defined(code), code)
    assert list(codes) == ['A', 'A.f']
    first, second, other = site.with_code([('A', 'a'), ('A.f', 'f'), ('B', 'b')], codes)
    assert (first, other) == ('a', 'b')
    assert second.startswith('f\n') and second.count(code) == 1 and '<details class="code">' in second

def test_exported_code_leaves_out_directives(site):
    codes = site.exported_code('02_models/06_decoder.ipynb')
    assert codes['LM'].lstrip('@').count('class LM(') == 1 and not any('#| export' in c for c in codes.values())
    assert 'LM.generate' in codes

def test_the_index_lists_names_by_package_and_alphabetically(site):
    text = site.api_page({'00_core.ipynb': ['b'], '02_models/06_decoder.ipynb': ['LM', 'LM.generate']})
    packages, _, alphabet = text.partition('## Alphabetically')
    assert '### lmnotes' in packages and '### models' in packages
    assert alphabet.split('- ')[1:] == [
        '[`b`](/core.ipynb#b)\n',
        '[`LM`](/02_models/decoder.ipynb#lm)\n',
        '[`LM.generate`](/02_models/decoder.ipynb#lm.generate)\n',
    ]

def test_code_is_open_in_the_core_path_and_folded_in_the_reference(site):
    assert '<details class="code" open>' in site.with_code([('A', 'a')], {'A': 'class A: pass'}, unfolded=True)[0]
    assert '<details class="code">' in site.with_code([('A', 'a')], {'A': 'class A: pass'})[0]

def test_each_part_of_the_site_has_a_caption(site):
    inner = site.Section('B', '01_b/index.ipynb', ['01_b/01_x.ipynb'])
    tree = site.parts([site.Section('A', 'a/index.ipynb', ['00_a.ipynb']), site.Section('C', None, [inner])])
    first, second = tree.split('\n\n```{toctree}')
    assert ':caption: A' in first and '/a/index\n/a\n' in first
    assert ':caption: C' in second and 'B </01_b/index>' in second and '01_b/x' not in second

def test_every_figure_has_a_text_for_those_who_do_not_see_it(site):
    code = "ax.set(xlabel='steps', ylabel='loss')"
    assert site.alt_text(code, 'We train. Does the loss fall?') == 'loss against steps. Does the loss fall?'
    assert site.alt_text(code, '', "'two curves'") == 'two curves'
    figures = []
    for page in site.pages():
        cells = json.loads((site.NBS/page).read_text(encoding='utf-8'))['cells']
        cells = [c | dict(source=''.join(c['source'])) for c in cells if 'show_doc' not in ''.join(c['source'])]
        figures += [(page, c) for c in site.convert_cells(cells, page)
                    if any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))]
    assert len(figures) > 50
    mute = [page for page, c in figures if len(c['metadata']['mystnb']['image']['alt']) < 16]
    assert not mute, 'say `#| fig-alt:` in the cell, or above it what is to be seen'

def test_drawings_get_the_text_of_their_cell(site):
    bare, named = [dict(data={'text/html': f'<svg aria-label="{label}"></svg>'}) for label in ('', 'bars')]
    assert 'aria-label="a &lt; b"' in site.named_drawings(bare, 'a < b')['data']['text/html']
    assert site.named_drawings(named, 'other') == named

def page(body): return f'<title>t</title><meta name="description" content="d"><div class="bd-article">{body}</div>'

def test_the_crawl_finds_what_is_wrong(tmp_path):
    spec = importlib.util.spec_from_file_location('crawl', ROOT/'tools/crawl.py')
    crawl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crawl)
    (tmp_path/'b.html').write_text(page('<h2 id="here">b</h2>'))
    good = '<a href="b.html#here">b</a><pre>x</pre><img src="p.png" alt="a curve"><svg aria-label="bars"></svg>'
    (tmp_path/'a.html').write_text(page(good))
    assert crawl.crawl(tmp_path) == []
    bad = '<a href="c.html">c</a><a href="b.html#there">b</a><pre> </pre><pre>[`f`](x)</pre><img src="p.png">'
    (tmp_path/'a.html').write_text(page(bad + '<svg></svg>'))
    (tmp_path/'b.html').write_text('<div class="bd-article"></div>')
    found = crawl.crawl(tmp_path)
    for what in ('broken link: c.html', 'broken anchor: b.html#there', 'an empty cell', 'Markdown in code: [`f`](x)',
                 'no alt text: p.png', 'a drawing in SVG', 'b.html: no title', 'b.html: no description'):
        assert any(what in line for line in found), what

def test_terms_are_explained_once(monkeypatch):
    pytest.importorskip('sphinx')
    monkeypatch.syspath_prepend(ROOT/'docs')
    spec = importlib.util.spec_from_file_location('site_settings', ROOT/'docs/conf.py')
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    seen = set()
    parts = conf.explain('A seed, the same seed and seeds.', seen)
    assert ''.join(p.astext() for p in parts).count('<abbr') == 1 and seen == {'seed'}
    assert parts[-1].astext() == ', the same seed and seeds.'
    assert not conf.explain('no term of ours', seen)

def test_the_glossary_lists_every_term(site):
    text = site.glossary_page()
    assert '- **bits per byte**: Mean cost' in text and text.count('\n- **') > 20
