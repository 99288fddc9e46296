"""Run a program that nobody vouches for, time it, and bring its output back as plain data.

    with Program(code, "has_close_pair") as program:
        run = program.call(([1.0, 2.5, 2.6], 0.2), seconds=2.0)
    run.status, run.value, run.seconds        # 'ok', True, 0.0003

Three processes share the work:

    caller (this process)   holds the right answers and the clock, checks outputs, kills
      └ keeper              `python -I -S -B` of its own session, empty environment; as root it becomes an unprivileged
         │                  user for good; reads the arguments; never runs a line of the program
         └ one fork a call  takes its limits, audit hook and (Linux, x86-64) system-call filter, compiles, says "ready",
                            and on the caller's "go" runs the program once

What each layer is for:

- **The clock is the caller's**: from "go" until the whole output has arrived. Patching `time`, reporting early or forging the result
  message gains nothing: a time counts only with an output that passes the checker, and that output needs the input, which the
  program first meets after "go".
- **Answers never enter the child**; outputs return as tagged JSON (`encode`, `decode`) over a pipe of bounded length, and nothing is ever unpickled.
- **The end is not the program's choice**: at the limit its process group is killed, so a loop that swallows exceptions ends too.
  A process whose caller dies, dies (Linux).
- **Limits**: CPU, address space, no file bytes, no core, few descriptors, no further process or thread.
- **The audit hook** ends a program that opens anything outside the standard library, writes, removes, renames, sends signals, starts processes,
  opens sockets, loads C code or looks for the hook, and reports which of these it tried.
- **The filter** lets the kernel refuse every system call that computing does not need, whatever became of the hook.

What this is not: a security boundary. It shares the kernel with you, lets the program spend CPU and memory up to its limits, and
stands on an interpreter that was never meant to hold anyone in. It is defence in depth for code that is careless or curious. For programs
of real adversaries use a virtual machine, or a container, without network. Programs see the standard library only.

Needs a POSIX system with `fork`. macOS enforces no address-space limit and has no filter; there is nothing for Windows, which is refused.
`Program.layers` says which layers hold here. On a machine where the standard library is unreadable for the unprivileged user (an interpreter
under root's home), programs can import the modules of `PRELOADED` alone. Standard library only; imports nothing of the package.
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

STATUSES = ("ok", "timeout", "memory", "overflow", "error", "refused", "exit", "output")
START_SECONDS = 30.0  # for the keeper, which runs our own code only
COMPILE_SECONDS = (
    0.9  # of CPU time, for a fork to compile the program: so a busy machine refuses nobody
)

# Imported by the keeper once, so that their loading is in nobody's time and unreadable installations matter less.
# fmt: off
PRELOADED = [
    "array", "base64", "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy", "dataclasses", "datetime", "decimal",
    "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_16", "enum", "fractions", "functools", "graphlib", "hashlib",
    "heapq", "io", "itertools", "json", "math", "numbers", "operator", "os", "queue", "random", "re", "socket", "statistics", "string", "struct",
    "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata", "warnings", "weakref", "zlib",
]
# fmt: on


@dataclass(frozen=True)
class Run:
    """One call of a program, as the caller saw it.

    status: `ok` · `timeout` · `memory` (MemoryError) · `overflow` (OverflowError) · `error` (any other exception, or a syntax error) ·
    `refused` (tried what the audit hook forbids) · `exit` (ended without a result) · `output` (too long, or not plain data).
    seconds: wall time from "go" to the whole output; cpu: the process's CPU time from then to its end, as the kernel counted it; both in seconds.
    detail: why, for a person; text that comes from the program is cut and stripped of control characters.
    """

    status: str
    value: object = None
    seconds: float = math.nan
    cpu: float = math.nan
    detail: str = ""


# --- plain data over a pipe ---------------------------------------------------------------------------------------------------------


def encode(x):
    """Plain data as a JSON tree that keeps types apart: containers are objects with one tag (`l` list, `m` list of flat lists, `t` tuple, `s` set,
    `f` frozenset, `d` dict, `i` large int, `b` bytes, `c` complex), the rest stands for itself. Anything else, subclasses included, is a `TypeError`.
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
        if kind is list and set(map(type, x)) == {list} and is_flat([y for z in x for y in z]):
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
    """The inverse of `encode`; `ValueError`, `TypeError` or `RecursionError` on anything that `encode` doesn't make."""
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
    return {"l": list, "t": tuple, "s": set, "f": frozenset}.get(tag, unknown_tag)(map(decode, y))


