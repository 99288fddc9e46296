"""What the papers on learning with less pay before, during and after training: the part's table.

    python book/tools/learning.py

Writes `book/results/learning/costs.txt`, which the page of the part includes. Everything is counted
here, nothing typed: multiply-adds of whole training steps, forward and backward, by PyTorch's
counter on the papers' own networks and functions, one image or clip a step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import refimpl
from refimpl.bases.parameter_efficient import freeze
from refimpl.bases.resnet import ResNet
from refimpl.bases.teacher_records import storage_bytes
from refimpl.lab import measure
from refimpl.papers import deit_lt, hint_aug, tinyvit, vivit

TEXT = Path(__file__).resolve().parents[2] / "book" / "results" / "learning" / "costs.txt"


class Counter(TorchDispatchMode):
    """Adds up multiply-adds by PyTorch's table of operators.

    `FlopCounterMode` has the same table, but listens to modules too, and can't follow a gradient
    by an input, which Hint-Aug takes.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result) // 2
        return result


def counted(step: Callable[[], object]) -> int:
    """Multiply-adds of what a step does, backward pass included, attention written out."""
    with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        step()
    return counter.total


def built(name: str, **options) -> nn.Module:
    """A model of the front door without memory behind its weights, in training mode."""
    with torch.device("meta"):
        return refimpl.create_model(name, **options).train()


def plain(model: nn.Module, images: Tensor, label: Tensor) -> int:
    """An ordinary step with a label."""
    return counted(lambda: F.cross_entropy(model(images), label).backward())


def of_tinyvit() -> list[str]:
    """5M learns from stored labels; the rival asks 21M in every step."""
    student, teacher = built("tinyvit_5m"), built("tinyvit_21m")
    images = torch.zeros(1, 3, 224, 224, device="meta")
    classes = torch.zeros(1, 10, dtype=torch.int64, device="meta")
    kept = torch.zeros(1, 10, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    alone = plain(student, images, label)
    stored = counted(lambda: tinyvit.distillation_loss(student(images), classes, kept).backward())
    with torch.no_grad():
        asked = counted(lambda: teacher(images))
    disk = storage_bytes(1_281_167, 300, 10) / 2**30
    return [
        "TinyViT-5M",
        f"its teacher once for each image and epoch, and {disk:.0f} GiB (ImageNet, 300 epochs)",
        f"{stored / alone:.2f} of a step with labels (a live teacher of 21M:"
        f" {(stored + asked) / alone:.2f})",
        "nothing",
    ]


def of_deit_lt() -> list[str]:
    """The base student of CIFAR-10-LT and its ResNet-32."""
    small = deit_lt.RECIPES["cifar10"].teacher_size
    student = built("deit_lt_base", num_classes=10)
    with torch.device("meta"):
        teacher = ResNet(num_classes=10).eval()
    images = torch.zeros(1, 3, 224, 224, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    alone = plain(built("deit_base", num_classes=10), images, label)

    def asked(x: Tensor) -> Tensor:
        return teacher(F.interpolate(x, small))

    def step() -> None:
        sum(deit_lt.two_experts_loss(student, asked, images, label)).backward()

    tokens = student.layout.prefix + student.layout.grid[0] * student.layout.grid[1]
    return [
        "DeiT-LT, base",
        "a convolutional teacher is trained",
        f"{counted(step) / alone:.2f} of a step without teacher and second token",
        f"one token more, {tokens} instead of {tokens - 1}",
    ]


def of_hint_aug() -> list[str]:
    """Adapters in a base transformer, with the augmentation and without."""
    model = freeze(refimpl.create_model("hint_aug_adapter", num_classes=10))
    augment = hint_aug.HintAug(refimpl.create_model("hint_aug_adapter", num_classes=10), 10)
    augment.confusion = torch.ones(10, 10)
    images, label = torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 0.1)

    def step(how: hint_aug.Augment | None) -> int:
        return counted(lambda: hint_aug.tuning_step(model, optimizer, images, label, how))

    costs = step(None), step(augment)
    share = sum(p.numel() for p in learned) / measure.parameters(model)
    return [
        "Hint-Aug, adapters",
        "a pretrained network is needed, and stays in memory",
        f"{costs[1] / costs[0]:.2f} of a tuning step without it; {share:.1%} of the weights learn",
        "the adapters",
    ]


def of_vivit() -> list[str]:
    """Base, 32 frames in both; the first stage on 8."""
    full = vivit.step_macs(built("vivit_fe_b16x2_k400"))
    few = vivit.step_macs(built("vivit_fe_b16x2_k400", num_frames=8))
    second = vivit.second_stage(built("vivit_fe_b16x2_k400"), 32)
    macs = vivit.forward_macs(second)
    return [
        "Optimizing ViViT, base",
        f"a first stage, {few / full:.2f} of a full step for each of its steps (8 frames)",
        f"{vivit.step_macs(second) / full:.2f} of a full step",
        f"the adapter, {macs['adapter'] / sum(macs.values()):.4%} of the multiply-adds",
    ]


def text() -> str:
    """The table as Markdown."""
    head = ["Paper", "Before", "A training step", "After, at inference"]
    rows = [head, ["---"] * 4, of_tinyvit(), of_deit_lt(), of_hint_aug(), of_vivit()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    TEXT.parent.mkdir(exist_ok=True)
    TEXT.write_text(text(), encoding="utf-8")
    print(TEXT.read_text(encoding="utf-8"))
