"""The nearest vectors by comparing a query with all of them.

Sorting every distance would cost more than computing it. But the `count` nearest lie in the `count`
groups with the smallest minima. So one pass over the distances takes the minimum of each group of
16 vectors, and only the members of the best groups are compared one by one.

Codes of 8 bits need no decoding in the first pass: queries are rounded to integers as well, and the
product of integers is a quarter of the bytes and the work. What rounding shifts among the minima is
caught by a few groups more, the second pass is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.bases.retrieval.lvq import Lvq
from refimpl.bases.retrieval.metric import MetricVectors

GROUP = 16  # vectors that share a minimum
INFINITY = float("inf")

# Where a processor has no instruction for it (AVX2), oneDNN adds two products of a byte and a
# signed byte in 16 bits, which saturate: 2 · 255 · 63 fits in 2¹⁵, 2 · 255 · 127 does not.
LARGEST = 63


def nearest_by_scan(vectors: MetricVectors, queries: Tensor, count: int) -> Tensor:
    """The `count` nearest of all n vectors, the nearest first: ids (b, count) int64.

    queries: (b, d) in the metric's coordinates. Exact, but for 8-bit codes where a group is missed
    because of the queries' rounding, which costs less than 0.001 of recall.
    """
    product = integer_product() if has_bytes(vectors) else None
    chunk = 512 if product is None else 128  # integers are quicker while the results fit in a cache
    found = [nearest(vectors, part, count, product) for part in queries.split(chunk)]
    return torch.cat(found) if found else torch.empty(0, count, dtype=torch.int64)


def nearest(
    vectors: MetricVectors, queries: Tensor, count: int, product: Callable | None
) -> Tensor:
    """The same for few queries (b, d): minima of groups, the best groups, their best members."""
    n = len(vectors)
    distances = rounded(vectors, queries, product) if product else vectors.block
    block = max(2048, min(2**17, 2**18 // max(len(queries), 1)) // GROUP * GROUP)
    minima = torch.empty(-(-n // GROUP), len(queries))  # (groups, b)
    for start in range(0, n, block):
        members = distances(queries, slice(start, start + block))  # (vectors, b)
        missing = -len(members) % GROUP
        if missing:
            members = F.pad(members, (0, 0, 0, missing), value=INFINITY)
        members = members.view(-1, GROUP, len(queries))
        first = start // GROUP
        torch.amin(members, 1, out=minima[first : first + len(members)])

    margin = 2 + count // 4 if product else 0
    kept = min(count + margin, len(minima))
    groups = minima.T.contiguous().topk(kept, 1, largest=False, sorted=False).indices
    ids = (groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    ids = ids.masked_fill(ids >= n, -1)
    pairs = zip(queries.split(64), ids.split(64), strict=True)
    return torch.cat([vectors.rank(some, candidates, count)[0] for some, candidates in pairs])


def has_bytes(vectors: MetricVectors) -> bool:
    """Whether the store has one level of codes that take a byte each."""
    store = vectors.store
    return isinstance(store, Lvq) and store.bits == 8 and not store.residual_bits


def rounded(vectors: MetricVectors, queries: Tensor, product: Callable) -> Callable:
    """`vectors.block` for 8-bit codes and queries (b, d) rounded to integers up to ±LARGEST.

    ⟨q, ŷ⟩ = scale ⟨q, code⟩ + bias Σ q; what is constant per query is left out.
    """
    store = vectors.store
    factor = -1.0 if vectors.metric == "ip" else -2.0
    step = queries.abs().amax(1).clamp(min=1e-30) / LARGEST
    digits = (queries / step[:, None]).round()
    total = digits.sum(1) * step  # Σ q of the rounded queries
    times_codes = product(digits.to(torch.int8), factor * step)
    scale = store.scale.float()[:, None]
    bias = store.bias.float()

    def block(_, part: slice) -> Tensor:
        distances = times_codes(store.codes[part])  # (c, b)
        distances.mul_(scale[part]).addr_(bias[part], total, alpha=factor)
        if vectors.metric == "l2":
            distances += vectors.squared_norms[part, None]
        return distances

    return block


@functools.cache
def integer_product() -> Callable | None:
    """A matrix product of bytes and signed bytes, or None where there is no exact one.

    product(queries (b, d) int8, step (b,)) -> a function of codes (c, d) uint8 that gives
    step · ⟨query, code⟩, (c, b) float32. It is oneDNN's product for quantised layers: the codes are
    its input, the queries its weights. Tried once, on the largest numbers.
    """

    # Without AVX-512, oneDNN takes half the time for eight columns that it takes for one.
    fewest = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1

    def product(queries: Tensor, step: Tensor) -> Callable:
        b = len(queries)
        padding = max(fewest - b, 0)
        weights = F.pad(queries, (0, 0, 0, padding))
        weights = torch.ops.onednn.qlinear_prepack(weights, None)
        step = F.pad(step, (0, padding))
        zeros = torch.zeros(len(step), dtype=torch.int64)
        run = torch.ops.onednn.qlinear_pointwise
        rest = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias, float32 out, nothing after
        return lambda codes: run(codes, 1.0, 0, weights, step, zeros, *rest)[:, :b].contiguous()

    queries = torch.full((3, 99), LARGEST, dtype=torch.int8)
    queries[1] = -LARGEST
    queries[2, ::2] = -LARGEST
    codes = torch.full((20, 99), 255, dtype=torch.uint8)
    codes[1::2] -= torch.arange(99, dtype=torch.uint8)
    try:
        got = product(queries, torch.ones(3))(codes)
    except (AttributeError, RuntimeError):
        return None
    return product if torch.equal(got, (codes.int() @ queries.int().T).float()) else None
