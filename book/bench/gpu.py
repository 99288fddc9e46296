"""One run on a GPU: every Triton kernel compiled, verified and timed, and the models beside.

    python book/bench/gpu.py OUT [--minutes 8] [--kernels ssd] [--models 'deit_*'] [--interpreter]

A kernel is compiled forward and backward, compared with float64 on drawn problems of the contract
test (`tests/shared/kernels.py`), and timed beside its composed form, `torch.compile` of that, and
the peer where one is installed (mamba_ssm). A model is timed as written, fused and compiled, beside
timm's where that is installed. Every operation and every family is a process of its own, so that
one that crashes or hangs is a row with its error and stops nothing; what does not fit is
named. Writes, as it goes, `OUT/kernels/<op>.json` and `OUT/<stem>.json`, in the format of
`book/results/gpu-<name>/`. Without a GPU (or with --interpreter) Triton's interpreter runs tiny
shapes, and the files say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(BENCH)]

KERNEL_SECONDS = 45  # at most, for an operation
FAMILY_SECONDS = 60  # at most, for a family of models
COMPILE_SECONDS = 35  # left, or torch.compile is not begun
ROW_SECONDS = 4
PROBLEMS = 6  # drawn for each type
NONE = 1e-6  # a gradient that cancels to nothing, as that of A in the mixer, has no digits to lose

# -- what runs in a process of its own; torch is imported there alone


class Record:
    """A results file that is whole after every step, whatever happens in the next one."""

    def __init__(self, path: Path, seconds: float):
        self.path = path
        self.end = time.monotonic() + seconds
        self.data: dict = {"problems": [], "left_out": []}

    def left(self) -> float:
        return self.end - time.monotonic()

    def save(self, **more) -> None:
        self.data |= more
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1, default=float) + "\n", "utf-8")
        temporary.replace(self.path)

    def attempt(self, what: str, step: Callable[[], object], needs: float = 0.0):
        """Do one step: its result, or `None` where it failed or did not fit, which is noted."""
        if self.left() < needs:
            self.data["left_out"].append(f"{what}: {self.left():.0f} s left, {needs:.0f} s wanted")
            self.save()
            return None
        self.save(now=what)  # what a crash or a hang was in
        try:
            return step()
        except Exception as error:
            text = str(error).strip() or repr(error)
            self.data["problems"].append(f"{what}: {type(error).__name__}: {text[:600]}")
            return None
        finally:
            self.data.pop("now", None)
            self.save()


def heading(verified: str) -> dict:
    """Machine, limits and versions."""
    import torch

    from refimpl.lab import measure

    device = "cuda" if verified == "gpu" else "cpu"
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    versions["cuda"] = torch.version.cuda or "none"
    if importlib.util.find_spec("triton"):
        from importlib.metadata import version

        versions["triton"] = version("triton")
    machine = measure.machine(device)
    limits = asdict(measure.ceilings(1, device)) if verified == "gpu" else {}
    return {
        "machine": machine,
        "ceilings": limits,
        "versions": versions,
        "verified": verified,
        "date": machine["date"],
    }


def to(device: str, arguments: dict) -> dict:
    import torch

    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def run_kernel(op: str, record: Record, verified: str) -> None:
    """Compile, verify and time one operation."""
    import torch

    from refimpl.kernels import operations

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    device = "cuda" if verified == "gpu" else "cpu"
    operation = operations()[op]
    size = "large" if verified == "gpu" else "small"
    record.save(**heading(verified), op=op, agreement={}, checks={})
    record.save(seconds={}, low={}, high={}, first_call_seconds={})
    arguments = operation.example(size, device=device)
    cost = operation.cost(**arguments)
    limits = record.data["ceilings"]
    shapes = {k: list(v.shape) for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    record.save(shapes=shapes, flops=cost.flops, bytes=cost.bytes, limit_seconds=None)
    if limits:
        by_flops = cost.flops / (limits["gflops"] * 1e9)
        record.save(limit_seconds=max(by_flops, cost.bytes / (limits["gbs"] * 1e9)))
    record.attempt("compile forward", partial(compile_pass, operation, arguments, record, False))
    if not forward_only(op):
        backward = partial(compile_pass, operation, arguments, record, True)
        record.attempt("compile backward", backward)
    count = PROBLEMS if verified == "gpu" else 1
    types = ("float32", "float64", "bfloat16", "float16") if verified == "gpu" else ("float32",)
    for dtype in types:
        step = partial(verify, operation, dtype, count, device, record, verified)
        record.attempt(f"verify in {dtype}", step, needs=1)
    if verified == "gpu":
        time_kernel(operation, arguments, record)


def forward_only(op: str) -> str:
    from shared.kernels import CONTRACTS

    return CONTRACTS[op].forward_only


def compile_pass(operation, arguments: dict, record: Record, backward: bool) -> None:
    """The first call, which compiles on a GPU; its seconds."""
    import torch

    from shared.kernels import call, gradients

    start = time.perf_counter()
    if backward:
        gradients(lambda a: call(operation, a, "triton"), arguments)
    else:
        with torch.no_grad():
            call(operation, arguments, "triton")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    name = "backward" if backward else "forward"
    record.data["first_call_seconds"][name] = round(time.perf_counter() - start, 2)


def verify(operation, dtype: str, count: int, device: str, record: Record, verified: str) -> None:
    """Errors against float64 as multiples of the composed form's, on drawn problems; the worst."""
    import torch

    from shared.kernels import CONTRACTS, call, cast, composed, drawn, gradients, problem

    kind = getattr(torch, dtype)
    op = operation.name
    checks = {"problems": 0, "worst": 0.0, "worst_gradient": 0.0, "beyond": []}
    record.data["checks"][dtype] = checks
    for seed in range(count):
        if record.left() < 1:
            checks["stopped"] = "out of time"
            break
        choice = drawn(op, seed)
        arguments = problem(op, seed, kind, **choice)
        exact = cast(arguments, torch.float64)
        there = to(device, arguments)
        with torch.no_grad():
            truth = composed(op, exact)
            yardstick = composed_or_own(op, operation, there, kind)
            found = call(operation, there, "triton")
        ratio = worst_ratio(found, yardstick, truth, kind, CONTRACTS[op].floor, 2)
        note(checks, "worst", ratio, 2, choice)
        if kind in (torch.float32, torch.float64) and not forward_only(op):
            wanted = gradients(lambda a: composed(op, a), exact)
            theirs = gradients(lambda a: composed(op, a), there)
            ours = gradients(lambda a: call(operation, a, "triton"), there)
            rows = [(ours[name], theirs[name], wanted[name]) for name in ours]
            ratio = worst_ratio(*zip(*rows, strict=True), kind, 2 * CONTRACTS[op].floor, 3, NONE)
            note(checks, "worst_gradient", ratio, 3, choice)
        checks["problems"] += 1
        record.save()
    if dtype == "float32" and checks["problems"]:
        name = "triton_gpu" if verified == "gpu" else "triton_interpreter"
        record.data["agreement"] |= {"torch": 1.0, name: round(checks["worst"], 3)}


