"The web page of `lmnotes ui`: what it shows, whom it answers, what it refuses, and how it ends"
import contextlib
import html
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from starlette.testclient import TestClient

from lmnotes.app.cli import main
from lmnotes.app.ui.ui_command import UiServer, loopback_sockets
from lmnotes.app.ui.ui_pages import verdict_words
from lmnotes.app.ui.ui_server import UiSite, ui_app
from lmnotes.core import set_seed
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.files import write_json
from lmnotes.models import build_model
from lmnotes.reports.document import as_html
from lmnotes.reports.example_data import example_comparison, write_example_run
from lmnotes.reports.run_report import read_runs, runs_document
from lmnotes.training.checkpoints import save_pretrained_model

ROOT = Path(__file__).resolve().parents[1]
HOST = '127.0.0.1:8765'
BAD = '"><script>alert(1)</script><img src=x onerror=alert(1)>'

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two runs with models, a comparison with a cell, a folder outside, and links to it; made once and not changed"
    root,tokenizer = tmp_path_factory.mktemp('ui')/'runs',byte_tokenizer()
    for i,recipe in enumerate(('standard', 'reversible')):
        set_seed(i)
        folder = write_example_run(root/f'2026-11-20_14h3{i}m_{recipe}', model=recipe, seed=i)
        model = build_model(recipe, 'tiny', len(tokenizer), max_length=2048).eval()
        save_pretrained_model(model, tokenizer, folder/'final')
    write_json(root/'asked/comparison.json', example_comparison())
    write_example_run(root/'asked/cells/standard/prose/seed_0')
    write_example_run(root.parent/'outside', model='SECRET')
    (root/'away').symlink_to(root.parent/'outside')
    return root

NAMES = '2026-11-20_14h30m_standard','2026-11-20_14h31m_reversible'

@pytest.fixture
def site(made): return UiSite(made, device='cpu')

@pytest.fixture
def client(site): return TestClient(ui_app(site), base_url=f'http://{HOST}')

def form(site, **more):
    numbers = dict(max_new_tokens='12', temperature='0.9', seed='5')
    return dict(first=NAMES[0], second=NAMES[1], prompt='Once\r\nupon') | numbers | dict(token=site.token) | more

def post(client, fields, origin=f'http://{HOST}', **headers):
    return client.post('/prompt', data=fields, headers=headers | (dict(origin=origin) if origin else {}))

def said(answer):
    "The one line of a page that refuses"
    lines = re.findall(r'<p class="verdict worse">(?:<b>.*?</b>)?(.*?)</p>', answer.text)
    assert len(lines) == 1, lines
    return html.unescape(lines[0])


# %% What is shown

def test_the_list_names_model_data_and_seed_and_hides_the_cells(client):
    page = client.get('/').text
    assert page.index('Is reversible as good as standard?') < page.index('reversible · prose · seed 1')
    assert page.index('reversible · prose · seed 1') < page.index('standard · prose · seed 0') # the newer first
    assert page.count('name="run"') == 2 and client.get('/?cells=1').text.count('name="run"') == 3
    assert client.get('/', params=dict(q='model=standard')).text.count('name="run"') == 1
    wrong = client.get('/', params=dict(q='modle=standard'))
    assert "did you mean 'model'?" in said(wrong)

def test_reports_are_those_of_lmnotes_report(client, made):
    page = client.get(f'/runs/{NAMES[0]}').text
    report = as_html(runs_document(read_runs([made/NAMES[0]])))
    assert page[page.index('<h1>'):] == report[report.index('<h1>'):]
    page = client.get('/comparisons/asked').text
    assert 'reversible is better than standard' in page and '<svg' in page
    assert client.get('/comparisons/asked/comparison.json').json()['arms'] == ['standard', 'reversible']
    assert list(made.rglob('report.*')) == [] # nothing is written

