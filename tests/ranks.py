"Start commands of several processes, and show where each one stood when it did not end"
import os
import signal
import subprocess
import sys

import psutil
from forked import Popen, forks

def _descendants(process): # ranks that were forked are children of their server
    found = forks()
    try:
        return [*psutil.Process(process.pid).children(recursive=True), *(c for c in found if c.pid != process.pid)]
    except psutil.NoSuchProcess:
        return found

def _stop(process): # every process writes its stack to stderr, then all are killed
    children = _descendants(process)
    for child in children:
        try: child.send_signal(signal.SIGABRT)
        except psutil.NoSuchProcess: continue
    psutil.wait_procs(children, timeout=5)
    for left in [*_descendants(process), *(c for c in children if c.is_running())]: left.kill()
    process.kill()

def run_ranks(words, timeout=240, n=2, **options):
    """Run a module with `torchrun` on this host; one that does not end fails with the stacks of its processes

    Parameters:
        words: module and its arguments
        timeout: seconds
        n: processes
        options: of `subprocess.Popen`
    Returns: a `CompletedProcess`"""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', '-m', *words]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'} | options.pop('env', {})
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Popen(command, env=env | {'PYTHONFAULTHANDLER': '1'}, **pipes, **options) as process:
        try:
            out,err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _stop(process)
            out,err = process.communicate()
            raise AssertionError(f'{command} did not end in {timeout} s\n{out[-3000:]}\n{err[-9000:]}') from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