def composed_or_own(op: str, operation, arguments: dict, kind):
    """The yardstick: the textbook form where the types are wide, else the operation's own."""
    import torch

    from shared.kernels import call, composed

    if kind in (torch.float32, torch.float64):
        return composed(op, arguments)
    return call(operation, arguments, "torch")


def worst_ratio(found, yardstick, truth, kind, floor: float, most: float, least=0.0) -> float:
    """Largest error of `found` as a multiple of the yardstick's; above `most` it is too large.

    floor: what the contract allows at least, in roundings of the result; least: and in numbers.
    """
    from shared.kernels import allowed, distance

    worst = 0.0
    for ours, theirs, true in zip(found, yardstick, truth, strict=True):
        limit = max(allowed(distance(theirs, true), true, kind, most, floor), least)
        error = distance(ours, true)
        worst = max(worst, most * error / limit) if error == error else float("inf")
    return worst


def note(checks: dict, name: str, ratio: float, limit: float, choice: dict) -> None:
    checks[name] = max(checks[name], ratio)
    if ratio > limit:
        checks["beyond"].append({"what": name, "ratio": round(ratio, 2), "problem": str(choice)})


def time_kernel(operation, arguments: dict, record: Record) -> None:
    """Forward, and forward with backward, of all candidates in turns."""
    import torch

    from refimpl.lab import measure

    candidates = {"torch": partial(operation.function, **arguments, backend="torch")}
    candidates["triton"] = partial(operation.function, **arguments, backend="triton")
    if (theirs := PEERS.get(operation.name)) is not None:
        peer = record.attempt(f"peer of {operation.name}", lambda: theirs(arguments), needs=5)
        if peer is not None:
            candidates["peer"] = peer
    compiled = record.attempt(
        "torch.compile", lambda: compiled_form(operation, arguments), needs=COMPILE_SECONDS / 2
    )
    if compiled is not None:
        candidates["compiled"] = compiled
    usable = {}
    for name, candidate in candidates.items():
        if record.attempt(f"run {name}", lambda c=candidate: [c() is not None]) is not None:
            usable[name] = candidate
    with torch.no_grad():
        found = record.attempt(
            "timing", lambda: measure.compare(usable, rounds=5, min_time=0.02), needs=3
        )
    if found is not None:
        record.save(
            seconds={t.name: t.median for t in found.timings},
            low={t.name: t.low for t in found.timings},
            high={t.name: t.high for t in found.timings},
        )
    if not forward_only(operation.name):
        step = partial(time_training, operation, arguments, record)
        record.attempt("timing with backward", step, needs=3)


