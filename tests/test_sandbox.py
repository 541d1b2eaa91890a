"Programs that try to get out of the sandbox, to fake its verdict, or to leave something behind; and honest ones"
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lmnotes.app.doctor import check_sandbox
from lmnotes.core import InputError
from lmnotes.rl import sandbox
from lmnotes.rl.isolation import containers
from lmnotes.rl.sandbox import Walls, measure, require_walls, run_code, run_tests, sandbox_walls

ROOT = Path(__file__).resolve().parents[1]
KINDS = ['bubblewrap', 'namespaces']

@pytest.fixture(scope='session', params=KINDS)
def kind(request):
    if sys.platform != 'linux': pytest.skip('needs namespaces of Linux')
    if request.param == 'bubblewrap' and not shutil.which('bwrap'): pytest.skip('bubblewrap is not installed')
    walls = measure(request.param)
    if not walls.kind: pytest.skip(f'this machine offers no such walls: {walls.why}')
    return request.param

@pytest.fixture(scope='session')
def any_kind():
    if not sandbox_walls().kind: pytest.skip(f'this machine offers no walls: {sandbox_walls().why}')

def try_all(attempts, kind, **names):
    "Run each attempt in one program; name -> what it printed, or the error"
    code = f'import json\nfound, names = {{}}, {names!r}\n'
    for name, text in attempts.items():
        body = f'def attempt(path, mark, text={text!r}):\n    exec(text, globals() | dict(path=path, mark=mark))\n'
        code += f'result = None\n{body}try:\n    attempt(**names)\n    found[{name!r}] = ["done", repr(result)]\n'
        code += f'except BaseException as e:\n    found[{name!r}] = ["refused", f"{{type(e).__name__}}: {{e}}"]\n'
    result = run_code(code + 'print(json.dumps(found))', kind=kind)
    assert result.ok, result
    return json.loads(result.output.strip().split('\n')[-1])

# %% Files

SECRET = 'xyzzy-5741'
READ = {
    'open': 'global result; result = open(path).read()',
    'os.open': 'import os; global result; result = os.read(os.open(path, 0), 99)',
    'readline': 'import readline; readline.read_history_file(path); global result; '
                'result = readline.get_history_item(1); assert result',
    'sqlite3': 'import sqlite3; sqlite3.connect("file:" + path + "?mode=ro", uri=True).execute("select 1 from x")',
    'tokenizers': 'from tokenizers import Tokenizer; Tokenizer.from_file(path)',
    'ctypes': 'import ctypes; libc = ctypes.CDLL(None, use_errno=True); f = libc.open(path.encode(), 0); '
              'assert f >= 0, "no file"',
    'numpy': 'import numpy; global result; result = numpy.fromfile(path, "u1").tobytes()',
    'link': 'import os; os.symlink(path, "/tmp/way"); global result; result = open("/tmp/way").read()',
    'hard link': 'import os; os.link(path, "/tmp/hard"); global result; result = open("/tmp/hard").read()',
    'environ of others': 'import os; global result; result = open(f"/proc/{os.getppid()}/environ").read()',
    'memory of others': 'global result; result = open("/proc/1/mem", "rb").read(1)',
    'shadow': 'global result; result = open("/etc/shadow").read()',
    'home': 'import os; global result; result = os.listdir("/root/.ssh")',
}
WRITE = {
    'open': 'open(mark, "w")',
    'os.mkdir': 'import os; os.mkdir(mark)',
    'readline': 'import readline; readline.add_history("a"); readline.write_history_file(mark)',
    'sqlite3': 'import sqlite3; sqlite3.connect(mark).execute("create table x (y)")',
    'tokenizers': 'from tokenizers import Tokenizer, models; Tokenizer(models.BPE()).save(mark)',
    'ctypes': 'import ctypes; assert ctypes.CDLL(None).creat(mark.encode(), 0o600) >= 0, "no file"',
    'link': 'import os; os.symlink(os.path.dirname(mark), "/tmp/folder"); '
            'open("/tmp/folder/" + os.path.basename(mark), "w")',
    'rename': 'import os; open("/tmp/mine", "w"); os.rename("/tmp/mine", mark)',
    'library': 'import os, json; open(os.path.dirname(json.__file__) + "/x", "w")',
    'root': 'open("/x", "w")',
}

