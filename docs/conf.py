"Sphinx settings; what the site holds and in which order is said in `_quarto.yml`"
import html
import re
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import yaml
from docutils import nodes

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
website = yaml.safe_load((here.parent/'_quarto.yml').read_text())['website']

project = html_title = website['title']
copyright = website['page-footer']['center'].removeprefix('© ')
extensions = ['myst_nb', 'sphinx.ext.mathjax']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst' # tables that cells print as Markdown
myst_enable_extensions = ['amsmath', 'attrs_inline', 'colon_fence', 'dollarmath']
myst_dmath_double_inline = True
myst_heading_anchors = 4
myst_heading_slug_func = 'make_site.slug'
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
highlight_language = 'python'
exclude_patterns = []

html_theme = 'pydata_sphinx_theme'
html_theme_options = dict(
    logo=dict(text=website['title']),
    navbar_center=[],
    navbar_end=['search-button', 'theme-switcher'],
    navbar_persistent=[],
    secondary_sidebar_items=['page-toc'],
    footer_start=['copyright'],
    footer_end=[],
    article_header_start=[],
    article_header_end=['notebook.html'],
    show_toc_level=2,
    show_prev_next=True,
    pygments_light_style='a11y-high-contrast-light',
    pygments_dark_style='a11y-high-contrast-dark',
)
html_sidebars = {'**': ['tree.html']}
html_static_path = ['static']
templates_path = ['templates']
html_css_files = ['lmnotes.css']
html_js_files = ['copy.js']
html_favicon = 'static/favicon.svg'
html_search_scorer = str(here/'static/search.js')
html_show_sourcelink = False
html_copy_source = False

# Mathematics without a network: the package sphinx-mathjax-offline carries MathJax 3, of which two parts are enough.
mathjax_path = 'mathjax/tex-chtml.js'

def add_mathjax(app, exception):
    "Put MathJax and its fonts beside the pages"
    if exception: return
    source = Path(distribution('sphinx-mathjax-offline').locate_file('sphinx-mathjax-offline/static/mathjax'))
    target = Path(app.outdir)/'_static/mathjax'
    fonts = 'output/chtml/fonts/woff-v2'
    shutil.copytree(source/fonts, target/fonts, dirs_exist_ok=True)
    shutil.copy(source/'tex-chtml.js', target)

# --- the description of a page, and its terms

GLOSSARY = {str(k): v for k, v in yaml.safe_load((here/'glossary.yml').read_text()).items()}
TERM = re.compile(r'\b(' + '|'.join(map(re.escape, sorted(GLOSSARY, key=len, reverse=True))) + r')\b')
NOT_PROSE = (nodes.title, nodes.literal, nodes.literal_block, nodes.reference, nodes.math, nodes.math_block, nodes.raw)

def inside(node, kinds):
    "Tell whether a node stands in one of these kinds"
    while node := node.parent:
        if isinstance(node, kinds): return True
    return False

def explain(text, seen):
    "Split text where terms are used first, each with its meaning as hover text"
    parts, at = [], 0
    for m in TERM.finditer(text):
        if m[1] in seen: continue
        seen.add(m[1])
        meaning = html.escape(GLOSSARY[m[1]])
        parts += [nodes.Text(text[at:m.start()]),
                  nodes.raw('', f'<abbr title="{meaning}">{m[1]}</abbr>', format='html')]
        at = m.end()
    return parts and [*parts, nodes.Text(text[at:])]

def add_terms(app, doctree, docname):
    "Explain each term where a page uses it first"
    seen = set()
    if docname in ('api', 'glossary'): return
    for node in list(doctree.findall(nodes.Text)):
        if not isinstance(node.parent, nodes.paragraph) or inside(node, NOT_PROSE): continue
        if parts := explain(node.astext(), seen): node.parent.replace(node, parts)

def describe(app, pagename, templatename, context, doctree):
    "The quote under the title, or what the project is, is the description that search engines show"
    quote = doctree and next(doctree.findall(nodes.block_quote), None)
    text = ' '.join(quote.astext().split()) if quote else website['description']
    context['metatags'] = context.get('metatags', '') + f'<meta name="description" content="{html.escape(text)}">'

def setup(app):
    app.connect('build-finished', add_mathjax)
    app.connect('doctree-resolved', add_terms)
    app.connect('html-page-context', describe)
