"""Vamana, the proximity graph that LeanVec searches (Subramanya et al., DiskANN, NeurIPS 2019).

Every vertex has at most R out-edges (`max_degree`). A search starts at the entry point, the vertex
nearest the mean, and keeps the best `search_window` vertices seen so far; it expands the nearest
one not yet expanded, adds its unseen neighbours, and stops when all that are kept are expanded.

A vertex x is inserted by searching for it. Its candidates are *all vertices that the search
expanded*, the far ones at the start of the walk too: they become the long edges without which a
later search does not get from one cluster to another. Of these, nearest first, x keeps each c' that
no kept c shadows:

    c shadows c' when α · dist(c, c') < dist(x, c')
    α ≥ 1 for squared distances, α ≤ 1 for negated inner products

first at α = 1, then, while there is room, at α; under inner products the second round forgets what
the first one shadowed. Then the reverse edges; where one overflows R, the list is pruned to R − 4.
Two passes over the vertices, in batches that see the same graph.

Rules and parameters as in IntelLabs/ScalableVectorSearch @ 4c6ba38 and the package scalable-vs
0.5.0 (its candidates: at most three times the window). Its batches are of one size, ours double
from one vertex on, so that the first ones find something.

`vectors` is a `MetricVectors`, or anything with its `vectors`, `distance` and `between`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

INFINITY = float("inf")
POOL = 3  # candidates for the edges of a vertex, in windows of the search that inserts it


class Vamana:
    """A graph over n vertices, and how further ones are inserted.

    neighbours: (n, max_degree) int32, −1 where there is none; entry_point: where searches start;
    alpha, build_window: of insertions.
    """

    def __init__(self, neighbours: Tensor, entry_point: int, alpha: float, build_window: int):
        self.neighbours = neighbours
        self.entry_point = entry_point
        self.alpha = alpha
        self.build_window = build_window

    @classmethod
    def build(
        cls,
        vectors,
        count: int,
        max_degree: int,
        build_window: int,
        alpha: float,
        seed: int = 0,
        progress: Callable = iter,
    ) -> Vamana:
        """Two passes over `count` vertices in the order that `seed` gives.

        progress: wraps the list of batches, as `tqdm` does.
        """
        everything = vectors.vectors(torch.arange(count))
        entry_point = int((everything - everything.mean(0)).square().sum(1).argmin())
        no_edges = torch.full((count, max_degree), -1, dtype=torch.int32)
        graph = cls(no_edges, entry_point, alpha, build_window)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        limit = max(256, count // 40)
        first_pass = [(ids, 1.0) for ids in batches(order, 0, limit)]
        second_pass = [(ids, alpha) for ids in batches(order, count, limit)]
        for ids, reverse_alpha in progress(first_pass + second_pass):
            graph.insert(vectors, ids, reverse_alpha)
        return graph

    def add(self, vectors, count: int) -> Vamana:
        """A graph with `count` further vertices, which `vectors` knows by now.

        This graph stays as it is.
        """
        known, max_degree = self.neighbours.shape
        no_edges = torch.full((count, max_degree), -1, dtype=torch.int32)
        neighbours = torch.cat([self.neighbours, no_edges])
        grown = Vamana(neighbours, self.entry_point, self.alpha, self.build_window)
        new = torch.arange(known, known + count)
        for ids in batches(new, known, max(256, known // 40)):
            grown.insert(vectors, ids, self.alpha)
        return grown

    def search(
        self,
        distance: Callable,
        queries: Tensor,
        search_window: int,
        expansions: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best vertices seen for queries (b, d), nearest first: ids and distances (b, window).

        An id is −1 where fewer were found. Every step appends the vertices that it expands to
        `expansions`, ids (b,) and distances (b,), with −1 for queries that are done.
        """
        b = len(queries)
        n = len(self.neighbours)
        ids = torch.full((b, search_window), -1)
        distances = torch.full((b, search_window), INFINITY)
        expanded = torch.zeros(b, search_window, dtype=torch.bool)
        seen = torch.zeros(b, n + 1, dtype=torch.bool)  # the last column: "no neighbour"
        seen[:, [self.entry_point, n]] = True
        ids[:, 0] = self.entry_point
        distances[:, 0] = distance(queries, ids[:, :1])[:, 0]
        while True:
            nearest_open, slot = distances.masked_fill(expanded, INFINITY).min(1)
            rows = (nearest_open < INFINITY).nonzero()[:, 0]
            if len(rows) == 0:
                return ids, distances
            vertices = ids[rows, slot[rows]]
            expanded[rows, slot[rows]] = True
            if expansions is not None:
                step = torch.full((b,), -1).index_put((rows,), vertices)
                expansions.append((step, nearest_open))

            found = self.neighbours[vertices].long()  # (rows, max_degree)
            found[found < 0] = n
            new = ~seen[rows[:, None], found]
            seen[rows[:, None], found] = True
            found_distances = distance(queries[rows], found.clamp(max=n - 1))
            found_distances = found_distances.masked_fill(~new, INFINITY)

            all_ids = torch.cat([ids[rows], found], 1)
            all_expanded = torch.cat([expanded[rows], torch.zeros_like(new)], 1)
            all_distances = torch.cat([distances[rows], found_distances], 1)
            kept, index = all_distances.topk(search_window, 1, largest=False)
            distances[rows] = kept
            ids[rows] = all_ids.gather(1, index).masked_fill(kept == INFINITY, -1)
            expanded[rows] = all_expanded.gather(1, index)

    def insert(self, vectors, new: Tensor, reverse_alpha: float) -> None:
        """Give the vertices `new` (b,) their neighbours, and these the edges back."""
        max_degree = self.neighbours.shape[1]
        queries = vectors.vectors(new)
        expansions: list[tuple[Tensor, Tensor]] = []
        self.search(vectors.distance, queries, self.build_window, expansions)
        found = torch.stack([ids for ids, _ in expansions], 1)
        found_distances = torch.stack([distances for _, distances in expansions], 1)

        own = self.neighbours[new].long()
        repeated = (own[:, :, None] == found[:, None]).any(2)
        own_distances = vectors.distance(queries, own.clamp(min=0))
        own_distances = own_distances.masked_fill((own < 0) | repeated, INFINITY)

        ids = torch.cat([found, own], 1)
        distances = torch.cat([found_distances, own_distances], 1)
        distances[ids == new[:, None]] = INFINITY
        ids, distances = nearest(ids, distances, POOL * self.build_window)
        ids, distances = prune(vectors, ids, distances, self.alpha, max_degree)
        self.neighbours[new] = ids.int()

        source, slot = (ids >= 0).nonzero(as_tuple=True)
        lengths = distances[source, slot]
        self.add_edges(vectors, ids[source, slot], new[source], lengths, reverse_alpha)

    def add_edges(self, vectors, start: Tensor, end: Tensor, lengths: Tensor, alpha: float) -> None:
        """Edges start -> end (e,); lists that overflow are pruned to max_degree − 4."""
        if len(start) == 0:
            return
        max_degree = self.neighbours.shape[1]
        order = lengths.argsort(stable=True)
        order = order[start[order].argsort(stable=True)]  # by start, the nearest first
        start, end, lengths = start[order], end[order], lengths[order]
        nodes, row, count = start.unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(start)) - (count.cumsum(0) - count)[row]
        kept = rank < 2 * max_degree
        row, rank = row[kept], rank[kept]
        fresh = torch.full((len(nodes), int(rank.max()) + 1), -1)  # the new ends of each node
        fresh_distances = torch.full(fresh.shape, INFINITY)
        fresh[row, rank] = end[kept]
        fresh_distances[row, rank] = lengths[kept]

        own = self.neighbours[nodes].long()
        own_distances = vectors.distance(vectors.vectors(nodes), own.clamp(min=0))
        own_distances = own_distances.masked_fill(own < 0, INFINITY)
        repeated = (fresh[:, :, None] == own[:, None]).any(2)
        fresh_distances = fresh_distances.masked_fill(repeated, INFINITY)

        ids = torch.cat([own, fresh], 1)
        distances = torch.cat([own_distances, fresh_distances], 1)
        full = (distances < INFINITY).sum(1) > max_degree
        ids, distances = nearest(ids, distances, ids.shape[1])
        self.neighbours[nodes] = ids[:, :max_degree].int()
        pruned, _ = prune(vectors, ids[full], distances[full], alpha, max_degree - 4)
        self.neighbours[nodes[full]] = F.pad(pruned, (0, 4), value=-1).int()


