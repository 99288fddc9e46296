"""The sandbox against programs that misbehave.

Every program here is bounded in itself, so that a failing defence can't take the machine down.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.bases.programs import sandbox
from refimpl.bases.programs.sandbox import Program, Run, decode, encode, run

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the sandbox refuses systems without fork"
)
LINUX = sys.platform == "linux"
FILTERED = LINUX and os.uname().machine == "x86_64"
SECONDS = 2.0

# name -> (program, statuses that are an honest verdict). CANARY stands for a folder that everybody
# may write to.
HOSTILE = {
    "endless loop that swallows exceptions": (
        """
        def f(x):
            while True:
                try:
                    while True: pass
                except BaseException: pass""",
        "timeout",
    ),
    "endless loop in C": ("def f(x):\n    return sum(iter(int, 1))", "timeout"),
    "sleeps": ("import time\ndef f(x):\n    time.sleep(60)", "timeout"),
    "generator that never ends": (
        "import itertools\ndef f(x):\n    return max(itertools.count())",
        "timeout",
    ),
    "signal handlers for everything": (
        """
        import signal
        def f(x):
            for s in range(1, 65):
                try: signal.signal(s, signal.SIG_IGN)
                except Exception: pass
            while True: pass""",
        "timeout",
    ),
    "fork bomb of 64": (
        """
        import os, time
        def f(x):
            for _ in range(6):
                try: os.fork()
                except OSError: pass
            time.sleep(3)
            return x""",
        "refused",
    ),
    "fork below the hook": (
        """
        import time
        def f(x):
            import _posixsubprocess
            return x""",
        "refused",
    ),
    "64 threads": (
        """
        import threading, time
        def f(x):
            for _ in range(64): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
            return x""",
        "error",
    ),
    "memory bomb": (
        """
        def f(x):
            hoard = []
            for _ in range(64): hoard.append(bytearray(1 << 26))
            return len(hoard)""",
        "memory",
    ),
    "memory bomb that swallows MemoryError": (
        """
        def f(x):
            hoard = []
            for _ in range(256):
                try: hoard.append(bytearray(1 << 24))
                except MemoryError: pass
            return 'kept' * len(hoard) * 20_000""",
        "memory output",
    ),
    "1 GB to standard output": (
        """
        def f(x):
            for _ in range(1024): print('x' * (1 << 20))
            return x""",
        "ok timeout",
    ),
    "1 GB as the result": ("def f(x):\n    return 'x' * (1 << 29)", "memory output"),
    "1 GB into every descriptor": (
        """
        import os
        def f(x):
            block = b'x' * (1 << 16)
            for _ in range(1 << 14):
                for fd in range(3, 256):
                    try: os.write(fd, block)
                    except OSError: pass
            return x""",
        "output exit",
    ),
    "patched clock": (
        """
        import time
        t0 = time.time()
        time.time = time.perf_counter = time.monotonic = time.process_time = lambda: 0.0
        time.sleep.__self__.perf_counter = time.perf_counter
        def f(x):
            for _ in range(6_000_000): pass
            return x""",
        "ok",
    ),
    "forged result": (
        """
        import os, sys
        def f(x):
            frame = sys._getframe(1)
            forged = b'{"status": "ok", "value": true, "seconds": 0.0}\\n'
            os.write(frame.f_locals['results'], forged)
            os._exit(0)""",
        "ok",
    ),
    "forged result, then goes on": (
        """
        import os, sys
        def f(x):
            forged = b'{"status": "ok", "value": "forged"}\\n{"status": "ok"'
            os.write(sys._getframe(1).f_locals['results'], forged)
            while True: pass""",
        "timeout ok",
    ),
    "forged status": (
        """
        import os, sys
        def f(x):
            os.write(sys._getframe(1).f_locals['results'], b'{"status": "passed"}\\n')
            os._exit(0)""",
        "output",
    ),
    "forged nesting": (
        """
        import os, sys
        def f(x):
            os.write(sys._getframe(1).f_locals['results'], b'[' * 100_000 + b'\\n')
            os._exit(0)""",
        "output",
    ),
    "os._exit(0)": ("import os\ndef f(x):\n    os._exit(0)", "exit"),
    "sys.exit()": ("import sys\ndef f(x):\n    sys.exit(0)", "error"),
    "crash": ("import os\ndef f(x):\n    os.abort()", "exit"),
    "kills itself": (
        "import signal\ndef f(x):\n    signal.raise_signal(signal.SIGKILL)\n    return x",
        "exit error",
    ),
    "reads a file": ("def f(x):\n    return open('/etc/passwd').read()", "refused"),
    "reads a file through os": (
        """
        import os
        def f(x):
            return os.read(os.open('/etc/passwd', os.O_RDONLY), 99)""",
        "refused",
    ),
    "reads through a path that climbs": (
        """
        import os
        def f(x):
            return open(os.path.dirname(os.__file__) + '/../../../../../../etc/passwd').read()""",
        "refused",
    ),
    "reads its parent's memory": (
        """
        import os
        def f(x):
            return open(f'/proc/{os.getppid()}/maps').read()""",
        "refused",
    ),
    "lists a folder": ("import os\ndef f(x):\n    return os.listdir('/')", "refused"),
    "writes a file": (
        "def f(x):\n    open('CANARY/written', 'w').write('x')\n    return x",
        "refused",
    ),
    "writes a file, swallowing refusals": (
        """
        import os
        def f(x):
            create = os.O_CREAT | os.O_RDWR
            tries = (open, 'aw'), (os.open, ('b', create)), (os.mkdir, 'c'), (os.mkfifo, 'd')
            for how, args in tries:
                try: how('CANARY/' + args[0], *args[1:])
                except BaseException: pass
            return x""",
        "refused",
    ),
    "writes in its own folder": (
        "def f(x):\n    open('here', 'x').write('x')\n    return x",
        "refused",
    ),
    "path object that lies": (
        """
        class Lie(str):
            def startswith(self, *_): return True
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def f(x):
            return open(Lie('/etc/passwd')).read()""",
        "refused",
    ),
    "temporary file": (
        """
        import tempfile
        def f(x):
            tempfile.mkstemp(dir='CANARY')
            return x""",
        "refused error",
    ),
    "removes a file": (
        "import os\ndef f(x):\n    os.remove('CANARY/../precious')\n    return x",
        "refused",
    ),
    "socket": (
        """
        def f(x):
            import socket
            socket.socket().connect(('127.0.0.1', 9))
            return x""",
        "refused error",
    ),
    "socket below the library": (
        """
        def f(x):
            import _socket
            _socket.socket(2, 1)
            return x""",
        "refused error",
    ),
    "subprocess": (
        """
        def f(x):
            import subprocess
            return subprocess.run(['true']).returncode""",
        "refused error",
    ),
    "os.system": ("import os\ndef f(x):\n    return os.system('true')", "refused"),
    "os.execv": ("import os\ndef f(x):\n    os.execv('/bin/true', ['true'])", "refused"),
    "signal to the parent": (
        """
        import os, signal
        def f(x):
            os.kill(os.getppid(), signal.SIGKILL)
            return x""",
        "refused",
    ),
    "signal to the group": (
        """
        import os, signal
        def f(x):
            os.killpg(0, signal.SIGKILL)
            return x""",
        "refused",
    ),
    "signal through a descriptor": (
        """
        import os, signal
        def f(x):
            signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)
            return x""",
        "error",
    ),
    "deep recursion": ("def f(x):\n    return f(x)", "error"),
    "deep recursion without a limit": (
        """
        import sys
        sys.setrecursionlimit(1 << 30)
        def f(x):
            return f(x)""",
        "memory exit timeout",
    ),
    "deep recursion in C": (
        """
        import sys
        sys.setrecursionlimit(1 << 30)
        def f(x):
            for _ in range(1_000_000): x = [x]
            return repr(x)""",
        "memory exit error timeout",
    ),
    "standard input": ("import sys\ndef f(x):\n    return sys.stdin.read() or input()", "error"),
    "reads every descriptor": (
        """
        import os
        def f(x):
            return [os.read(fd, 1 << 16) for fd in range(3)]""",
        "ok error",
    ),
    "waits for the caller": (
        """
        import os, sys
        def f(x):
            return os.read(sys._getframe(1).f_locals['go'], 1)""",
        "timeout",
    ),
    "loops at import": ("while True: pass", "timeout"),
    "exits at import": ("import os\nos._exit(0)", "exit"),
    "raises at import": ("raise SystemExit", "error"),
    "breaks builtins at import": (
        """
        import builtins
        for name in dir(builtins):
            try: setattr(builtins, name, None)
            except Exception: pass
        def f(x):
            return x""",
        "ok error output exit",
    ),
    "empties sys.modules": (
        "import sys\nsys.modules.clear()\ndef f(x):\n    return x",
        "ok error output exit",
    ),
    "patched json": (
        """
        import json
        json.dumps = lambda *a, **k: '{"status": "ok", "value": true}'
        def f(x):
            return x""",
        "ok",
    ),
    "patched json internals": (
        """
        import json.encoder
        json.encoder.JSONEncoder.encode = lambda *a: 1 / 0
        def f(x):
            return x""",
        "ok exit output",
    ),
    "patched os.write": ("import os\nos.write = os._exit = print\ndef f(x):\n    return x", "ok"),
    "patched sandbox": (
        "import __main__\n__main__.encode = lambda x: 'patched'\ndef f(x):\n    return x",
        "ok",
    ),
    "looks for the hook": ("import gc\ndef f(x):\n    return len(gc.get_objects())", "refused"),
    "loads C code": (
        "def f(x):\n    import ctypes\n    return ctypes.CDLL(None).getpid()",
        "refused error",
    ),
    "raises its limits": (
        """
        def f(x):
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
            return x""",
        "refused",
    ),
    "forges byte code": (
        "def f(x):\n    f.__code__ = f.__code__.replace(co_code=b'\\x00' * 64)\n    return f(x)",
        "refused",
    ),
    "output that is not data": (
        """
        class Evil(int):
            def __eq__(self, other): return True
        def f(x):
            return Evil()""",
        "output",
    ),
    "output that contains itself": (
        "def f(x):\n    x = []\n    x.append(x)\n    return x",
        "output",
    ),
    "exception that explodes": (
        """
        class E(Exception):
            def __str__(self): raise self
        def f(x):
            raise E""",
        "exit error",
    ),
    "terminal codes in its message": ("def f(x):\n    raise ValueError('\\x1b[2J' * 99)", "error"),
    "finaliser that loops": (
        """
        class D:
            def __del__(self):
                while True: pass
        keep = D()
        def f(x):
            return x""",
        "ok",
    ),
    "syntax error": ("def f(x) return x", "error"),
    "null character": ("def f(x):\n    return compile('\\0', '', 'exec')", "error"),
    "compiles for long": ("x = " + "-" * 3000 + "1\ndef f(x):\n    return x", "ok error exit"),
    "nests the parser": ("x = " + "(" * 5000 + ")" * 5000, "error exit"),
    "defines nothing": ("x = 1", "error"),
}


def left_behind(folder: str) -> list[int]:
    """Processes that still live in the program's working directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.readlink(process / "cwd").startswith(folder)
                and (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                != "Z"
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, tmp_path):
    code, verdicts = HOSTILE[name]
    canary = tmp_path / "canary"
    canary.mkdir()
    for folder in (tmp_path, *list(tmp_path.parents)[:2], canary):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o777)
    precious = tmp_path / "precious"
    precious.write_text("untouched", encoding="utf-8")
    before = time.perf_counter()
    with Program(
        textwrap.dedent(code).replace("CANARY", str(canary)), "f", memory=256 << 20
    ) as program:
        result = program.call((7,), seconds=SECONDS)
        wall = time.perf_counter() - before
        folder = program.folder
        assert not os.path.exists(folder) or not os.listdir(folder)
    assert wall < SECONDS + 1, f"took {wall:.2f} s"
    assert result.status in verdicts.split(), result
    assert result.detail.isprintable() and len(result.detail) <= 300
    assert not list(canary.iterdir()) and precious.read_text(encoding="utf-8") == "untouched"
    assert not os.path.exists(folder)
    if LINUX:
        assert left_behind(folder) == []
    assert (
        run("def f(x):\n    return x + 1", "f", (7,)).value == 8
    )  # the rest of an evaluation is unharmed