@pytest.fixture(scope='module')
def places(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp('outside')
    secret, mark = folder/'secret', folder/'mark'
    secret.write_text(SECRET)
    secret.chmod(0o600)
    return secret, mark

@pytest.fixture(scope='module')
def reads(kind, places): return try_all(READ, kind, path=str(places[0]), mark=str(places[1]))

@pytest.fixture(scope='module')
def writes(kind, places): return try_all(WRITE, kind, path=str(places[0]), mark=str(places[1]))

@pytest.mark.parametrize('way', READ)
def test_no_file_of_others_is_read(way, reads):
    assert reads[way][0] == 'refused' and SECRET not in reads[way][1], reads[way]

@pytest.mark.parametrize('way', WRITE)
def test_nothing_is_written_outside(way, writes, places):
    assert writes[way][0] == 'refused', writes[way]
    assert not places[1].exists() and places[0].read_text() == SECRET

LIBRARY = '''
#include <fcntl.h>
#include <unistd.h>
int steal(const char *path) { return open(path, O_RDONLY); }
int plant(const char *path) { return open(path, O_WRONLY | O_CREAT, 0600); }
'''

def test_a_library_that_the_program_wrote_gets_no_further(kind, places, tmp_path):
    if not shutil.which('cc'): pytest.skip('needs a C compiler')
    (tmp_path/'x.c').write_text(LIBRARY)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', tmp_path/'x.so', tmp_path/'x.c'], check=True)
    code = f'''
import ctypes
open('/tmp/x.so', 'wb').write({(tmp_path/'x.so').read_bytes()!r})
x = ctypes.CDLL('/tmp/x.so')
print(x.steal(b'/tmp/x.so') >= 0, x.steal({os.fsencode(places[0])!r}), x.plant({os.fsencode(places[1])!r}))
'''
    assert run_code(code, kind=kind).output == 'True -1 -1\n' and not places[1].exists()

def test_a_file_that_only_its_owner_reads_is_not_read_below_a_library_either(kind):
    if os.getuid(): pytest.skip('needs root, whose files others cannot read')
    folder = Path(sandbox.__file__).parent/'isolation' # bound into the container
    secret = folder/'secret_of_a_test'
    try:
        secret.touch(0o600)
        secret.write_text(SECRET)
        code = f"print(open('/sandbox/isolation/{secret.name}').read())"
        result = run_code(code, kind=kind)
    finally:
        secret.unlink()
    assert not result.ok and SECRET not in result.output

# %% Network, processes, rights

def test_the_network_is_closed(kind):
    with socket.create_server(('127.0.0.1', 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind('\0lmnotes_test_of_walls')
        local.listen()
        attempts = {
            'tcp': f'import socket; socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2)',
            'name': 'import urllib.request; urllib.request.urlopen("http://example.org", timeout=2)',
            'udp': 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))',
            'unix': 'import socket; socket.socket(socket.AF_UNIX).connect("\\0lmnotes_test_of_walls")',
            'vsock': 'import socket; socket.socket(40, socket.SOCK_STREAM).connect((2, 1))',
            'raw': 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)',
        }
        found = try_all(attempts, kind, path='', mark='')
    assert {k: v[0] for k, v in found.items()} == dict.fromkeys(attempts, 'refused')

def test_processes_of_others_are_neither_seen_nor_started(kind):
    attempts = {
        'fork': 'import os; os.fork() or os._exit(0)',
        'subprocess': 'import subprocess; subprocess.run(["/bin/true"])',
        'exec': 'import os; os.execv("/bin/true", ["true"])',
        'kill': f'import os; os.kill({os.getpid()}, 0)',
        'list': 'import os; os.listdir("/proc")',
    }
    found = try_all(attempts, kind, path='', mark='')
    assert {k: v[0] for k, v in found.items()} == dict.fromkeys(attempts, 'refused')

