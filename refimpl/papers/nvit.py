"""NViT: Global Vision Transformer Pruning with Hessian-Aware Saliency.

Yang, Yin, Shen, Molchanov, Li, Kautz, CVPR 2023, arXiv 2110.04869. Official code: NVlabs/NViT,
commit 48feca4216403f49e8861ba5aa5745f5e383947f (Nvidia Source Code License-NC).

The idea
    1. A transformer has five axes that can be cut: its width EMB, and in each block the heads H,
       the widths QK and V of queries and values per head, and the hidden width MLP.
    2. A unit of an axis gets a gate g = 1; the score says how much the loss bends along that gate.
    3. Units of all axes and blocks are ranked together, so that the shape follows from cutting.
    4. The seconds that the removal of a unit saves, times η, are taken off its score.
    5. A few groups of units die, training goes on, again; at the end the zeros are cut out.

For a unit whose weights are w ∈ S:
    gate's gradient   dL/dg = Σ w dL/dw
    score             I = (Σ w dL/dw)², averaged over mini-batches; Σ divided by 12, 12, 2, 2, 1
    with latency      I − η (T(shape) − T(shape without the unit)),  η = 5e-4, T in seconds
Cost: 2 FLOPs a weight and mini-batch, beside 6 FLOPs a weight and token of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks, weights
from refimpl.bases.uneven import (
    Shape,
    UnevenTransformer,
    Units,
    axis_of,
    shape_of,
    survivors,
    zero_dead,
)

DIVISORS = {"EMB": 12, "H": 12, "QK": 2, "V": 2, "MLP": 1}  # of the code; the paper names none
GROUP_SIZES = {"EMB": 16, "H": 2, "QK": 8, "V": 8, "MLP": 16}  # units that die together
FLOORS = {"EMB": 0, "H": 2, "QK": 8, "V": 8, "MLP": 16}  # down there, nothing counts as saved
ETA = 5e-4  # score per second
ASKED = 32  # units of a step, in groups of 16 on average: two groups more each time
MOST = 39_000  # units that may ever be asked for

Latency = Callable[[Shape], float]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def unit_scores(model: UnevenTransformer) -> Units:
    """(Σ w dL/dw / c)² of every unit, after one backward pass: name -> (units,).

    c: the axis' divisor, as in the released code.
    """
    sums = {"EMB": row_sums(model.patch_embed.proj)}  # (e,); blocks add to it
    for i, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        makers = (attn.query, attn.key, attn.value)
        q, k, v = (row_sums(layer) for layer in makers)  # (width, heads) each
        sums[f"b{i}.H"] = q.sum(0) + k.sum(0) + v.sum(0)
        sums[f"b{i}.QK"] = q.sum(1)  # the keys' sum is the same number
        sums[f"b{i}.V"] = v.sum(1)  # so is that of the projection's columns
        sums[f"b{i}.MLP"] = row_sums(mlp.fc1)  # fc2 is not in the sum
        for layer in (attn.proj, mlp.fc2):  # write to the residual stream
            sums["EMB"] = sums["EMB"] + row_sums(layer)
        for layer in (*makers, mlp.fc1):  # read from it
            sums["EMB"] = sums["EMB"] + column_sums(layer)
    return {n: (s / DIVISORS[axis_of(n)]).square() for n, s in sums.items()}


def row_sums(layer: nn.Module) -> Tensor:
    """Σ w dL/dw of each output and its bias: weight (out, in, …) -> as the bias, (out, …)."""
    product = layer.weight.detach() * layer.weight.grad
    inputs = product.dim() - layer.bias.dim()
    return product.flatten(1, inputs).sum(1) + layer.bias.detach() * layer.bias.grad


def column_sums(layer: nn.Module) -> Tensor:
    """Σ w dL/dw of each input: weight (out, in, …) -> (in,)."""
    return (layer.weight.detach() * layer.weight.grad).transpose(0, 1).flatten(1).sum(1)


def v100_latency(shape: Shape) -> float:
    """Seconds of the blocks on a V100, batch 256, 198 tokens.

    A least-squares fit to the authors' table of 9375 measured blocks: median error 0.6 %. Below
    width 256 the table, and so the fit, goes in a straight line to 0.
    """
    e = max(shape.embed_dim, 256)
    total = 0.0
    for heads, qk, v, hidden in shape.blocks:
        total += 1.0627e-3 + 1.7021e-5 * e + 9.0774e-4 * heads
        total += (6.9363e-9 * e + 8.8100e-6) * heads * qk
        total += (6.7787e-9 * e + 5.8895e-6) * heads * v
        total += (8.0707e-9 * e + 5.5868e-6) * hidden
    return total * shape.embed_dim / e


def savings(shape: Shape, latency: Latency, floors: Mapping[str, int] = FLOORS) -> dict[str, float]:
    """Seconds that one unit less saves: name of the axis -> latency.

    floors: widths at which nothing counts as saved any more.
    """
    whole = latency(shape)
    saved = {"EMB": 0.0}
    if shape.embed_dim > 1:
        saved["EMB"] = whole - latency(replace(shape, embed_dim=shape.embed_dim - 1))
    fields = {"H": "num_heads", "QK": "qk_dims", "V": "value_dims", "MLP": "hidden_dims"}
    for axis, field in fields.items():
        widths = getattr(shape, field)
        for i, width in enumerate(widths):
            fewer = (*widths[:i], width - 1, *widths[i + 1 :])
            above = width > max(floors[axis], 1)
            cut = replace(shape, **{field: fewer}) if above else shape
            saved[f"b{i}.{axis}"] = whole - latency(cut)
    return saved


def grouped(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Units in ascending order (units,), and the sums of consecutive groups of `size` of them."""
    values, order = scores.sort(stable=True)
    return order, torch.stack([part.sum() for part in values.split(size)])


