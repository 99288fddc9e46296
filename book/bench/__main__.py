"""Measure this machine: exactness of all cases, speed of all models, agreement of all kernels.

    python book/bench [--models 'efficientvit_*'] [--kernels ssd]
                      [--only exactness|models|kernels|compiled]

Writes one file for each stem (`store.py` says where), each as soon as it is measured; what a run
does not measure stays. One thread, on a CPU by the processor's clock, so that other programs don't
count. The forms of one model are timed in turns, so ratios are fair. timm's model with the same
weights is timed beside ours where timm is importable.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from tqdm import tqdm

import refimpl
import store
from refimpl import checks, kernels
from refimpl.lab import measure
from refimpl.weights import load_official

PARTS = ("exactness", "models", "kernels", "compiled")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TARGETS = [75, 80, 86, 89, 90, 100]  # compute capabilities that kernels are compiled for offline
LARGEST = 20e9  # multiply-adds of one call on a CPU; larger batches would take minutes

# Where timm calls the same function by another name.
TIMM_NAMES = [
    (r"^deit_(tiny|small|base)$", r"deit_\1_patch16_224"),
    (r"^deit_(tiny|small|base)_distilled$", r"deit_\1_distilled_patch16_224"),
    (r"^tinyvit_(\d+m)$", r"tiny_vit_\1_224"),
    (r"^tinyvit_(\d+m_\d+)$", r"tiny_vit_\1"),
]


# -- models


def peer(name: str, model: nn.Module) -> nn.Module | None:
    """timm's model of the same function with the same weights, `None` where there is none."""
    try:
        import timm
    except ImportError:
        return None
    for pattern, replacement in TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    if name not in timm.list_models():
        return None
    theirs = timm.create_model(name, num_classes=model.num_classes).eval()
    for module in theirs.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.3, 0.6)  # a zero γ would switch branches off
    load_official(model, theirs.state_dict())
    return theirs.to(DEVICE)


def measure_model(name: str, rounds: int) -> list[dict]:
    """Rows of one model: batch 1 and 8, eager and (where it folds) fused, timm beside."""
    torch.manual_seed(0)
    model = refimpl.create_model(name).eval()
    if not hasattr(model, "img_size"):
        return []
    theirs = peer(name, model)
    model = model.to(DEVICE)
    size = checks.image_size(model.img_size)
    one = torch.zeros(1, model.in_chans, *size, device=DEVICE)
    work = measure.macs(model, one)
    rows = []
    for batch in (1, 8):
        if batch == 1 or GPU or batch * work <= LARGEST:
            images = torch.randn(batch, *one.shape[1:], device=DEVICE)
            rows += measure_batch(name, model, theirs, images, rounds)
    return rows


def measure_batch(
    name: str, model: nn.Module, theirs: nn.Module | None, images: Tensor, rounds: int
) -> list[dict]:
    """Rows of one model at one batch size; every ratio comes from the same alternating rounds."""
    ours = {"eager": model}
    if hasattr(model, "fuse"):
        ours["fused"] = model.fuse()
    candidates = {"timm": theirs} | ours if theirs else ours  # ratios are to the first
    with torch.inference_mode():
        wanted = model(images)
        errors = {form: relative_error(f(images), wanted) for form, f in candidates.items()}
        found = measure.compare(
            {form: partial(f, images) for form, f in candidates.items()},
            rounds=rounds,
            min_time=0.05,
            processor_time=not GPU,
        )
    rows = []
    for form, f in ours.items():
        timing = found[form]
        row = {
            "name": name,
            "batch": len(images),
            "img_size": model.img_size,
            "params": measure.parameters(model),
            "form": form,
            "macs": measure.macs(f, images) // len(images),
            "memory": measure.peak_memory(partial(f, images)),
            "seconds": timing.median,
            "low": timing.low,
            "high": timing.high,
            "deviation_from_eager": errors[form],
            "date": machine_record()["date"],
        }
        if theirs:
            row |= {
                "timm_seconds": found["timm"].median,
                "deviation_from_timm": errors["timm"],
                "ratio_to_timm": timing.ratio,
                "ratio_low": timing.ratio_low,
                "ratio_high": timing.ratio_high,
            }
        rows.append(row)
    return rows


def bench_models(pattern: str, rounds: int, ceilings: measure.Ceilings) -> None:
    """Measure the models that match, family by family, into `<stem>.json`.

    Rows of the family's other models stay, unless another machine measured them.
    """

    def stem_of(name: str) -> str:
        return refimpl.model_index()[name][0].rsplit(".", 1)[1]

    known = sorted(refimpl.list_models(), key=stem_of)
    for stem, names in groupby(known, stem_of):
        path = store.folder() / f"{stem}.json"
        family = list(names)
        rows = {row_key(r): r for r in stored_rows(path) if r["name"] in family}
        chosen = [name for name in family if fnmatch(name, pattern)]
        for name in tqdm(chosen, unit="model", desc=stem, disable=not chosen):
            rows |= {row_key(r): r for r in measure_model(name, rounds)}
        if chosen and rows:
            store.write(path, heading(ceilings) | {"models": [rows[key] for key in sorted(rows)]})


def stored_rows(path: Path) -> list[dict]:
    """The rows of a results file that this machine measured, with these versions."""
    stored = store.read(path)
    undated = [
        {key: value for key, value in machine.items() if key != "date"}
        for machine in (stored.get("machine", {}), machine_record())
    ]
    return stored.get("models", []) if undated[0] == undated[1] else []


def row_key(row: dict) -> tuple[str, int, str]:
    return row["name"], row["batch"], row["form"]


