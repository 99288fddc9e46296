"""Measure this machine: exactness of every official case, speed of every model, agreement and speed of every kernel.

    python book/bench [--models 'efficientvit_*'] [--only exactness|models|kernels] [--rounds 9]

Writes `book/results/exactness.json` and `book/results/cpu.json` (`gpu-<name>.json` where there is a GPU). A run that measures a part keeps
the rest of the file. One thread, on a CPU by the processor's clock, so that other programs don't count; forms of one model are timed in turns,
so ratios are fair; timm is timed beside, with the same weights, where it is importable.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import refimpl  # noqa: E402
from refimpl import kernels  # noqa: E402
from refimpl.lab import measure  # noqa: E402
from refimpl.weights import load_official  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")

LARGEST = (
    20e9  # multiply-adds of one call on a CPU; larger batches are left out, they would take minutes
)

# Where timm calls the same function by another name.
TIMM_NAMES = [
    (r"^deit_(tiny|small|base)$", r"deit_\1_patch16_224"),
    (r"^deit_(tiny|small|base)_distilled$", r"deit_\1_distilled_patch16_224"),
]


def results_file() -> Path:
    if not GPU:
        return RESULTS / "cpu.json"
    return (
        RESULTS
        / f"gpu-{re.sub(r'[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()).strip('-')}.json"
    )


def peer(name: str, model) -> torch.nn.Module | None:
    """timm's model of the same function with the same weights, or `None` where there is none to compare with."""
    try:
        import timm
    except ImportError:
        return None
    for pattern, replacement in TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    if name not in timm.list_models():
        return None
    theirs = timm.create_model(name).eval()
    for norm in (
        m for m in theirs.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ):
        torch.nn.init.uniform_(norm.weight, 0.3, 0.6)  # a zero γ would switch branches off
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
    rows = []
    for batch in (1, 8):
        work = batch * measure.macs(
            model, torch.zeros(1, model.in_chans, model.img_size, model.img_size, device=DEVICE)
        )
        if batch > 1 and work > LARGEST and not GPU:
            continue
        images = torch.randn(batch, model.in_chans, model.img_size, model.img_size, device=DEVICE)
        ours = {"eager": model} | ({"fused": model.fuse()} if hasattr(model, "fuse") else {})
        forms = ({"timm": theirs} if theirs else {}) | ours  # ratios are to the first
        with torch.inference_mode():
            wanted = model(images)
            apart = {
                form: float(torch.dist(f(images), wanted) / wanted.norm())
                for form, f in forms.items()
            }
            found = measure.compare(
                {form: partial(f, images) for form, f in forms.items()},
                rounds=rounds,
                min_time=0.05,
                processor_time=not GPU,
            )
        common = {
            "name": name,
            "batch": batch,
            "img_size": model.img_size,
            "params": measure.parameters(model),
        }
        for form in ours:
            timing, memory = found[form], measure.peak_memory(partial(ours[form], images))
            row = common | {
                "form": form,
                "macs": measure.macs(ours[form], images) // batch,
                "memory": memory,
            }
            row |= {"seconds": timing.median, "low": timing.low, "high": timing.high}
            row["deviation_from_eager"] = apart[form]
            if theirs:
                row |= {"timm_seconds": found["timm"].median, "deviation_from_timm": apart["timm"]}
                row |= {
                    "ratio_to_timm": timing.ratio,
                    "ratio_low": timing.ratio_low,
                    "ratio_high": timing.ratio_high,
                }
            rows.append(row)
    return rows


def as_tuple(result) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def apart(result, truth) -> float:
    pairs = zip(as_tuple(result), as_tuple(truth), strict=True)
    return max(
        float(torch.dist(a.double().cpu(), b.double()) / b.double().norm().clamp_min(1e-30))
        for a, b in pairs
    )


