"Run the notebooks, each in a process of its own, so that what one defines or leaves behind cannot reach the next"
import argparse
import gc
import importlib
import multiprocessing as mp
import os
import subprocess
import sys
import time
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

LIMIT = 300 # seconds a notebook may take
FIRST = 'tutorials', 'experiments' # folders with long ones, which begin first: none is left to one worker at the end
FORKED = ( # pages that start the library again and again, to do jobs
    '03_launchers', '04_equivalence', '06_executors', '09_bench_distributed', '10_memory_limits', '11_bench_resume',
    '13_bench_ternary',
)

def preload():
    "Import once what nearly every notebook imports; each process begins as a copy of this one"
    sys.path.insert(0, str(get_config().config_path))
    for name in (
        'lmnotes.core',
        'fastai.basics',
        'transformers',
        'datasets',
        'peft',
        'matplotlib.figure',
        'IPython.core.display',
    ):
        importlib.import_module(name)
    gc.freeze() # no page looks for garbage in it

def import_forked():
    "Return `tests/forked.py`"
    sys.path.append(str(get_config().config_path/'tests'))
    return importlib.import_module('forked')

def fork_processes():
    "Let what a page starts be forks of a process that has imported the library"
    subprocess.Popen = import_forked().Popen
    import_forked().fork_forkserver()

def run(nb):
    config = get_config()
    os.chdir(config.nbs_path)
    if nb.stem in FORKED: fork_processes()
    try:
        ok,_ = test_nb(nb, skip_flags=config.tst_flags.split(), basepath=config.config_path)
    except BaseException as e:
        print(f'{nb.name}: {type(e).__name__}: {e}', file=sys.stderr)
        ok = False
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not ok)

def run_all(notebooks, workers):
    "The names of those that failed"
    waiting,running,failed = list(notebooks),{},[]
    while waiting or running:
        while waiting and len(running) < workers:
            nb = waiting.pop(0)
            p = mp.get_context('fork').Process(target=run, args=(nb,))
            p.start()
            running[p.sentinel] = p,nb,time.time()
        for p,_,start in running.values():
            if time.time() - start > LIMIT:
                p.kill() # a notebook that waits for what never comes must not take the others along
        for sentinel in mp.connection.wait(list(running), timeout=1):
            p,nb,start = running.pop(sentinel)
            p.join()
            if p.exitcode: failed.append(nb.name)
            print(
                f"{time.time() - start:4.0f} s  "
                f"{nb.relative_to(get_config().nbs_path)}{'  FAILED' if p.exitcode else ''}",
                flush=True,
            )
    return failed

def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('path', nargs='*', type=Path, help='notebooks; none: all of them')
    args.add_argument('--workers', type=int, default=2)
    o = args.parse_args()
    notebooks = [p.absolute() for p in o.path] or [Path(p).absolute() for p in sorted(nbglob(as_path=True))]
    notebooks.sort(key=lambda p: p.parent.name not in FIRST)
    preload()
    if any(p.stem in FORKED for p in notebooks): import_forked().fork_server()
    failed = run_all(notebooks, o.workers)
    print(f'{len(notebooks) - len(failed)} of {len(notebooks)} notebooks passed')
    if failed: sys.exit('failed: ' + ', '.join(sorted(failed)))

if __name__ == '__main__': main()