def test_compiling_is_bounded():
    """A program can cost much before it runs. The bound counts CPU time: busy machines are fair."""
    slow = (
        "def f():\n    return 1\n"
        + "def g():\n    return [i * 2 for i in range(3) if i]\n" * 300_000
    )
    result = run(slow, "f", (), seconds=1.0)
    assert (
        result.status == "timeout" and "compiling took over" in result.detail and result.cpu < 2
    ), result


def test_details_say_what_was_tried():
    assert run("import os\ndef f():\n    os.system('true')", "f", ()).detail == "os.system"
    assert run("def f():\n    open('x', 'w')", "f", ()).detail == "open for writing"
    assert "SyntaxError" in run("def f(", "f", ()).detail
    assert "ZeroDivisionError" in run("def f():\n    1 / 0", "f", ()).detail
    assert "killed by SIG" in run("import os\ndef f():\n    os.abort()", "f", ()).detail
    assert "exit status 3" in run("import os\ndef f():\n    os._exit(3)", "f", ()).detail
    assert "defines no g" in run("def f():\n    pass", "g", ()).detail


def test_clock_belongs_to_the_caller():
    """Programs that patch every clock, or report their result early, are timed all the same."""
    slow = """
import time
sleep = time.sleep
time.perf_counter = time.time = lambda: 0.0
def f():
    sleep(0.3)
    return 1"""
    assert run(slow, "f", ()).seconds >= 0.3
    early = """
import os, sys, time
def f():
    results = sys._getframe(1).f_locals["results"]
    os.write(results, b'{"status": "ok", ')
    time.sleep(0.3)
    os.write(results, b'"value": 1}\\n')
    os._exit(0)"""
    result = run(early, "f", ())
    assert result.status == "ok" and result.seconds >= 0.3