def unknown_tag(_):
    raise ValueError("an unknown tag")


# --- the caller's side --------------------------------------------------------------------------------------------------------------


class Program:
    """A program under guard: `code` (str) that defines the function `entry_point`. Use it as a context manager, or `close()` it.

    memory: address space of a call, in bytes. Every call sees a fresh interpreter, so nothing that one call leaves behind (caches, patched modules)
    reaches the next. Not thread-safe. `layers` (name → holds here?) is filled by the first call.
    """

    def __init__(self, code: str, entry_point: str, memory: int = 1 << 30):
        if not hasattr(os, "fork") or sys.platform in ("emscripten", "wasi"):
            raise RuntimeError(
                f"the runner needs a POSIX system with fork (Linux; macOS with fewer guarantees), this is {sys.platform}"
            )
        if not isinstance(code, str):
            raise ValueError(f"code must be a str, got {type(code).__name__}")
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise ValueError(f"entry_point={entry_point!r} is not a function's name")
        if not isinstance(memory, int) or memory < 64 << 20:
            raise ValueError(
                f"memory={memory!r} must be a whole number of bytes, at least 64 MiB ({64 << 20})"
            )
        self.code, self.entry_point, self.memory = code, entry_point, memory
        self.layers: dict[str, bool] = {}
        self.keeper: subprocess.Popen | None = None
        self.spent = 0.0  # CPU seconds of the running call's process before "go"
        self.busy = False  # a call was ordered and its end not yet reported
        self.child: int | None = None  # the process of that call
        self.loaded: object = None  # the arguments that the keeper holds; compared by identity

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def call(self, args: tuple | list, seconds: float = 5.0, max_output: int = 1 << 20) -> Run:
        """Run `entry_point(*args)` once in a fresh process. At `seconds` of wall time it is killed. The output may take `max_output` bytes.

        Passing the same `args` object again spares sending it; don't change it in between.
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
            self.close()  # a killed or talkative child may have left bytes in the pipe; the next call starts afresh
        return run

    def close(self) -> None:
        """Kill what runs and remove the working directory. Safe to call twice; a later `call` starts again."""
        if self.keeper is None:
            return
        keeper, self.keeper, self.loaded = self.keeper, None, None
        self.kill_child()
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            while self.busy:  # a call was cut short: see its process die
                message = self.report(1.0)
                self.child = message.get("pid", self.child)
                self.busy = "exit" not in message
                self.kill_child()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(keeper.pid, signal.SIGKILL)
        keeper.wait()
        for fd in self.fds:
            os.close(fd)
        self.tidy()

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="run-")
        self.tidy = weakref.finalize(
            self, shutil.rmtree, self.folder, ignore_errors=True
        )  # also where nobody calls `close`
        os.chmod(self.folder, 0o555)
        orders, self.to_keeper = os.pipe()
        self.from_keeper, reports = os.pipe()
        go, self.to_child = os.pipe()
        self.from_child, results = os.pipe()
        self.fds = (self.to_keeper, self.from_keeper, self.to_child, self.from_child)
        inherited = (orders, reports, go, results)
        try:
            self.keeper = subprocess.Popen(
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
        if self.keeper is not None and self.loaded is args:
            return
        text = json.dumps(encode(list(args)))
        if self.keeper is None:
            self.start()
        self.order(
            {
                "code": self.code,
                "entry_point": self.entry_point,
                "memory": self.memory,
                "args": text,
            }
        )
        self.loaded = args

    def order(self, message: dict) -> None:
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self.to_keeper, data) :]

    def report(self, seconds: float) -> dict:
        """The keeper's next line; `RuntimeError` when it is not there in time (`timeout`) or says why it can't work."""
        line, end = b"", time.perf_counter() + seconds
        while not line.endswith(b"\n"):
            if not wait([self.from_keeper], max(0.0, end - time.perf_counter())):
                raise RuntimeError(
                    f"the runner's keeper process did not answer within {seconds:g} s"
                )
            data = os.read(
                self.from_keeper, 1
            )  # its lines are short; reading on could swallow the next
            if not data:
                raise RuntimeError("the runner's keeper process ended unexpectedly")
            line += data
        message = json.loads(line)
        if "problem" in message:
            raise RuntimeError(f"the runner can't work here: {message['problem']}")
        return message

    def fork(self, seconds: float, max_output: int) -> tuple[Run, bool]:
        """One call: what came of it, and whether the pipes are clean."""
        self.busy, self.spent = True, 0.0
        self.order({"run": math.ceil(seconds) + 1})
        self.child = self.report(START_SECONDS)["pid"]
        ready, why, _ = self.read_line(time.perf_counter() + START_SECONDS, 1 << 16)
        if why != "line":
            run = self.ended("exit" if why == "gone" else "timeout", "", math.nan)
            if run.status == "timeout" or "SIGPROF" in run.detail:
                run = Run(
                    "timeout", cpu=run.cpu, detail=f"compiling took over {COMPILE_SECONDS:g} s"
                )
            return run, False
        message = json.loads(ready)
        if "problem" in message:
            raise RuntimeError(f"the runner can't work here: {message['problem']}")
        if "status" in message:
            return self.ended(message["status"], clean_text(message["detail"]), 0.0), True
        self.spent = message.pop("spent")
        self.layers |= message
        start = time.perf_counter()
        os.write(self.to_child, b"g")
        line, why, end = self.read_line(start + seconds, max_output)
        if why != "line":
            status, detail = {
                "gone": ("exit", ""),
                "late": ("timeout", f"stopped after {seconds:g} s"),
                "long": ("output", f"over {max_output} bytes of output"),
            }[why]
            return self.ended(status, detail, end - start), False
        run = self.ended(*understand(line, end - start))
        return run, not wait([self.from_child], 0)

    def read_line(self, deadline: float, limit: int) -> tuple[bytes, str, float]:
        """What the child wrote, why reading stopped (`line` complete, `long`er than `limit`, child `gone`, too `late`), and when."""
        parts, size = [], 0
        while True:
            left = deadline - time.perf_counter()
            heard = wait([self.from_child, self.from_keeper], max(0.0, left))
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
            elif heard:  # the keeper reports the end, and the pipe is empty
                return b"", "gone", now

    def ended(self, status: str, detail: str, seconds: float, value=None) -> Run:
        """Make sure that the child is gone, learn how it went, and say so."""
        self.kill_child()
        message = self.report(START_SECONDS)
        self.child, self.busy = None, False
        if status == "exit":
            how = message["exit"]
            names = {s.value: s.name for s in signal.Signals}  # real-time signals have none
            detail = (
                f"killed by {names.get(-how, f'signal {-how}')}"
                if how < 0
                else f"ended with exit status {how} and no result"
            )
        return Run(status, value, seconds, max(0.0, message["cpu"] - self.spent), detail)

    def kill_child(self) -> None:
        """Kill the running call's process group, unless the keeper has already reported its end (its number may belong to another by now)."""
        if self.child is None or wait([self.from_keeper], 0):
            return
        for kill in (
            os.killpg,
            os.kill,
        ):  # the second where it had no time to lead a group of its own
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
    """Those of the descriptors that can be read (or are closed at the other end) within the time."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(math.ceil(seconds * 1000))}


def understand(line: bytes, seconds: float) -> tuple[str, str, float, object]:
    """The child's message, which the program may have forged: (status, detail, seconds, value)."""
    try:
        message = json.loads(line)
        status, detail = message["status"], clean_text(message.get("detail", ""))
        if status not in ("ok", "memory", "overflow", "error", "refused", "output"):
            raise ValueError("an unknown status")
        value = decode(message["value"]) if status == "ok" else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        return (
            "output",
            f"the result message is not plain data ({type(error).__name__})",
            seconds,
            None,
        )
    return status, detail, seconds, value


