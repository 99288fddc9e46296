"""Run untrusted code: one call of a function at a time, timed, its output back as plain data.

    with Program(code, "has_close_pair") as program:
        run = program.call(([1.0, 2.5, 2.6], 0.2), seconds=2.0)
    run.status, run.value, run.seconds        # 'ok', True, 0.0003

Three processes share the work:

    caller (this process)   holds the right answers and the clock, checks outputs, kills
      └ fork server         `python -I -S -B` in a session of its own, with an empty environment; as
         │                  root it becomes an unprivileged user for good; reads the arguments;
         │                  never runs a line of the program
         └ a fork per call  takes its limits, audit hook and (Linux) system-call filter, compiles,
                            says "ready", and on the caller's "go" runs the program once

What each layer is for:

- **The clock is the caller's**: from "go" until the whole output has arrived. Patching `time`,
  reporting early or forging the result message gains nothing: a time counts only with an output
  that passes the checker, and that output needs the input, which the program first meets after
  "go".
- **Answers never enter the child**; outputs return as tagged JSON (`encode`, `decode`) over a pipe
  of bounded length, and nothing is ever unpickled.
- **The end is not the program's choice**: at the limit its process group is killed, so a loop that
  swallows exceptions ends too. A process whose caller dies, dies (Linux).
- **Limits**: CPU, address space, no file bytes, no core, few descriptors, no further process or
  thread; where the system allows less than is wished, that.
- **The audit hook** ends a program that opens anything outside the standard library, writes,
  removes, renames, sends signals, starts processes, opens sockets, loads C code or looks for the
  hook, and reports which of these it tried.
- **The filter** lets the kernel refuse every system call that computing does not need, whatever
  became of the hook.

What this is not: a security boundary. It shares the kernel with you, lets the program spend CPU and
memory up to its limits, and stands on an interpreter that was never meant to hold anyone in. It is
defence in depth for code that is careless or curious. For programs of real adversaries use a
virtual machine, or a container, without network.

Programs see the standard library, all of it, and nothing else: wherever Python lies, also in a home
folder that the unprivileged user can't enter. Where that can't be had, nothing is run.

Needs a POSIX system with `fork`. macOS enforces no address-space limit and has no filter; there is
nothing for Windows, which is refused. `Program.layers` says which layers hold here.

Why one file, and a long one: it is also the script of its child processes, which run without any
package, so it stands on the standard library alone. Read it from top to bottom: the caller, then
the data on the pipe, then the fork server, then what a fork does before it runs the program.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from itertools import chain

STATUSES = ("ok", "timeout", "memory", "overflow", "error", "refused", "exit", "output")
START_SECONDS = 30.0  # for the fork server, which runs our own code only
COMPILE_SECONDS = 0.9  # of CPU time, for compiling: so a busy machine refuses nobody


@dataclass(frozen=True)
class Run:
    """One call of a program, as the caller saw it.

    status:
        ok         it returned plain data
        timeout    it was stopped at the limit
        memory     MemoryError
        overflow   OverflowError
        error      any other exception, or a syntax error
        refused    it tried what the audit hook forbids
        exit       it ended without a result
        output     too long, or not plain data
    seconds: wall time from "go" to the whole output; cpu: the process's CPU time from then to its
    end, as the kernel counted it; both in seconds.
    detail: why, for a person; text that comes from the program is cut and made printable.
    """

    status: str
    value: object = None
    seconds: float = math.nan
    cpu: float = math.nan
    detail: str = ""


# --- the caller ----------------------------------------------------------------------------------


class Program:
    """Code that defines the function `entry_point`, ready to be called under guard.

    Use it as a context manager, or `close()` it. memory: address space of a call, in bytes. Every
    call sees a fresh interpreter, so nothing that one call leaves behind (caches, patched modules)
    reaches the next. Not thread-safe. `layers` (name → holds here?) is filled by the first call.
    """

    def __init__(self, code: str, entry_point: str, memory: int = 1 << 30):
        if not hasattr(os, "fork") or sys.platform in ("emscripten", "wasi"):
            raise RuntimeError(
                "the sandbox needs a POSIX system with fork (Linux; macOS with fewer guarantees),"
                f" this is {sys.platform}"
            )
        if not isinstance(code, str):
            raise ValueError(f"code must be a str, got {type(code).__name__}")
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise ValueError(f"entry_point={entry_point!r} is not a function's name")
        if not isinstance(memory, int) or memory < 64 << 20:
            raise ValueError(
                f"memory={memory!r} must be a whole number of bytes, at least 64 MiB ({64 << 20})"
            )
        self.code = code
        self.entry_point = entry_point
        self.memory = memory
        self.layers: dict[str, bool] = {}
        self.server: subprocess.Popen | None = None
        self.spent = 0.0  # CPU seconds of the running call's process before "go"
        self.busy = False  # a call was ordered and its end not yet reported
        self.child: int | None = None  # the process of that call
        self.loaded: object = None  # the arguments that the server holds; compared by identity

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def call(self, args: tuple | list, seconds: float = 5.0, max_output: int = 1 << 20) -> Run:
        """Run `entry_point(*args)` once in a fresh process.

        At `seconds` of wall time it is killed. The output may take `max_output` bytes. Passing the
        same `args` object again spares sending it; don't change it in between.
        """
        if not isinstance(args, (tuple, list)):
            raise ValueError(
                f"args must be a tuple or list of plain data, got {type(args).__name__}"
            )
        if not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
            raise ValueError(f"seconds={seconds!r} must be a positive, finite number")
        try:
            self.load(args)
            run, clean = self.fork(float(seconds), max_output)
        except BaseException:  # KeyboardInterrupt above all: leave no child
            self.close()
            raise
        if not clean:
            self.close()  # a killed child may have left bytes in the pipe: start afresh next time
        return run

    def close(self) -> None:
        """Kill what runs and remove the working directory.

        Safe to call twice; a later `call` starts again.
        """
        if self.server is None:
            return
        server = self.server
        self.server = None
        self.loaded = None
        self.kill_child()
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            while self.busy:  # a call was cut short: see its process die
                message = self.report(1.0)
                self.child = message.get("pid", self.child)
                self.busy = "exit" not in message
                self.kill_child()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for fd in self.fds:
            os.close(fd)
        self.tidy()

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="run-")
        # removed also where nobody calls `close`
        self.tidy = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        os.chmod(self.folder, 0o555)
        orders, self.to_server = os.pipe()
        self.from_server, reports = os.pipe()
        go, self.to_child = os.pipe()
        self.from_child, results = os.pipe()
        self.fds = (self.to_server, self.from_server, self.to_child, self.from_child)
        inherited = (orders, reports, go, results)
        try:
            self.server = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", __file__, *map(str, inherited)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                env={},
                pass_fds=inherited,
                start_new_session=True,
            )
        except BaseException:
            for fd in self.fds:
                os.close(fd)
            self.tidy()
            raise
        finally:
            for fd in inherited:
                os.close(fd)
        os.set_blocking(self.from_child, False)
        self.layers = self.report(START_SECONDS)

    def load(self, args) -> None:
        if self.server is not None and self.loaded is args:
            return
        text = json.dumps(encode(list(args)))
        if self.server is None:
            self.start()
        job = {"code": self.code, "entry_point": self.entry_point, "memory": self.memory}
        self.order(job | {"args": text})
        self.loaded = args

    def order(self, message: dict) -> None:
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self.to_server, data) :]

    def report(self, seconds: float) -> dict:
        """The fork server's next line; `RuntimeError` when it is late or says why it can't work."""
        line = b""
        end = time.perf_counter() + seconds
        while not line.endswith(b"\n"):
            if not wait([self.from_server], max(0.0, end - time.perf_counter())):
                raise RuntimeError(f"the sandbox's fork server gave no answer in {seconds:g} s")
            data = os.read(self.from_server, 1)  # reading on could swallow the next line
            if not data:
                raise RuntimeError("the sandbox's fork server ended unexpectedly")
            line += data
        message = json.loads(line)
        if "problem" in message:
            raise RuntimeError(f"the sandbox can't work here: {message['problem']}")
        return message

    def fork(self, seconds: float, max_output: int) -> tuple[Run, bool]:
        """One call: what came of it, and whether the pipes are clean."""
        self.busy = True
        self.spent = 0.0
        self.order({"run": math.ceil(seconds) + 1})
        self.child = self.report(START_SECONDS)["pid"]
        ready, why, _ = self.read_line(time.perf_counter() + START_SECONDS, 1 << 16)
        if why != "line":
            run = self.ended("exit" if why == "gone" else "timeout", "", math.nan)
            if run.status == "timeout" or "SIGPROF" in run.detail:
                why = f"compiling took over {COMPILE_SECONDS:g} s"
                run = Run("timeout", cpu=run.cpu, detail=why)
            return run, False
        message = json.loads(ready)
        if "problem" in message:
            raise RuntimeError(f"the sandbox can't work here: {message['problem']}")
        if "status" in message:
            return self.ended(message["status"], clean_text(message["detail"]), 0.0), True
        self.spent = message.pop("spent")
        self.layers |= message
        start = time.perf_counter()
        os.write(self.to_child, b"g")
        line, why, end = self.read_line(start + seconds, max_output)
        if why != "line":
            ends = {
                "gone": ("exit", ""),
                "late": ("timeout", f"stopped after {seconds:g} s"),
                "long": ("output", f"over {max_output} bytes of output"),
            }
            return self.ended(*ends[why], end - start), False
        run = self.ended(*understand(line, end - start))
        return run, not wait([self.from_child], 0)

    def read_line(self, deadline: float, limit: int) -> tuple[bytes, str, float]:
        """What the child wrote, why reading stopped, and when.

        Why: a `line` is complete, it is `long`er than `limit`, the child is `gone`, it is `late`.
        """
        parts = []
        size = 0
        while True:
            left = deadline - time.perf_counter()
            heard = wait([self.from_child, self.from_server], max(0.0, left))
            now = time.perf_counter()
            if now > deadline:
                return b"", "late", now
            if self.from_child in heard:
                parts.append(os.read(self.from_child, 1 << 16))
                size += len(parts[-1])
                if size > limit:
                    return b"", "long", now
                if parts[-1].endswith(b"\n"):
                    return b"".join(parts), "line", now
            elif heard:  # the server reports the end, and the pipe is empty
                return b"", "gone", now

    def ended(self, status: str, detail: str, seconds: float, value=None) -> Run:
        """Make sure that the child is gone, learn how it went, and say so."""
        self.kill_child()
        message = self.report(START_SECONDS)
        self.child, self.busy = None, False
        if status == "exit":
            how = message["exit"]
            names = {s.value: s.name for s in signal.Signals}  # real-time signals have none
            detail = f"ended with exit status {how} and no result"
            if how < 0:
                detail = f"killed by {names.get(-how, f'signal {-how}')}"
        cpu = max(0.0, message["cpu"] - self.spent)
        return Run(status, value, seconds, cpu, detail)

    def kill_child(self) -> None:
        """Kill the running call's process group.

        Not when the fork server has reported its end: its number may belong to another by now.
        """
        if self.child is None or wait([self.from_server], 0):
            return
        for kill in (os.killpg, os.kill):  # the second where it leads no group of its own yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.child, signal.SIGKILL)


def run(
    code: str,
    entry_point: str,
    args: tuple | list,
    seconds: float = 5.0,
    memory: int = 1 << 30,
    max_output: int = 1 << 20,
) -> Run:
    """One guarded call of `entry_point(*args)`, everything set up and cleared away."""
    with Program(code, entry_point, memory) as program:
        return program.call(args, seconds, max_output)


def wait(fds: list[int], seconds: float) -> set[int]:
    """Those of the descriptors that can be read, or whose other end closed, within the time."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(math.ceil(seconds * 1000))}