def time_training(operation, arguments: dict, record: Record) -> None:
    """Seconds of a call and its gradients."""
    import torch

    from shared.kernels import call, gradients

    seconds = {}
    for backend in ("torch", "triton"):
        times = []
        for _ in range(6):
            torch.cuda.synchronize()
            start = time.perf_counter()
            gradients(lambda a, b=backend: call(operation, a, b), arguments)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds[backend] = sorted(times)[len(times) // 2]
    record.data["training_seconds"] = seconds


def compiled_form(operation, arguments: dict) -> Callable:
    import torch

    function = torch.compile(partial(operation.function, backend="torch"))
    with torch.no_grad():
        function(**arguments)
    return partial(function, **arguments)


def mamba_scan(arguments: dict) -> Callable:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return partial(selective_scan_fn, **arguments)


def mamba_chunks(arguments: dict) -> Callable:
    """Their x is multiplied by Δ inside: with A = −1, Δ = −a and x/Δ it is the same work."""
    import torch
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    step = -arguments["a"]
    x = arguments["x"] / step[..., None]
    A = -torch.ones(x.shape[2], device=x.device)
    given = (x, step, A, arguments["B"], arguments["C"])
    return partial(mamba_chunk_scan_combined, *given, chunk_size=64)


PEERS = {"selective_scan": mamba_scan, "ssd": mamba_chunks}


def run_family(stem: str, pattern: str, record: Record, verified: str) -> None:
    """Time the models of a family, the smallest first; the smallest is compiled too."""
    import torch

    import refimpl

    index = refimpl.model_index()
    names = [n for n in refimpl.list_models(pattern) if index[n][0].rsplit(".", 1)[1] == stem]
    record.save(**heading(verified), models=[])
    device = "cuda" if verified == "gpu" else "cpu"
    with torch.device("meta"):
        size = {n: sum(p.numel() for p in refimpl.create_model(n).parameters()) for n in names}
    for i, name in enumerate(sorted(names, key=size.get)):
        for batch in (1, 8, 64) if verified == "gpu" else (1,):
            what = f"{name}, batch {batch}"
            compiled = i == 0 and batch == 8 and verified == "gpu"
            step = partial(time_model, name, batch, device, record, compiled)
            record.attempt(what, step, needs=ROW_SECONDS)


def time_model(name: str, batch: int, device: str, record: Record, compiled: bool) -> None:
    import torch

    import refimpl
    from refimpl.lab import measure

    torch.manual_seed(0)
    model = refimpl.create_model(name).eval()
    if not hasattr(model, "img_size"):
        return
    theirs = record.attempt(f"{name}: timm", lambda: timm_model(name, model))
    model = model.to(device)
    sides = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    images = torch.randn(batch, model.in_chans, *sides, device=device)
    forms = {"eager": model}
    fused = record.attempt(f"{name}: fuse", model.fuse)
    if fused is not None:
        forms["fused"] = fused
    with torch.inference_mode():
        wanted = model(images)
        if compiled:
            whole = record.attempt(
                f"{name}: torch.compile", lambda: compiled_model(model, images), COMPILE_SECONDS
            )
            if whole is not None:
                forms["compiled"] = whole
        errors = {
            form: float((f(images) - wanted).norm() / wanted.norm()) for form, f in forms.items()
        }
        candidates = {form: partial(f, images) for form, f in forms.items()}
        if theirs is not None:  # ratios are to the first
            candidates = {"timm": partial(theirs.to(device), images)} | candidates
        rounds = 5 if device == "cuda" else 3
        found = measure.compare(candidates, rounds=rounds, min_time=0.02 * (device == "cuda"))
    for form in forms:
        timing = found[form]
        row = {
            "name": name,
            "batch": batch,
            "img_size": model.img_size,
            "params": measure.parameters(model),
            "form": form,
            "macs": measure.macs(model, images) // batch,
            "memory": measure.peak_memory(candidates[form]),
            "seconds": timing.median,
            "low": timing.low,
            "high": timing.high,
            "ratio_to_eager": timing.median / found["eager"].median,
            "deviation_from_eager": errors[form],
            "date": record.data["date"],
        }
        if theirs is not None:
            row |= {
                "timm_seconds": found["timm"].median,
                "ratio_to_timm": timing.ratio,
                "ratio_low": timing.ratio_low,
                "ratio_high": timing.ratio_high,
            }
        record.data["models"].append(row)


def timm_model(name: str, model):
    """timm's model with the same weights, by the CPU's benchmark; `None` where there is none."""
    specification = importlib.util.spec_from_file_location("bench", BENCH / "__main__.py")
    bench = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bench)
    return bench.peer(name, model)


