"""Vamana, the proximity graph that LeanVec searches (Subramanya et al., DiskANN, NeurIPS 2019).

Every point has at most R out-edges. A search starts at the point nearest the mean and keeps the best `window` points seen so far; it expands the nearest
one not yet expanded, adds its unseen neighbours, and stops when all that are kept are expanded.
A point is inserted by searching for it, taking what was found as candidates, and keeping of them, nearest first, each c' that no kept c shadows:

    c' is shadowed by c when α · dist(c, c') < dist(x, c')          α ≥ 1 for squared distances, α ≤ 1 for negated inner products

Then the reverse edges; where one overflows R, the list is pruned to R − 4. Two passes over the points, in batches that see the same graph.
Parameters as in IntelLabs/ScalableVectorSearch @ 4c6ba38; its batches are of one size, ours double from one point on, so that the first ones find something.

The points are known through three functions alone, so the graph does not care how they are stored (distances: smaller is nearer):
    vectors(ids (…) int64) -> (…, d) float32     distance(queries (b, d), ids (b, c)) -> (b, c)     between(x (b, m, d), y (b, n, d)) -> (b, m, n)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

INFINITY = float("inf")


class Vamana:
    """neighbours: (n, degree) int32, −1 where there is none; entry: the point where searches start."""

    def __init__(self, neighbours: Tensor, entry: int, alpha: float, window: int):
        self.neighbours, self.entry, self.alpha, self.window = neighbours, entry, alpha, window

    @classmethod
    def build(
        cls,
        points,
        count: int,
        degree: int,
        window: int,
        alpha: float,
        seed: int = 0,
        progress: Callable = iter,
    ) -> Vamana:
        """Two passes over `count` points in the order that `seed` gives. `progress` wraps the list of batches, as `tqdm` does."""
        everything = points.vectors(torch.arange(count))
        entry = int((everything - everything.mean(0)).square().sum(1).argmin())
        graph = cls(torch.full((count, degree), -1, dtype=torch.int32), entry, alpha, window)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        limit = max(256, count // 40)
        first, second = batches(order, 0, limit), batches(order, count, limit)
        for ids, reverse_alpha in progress(
            [(ids, 1.0) for ids in first] + [(ids, alpha) for ids in second]
        ):
            graph.insert(points, ids, reverse_alpha)
        return graph

    def add(self, points, count: int) -> Vamana:
        """A graph with `count` further points, which `points` must know by now; this one stays as it is."""
        known, degree = self.neighbours.shape
        grown = Vamana(
            torch.cat([self.neighbours, torch.full((count, degree), -1, dtype=torch.int32)]),
            self.entry,
            self.alpha,
            self.window,
        )
        for ids in batches(torch.arange(known, known + count), known, max(256, known // 40)):
            grown.insert(points, ids, self.alpha)
        return grown

    def search(self, distance: Callable, queries: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """The best points seen for queries (b, d): ids (b, window) int64, −1 where fewer were found, and distances, nearest first."""
        b, n = len(queries), len(self.neighbours)
        ids = torch.full((b, window), -1)
        near = torch.full((b, window), INFINITY)
        expanded = torch.zeros(b, window, dtype=torch.bool)
        seen = torch.zeros(b, n + 1, dtype=torch.bool)  # the last column stands for "no neighbour"
        ids[:, 0], seen[:, self.entry], seen[:, n] = self.entry, True, True
        near[:, 0] = distance(queries, ids[:, :1])[:, 0]
        while True:
            open_ = near.masked_fill(expanded, INFINITY)
            best, slot = open_.min(1)
            rows = (best < INFINITY).nonzero()[:, 0]
            if len(rows) == 0:
                return ids, near
            expanded[rows, slot[rows]] = True
            found = self.neighbours[ids[rows, slot[rows]]].long()
            found[found < 0] = n
            new = ~seen[rows[:, None], found]
            seen[rows[:, None], found] = True
            far = distance(queries[rows], found.clamp(max=n - 1)).masked_fill(~new, INFINITY)
            kept, index = torch.cat([near[rows], far], 1).topk(window, 1, largest=False)
            near[rows] = kept
            ids[rows] = (
                torch.cat([ids[rows], found], 1).gather(1, index).masked_fill(kept == INFINITY, -1)
            )
            expanded[rows] = torch.cat([expanded[rows], torch.zeros_like(new)], 1).gather(1, index)

    def insert(self, points, new: Tensor, reverse_alpha: float) -> None:
        """Give the points `new` (b,) their neighbours, and these the edges back."""
        degree = self.neighbours.shape[1]
        queries = points.vectors(new)
        found, near = self.search(points.distance, queries, self.window)
        own = self.neighbours[new].long()
        own_near = points.distance(queries, own.clamp(min=0))
        repeated = (own[:, :, None] == found[:, None]).any(2)
        ids, near = (
            torch.cat([found, own], 1),
            torch.cat([near, own_near.masked_fill((own < 0) | repeated, INFINITY)], 1),
        )
        near[ids == new[:, None]] = INFINITY
        ids, near = nearest(ids, near, 2 * degree)
        ids, near = prune(points, ids, near, self.alpha, degree)
        self.neighbours[new] = ids.int()

        source, slot = (ids >= 0).nonzero(as_tuple=True)
        self.add_edges(points, ids[source, slot], new[source], near[source, slot], reverse_alpha)

    def add_edges(self, points, start: Tensor, end: Tensor, near: Tensor, alpha: float) -> None:
        """Edges start -> end (e,), `near` their lengths; lists that overflow are pruned to degree − 4."""
        if len(start) == 0:
            return
        degree = self.neighbours.shape[1]
        order = near.argsort(stable=True)
        order = order[start[order].argsort(stable=True)]  # by start, the nearest first
        start, end, near = start[order], end[order], near[order]
        nodes, row, count = start.unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(start)) - (count.cumsum(0) - count)[row]
        kept = rank < 2 * degree
        row, rank = row[kept], rank[kept]
        fresh = torch.full((len(nodes), int(rank.max()) + 1), -1)
        fresh_near = torch.full(fresh.shape, INFINITY)
        fresh[row, rank], fresh_near[row, rank] = end[kept], near[kept]

        own = self.neighbours[nodes].long()
        repeated = (fresh[:, :, None] == own[:, None]).any(2)
        own_near = points.distance(points.vectors(nodes), own.clamp(min=0)).masked_fill(
            own < 0, INFINITY
        )
        ids, near = (
            torch.cat([own, fresh], 1),
            torch.cat([own_near, fresh_near.masked_fill(repeated, INFINITY)], 1),
        )
        full = (near < INFINITY).sum(1) > degree
        ids, near = nearest(ids, near, ids.shape[1])
        self.neighbours[nodes] = ids[:, :degree].int()
        pruned, _ = prune(points, ids[full], near[full], alpha, degree - 4)
        self.neighbours[nodes[full]] = F.pad(pruned, (0, 4), value=-1).int()


def batches(order: Tensor, inserted: int, limit: int):
    """Pieces of `order`, each as long as what is in the graph already, at most `limit`."""
    start = 0
    while start < len(order):
        size = min(max(inserted + start, 1), limit)
        yield order[start : start + size]
        start += size


def nearest(ids: Tensor, near: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of every row, sorted; absent ones (infinitely far) as −1 at the end, rows padded to `count`."""
    near, index = near.topk(min(count, near.shape[1]), 1, largest=False)
    ids = ids.gather(1, index).masked_fill(near == INFINITY, -1)
    pad = (0, count - ids.shape[1])
    return F.pad(ids, pad, value=-1), F.pad(near, pad, value=INFINITY)


def prune(points, ids: Tensor, near: Tensor, alpha: float, degree: int) -> tuple[Tensor, Tensor]:
    """Of sorted candidates (b, c) the unshadowed ones, at most `degree`: first at α' = 1, then, while there is room, at α."""
    b, c = ids.shape
    vectors = points.vectors(ids.clamp(min=0))  # (b, c, d)
    shadow = torch.full((b, c), INFINITY)  # distance of each candidate to the nearest kept one
    keep = torch.zeros(b, c, dtype=torch.bool)
    for limit in (1.0, alpha) if alpha != 1 else (1.0,):
        while True:
            free = (
                (near < INFINITY)
                & ~keep
                & ~((limit * shadow) < near)
                & (keep.sum(1, keepdim=True) < degree)
            )
            rows = free.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                break
            picked = free[rows].int().argmax(1)  # the first, so the nearest
            keep[rows, picked] = True
            between = points.between(vectors[rows, picked][:, None], vectors[rows])[:, 0]
            shadow[rows] = torch.minimum(shadow[rows], between)
    return nearest(ids, near.masked_fill(~keep, INFINITY), degree)