def understand(line: bytes, seconds: float) -> tuple[str, str, float, object]:
    """The child's message, which the program may have forged: (status, detail, seconds, value)."""
    try:
        message = json.loads(line)
        status = message["status"]
        detail = clean_text(message.get("detail", ""))
        if status not in ("ok", "memory", "overflow", "error", "refused", "output"):
            raise ValueError("an unknown status")
        value = decode(message["value"]) if status == "ok" else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        why = f"the result message is not plain data ({type(error).__name__})"
        return "output", why, seconds, None
    return status, detail, seconds, value


def clean_text(text, length: int = 200) -> str:
    """Text from a program, fit for a terminal: printable characters only, and not too many."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:length])


# --- plain data over a pipe ----------------------------------------------------------------------


def encode(x):
    """Plain data as a JSON tree that keeps types apart.

    A container is an object with one tag: `l` list, `m` list of flat lists, `t` tuple, `s` set,
    `f` frozenset, `d` dict, `i` large int, `b` bytes, `c` complex. The rest stands for itself.
    Anything else, subclasses included, is a `TypeError`.
    """
    kind = type(x)
    if x is None or kind in (bool, float, str):
        return x
    if kind is int:
        return x if x.bit_length() < 64 else {"i": hex(x)}
    if kind in (list, tuple):
        tag = "l" if kind is list else "t"
        if is_flat(x):  # long lists at C speed: this runs inside the measured time
            return {tag: x}
        if kind is list and set(map(type, x)) == {list} and is_flat(list(chain.from_iterable(x))):
            return {"m": x}
        return {tag: [encode(y) for y in x]}
    if kind in (set, frozenset):
        return {"s" if kind is set else "f": [encode(y) for y in x]}
    if kind is dict:
        return {"d": [[encode(k), encode(v)] for k, v in x.items()]}
    if kind is bytes:
        return {"b": x.hex()}
    if kind is complex:
        return {"c": [x.real, x.imag]}
    raise TypeError(f"{kind.__name__} is not plain data")


def is_flat(x: list | tuple) -> bool:
    """Whether JSON holds the elements as they are."""
    kinds = set(map(type, x))
    return kinds <= {bool, float, str} or (kinds == {int} and min(x) > -(2**63) and max(x) < 2**63)


def decode(x):
    """The inverse of `encode`; other trees are a `ValueError`, `TypeError` or `RecursionError`."""
    if not isinstance(x, dict):
        if isinstance(x, list):
            raise ValueError("a bare JSON array")
        return x
    ((tag, y),) = x.items()
    if tag == "i":
        return int(y, 16)
    if tag == "b":
        return bytes.fromhex(y)
    if tag == "c":
        return complex(*y)
    if tag == "m":
        return list(map(list, y))
    if tag == "d":
        return {decode(k): decode(v) for k, v in y}
    kinds = {"l": list, "t": tuple, "s": set, "f": frozenset}
    if tag not in kinds:
        raise ValueError("an unknown tag")
    return kinds[tag](map(decode, y))


# --- the fork server and its forks: everything below runs in the child processes -----------------

# Imported by the fork server once, so that their loading is in nobody's time.
PRELOADED = """
    array base64 bisect calendar cmath collections.abc contextlib copy csv dataclasses datetime
    decimal encodings.ascii encodings.idna encodings.latin_1 encodings.utf_16 enum fractions
    functools graphlib hashlib heapq io itertools json math numbers operator os queue random re
    socket statistics string struct textwrap threading time traceback types typing unicodedata
    warnings weakref zlib