def test_two_runs_side_by_side_are_no_verdict(client, made, tmp_path, monkeypatch, capsys):
    page = client.get('/compare', params=dict(run=NAMES[::-1])).text
    assert 'Single runs give no verdict' in page and 'How the runs differ' in page and '<svg' in page
    words = shlex.split(html.unescape(re.search('<pre class="command">(.*?)</pre>', page)[1]))
    assert words[:4] == ['lmnotes', 'compare', '--arm', 'standard: model=standard'] # the older is the baseline
    monkeypatch.chdir(tmp_path)
    assert main([*words[1:], '--dry_run', '--device', 'cpu']) == 0, capsys.readouterr().err

def test_the_command_never_asks_for_trust(made, tmp_path):
    for i in range(2): write_example_run(tmp_path/f'r{i}', trust_remote_code=bool(i), learning_rate=.01*(i + 1))
    words = verdict_words(read_runs([tmp_path/'r0', tmp_path/'r1']))
    assert 'learning_rate' in ' '.join(words) and 'trust' not in ' '.join(words)

def test_a_folder_without_runs_says_how_to_make_one(tmp_path):
    page = TestClient(ui_app(UiSite(tmp_path)), base_url=f'http://{HOST}').get('/').text
    assert 'lmnotes train --model standard --dataset prose' in page
    page = TestClient(ui_app(UiSite(tmp_path)), base_url=f'http://{HOST}').get('/prompt').text
    assert 'lmnotes train' in page and '<form' not in page


# %% What is refused

def test_text_of_a_run_is_text_on_every_page(tmp_path, made):
    root = tmp_path/'runs'
    shutil.copytree(made/NAMES[0], root/'<script>alert(1)<')
    write_example_run(root/'other', model=BAD, optimizer=BAD, seed=BAD)
    write_json(root/'c/comparison.json', example_comparison(arms=('standard', BAD)) | dict(question=BAD))
    client = TestClient(ui_app(UiSite(root, device='cpu')), base_url=f'http://{HOST}')
    found = ['/', '/prompt', '/comparisons/c/', f'/?q={BAD}', f'/runs/{BAD}', f'/prompt?first={BAD}']
    found += ['/runs/%3Cscript%3Ealert(1)%3C', '/compare?run=other&run=%3Cscript%3Ealert(1)%3C']
    for path in found:
        text = client.get(path).text
        assert '</footer>' in text and not re.search('<script|<img|onerror=[^&]*>', text), path

OUTSIDE = [
    '/runs/../outside', '/runs/%2e%2e/outside', '/runs/%2e%2e%2foutside', '/runs/asked/%2e%2e/%2e%2e/outside',
    '/runs/%2e%2e', '/runs/%252e%252e/outside', '/runs//etc', '/runs/%2fetc', '/runs/ROOT',
    '/runs/away', '/runs/away/final', '/runs/a%00b',
    '/runs/..%5coutside', '/runs/' + 'x'*3000, '/runs/none', '/comparisons/away/', '/comparisons/%2e%2e/outside/',
    '/comparisons/asked/plan.json', '/comparisons/asked/cells/standard/prose/seed_0/args.json',
    '/comparisons/asked/%2e%2e/comparison.json', '/compare?run=none&run=..', '/none', '/runs/asked',
]

@pytest.mark.parametrize('path', OUTSIDE, ids=lambda p: p[:40])
def test_a_path_that_leaves_the_folder_is_not_found(client, made, path):
    answer = client.get(path.replace('ROOT', str(made.parent/'outside')))
    assert answer.status_code == 404 and 'SECRET' not in answer.text and said(answer)