def measure_kernel(op: str, ceilings: measure.Ceilings, rounds: int) -> dict:
    """Agreement of each form with the loops in float64 on a small problem; time of the fast ones on a large one, against the limit."""
    module = importlib.import_module(f"refimpl.kernels.{op}")
    call = getattr(module, op)
    small, exact = module.example("small"), module.example("small", dtype=torch.float64)
    truth = call(**exact, backend="naive")
    own = max(apart(call(**small, backend="torch"), truth), 1e-9)
    agreement = {"numpy": apart(call(**small, backend="numpy"), truth) / own, "torch": 1.0}
    interpreted = subprocess.run(
        [sys.executable, __file__, "--interpret", op],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if interpreted.returncode == 0:
        agreement["triton_interpreter"] = apart_from_text(interpreted.stdout) / own
    if GPU:
        on_gpu = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in small.items()}
        agreement["triton_gpu"] = apart(call(**on_gpu, backend="triton"), truth) / own
    large = module.example("large", device=DEVICE)
    backends = ("torch", "triton") if GPU else ("torch", "numpy")
    found = measure.compare(
        {b: (lambda b=b: call(**large, backend=b)) for b in backends},
        rounds=rounds,
        min_time=0.02,
        processor_time=not GPU,
    )
    names = [p for p in inspect.signature(module.cost).parameters if p in large]
    cost = module.cost(**{k: large[k] for k in names})
    return {
        "op": op,
        "shapes": {k: list(v.shape) for k, v in large.items() if isinstance(v, torch.Tensor)},
        "flops": cost.flops,
        "bytes": cost.bytes,
        "limit_seconds": ceilings.limit(cost.flops, cost.bytes),
        "agreement": {k: round(v, 3) for k, v in agreement.items()},
        "seconds": {t.name: t.median for t in found.timings},
        "low": {t.name: t.low for t in found.timings},
        "high": {t.name: t.high for t in found.timings},
        "date": measure.machine()["date"],
    }


def apart_from_text(text: str) -> float:
    return float(text.strip().splitlines()[-1])


def interpret(op: str) -> None:
    """In a process of its own with TRITON_INTERPRET=1: print how far the Triton form is from the loops."""
    module = importlib.import_module(f"refimpl.kernels.{op}")
    call = getattr(module, op)
    truth = call(**module.example("small", dtype=torch.float64), backend="naive")
    print(apart(call(**module.example("small"), backend="triton"), truth))


def kernel_names() -> list[str]:
    return sorted(
        p.stem for p in Path(kernels.__file__).parent.glob("*.py") if p.stem != "__init__"
    )


def write(path: Path, data) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1, default=float) + "\n", encoding="utf-8")
    print(f"-> {path.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", default="*", metavar="PATTERN", help="models to time (default: all)"
    )
    parser.add_argument(
        "--kernels", default="*", metavar="PATTERN", help="kernels to time (default: all)"
    )
    parser.add_argument("--only", choices=("exactness", "models", "kernels"), help="one part")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in turns (default 9)")
    parser.add_argument("--interpret", metavar="OP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.interpret:
        interpret(arguments.interpret)
        return 0
    if arguments.only in (None, "exactness"):
        RESULTS.mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "-k",
            "official",
            "--exactness",
            str(RESULTS / "exactness.json"),
            "tests",
        ]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
        print("-> book/results/exactness.json")
    if arguments.only == "exactness":
        return 0
    torch.set_num_threads(1)
    path = results_file()
    results = json.loads(path.read_text()) if path.exists() else {"models": [], "kernels": []}
    ceilings = measure.ceilings(1, DEVICE)
    results |= {"machine": measure.machine(DEVICE) | {"threads": 1}, "ceilings": ceilings.asdict()}
    if arguments.only in (None, "models"):
        names = [n for n in refimpl.list_models(arguments.models)]
        rows = {
            (r["name"], r["batch"], r["form"]): r
            for r in results["models"]
            if r["name"] in refimpl.list_models()
        }
        for name in tqdm(names, unit="model", desc="models"):
            rows |= {
                (r["name"], r["batch"], r["form"]): r for r in measure_model(name, arguments.rounds)
            }
        results["models"] = [rows[key] for key in sorted(rows)]
    if arguments.only in (None, "kernels"):
        rows = {r["op"]: r for r in results["kernels"] if r["op"] in kernel_names()}
        for op in tqdm(
            [op for op in kernel_names() if fnmatch(op, arguments.kernels)],
            unit="kernel",
            desc="kernels",
        ):
            rows[op] = measure_kernel(op, ceilings, arguments.rounds)
        results["kernels"] = [rows[op] for op in sorted(rows)]
    write(path, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