def test_rights_are_gone_for_good(kind):
    code = '''
import ctypes, os
libc = ctypes.CDLL(None)
data = (ctypes.c_uint32*6)()
libc.capget((ctypes.c_uint32*2)(0x20080522, 0), data)
print(any(data), os.getuid() == 0, libc.prctl(39, 0, 0, 0, 0), libc.setuid(0), libc.unshare(0x10000000))
print(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.syscall(425, 1, None), libc.chroot(b'/tmp'))
'''
    assert run_code(code, kind=kind).output == 'False False 1 -1 -1\n-1 -1 -1\n'

def test_threads_are_let_be_up_to_a_number(kind):
    one = 'import threading\nt = threading.Thread(target=print, args=["there"]); t.start(); t.join()'
    assert run_code(one, kind=kind).output == 'there\n'
    bomb = 'import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[9], daemon=True).start()'
    assert "can't start new thread" in run_code(bomb, kind=kind).why

def test_the_environment_is_not_ours(kind, monkeypatch):
    monkeypatch.setenv('A_TOKEN_OF_OURS', SECRET)
    assert SECRET not in run_code('import os; print(dict(os.environ))', kind=kind).output

# %% Limits

LIMITS = {
    'time': ('while True: pass', 'time limit'),
    'sleep': ('import time\ntime.sleep(99)', 'time limit'),
    'memory': ('x = bytearray(10**10)', 'error'),
    'file': ('f = open("/tmp/big", "wb")\nwhile True: f.write(bytes(10**6))', 'error'),
    'disk': ('for i in range(10**6): open(f"/tmp/{i}", "wb").write(bytes(15*2**20))', 'disk limit'),
    'crash': ('import ctypes\nctypes.string_at(0)', 'ended early'),
    'error': ('1/0', 'error'),
}

@pytest.mark.parametrize('what', LIMITS)
def test_limits_give_a_verdict_with_its_reason(what, kind):
    code, verdict = LIMITS[what]
    result = run_code(code, seconds=3, kind=kind)
    assert (result.verdict, bool(result.why)) == (verdict, True), result

def test_memory_is_what_was_allowed(kind):
    "RLIMIT_AS: the address space of the program, which it cannot widen"
    take = 'x = bytearray(600*2**20)\nprint("taken")'
    assert run_code(take, kind=kind, megabytes=1024).output == 'taken\n'
    result = run_code(take, kind=kind, megabytes=512)
    assert result.verdict == 'error' and 'MemoryError' in result.why, result
    widen = 'import resource\nprint(resource.getrlimit(resource.RLIMIT_AS))\n' \
            'resource.setrlimit(resource.RLIMIT_AS, (-1, -1))'
    result = run_code(widen, kind=kind, megabytes=512)
    assert result.verdict == 'error' and f'{(2**29, 2**29)}\n' in result.output, result
    assert 'not allowed to raise maximum limit' in result.output

# %% The verdict