def test_a_link_inside_a_run_is_refused_and_its_content_not_listed(tmp_path, made):
    root,secret = tmp_path/'runs',made.parent/'outside'
    for name,inside in dict(linked='args.json', summed='summary.json', sampled='samples.jsonl').items():
        write_example_run(root/name)
        (root/name/inside).unlink()
        (root/name/inside).symlink_to(secret/inside)
    client = TestClient(ui_app(UiSite(root)), base_url=f'http://{HOST}')
    assert 'SECRET' not in client.get('/').text
    for name in ('linked', 'summed', 'sampled'):
        answer = client.get(f'/runs/{name}')
        assert answer.status_code == 400 and 'is a link to a place outside' in said(answer)
        assert client.get(f'/compare?run={name}&run=sampled').status_code == 400

@pytest.mark.parametrize('host', ['evil.test', f'evil.test:{8765}', '127.0.0.1.evil.test', '0.0.0.0:8765', '[::2]', ''])
def test_another_host_is_refused(client, host):
    for path in ('/', f'/runs/{NAMES[0]}', '/prompt'):
        answer = client.get(path, headers=dict(host=host))
        assert answer.status_code == 400 and answer.text == 'Invalid host header'

@pytest.mark.parametrize('host', ['localhost', 'localhost:8765', '127.0.0.1', '[::1]:8765'])
def test_this_machine_is_answered(client, host): assert client.get('/', headers=dict(host=host)).status_code == 200

@pytest.mark.parametrize('origin', [None, 'null', 'http://evil.test', 'https://127.0.0.1:8765', 'http://127.0.0.1:80'])
def test_a_form_of_another_site_is_refused(client, site, origin):
    answer = post(client, form(site), origin)
    assert answer.status_code == 403 and 'a page of another site' in said(answer)

@pytest.mark.parametrize('token', [None, '', 'guessed', 'ü'])
def test_a_form_without_the_token_is_refused(client, site, token):
    fields = {k: v for k,v in form(site, token=token).items() if v is not None}
    answer = post(client, fields)
    assert answer.status_code == 403 and 'another process' in said(answer)
    assert site.cache.loaded == {}

WRONG = [
    (dict(first='../outside'), 'is no model to choose here'), (dict(second='asked'), 'is no model to choose here'),
    (dict(seed='1.5'), 'seed is a whole number'), (dict(temperature='inf'), 'must be a finite number'),
    (dict(max_new_tokens='9999'), 'at most 1024'), (dict(max_new_tokens=''), 'max_new_tokens is a whole number'),
]

@pytest.mark.parametrize(('fields', 'line'), WRONG, ids=[str(f) for f,_ in WRONG])
def test_a_wrong_field_is_one_line_and_the_form_keeps_what_was_typed(client, site, fields, line):
    answer = post(client, form(site, prompt='kept as typed') | fields)
    assert answer.status_code == 400 and line in said(answer) and 'kept as typed</textarea>' in answer.text

def test_what_is_no_form_is_refused(client, site):
    own = dict(origin=f'http://{HOST}')
    assert client.post('/prompt', json=form(site), headers=own).status_code == 400
    assert client.post('/prompt', data=dict(prompt='x'*300_000), headers=own).status_code == 400
    assert client.post('/').status_code == 405

def test_no_page_may_run_a_script_or_be_framed(client, site):
    for answer in [*map(client.get, ('/', f'/runs/{NAMES[0]}', '/none', '/prompt')), post(client, form(site))]:
        policy = dict(part.split(' ', 1) for part in answer.headers['content-security-policy'].split('; '))
        assert policy['default-src'] == policy['frame-ancestors'] == policy['base-uri'] == "'none'"
        assert set(policy) == {'default-src', 'style-src', 'form-action', 'base-uri', 'frame-ancestors'}
        assert answer.headers['cache-control'] == 'no-store' and answer.headers['x-content-type-options'] == 'nosniff'
        assert answer.headers['referrer-policy'] == 'same-origin' # no-referrer would hide the origin of the form
        assert not re.search(r'<script|<link|\son\w+=|https?://(?!www\.w3\.org)', answer.text)

