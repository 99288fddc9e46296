"""Networks that were trained earlier: stored with the package, scored again whenever they load.

`refimpl/checkpoints/<stem>/` holds `<name>.safetensors` (float16) and one `record.json`: for each
name steps, seconds, processor_seconds, score, tolerance, date, torch, machine.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from refimpl import weights
from refimpl.chapter import session, show
from refimpl.lab import measure
from refimpl.lab.train import History

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
MOST_BYTES = 400_000  # of weights per chapter
MOST_SECONDS = 1200  # of processor time per chapter: ten minutes on two cores

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module], History | int]
Score = Callable[[nn.Module], float]


def recorded(
    name: str,
    build: Build,
    train: Train,
    score: Score,
    tolerance: float = 0.01,
    quiet: bool = False,
) -> nn.Module:
    """The network that `train(build())` gave when the chapter was recorded, in evaluation mode.

    Loads the stored weights, scores them, and shows one line about the run. With `scale="record"`
    (see `chapter.setup`) it trains first, and stores weights and record. Both return what was
    stored: weights rounded to float16, computed with in float32.

    name: of the run, unique in the chapter ("cascade-0").
    build: makes the network; run under a seed that depends on `name` alone.
    train: trains it in place and returns its `lab.train.History`, or the number of steps.
    score: measures it, in evaluation mode; neither it nor `train` may depend on the chapter's seed.
    tolerance: by how much a score may differ from its record, in the score's own unit.
    quiet: without the line, where the chapter tells of several runs in one sentence.

    The global random state is left as it was. Raises `ValueError` where nothing is recorded, where
    the network has changed since, or where the score differs from the record.
    """
    stem = session.current.stem
    check_name(stem, name)
    if session.current.scale == "record":
        store(stem, name, build, train, score, tolerance)
    record = read_record(stem)
    if name not in record or not path_of(stem, name).exists():
        stored = ", ".join(record) or "none"
        raise ValueError(
            f"no recorded run {name!r} of {stem} (there are: {stored}); {command(stem)} makes it"
        )
    net, found = load(stem, name, build, score)
    run = record[name]
    if not abs(found - run["score"]) <= run["tolerance"]:
        raise ValueError(
            f"run {name!r} scores {found:.4g}, its record of {run['date']} says"
            f" {run['score']:.4g} ± {run['tolerance']:g}: the network, the data or the score has"
            f" changed since; {command(stem)} trains it again"
        )
    if quiet:
        return net
    show.say(
        f"`{name}` was trained earlier: {run['steps']:,} steps in {run['seconds']:.0f} s, score"
        f" {run['score']:.4g}, on {run['date']}; {command(stem)} repeats it."
    )
    return net


def check_name(stem: str, name: str) -> None:
    if not stem:
        raise ValueError(
            "recorded: the chapter's paper is not known; call"
            " chapter.setup(seed, stem=…, scale=scale) first"
        )
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
        raise ValueError(
            f"name={name!r} of a recorded run must be small letters, digits and single hyphens"
        )


def command(stem: str) -> str:
    return f"`make train CHAPTER={stem}`"


def path_of(stem: str, name: str) -> Path:
    return CHECKPOINTS / stem / f"{name}.safetensors"


def read_record(stem: str) -> dict[str, dict]:
    """Name of a run -> its record, `{}` where the chapter has none."""
    path = CHECKPOINTS / stem / "record.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextmanager
def own_seed(name: str):
    """PyTorch's generators seeded by the run's name, and afterwards as they were before."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(name.encode()))
        yield


def load(stem: str, name: str, build: Build, score: Score) -> tuple[nn.Module, float]:
    """The network with its stored weights, and what it scores now."""
    state = weights.read(path_of(stem, name))
    with own_seed(name):
        net = build()
        try:
            weights.load_official(net, {k: widened(t) for k, t in state.items()}, rules=[])
        except ValueError as error:
            raise ValueError(
                f"run {name!r}: build() no longer makes the network that was stored;"
                f" {command(stem)} trains it again. {error}"
            ) from error
        net.eval()
        return net, float(score(net))


def store(stem: str, name: str, build: Build, train: Train, score: Score, tolerance: float) -> None:
    """Train, write `<name>.safetensors`, and write what came of it into `record.json`."""
    from safetensors.torch import save_file

    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be more than 0")
    with own_seed(name):
        net = build()
        wall, processor = time.perf_counter(), time.process_time()
        result = train(net)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    path = path_of(stem, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: narrowed(tensor) for key, tensor in net.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors writes for its owner alone
    _, found = load(stem, name, build, score)
    record = read_record(stem)
    record[name] = {
        "steps": steps_of(result),
        "seconds": round(wall, 1),
        "processor_seconds": round(processor, 1),
        "score": found,
        "tolerance": tolerance,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": measure.machine()["name"],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (path.parent / "record.json").write_text(text, encoding="utf-8")
    check_budget(stem)


def steps_of(result: object) -> int:
    """The number of steps in what `train` returned."""
    steps = len(result.loss) if isinstance(result, History) else result
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(
            f"train returned {result!r}; it must return the History of lab.train.fit, or how many"
            " steps it took"
        )
    return steps


def check_budget(stem: str) -> None:
    """Raise `ValueError` when a chapter's runs take more bytes or time than one may have."""
    record = read_record(stem)
    size = sum(path.stat().st_size for path in (CHECKPOINTS / stem).glob("*.safetensors"))
    seconds = sum(run["processor_seconds"] for run in record.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"the recorded runs of {stem} take {size:,} bytes, a chapter may have {MOST_BYTES:,}:"
            " record fewer or smaller networks"
        )
    if seconds > MOST_SECONDS:
        raise ValueError(
            f"the recorded runs of {stem} took {seconds:.0f} s of processor time, a chapter may"
            f" have {MOST_SECONDS} (ten minutes on two cores): train fewer or shorter"
        )


def narrowed(tensor: Tensor) -> Tensor:
    """float16 where the tensor is floating and stays finite, else as it is; on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    half = tensor.half()
    return half if tensor.is_floating_point() and half.isfinite().all() else tensor


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