def test_forged_result_is_only_another_output():
    """The answer is not in the child: a forgery claims an output, not the right one, nor a time."""
    code, _ = HOSTILE["forged result"]
    result = run(textwrap.dedent(code), "f", (7,))
    assert result.value is True and result.seconds > 0


def test_calls_share_nothing():
    with Program(
        "memo = []\ndef f(x):\n    memo.append(x)\n    x.append(0)\n    return memo", "f"
    ) as program:
        args = ([1],)
        assert [program.call(args).value for _ in range(3)] == [[[1, 0]]] * 3
        assert args == ([1],)
        assert program.call(([2],)).value == [[2, 0]]


def test_large_arguments_and_outputs():
    numbers = list(range(300_000))
    result = run("def f(x):\n    return x[::-1]", "f", (numbers,), max_output=1 << 23)
    assert result.value == numbers[::-1]
    assert run("def f(x):\n    return x", "f", (numbers,), max_output=1 << 16).status == "output"
    assert (
        run("def f(n):\n    return 7 ** n", "f", (40_000,)).value == 7**40_000
    )  # more digits than int() takes from text


def test_recovers_after_every_kind_of_end():
    program = Program(
        """
import os
def f(x):
    if x == 0: os._exit(1)
    if x == 1:
        while True: pass
    if x == 2: return 1 / 0
    return x""",
        "f",
    )
    with program:
        assert [program.call((x,), seconds=0.3).status for x in (3, 0, 3, 1, 3, 2, 3)] == [
            "ok",
            "exit",
            "ok",
            "timeout",
            "ok",
            "error",
            "ok",
        ]


