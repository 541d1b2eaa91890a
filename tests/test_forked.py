"A fork of a process that has imported lmnotes is to its caller what a new process is"
import os
import signal
import subprocess
import sys

import pytest
from forked import Popen, forkable, run

SAY = '''import os, sys
print(sys.argv, os.getcwd(), os.environ.get('MARK'), os.environ.get('GONE'), __name__)
print(sys.stdin.read().upper(), file=sys.stderr)
sys.exit(7)'''

@pytest.fixture
def env(monkeypatch):
    monkeypatch.setenv('GONE', '1')
    return {k: v for k,v in os.environ.items() if k != 'GONE'} | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')

def python(*words): return [sys.executable, *words]

def test_arguments_environment_folder_pipes_and_exit_code(env, tmp_path):
    options = dict(env=env | dict(MARK='m'), cwd=tmp_path, input='asked', capture_output=True, text=True, timeout=60)
    forked,usual = (f(python('-c', SAY, 'a b', '--c'), **options) for f in (run, subprocess.run))
    assert forked.returncode == usual.returncode == 7
    assert forked.stdout == usual.stdout and forked.stderr == usual.stderr and 'ASKED' in forked.stderr

def test_a_module_is_run_as_python_runs_it(env, capfd):
    words = python('-m', 'lmnotes', 'train', '--model', 'reversable')
    forked,usual = (f(words, env=env, capture_output=True, text=True) for f in (run, subprocess.run))
    assert (forked.returncode, forked.stdout, forked.stderr) == (usual.returncode, usual.stdout, usual.stderr)
    assert forked.returncode == 2 and "did you mean 'reversible'?" in forked.stderr
    assert run(python('-m', 'lmnotes', '--version'), env=env).returncode == 0
    from lmnotes import __version__
    assert capfd.readouterr().out == f'{__version__}\n' # the caller's own output, where no pipe is asked for

def test_an_error_and_the_end_of_the_interpreter_are_the_usual_ones(env):
    code = "import atexit\natexit.register(print, 'the end')\nraise KeyError('lost')"
    done = run(python('-c', code), env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == 'the end\n' and done.stderr.endswith("KeyError: 'lost'\n")

@pytest.mark.parametrize('sign', ['SIGKILL', 'SIGTERM', 'SIGINT'])
def test_signals_reach_it(env, sign):
    with Popen(python('-c', "import time; print('up', flush=True); time.sleep(60)"), env=env, stdout=subprocess.PIPE,
               stderr=subprocess.DEVNULL) as p:
        assert p.stdout.readline() == b'up\n' and p.poll() is None
        with pytest.raises(subprocess.TimeoutExpired): p.wait(.01)
        p.send_signal(getattr(signal, sign))
        assert p.wait(60) == -getattr(signal, sign) == p.poll()

def test_a_session_of_its_own_and_many_at_once(env):
    code = 'import os; print(os.getpid(), os.getsid(0))'
    start = lambda session: Popen(python('-c', code), env=env, stdout=subprocess.PIPE, start_new_session=session)
    for session,p in [(s, start(s)) for s in (True, False, True)]:
        pid,sid = map(int, p.communicate()[0].split())
        assert pid == p.pid and p.returncode == 0 and (sid == pid) == session

def test_it_begins_with_what_the_command_line_imports_and_nothing_more(env):
    code = "import sys; print(*(m in sys.modules for m in ('lmnotes.training.train', 'lmnotes.all', 'pytest')))"
    done = run(python('-c', code), env=env, capture_output=True, text=True)
    assert done.stdout.split() == ['True', 'False', 'False']

def test_other_commands_start_as_usual(tmp_path):
    assert forkable(['ls']) is None and forkable(python('x.py')) is None and forkable(python('-m', 'pip')) is None
    assert forkable('python -c 1') is None and forkable(python('-u', '-m', 'lmnotes', 'x')) == ['-m', 'lmnotes', 'x']
    assert run(['echo', 'here'], capture_output=True, cwd=tmp_path).stdout == b'here\n'