"""
OUR_OWN = ["ctypes", "pwd", "resource"]  # what the layers below need


def serve(orders: int, reports: int, go: int, results: int) -> None:
    """Take orders, one JSON line each, until the caller closes the pipe."""
    import gc
    import importlib

    def report(message: dict) -> None:
        os.write(reports, (json.dumps(message) + "\n").encode())

    try:
        for module in PRELOADED.split() + OUR_OWN:
            importlib.import_module(module)
        library = os.path.dirname(os.__file__)
        opened = os.open(library, os.O_RDONLY | os.O_DIRECTORY)
        drop_privileges()
        library = readable_library(library, opened)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the drop, which would clear it
        report({"unprivileged user": os.geteuid() != 0})
    except Exception as error:
        return report({"problem": f"{type(error).__name__}: {error}"})
    gc.collect()
    gc.freeze()
    job: dict = {}
    try:
        for line in os.fdopen(orders, encoding="utf-8"):
            message = json.loads(line)
            if "args" in message:
                job = message | {"args": decode(json.loads(message["args"]))}
                continue
            pid = os.fork()
            if pid == 0:
                os.close(orders)
                os.close(reports)
                try:
                    call(job, message["run"], library, go, results)
                finally:
                    os._exit(1)
            report({"pid": pid})
            _, status, usage = os.wait4(pid, 0)
            cpu = usage.ru_utime + usage.ru_stime
            report({"exit": os.waitstatus_to_exitcode(status), "cpu": cpu})
    except Exception as error:
        report({"problem": f"{type(error).__name__}: {error}"})


def drop_privileges() -> None:
    """As root, become `nobody` for good.

    Root's limits don't bind, and root may signal anyone: a server that can't drop does not work.
    """
    if os.geteuid() == 0:
        import pwd

        try:
            user = pwd.getpwnam("nobody")
            uid, gid = user.pw_uid, user.pw_gid
        except KeyError:
            uid = gid = 65534
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if 0 in os.getresuid():
            raise PermissionError("still root after dropping privileges")


def readable_library(library: str, opened: int) -> str:
    """The standard library's folder by a name under which this user can import from it.

    opened: a descriptor of the folder from before the drop. Where only root may pass the folders
    above (an interpreter in root's home), the name leads nowhere any more; but Linux lets a process
    enter what it has open through /proc/self/fd. Imports then go that way.
    """
    if os.access(os.path.join(library, "os.py"), os.R_OK):
        return library
    way = f"/proc/self/fd/{opened}"
    if not os.access(os.path.join(way, "os.py"), os.R_OK):
        raise PermissionError(
            f"programs could import next to nothing: the unprivileged user can't read {library};"
            " use a Python outside of root's home folder"
        )

    def moved(paths) -> list[str]:
        inside = (library, library + os.sep)
        return [
            way + path[len(library) :] if path == inside[0] or path.startswith(inside[1]) else path
            for path in paths
        ]

    sys.path[:] = moved(sys.path)
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):  # a package: its other modules are looked for there
            module.__path__ = moved(module.__path__)
    return way


PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2


def prctl(*numbers) -> bool:
    """Linux's `prctl`; whether it was there and agreed."""
    if sys.platform != "linux":
        return False
    import ctypes

    words = [ctypes.c_ulong(n) for n in (*numbers, 0, 0, 0, 0)[:5]]
    return ctypes.CDLL(None).prctl(*words) == 0


def call(job: dict, cpu_seconds: int, library: str, go: int, results: int) -> None:
    """One guarded call, in a fork of the server that ends here."""
    write, leave, dumps = os.write, os._exit, json.dumps  # bound before the program can patch them

    def send(message: dict) -> None:
        data = (dumps(message) + "\n").encode()
        while data:
            data = data[write(results, data) :]

    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the fork server
        limited = set_limits(cpu_seconds, job["memory"])
        filtered = filter_system_calls()
    except Exception as error:
        send({"problem": f"{type(error).__name__}: {error}"})
        return
    refused = REFUSED_MODULES.split()
    for name in [name for name in sys.modules if name.partition(".")[0] in refused]:
        del sys.modules[name]
    sys.argv[:] = [""]
    sys.addaudithook(guard(library, results))
    module = type(sys)("program")
    sys.modules["program"] = module
    # the program does not run yet, so it can't put this off
    signal.setitimer(signal.ITIMER_PROF, COMPILE_SECONDS)
    try:
        program = compile(job["code"], "<program>", "exec", dont_inherit=True)
    except BaseException as error:
        send({"status": "error", "detail": f"{type(error).__name__}: {error}"[:300]})
        leave(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    layers = {
        "audit hook": True,
        "system-call filter": filtered,
        "address-space limit": limited,
        "no further process": True,
    }
    send(layers | {"spent": time.process_time()})
    os.read(go, 1)
    try:
        exec(program, module.__dict__)
        if job["entry_point"] not in module.__dict__:
            raise NameError(f"the program defines no {job['entry_point']}")
        value = module.__dict__[job["entry_point"]](*job["args"])
    except MemoryError:
        write(results, b'{"status": "memory", "detail": "MemoryError"}\n')
        leave(0)
    except OverflowError:
        write(results, b'{"status": "overflow", "detail": "OverflowError"}\n')
        leave(0)
    except BaseException as error:
        send({"status": "error", "detail": f"{type(error).__name__}: {error}"[:300]})
        leave(0)
    try:
        send({"status": "ok", "value": encode(value)})
    except BaseException as error:
        why = f"the output is not plain data ({type(error).__name__}: {error})"
        send({"status": "output", "detail": why[:300]})
    leave(0)


def set_limits(cpu_seconds: int, memory: int) -> bool:
    """Resource limits of this process, not to be raised again; whether memory is among them.

    Where the system's hard limit is below the wished one, it stays.
    """
    import resource

    wanted = {"CPU": cpu_seconds, "FSIZE": 0, "CORE": 0, "NOFILE": 32, "NPROC": 0, "AS": memory}
    for name, value in wanted.items():
        try:
            kind = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError, AttributeError):
            if name != "AS":  # macOS
                raise
            return False
    return sys.platform != "darwin"


# What the audit hook refuses: events by prefix, and modules that reach below Python.
REFUSED_EVENTS = """
    code.__new__ cpython.run_ ctypes. dbm. fcntl. gc.get_ mmap. os.add_dll_directory os.chdir
    os.chflags os.chmod os.chown os.chroot os.exec os.fchdir os.fork os.kill os.lchmod os.lchown
    os.link os.lockf os.mkdir os.posix_spawn os.remove os.removexattr os.rename os.rmdir os.setns
    os.setxattr os.spawn os.startfile os.symlink os.system os.truncate os.unshare os.utime pty.
    resource. shutil. signal. socket. sqlite3. subprocess. sys.addaudithook sys.remote_exec
    sys.setprofile sys.settrace syslog. tempfile. webbrowser.
"""
REFUSED_MODULES = """
    _ctypes _interpreters _posixsubprocess _testcapi _testinternalcapi _testlimitedcapi
    _xxsubinterpreters cffi ctypes multiprocessing
"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(library: str, results: int):
    """The audit hook: it names what was tried and ends the process.

    So no `except` of the program can go on from there.
    """
    # all that the hook uses, bound before the program can patch it
    prefixes, modules = tuple(REFUSED_EVENTS.split()), frozenset(REFUSED_MODULES.split())
    writing, root = WRITING, library + "/"
    write, leave, kind, starts, find = os.write, os._exit, type, str.startswith, str.find
    letters = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._ ")

    def refuse(what: str) -> None:
        what = "".join([c for c in what[:80] if c in letters])
        write(results, b'{"status": "refused", "detail": "' + what.encode() + b'"}\n')
        leave(0)

    def inside(path) -> bool:
        if kind(path) is not str or find(path, "..") >= 0:
            return False
        return path == library or starts(path, root)

    def hook(event: str, args: tuple) -> None:
        if starts(event, prefixes):
            refuse(event)
        elif event == "open":
            path, mode, flags = args
            if kind(path) is int:
                return  # a descriptor that it already has
            by_mode = kind(mode) is str and set("wax+") & set(mode)
            by_flags = kind(flags) is int and flags & writing
            if by_mode or by_flags:
                refuse("open for writing")
            if not inside(path) and path != "<program>":  # a SyntaxError looks for its line there
                refuse("open for reading")
        elif event in ("os.listdir", "os.scandir"):
            if not inside(args[0]):
                refuse(event)
        elif event == "import" and args[0] in modules:
            refuse("import " + args[0])

    return hook


# The system calls that computing, importing and reporting need, by Linux's number for each
# architecture; the kernel refuses all others (EPERM). `openat` is allowed for reading alone.
# An architecture that is not in the table has no filter.
SYSTEM_CALLS = {
    "x86_64": """
        read:0 write:1 close:3 stat:4 fstat:5 lstat:6 poll:7 lseek:8 mmap:9 mprotect:10 munmap:11
        brk:12 rt_sigaction:13 rt_sigprocmask:14 rt_sigreturn:15 ioctl:16 pread64:17 readv:19
        writev:20 access:21 select:23 sched_yield:24 mremap:25 madvise:28 nanosleep:35 setitimer:38
        getpid:39 exit:60 uname:63 getcwd:79 readlink:89 gettimeofday:96 getrlimit:97 getrusage:98
        sysinfo:99 times:100 getuid:102 getgid:104 geteuid:107 getegid:108 sigaltstack:131
        gettid:186 time:201 futex:202 sched_getaffinity:204 getdents64:217 clock_gettime:228
        clock_getres:229 clock_nanosleep:230 exit_group:231 newfstatat:262 readlinkat:267
        faccessat:269 pselect6:270 ppoll:271 set_robust_list:273 getrandom:318 statx:332 rseq:334
        faccessat2:439
        openat:257
    """
}
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E}
FIRST_X32_CALL = 0x40000000  # x86-64 has a second numbering from here on, for another ABI

# Instructions of the classic Berkeley packet filter, and where its packet, `seccomp_data`, holds
# what the filter looks at.
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE_EPERM, KILL_PROCESS = 0x7FFF0000, 0x00050000 | 1, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, THIRD_ARGUMENT_AT = 0, 4, 32


def system_calls(machine: str) -> dict[str, int]:
    """The table's numbers for an architecture, by name; empty where there are none."""
    pairs = [entry.split(":") for entry in SYSTEM_CALLS.get(machine, "").split()]
    return {name: int(number) for name, number in pairs}


def filter_system_calls() -> bool:
    """Install a seccomp filter for this process (Linux); whether the kernel took it."""
    machine = os.uname().machine
    numbers = system_calls(machine)
    if sys.platform != "linux" or not numbers or sys.maxsize < 2**32:
        return False
    import ctypes
    import struct

    open_at = numbers.pop("openat")
    # (instruction, lines to skip if it holds, lines to skip if not, value)
    lines = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD_WORD, 0, 0, NUMBER_AT),
        (JUMP_IF_AT_LEAST, 0, 1, FIRST_X32_CALL),
        (RETURN, 0, 0, REFUSE_EPERM),
    ]
    for number in numbers.values():
        lines += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    lines += [
        (JUMP_IF_EQUAL, 1, 0, open_at),
        (RETURN, 0, 0, REFUSE_EPERM),
        (LOAD_WORD, 0, 0, THIRD_ARGUMENT_AT),  # openat's flags
        (JUMP_IF_ANY_BIT, 0, 1, WRITING),
        (RETURN, 0, 0, REFUSE_EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
    header = ctypes.create_string_buffer(pointer, 16)
    if not prctl(PR_SET_NO_NEW_PRIVS, 1):
        return False
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:5]))
