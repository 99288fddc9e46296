"""Measure the part "Fewer tokens": three methods and trivial rivals, accuracy against time.

    python book/bench/tokens.py [--steps 200] [--images 64] [--rounds 5] [--weights FOLDER]

Writes `book/results/cpu/tokens.json`. Fashion-MNIST as `lab.data` gives it; a ViT of 7×7 patches,
6 layers of width 48; every net trained twice, from two starts, for the same number of steps (LGViT
takes as many again for its exits). Then processor time of one thread for single images and for
batches of 16, all nets eager, in turns; LGViT with its real exits.
"""

from __future__ import annotations

import argparse
import itertools
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import store
from refimpl.bases.deit import VisionTransformer
from refimpl.bases.early_exit import Confidence
from refimpl.lab import data, measure, train
from refimpl.papers import lgvit
from refimpl.papers.lookupvit import LookupViT, multi_resolution_loss
from refimpl.papers.stvit import STViT

SHAPE = dict(img_size=28, patch_size=4, in_chans=1, num_classes=10)
SHAPE |= dict(embed_dim=48, depth=6, num_heads=4)
STARTS = (0, 1)
BATCHES = (1, 16)
SIDES = (2, 3, 5)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.97)
RATE = 3e-3
BATCH = 32
RIVALS = {
    "3 layers": dict(depth=3),
    "1 layer": dict(depth=1),
    "16 patches": dict(patch_size=7),
    "16 patches, 1 layer": dict(patch_size=7, depth=1),
}


def build(name: str) -> nn.Module:
    """A net of this experiment by its name, with random weights."""
    if name == "STViT":
        return STViT(**SHAPE, dense_depth=2, sample_size=3)
    if name == "LookupViT":
        return LookupViT(**SHAPE, side=3)
    if name == "LGViT":
        return lgvit.ExitViT(**SHAPE)
    return VisionTransformer(**SHAPE | RIVALS.get(name, {}))


NETS = ("full ViT", *RIVALS, "STViT", "LookupViT", "LGViT")


def trained(name: str, start: int, steps: int) -> dict[str, Tensor]:
    """The weights of a net after its training."""
    torch.set_num_threads(1)
    torch.manual_seed(start)
    model = build(name)
    fit = partial(train.fit, model, data.fashion(), seed=start, steps=steps)
    fit = partial(fit, lr=RATE, batch_size=BATCH)
    if name == "LookupViT":
        fit(label=name, loss=partial(multi_resolution_loss, sides=SIDES))
    elif name == "LGViT":
        counter = itertools.count()

        def first_stage(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return lgvit.stage_one_loss(model.forward_exits(images), labels, next(counter))

        fit(label="LGViT, first stage", loss=first_stage)
        lgvit.freeze_backbone(model)
        fit(label="LGViT, its exits", loss=lgvit.stage_two_loss)
    else:
        fit(label=name)
    return model.state_dict()


def kept(name: str, start: int, steps: int, folder: Path | None) -> dict[str, Tensor]:
    """The weights of a net, from the folder where an earlier call left them there."""
    if folder is None:
        return trained(name, start, steps)
    path = folder / f"{name} {start} {steps}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(trained(name, start, steps), path)
    return torch.load(path, weights_only=True)


def answers(name: str, model: nn.Module) -> dict[str, dict]:
    """Points of a net: label -> kind, and the function from images to logits."""
    if name == "LookupViT":
        return {
            f"LookupViT, {side**2} tokens": dict(kind=name, call=partial(model, side=side))
            for side in SIDES
        }
    if name == "LGViT":
        return {
            f"LGViT, threshold {threshold}": dict(
                kind=name, call=partial(leave, model, Confidence(threshold))
            )
            for threshold in THRESHOLDS
        }
    label = "STViT, 9 tokens" if name == "STViT" else name
    return {label: dict(kind="STViT" if name == "STViT" else "ViT", call=model)}


def leave(model: lgvit.ExitViT, rule: Confidence, images: Tensor) -> Tensor:
    return model.early_exit(images, rule)[0]


@torch.no_grad()
def pass_over(call, batches: tuple[Tensor, ...]) -> None:
    for images in batches:
        call(images)


@torch.no_grad()
def accuracy(call, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    right = [
        call(x).argmax(1) == y for x, y in zip(images.split(250), labels.split(250), strict=True)
    ]
    return 100 * torch.cat(right).float().mean().item()


def points_of(start: int, weights: dict[str, dict], count: int, rounds: int) -> list[dict]:
    """Accuracy and times of all points of one start."""
    found = {}
    for name in NETS:
        model = build(name)
        model.load_state_dict(weights[name])
        found |= answers(name, model.eval())
    fashion = data.fashion()
    test, labels = fashion.test_images, fashion.test_labels
    stride = len(test) // count  # the timed images are spread over the test set
    rows = [
        dict(
            name=label,
            kind=point["kind"],
            start=start,
            accuracy=accuracy(point["call"], test, labels),
            seconds={},
            ratio={},
        )
        for label, point in found.items()
    ]
    for size in BATCHES:
        batches = test[::stride][:count].split(size)
        calls = {
            label: partial(pass_over, point["call"], batches) for label, point in found.items()
        }
        times = measure.compare(calls, rounds=rounds, processor_time=True)
        for row, timing in zip(rows, times.timings, strict=True):
            row["seconds"][str(size)] = timing.median / count
            row["ratio"][str(size)] = timing.ratio
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="timed, of the test")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in turns")
    parser.add_argument("--starts", type=int, nargs="+", default=STARTS, metavar="SEED")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="keeps what is trained, for another call"
    )
    parser.add_argument("--only-train", action="store_true", help="measure nothing yet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for start in arguments.starts:
        own = {name: kept(name, start, arguments.steps, arguments.weights) for name in NETS}
        if not arguments.only_train:
            rows += points_of(start, own, arguments.images, arguments.rounds)
    if arguments.only_train:
        return
    record = {
        "machine": measure.machine() | {"threads": 1},
        "command": f"python book/bench/tokens.py --steps {arguments.steps}",
        "data": "lab.data.fashion()",
        "train_images": len(data.fashion().train_images),
        "test_images": len(data.fashion().test_images),
        "shape": SHAPE,
        "steps": arguments.steps,
        "batch_size": BATCH,
        "lr": RATE,
        "starts": list(arguments.starts),
        "timed_images": arguments.images,
        "rounds": arguments.rounds,
        "points": rows,
    }
    store.write(store.RESULTS / "cpu" / "tokens.json", record)


if __name__ == "__main__":
    main()