ADD = 'def add(a, b):\n    return a + b\n'
CASES = 'import unittest\nclass T(unittest.TestCase):\n    def test_add(self): self.assertEqual(add(2, 3), 5)\n'
ASSERTS = {'assert': 'assert add(2, 3) == 5', 'case': CASES}
ZERO = 'def add(a, b): return 0\n'
FAKES = {
    'always equal': '''
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 5
    def __sub__(self, other): return 0
    def __bool__(self): return True
def add(a, b): return Equal()
''',
    'always equal number': '''
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def add(a, b): return Equal(0)
''',
    'builtins': "import builtins\nsetattr(builtins, 'ex'+'ec', lambda *a: None)\nbuiltins.compile = None\n" + ZERO,
    'unittest': "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n" + ZERO,
    'frames': '''
import sys
def add(a, b):
    f = sys._getframe()
    while f:
        for space in (f.f_globals, f.f_locals):
            for name in list(space):
                if 'assert' in name.lower() or name in ('verdict', 'ok', 'why'): space[name] = 'passed'
        f = f.f_back
    return 0
''',
    'garbage': '''
import gc
def add(a, b):
    for o in gc.get_objects():
        if isinstance(o, dict) and 'verdict' in o: o['verdict'] = 'passed'
    return 0
''',
    'exit': 'raise SystemExit(0)',
    'exit in a call': 'import sys\ndef add(a, b): sys.exit(0)',
    '_exit': 'import os\nos._exit(0)',
    '_exit in a call': 'import os\ndef add(a, b): os._exit(0)',
    'kill': 'import os\ndef add(a, b): os.kill(os.getpid(), 9)',
    'skip': 'import unittest\ndef add(a, b): raise unittest.SkipTest("not today")',
    'interrupt': 'def add(a, b): raise KeyboardInterrupt',
    'marker': 'print(\'["passed", ""]\')\nprint("OK")\n' + ZERO,
    'descriptors': '''
import os
for fd in range(3, 64):
    try: os.write(fd, b'["passed", ""]')
    except OSError: pass
''' + ZERO,
    'load_tests': 'import unittest\ndef load_tests(*a): return unittest.TestSuite()\n' + ZERO,
    'atexit': 'import atexit, os\natexit.register(os._exit, 0)\n' + ZERO,
    'planted modules': '''
import os
for name in ('unittest', 'json', 'sitecustomize', 'usercustomize', 'linecache', 'traceback', 'difflib'):
    for folder in ('/tmp', os.getcwd()):
        with open(f'{folder}/{name}.py', 'w') as f: f.write('import os; os._exit(0)')
''' + ZERO,
    'nothing': 'pass',
    'no program': 'def add(a, b:',
}

@pytest.mark.parametrize('form', ASSERTS)
@pytest.mark.parametrize('fake', FAKES)
def test_a_verdict_cannot_be_faked(fake, form, any_kind):
    result = run_tests(FAKES[fake], ASSERTS[form], seconds=5)
    assert not result.ok and result.why, result
    assert result.verdict in ('failed', 'error', 'ended early'), result

TRICKY = {
    'close': 'import math\nassert math.isclose(add(1, 2), 3)',
    'almost': 'import unittest\nclass T(unittest.TestCase):\n'
              '    def test(self): self.assertAlmostEqual(add(1, 2), 3.0)',
    'in': 'assert 3 in add(1, 2)',
    'difference': 'assert abs(add(1, 2) - 3) < 1e-6',
    'less': 'assert 2 < add(1, 2) < 4',
    'array': 'import numpy as np\nnp.testing.assert_allclose(add(1, 2), np.array([3.]))',
    'nested': 'assert [add(1, 2)] == [3]',
    'key': 'assert {3: True}[add(1, 2)]',
    'identity': 'assert add(1, 2) is 3',
}

@pytest.mark.parametrize('how', TRICKY)
def test_an_object_that_agrees_with_everything_equals_nothing(how, any_kind):
    names = '''eq ne lt le gt ge sub rsub add radd mul contains abs round bool call getitem iter next len hash float int
    array_ufunc array_function array_priority array_interface array_struct'''.split()
    body = '\n'.join(f'    def __{n}__(self, *a, **k): return {"0" if n in ("hash", "len") else "True"}' for n in names)
    result = run_tests(f'class Yes:\n{body}\ndef add(a, b): return Yes()', TRICKY[how])
    assert not result.ok, result

def test_a_program_cannot_take_the_tests_apart(any_kind):
    tests = '''
seen = []
def key(x):
    seen.append(x)
    return x
assert add(key, 1) == 5
'''
    attempts = 'key.__globals__', 'key.__code__', 'key.__closure__', 'setattr(key, "x", 1)', 'key.__self__'
    for text in attempts:
        code = f'def add(key, b):\n    try: {text}\n    except (AttributeError, TypeError): return 5\n    return 0\n'
        result = run_tests(code, tests)
        assert result.ok, (text, result)
    mock = 'from unittest import mock\nm = mock.Mock()\nadd(m, 1)\nm.assert_called_once_with(7)\n'
    for text in ('m.assert_called_once_with = print', 'm.configure_mock(assert_called_once_with=print)',
                 'm.reset_mock()', 'm.__class__.assert_called_once_with = print'):
        assert not run_tests(f'def add(m, b):\n    try: {text}\n    except Exception: pass\n', mock).ok, text

# %% Honest programs

