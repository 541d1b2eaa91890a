"Sphinx settings; what the site holds and in which order is said in `_quarto.yml`"
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import yaml

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
    show_toc_level=2,
    show_prev_next=True,
    pygments_light_style='a11y-high-contrast-light',
    pygments_dark_style='a11y-high-contrast-dark',
)
html_sidebars = {'**': ['tree.html']}
html_static_path = ['static']
templates_path = ['templates']
html_css_files = ['lmnotes.css']
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

def setup(app): app.connect('build-finished', add_mathjax)