# -- kernels


def relative_error(result: Tensor | tuple, truth: Tensor | tuple) -> float:
    """Norm of the difference as a fraction of the truth's norm, the largest over the results."""
    pairs = zip(as_tuple(result), as_tuple(truth), strict=True)
    return max(
        float(torch.dist(a.double().cpu(), b.double().cpu()) / b.double().norm().clamp_min(1e-30))
        for a, b in pairs
    )


def as_tuple(result: Tensor | tuple | list) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def measure_kernel(op: str, ceilings: measure.Ceilings, rounds: int) -> dict:
    """Agreement of each form with the loops in float64 on a small problem, as a multiple of the
    composed form's own rounding error; time of the fast forms on a large one, against the limit."""
    operation = kernels.operations()[op]
    call = operation.function
    small = operation.example("small")
    truth = call(**operation.example("small", dtype=torch.float64), backend="naive")
    unit = max(relative_error(call(**small, backend="torch"), truth), 1e-9)
    errors = {"numpy": relative_error(call(**small, backend="numpy"), truth), "torch": unit}
    interpreted = subprocess.run(
        [sys.executable, __file__, "--interpret", op],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if interpreted.returncode == 0:
        errors["triton_interpreter"] = float(interpreted.stdout.strip().splitlines()[-1])
    if GPU:
        there = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in small.items()}
        errors["triton_gpu"] = relative_error(call(**there, backend="triton"), truth)
    large = operation.example("large", device=DEVICE)
    backends = ("torch", "triton") if GPU else ("torch", "numpy")
    found = measure.compare(
        {backend: partial(call, **large, backend=backend) for backend in backends},
        rounds=rounds,
        min_time=0.02,
        processor_time=not GPU,
    )
    cost = operation.cost(**large)
    return {
        "op": op,
        "shapes": {k: list(v.shape) for k, v in large.items() if isinstance(v, Tensor)},
        "flops": cost.flops,
        "bytes": cost.bytes,
        "limit_seconds": ceilings.limit(cost.flops, cost.bytes),
        "agreement": {k: round(error / unit, 3) for k, error in errors.items()},
        "seconds": {t.name: t.median for t in found.timings},
        "low": {t.name: t.low for t in found.timings},
        "high": {t.name: t.high for t in found.timings},
        "date": measure.machine()["date"],
    }


def interpret(op: str) -> None:
    """With TRITON_INTERPRET=1, in a process of its own: print the error of the Triton form."""
    operation = kernels.operations()[op]
    call = operation.function
    truth = call(**operation.example("small", dtype=torch.float64), backend="naive")
    print(relative_error(call(**operation.example("small"), backend="triton"), truth))


def bench_kernels(pattern: str, rounds: int, ceilings: measure.Ceilings) -> None:
    """Measure the kernels that match into `kernels/<op>.json`."""
    chosen = [op for op in kernels.operations() if fnmatch(op, pattern)]
    for op in tqdm(chosen, unit="kernel", desc="kernels"):
        record = heading(ceilings) | measure_kernel(op, ceilings, rounds)
        store.write(store.folder() / "kernels" / f"{op}.json", record)


def bench_compiled(pattern: str) -> None:
    """Compile the kernels that match for GPUs which are not there, into `compiled/<op>.json`."""
    from importlib.metadata import version

    script = store.ROOT / "tests" / "shared" / "ptx.py"
    types = ("float32", "bfloat16", "float16")
    for op in [op for op in kernels.operations() if fnmatch(op, pattern)]:
        command = [sys.executable, str(script), "--ops", op, "--types", ",".join(types)]
        command += ["--targets", ",".join(map(str, TARGETS))]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            print(f"{op}: nothing was compiled: {done.stderr[-300:]}")
            continue
        record = {
            "op": op,
            "date": measure.machine()["date"],
            "triton": version("triton"),
            "targets": TARGETS,
            "types": types,
            "kernels": sorted({line["kernel"] for line in lines if "kernel" in line}),
            "shared": max(line.get("shared", 0) for line in lines),
            "errors": [line for line in lines if "error" in line],
        }
        store.write(store.RESULTS / "compiled" / f"{op}.json", record)


# -- the command


def machine_record() -> dict:
    """This machine, its versions and the date."""
    return measure.machine(DEVICE) | {"threads": 1}


def heading(ceilings: measure.Ceilings) -> dict:
    """What every results file says about the machine."""
    return {"machine": machine_record(), "ceilings": asdict(ceilings)}


def bench_exactness() -> int:
    """Run every test of reference outputs; exit status of pytest."""
    target = store.RESULTS / "exactness"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-k", "official", "tests"]
    return subprocess.run([*command, "--exactness", str(target)], cwd=store.ROOT).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*", metavar="PATTERN", help="models (default: all)")
    parser.add_argument("--kernels", default="*", metavar="PATTERN", help="kernels (default: all)")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in turns (default 9)")
    parser.add_argument("--interpret", metavar="OP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.interpret:
        interpret(arguments.interpret)
        return 0
    if arguments.only in (None, "exactness") and (code := bench_exactness()):
        return code
    if arguments.only in (None, "compiled"):
        bench_compiled(arguments.kernels)
    if arguments.only == "compiled":
        return 0
    torch.set_num_threads(1)
    ceilings = measure.ceilings(1, DEVICE)
    if arguments.only in (None, "models"):
        bench_models(arguments.models, arguments.rounds, ceilings)
    if arguments.only in (None, "kernels"):
        bench_kernels(arguments.kernels, arguments.rounds, ceilings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