def test_layers_are_reported():
    with Program("def f():\n    return 1", "f") as program:
        program.call(())
        layers = program.layers
    assert layers["unprivileged user"] and layers["audit hook"]
    if FILTERED:
        assert layers["system-call filter"], "the kernel took no filter"
    if LINUX:
        assert layers["address-space limit"]


def test_never_root():
    code = """
import os
def f():
    return os.getuid(), os.geteuid(), os.getgid(), sorted(os.environ)"""
    uid, euid, gid, environment = run(code, "f", ()).value
    assert 0 not in (uid, euid, gid) or os.getuid() != 0
    assert uid == euid and set(environment) <= {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}


ALONE = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("sandbox", sys.argv[1])
sandbox = importlib.util.module_from_spec(spec)
sys.modules["sandbox"] = sandbox
spec.loader.exec_module(sandbox)
import _socket, ctypes, resource, signal
def tried(name, what):
    try:
        what()
        print(name)
    except (OSError, ValueError):
        pass
"""


def alone(script: str) -> list[str]:
    """What a script got away with that uses one layer only."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE + script, sandbox.__file__],
        capture_output=True,
        encoding="utf-8",
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Right programs that import what the fork server has not loaded before.
IMPORTS = {
    "csv": "import csv, io\ndef f():\n    return list(csv.reader(io.StringIO('a,b')))[0][1]",
    "logging": "import logging\ndef f():\n    return logging.getLevelName(30)",
    "uuid": "import uuid\ndef f():\n    return uuid.UUID(int=7).int",
    "strptime": """
from datetime import datetime
def f():
    return datetime.strptime('26 Nov 2026', '%d %b %Y').month""",
    "a package": "def f():\n    from xml.dom import minidom as m\n    return m.Document().nodeName",
    "C code": "def f():\n    import lzma\n    return lzma.decompress(lzma.compress(b'x'))",
    "a codec": "def f():\n    return 'ß'.encode('cp1252')",
}