def test_a_fault_is_one_line_with_the_place_of_its_traceback(client, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.setattr('lmnotes.app.ui.ui_server.index_page', lambda *a: 1/0)
    answer = client.get('/')
    assert answer.status_code == 500 and 'ZeroDivisionError; the traceback is in' in said(answer)
    assert 'Traceback' in next(tmp_path.rglob('*.log')).read_text() and 'Traceback' not in answer.text


# %% Two models

def texts(answer):
    return [html.unescape(t) for t in re.findall(r'<pre><u>Once\nupon</u>(.*?)</pre>', answer.text, re.S)]

@pytest.mark.parametrize('temperature', ['0.9', '0'])
def test_texts_are_those_of_lmnotes_generate(client, site, made, capfd, temperature):
    shown = texts(post(client, form(site, temperature=temperature)))
    assert len(shown) == 2 and shown[0] != shown[1]
    capfd.readouterr()
    for name,text in zip(NAMES, shown):
        words = ['--model', str(made/name), '--prompt', 'Once\nupon', '--max_new_tokens', '12', '--device', 'cpu']
        seed = ['--seed', '5'] if temperature != '0' else []
        assert main(['generate', *words, '--temperature', temperature, *seed]) == 0
        control = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]') # which a page leaves out
        printed = capfd.readouterr().out.removeprefix('Once\nupon').removesuffix('\n')
        assert control.sub('', printed) == text

def test_a_folder_with_a_plus_is_a_folder(tmp_path, made, capsys):
    "The cells of an arm `standard+ternary` lie in a folder of that name"
    root = tmp_path/'runs'
    for name in NAMES: shutil.copytree(made/name, root/'cells/a+ternary'/name)
    site = UiSite(root, device='cpu')
    keys = {k: f'cells/a+ternary/{n}' for k,n in zip(('first', 'second'), NAMES)}
    assert len(texts(post(TestClient(ui_app(site), base_url=f'http://{HOST}'), form(site, **keys)))) == 2
    words = ['--max_new_tokens', '4', '--device', 'cpu', '--prompt', 'Once']
    assert main(['generate', '--model', str(root/keys['first']), *words]) == 0 and 'Once' in capsys.readouterr().out

def test_a_model_that_cannot_be_read_does_not_take_the_other_text(tmp_path, made):
    root = tmp_path/'runs'
    for name in NAMES: shutil.copytree(made/name, root/name)
    (root/NAMES[1]/'final/model.safetensors').unlink()
    (root/NAMES[1]/'final/pytorch_model.bin').write_bytes(b'a pickle')
    site = UiSite(root, device='cpu')
    answer = post(TestClient(ui_app(site), base_url=f'http://{HOST}'), form(site))
    assert answer.status_code == 200 and len(texts(answer)) == 1 and 'model.safetensors' in said(answer)

def test_code_that_comes_with_a_model_is_not_run(tmp_path, made):
    root = tmp_path/'runs'
    for name in NAMES: shutil.copytree(made/name, root/name)
    final = root/NAMES[0]/'final'
    own = dict(AutoConfig='bomb.C', AutoModelForCausalLM='bomb.M')
    write_json(final/'config.json', dict(model_type='mine', auto_map=own))
    (final/'bomb.py').write_text(f"open({str(tmp_path/'MARK')!r}, 'w')\n", encoding='utf-8')
    site = UiSite(root, device='cpu')
    answer = post(TestClient(ui_app(site), base_url=f'http://{HOST}'), form(site))
    assert len(texts(answer)) == 1 and said(answer) and not (tmp_path/'MARK').exists()


# %% The server

@contextlib.contextmanager
def served(site):
    "A real server in a thread; yields its address"
    sockets,server = loopback_sockets(0),UiServer(site)
    thread = threading.Thread(target=server.run, args=[sockets])
    thread.start()
    try:
        yield f'127.0.0.1:{sockets[0].getsockname()[1]}'
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(20)
        assert not thread.is_alive()

