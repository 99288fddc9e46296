"""Train a small model in a chapter: AdamW, cosine schedule with warm-up, a quiet progress bar.

The same seed gives the same result.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.lab.data import Dataset

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass
class History:
    """What a training run left: the loss of every step, the test score where it was evaluated."""

    label: str
    loss: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def final(self) -> float:
        """The test score after the last step."""
        return self.score[-1]

    def smooth(self, window: int = 20) -> list[float]:
        """Running mean of the loss over `window` steps (fewer at the start), for plots."""
        total = 0.0
        means = []
        for i, value in enumerate(self.loss):
            total += value - (self.loss[i - window] if i >= window else 0.0)
            means.append(total / min(i + 1, window))
        return means

    def __repr__(self) -> str:
        score = f"{self.score[-1]:.3f}" if self.score else "none"
        return (
            f"{self.label or 'training'}: {len(self.loss)} steps in {self.seconds:.1f} s,"
            f" loss {self.smooth()[-1]:.3f}, test score {score}"
        )


def standard_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for integer labels, (b,) or (b, h, w); binary for float labels of 0 and 1."""
    outputs = model(images)
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(outputs, labels)
    return F.cross_entropy(outputs, labels)


def standard_metric(outputs: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers, one number per sample (b,).

    Top-1 for integer labels, right signs for float labels of 0 and 1.
    """
    if labels.is_floating_point():
        right = (outputs > 0) == (labels > 0.5)
    else:
        right = outputs.argmax(1) == labels
    return right.float().unsqueeze(-1).flatten(1).mean(1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    metric: Metric = standard_metric,
    batch_size: int = 256,
) -> float:
    """Mean of `metric` over a set, in evaluation mode; the model's own mode comes back after."""
    device = device_of(model)
    training = model.training
    model.eval()
    scores = [
        metric(model(x.to(device)), y.to(device)).cpu()
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    model.train(training)
    return torch.cat(scores).mean().item()


def fit(
    model: nn.Module,
    data: Dataset,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    seed: int = 0,
    loss: Loss = standard_loss,
    metric: Metric = standard_metric,
    eval_every: int | None = None,
    device: torch.device | str | None = None,
    label: str = "",
) -> History:
    """Train `model` in place on `data`'s training part and score it on the test part.

    The model is left in evaluation mode, the global random state as it was. The same seed, model
    and machine give the same weights, bit for bit on a CPU.

    steps, epochs: how long; one of them.
    lr: peak of a linear warm-up, over the fraction `warmup` of the steps, and a cosine down to 0.
    weight_decay: on tensors of two or more dimensions.
    loss: (model, images, labels) -> scalar.
    metric: (outputs, labels) -> (b,).
    eval_every: steps between evaluations; the last step is always evaluated.
    device: where the model is moved, by default a GPU if there is one.
    """
    steps = checked_steps(data, steps, epochs, batch_size)
    checks.at_least(0, lr=lr, weight_decay=weight_decay)
    checks.fraction(warmup=warmup)
    if eval_every is not None:
        checks.integer(1, eval_every=eval_every)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(device).train()
    images = data.train_images.to(device)
    labels = data.train_labels.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(step, steps, warmup)
    )
    batches = endless_batches(len(images), batch_size, torch.Generator().manual_seed(seed))
    history = History(label)
    start = time.perf_counter()
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), progress(steps, label) as bar:
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            batch = next(batches).to(device)
            value = loss(model, images[batch], labels[batch])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            history.loss.append(value.item())
            if step == steps or (eval_every and step % eval_every == 0):
                history.steps.append(step)
                history.score.append(evaluate(model, data.test_images, data.test_labels, metric))
            bar.update()
        history.seconds = time.perf_counter() - start
        bar.close_with(repr(history))
    model.eval()
    return history


def checked_steps(data: Dataset, steps: int | None, epochs: int | None, batch_size: int) -> int:
    """How many steps `fit` takes, or a `ValueError`."""
    if (steps is None) == (epochs is None):
        raise ValueError(f"fit: give either steps or epochs, got steps={steps} and epochs={epochs}")
    if not isinstance(data, Dataset):
        raise ValueError(
            f"fit: data is {type(data).__name__}, wanted a lab.data.Dataset; build one with"
            " lab.data.split(images, labels, classes)"
        )
    count = len(data.train)
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"fit: batch_size={batch_size} must be between 1 and the {count} training images"
        )
    steps = steps if steps is not None else epochs * (count // batch_size)
    checks.integer(1, steps=steps)
    return steps


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on tensors of two or more dimensions; none on biases and norms."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]


def factor(step: int, steps: int, warmup: float) -> float:
    """Multiple of the peak learning rate: linear warm-up, then cosine to 0."""
    ramp = warmup * steps
    if step < ramp:
        return (step + 1) / (ramp + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(steps - ramp, 1)))


def endless_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches; every epoch is a new permutation, its incomplete last batch is left out."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch_size].split(batch_size)


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def in_notebook() -> bool:
    """Whether a Jupyter kernel (JupyterLab, Colab, papermill, nbval) runs this code."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class CellLine:
    """A text stream for tqdm that rewrites one line of a notebook's output.

    A stored notebook so keeps the last line only.
    """

    def __init__(self):
        from IPython.display import display

        self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip("\r\n\x1b[A "):
            self.handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass


class progress:
    """`with progress(total, label) as bar`: a tqdm bar that leaves one quiet line in a notebook.

    `TQDM_DISABLE=1` turns the bar off, not the line.
    """

    def __init__(self, total: int, label: str = ""):
        from tqdm import tqdm

        self.stream = CellLine() if in_notebook() else None
        off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
        self.bar = tqdm(
            total=total,
            desc=label or None,
            file=self.stream or sys.stderr,
            leave=False,
            mininterval=0.5,
            ncols=80,
            disable=off,
        )

    def __enter__(self) -> progress:
        return self

    def update(self, n: int = 1) -> None:
        self.bar.update(n)

    def close_with(self, line: str) -> None:
        """Replace the bar by its last line (in a notebook)."""
        self.bar.close()
        if self.stream is not None:
            self.stream.write(line)

    def __exit__(self, *error) -> None:
        self.bar.close()