@pytest.mark.parametrize("name", IMPORTS)
def test_whole_standard_library_wherever_python_lies(name):
    """Also as root with Python in root's home, which the unprivileged user can't enter."""
    answers = ["b", "WARNING", 7, 11, "#document", b"x", b"\xdf"]
    result = run(IMPORTS[name], "f", ())
    assert (result.status, result.value) == ("ok", dict(zip(IMPORTS, answers, strict=True))[name])


def test_library_that_cannot_be_read_is_refused(monkeypatch):
    """Rather no verdict than a wrong one: nothing scores zero because of where Python lies."""
    monkeypatch.setattr(sandbox.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="can't read /somewhere; use a Python outside"):
        sandbox.readable_library("/somewhere", 0)


@pytest.mark.skipif(not LINUX, reason="lowers Linux's limits")
def test_lower_hard_limits_are_kept():
    """A container may allow less than is wished: then that, and no refusal."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
from refimpl.bases.programs.sandbox import run
limits = "import os\\ndef f():\\n    return bytearray({1 << 29}) and 1"
print(run("def f():\\n    return 7", "f", (), seconds=60, memory=1 << 30).value)
print(run(limits, "f", (), memory=1 << 30).status)"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(sandbox.__file__).parents[3],
        timeout=60,
    )
    assert done.stdout.split() == ["7", "memory"], done.stderr


def test_system_calls_have_their_numbers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("Linux's header files are not installed")
    lines = [
        line.split() for line in header.read_text(encoding="utf-8").splitlines() if "__NR_" in line
    ]
    numbers = {words[1].removeprefix("__NR_"): int(words[2]) for words in lines if len(words) == 3}
    assert sandbox.system_calls("x86_64").items() <= numbers.items()
    assert sandbox.system_calls("a machine of tomorrow") == {}


@pytest.mark.skipif(not FILTERED, reason="the system-call filter is for Linux on x86-64")
def test_filter_holds_without_the_hook(tmp_path):
    script = f"""
assert sandbox.filter_system_calls()
tried("socket", lambda: _socket.socket(2, 1))
tried("fork", lambda: os.fork() or os._exit(0))
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("write", lambda: open({str(tmp_path / "x")!r}, "w"))
tried("mkdir", lambda: os.mkdir({str(tmp_path / "y")!r}))
tried("rename", lambda: os.rename({str(tmp_path)!r}, {str(tmp_path) + "2"!r}))
tried("remove", lambda: os.rmdir({str(tmp_path)!r}))
tried("setuid", lambda: os.setuid(0))
tried("read", lambda: open(sys.argv[1]).close())
"""
    assert alone(script) == ["read"] and not list(tmp_path.iterdir())


@pytest.mark.skipif(not LINUX, reason="reads Linux's limits")
def test_limits_hold_without_the_hook(tmp_path):
    script = f"""
spare = os.open({str(tmp_path / "x")!r}, os.O_CREAT | os.O_WRONLY)
tried("write_before", lambda: os.write(spare, b"x"))
sandbox.drop_privileges()
assert sandbox.set_limits(2, 1 << 30)
tried("fork", lambda: os.fork() or os._exit(0))
tried("descriptors", lambda: [os.dup(1) for _ in range(64)])
tried("raise", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (64, 64)))
tried("write", lambda: os.write(spare, b"x"))
try:
    bytearray(2 << 30)
    print("memory")
except MemoryError:
    pass
"""
    assert alone(script) == ["write_before"]


@pytest.mark.skipif(not LINUX, reason="needs the parent-death signal")
def test_killed_caller_leaves_no_child():
    script = """
from refimpl.bases.programs.sandbox import Program
program = Program("def f():\\n    while True: pass", "f")
program.start()
print(program.folder, flush=True)
program.call((), seconds=30)"""
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        cwd=Path(sandbox.__file__).parents[3],
    )
    folder = caller.stdout.readline().strip()
    time.sleep(0.5)
    assert len(left_behind(folder)) == 2  # the fork server and its fork
    caller.kill()
    caller.wait()
    end = time.perf_counter() + 2
    while left_behind(folder) and time.perf_counter() < end:
        time.sleep(0.02)
    assert left_behind(folder) == []
    os.rmdir(folder)


def test_interrupted_call_leaves_no_child():
    program = Program("def f():\n    while True: pass", "f")

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            program.call((), seconds=20)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert program.server is None and not os.path.exists(program.folder)
    if LINUX:
        assert left_behind(program.folder) == []


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


def same(a, b) -> bool:
    """Equal, types included, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


