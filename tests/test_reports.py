"Reports say what their JSON says, in four forms, of whatever folders they are given"
import html
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmnotes.app.cli import main
from lmnotes.app.widget_html import widget_html
from lmnotes.comparison.plan import plan_hash
from lmnotes.comparison.planning import plan_comparison
from lmnotes.comparison.result import new_result
from lmnotes.files import append_jsonl, write_json
from lmnotes.reports.comparison_report import write_report
from lmnotes.reports.document import Document, Section, as_html, as_md, as_tex
from lmnotes.reports.example_data import example_comparison
from lmnotes.reports.formatting import summarize_cells
from lmnotes.reports.model_card import model_card
from lmnotes.reports.parts import BulletList, Callout, GeneratedTexts, Table
from lmnotes.reports.run_report import read_runs, runs_document

ROOT = Path(__file__).parents[1]

class Page(HTMLParser):
    void = {'meta', 'br', 'link', 'img', 'input', 'hr'}
    def __init__(self, page):
        super().__init__()
        self.open,self.values,self.tags,self.ids = [],[],set(),[]
        self.feed(page)
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        a = dict(attrs)
        if tag not in self.void: self.open.append(tag)
        if tag == 'data': self.values.append(float(a['value']))
        if 'id' in a: self.ids.append(a['id'])
    def handle_startendtag(self, tag, attrs): self.ids += [dict(attrs)['id']] if 'id' in dict(attrs) else []
    def handle_endtag(self, tag): assert self.open.pop() == tag

def leaves(o):
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, list): return {x for v in o for x in leaves(v)}
    return {float(o)} if isinstance(o, (int, float)) and not isinstance(o, bool) else set()

nasty = 'a_b & <c> $x$ %d #1 {y} ~^ \\input{z} [0] "q" | 中 é −±'

@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    out = tmp_path_factory.mktemp('r')
    r = example_comparison(
        arms=('standard', 'reversible', nasty), datasets=('embedded/prose', 'wikitext/wikitext-2-raw-v1')
    )
    r['samples'][0]['text'] += '\n'+nasty+'</pre><script>x'
    r['not_measured'].append(nasty)
    r['tasks'][0]['metrics'] = dict(mcc=.123456, n=7)
    for s in ('html', 'md', 'tex', 'json'): write_report(r, out/f'report.{s}')
    return out

def made_run(path, **summary):
    path.mkdir(parents=True)
    options = dict(model='standard', dataset='prose', seed=0)
    tokenizer = summary.get('tokenizer', 'bytes')
    write_json(path/'args.json', dict(options=options, data=dict(tokenizer=tokenizer)))
    write_json(path/'env.json', dict(fingerprint='aa'))
    append_jsonl(path/'metrics.jsonl', *[dict(step=i, loss=2+3/i, tokens=64*i) for i in range(1, 9)])
    figures = dict(status='done', steps=8, tokens=512, parameters=1000, bits_per_byte=2.5, eval_loss=1.7)
    figures |= dict(accuracy=.4, eval_tokens=128, tokenizer='bytes')
    write_json(path/'summary.json', figures | summary)
    return path

# ---- a comparison

def test_every_figure_is_in_the_json(reports):
    p = Page((reports/'report.html').read_text(encoding='utf-8'))
    r = json.loads((reports/'report.json').read_text(encoding='utf-8'))
    assert len(p.values) > 250 and set(p.values) <= leaves([r, summarize_cells(r)]) and .123456 in p.values