def compiled_model(model, images) -> Callable:
    import torch

    compiled = torch.compile(model)
    compiled(images)
    return compiled


# -- the parent: starts the processes, and survives them


def run_job(command: list[str], target: Path, seconds: float, environment: dict) -> str:
    """Run one process for at most `seconds`; what went wrong with it, in words, or "".

    What it had written to `target` stays; the error is added there, with the step it was in.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
            problem = "" if status == 0 else f"ended with status {status}"
            if status < 0:
                problem = f"ended by signal {signal.Signals(-status).name}"
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:.0f} s"
            stop(process)
        except BaseException:
            stop(process)
            raise
        errors.seek(0)
        last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    data = json.loads(target.read_text("utf-8")) if target.exists() else {}
    step = data.pop("now", "")
    if problem:
        words = [f"{step}: " if step else "", problem, *(f"; {line[:300]}" for line in last)]
        data.setdefault("problems", []).append("".join(words))
    target.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return problem


def stop(process: subprocess.Popen) -> None:
    """End a process of ours and what it started: it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def told(data: dict) -> str:
    """A line about one results file."""
    parts = []
    if data.get("first_call_seconds"):
        how = "compiled" if data["verified"] == "gpu" else "interpreted"
        parts.append(f"{how} {' and '.join(data['first_call_seconds'])}")
    for dtype, checks in data.get("checks", {}).items():
        verdict = f"{len(checks['beyond'])} beyond the limit" if checks["beyond"] else "ok"
        error = f"error {checks['worst']:.2f} of the composed form's"
        parts.append(f"{dtype} {verdict} ({error}, {checks['problems']} problems)")
    for name, seconds in data.get("seconds", {}).items():
        parts.append(f"{name} {seconds * 1e6:.0f} µs")
    for row in data.get("models", []):
        parts.append(f"{row['name']}·{row['batch']} {row['form']} {row['seconds'] * 1e3:.2f} ms")
    parts += [f"PROBLEM {problem}" for problem in data.get("problems", [])]
    parts += [f"left out: {what}" for what in data.get("left_out", [])]
    return "\n    ".join(parts) or "nothing measured"


def jobs(kernels: str, models: str) -> list[tuple[str, str, float]]:
    """(kind, name, most seconds), kernels first, without importing torch."""
    folders = sorted(path.parent.name for path in ROOT.glob("refimpl/kernels/*/triton.py"))
    found = [("kernel", op, KERNEL_SECONDS) for op in folders if fnmatch(op, kernels)]
    if not models:
        return found
    import refimpl

    index = refimpl.model_index()
    stems = {index[name][0].rsplit(".", 1)[1] for name in refimpl.list_models(models)}
    return found + [("family", stem, FAMILY_SECONDS) for stem in sorted(stems)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default 8)")
    parser.add_argument("--kernels", default="*", metavar="PATTERN", help="'' for none")
    parser.add_argument("--models", default="*", metavar="PATTERN", help="'' for none")
    parser.add_argument("--interpreter", action="store_true", help="tiny shapes, without a GPU")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # kind, name, seconds
    chosen = parser.parse_args()
    if chosen.job:
        kind, name, seconds = chosen.job
        record = Record(chosen.out, float(seconds))
        verified = "interpreter" if chosen.interpreter else "gpu"
        if kind == "kernel":
            run_kernel(name, record, verified)
        else:
            run_family(name, chosen.models, record, verified)
        return 0
    import torch

    interpreter = chosen.interpreter or not torch.cuda.is_available()
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    if interpreter:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    (chosen.out / "kernels").mkdir(parents=True, exist_ok=True)  # before minutes of work
    start = time.monotonic()
    end = start + 60 * chosen.minutes
    where = "Triton's interpreter" if interpreter else torch.cuda.get_device_name()
    print(f"on {where}, {chosen.minutes:g} minutes, -> {chosen.out}", flush=True)
    left_out = []
    for kind, name, most in jobs(chosen.kernels, chosen.models):
        left = end - time.monotonic()
        if left < 8:
            left_out.append(name)
            continue
        seconds = min(most, left)
        target = chosen.out / ("kernels" if kind == "kernel" else "") / f"{name}.json"
        target.unlink(missing_ok=True)
        command = [sys.executable, __file__, str(target), "--models", chosen.models]
        command += ["--job", kind, name, str(seconds - 5)]
        if interpreter:
            command.append("--interpreter")
        begun = time.monotonic()
        run_job(command, target, seconds, environment)
        data = json.loads(target.read_text("utf-8"))
        print(f"{name} ({time.monotonic() - begun:.0f} s)\n    {told(data)}", flush=True)
    if left_out:
        print(f"no time was left for: {', '.join(left_out)}")
    print(f"done in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
