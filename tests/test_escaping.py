"Whatever stands in a field of a run or a comparison, a page holds it as letters: no tag, no attribute, no link"
import copy
import io
import json
import re
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from lmnotes.comparison.cells import read_cell
from lmnotes.core import InputError
from lmnotes.files import append_jsonl, write_json
from lmnotes.reports.comparison_report import comparison_document
from lmnotes.reports.document import as_html, as_md, as_tex
from lmnotes.reports.example_data import example_comparison
from lmnotes.reports.model_card import model_card
from lmnotes.reports.run_report import report_runs
from lmnotes.reports.svg import figure_svg, new_chart

HOSTILE = (
    '"><script>X</script><img src=x onerror=X>\' onload=X class="x</title></style></pre></svg></td>]]>--> '
    '[X](javascript:X) ![X](http://x/x.png) <javascript:X> [X]: data:X\n# X\n    <b onclick=X>\n- X | X ``` $X$ &#106;'
)
TAGS = set(
    'html head meta title style body main nav a h1 h2 p b ul li div pre u figure figcaption table thead tbody tr th td '
    'data span i details summary footer svg desc g path defs use text clippath rect tspan'.split()
)
ATTRIBUTES = set(
    'lang charset name content class tabindex value style id d transform clip-path xlink:href href x y width height '
    'viewbox version xmlns xmlns:xlink role aria-label title'.split()
)
CLASSES = set(
    'sub note verdict mark better worse equivalent cannot-tell baseline n w scroll grid key chart'.split()
)

class Page(HTMLParser):
    "Refuse whatever our own parts do not write"
    def __init__(self, page):
        super().__init__()
        self.wrong = []
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        if tag not in TAGS: self.wrong.append(tag)
        for k,v in attrs:
            if k not in ATTRIBUTES: self.wrong.append((tag, k))
            if k == 'class' and not set((v or '').split()) <= CLASSES: self.wrong.append((tag, k, v))
            if k in ('href', 'xlink:href') and not (v or '').startswith('#'): self.wrong.append((tag, k, v))
            if k == 'id' and not re.fullmatch(r'[\w.-]+', v): self.wrong.append((tag, k, v))
    handle_startendtag = handle_starttag

def markdown_faults(text):
    "Tags, links and pictures that a Markdown reader would make of a text"
    out = []
    def look(tokens):
        for t in tokens:
            if t.type in ('html_block', 'html_inline', 'image'): out.append((t.type, t.content))
            if t.type == 'link_open': out.append((t.type, t.attrs))
            look(t.children or [])
    look(MarkdownIt('commonmark').enable('table').parse(text))
    return out

def check(document):
    assert not Page(as_html(document)).wrong
    assert not markdown_faults(as_md(document))
    assert '\\input' not in as_tex(document)

def with_hostile(o):
    "Replace every text in a value"
    if isinstance(o, dict): return {k: with_hostile(v) for k,v in o.items()}
    if isinstance(o, list): return [with_hostile(v) for v in o]
    return HOSTILE if isinstance(o, str) else o

def paths(o, at=()):
    "Every place in a value, one of each kind: lists by their first entry"
    if isinstance(o, dict):
        for k,v in o.items(): yield from paths(v, (*at, k))
    elif isinstance(o, list):
        for i,v in enumerate(o[:1]): yield from paths(v, (*at, i))
    else: yield at

def planted(o, at, value):
    o = copy.deepcopy(o)
    place = o
    for k in at[:-1]: place = place[k]
    place[at[-1]] = value
    return o

def test_the_parsers_see_what_they_must():
    assert Page('<p onclick="x">').wrong and Page('<a href="javascript:x">').wrong and Page('<p class="x">').wrong
    assert markdown_faults('[a](javascript:b)') == [] # the reader refuses this one by itself, and not all do
    assert markdown_faults('[a](http://b)') and markdown_faults('![a](b)') and markdown_faults('a <b>c</b>')

def test_names_of_a_comparison():
    r = example_comparison(arms=('standard', HOSTILE), datasets=('embedded/prose', HOSTILE.replace('/', '')))
    check(comparison_document(r))

def test_factors_and_levels_of_a_design():
    levels = {HOSTILE: ['a', HOSTILE + 'b'], 'model': ['standard', HOSTILE]}
    check(comparison_document(example_comparison(factors=levels, datasets=('embedded/prose',))))

SOME_KINDS = 10 # places that are tried in `make test`

