"""Check the built site: `python tools/crawl.py` reads `_docs/`, prints what is wrong and exits with 1 when anything is.

Links and anchors that lead nowhere, Markdown links inside code, empty cells, pictures without alt text,
pages without a title or a description."""
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

OUT = Path(__file__).resolve().parents[1]/'_docs'
RAW_LINK = re.compile(r'\[`[^`\n]+`\]\([^)\s]*\)')


def read(path):
    "Parse a page"
    return BeautifulSoup(path.read_text(encoding='utf-8'), 'lxml')


def anchors(page)->set:
    "Collect what a link may lead to on a page"
    return {o['id'] for o in page.find_all(id=True)} | {o['name'] for o in page.find_all('a', attrs={'name': True})}


def lost_links(path, page, targets):
    "Yield links of a page to files and anchors that are not there"
    for link in page.find_all('a', href=True):
        url = urlsplit(link['href'])
        if url.scheme or url.netloc: continue
        to = (path.parent/unquote(url.path)).resolve() if url.path else path
        if not to.exists():
            yield f"broken link: {link['href']}"
        elif url.fragment and to.suffix == '.html' and unquote(url.fragment) not in targets(to):
            yield f"broken anchor: {link['href']}"


def problems_in_content(page):
    "Yield what is wrong in the body and the head of a page"
    body = page.select_one('.bd-article')
    if not page.title or not page.title.text.strip(): yield 'no title'
    if not page.find('meta', attrs={'name': 'description'}): yield 'no description'
    if not body: return
    for code in body.find_all('pre'):
        if found := RAW_LINK.search(code.text): yield f'Markdown in code: {found[0]}'
        if not code.text.strip(): yield 'an empty cell'
    for picture in body.find_all('img'):
        if not (picture.get('alt') or '').strip(): yield f"no alt text: {picture.get('src', '')[:60]}"
    for drawing in body.find_all('svg'):
        if not (drawing.get('aria-label') or drawing.find('title') or drawing.get('aria-hidden')):
            yield 'no alt text: a drawing in SVG'


def crawl(out=OUT)->list:
    "List `page: problem` of all pages under `out`"
    paths = [p for p in sorted(out.resolve().rglob('*.html')) if '_static' not in p.parts]
    pages = {p: read(p) for p in paths}
    found = {p: anchors(page) for p, page in pages.items()}
    problems = []
    for path, page in pages.items():
        lines = [*lost_links(path, page, lambda to: found.get(to, set())), *problems_in_content(page)]
        problems += [f'{path.relative_to(out.resolve())}: {line}' for line in lines]
    return problems


def main():
    "Print the problems of the site"
    if not (OUT/'index.html').exists(): sys.exit('no site in _docs/: run `make docs`')
    problems = crawl()
    print('\n'.join(problems) or 'the site: no problems')
    return bool(problems)


if __name__ == '__main__': sys.exit(main())