def raw(address, lines):
    "Send a request as it stands, which a client library would tidy up, and read the whole answer"
    host,port = address.split(':')
    with socket.create_connection((host, int(port)), timeout=20) as s:
        s.sendall(lines.encode())
        return b''.join(iter(lambda: s.recv(65536), b'')).decode()

def test_the_server_keeps_raw_paths_and_hosts_out(site):
    with served(site) as address:
        for path in ('/runs/../outside', '/runs/%2e%2e/outside', '/runs/..%2foutside', '/../outside'):
            answer = raw(address, f'GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n')
            assert answer.startswith('HTTP/1.1 404') and 'SECRET' not in answer
        for host in ('Host: evil.test\r\n', ''):
            answer = raw(address, f'GET / HTTP/1.1\r\n{host}X-Forwarded-Host: localhost\r\nConnection: close\r\n\r\n')
            assert answer.startswith('HTTP/1.1 400')

def test_pages_come_while_a_model_writes_and_a_reader_who_leaves_ends_the_text(site):
    fields = form(site, max_new_tokens='1024', first=NAMES[0], second=NAMES[0])
    body = '&'.join(f'{k}={v}' for k,v in fields.items() if k != 'prompt')
    with served(site) as address:
        head = f'POST /prompt HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n'
        head += f'Content-Length: {len(body)}\r\n'
        host,port = address.split(':')
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(f'{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}'.encode())
            got = b''
            while b'The model is loaded and writes' not in got: got += s.recv(65536)
            with urlopen(f'http://{address}/', timeout=10) as page: assert page.status == 200
            assert site.cache.busy.locked() # it still writes
        left = time.monotonic()
        while site.cache.busy.locked() and time.monotonic() - left < 10: time.sleep(.02)
        assert not site.cache.busy.locked()
        with pytest.raises(HTTPError, match='403'): urlopen(Request(f'http://{address}/prompt', b'token=x'))

def test_a_port_in_use_is_one_line(made, capsys):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert main(['ui', str(made), '--port', str(port)]) == 2
    err = capsys.readouterr().err
    assert err == f'lmnotes: port {port} is in use on this machine; choose another with --port, or 0 for any free one\n'

@pytest.mark.parametrize(('words', 'line'), [
    (['nowhere'], 'there is no folder nowhere'), (['--models', 'nowhere'], 'there is no folder'),
    (['--port', '65536'], '--port must be at most 65,535'), (['--host', '0.0.0.0'], "unknown option '--host'"),
])
def test_a_wrong_option_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs').mkdir()
    assert main(['ui', *words]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count('\n') == 1

def test_only_the_loopback_interface_listens():
    sockets = loopback_sockets(0)
    assert {s.getsockname()[0] for s in sockets} <= {'127.0.0.1', '::1'}
    for s in sockets: s.close()

def test_ctrl_c_ends_the_command_as_it_ends_others(made):
    "While a text of a thousand tokens is being written"
    env = os.environ | dict(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    words = [sys.executable, '-m', 'lmnotes', 'ui', str(made), '--port', '0', '--device', 'cpu']
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        first,second = command.stdout.readline(),command.stdout.readline()
        assert first == f'{made}: 2 runs, 1 comparison of 1 run\n'
        address = re.match(r'http://(127\.0\.0\.1:\d+) ', second)[1]
        with urlopen(f'http://{address}/prompt', timeout=20) as page:
            token = re.search('name="token" value="([^"]*)"', page.read().decode())[1]
        body = f'token={token}&first={NAMES[0]}&second={NAMES[1]}&max_new_tokens=1024&temperature=0.8&seed=0'
        request = Request(f'http://{address}/prompt', body.encode(), dict(Origin=f'http://{address}'))
        answer = urlopen(request, timeout=20)
        answer.read(9000)
        command.send_signal(signal.SIGINT)
        out,err = command.communicate(timeout=20)
    finally:
        command.kill()
    assert (command.returncode, err) == (1, 'lmnotes: stopped by hand\n') and not out