def clean_text(text, length: int = 200) -> str:
    """Text from a program, fit for a terminal: printable characters only, and not too many."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:length])


# --- the keeper and its forks: everything below runs in the child processes ---------------------------------------------------------


def keep(orders: int, reports: int, go: int, results: int) -> None:
    """Take orders, one JSON line each, until the caller closes the pipe."""
    import gc
    import importlib

    def report(message: dict) -> None:
        os.write(reports, (json.dumps(message) + "\n").encode())

    try:
        for module in [
            *PRELOADED,
            "ctypes",
            "pwd",
            "resource",
        ]:  # the last three for ourselves: after the drop they may be out of reach
            importlib.import_module(module)
        library = os.path.dirname(os.__file__)
        drop_privileges()
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; after the drop, which would clear it
        report(
            {
                "unprivileged user": os.geteuid() != 0,
                "whole standard library": os.access(os.path.join(library, "os.py"), os.R_OK),
            }
        )
    except Exception as error:
        return report({"problem": f"{type(error).__name__}: {error}"})
    gc.collect()
    gc.freeze()
    job: dict = {}
    try:
        for line in os.fdopen(orders):
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
            report(
                {"exit": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}
            )
    except Exception as error:
        report({"problem": f"{type(error).__name__}: {error}"})


def drop_privileges() -> None:
    """As root, become `nobody` for good. Root's limits don't bind, and root may signal anyone: a keeper that can't drop does not work."""
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


