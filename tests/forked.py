"""Start `python -m MODULE` and `python -c CODE` as forks of a process that has imported lmnotes.

`Popen` and `run` are those of `subprocess`: such a process has its own arguments, environment, folder, pipes, signals
and exit code, and begins after the imports, which take longer than most commands. For each set of the variables that
an import reads there is one server. A command of another kind, and any command where the kernel has no pidfd, starts
as usual. What is imported, and when, is therefore not to be tested with this module."""
import array
import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from functools import cache
from itertools import count
from multiprocessing import util

READ_AT_IMPORT = 'ATEN_', 'CUDA_', 'HF_', 'MKL_', 'OMP_', 'ONEDNN_', 'PYTHON', 'TRANSFORMERS_'
OF_SERVERS = dict(TOKENIZERS_PARALLELISM='false', HF_HUB_DISABLE_PROGRESS_BARS='1',
                  PYTHONFAULTHANDLER='1') # the same in all of them
MODULES = '''lmnotes.app.cli lmnotes.app.train_command lmnotes.app.model_commands lmnotes.comparison.executors
lmnotes.comparison.comparison lmnotes.data.datasets.corpora peft datasets torch.utils.tensorboard
matplotlib.backends.backend_agg torch.distributed.run torch._dynamo'''.split()
FORKED = 'lmnotes', 'torch.distributed.run' # modules that `-m` names
USUAL = subprocess.Popen # whatever a test puts in its place

here = dict(servers={}, number=count(), key=None, address=None) # of this process; the last two in a fork of a server
starting = threading.Lock() # two threads that ask at once share one server


@cache
def can_fork():
    "Tell whether this kernel has what the server uses"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def import_key(env):
    return json.dumps(sorted((k, v) for k,v in env.items() if k.startswith(READ_AT_IMPORT) and k not in OF_SERVERS))


def forkable(args):
    "What a fork would run: its flag, module or code, and the words after it; None: a command of another kind"
    words = list(map(os.fspath, args)) if not isinstance(args, (str, bytes)) else []
    if words[:1] != [sys.executable]: return None
    words = words[2:] if words[1:2] == ['-u'] else words[1:]
    known = words[:1] == ['-c'] or words[:1] == ['-m'] and words[1] in FORKED
    return words if known else None


def server_address(env):
    "Of the server for an environment, started where there is none"
    key = import_key(env)
    if here['address']: return here['address'] if key == here['key'] else None # a fork starts no server
    with starting:
        if key not in here['servers']: here['servers'][key] = start_server(env)
    return here['servers'][key][0]


def next_address(): return f'lmnotes-{os.getpid()}-{next(here["number"])}'


def start_server(env):
    "Returns its address and its process, which ends when its standard input does"
    address = next_address()
    process = USUAL([sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, start_new_session=True, env=env | OF_SERVERS)
    if process.stdout.readline() != b'ready\n': raise RuntimeError('the server of forks did not start')
    return address, process


def fork_server():
    "Make a fork of this process the server of its environment: it has imported some of the modules already"
    address,(stdin,held),(ready,stdout) = next_address(),os.pipe(),os.pipe()
    if not os.fork():
        with open(os.devnull, 'wb') as nowhere: ends = stdin,stdout,os.dup(nowhere.fileno())
        os.setsid()
        for fd in (held, ready): os.close(fd)
        for fd,end in enumerate(ends): os.dup2(end, fd)
        for fd in ends: os.close(fd)
        run_as_server(address)
    for fd in (stdin, stdout): os.close(fd)
    with open(ready, 'rb') as said:
        if said.readline() != b'ready\n': raise RuntimeError('the server of forks did not start')
    here['servers'][import_key(os.environ)] = address,held # it ends when the last process that holds this end does


def close_other_ends(fds):
    "Of pipes: a process that waits for their end must not hold it open itself"
    def pipe(fd):
        try:
            return os.readlink(f'/proc/self/fd/{fd}')
        except OSError:
            return None # that of the list
    kept = set(map(pipe, fds))
    for fd in map(int, os.listdir('/proc/self/fd')):
        if fd not in fds and pipe(fd) in kept: os.close(fd)


def fork_forkserver():
    "Let the server of `multiprocessing` be a fork of the process that asks for it"
    usual = util.spawnv_passfds
    def spawn(path, args, fds):
        if 'multiprocessing.forkserver' not in os.fsdecode(args[-1]): return usual(path, args, fds)
        if pid := os.fork(): return pid
        close_other_ends(fds)
        sys.stdout,sys.stderr = sys.__stdout__,sys.__stderr__
        run_words('-c', os.fsdecode(args[-1]))
        os._exit(0) # what this process had to do at its end is left to the one that goes on
    util.spawnv_passfds = spawn


def forks():
    "Processes that the servers this one started have forked, and theirs"
    import psutil
    started = [p for _,p in here['servers'].values() if isinstance(p, USUAL)]
    servers = [psutil.Process(p.pid) for p in started if p.poll() is None]
    return [child for server in servers for child in server.children(recursive=True)]


class Popen(USUAL):
    "`subprocess.Popen`, forking where it can"
    connection = None
    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        words,pipes = forkable(args),rest[3:9] # after the two of Windows and `shell`
        plain = words and can_fork() and not (executable or preexec_fn or pass_fds or rest[2])
        env = dict(os.environ if env is None else env)
        address = server_address(env) if plain else None
        if not address:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        try:
            ends = [end if end != -1 else fd for fd,end in enumerate((pipes[0], pipes[3], pipes[5]))]
            session = rest[14] if len(rest) > 14 else False
            job = dict(words=words, cwd=os.path.abspath(cwd or '.'), env=env, session=session)
            self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.connection.connect(f'\0{address}')
            send(self.connection, job, ends)
            self.pid, = struct.unpack('i', self.connection.recv(4))
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)
    def _try_wait(self, flags):
        if self.connection is None: return super()._try_wait(flags)
        if flags & os.WNOHANG and not select.select([self.connection], [], [], 0)[0]: return 0,0
        status = self.connection.recv(4)
        self.connection.close()
        return self.pid, struct.unpack('i', status)[0] if status else signal.SIGKILL # the server is gone
    def _internal_poll(self, _deadstate=None, **kwargs):
        if self.connection is None: return super()._internal_poll(_deadstate, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid,status = self._try_wait(os.WNOHANG)
                    if pid: self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(args, input=None, capture_output=False, timeout=None, check=False, **kwargs):
    "`subprocess.run` with `Popen`"
    if input is not None: kwargs['stdin'] = subprocess.PIPE
    if capture_output: kwargs |= dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with Popen(args, **kwargs) as process:
        try:
            out,err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check: done.check_returncode()
    return done


# ---- the server

def send(connection, job, fds):
    text = json.dumps(job).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))]
    connection.sendmsg([struct.pack('q', len(text))], rights)
    connection.sendall(text)