HONEST = {
    'asserts': (ADD, 'assert add(2, 3) == 5\nassert add("a", "b") == "ab"\nassert add((1,), (2,)) == (1, 2)'),
    'humaneval': ('from typing import List\ndef close(xs: List[float], t: float) -> bool:\n'
                  '    return any(abs(a - b) < t for i, a in enumerate(xs) for b in xs[i+1:])',
                  'METADATA = {}\ndef check(candidate):\n    assert candidate([1.0, 2.0, 3.9], 0.3) == False\n'
                  '    assert candidate([1.0, 2.8, 3.0], 0.3) == True\ncheck(close)'),
    'name of a builtin': ('def sum(a, b): return a + b', 'assert sum(10, 15) == 25'),
    'in place': ('def order(x): x.sort()', 'x = [3, 1, 2]\norder(x)\nassert x == [1, 2, 3]'),
    'types': ('import collections, datetime, decimal\n'
              'def f(): return [{1: (2, {3})}, collections.Counter("aab"), b"x",\n'
              '    datetime.date(2020, 1, 2), decimal.Decimal("0.1"), 1j, float("inf"), 10**400, None, range(3)]',
              'import collections, datetime, decimal\nassert f() == [{1: (2, {3})}, collections.Counter("aab"), b"x",\n'
              '    datetime.date(2020, 1, 2), decimal.Decimal("0.1"), 1j, float("inf"), 10**400, None, range(3)]'),
    'errors': ('class Odd(ValueError): pass\ndef f(x):\n    if x: raise Odd("odd", x)\n    raise KeyError("k")',
               'import unittest\nclass T(unittest.TestCase):\n    def test(self):\n'
               '        with self.assertRaises(Odd) as e: f(1)\n'
               '        self.assertEqual(e.exception.args, ("odd", 1))\n'
               '        self.assertRaises(ValueError, f, 1)\n        self.assertRaises(KeyError, f, 0)'),
    'objects': ('class Box:\n    def __init__(self, x): self.x = x\n    def twice(self): return Box(2*self.x)\n'
                '    def __eq__(self, o): return self.x == o.x\n    def __len__(self): return self.x',
                'b = Box(3)\nassert b.twice().x == 6 and b.twice() == Box(6) and len(b) == 3 and isinstance(b, Box)\n'
                'b.x = 5\nassert b.twice().x == 10'),
    'generators': ('def count(n):\n    for i in range(n): yield i',
                   'assert list(count(3)) == [0, 1, 2]\nit = count(2)\nassert next(it) == 0 and next(it) == 1'),
    'functions': ('def apply(f, xs): return [f(x) for x in xs]\ndef adder(n): return lambda x: x + n',
                  'assert apply(lambda x: x*x, [1, 2]) == [1, 4] and adder(2)(3) == 5'),
    'print': ('def hello(): print("hello")', 'import io, contextlib\nout = io.StringIO()\n'
              'with contextlib.redirect_stdout(out): hello()\nassert out.getvalue() == "hello\\n"'),
    'seeds': ('import random\ndef draw(): return random.randint(0, 10**9)',
              'import random\nrandom.seed(7)\na = draw()\nb = draw()\nrandom.seed(7)\n'
              'assert draw() == a == random.randint(0, 10**9) and a != b'),
    'files': ('def save(p, s):\n    with open(p, "w") as f: f.write(s)',
              'import tempfile, os\nwith tempfile.TemporaryDirectory() as d:\n    p = os.path.join(d, "x")\n'
              '    save(p, "abc")\n    assert open(p).read() == "abc"'),
    'mocks': ('import os\ndef count(p):\n    with open(p) as f: return len(f.read()) + len(os.listdir(p))',
              'from unittest.mock import patch, mock_open\n'
              'with patch("builtins.open", mock_open(read_data="abc")) as m, patch("os.listdir", return_value=["a"]):\n'
              '    assert count("/nowhere") == 4\nm.assert_called_once_with("/nowhere")'),
    'environment': ('import os\ndef f(): return os.environ["WORD"], os.getcwd()',
                    'import os\nos.environ["WORD"] = "x"\nos.mkdir("/tmp/d"); os.chdir("/tmp/d")\n'
                    'assert f() == ("x", "/tmp/d")'),
    'numpy': ('import numpy as np\ndef f(x): return x @ x.T', 'import numpy as np\nx = np.arange(6.).reshape(2, 3)\n'
              'np.testing.assert_allclose(f(x), x @ x.T)\nassert f(x).dtype == x.dtype'),
    'pandas': ('import pandas as pd\ndef f(d): return d.groupby("a", as_index=False).sum()',
               'import pandas as pd\nd = pd.DataFrame(dict(a=["x", "y", "x"], b=[1, 2, 3], c=[.5, 1., None]))\n'
               'want = pd.DataFrame(dict(a=["x", "y"], b=[4, 2], c=[.5, 1.]))\n'
               'pd.testing.assert_frame_equal(f(d), want)'),
    'matplotlib': ('import matplotlib.pyplot as plt\ndef f():\n    _, ax = plt.subplots()\n'
                   '    ax.plot([1, 2], [3, 4])\n'
                   '    ax.set_title("t")\n    return ax', 'import matplotlib.pyplot as plt\nax = f()\n'
                   'assert isinstance(ax, plt.Axes) and ax.get_title() == "t"\n'
                   'assert ax.lines[0].get_ydata().tolist() == [3, 4]'),
}