def kill(scores: Units, gates: Units, k: int, sizes: Mapping[str, int] = GROUP_SIZES) -> float:
    """In place: gates of all groups up to the k-th smallest value (from 0) become 0.

    Groups of all axes are ranked together, the dead among them; the last one of an axis stays.
    Returns the k-th value.
    """
    ranked = {name: grouped(units, sizes[axis_of(name)]) for name, units in scores.items()}
    values = torch.cat([worth for _, worth in ranked.values()]).sort().values
    threshold = values[max(0, min(k, len(values) - 1))]
    for name, (order, worth) in ranked.items():
        groups = order.split(sizes[axis_of(name)])
        for units, value in zip(groups[:-1], worth[:-1], strict=True):
            if value <= threshold:
                gates[name][units] = 0
    return threshold.item()


def cut_to(
    scores: Units,
    gates: Units,
    budget: float,
    cost: Latency,
    sizes: Mapping[str, int] = GROUP_SIZES,
) -> Units:
    """New gates: of all groups the lowest are dead, as many as bring the cost to the budget.

    scores: of the axes that may be cut; the others stay as they are. Raises `ValueError` for a
    budget that even the last groups of all axes exceed.
    """
    living = {name: units * gates[name] for name, units in scores.items()}

    def cut(k: int) -> Units:
        made = {name: gate.clone() for name, gate in gates.items()}
        kill(living, made, k, sizes)
        return made

    few, many = 0, sum(len(units) for units in living.values())
    least = cost(shape_of(cut(many)))
    if least > budget:
        raise ValueError(f"budget={budget:g} can't be met: with all else dead, {least:g} is left")
    while few < many:
        middle = (few + many) // 2
        if cost(shape_of(cut(middle))) <= budget:
            many = middle
        else:
            few = middle + 1
    return cut(many)


class Pruning:
    """The memory of the global loop: gates of all units, and the running average of their scores.

    latency: of a shape, in seconds; eta: score per second, 0 for the plain score; sizes: units of a
    group on each axis; momentum: of the average over intervals.
    """

    def __init__(
        self,
        model: UnevenTransformer,
        latency: Latency = v100_latency,
        eta: float = ETA,
        sizes: Mapping[str, int] = GROUP_SIZES,
        momentum: float = 0.9,
    ):
        checks.at_least(0, eta=eta)
        checks.fraction(momentum=momentum)
        self.model, self.latency, self.eta = model, latency, eta
        self.sizes, self.momentum = sizes, momentum
        self.gates = survivors(model)
        self.average: Units = {}
        self.seen: list[Units] = []  # scores of this interval's mini-batches
        self.steps = 0

    @property
    def shape(self) -> Shape:
        return shape_of(self.gates)

    def observe(self) -> None:
        """After the backward pass of a mini-batch: keep its scores."""
        self.seen.append(unit_scores(self.model))

    def prune(self) -> float:
        """End an interval: average its scores, kill, zero the weights. Returns the threshold.

        Raises `ValueError` when no mini-batch was observed since the last one.
        """
        if not self.seen:
            raise ValueError("nothing to rank by: observe() a mini-batch after its backward pass")
        saved = savings(self.shape, self.latency) if self.eta else {}
        ranked = {}
        for name, gate in self.gates.items():
            new = torch.stack([scores[name] for scores in self.seen]).mean(0)
            old = self.average.get(name, new)
            self.average[name] = self.momentum * old + (1 - self.momentum) * new
            ranked[name] = self.average[name] * gate - self.eta * saved.get(name, 0.0)
        groups = min(self.steps * ASKED, MOST) // 16
        threshold = kill(ranked, self.gates, groups - 1, self.sizes)
        zero_dead(self.model, self.gates)
        self.seen.clear()
        self.steps += 1
        return threshold