def receive(connection):
    size,rights,_,_ = connection.recvmsg(8, socket.CMSG_SPACE(3*4))
    fds = array.array('i')
    fds.frombytes(rights[0][2][:3*4])
    with connection.makefile('rb') as f: return json.loads(f.read(struct.unpack('q', size)[0])), list(fds)


def become(job, fds, address):
    "Turn this fork into the process that was asked for"
    if job['session']: os.setsid()
    for fd,end in enumerate(fds): os.dup2(end, fd)
    for end in fds: os.close(end)
    here.update(servers={}, key=import_key(job['env']), address=address)
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    flag,what,*words = job['words']
    sys.argv,sys.path[0] = [what if flag == '-m' else flag, *words],job['cwd'] if flag == '-m' else ''
    for number,name in enumerate(('stdin', 'stdout', 'stderr')):
        how = dict(mode='w' if number else 'r', buffering=1 if number == 2 else -1, closefd=False)
        setattr(sys, name, open(number, errors='backslashreplace' if number == 2 else None, **how))
    return flag,what


def fork_elsewhere():
    "Let torchrun fork its ranks from the same server"
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    subprocess.Popen = subprocess_handler.Popen = Popen


def start(connection, listener, children, address):
    "Fork; returns what the child runs, and None in the server"
    try:
        job,fds = receive(connection)
    except (OSError, ValueError, IndexError, struct.error):
        return connection.close()
    if pid := os.fork():
        for fd in fds: os.close(fd)
        connection.sendall(struct.pack('i', pid))
        children[os.pidfd_open(pid)] = pid,connection
        return None
    for fd,(_,other) in children.items():
        os.close(fd)
        other.close()
    connection.close()
    listener.close()
    return become(job, fds, address)


def end(fd, children):
    "Tell the status of a child that has ended"
    pid,connection = children.pop(fd)
    os.close(fd)
    try:
        connection.sendall(struct.pack('i', os.waitpid(pid, 0)[1]))
    except OSError:
        pass # nobody waits any more
    connection.close()


def serve(address):
    "Fork a process for each connection until standard input ends; returns in each fork, with what it is to run"
    for name in MODULES: importlib.import_module(name)
    if threading.active_count() > 1: sys.exit(f'a thread would be lost: {threading.enumerate()}')
    gc.freeze() # what is imported stays: no fork looks through it again, nor copies its pages
    listener,children = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),{}
    listener.bind(f'\0{address}')
    listener.listen(64)
    os.write(1, b'ready\n')
    while True:
        ready = select.select([0, listener, *children], [], [])[0]
        for fd in set(ready) & set(children): end(fd, children)
        if listener in ready and (work := start(listener.accept()[0], listener, children, address)): return work
        if 0 in ready:
            for pid,_ in children.values(): os.kill(pid, signal.SIGKILL)
            os._exit(0)


def run_words(flag, what):
    "Run a module or code as `__main__`; returns the exit code"
    try:
        if flag == '-m': runpy.run_module(what, run_name='__main__', alter_sys=True)
        else: exec(compile(what, '<string>', 'exec'), dict(__name__='__main__', __builtins__=__builtins__))
    except SystemExit as e:
        if not isinstance(e.code, int | None): print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:
        sys.excepthook(*sys.exc_info())
        return -signal.SIGINT if isinstance(e, KeyboardInterrupt) else 1
    return 0


def leave(code):
    "End as an interpreter ends, but for taking its modules down, which changes nothing outside and takes a second"
    threading._shutdown() # wait for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120 # as Python has it
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xff)


def run_as_server(address):
    "Serve, and in each fork do what it was made for; does not return"
    words = serve(address)
    fork_elsewhere()
    leave(run_words(*words))


if __name__ == '__main__':
    sys.modules['forked'] = sys.modules['__main__']
    run_as_server(sys.argv[1])