@settings(deadline=None, max_examples=200)
@given(plain)
def test_data_survive_the_pipe(x):
    assert same(decode(json.loads(json.dumps(encode(x)))), x)


def test_data_at_the_edges():
    for x in (
        2**63 - 1,
        2**63,
        -(2**63),
        [2**63],
        [1, 2**63],
        [1, 2.0, None, "x"],
        [True, 1],
        [[], ()],
        [[1, 2], []],
        [[1.5], [2]],
        [["x", True], [0.5]],
        [[[1]]],
        [[(1,)]],
        10**5000,
        {1: {2: (3,)}},
        "\ud800",
        float("inf"),
    ):
        assert same(decode(json.loads(json.dumps(encode(x)))), x)
    assert math.isnan(decode(json.loads(json.dumps(encode(math.nan)))))
    for x in (object(), type, {1: object()}, [len], (x for x in ()), range(3), bytearray(b"x")):
        with pytest.raises(TypeError, match="is not plain data"):
            encode(x)
    for text in (
        "[1]",
        '{"z": []}',
        '{"l": [[1]]}',
        "{}",
        '{"l": [], "t": []}',
        '{"i": 5}',
        '{"s": [{"l": []}]}',
    ):
        with pytest.raises((ValueError, TypeError)):
            decode(json.loads(text))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Program(b"def f(): pass", "f"), "code must be a str"),
        (lambda: Program("x", "not a name"), "entry_point='not a name'"),
        (lambda: Program("x", "f", memory=1000), "memory=1000"),
        (lambda: run("def f(): pass", "f", "args"), "args must be a tuple or list"),
        (lambda: run("def f(): pass", "f", (), seconds=0), "seconds=0"),
        (lambda: run("def f(): pass", "f", (), seconds=math.nan), "seconds=nan"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_argument_that_is_not_data():
    with pytest.raises(TypeError, match="object is not plain data"):
        run("def f(x): pass", "f", (object(),))


def test_system_without_fork(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(RuntimeError, match="POSIX"):
        Program("x", "f")


def test_fork_server_that_cannot_drop_privileges_refuses(monkeypatch, tmp_path):
    """As root without an unprivileged user to become, nothing is run."""
    broken = tmp_path / "sandbox.py"
    source = Path(sandbox.__file__).read_text(encoding="utf-8")
    broken.write_text(
        source.replace(
            "    if os.geteuid() == 0:\n        import pwd\n",
            "    raise PermissionError('no such user here')\n    if True:\n        import pwd\n",
        ),
        encoding="utf-8",
    )
    assert "no such user here" in broken.read_text(encoding="utf-8")
    monkeypatch.setattr(sandbox, "__file__", str(broken))
    with pytest.raises(RuntimeError, match="no such user here"):
        run("def f():\n    return 1", "f", ())


def test_interpreter_that_does_not_start_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    fds = len(os.listdir("/dev/fd"))
    with pytest.raises(FileNotFoundError):
        run("def f():\n    return 1", "f", ())
    assert not list(tmp_path.iterdir()) and len(os.listdir("/dev/fd")) == fds


def test_forgotten_program_leaves_nothing():
    script = """
from refimpl.bases.programs.sandbox import Program
p = Program('def f():\\n    return 1', 'f')
p.call(())
print(p.folder)"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(sandbox.__file__).parents[3],
        timeout=60,
    )
    assert done.returncode == 0 and not os.path.exists(done.stdout.strip()), done.stderr
    if LINUX:
        end = time.perf_counter() + 5
        while left_behind(done.stdout.strip()) and time.perf_counter() < end:
            time.sleep(0.02)
        assert left_behind(done.stdout.strip()) == []


def test_unnamed_signals_are_named_by_number():
    program = Program("def f():\n    pass", "f")
    program.report = lambda seconds: {"exit": -42, "cpu": 0.0}
    assert program.ended("exit", "", 0.0).detail == "killed by signal 42"


def test_run_is_a_record():
    result = run("def f():\n    return (1, 'a')", "f", ())
    assert (
        isinstance(result, Run)
        and result.value == (1, "a")
        and result.seconds > 0
        and result.cpu >= 0
    )
    assert sandbox.STATUSES[0] == "ok"