@pytest.mark.parametrize('what', HONEST)
def test_honest_programs_pass(what, any_kind):
    code, tests = HONEST[what]
    for package in ('pandas', 'matplotlib'):
        if package in tests: pytest.importorskip(package)
    result = run_tests(code, tests)
    assert result.ok, result

def test_both_kinds_of_walls_judge_alike(kind):
    assert run_tests(ADD, CASES, kind=kind).verdict == 'passed'
    assert run_tests(ZERO, CASES, kind=kind).verdict == 'failed'

def known_tasks(numbers):
    "Recorded answers of BigCodeBench that need nothing but what is installed"
    root = Path(os.environ.get('LMNOTES_DATA_DIR') or ROOT.parent/'shared/data')
    if not root.is_dir(): pytest.skip('needs real rows: set LMNOTES_DATA_DIR to a folder in hub layout')
    from lmnotes.data.catalog import find_dataset
    from lmnotes.data.dataset_splits import load_rows
    (rows,) = load_rows(find_dataset('bigcodebench'), str(root)).values()
    return [rows[i] for i in numbers]

@pytest.mark.parametrize('number', [3, 8, 32, 152, 208, 296, 312, 320, 632])
def test_recorded_answers_pass(number, any_kind):
    row, = known_tasks([number])
    result = run_tests(row['code_prompt'] + row['canonical_solution'], row['test'])
    assert result.ok, result
    wrong = row['code_prompt'] + '    return None\n'
    assert not run_tests(wrong, row['test']).ok

# %% Nothing stays

def test_nothing_is_left_behind(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    deep = '''
import os
for _ in range(1500):
    os.mkdir('d'); os.chdir('d')
os.symlink('/etc', '/tmp/link'); os.mkfifo('/tmp/pipe'); os.mkdir('/tmp/closed'); os.chmod('/tmp/closed', 0)
'''
    before = descendants(os.getpid())
    assert run_code(deep, kind=kind).ok
    assert run_code('import time\ntime.sleep(99)', seconds=1, kind=kind).verdict == 'time limit'
    assert list(tmp_path.iterdir()) == [] and descendants(os.getpid()) == before

def children_of(pid):
    out = subprocess.run(['ps', '-o', 'pid=,args=', '--ppid', str(pid)], capture_output=True, text=True).stdout
    return [l for l in out.split('\n') if l.strip() and not l.split()[1].startswith('ps')]

def test_a_killed_owner_takes_its_programs_along(kind, tmp_path):
    word = f'{time.time_ns()}'
    code = f'run_code("import time; time.sleep(60) # {word}", seconds=60, kind={kind!r})'
    command = [sys.executable, '-c', f'from lmnotes.rl.sandbox import run_code\n{code}']
    owner = subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(TMPDIR=str(tmp_path)))
    try:
        for _ in range(300):
            if found := descendants(owner.pid): break
            time.sleep(.1)
        time.sleep(1)
        found = descendants(owner.pid)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    for _ in range(100):
        if not any(Path(f'/proc/{p}').exists() for p in found): break
        time.sleep(.1)
    assert found and not [p for p in found if Path(f'/proc/{p}').exists()]