def prctl(*numbers) -> bool:
    """Linux's `prctl`; whether it was there and agreed."""
    if sys.platform != "linux":
        return False
    import ctypes

    words = [ctypes.c_ulong(n) for n in (*numbers, 0, 0, 0, 0)[:5]]
    return ctypes.CDLL(None).prctl(*words) == 0


def call(job: dict, cpu_seconds: int, library: str, go: int, results: int) -> None:
    """One guarded call, in a fork of the keeper that ends here."""
    write, leave, dumps = os.write, os._exit, json.dumps  # bound before the program can patch them

    def send(message: dict) -> None:
        data = (dumps(message) + "\n").encode()
        while data:
            data = data[write(results, data) :]

    try:
        os.setpgid(0, 0)
        prctl(1, signal.SIGKILL)  # die with the keeper
        limited = set_limits(cpu_seconds, job["memory"])
        filtered = filter_system_calls()
    except Exception as error:
        send({"problem": f"{type(error).__name__}: {error}"})
        return
    for name in [name for name in sys.modules if name.partition(".")[0] in REFUSED_MODULES]:
        del sys.modules[name]
    sys.argv[:] = [""]
    sys.addaudithook(guard(library, results))
    module = type(sys)("program")
    sys.modules["program"] = module
    signal.setitimer(
        signal.ITIMER_PROF, COMPILE_SECONDS
    )  # the program does not run yet and can't put it off
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
        send(
            {
                "status": "output",
                "detail": f"the output is not plain data ({type(error).__name__}: {error})"[:300],
            }
        )
    leave(0)


def set_limits(cpu_seconds: int, memory: int) -> bool:
    """Resource limits of this process, not to be raised again; whether the address space is among them."""
    import resource

    wanted = {"CPU": cpu_seconds, "FSIZE": 0, "CORE": 0, "NOFILE": 32, "NPROC": 0, "AS": memory}
    for name, value in wanted.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (ValueError, OSError, AttributeError):
            if name != "AS":  # macOS
                raise
            return False
    return sys.platform != "darwin"


