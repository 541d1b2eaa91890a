"""README.md from `nbs/index.ipynb`: `python tools/readme.py` writes it, `python tools/readme.py --check` only compares.

nbdev's own `nbdev_readme` needs Quarto; a front page of prose and code needs twenty lines."""
import posixpath
import re
import sys
from pathlib import Path

from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parents[1]
# of Markdown, and of pictures in HTML
LINK = re.compile(r'(?<=\]\()([^)\s]+)(?=\))|(?<=src=")([^"]+)|(?<=srcset=")([^"]+)')
NOTE = '<!-- made from nbs/index.ipynb by tools/readme.py -->\n'

def relink(m):
    "Links of the notebook, seen from the top folder"
    to = m[0]
    return to if re.match(r'[a-z]+:|#', to) else posixpath.normpath(posixpath.join('nbs', to))

def output(o)->str:
    "What a code cell printed or returned, as text"
    data = o.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(o.get('text', data.get('text/plain', '')))
    return '\n'.join('    ' + l for l in text.rstrip().split('\n')) if text.strip() else ''

def block(cell)->str:
    "One cell as markdown"
    if cell.cell_type == 'markdown': return LINK.sub(relink, cell.source)
    if 'hide' in cell.directives_: return ''
    code = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M).strip()
    return '\n\n'.join([f'```python\n{code}\n```', *filter(None, map(output, cell.get('outputs', [])))])

def readme()->str:
    "The text of README.md"
    cells = NBProcessor(ROOT/'nbs/index.ipynb').nb.cells
    return NOTE + '\n' + '\n\n'.join(filter(None, map(block, cells))) + '\n'

if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit((ROOT/'README.md').read_text(encoding='utf-8') != readme())
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