def descendants(pid):
    children = [int(l.split()[0]) for l in children_of(pid)]
    return children + [d for c in children for d in descendants(c)]

# %% Refusal

def test_without_walls_programs_are_refused(monkeypatch, capsys, tmp_path):
    from lmnotes.app.cli import main
    from lmnotes.rl.settings import RLSettings, check_rl_settings
    monkeypatch.setattr(sandbox, 'sandbox_walls', lambda: Walls('', {}, 'darwin has no namespaces'))
    for call in (require_walls, lambda: run_tests(ADD, 'assert add(1, 2) == 3'), lambda: run_code('1'),
                 lambda: check_rl_settings(RLSettings(allow_execution=True))):
        with pytest.raises(InputError, match='no walls .*allow_execution'): call()
    check_rl_settings(RLSettings())
    assert main(['evaluate', '--model', str(tmp_path), '--tasks', 'code', '--allow_execution']) == 2
    err = capsys.readouterr().err
    assert 'no walls' in err and 'Traceback' not in err and not list(tmp_path.iterdir())

def test_the_refusal_names_what_to_install(monkeypatch):
    monkeypatch.setattr(sandbox, 'which', lambda name: None)
    monkeypatch.setattr(sandbox.sys, 'platform', 'linux')
    assert 'apt-get install bubblewrap' in sandbox.walls_advice()
    monkeypatch.setattr(sandbox.sys, 'platform', 'darwin')
    assert 'Linux' in sandbox.walls_advice() and sandbox_walls.__wrapped__().kind == ''

def in_user_namespace(*command):
    done = subprocess.run(['unshare', '-U', '-r', 'true'], capture_output=True)
    if done.returncode: pytest.skip('users may make no namespaces here')
    return subprocess.run(['unshare', '-U', '-r', *command], cwd=ROOT, capture_output=True, text=True, timeout=120)

WHO = 'from lmnotes.rl.sandbox import *\nprint(sandbox_walls())\nprint(run_tests("x = 1", "assert x == 1").verdict)'

def test_it_works_without_root(any_kind):
    done = in_user_namespace(sys.executable, '-c', WHO)
    assert done.stdout.split('\n')[1] == 'passed', done.stdout + done.stderr

def test_a_container_without_namespaces_is_refused(any_kind):
    close = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    done = in_user_namespace('sh', '-c', close, 'sh', sys.executable, '-c', WHO)
    assert done.stdout.startswith('none: ') and 'InputError: no program is run here' in done.stderr, done

def test_a_wall_that_does_not_hold_is_not_claimed(monkeypatch, any_kind):
    probe = sandbox._PROBE.replace('measure_walls()', 'measure_walls() | dict(calls=False)')
    monkeypatch.setattr(sandbox, '_PROBE', probe)
    walls = measure(sandbox_walls().kind)
    assert walls.kind and not walls.held['calls'] and 'not here: calls' in str(walls)
    assert check_sandbox(walls).state == 'ok' and 'not here: calls' in str(check_sandbox(walls))
    monkeypatch.setattr(sandbox, '_PROBE', probe.replace('calls=', 'network='))
    assert measure(walls.kind).why.endswith('leaves open: network')

# %% Unusual places

def test_a_package_below_the_temporary_folder_is_imported(kind, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    (tmp_path/'here_only.py').write_text('x = 5', encoding='utf-8')
    folders, links = containers.readable_places()
    monkeypatch.setattr(containers, 'readable_places', lambda: ([*folders, str(tmp_path)], links))
    libraries = containers.library_folders()
    monkeypatch.setattr(containers, 'library_folders', lambda: [*libraries, str(tmp_path)])
    before = os.umask(0o077)
    try:
        assert run_tests('import here_only, random\nx = here_only.x', 'assert x == 5', kind=kind).verdict == 'passed'
    finally:
        os.umask(before)