# What the audit hook refuses: events by prefix, and modules that reach below Python.
# fmt: off
REFUSED_EVENTS = (
    "code.__new__", "cpython.run_", "ctypes.", "dbm.", "fcntl.", "gc.get_", "mmap.", "os.add_dll_directory", "os.chdir", "os.chflags", "os.chmod",
    "os.chown", "os.chroot", "os.exec", "os.fchdir", "os.fork", "os.kill", "os.lchmod", "os.lchown", "os.link", "os.lockf", "os.mkdir",
    "os.posix_spawn", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setns", "os.setxattr", "os.spawn", "os.startfile", "os.symlink",
    "os.system", "os.truncate", "os.unshare", "os.utime", "pty.", "resource.", "shutil.", "signal.", "socket.", "sqlite3.", "subprocess.",
    "sys.addaudithook", "sys.remote_exec", "sys.setprofile", "sys.settrace", "syslog.", "tempfile.", "webbrowser.",
)
REFUSED_MODULES = frozenset((
    "_ctypes", "_interpreters", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_testlimitedcapi", "_xxsubinterpreters", "cffi", "ctypes",
    "multiprocessing",
))
# fmt: on
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(library: str, results: int):
    """The audit hook: it names what was tried and ends the process, so that no `except` of the program can go on from there."""
    prefixes, modules, writing, root = REFUSED_EVENTS, REFUSED_MODULES, WRITING, library + "/"
    write, leave, kind, starts, find = os.write, os._exit, type, str.startswith, str.find
    letters = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._ ")

    def refuse(what: str) -> None:
        what = "".join([c for c in what[:80] if c in letters])
        write(results, b'{"status": "refused", "detail": "' + what.encode() + b'"}\n')
        leave(0)

    def inside(path) -> bool:
        return (
            kind(path) is str and (starts(path, root) or path == library) and find(path, "..") < 0
        )

    def hook(event: str, args: tuple) -> None:
        if starts(event, prefixes):
            refuse(event)
        elif event == "open":
            path, mode, flags = args
            if kind(path) is int:
                return  # a descriptor that it already has
            if (kind(mode) is str and set("wax+") & set(mode)) or (
                kind(flags) is int and flags & writing
            ):
                refuse("open for writing")
            if not inside(path) and path != "<program>":  # a SyntaxError looks for its line there
                refuse("open for reading")
        elif event in ("os.listdir", "os.scandir"):
            if not inside(args[0]):
                refuse(event)
        elif event == "import" and args[0] in modules:
            refuse("import " + args[0])

    return hook


# x86-64 system calls that computing, importing and reporting need; the kernel refuses all others (EPERM).
# fmt: off
ALLOWED = (
    0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 24, 25, 28, 35, 38, 39, 60, 63, 79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108,
    131, 186, 201, 202, 204, 217, 228, 229, 230, 231, 262, 267, 269, 270, 271, 273, 318, 332, 334, 439,
)
# fmt: on
OPENAT = 257


def filter_system_calls() -> bool:
    """Install a seccomp filter for this process (Linux on x86-64); whether the kernel took it."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 2**32:
        return False
    import ctypes
    import struct

    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    lines = [
        (load, 0, 0, 4),
        (equal, 1, 0, 0xC000003E),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),
        (give, 0, 0, deny),
    ]
    for number in ALLOWED:
        lines += [(equal, 0, 1, number), (give, 0, 0, allow)]
    lines += [
        (equal, 1, 0, OPENAT),
        (give, 0, 0, deny),
        (load, 0, 0, 32),
        (any_bit, 0, 1, WRITING),
        (give, 0, 0, deny),
        (give, 0, 0, allow),
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer)), 16
    )
    return prctl(38, 1) and prctl(
        22, 2, ctypes.addressof(header)
    )  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP with SECCOMP_MODE_FILTER


if __name__ == "__main__":
    keep(*map(int, sys.argv[1:5]))
