"""Streams of remote datasets: a hub on this machine that stalls, breaks off and sends garbage; a kill
and a resume."""
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from forked import run as run_forked

from lmnotes.core import InputError, RunError, set_seed
from lmnotes.data.catalog import find_dataset
from lmnotes.data.dataset_splits import load_documents, load_rows
from lmnotes.data.sources.hub_requests import RetryPolicy
from lmnotes.data.sources.hub_rows import hub_files, parquet_revision, pick_config
from lmnotes.data.streaming.data import (
    ChunkStream,
    SampleStream,
    StreamLoader,
    StreamSource,
    stream_data,
    stream_source,
)
from lmnotes.data.token_encoding import encode_documents, encode_separately, token_bytes, tokenizer_kind
from lmnotes.data.tokenizers import byte_tokenizer, get_tokenizer, hub_tokenizer

pa = pytest.importorskip('pyarrow')
import pyarrow.parquet as pq

real = Path(os.environ.get('LMNOTES_DATA_DIR') or Path(__file__).parents[2]/'shared/data')
needs_real = pytest.mark.skipif(
    not (real / 'MANIFEST.json').is_file(),
    reason=f'no sample of the real datasets at {real}; set LMNOTES_DATA_DIR',
)
sha,soon = 'a'*40,RetryPolicy(timeout=.5, tries=3, wait=.02)

def commit_of(revision): return 'c'*40 if revision == parquet_revision else sha
N = 100_000

def parquet(rows, group=1000, labels=None):
    out,table = io.BytesIO(),pa.Table.from_pylist(rows)
    if labels:
        table = table.replace_schema_metadata(
            dict(
                huggingface=json.dumps(
                    dict(
                        info=dict(
                            features={
                                k: dict(_type='ClassLabel', names=v) for k, v in labels.items()
                            }
                        )
                    )
                )
            )
        )
    pq.write_table(table, out, row_group_size=group)
    return out.getvalue()

