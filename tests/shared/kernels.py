"""What the tests of all kernels and the GPU's benchmark share: problems of drawn shapes, the
composed form that each is measured by, and the distance of two results. Needs PyTorch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Operation, operations
from refimpl.kernels.grid_encode import PRIME, geometric_scales, table_rows
from refimpl.kernels.grid_encode.reference import levels
from refimpl.kernels.lvq_inner_product import pack, unpack
from refimpl.kernels.masked_sum import pack as pack_mask
from refimpl.kernels.packed_product import pack as pack_words
from refimpl.kernels.selective_scan import doubling
from refimpl.kernels.selective_scan import with_torch as scan_with_torch
from refimpl.kernels.shift_product import encode
from refimpl.kernels.ssd import segsum, semiseparable


@dataclass(frozen=True)
class Contract:
    """How one operation is tested.

    shapes: what a problem is drawn from, name → choices; small ones for loops and interpreter.
    problem: arguments of the operation in float64, from one choice of each and a generator.
    composed: the textbook form in the precision of its arguments, whose error is the yardstick;
        its results are the operation's. Left out, it is the operation's own PyTorch form.
    batched: arguments whose first axis is the batch, with the choices `plain`.
    forward_only: why the Triton form has no gradient, where it has none.
    floor: least tolerance in units of the type's ε times the result's norm: two roundings of the
        result, where the composed form is exact by luck.
    """

    shapes: dict[str, list]
    problem: Callable[..., dict]
    batched: tuple[str, ...]
    composed: Callable | None = None
    forward_only: str = ""
    floor: float = 2.0
    plain: dict = field(default_factory=dict)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# ---------------------------------------------------------------- cascaded group attention


def cascade_problem(g, batch, side, heads, key_dim, width, kernel) -> dict:
    """Weights that keep the variance, as a folded norm leaves them: otherwise the logits grow from
    head to head until a softmax is a coin toss."""
    return {
        "x": normal(g, batch, side * side, heads * width),
        "qkv_weight": normal(g, heads, 2 * key_dim + width, width) / width**0.5,
        "qkv_bias": normal(g, heads, 2 * key_dim + width),
        "dw_weight": normal(g, heads, key_dim, kernel, kernel) / kernel,
        "dw_bias": normal(g, heads, key_dim),
        "bias_table": normal(g, heads, side * side),
    }


# ---------------------------------------------------------------- depthwise convolution and GELU


def depthwise_problem(g, batch, height, width, channels, kernel) -> dict:
    return {
        "x": normal(g, batch, height, width, channels),
        "weight": normal(g, channels, kernel, kernel) / kernel,
        "bias": normal(g, channels),
    }


# ---------------------------------------------------------------- scores at an exit


def scores_problem(g, batch, classes, spread) -> dict:
    return {"logits": spread * normal(g, batch, classes)}


# ---------------------------------------------------------------- loss on a sparse target


def target_problem(g, batch, classes, kept, spread) -> dict:
    """What a teacher is surest of; as many classes as there are where `kept` is more."""
    teacher = (2 * normal(g, batch, classes)).softmax(1)
    probabilities, indices = teacher.topk(min(kept, classes))
    return {
        "logits": spread * normal(g, batch, classes),
        "indices": indices,
        "probabilities": probabilities,
    }


def target_composed(logits: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """The loss with the label written out for every class."""
    classes, kept = logits.shape[1], indices.shape[1]
    share = (1 - probabilities.sum(1, keepdim=True)) / max(classes - kept, 1)
    label = share.expand(-1, classes).scatter(1, indices, probabilities)
    return -(label * logits.log_softmax(1)).sum(1)


# ---------------------------------------------------------------- attention, of few queries or many


def attention_problem(g, batch, heads, queries, keys, width, value_width) -> dict:
    return {
        "queries": 2 * normal(g, batch, heads, queries, width),
        "keys": normal(g, batch, heads, keys, width),
        "values": normal(g, batch, heads, keys, value_width),
    }


# ---------------------------------------------------------------- Gram matrix of gradients


def gram_problem(g, batch, samples, weights, with_total) -> dict:
    return {
        "gradients": normal(g, batch, samples, weights),
        "total": normal(g, batch, samples, samples) if with_total else None,
    }


# ---------------------------------------------------------------- grid lookup


def grid_problem(g, batch, num_levels, coarsest, finer, features, max_entries) -> dict:
    scales = geometric_scales(num_levels, coarsest, coarsest + finer)
    return {
        "points": torch.rand(batch, 2, generator=g, dtype=torch.float64),
        "table": normal(g, table_rows(scales, max_entries), features),
        "scales": scales,
        "max_entries": max_entries,
    }


def grid_composed(points: Tensor, table: Tensor, scales, max_entries: int) -> Tensor:
    """The lookup as a chain of plain operations, level by level."""
    features = []
    for level in levels(tuple(scales), max_entries):
        place = points * level.scale + 0.5
        cell = place.detach().floor()
        fraction = place - cell
        total = 0
        for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
            corner = cell + torch.tensor([i, j], device=cell.device)
            x, y = corner.long().unbind(1)
            index = x ^ (y * PRIME & 0xFFFFFFFF) if level.hashed else x + y * level.lines
            across = fraction[:, 0] if i else 1 - fraction[:, 0]
            down = fraction[:, 1] if j else 1 - fraction[:, 1]
            rows = table[level.first + index % level.rows]
            total = total + (across * down)[:, None] * rows
        features.append(total)
    return torch.cat(features, 1)


# ---------------------------------------------------------------- grouped experts


def experts_problem(g, batch, dim, hidden, experts, choices) -> dict:
    score = torch.rand(batch, experts, generator=g, dtype=torch.float64)
    score, chosen = score.topk(min(choices, experts))
    return {
        "x": normal(g, batch, dim),
        "chosen": chosen,
        "score": score,
        "w1": normal(g, experts, hidden, dim) / dim**0.5,
        "b1": normal(g, experts, hidden),
        "w2": normal(g, experts, dim, hidden) / hidden**0.5,
        "b2": normal(g, experts, dim),
    }


# ---------------------------------------------------------------- hidden state mixer


def mixer_problem(g, batch, channels, states, length, inner, spread, with_A) -> dict:
    return {
        "x": normal(g, batch, channels, length),
        "dt": spread * normal(g, batch, states, length),
        "B": normal(g, batch, states, length),
        "C": normal(g, batch, states, length),
        "A": normal(g, states) if with_A else None,
        "D": normal(g, 1),
        "hz_weight": normal(g, 2 * inner, channels),
        "out_weight": normal(g, channels, inner),
    }


# ---------------------------------------------------------------- KAN layer


def kan_problem(g, batch, width, bumps, outputs) -> dict:
    return {
        "x": normal(g, batch, width),
        "norm_weight": 1 + 0.2 * normal(g, width),
        "norm_bias": 0.2 * normal(g, width),
        "grid": torch.linspace(-2, 2, bumps, dtype=torch.float64),
        "weight": normal(g, outputs, width * bumps),
    }


# ---------------------------------------------------------------- LVQ inner products


def lvq_problem(g, batch, lead, queries, vectors, dims, bits, with_mean) -> dict:
    """batch: the queries where there is no leading dimension, else the first leading dimension."""
    lead = lead if not lead else (batch, *lead[1:])
    queries = queries if lead else batch
    codes = torch.randint(0, 2**bits, (*lead, vectors, dims), generator=g, dtype=torch.uint8)
    return {
        "queries": normal(g, *lead, queries, dims),
        "codes": pack(codes, bits),
        "scale": normal(g, *lead, vectors).abs() / (2**bits - 1),
        "bias": normal(g, *lead, vectors),
        "mean": normal(g, dims) if with_mean else None,
        "bits": bits,
    }


def decode_then_multiply(queries, codes, scale, bias, mean=None, bits=8) -> Tensor:
    digits = unpack(codes, queries.shape[-1], bits).to(queries.dtype)
    vectors = digits * scale.to(queries.dtype)[..., None] + bias.to(queries.dtype)[..., None]
    if mean is not None:
        vectors = vectors + mean.to(queries.dtype)
    return queries @ vectors.mT


# ---------------------------------------------------------------- sums of chosen rows


def masked_problem(g, batch, tokens, channels, outputs) -> dict:
    """The first token is chosen by the first output: never on zeros alone."""
    chosen = torch.rand(batch, tokens, outputs, generator=g) < 0.5
    chosen[:, 0, 0] = True
    return {
        "values": normal(g, batch, tokens, channels),
        "mask": pack_mask(chosen),
        "outputs": outputs,
    }


# ---------------------------------------------------------------- gate of a modulation block


def gate_problem(g, batch, channels, ratio) -> dict:
    return {"value": normal(g, batch, ratio * channels), "context": normal(g, batch, channels)}


# ---------------------------------------------------------------- neighbourhood attention


def neighbourhood_problem(g, batch, heads, spare, width, window_size, dilation, with_bias) -> dict:
    """spare: how many rows and columns the map has more than the windows need."""
    height, columns = [
        size * step + more for size, step, more in zip(window_size, dilation, spare, strict=True)
    ]
    table = heads, 2 * window_size[0] - 1, 2 * window_size[1] - 1
    shape = batch, heads, height, columns, width
    return {
        "queries": 2 * normal(g, *shape),
        "keys": normal(g, *shape),
        "values": normal(g, *shape),
        "bias": normal(g, *table) if with_bias else None,
        "window_size": window_size,
        "dilation": dilation,
    }


# ---------------------------------------------------------------- packed weights


def packed_problem(g, batch, groups, group_size, outputs, bits) -> dict:
    codes = torch.randint(0, 2**bits, (groups * group_size, outputs), generator=g)
    zeros = torch.randint(0, 2**bits, (groups, outputs), generator=g)
    return {
        "x": normal(g, batch, groups * group_size),
        "qweight": pack_words(codes, bits),
        "qzeros": pack_words(zeros.T, bits).T.contiguous(),
        "scales": normal(g, groups, outputs).abs() + 0.1,
        "bits": bits,
    }


# ---------------------------------------------------------------- product of 8-bit integers


def int8_problem(g, batch, inputs, outputs, zero_point, has_bias) -> dict:
    def integers(*shape):
        return torch.randint(-128, 128, shape, generator=g).to(torch.int8)

    return {
        "codes": integers(batch, inputs),
        "weight": integers(outputs, inputs),
        "scale": (normal(g, 1)[0].abs() + 0.1) / 64,
        "weight_scale": normal(g, outputs).abs() + 0.1,
        "bias": normal(g, outputs) if has_bias else None,
        "zero_point": zero_point,
    }


# ---------------------------------------------------------------- pool mixer


def pool_problem(g, batch, channels, height, width) -> dict:
    return {"x": normal(g, batch, channels, height, width), "scale": normal(g, channels)}


def pool_step_by_step(x: Tensor, scale: Tensor) -> Tensor:
    """Pool, subtract, scale, add: as the official code does it."""
    mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return x + scale[:, None, None] * (mean - x)


# ---------------------------------------------------------------- attention with a cropped bias


def cropped_problem(g, batch, heads, side, larger, width, value_width) -> dict:
    """larger: how many rows the table's grid has more than the tokens'."""
    span = 2 * (side + larger) - 1
    return {
        "queries": normal(g, batch, heads, side**2, width),
        "keys": normal(g, batch, heads, side**2, width),
        "values": normal(g, batch, heads, side**2, value_width),
        "table": normal(g, heads, span, span),
    }


# ---------------------------------------------------------------- attention with pooled queries


def pooled_problem(g, batch, heads, queries, keys, width, value_width, pool) -> dict:
    """queries: those that are left."""
    arguments = attention_problem(g, batch, heads, pool * queries, keys, width, value_width)
    return arguments | {"pool": pool}


# ---------------------------------------------------------------- attention the other way


def scatter_problem(g, batch, heads, queries, keys, width, value_width) -> dict:
    return {
        "queries": 2 * normal(g, batch, heads, queries, width),
        "keys": normal(g, batch, heads, keys, width),
        "values": normal(g, batch, heads, queries, value_width),
    }


# ---------------------------------------------------------------- scores of groups of weights


def segment_problem(g, batch, outer, groups, inner) -> dict:
    shape = (batch, outer, groups, inner)
    return {"weight": normal(g, *shape), "gradient": normal(g, *shape)}


# ---------------------------------------------------------------- select, bridge, scatter


def routing_problem(g, batch, tokens, share, channels, tied) -> dict:
    """share: of the tokens that are kept; tied: many scores are equal."""
    scores = normal(g, batch, tokens).sigmoid().log()
    if tied:
        scores = (2 * scores).round().clamp(max=-1)
    keep = min(max(int(share * tokens), 1), tokens - 1)
    return {
        "tokens": normal(g, batch, tokens, channels),
        "scores": scores,
        "update": normal(g, batch, keep + 1, channels),
    }


# ---------------------------------------------------------------- selective scan


def scan_problem(g, batch, groups, width, states, length, constant, shift, extras) -> dict:
    """constant: which of B and C are the same at all times; shift: added to delta, so that Δ gets
    small; extras: D, z, bias, softplus and a state to start from."""
    channels = groups * width

    def over_time(name: str) -> Tensor:
        if name in constant:
            return normal(g, channels, states)
        return normal(g, batch, groups, states, length)

    delta = normal(g, batch, channels, length) + shift
    arguments = {
        "u": normal(g, batch, channels, length),
        "delta": delta if extras else delta.abs(),
        "A": -normal(g, channels, states).exp(),
        "B": over_time("B"),
        "C": over_time("C"),
        "return_last_state": True,
    }
    if not extras:
        return arguments
    return arguments | {
        "D": normal(g, channels),
        "z": normal(g, batch, channels, length),
        "delta_bias": normal(g, channels),
        "state": normal(g, batch, channels, states),
        "delta_softplus": True,
    }


def scan_by_doubling(return_last_state: bool = True, **arguments) -> tuple[Tensor, Tensor]:
    return scan_with_torch(**arguments, scan=doubling)


# ---------------------------------------------------------------- powers of two as weights


def shift_problem(g, batch, inputs, outputs) -> dict:
    """Exponents from 0 to −14, about every eighth weight zero, the first of all not."""
    shift = -14 * torch.rand(outputs, inputs, generator=g, dtype=torch.float64)
    sign = normal(g, outputs, inputs) * 3
    sign[0, 0] = 1
    return {"x": normal(g, batch, inputs), "codes": encode(shift, sign)}


# ---------------------------------------------------------------- state space duality


def ssd_problem(g, batch, groups, per_group, width, states, length, chunk, state, reset) -> dict:
    """state: start from one; reset: at some steps the decay is exactly zero."""
    heads = groups * per_group
    a = -normal(g, batch, length, heads).abs()
    if reset:
        a = torch.where(torch.rand(a.shape, generator=g) < 0.2, -torch.inf, a)
    return {
        "x": normal(g, batch, length, heads, width),
        "a": a,
        "B": normal(g, batch, length, groups, states),
        "C": normal(g, batch, length, groups, states),
        "state": normal(g, batch, heads, width, states) if state else None,
        "chunk": chunk,
        "return_last_state": True,
    }


def ssd_as_matrix(x, a, B, C, state=None, chunk=None, return_last_state=True):
    """The masked matrix of the whole sequence, and what the first state leaves."""
    heads = x.shape[2]
    per_group = heads // B.shape[2]
    y = semiseparable(a, B, C) @ x.transpose(1, 2)
    sums = segsum(a.transpose(1, 2))
    to_end = sums[:, :, -1].exp()  # (b, h, l)
    B = B.repeat_interleave(per_group, 2).transpose(1, 2)
    C = C.repeat_interleave(per_group, 2).transpose(1, 2)
    last = (x.transpose(1, 2) * to_end[..., None]).transpose(-1, -2) @ B
    if state is not None:
        since_start = sums[..., 0].exp() * a[:, :1].transpose(1, 2).exp()
        y = y + since_start[..., None] * (C @ state.transpose(-1, -2))
        last = last + since_start[:, :, -1, None, None] * state
    return y.transpose(1, 2), last


# ---------------------------------------------------------------- the way into a decoder's node


def node_problem(g, batch, channels, more, outputs, height, width) -> dict:
    return {
        "below": normal(g, batch, channels, height, width),
        "beside": normal(g, batch, more, 2 * height, 2 * width),
        "weight": normal(g, outputs, channels + more, 3, 3) / (3 * (channels + more) ** 0.5),
        "bias": normal(g, outputs),
    }


def enlarge_join_convolve(below, beside, weight, bias) -> Tensor:
    """With the large map written."""
    enlarged = F.interpolate(below, scale_factor=2.0, mode="nearest")
    return F.conv2d(torch.cat([enlarged, beside], 1), weight, bias, padding=1)


CONTRACTS: dict[str, Contract] = {
    "cascaded_group_attention": Contract(
        shapes={
            "batch": [1, 2, 3],
            "side": [1, 2, 3, 4],
            "heads": [1, 2, 3],
            "key_dim": [1, 2, 5],
            "width": [1, 2, 6],
            "kernel": [1, 3, 7],
        },
        problem=cascade_problem,
        batched=("x",),
        forward_only="the cascade's way back would need what every head left in registers",
    ),
    "cropped_bias_attention": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "heads": [1, 2, 3],
            "side": [2, 1, 3, 5],
            "larger": [0, 1, 3],
            "width": [1, 3, 16],
            "value_width": [1, 5, 20],
        },
        problem=cropped_problem,
        batched=("queries", "keys", "values"),
    ),
    "depthwise_gelu": Contract(
        shapes={
            "batch": [1, 2, 3],
            "height": [1, 2, 4, 6],
            "width": [1, 3, 5],
            "channels": [1, 2, 5, 19],
            "kernel": [1, 3, 7],
        },
        problem=depthwise_problem,
        batched=("x",),
        forward_only="the way back is two convolutions, which PyTorch has",
    ),
    "exit_scores": Contract(
        shapes={
            "batch": [1, 2, 5, 9],
            "classes": [2, 3, 10, 300, 1030],
            "spread": [1.0, 5.0],
        },
        problem=scores_problem,
        batched=("logits",),
        floor=8.0,  # ln s − t/s: near certainty the difference of two numbers that were rounded
    ),
    "few_query_attention": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "heads": [1, 2, 3],
            "queries": [1, 4, 9, 19],
            "keys": [1, 2, 21, 70, 130],
            "width": [1, 3, 8, 20],
            "value_width": [1, 5, 8],
        },
        problem=attention_problem,
        batched=("queries", "keys", "values"),
    ),
    "gradient_gram": Contract(
        shapes={
            "batch": [1, 2, 3],
            "samples": [2, 1, 5, 17],
            "weights": [3, 1, 40, 67],
            "with_total": [True, False],
        },
        problem=gram_problem,
        batched=("gradients", "total"),
    ),
    "grid_encode": Contract(
        shapes={
            "batch": [0, 1, 11, 40],
            "num_levels": [1, 2, 4],
            "coarsest": [2, 3, 5, 9],
            "finer": [0, 1, 7, 23],
            "features": [1, 2, 3, 4, 8],
            "max_entries": [16, 64, 2**20],
        },
        problem=grid_problem,
        batched=("points",),
        composed=grid_composed,
    ),
    "grouped_experts": Contract(
        shapes={
            "batch": [1, 2, 7, 40],
            "dim": [1, 3, 16, 35],
            "hidden": [1, 4, 33],
            "experts": [1, 2, 5],
            "choices": [1, 2, 3],
        },
        problem=experts_problem,
        batched=("x", "chosen", "score"),
    ),
    "hsm_ssd": Contract(
        shapes={
            "batch": [1, 2, 3],
            "channels": [1, 2, 5, 16, 20],
            "states": [1, 4, 16, 19],
            "length": [1, 2, 21, 37, 80],
            "inner": [1, 3, 6, 9],
            "spread": [1.0, 50.0],
            "with_A": [True, False],
        },
        problem=mixer_problem,
        batched=("x", "dt", "B", "C"),
    ),
    "int8_product": Contract(
        shapes={
            "batch": [1, 2, 5, 40],
            "inputs": [1, 3, 32, 45],
            "outputs": [1, 3, 12, 35],
            "zero_point": [0, 7, -128],
            "has_bias": [False, True],
        },
        problem=int8_problem,
        batched=("codes",),
    ),
    "kan_layer": Contract(
        shapes={
            "batch": [1, 2, 5, 40],
            "width": [3, 8, 35],
            "bumps": [8, 2, 5],
            "outputs": [4, 9, 20],
        },
        problem=kan_problem,
        batched=("x",),
        floor=8.0,  # weights of both signs cancel: what is left hangs on the order of the sum
    ),
    "lvq_inner_product": Contract(
        shapes={
            "batch": [1, 2, 5, 17],
            "lead": [(), (3,), (2, 1)],
            "queries": [1, 2, 5],
            "vectors": [1, 3, 33, 70],
            "dims": [1, 2, 9, 32, 41],
            "bits": [1, 3, 4, 5, 8],
            "with_mean": [True, False],
        },
        problem=lvq_problem,
        batched=("queries",),
        composed=decode_then_multiply,
        plain={"lead": ()},
    ),
    "masked_sum": Contract(
        shapes={
            "batch": [1, 2, 3],
            "tokens": [1, 5, 16, 33, 70],
            "channels": [1, 3, 8, 35],
            "outputs": [1, 4, 16, 33],
        },
        problem=masked_problem,
        batched=("values", "mask"),
    ),
    "modulation_gate": Contract(
        shapes={
            "batch": [1, 2, 7, 40],
            "channels": [1, 3, 16, 130],
            "ratio": [1, 2, 4, 6],
        },
        problem=gate_problem,
        batched=("value", "context"),
    ),
    "neighbourhood_attention": Contract(
        shapes={
            "batch": [0, 1, 2],
            "heads": [1, 2],
            "spare": [(0, 0), (2, 1), (0, 3)],
            "width": [1, 3, 8],
            "window_size": [(3, 1), (3, 3), (1, 5)],
            "dilation": [(1, 1), (1, 2), (2, 2)],
            "with_bias": [True, True, False],
        },
        problem=neighbourhood_problem,
        batched=("queries", "keys", "values"),
    ),
    "packed_product": Contract(
        shapes={
            "batch": [1, 2, 5, 17],
            "groups": [1, 2, 3],
            "group_size": [5, 16, 20, 33],
            "outputs": [1, 3, 12, 35],
            "bits": [2, 3, 4, 8],
        },
        problem=packed_problem,
        batched=("x",),
        floor=8.0,  # codes minus zero points cancel: what is left hangs on the order of the sum
    ),
    "pool_mixer": Contract(
        shapes={
            "batch": [1, 2, 3],
            "channels": [1, 2, 5],
            "height": [1, 2, 3, 7, 18],
            "width": [1, 2, 5, 9, 17],
        },
        problem=pool_problem,
        batched=("x",),
        composed=pool_step_by_step,
    ),
    "pooled_query_attention": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "heads": [1, 2, 3],
            "queries": [1, 4, 16, 70],
            "keys": [1, 2, 21, 64, 130],
            "width": [1, 3, 8, 20],
            "value_width": [1, 5, 8],
            "pool": [1, 4, 3],
        },
        problem=pooled_problem,
        batched=("queries", "keys", "values"),
    ),
    "relu_attention": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "heads": [1, 2, 3],
            "queries": [4, 9, 19, 70],
            "keys": [2, 21, 70, 130],
            "width": [1, 3, 8, 20],
            "value_width": [1, 5, 8],
        },
        problem=attention_problem,
        batched=("queries", "keys", "values"),
    ),
    "scatter_attention": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "heads": [1, 2, 3],
            "queries": [1, 4, 9, 70],
            "keys": [1, 2, 21, 70, 130],
            "width": [1, 3, 8, 20],
            "value_width": [1, 5, 8],
        },
        problem=scatter_problem,
        batched=("queries", "keys", "values"),
    ),
    "segment_scores": Contract(
        shapes={
            "batch": [1, 2, 3],
            "outer": [1, 2, 5, 40],
            "groups": [1, 3, 7, 70],
            "inner": [1, 2, 9, 33],
        },
        problem=segment_problem,
        batched=("weight", "gradient"),
    ),
    "select_bridge_scatter": Contract(
        shapes={
            "batch": [0, 1, 2, 3],
            "tokens": [2, 5, 9, 33, 70],
            "share": [0.0, 0.3, 0.5, 1.0],
            "channels": [1, 3, 8, 130],
            "tied": [False, False, False, True],
        },
        problem=routing_problem,
        batched=("tokens", "scores", "update"),
    ),
    "selective_scan": Contract(
        shapes={
            "batch": [1, 2],
            "groups": [1, 2, 3],
            "width": [1, 2, 5],
            "states": [1, 3, 4],
            "length": [1, 2, 7, 19, 33],
            "constant": ["", "B", "C", "BC"],
            "shift": [0.0, -8.0],
            "extras": [True, False],
        },
        problem=scan_problem,
        batched=("u", "delta", "B", "C", "z", "state"),
        composed=scan_by_doubling,
        plain={"constant": ""},
    ),
    "shift_product": Contract(
        shapes={
            "batch": [1, 2, 5, 17, 70],
            "inputs": [1, 6, 20, 33],
            "outputs": [1, 3, 12, 35],
        },
        problem=shift_problem,
        batched=("x",),
    ),
    "sparse_target_loss": Contract(
        shapes={
            "batch": [1, 2, 5, 9],
            "classes": [2, 3, 10, 300, 1030],
            "kept": [1, 2, 5, 130],
            "spread": [1.0, 5.0],
        },
        problem=target_problem,
        batched=("logits", "indices", "probabilities"),
        composed=target_composed,
    ),
    "ssd": Contract(
        shapes={
            "batch": [1, 2],
            "groups": [1, 2],
            "per_group": [1, 2, 3],
            "width": [1, 3, 9],
            "states": [1, 5, 9],
            "length": [1, 2, 16, 21, 50],
            "chunk": [1, 3, 16, 64, 200],
            "state": [True, False],
            "reset": [False, True],
        },
        problem=ssd_problem,
        batched=("x", "a", "B", "C", "state"),
        composed=ssd_as_matrix,
    ),
    "upsample_concat_conv": Contract(
        shapes={
            "batch": [0, 1, 2],
            "channels": [1, 2, 5, 18],
            "more": [0, 1, 4, 17],
            "outputs": [1, 3, 18],
            "height": [1, 2, 5],
            "width": [1, 3, 4],
        },
        problem=node_problem,
        batched=("below", "beside"),
        composed=enlarge_join_convolve,
    ),
}


def problem(op: str, seed: int = 0, dtype=torch.float64, **choice) -> dict:
    """Arguments of `op`; what is not chosen is in the middle of its choices."""
    contract = CONTRACTS[op]
    middle = {name: values[len(values) // 2] for name, values in contract.shapes.items()}
    return cast(contract.problem(generator(seed), **middle | choice), dtype)


def drawn(op: str, seed: int) -> dict:
    """One choice of everything, by seed."""
    g = generator(seed)
    choices = CONTRACTS[op].shapes.items()
    return {name: v[int(torch.randint(len(v), (), generator=g))] for name, v in choices}


def cast(arguments: dict, dtype: torch.dtype) -> dict:
    """The same arguments with every floating-point tensor in this type."""
    return {name: v.to(dtype) if is_real(v) else v for name, v in arguments.items()}


def is_real(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def composed(op: str, arguments: dict) -> tuple[Tensor, ...]:
    """What the composed form makes of these arguments, in their precision."""
    form = CONTRACTS[op].composed
    if form is None:
        return as_tuple(operations()[op].function(**arguments, backend="torch"))
    return as_tuple(form(**arguments))


def call(operation: Operation, arguments: dict, backend: str) -> tuple[Tensor, ...]:
    return as_tuple(operation.function(**arguments, backend=backend))


def as_tuple(result) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, taken in float64 on the CPU."""
    return float((a.detach().double().cpu() - b.detach().double().cpu()).norm())


def leaves(arguments: dict) -> dict:
    """The floating-point tensors, as leaves that ask for a gradient."""
    return {
        name: v.detach().clone().requires_grad_() for name, v in arguments.items() if is_real(v)
    }


def gradients(compute: Callable[[dict], tuple[Tensor, ...]], arguments: dict) -> dict[str, Tensor]:
    """Gradient of Σ results · (fixed random numbers) by every floating-point tensor."""
    inputs = leaves(arguments)
    results = compute(arguments | inputs)
    g = generator(1)
    upstream = [normal(g, *r.shape).to(r.device, r.dtype) for r in results]
    found = torch.autograd.grad(results, list(inputs.values()), upstream, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(inputs.items(), found, strict=True)
    }


def allowed(yardstick: float, truth: Tensor, dtype: torch.dtype, factor: float, floor: float):
    """The largest distance: `factor` times the composed form's, and never less than the floor."""
    norm = float(truth.double().norm())
    return max(factor * yardstick, floor * torch.finfo(dtype).eps * norm, math.ulp(norm))


def needs_triton(backend: str = "triton") -> None:
    """Skip the test when its form is Triton's and Triton is missing."""
    import pytest

    if backend == "triton":
        pytest.importorskip("triton")