def comparison_places():
    found = list(dict.fromkeys(paths(example_comparison())))
    words = [p for p in found if p[-1] == 'verdict'] # what once became a class as it was
    return found, list(dict.fromkeys([*words, *found[::max(len(found)//SOME_KINDS, 1)]]))

def outcome(r):
    "Nothing that is ours, or the error that a damaged file gives"
    try:
        check(comparison_document(r))
    except AssertionError:
        raise
    except Exception as e:
        return type(e).__name__ # a field of another type: who reads the file refuses it

@pytest.mark.parametrize('at', comparison_places()[1], ids=lambda p: '.'.join(map(str, p))[:60])
def test_a_field_of_a_comparison(at): outcome(planted(example_comparison(), at, HOSTILE))

@pytest.mark.slow
def test_every_field_of_a_comparison():
    for at in comparison_places()[0]: outcome(planted(example_comparison(), at, HOSTILE))

def test_charts_take_any_name():
    r = example_comparison()
    r['measures'] = {HOSTILE + k: v for k,v in r['measures'].items()}
    outcome(r)
    assert not Page(figure_svg(new_chart()[0], HOSTILE, HOSTILE, HOSTILE)).wrong

@pytest.fixture
def run(tmp_path):
    path = tmp_path/'run'
    (path/'final').mkdir(parents=True)
    options = dict(model='standard', dataset='prose', mode='pretrain', init=None, seed=0, task='auto', datasets=[])
    write_json(path/'args.json', dict(options=options, asked={}, data=dict(tokenizer='bytes'), learner={}))
    write_json(path/'env.json', dict(fingerprint='aa', device='cpu', packages=dict(torch='2'), python='3'))
    append_jsonl(path/'metrics.jsonl', *[dict(step=i, loss=2+3/i, tokens=64*i) for i in range(1, 9)])
    append_jsonl(path/'evals.jsonl', dict(step=8, loss=1.7, accuracy=.4, bits_per_byte=2.5))
    append_jsonl(path/'samples.jsonl', dict(step=8, input='a', output='b', accuracy=.5))
    figures = dict(status='done', steps=8, tokens=512, parameters=1000, bits_per_byte=2.5, eval_loss=1.7, accuracy=.4)
    figures |= dict(eval_tokens=128, tokenizer='bytes', tainted=['x/y'], attention='sdpa', reason='none')
    write_json(path/'summary.json', figures)
    task = dict(task='qa', name='squad', metric='exact_match', mean=.5, error=.1, n=8, n_cut=0, chance=0., floor=0.)
    missing = [dict(task='math', name='gsm8k', reason='not here')]
    write_json(path/'evaluation.json', dict(tasks=[task], not_measured=missing, model='m'))
    config = dict(model_type='lmnotes', dim=64, n_layer=2, mixer='attention', rewrites=['ternary'])
    write_json(path/'final/config.json', config)
    return path

CARD_KEYS = set('library_name pipeline_tag tags datasets model_name model-index'.split())
FILES = 'args.json', 'env.json', 'summary.json', 'evaluation.json', 'final/config.json'

def report_of(run, out):
    "What `lmnotes report` and `report --card` make of a run"
    try:
        report_runs([str(run)], str(out))
        assert not Page((out/'report.html').read_text(encoding='utf-8')).wrong
        assert not markdown_faults((out/'report.md').read_text(encoding='utf-8'))
        head,_,body = model_card(run).removeprefix('---\n').partition('\n---\n')
        assert not markdown_faults(body)
        assert set(yaml.safe_load(head)) <= CARD_KEYS
    except AssertionError:
        raise
    except Exception as e:
        return type(e).__name__

def test_every_text_of_a_run(run, tmp_path):
    for name in FILES:
        content = json.loads((run/name).read_text(encoding='utf-8'))
        hostile = with_hostile(content)
        if name == 'final/config.json': hostile['model_type'] = content['model_type']
        write_json(run/name, hostile)
    append_jsonl(run/'samples.jsonl', dict(step=9, input=HOSTILE, output=HOSTILE, accuracy=.5))
    assert report_of(run, tmp_path/'out') is None

@pytest.mark.parametrize('name', FILES)
def test_every_field_of_a_run(run, tmp_path, name):
    content = json.loads((run/name).read_text(encoding='utf-8'))
    found = list(paths(content))
    for i,at in enumerate(found):
        write_json(run/name, planted(content, at, HOSTILE))
        report_of(run, tmp_path/f'out{i}')
    write_json(run/name, content | {HOSTILE: HOSTILE, 'options': {**content.get('options', {}), HOSTILE: HOSTILE}})
    report_of(run, tmp_path/'out_key')

def test_widgets(run):
    from lmnotes.app.live_monitor import samples_html
    from lmnotes.app.run_explorer import picked, picked_html
    write_json(run/'summary.json', with_hostile(json.loads((run/'summary.json').read_text(encoding='utf-8'))))
    append_jsonl(run/'samples.jsonl', dict(step=9, input=HOSTILE, output=HOSTILE, accuracy=HOSTILE))
    page = picked_html(picked([str(run)])) + samples_html([dict(step=1, input=HOSTILE, output=HOSTILE, accuracy=None)])
    assert set(Page(page).wrong) <= {'h4'} and HOSTILE[:12] not in page

def test_scores_that_are_none(tmp_path):
    "A cell with objects, a bomb or a negative shape in its array file is damaged, in one line"
    write_json(tmp_path/'cell.json', dict(cell=dict(status='done'), n_scores=1))
    for descr,shape in (('|O', (1,)), ('<f8', (10**13,)), ('<f8', (-5,)), ('<f8', (10**6, 10**6))):
        array = io.BytesIO()
        np.lib.format.write_array_header_1_0(array, dict(descr=descr, fortran_order=False, shape=shape))
        with zipfile.ZipFile(tmp_path/'scores.npz', 'w') as z: z.writestr('entries.npy', array.getvalue() + bytes(8))
        with pytest.raises(InputError, match='is damaged'): read_cell(tmp_path)
