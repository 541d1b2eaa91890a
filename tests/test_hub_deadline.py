"A hub that stalls, fails or redirects for ever costs what `--hub_timeout` allows, and one line, whatever asks it"
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = r'''
import contextlib, io, json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode,asked = None,[]
class Hub(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        asked.append(self.path)
        self.close_connection = True
        if mode == 'headers': return time.sleep(60)
        status = {'500': 500, '503': 503, '429': 429, 'circle': 302, 'relative': 307}.get(mode, 200)
        self.send_response(status)
        if status in (503, 429): self.send_header('Retry-After', '3600')
        if mode == 'circle': self.send_header('Location', f'http://127.0.0.1:{port}/again')
        if mode == 'relative': self.send_header('Location', self.path + '/x')
        if status == 200:
            self.send_header('ETag', '"1"')
            self.send_header('X-Repo-Commit', '0'*40)
            self.send_header('Content-Length', '1000')
        self.end_headers()
        if status != 200 or self.command == 'HEAD': return
        for _ in range(1 if mode == 'body' else 600): # one byte, or one a while
            self.wfile.write(b' ')
            self.wfile.flush()
            time.sleep(.2)
        time.sleep(60)

server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
server.handle_error = lambda *_: None # a reader that goes away is what is tested
server.daemon_threads = True
port = server.server_address[1]
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.setdefault('HF_ENDPOINT', f'http://127.0.0.1:{port}')
from lmnotes.app.cli import main

COMMANDS = dict(
    model='train --model nobody/model --dataset prose --dry_run',
    tokenizer='train --model standard --tokenizer nobody/model --dataset prose --max_steps 1',
    dataset='train --model standard --dataset stanfordnlp/imdb --max_steps 1',
    stream='train --model standard --dataset wikitext --streaming --max_steps 1',
    evaluate='evaluate --model nobody/model --tasks lm',
    generate='generate --model nobody/model',
    pack='pack nobody/model --output_path packed',
    reward='train --mode rl --dataset arithmetic --reward_model nobody/model --model standard --device cpu',
)
main('train --model standard --dataset arithmetic --dry_run'.split()) # what is imported once
results = []
for mode in sys.argv[2].split(','):
    for name in sys.argv[3].split(','):
        if mode == 'warm': continue
        err,start = io.StringIO(),time.monotonic()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = main([*COMMANDS[name].split(), '--hub_timeout', sys.argv[1]])
        seconds = time.monotonic() - start
        results.append(dict(mode=mode, name=name, code=code, seconds=seconds, err=err.getvalue(), asked=len(asked)))
        asked.clear()
print('RESULTS' + json.dumps(results), flush=True)
os._exit(0)
'''

def drive(tmp_path, timeout, modes, names, **environment):
    "Run commands in one process against a hub that behaves in each of the ways"
    env = dict(os.environ, HF_HOME=str(tmp_path/'hf'), XDG_CACHE_HOME=str(tmp_path/'cache'), NO_PROXY='*')
    for name in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'TRANSFORMERS_OFFLINE', 'LMNOTES_DATA_DIR', 'HF_ENDPOINT'):
        env.pop(name, None)
    env |= environment
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), env.get('PYTHONPATH')]))
    command = [sys.executable, '-c', DRIVER, str(timeout), modes, names]
    p = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    found = [line for line in p.stdout.splitlines() if line.startswith('RESULTS')]
    assert found, p.stderr[-2000:]
    return json.loads(found[0].removeprefix('RESULTS'))

def complaints(results, timeout, host):
    "What is wrong: the exit code, a line without the host or the way on, or too long a wait"
    out = []
    for r in results:
        lines = [line for line in r['err'].splitlines() if line.startswith('lmnotes:')]
        said = lines[-1] if lines else r['err'][-300:]
        # the whole wait, and what the command does besides; the wait alone would be over a hundred times --hub_timeout
        late = r['seconds'] > 3*timeout + 25
        right = r['code'] in (1, 2) and 'Traceback' not in r['err'] and host in said and '--hub_timeout' in said
        if not right or late:
            out.append((r['mode'], r['name'], r['code'], round(r['seconds'], 1), said))
    return out

MODES = 'headers,body,drip,500,503,429,circle,relative'

def test_a_hub_that_misbehaves_costs_one_line(tmp_path):
    results = drive(tmp_path, .5, 'headers,drip,503,relative', 'model,dataset')
    assert not complaints(results, .5, 'http://127.0.0.1:')

@pytest.mark.slow
@pytest.mark.parametrize('name', ['model', 'tokenizer', 'dataset', 'stream', 'evaluate', 'generate', 'pack', 'reward'])
def test_every_command_and_every_way_to_fail(tmp_path, name):
    assert not complaints(drive(tmp_path, 1, MODES, name), 1, 'http://127.0.0.1:')

@pytest.mark.slow
def test_the_default_is_half_a_minute(tmp_path):
    results = drive(tmp_path, 10, 'headers,503', 'model,dataset')
    assert not complaints(results, 10, 'http://127.0.0.1:')

@pytest.mark.slow
def test_a_door_that_never_opens(tmp_path):
    "A listening socket whose queue is full takes no connection"
    with socket.socket() as door:
        door.bind(('127.0.0.1', 0))
        door.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for s in waiting:
            s.setblocking(False)
            s.connect_ex(door.getsockname())
        address = f'http://127.0.0.1:{door.getsockname()[1]}'
        results = drive(tmp_path, 1, 'connect', 'model,tokenizer,dataset,evaluate', HF_ENDPOINT=address)
        for s in waiting: s.close()
    assert not complaints(results, 1, address)