def prune(
    model: UnevenTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    target: float,
    interval: int = 100,
    lr: float = 1e-4,
    **options,
) -> Pruning:
    """Train and prune in turns, in place, until the latency is `target` times that of the start.

    batches: images and labels; interval: mini-batches from one pruning to the next; options: of
    `Pruning`. The model stays in evaluation mode, as in the official code. Raises `ValueError` when
    the batches end first, or when nothing dies any more.
    """
    checks.fraction(target=target)
    checks.integer(1, interval=interval)
    pruning = Pruning(model.eval(), **options)
    budget = target * pruning.latency(pruning.shape)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    for i, (images, labels) in enumerate(batches, 1):
        optimiser.zero_grad()
        loss(model, images, labels).backward()
        pruning.observe()
        optimiser.step()
        zero_dead(model, pruning.gates)
        if i % interval:
            continue
        pruning.prune()
        if pruning.latency(pruning.shape) <= budget:
            return pruning
        if exhausted(pruning):
            break
    least = pruning.latency(pruning.shape) / budget * target
    raise ValueError(f"target={target} was not reached: {least:.3f} of the latency is left")


def exhausted(pruning: Pruning) -> bool:
    """Whether every axis is down to its last group."""
    sizes = pruning.sizes
    return all(gate.sum() <= sizes[axis_of(name)] for name, gate in pruning.gates.items())


def pruning_loss(
    classes: Tensor,
    distilled: Tensor,
    labels: Tensor,
    teacher: Tensor,
    dense: Tensor | None = None,
    alpha: float = 0.5,
    temperature: float = 3.0,
    weight: float = 1e5,
) -> Tensor:
    """Hard distillation, and the divergence from the unpruned network: a scalar.

    classes, distilled, teacher: logits (b, k); labels (b,); dense: the unpruned network's mean
    logits (b, k), left out before the first pruning. As in the code the label is compared with the
    mean of both classifiers, and the divergence is a mean over every entry, hence its `weight`.
    """
    mean = (classes + distilled) / 2
    hard = F.cross_entropy(distilled, teacher.argmax(-1))
    loss = (1 - alpha) * F.cross_entropy(mean, labels) + alpha * hard
    if dense is None:
        return loss
    ours, theirs = ((logits / temperature).log_softmax(-1) for logits in (mean, dense))
    return loss + weight * F.kl_div(ours, theirs, reduction="none", log_target=True).mean()


def two_of_four(weight: Tensor) -> Tensor:
    """2:4 sparsity: of four neighbours in a row the two largest stay: (out, in) -> the same."""
    checks.multiple(4, "as of four inputs two stay", inputs=weight.shape[-1])
    fours = weight.unflatten(-1, (-1, 4))
    kept = fours.abs().topk(2, dim=-1).indices
    mask = torch.zeros_like(fours).scatter(-1, kept, 1.0)
    return (fours * mask).flatten(-2)


def revit_shape(embed_dim: int) -> Shape:
    """The redistribution rule, as the code has it: the shape of a ReViT of 12 blocks.

    Blocks 4 to 9 have twice the heads, query-key width and hidden width; the first and the last
    block are exceptions. Raises `ValueError` for a width that leaves blocks without heads.
    """
    r, q = round(0.005 * embed_dim), round(0.05 * embed_dim / 8)
    if min(r, q) < 1:
        raise ValueError(f"embed_dim={embed_dim} leaves blocks without heads; it must be over 100")
    ends, middle = [2 * r] * 2, [4 * r] * 6
    heads = (10, *ends, *middle, *ends, 10)
    qk = (16 * q, *[8 * q] * 2, *[16 * q] * 6, *[8 * q] * 2, 16 * q)
    hidden = (*[3 * embed_dim] * 3, *[6 * embed_dim] * 6, *[3 * embed_dim] * 3)
    return Shape(embed_dim, heads, qk, (64,) * 12, hidden)


def official_shape(dim: Mapping) -> Shape:
    """The entry `dim` of a released checkpoint, {EMB, head, QK, V, MLP}, as a shape."""
    widths = [tuple(map(int, dim[name])) for name in ("head", "QK", "V", "MLP")]
    return Shape(int(dim["EMB"]), *widths)


def load_pruned(path: str | Path, **options) -> UnevenTransformer:
    """A released NViT-B, H, S or T: their shapes stand in their files alone, and in no text.

    options: of `UnevenTransformer`. Raises `ValueError` for a file that holds no shape.
    """
    content = weights.read(path)
    if not isinstance(content, Mapping) or "dim" not in content:
        raise ValueError(f"path={str(path)!r} holds no entry 'dim', the shape of a pruned network")
    shape = official_shape(content["dim"])
    return weights.load_official(
        UnevenTransformer(**shape.arguments(), **options), content["model"]
    )


VARIANTS: dict[str, dict] = {
    "revit_t": revit_shape(176).arguments(),
    "revit_s": revit_shape(384).arguments(),
    "prunable_base": dict(embed_dim=768, prunable=True),
}
MODEL = UnevenTransformer