class Hub(BaseHTTPRequestHandler):
    "The hub's files, lists and ranges, and its bad days"
    protocol_version = 'HTTP/1.1'
    # (id, revision) -> {path: bytes}; what happens to the next reads of data; ranges given out
    sets,trouble,served = {},[],[]
    def log_message(self, *a): pass
    def say(self, code, body=b'', **headers):
        try:
            self.send_response(code)
            for k,v in {'Content-Length': len(body), **headers}.items():
                self.send_header(k.replace('_', '-'), str(v))
            self.end_headers()
            if self.command != 'HEAD': self.wfile.write(body)
        except OSError:
            self.close_connection = True
    def do_HEAD(self): self.do_GET()
    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.api(unquote(self.path.split('?')[0]))
    def do_GET(self):
        path = unquote(self.path.split('?')[0])
        if path.startswith('/api/'): return self.api(path)
        id,_,rest = path.removeprefix('/datasets/').partition('/resolve/')
        for (i,rev),files in self.sets.items():
            for r in (rev, commit_of(rev)):
                if i == id and rest.startswith(r + '/') and rest[len(r)+1:] in files:
                    return self.data(files[rest[len(r)+1:]])
        self.say(404, X_Error_Code='EntryNotFound')
    def api(self, path):
        parts = path.removeprefix('/api/datasets/').split('/')
        id = '/'.join(parts[:2])
        tail = '/'.join(parts[2:])
        if id == 'shy/gated':
            return self.say(
                403, b'Access to dataset shy/gated is restricted (gated)', X_Error_Code='GatedRepo'
            )
        kind,_,rev = tail.partition('/')
        have = {r: f for (i,r),f in self.sets.items() if i == id}
        if not have: return self.say(404, X_Error_Code='RepoNotFound')
        named = {n: r for r in have for n in (commit_of(r), r)}
        under = ''
        if kind == 'tree':
            whole,rev = rev,next((n for n in named if rev == n or rev.startswith(n + '/')), rev)
            under = whole.removeprefix(rev).strip('/') + '/' if whole != rev else ''
        revision = named.get(rev or 'main')
        if revision is None: return self.say(404, X_Error_Code='RevisionNotFound')
        files = have[revision]
        entries = [
            dict(type='file', path=p, size=len(b), oid='b' * 40)
            for p, b in files.items()
            if p.startswith(under)
        ]
        if 'recursive=false' in self.path: # what lies right there, folders too
            deep = sorted(
                {
                    p[: p.index('/', len(under))]
                    for p in files
                    if p.startswith(under) and '/' in p[len(under) :]
                }
            )
            entries = [e for e in entries if '/' not in e['path'][len(under) :]] + [
                dict(type='directory', path=p, oid='c' * 40, size=0) for p in deep
            ]
        if kind in ('tree', 'paths-info'):
            return self.say(200, json.dumps(entries).encode(), Content_Type='application/json')
        self.say(
            200,
            json.dumps(
                dict(
                    _id='1',
                    id=id,
                    sha=commit_of(revision),
                    private=False,
                    gated=False,
                    disabled=False,
                    downloads=0,
                    likes=0,
                    tags=[],
                    siblings=[dict(rfilename=p) for p in files],
                )
            ).encode(),
            Content_Type='application/json',
        )
    def data(self, body):
        given = self.headers.get('Range')
        a,b = 0,len(body) - 1
        if given:
            a,b = map(int, given.removeprefix('bytes=').split('-'))
            b = min(b, len(body) - 1)
        part = body[a:b+1]
        what = self.trouble.pop(0) if self.trouble and self.command == 'GET' else ''
        if what == 'stall': time.sleep(1)
        if what == 'busy': return self.say(503)
        if what == 'garbage': part = np.random.RandomState(0).bytes(len(part))
        head = dict(ETag=f'"{len(body)}"', X_Repo_Commit=sha, Accept_Ranges='bytes')
        if given: head['Content_Range'] = f'bytes {a}-{b}/{len(body)}'
        self.served.append((a, b))
        if what == 'break':
            head['Content-Length'] = len(part)
            part = part[:len(part)//2]
            self.close_connection = True
        self.say(206 if given else 200, part, **head)

class Server(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *a): pass # a client that went away

@pytest.fixture(scope='module')
def endpoint():
    far = [dict(text=f'document {i} says {i*7919 % 1000}') for i in range(N)]
    quarter = N//4
    Hub.sets.update(
        {
            ('skylion007/openwebtext', parquet_revision): {
                f'plain_text/train/{f:04}.parquet': parquet(far[f * quarter : (f + 1) * quarter])
                for f in range(4)
            },
            ('openai/gsm8k', parquet_revision): {
                f'{c}/{s}/0000.parquet': parquet(
                    [dict(question=f'{i}+1?', answer=f'#### {i + 1}') for i in range(30)]
                )
                for c in ('main', 'socratic')
                for s in ('train', 'test')
            },
            ('old/script', 'main'): {'script.py': b'import datasets', 'README.md': b'# old\n'},
            ('old/script', parquet_revision): {
                f'{c}/train/0000.parquet': parquet([dict(text=c)]) for c in ('one', 'two')
            },
            ('big/one', parquet_revision): {'default/partial-train/0000.parquet': parquet(far[:10])},
            ('own/main', 'main'): {
                'data/train-00000-of-00001.parquet': parquet(
                    [dict(text='a', label=1), dict(text='b', label=0)],
                    labels=dict(label=['no', 'yes']),
                ),
                'README.md': b'# own\n',
            },
            ('own/quiz', 'main'): {
                f'data/{s}-00000-of-00001.parquet': parquet([dict(q=f'{s} {i}+1?', a=str(i + 1)) for i in range(60)])
                for s in ('train', 'validation')
            },
        }
    )
    server = Server(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()
    server.server_close()

@pytest.fixture
def hub(endpoint, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', endpoint)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.delenv('LMNOTES_DATA_DIR', raising=False)
    import huggingface_hub.constants as c
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', False)
    Hub.trouble.clear()
    Hub.served.clear()
    yield Hub
    Hub.trouble.clear()

def corpus():
    return StreamSource(
        'skylion007/openwebtext',
        hub_files('skylion007/openwebtext', retry_policy=soon)['plain_text']['train'],
        patience=soon,
    )
def number(row): return int(row['text'].split()[1])

# ---- 100,000 documents

def test_every_document_once_by_sample(hub):
    assert [number(r) for r in SampleStream(corpus())] == list(range(N))
    mixed = [number(r) for r in SampleStream(corpus(), shuffle=True, seed=3)]
    assert sorted(mixed) == list(range(N)) and mixed != list(range(N))
    groups = [len({i//1000 for i in mixed[k:k+3000]}) for k in range(0, N, 3000)]
    assert np.mean(np.abs(np.diff(mixed)) > 1) > .99 and min(groups[:-1]) >= 3

def test_every_token_once_by_chunk(hub):
    tok = byte_tokenizer()
    walk = ChunkStream(corpus(), tok)
    got = list(walk)
    whole = encode_documents(tok, [f'document {i} says {i*7919 % 1000}' for i in range(N)])
    assert all(len(c) == 4096 for c in got) and np.array_equal(
        np.concatenate(got), whole[: 4096 * len(got)]
    )
    assert (
        walk.n_left == len(whole) - 4096 * len(got)
        and f'{walk.n_left:,} tokens left' in walk.summary()
    )

def test_only_what_is_needed_is_read(hub):
    source = corpus()
    hub.served.clear()
    assert number(source.rows(3, 24)[999]) == N - 1
    assert sum(b - a + 1 for a,b in hub.served) < .15*sum(f['size'] for f in source.files)

child = '''
import json, sys
from lmnotes.data.sources.hub_requests import RetryPolicy
from lmnotes.data.sources.hub_rows import hub_files
from lmnotes.data.streaming.documents import *
from lmnotes.data.streaming.row_groups import *
from lmnotes.data.streaming.tokens import *
from lmnotes.data.tokenizers import byte_tokenizer
kind,log,state = sys.argv[1:]
source = StreamSource('skylion007/openwebtext', hub_files('skylion007/openwebtext')['plain_text']['train'])
if kind == 'sample': walk = SampleStream(source, shuffle=True, seed=3)
else: walk = ChunkStream(source, byte_tokenizer(), tokens_per_chunk=500, shuffle=True, seed=3)
with open(log, 'a', encoding='utf-8') as out:
    for item in walk:
        out.write(json.dumps([walk.state_dict(), item['text'] if kind == 'sample' else item.tolist()]) + '\\n')
        out.flush()
'''

@pytest.mark.parametrize('kind', ['sample', 'chunk'])
def test_killed_and_resumed(hub, endpoint, tmp_path, kind):
    log = tmp_path/'log'
    p = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', child, kind, log, 'x'],
        env=dict(os.environ, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE='0', OMP_NUM_THREADS='1'),
    )
    start = time.time()
    while not (log.is_file() and log.stat().st_size > 400_000):
        assert p.poll() is None and time.time() - start < 60
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    lines = [json.loads(l) for l in log.read_text(encoding='utf-8').split('\n')[:-1]]
    done,state = [l[1] for l in lines],lines[-1][0]
    make = (
        (lambda: SampleStream(corpus(), shuffle=True, seed=3))
        if kind == 'sample'
        else lambda: ChunkStream(
            corpus(), byte_tokenizer(), tokens_per_chunk=500, shuffle=True, seed=3
        )
    )
    def take(w, n): return [i['text'] if kind == 'sample' else i.tolist() for i in islice(w, n)]
    resumed = make()
    resumed.load_state_dict(state)
    assert done + take(resumed, 100) == take(make(), len(done) + 100)

# ---- bad days

@pytest.mark.parametrize('trouble,said', [
    ('stall', 'timed out'),
    ('break', 'received 32768 bytes'),
    ('garbage', 'not whole parquet'),
    ('busy', 'HTTP 503'),
])
def test_trouble_is_outlasted_or_named(hub, trouble, said):
    source = corpus()
    source.sizes(0)
    hub.trouble[:] = [trouble]*2
    assert number(source.rows(0, 2)[7]) == 2007 and not hub.trouble
    walk = SampleStream(source)
    rows = iter(walk)
    seen = [number(r) for r in islice(rows, 1500)]
    hub.trouble[:] = [trouble]*99
    start = time.time()
    with pytest.raises(RunError) as e:
        for r in rows: seen.append(number(r))
    line = str(e.value)
    hub.trouble.clear()
    assert time.time() - start < 5 and '\n' not in line
    for part in (
        "'skylion007/openwebtext'",
        'row 2,000 of plain_text/train/0000.parquet',
        'after 3 tries',
        'time-out 0.5 s',
        said,
    ):
        assert part in line, line
    # and the walk can go on from there
    assert seen + [number(r) for r in islice(walk, 500)] == list(range(2500))

def test_no_server_at_all(hub, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(RunError, match="list the files of 'openai/gsm8k'.*after 3 tries"):
        hub_files('openai/gsm8k', retry_policy=soon)

def test_offline_is_said_at_once(hub, monkeypatch):
    import huggingface_hub.constants as c
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    start = time.time()
    with pytest.raises(InputError, match='HF_HUB_OFFLINE is set.*--data_dir'):
        hub_files('openai/gsm8k')
    assert time.time() - start < 1

@pytest.mark.parametrize('call,says', [
    (lambda: stream_source('gsm8k', config='mian', patience=soon), "did you mean 'main'"),
    (
        lambda: pick_config('openai/gsm8k', hub_files('openai/gsm8k', retry_policy=soon), 'socratc'),
        "on the hub: did you mean 'socratic'",
    ),
    (lambda: stream_source('gsm8k', split='validation', patience=soon), "no split 'validation'"),
    (lambda: hub_files('shy/gated', retry_policy=soon), 'make a token at'),
    (lambda: hub_files('no/where', retry_policy=soon), 'is not on the hub'),
    (lambda: stream_source('gms8k'), "did you mean 'gsm8k'"),
])
def test_wrong_input(hub, call, says):
    with pytest.raises(InputError, match=says) as e:
        call()
    assert '\n' not in str(e.value)

def test_what_the_hub_lists(hub):
    assert [f['partial'] for f in hub_files('big/one')['default']['train']] == [True]
    assert (
        hub_files('own/main')['default']['train'][0]['path'] == 'data/train-00000-of-00001.parquet'
    )
    gsm = stream_source('gsm8k', patience=soon)
    assert [gsm.text(r) for r in islice(SampleStream(gsm), 1)] == [
        find_dataset('gsm8k').text(dict(question='0+1?', answer='#### 1'))
    ]

def test_hub_rows_through_datasets(hub, endpoint, tmp_path):
    "The whole road of `datasets`, in a process whose hub is ours; then with two bad reads"
    pytest.importorskip('datasets')
    code = (
        "from lmnotes.data.sources.hub_rows import *\n"
        "from lmnotes.data.sources.hub_requests import *\n"
        "r = hub_rows('own/main', retry_policy=RetryPolicy(5, "
        "4, .1)); print(r['train'], r['train'].labels)\n"
        "try: hub_rows('own/main', 'sst3', retry_policy=RetryPolicy(5, 2, .1))\nexcept Exception as "
        "e: print(type(e).__name__, e)\n"
    )
    for i,trouble in enumerate(([], ['busy']*3)):
        hub.trouble[:] = trouble
        env = {
            **os.environ,
            'HF_ENDPOINT': endpoint,
            'HF_HOME': str(tmp_path / str(i)),
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_OFFLINE': '0',
            'HF_DATASETS_OFFLINE': '0',
        }
        out = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True
        )
        assert out.stdout.count('\n') == 2, (out.stdout, out.stderr[-3000:])
        rows,bad = out.stdout.strip().split('\n')
        assert rows == (
            "[{'text': 'a', 'label': 1}, {'text': 'b', 'label': 0}] {'label': ['no', 'yes']}"
        ), out.stderr[-2000:]
        assert (
            bad.startswith("InputError 'own/main' has no configuration 'sst3'") and 'default' in bad
        )

def test_a_script_is_read_from_its_parquet_branch(hub, endpoint, tmp_path):
    "And of the configuration that was asked for alone"
    pytest.importorskip('datasets')
    code = (
        "from lmnotes.data.sources.hub_rows import *\n"
        "from lmnotes.data.sources.hub_requests import *\n"
        "print(hub_rows('old/script', 'two', "
        "retry_policy=RetryPolicy(5, 3, .1)))\n"
        "try: hub_rows('old/script', 'tow', retry_policy=RetryPolicy(5, 2, .1))\nexcept Exception "
        "as e: print(type(e).__name__, e)\n"
    )
    env = {
        **os.environ,
        'HF_ENDPOINT': endpoint,
        'HF_HOME': str(tmp_path),
        'HF_HUB_DISABLE_XET': '1',
        'HF_HUB_OFFLINE': '0',
        'HF_DATASETS_OFFLINE': '0',
    }
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True
    )
    assert out.stdout == (
        "{'train': [{'text': 'two'}]}\nInputError 'old/script' has no configuration 'tow' on "
        "the hub: did you mean 'two'?\n"
    ), (out.stdout, out.stderr[-3000:])

def test_rows_of_any_hub_dataset_are_trained_on_and_their_commit_is_kept(hub, endpoint, tmp_path):
    "The whole road of the command, of a dataset that the catalog does not know"
    pytest.importorskip('datasets')
    env = {**os.environ, 'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path/'home'), 'HF_HUB_DISABLE_XET': '1',
           'HF_HUB_OFFLINE': '0', 'HF_DATASETS_OFFLINE': '0', 'OMP_NUM_THREADS': '1'}
    words = '-m lmnotes train --dataset own/quiz --prompt_column q --target_column a --max_steps 2 --batch_size 2'
    words += ' --max_length 32 --device cpu --output_dir'
    out = run_forked([sys.executable, *words.split(), str(tmp_path/'run')], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    args = json.loads((tmp_path/'run/args.json').read_text())
    form = json.loads((tmp_path/'run/final/prompts.json').read_text())
    assert (args['data']['mode'], args['data']['commit']) == ('sft', sha)
    assert (form['dataset'], form['prompt_column'], form['columns']) == ('own/quiz', 'q', ['q', 'a'])
    wrong = [*words.replace('_column q', '_column qq').split(), str(tmp_path/'other')]
    out = run_forked([sys.executable, *wrong], env=env, capture_output=True, text=True)
    assert out.returncode == 2 and "'own/quiz' has no column 'qq' (--prompt_column)" in out.stderr.splitlines()[-1]

def test_a_stream_keeps_the_commit_that_it_reads(hub):
    words = dict(max_length=32, bs=2, valid_chunks=1, tokens_per_chunk=256, patience=soon, device='cpu')
    data = stream_data('own/quiz', text_column='q', **words)
    assert data.spec['commit'] == sha and f'commit {sha}' in ' '.join(data.notes)
    id = 'Skylion007/openwebtext'
    hub.sets[id, parquet_revision] = hub.sets[id.lower(), parquet_revision]
    try:
        data = stream_data('openwebtext', **words)
    finally:
        del hub.sets[id, parquet_revision]
    assert data.spec['commit'] == 'c'*40 # of its parquet branch
    assert all(f"/resolve/{'c'*40}/" in f['url'] for f in data.train.dataset.files)
    assert stream_data('prose', **words).spec['commit'] is None
    with pytest.raises(InputError, match='revision/v1'): stream_data('own/quiz', revision='v1', **words)

# ---- a learner fed by a stream

def learner(data, seed=0):
    from lmnotes.models.build import build_model
    from lmnotes.training.learner import lm_learner
    set_seed(seed)
    return lm_learner(
        build_model('standard', size='tiny', vocab_size=data.vocab_size), data, precision='fp32'
    )

def test_a_learner_resumes_in_the_stream(hub):
    data = stream_data(
        'prose',
        max_length=32,
        bs=4,
        max_chunks=4,
        tokens_per_chunk=512,
        valid_chunks=1,
        device='cpu',
    )
    def fit(learn, **dl):
        for k,v in dl.items(): setattr(learn.dls.train, k, v)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
        return learn.recorder.losses if hasattr(learn.recorder, 'losses') else []
    whole = learner(data)
    fit(whole, start=0, n_batches=16)
    assert len(data.train) == 16
    seen = [b['input_ids'] for b, in data.train]
    again = stream_data(**{k: v for k,v in data.spec.items()})
    again.train.load_state_dict(json.loads(json.dumps(data.train.state_dict(10))))
    assert (
        all(torch.equal(a, b['input_ids']) for a, (b,) in zip(seen[10:], again.train))
        and again.fingerprint == data.fingerprint
    )

@pytest.mark.parametrize('kw', [
    dict(walk='chunk'),
    dict(walk='sample'),
    dict(walk='chunk', max_chunks=3, tokens_per_chunk=700),
    dict(walk='chunk', part='train'),
    dict(walk='sample', shuffle=False),
])
def test_batches_are_a_function_of_seed_and_number(kw):
    rows = [dict(text=f'word {i} ' + 'x'*(i*37 % 90)) for i in range(400)]
    def make(**more):
        return StreamLoader(
            StreamSource(
                'toy', [dict(path=str(f), rows=rows[f * 100 : (f + 1) * 100]) for f in range(4)]
            ),
            byte_tokenizer(),
            **{**dict(T=24, seed=1, n_batches=60, bs=6, buffer=30), **kw, **more},
        )
    whole = [b['input_ids'] for b, in make()]
    ranks = [[b['input_ids'] for b, in make(bs=2, rank=r, world=3)] for r in range(3)]
    assert all(torch.equal(w, torch.cat(parts)) for w,*parts in zip(whole, *ranks))
    for k in (0, 1, 17, 59):
        dl = make()
        assert torch.equal(dl.batch(k)[0]['input_ids'], whole[k])
        state = json.loads(json.dumps(dl.state_dict(k)))
        other = make()
        other.load_state_dict(state)
        assert torch.equal(next(iter(other))[0]['input_ids'], whole[k])
    if kw.get('shuffle', True):
        assert not torch.equal(make(seed=2).batch(0)[0]['input_ids'], whole[0])

def test_validation_is_never_trained_on(tmp_path):
    (tmp_path / 'd.jsonl').write_text(
        ''.join(json.dumps(dict(text=f'line {i % 500}')) + '\n' for i in range(1000))
    )
    s = stream_source(data_path=tmp_path/'d.jsonl')
    a,b = ({r['text'] for r in SampleStream(s, part=p)} for p in ('train', 'validation'))
    assert not a & b and len(a) + len(b) == 500 and 10 < len(b) < 45

@needs_real
@pytest.mark.parametrize('name', ['gsm8k', 'imdb', 'sst2'])
def test_a_walk_reads_what_loading_reads(name):
    ds = find_dataset(name)
    rows = load_rows(ds, real)['train']
    assert list(SampleStream(stream_source(name, data_dir=real))) == [
        r for r in rows if ds.text(r).strip()
    ]

# ---- tokenizers

odd = [
    '',
    ' ',
    '\n',
    ' lead and trail ',
    'tab\tnew\r\nline',
    'don ’t  merge   spaces .',
    'naïve Ελλάδα 戦場 🧪👩‍🔬',
    '\x00\x7f\u0378',
    '▁low▁ line',
    '<0x0A><0xFF>',
    '<unk></s><s>',
    'é' * 50,
    '\u2028\x85\xa0\u3000',
    'x' * 5000,
    '\U0010ffff',
    'a\u0301\u0323',
    'ﬁ ½ ①',
    '\n\n\n   \n\t\t x',
]

@pytest.mark.parametrize('name,size', [('sentencepiece', None), ('sentencepiece', 600), ('bpe', 600)])
def test_any_text_comes_back(name, size, tmp_path):
    docs = load_documents(find_dataset('prose'), None, limit=30)[0]['train']
    tok = get_tokenizer(name, lambda: docs, size)
    tok.save_pretrained(tmp_path)
    again = hub_tokenizer(tmp_path)
    for t in (tok, again):
        each = encode_separately(t, odd)
        assert [t.decode(ids[:-1]) for ids in each] == odd
        assert token_bytes(t)[np.concatenate(each)].sum() == sum(len(o.encode()) for o in odd)
        assert tokenizer_kind(t) == ('sentencepiece' if name == 'sentencepiece' else 'other') and (
            size is None or len(t) == size
        )

@needs_real
def test_words_of_wikitext_are_the_published_ones(

): # Merity et al. 2016, table 1: 2,088,628 tokens, a vocabulary of 33,278
    docs = load_documents(find_dataset('wikitext/wikitext-2-v1'), real)[0]['train']
    tok = get_tokenizer('words', lambda: docs)
    ids = encode_documents(tok, docs)
    assert len(ids) - len(docs) == 2_088_628 - 1 # the blank first line belongs to no article
    # two kinds of line end for one, and the end and padding of our own
    assert len(tok) == 33_278 + 3
    # the unknown word takes its space with it
    assert tok.decode(encode_documents(tok, docs[:1])[:-1]) == docs[0].replace(' <unk>', '<unk>')