def test_the_page_needs_nothing_and_runs_nothing(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    p = Page(page)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', '', page)
    assert not {'script', 'link', 'img', 'iframe', 'object'} & p.tags
    assert not re.search(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://', without_names)
    outside = re.sub(r'<a href="report_(scores\.csv|curves\.csv|experiment\.json)">', '', page) # stands beside it
    assert len(outside) < len(page) and not re.search(r'(src|href)="(?!#)', outside)
    assert not re.search(r'\son\w+="', page)
    assert len(p.ids) == len(set(p.ids))
    assert 'prefers-color-scheme:dark' in page and 'name="viewport"' in page

def test_contents_lead_to_every_section(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    links = re.findall(r'<a href="#([^"]*)">([^<]*)</a>', page.split('<nav')[1].split('</nav>')[0])
    assert len(links) > 10 and len({i for i,_ in links}) == len(links)
    for name,title in links:
        heading = rf'<h2 id="{name}">{title}</h2>|<summary>{title}</summary><div id="{name}">'
        assert len(re.findall(heading, page)) == 1 # of a folded section inside it, so that the link opens it
    assert page.index('class="verdict') < page.index('<nav') < page.index('<h2')

def test_columns_are_explained_where_they_stand(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    told = dict(re.findall(r'<th(?: class=n)? title="([^"]*)">([^<]*)</th>', page))
    assert told['corrected among what decides'] == told['corrected among the secondary outcomes'] == 'p, Holm'
    assert told['the smallest effect that would have been found, or nothing'] == 'detectable'

def test_a_matrix_of_one_row_is_hidden(tmp_path):
    r = example_comparison(datasets=('embedded/prose',))
    assert 'Which design wins where' in write_report(r, tmp_path/'r.md').read_text(encoding='utf-8')
    r['differences'] = [d for d in r['differences'] if d['primary']]
    assert 'Which design wins where' not in write_report(r, tmp_path/'r.md').read_text(encoding='utf-8')

def test_the_scores_stand_beside_the_report(reports):
    head,*rows = (reports/'report_scores.csv').read_text(encoding='utf-8').splitlines()
    r = json.loads((reports/'report.json').read_text(encoding='utf-8'))
    assert head == 'arm,dataset,seed,metric,value' and len(rows) == 4*len(r['cells'])
    assert {float(x.rsplit(',', 1)[1]) for x in rows} <= leaves(r['cells'])

def test_curves_and_costs_are_drawn_and_told(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    told = dict(re.findall(r'<title>([^<]*)</title><desc>([^<]*)</desc>', page.split('<body>')[1]))
    for x in ('tokens', 'seconds of training', 'FLOPs of training'):
        text = next(d for t,d in told.items() if f'on held-out text by {x};' in t)
        assert re.search(r'standard: 3\.\d+ at \S+, 3\.\d+ at \S+; reversible: ', text)
    text = next(d for t,d in told.items() if 'against peak memory' in t)
    assert re.search(r'standard: 3\.\d+ at 28\.6 MiB; reversible: 2\.\d+ at 19\.1 MiB', text)
    assert '## Quality against cost' in (reports/'report.md').read_text(encoding='utf-8')

def test_the_curves_stand_beside_the_report(reports):
    head,*rows = (reports/'report_curves.csv').read_text(encoding='utf-8').splitlines()
    r = json.loads((reports/'report.json').read_text(encoding='utf-8'))
    assert head == 'arm,dataset,seed,step,tokens,seconds,flops,metric,value'
    assert len(rows) == 5*2*len(r['cells']) and {float(x.rsplit(',', 1)[1]) for x in rows} <= leaves(r['cells'])

def test_what_has_one_point_is_not_drawn(tmp_path):
    r = example_comparison()
    once = {k: v[-1:] for k,v in r['cells'][0]['held_out'].items()}
    r['cells'] = [c | dict(held_out=once) for c in r['cells']]
    r['measures'] = dict(standard=r['measures']['standard'])
    page = write_report(r, tmp_path/'report.html').read_text(encoding='utf-8')
    assert 'held-out text by' not in page and 'Quality against cost' not in page and '<figure></figure>' not in page
    assert not (tmp_path/'report_curves.csv').exists() and 'report_curves.csv' not in page

@pytest.mark.parametrize('asked', [
    dict(arms='standard,reversible', seeds='2..4', margin=.02),
    dict(vary=dict(optimizer=['adamw', 'muon'], lr_scheduler_type=['linear', 'cosine']), seeds=[3, 5]),
])
def test_the_command_asks_the_same_plan_again(asked, tmp_path, capsys):
    plan = plan_comparison(**asked, budget='steps:2')
    result = new_result(plan)
    same = {k: result[k] for k in ('experiment', 'factors', 'seeds', 'plan_hash')}
    r = example_comparison(datasets=('embedded/prose',), factors=plan.factors) | same
    page = write_report(r, tmp_path/'report.html').read_text(encoding='utf-8')
    command = html.unescape(re.search(r'<pre class="command">(lmnotes compare [^<]*)</pre>', page)[1])
    assert main([*shlex.split(command)[1:], '--dry_run']) == 0
    assert f'plan {plan_hash(plan)}' in capsys.readouterr().out and plan_hash(plan) in page
    assert not write_report(r, tmp_path/'other.md').with_name('other_scores.csv').exists()

def test_what_is_open_names_the_seeds(tmp_path):
    r = example_comparison(datasets=('embedded/prose',)) | dict(experiment=dict(arms=dict(a={}, b={}), seeds=3))
    r['differences'][0] |= dict(verdict='cannot tell', more_seeds=4)
    page = write_report(r, tmp_path/'report.html').read_text(encoding='utf-8')
    assert 'about 4 more seeds, 7 in all' in page and '--seeds 7</pre>' in page

def test_light_and_dark_colour_everything(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    light,dark = (set(re.findall(r'(--\w+):', b)) for b in re.findall(r':root\{([^}]*)\}', page))
    used = set(re.findall(r'var\((--\w+)\)', page))
    assert used <= light and used <= dark # a colour that only the light page has would vanish in the dark

def test_markdown_and_latex_hold_the_same_numbers(reports):
    md,tex,page = ((reports/f'report.{s}').read_text(encoding='utf-8') for s in ('md', 'tex', 'html'))
    assert md.count('\n## ') == tex.count(r'\subsection*') and tex.isascii()
    printed = set(re.findall(r'<data value="[^"]*">([^<]*)</data>', page))
    plain = tex.replace('$-$', '−').replace(r'\%', '%')
    assert len(printed) > 60 and all(n in md and n in plain for n in printed)

def test_the_latex_compiles(reports, tmp_path):
    tex = shutil.which('pdflatex') or shutil.which('tectonic') or shutil.which('xelatex')
    if not tex: pytest.skip('no TeX is installed here; on Debian apt-get install texlive-latex-base brings one')
    shutil.copy(reports/'report.tex', tmp_path)
    options = [] if 'tectonic' in tex else ['-interaction=nonstopmode', '-halt-on-error', '-no-shell-escape']
    words = [tex, *options, 'report.tex']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors='replace')
    assert done.returncode == 0 and (tmp_path/'report.pdf').stat().st_size > 20_000, done.stdout[-1500:]

def test_it_opens_in_a_browser_without_a_network(reports, tmp_path):
    chromium = next((c for c in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if c), None)
    if not chromium: pytest.skip('no Chromium is installed here')
    for width,dark in ((1200, 0), (390, 1)):
        words = [
            chromium,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--hide-scrollbars',
            f'--user-data-dir={tmp_path}/u',
            '--proxy-server=127.0.0.1:9',
            f'--window-size={width},900',
            *(['--blink-settings=preferredColorScheme=0'] if dark else []),
            f'--screenshot={tmp_path}/{width}.png',
            (reports / 'report.html').as_uri(),
        ]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
    import matplotlib.image
    light,phone = (matplotlib.image.imread(tmp_path/f'{w}.png') for w in (1200, 390))
    assert light[5,5,:3].min() > .9 and phone[5,5,:3].max() < .2 # the page's own background, by day and by night
    assert phone.shape[1] == 390 and light[:,:,:3].std() > .02 and phone[:,:,:3].std() > .02

def test_parts_escape_in_every_form():
    parts = [Table([nasty], [[nasty]]), BulletList([nasty]), GeneratedTexts([(nasty, nasty, nasty)])]
    d = Document(nasty, nasty, [Callout(nasty, 'better', nasty)], [Section(nasty, parts)], [nasty])
    Page(as_html(d))
    assert '<c>' not in as_html(d) and '\\input' not in as_tex(d)
    assert '<c>' not in re.sub(r'^    .*$', '', as_md(d), flags=re.M)

DESIGN = dict(optimizer=['adamw', 'muon'], model=['standard', nasty])

def test_a_factorial_design_has_its_effects(tmp_path):
    made = example_comparison(factors=DESIGN, datasets=('embedded/prose',))
    r = json.loads(write_report(made, tmp_path/'r.json').read_text(encoding='utf-8'))
    page = write_report(r, tmp_path/'r.html').read_text(encoding='utf-8')
    p = Page(page)
    assert {e['mean'] for e in r['effects']} <= set(p.values) <= leaves([r, summarize_cells(r)])
    assert 'interaction of 2' in page and '<c>' not in page and len(p.ids) == len(set(p.ids))

def test_charts_are_told_to_those_who_cannot_see_them(reports):
    page = (reports/'report.html').read_text(encoding='utf-8')
    labels = re.findall(r'<svg[^>]*role="img"[^>]*aria-label="([^"]*)"', page)
    assert len(labels) == page.count('<svg') and all(len(s) > 20 for s in labels)

def test_a_metric_that_is_no_bits_per_byte(tmp_path):
    r = example_comparison(datasets=('embedded/prose',))
    for d in r['differences']: d |= dict(metric='exact_match', higher=True, primary=True, task='math', name='gsm8k')
    for c in r['cells']: c['exact_match'] = c.pop('bits_per_byte')/10
    for c in r['cells']: c['held_out']['exact_match'] = c['held_out'].pop('bits_per_byte')
    r |= dict(metric='exact_match', controls={}, aa=[])
    page = write_report(r, tmp_path/'r.html').read_text(encoding='utf-8')
    assert 'bits per byte' not in re.sub(r'<footer.*', '', page) and 'exact match (right is better)' in page

def test_quality_and_cost_stand_first(reports):
    md = (reports/'report.md').read_text(encoding='utf-8')
    first = next(line for line in md.splitlines() if line.startswith('- '))
    said = 'better by 0.0', 'equivalent within 0.02 bits per byte', 'slower in training', 'less memory at the peak'
    assert all(words in first for words in said)

def test_a_comparison_of_an_earlier_version_is_one_line(tmp_path, capsys):
    lacking = {k: v for k,v in example_comparison().items() if k not in ('arm_options', 'plan_hash')}
    write_json(tmp_path/'old/comparison.json', lacking)
    assert main(['report', str(tmp_path/'old')]) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'earlier version' in said and str(tmp_path/'old') in said
    assert not (tmp_path/'old/report.html').exists()

# ---- runs

def test_damaged_folders_are_named_and_the_rest_reported(tmp_path, capsys):
    made_run(tmp_path/'a')
    b = made_run(tmp_path/'b', bits_per_byte=2.4)
    (b/'metrics.jsonl').write_text('{"step": 1}\n{"st\n{"step": 2}\n', encoding='utf-8')
    (tmp_path/'c').mkdir()
    (tmp_path/'c/args.json').write_text('{', encoding='utf-8')
    (tmp_path/'d').mkdir()
    (tmp_path/'d/comparison.json').write_text('{}', encoding='utf-8')
    assert main(['report', *(str(tmp_path/n) for n in 'abcdx'), '--output_path', str(tmp_path/'out')]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(s.startswith('lmnotes: left out: ') for s in said)
    page = (tmp_path/'out/report.html').read_text(encoding='utf-8')
    r = json.loads((tmp_path/'out/report.json').read_text(encoding='utf-8'))
    for n in ('metrics.jsonl is damaged', 'args.json is damaged', 'comparison.json is damaged', 'there is no folder'):
        assert n in page
    assert [x['name'] for x in r['runs']] == ['a', 'b'] and '2.400' in page and set(Page(page).values) <= leaves(r)
    assert main(['report', str(tmp_path/'c')]) == 2
    assert 'nothing to report' in capsys.readouterr().err and not (tmp_path/'c/report.html').exists()

def test_perplexity_across_tokenizers_is_refused(tmp_path, capsys):
    a,b = made_run(tmp_path/'a'),made_run(tmp_path/'b', tokenizer='words')
    assert main(['report', str(a), str(b), '--metric', 'perplexity', '--output_path', str(tmp_path/'o')]) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'bytes, words' in said and 'bits_per_byte' in said
    assert not (tmp_path/'o').exists()
    assert main(['report', str(a), str(b), '--output_path', str(tmp_path/'o')]) == 0
    page = (tmp_path/'o/report.html').read_text(encoding='utf-8')
    assert 'perplexity (' not in page and 'Perplexity is left out' in page and 'bits per byte' in page
    assert main(['report', str(a), '--metric', 'perplexity', '--output_path', str(tmp_path/'p')]) == 0
    assert 'perplexity (bytes)' in (tmp_path/'p/report.html').read_text(encoding='utf-8')

def test_runs_of_one_seed_get_no_verdict(tmp_path):
    runs = read_runs([made_run(tmp_path/'a'), made_run(tmp_path/'b', bits_per_byte=1.)])
    page = as_html(runs_document(runs))
    text = re.sub(r'<style.*?</style>', '', page, flags=re.S).lower().replace('which model is better', '')
    assert 'No verdict is given' in page and 'better' not in text

def test_a_real_run_is_reported_and_has_a_card(tmp_path, capsys):
    from lmnotes.training.train import train
    tiny = dict(dim=32, n_layer=1, n_head=2, max_length=32, batch_size=4, limit=60, max_steps=4, device='cpu')
    data = dict(dataset='arithmetic', model='standard', mode='pretrain')
    train(quiet=True, output_dir=str(tmp_path/'run'), **data, **tiny)
    assert main(['report', str(tmp_path/'run')]) == 0
    page = (tmp_path/'run/report.html').read_text(encoding='utf-8')
    s = json.loads((tmp_path/'run/summary.json').read_text(encoding='utf-8'))
    r = json.loads((tmp_path/'run/report.json').read_text(encoding='utf-8'))
    assert set(Page(page).values) <= leaves(r) and s['bits_per_byte'] in Page(page).values
    assert main(['report', str(tmp_path/'run'), '--card']) == 0
    text = (tmp_path/'run/final/README.md').read_text(encoding='utf-8')
    assert f"{s['eval_tokens']:,} tokens" in text and f"{s['bits_per_byte']:.3f}" in text
    assert '## Not measured' in text and 'multiple choice' in text
    assert model_card(tmp_path/'run/final') == text

def test_a_report_is_never_written_over_a_file(tmp_path, capsys):
    made_run(tmp_path/'a')
    (tmp_path/'f').write_text('mine', encoding='utf-8')
    assert main(['report', str(tmp_path/'a'), '--output_path', str(tmp_path/'f')]) == 2
    assert (tmp_path/'f').read_text(encoding='utf-8') == 'mine'
    assert main(['report']) == 2
    assert main(['report', str(tmp_path/'a'), '--metric', 'perplexty']) == 2
    assert "did you mean 'perplexity'" in capsys.readouterr().err

# ---- the explorer

def test_explorer_lists_what_a_comparison_leaves(tmp_path):
    from lmnotes.app.run_explorer import RunExplorer
    for i,a in enumerate(('standard', 'reversible')):
        made_run(tmp_path/f'c/cells/{a}/prose/seed_0', bits_per_byte=2.+i)
    e = RunExplorer(tmp_path, 'bits_per_byte<2.5')
    assert len(e.list.options) == 1
    e.filter.value = ''
    e.list.value = [p for _,p in e.list.options]
    assert len(e.gathered['runs']) == 2 and 'No verdict is given' in e.details.value
    assert bytes(e.picture.value[:4]) == b'\x89PNG'
    page = widget_html(e, 'two curves')
    assert page.count('☑') == 2 and page.index('standard · prose · seed 0') < page.index('cells/standard')
    assert 'alt="two curves"' in page and 'No verdict is given' in page and '<button' not in page

@pytest.mark.parametrize('name', ['08_model_builder', '09_mask_viewer', '10_live_monitor', '11_run_explorer'])
def test_a_widget_page_keeps_what_the_widget_showed(name):
    page = json.loads((ROOT/f'nbs/11_app/{name}.ipynb').read_text(encoding='utf-8'))
    outputs = [o for c in page['cells'] for o in c.get('outputs', []) if 'text/html' in o.get('data', {})]
    kept = [h for o in outputs if (h := ''.join(o['data']['text/html'])).startswith('<div style="border:1px solid')]
    assert len(kept) == 1 and '<b>' in kept[0] and (name == '09_mask_viewer' or 'alt="' in kept[0])
