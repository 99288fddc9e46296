"""The vectors of a store under a metric, as scan, graph and ranking see them; smaller is nearer.

ip   −⟨q, x̂⟩            the largest inner products are the nearest
l2   ‖q − x̂‖²           in coordinates about the store's mean μ, where the same distances come
                        from small numbers
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.bases.retrieval.lvq import Floats, Lvq

METRICS = ("ip", "l2")


class MetricVectors:
    """Vectors (n, d) of a store under a metric.

    All vectors and queries that its methods take and give are in the metric's own coordinates;
    `place` brings a user's queries there.
    """

    def __init__(self, store: Lvq | Floats, metric: str):
        checks.choice("metric", metric, METRICS)
        self.store = store
        self.metric = metric
        self.squared_norms: Tensor | None = None  # ‖x̂ − μ‖² (n,), what a scan under l2 needs
        if metric == "l2":
            blocks = [slice(start, start + 8192) for start in range(0, len(store), 8192)]
            norms = [store.centred(block).square().sum(1) for block in blocks]
            self.squared_norms = torch.cat(norms)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def nbytes(self) -> int:
        """Bytes of what every vector has for itself: codes and constants or numbers, ‖x̂ − μ‖²."""
        norms = 0 if self.squared_norms is None else self.squared_norms.nbytes
        return self.store.nbytes + norms

    def place(self, queries: Tensor) -> Tensor:
        """A user's queries (b, d) in the metric's coordinates: about the mean under l2."""
        return queries if self.metric == "ip" else (queries - self.store.mean).float()

    def vectors(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """Decoded vectors, (…, d) float32."""
        return self.store.vectors(ids) if self.metric == "ip" else self.store.centred(ids)

    def distance(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Queries (b, d), each with vectors of its own, ids (b, c) -> (b, c).

        Squared distances are sums of squared differences: never negative, and exactly 0 between
        equal vectors, which ‖x‖² − 2⟨q, x⟩ + ‖q‖² is not.
        """
        if self.metric == "ip":
            return -self.store.inner(queries, ids)
        differences = self.store.centred(ids) - queries[:, None]
        return differences.square_().sum(2)

    def rank(self, queries: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` nearest of candidates (b, c), nearest first: ids and distances (b, count).

        A candidate of −1 is none, and comes last.
        """
        distances = self.distance(queries, ids.clamp(min=0)).masked_fill(ids < 0, float("inf"))
        nearest, index = distances.topk(count, 1, largest=False)
        return ids.gather(1, index), nearest

    def block(self, queries: Tensor, part: slice) -> Tensor:
        """Queries (b, d) with the same vectors, a slice of c: (c, b), less a constant per query.

        Decoded once for all the queries, so that it is a plain matrix product; under l2 the
        expanded square without ‖q‖², good to rounding errors of ‖q‖² + ‖x̂‖².
        """
        vectors = self.vectors(part)
        if self.metric == "ip":
            return vectors @ -queries.T
        return torch.addmm(self.squared_norms[part, None], vectors, queries.T, alpha=-2)

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Vectors (b, m, d) with vectors (b, n, d): (b, m, n)."""
        if self.metric == "ip":
            return -x @ y.mT
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
