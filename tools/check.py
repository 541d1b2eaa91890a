"""Check what changed: ruff, the structure, and the notebooks and tests that differ from HEAD, or else from its parent.

`python tools/check.py` stops after `--limit` seconds and then exits with 1: what did not run is not known to pass."""
import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 85    # seconds


def git_lines(*args)->list:
    "Run git and return its lines; none where it fails, as in a repository of one commit"
    done = subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if not done.returncode else []


def differing()->list:
    "List the files that differ from HEAD, or from its parent when none do"
    changed = git_lines('diff', '--name-only', 'HEAD') + git_lines('ls-files', '--others', '--exclude-standard')
    wanted = [f for f in changed if is_notebook(f) or is_test(f)]
    return wanted or git_lines('diff', '--name-only', 'HEAD~1', 'HEAD')


def is_notebook(name:str)->bool:
    "Tell whether a file is a page of the book"
    return name.startswith('nbs/') and name.endswith('.ipynb')


def is_test(name:str)->bool:
    "Tell whether a file holds tests; those of the structure are a step of their own"
    return name.startswith('tests/test_') and name.endswith('.py')


def steps(workers:int)->list:
    "List the commands to run"
    files = [f for f in differing() if (ROOT/f).exists()]
    notebooks, tests = filter(is_notebook, files), filter(is_test, files)
    commands = [['ruff', 'check', '--quiet'], ['tools/structure.py']]
    commands += [['tools/test_notebooks.py', '--workers', str(workers), *names] for names in [[*notebooks]] if names]
    commands += [['pytest', '-n', str(workers), '--dist', 'loadfile', *names] for names in [[*tests]] if names]
    return commands


def run(command, seconds:float)->str:
    "Run a command in a process group of its own and return what went wrong, or ''"
    first = [] if command[0].endswith('.py') else ['-m']
    env = os.environ | dict(OMP_NUM_THREADS='1')
    process = subprocess.Popen([sys.executable, *first, *command], cwd=ROOT, env=env, start_new_session=True)
    try:
        return 'failed' if process.wait(max(seconds, 0)) else ''
    except subprocess.TimeoutExpired:
        return 'stopped: no time left, `make test` runs everything'
    finally:
        if process.returncode is None: stop(process)


def stop(process):
    "Kill a command and what it started"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main()->int:
    "Run the steps and return the exit code"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--limit', type=float, default=LIMIT, help='seconds for all steps together')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes for notebooks and tests')
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    wrong = {}
    for command in steps(options.workers):
        name = Path(command[0]).stem
        start = time.monotonic()
        wrong[name] = run(command, end - start)
        print(f'{name}: {wrong[name] or "passed"} ({time.monotonic() - start:.0f} s)', flush=True)
    return int(any(wrong.values()))


if __name__ == '__main__': sys.exit(main())
