"""Run commands of `lmnotes` in forks of a process that has imported it, and send one a signal before the k-th change.

`python fork_server.py MODULE …` imports the modules and answers each line of JSON on standard input with one. Asked:
`argv`, `cwd`, `out` (file for what is printed), `watch` (folder whose changes count), `kill_at` (None: never), `sign`
(name of the signal), `env` (a dict for each process). Answered: `codes`, and `changes` of the folder by the first
process, the one that it was about to make when the signal came being the last."""
import importlib
import json
import os
import signal
import sys
import threading

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {'os.rename': 2, 'os.remove': 1, 'os.rmdir': 1, 'os.mkdir': 2} # audit event -> place of its `dir_fd`

def changed_path(event, args): # None: nothing is changed
    if event == 'open': path,place = args[0],None if args[2] & WRITES else 0
    elif event in CHANGES: path,place = args[0],args[CHANGES[event]]
    else: return None
    if place == 0 or not isinstance(path, (str, bytes, os.PathLike)): return None
    folder = os.readlink(f'/proc/self/fd/{place}') if isinstance(place, int) and place > 0 else os.getcwd()
    return os.path.join(folder, os.fsdecode(path))

class Watch:
    "Note each change of a folder before it is made, and kill the process before the k-th"
    def __init__(self, folder, kill_at, sign, report):
        self.folder,self.kill_at,self.report,self.main = str(folder) + os.sep,kill_at,report,threading.get_ident()
        self.sign = getattr(signal, sign)
        self.changes,self.busy = [],False
    def __call__(self, event, args):
        if self.busy or threading.get_ident() != self.main: return # TensorBoard writes from a thread of its own
        path = changed_path(event, args)
        if path is None or not path.startswith(self.folder) or '/tensorboard' in path: return
        if event == 'os.mkdir' and os.path.isdir(path): return # nothing changes
        self.busy = True
        self.changes.append(f'{event} {path.removeprefix(self.folder)}')
        if len(self.changes) == self.kill_at: self.die(path, args[2] if event == 'open' else 0)
        self.busy = False
    def die(self, path, flags):
        if self.sign == signal.SIGKILL and flags & os.O_APPEND: # the kernel may have taken the first half of a line
            with open(path, 'a', encoding='utf-8') as f: f.write('{"step": 1, "lo')
        self.write()
        os.kill(os.getpid(), self.sign)
    def write(self):
        with open(self.report, 'w', encoding='utf-8') as f: json.dump(self.changes, f)

def child(job, env, first):
    os.chdir(job['cwd'])
    os.environ.update(env)
    out = os.open(job['out'] if first else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2): os.dup2(out, fd)
    from lmnotes.app.cli import main
    watch = Watch(job['watch'], job['kill_at'], job['sign'], job['out'] + '.json') if first else None
    if first: sys.addaudithook(watch)
    code = 1
    try:
        code = main(job['argv']) or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        if first: watch.write()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

def serve():
    for name in sys.argv[1:]: importlib.import_module(name)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        job,pids = json.loads(line),[]
        for i,env in enumerate(job['env']):
            if pid := os.fork(): pids.append(pid)
            else: child(job, env, i == 0)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        with open(job['out'] + '.json', encoding='utf-8') as f: changes = json.load(f)
        print(json.dumps(dict(codes=codes, changes=changes)), file=answers, flush=True)

if __name__ == '__main__': serve()