def batches(order: Tensor, inserted: int, limit: int) -> Iterator[Tensor]:
    """Pieces of `order`, each as long as what is in the graph already, at most `limit`."""
    start = 0
    while start < len(order):
        size = min(max(inserted + start, 1), limit)
        yield order[start : start + size]
        start += size


def nearest(ids: Tensor, distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of every row (b, c), sorted: (b, count).

    Absent ones (infinitely far) come as −1 at the end, and short rows are padded with them.
    """
    distances, index = distances.topk(min(count, distances.shape[1]), 1, largest=False)
    ids = ids.gather(1, index).masked_fill(distances == INFINITY, -1)
    padding = (0, count - ids.shape[1])
    return F.pad(ids, padding, value=-1), F.pad(distances, padding, value=INFINITY)


def prune(
    vectors, ids: Tensor, distances: Tensor, alpha: float, max_degree: int
) -> tuple[Tensor, Tensor]:
    """Of sorted candidates (b, c) the unshadowed ones, at most max_degree: (b, max_degree)."""
    candidates = vectors.vectors(ids.clamp(min=0))  # (b, c, d)
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    shadow = torch.full(ids.shape, INFINITY)  # distance of a candidate to the nearest kept one
    for limit in dict.fromkeys((1.0, alpha)):
        if limit < 1:  # inner products: the second round starts anew
            shadow.fill_(INFINITY)
        while True:
            room = keep.sum(1, keepdim=True) < max_degree
            unshadowed = ~(limit * shadow < distances)
            free = (distances < INFINITY) & ~keep & unshadowed & room
            rows = free.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                break
            picked = free[rows].int().argmax(1)  # the first, so the nearest
            keep[rows, picked] = True
            kept_one = candidates[rows, picked][:, None]
            between = vectors.between(kept_one, candidates[rows])[:, 0]
            shadow[rows] = torch.minimum(shadow[rows], between)
    return nearest(ids, distances.masked_fill(~keep, INFINITY), max_degree)
