"""LeanVec: Search your vectors faster by making them fit.

Tepper, Bhati, Aguerrebere, Hildebrand, Willke. TMLR 2024, arXiv 2312.16335. Official code:
IntelLabs/ScalableVectorSearch @ 4c6ba382ab8ec5acd09924e725cb6b6c1ede977a (AGPL-3.0), and the
package scalable-vs 0.5.0.

The idea. A search compares a query with thousands of vectors, and each comparison waits for memory.
So compare short vectors first: project data to d ≪ D dimensions and quantise them to 8 bits; walk
or scan these, then rank the few best again at full dimension (8 bits too). Queries may be projected
by another matrix than data: they need the directions in which *inner products* differ, which are
not those in which the data vary most.

    data X (n, D), training queries Q (m, D), projections A (queries) and B (data), both (D, d)
    ⟨q, x⟩ ≈ ⟨Aᵀq, Bᵀx⟩
    loss(A, B) = ‖Q A Bᵀ Xᵀ − Q Xᵀ‖²_F
               = tr(B Aᵀ K_Q A Bᵀ K_X) − 2 tr(K_Q A Bᵀ K_X) + tr(K_Q K_X)
    K_Q = QᵀQ, K_X = XᵀX

    LeanVec-ID    A = B = the top d principal axes of the centred data
    LeanVec-OOD   minimise the loss: Frank–Wolfe in blocks over the spectral-norm ball (as the
                  official code does), or, with A = B, an eigenvector search over the mixture
                  (1−β) K_Q/m + β K_X/n (no official code; the normalisers' places are our
                  convention)

Cost: a comparison reads d + 8 bytes instead of 4·D. Learning takes O(n D²) once for K_X and O(D² d)
for each step.

Codes are LVQ (`refimpl.bases.retrieval.lvq`), searches are `refimpl.bases.retrieval.scan` and
`.vamana`, inner products on codes are `refimpl.kernels.lvq_inner_product`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from refimpl import checks
from refimpl.bases.retrieval import files
from refimpl.bases.retrieval.lvq import KINDS, store
from refimpl.bases.retrieval.metric import METRICS, MetricVectors
from refimpl.bases.retrieval.scan import nearest_by_scan
from refimpl.bases.retrieval.vamana import Vamana

# --- linear reduction (section 2) ---------------------------------------------------------------


class Projection(NamedTuple):
    """data: B (D, d); query: A (D, d); centre: (D,), subtracted from data (from queries under L2).

    Data come first, as in the official code.
    """

    data: np.ndarray
    query: np.ndarray
    centre: np.ndarray


def loss(A: np.ndarray, B: np.ndarray, K_Q: np.ndarray, K_X: np.ndarray) -> float:
    """‖Q A Bᵀ Xᵀ − Q Xᵀ‖²_F from the Gram matrices alone."""
    KA = K_Q @ A
    KB = K_X @ B
    return float(np.sum((A.T @ KA) * (B.T @ KB)) - 2 * np.sum(KA * KB) + np.sum(K_Q * K_X))


def gradients(
    A: np.ndarray, B: np.ndarray, K_Q: np.ndarray, K_X: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """∂loss/∂A and ∂loss/∂B, each (D, d)."""
    KA = K_Q @ A
    KB = K_X @ B
    return 2 * (KA @ (B.T @ KB) - K_Q @ KB), 2 * (KB @ (A.T @ KA) - K_X @ KA)


def polar(M: np.ndarray) -> np.ndarray:
    """U Vᵀ of M's thin SVD: the point of the spectral-norm ball that is largest along M.

    The identity's columns where M is zero.
    """
    if not M.any():
        return np.eye(*M.shape)
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    return U @ Vt


def frank_wolfe(
    X: np.ndarray,
    Q: np.ndarray,
    d: int,
    max_steps: int = 500,
    rel_tol: float = 1e-3,
    history: list[float] | None = None,
) -> Projection:
    """LeanVec-OOD, block-coordinate Frank–Wolfe from A = B = 0.

    Data (n, D) and queries (m, D) are not centred; losses are appended to `history`. Nothing
    projects the result back onto orthonormal columns, and no step is sure to lower the loss.
    """
    K_Q = gram(Q)
    K_X = gram(X)
    A = np.zeros((X.shape[1], d))
    B = np.zeros((X.shape[1], d))
    losses = [] if history is None else history
    for t in range(max_steps):
        step = 1 / (t + 1) ** 0.999  # γ
        A = (1 - step) * A + step * polar(-gradients(A, B, K_Q, K_X)[0])
        B = (1 - step) * B + step * polar(-gradients(A, B, K_Q, K_X)[1])
        losses.append(loss(A, B, K_Q, K_X))
        if t > 1 and abs(losses[-1] - losses[-2]) < rel_tol * losses[-2]:
            break
    return Projection(B, A, np.zeros(X.shape[1]))


def gram(X: np.ndarray) -> np.ndarray:
    """K = XᵀX in float64, (D, D)."""
    K = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), 8192):  # without a float64 copy of all of X
        block = X[start : start + 8192].astype(np.float64)
        K += block.T @ block
    return K


def top_eigenvectors(K: np.ndarray, d: int) -> np.ndarray:
    """The d leading eigenvectors of a symmetric (D, D) matrix, as columns (D, d), largest first."""
    return np.linalg.eigh(K)[1][:, ::-1][:, :d]


def pca(X: np.ndarray, d: int) -> Projection:
    """LeanVec-ID: the principal axes of the data serve both sides. X: (n, D)."""
    centre = X.mean(0, dtype=np.float64)
    B = top_eigenvectors(gram(X) - len(X) * np.outer(centre, centre), d)
    return Projection(B, B, centre)


def mixture_axes(beta: float, K_Q: np.ndarray, m: int, K_X: np.ndarray, n: int, d: int):
    """P(β): the top d eigenvectors (D, d) of (1−β) K_Q/m + β K_X/n."""
    return top_eigenvectors((1 - beta) * K_Q / m + beta * K_X / n, d)


def eigenvector_search(X: np.ndarray, Q: np.ndarray, d: int, tol: float = 1e-2) -> Projection:
    """A = B = P(β) at the β of least loss.

    The best of eleven, then golden-section search between its neighbours down to `tol`.
    """
    K_Q = gram(Q)
    K_X = gram(X)

    def at(beta: float) -> float:
        P = mixture_axes(beta, K_Q, len(Q), K_X, len(X), d)
        return loss(P, P, K_Q, K_X)

    grid = np.linspace(0, 1, 11)
    best = int(np.argmin([at(beta) for beta in grid]))
    low = grid[max(best - 1, 0)]
    high = grid[min(best + 1, 10)]
    golden = (np.sqrt(5) - 1) / 2
    left = high - golden * (high - low)
    right = low + golden * (high - low)
    at_left = at(left)
    at_right = at(right)
    while high - low > tol:
        if at_left < at_right:  # the minimum lies in [low, right]; left becomes the new right
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = at(right)
    beta = min((low + high) / 2, grid[best], key=at)
    P = mixture_axes(beta, K_Q, len(Q), K_X, len(X), d)
    return Projection(P, P, np.zeros(X.shape[1]))


METHODS: dict[str, Callable[..., Projection]] = {
    "pca": lambda X, Q, d: pca(X, d),
    "frank_wolfe": frank_wolfe,
    "eigenvector_search": eigenvector_search,
}


# --- the index (section 3) ----------------------------------------------------------------------

FORMAT = "refimpl.leanvec index 2"


@dataclass(frozen=True)
class Config:
    """How an index is built."""

    dims: int  # d
    method: str = "pca"  # LeanVec-ID; the others need training queries
    metric: str = "ip"  # the largest inner products; "l2": the smallest squared distances
    primary: str = "lvq8"  # kinds of storage, of `bases.retrieval.lvq.KINDS`
    secondary: str = "lvq8"
    max_degree: int = 32  # of the graph; 0: no graph, searches scan
    build_window: int = 64
    alpha: float | None = None  # of the graph; 0.95 for ip and 1.2 for l2 where not given
    seed: int = 0  # order of insertion

    def __post_init__(self):
        checks.choice("method", self.method, METHODS)
        checks.choice("metric", self.metric, METRICS)
        checks.choice("primary", self.primary, KINDS)
        checks.choice("secondary", self.secondary, KINDS)
        checks.integer(1, dims=self.dims, build_window=self.build_window)
        checks.integer(0, max_degree=self.max_degree, seed=self.seed)
        if 0 < self.max_degree < 8:
            raise ValueError(f"max_degree={self.max_degree} must be 0 (no graph) or at least 8")
        if self.alpha is None:
            object.__setattr__(self, "alpha", 0.95 if self.metric == "ip" else 1.2)
        fits = 0 < self.alpha <= 1 if self.metric == "ip" else self.alpha >= 1
        if not fits:
            accepted = "above 0 and at most 1" if self.metric == "ip" else "at least 1"
            raise ValueError(f"alpha={self.alpha} must be {accepted} for metric={self.metric!r}")


class LeanVecIndex:
    """Approximate nearest neighbours of NumPy vectors.

    A primary store of d dimensions to search in, a secondary one of D to rank with. Arguments:
    see `Config`. The same data and seed give the same index. A call that fails changes nothing.
    """

    def __init__(self, dims: int, *arguments, **options):
        self.config = Config(dims, *arguments, **options)
        self.projection: Projection | None = None
        self.primary: MetricVectors | None = None  # (n, d)
        self.secondary: MetricVectors | None = None  # (n, D)
        self.graph: Vamana | None = None

    def build(
        self, data: np.ndarray, queries: np.ndarray | None = None, progress: Callable = iter
    ) -> LeanVecIndex:
        """Learn the projection from data (n, D) and training queries (m, D), store, build a graph.

        progress: wraps the graph's batches, as `tqdm` does.
        """
        config = self.config
        X = files.checked(data, "data")
        if config.dims > X.shape[1]:
            raise ValueError(f"dims={config.dims} must be between 1 and {X.shape[1]}, the data's")
        if queries is None and config.method != "pca":
            raise ValueError(f"method={config.method!r} learns from training queries: give queries")
        Q = None if queries is None else files.checked(queries, "queries", X.shape[1])
        centre = X.mean(0, dtype=np.float64).astype(np.float32)
        if config.metric == "l2":  # a shift changes no distance, but what float32 keeps of it
            X = X - centre
            Q = None if Q is None else Q - centre
        learned = METHODS[config.method](X, Q, config.dims)
        A = learned.query.astype(np.float32)
        B = learned.data.astype(np.float32)
        short = X @ B
        if config.metric == "ip":
            centre = learned.centre.astype(np.float32)
            short = (X - centre) @ B
        primary = MetricVectors(store(torch.from_numpy(short), config.primary), config.metric)
        secondary = MetricVectors(store(torch.from_numpy(X), config.secondary), config.metric)
        graph = None
        if config.max_degree:
            build = (config.max_degree, config.build_window, config.alpha, config.seed)
            graph = Vamana.build(primary, len(X), *build, progress)
        self.projection = Projection(B, A, centre)
        self.primary = primary
        self.secondary = secondary
        self.graph = graph
        return self

    def add(self, data: np.ndarray) -> np.ndarray:
        """Append vectors (n, D) under the projection and the means of `build`: their ids (n,)."""
        self.need_vectors()
        X = files.checked(data, "data", self.dim)
        first = len(self)
        about = X - self.projection.centre
        short = torch.from_numpy(about @ self.projection.data)
        full = torch.from_numpy(about if self.config.metric == "l2" else X)
        metric = self.config.metric
        primary = MetricVectors(self.primary.store.extended(short), metric)
        secondary = MetricVectors(self.secondary.store.extended(full), metric)
        graph = self.graph and self.graph.add(primary, len(X))
        self.primary = primary
        self.secondary = secondary
        self.graph = graph
        return np.arange(first, len(self))

    def search(
        self, queries: np.ndarray, k: int = 10, search_window: int = 50, scan: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors for queries (m, D), the best first.

        Returns ids (m, k) int64 and inner products or squared distances (m, k) float32. An id is
        −1 where the graph reached fewer than k vectors.

        search_window: candidates that the primary store hands on, also the capacity of the graph's
        buffer: larger is slower and finds more.
        scan: compare with all primary vectors; the default walks the graph where there is one.
        """
        self.need_vectors()
        Q = files.checked(queries, "queries", self.dim, least=0)
        checks.integer(1, k=k)
        if k > len(self):
            raise ValueError(f"k={k} must be at most {len(self)}, the vectors in the index")
        checks.integer(k, search_window=search_window)
        scan = self.graph is None if scan is None else scan
        if not scan and self.graph is None:
            raise ValueError("scan=False, but this index was built with max_degree=0: no graph")
        if self.config.metric == "l2":
            Q = Q - self.projection.centre
        short = self.primary.place(torch.from_numpy(Q @ self.projection.query))
        full = self.secondary.place(torch.from_numpy(Q))
        window = min(search_window, len(self))
        chunk = max(1, min(512, 2**27 // len(self)))  # a walk notes for each vector whether seen
        ids = torch.empty(len(Q), k, dtype=torch.int64)
        distances = torch.empty(len(Q), k)
        for start in range(0, len(Q), chunk):
            part = slice(start, start + chunk)
            if scan:
                found = nearest_by_scan(self.primary, short[part], window)
            else:
                found, _ = self.graph.search(self.primary.distance, short[part], window)
            ids[part], distances[part] = self.secondary.rank(full[part], found, k)
        return ids.numpy(), (-distances if self.config.metric == "ip" else distances).numpy()

    def __len__(self) -> int:
        return 0 if self.primary is None else len(self.primary)

    @property
    def dim(self) -> int:
        """D, the dimension of the vectors that go in."""
        return len(self.projection.centre)

    def need_vectors(self) -> None:
        if not len(self):
            raise ValueError("the index is empty: call build(data) first")

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the primary and secondary store, the graph, and what all vectors share."""
        self.need_vectors()
        sizes = {"primary": self.primary.nbytes, "secondary": self.secondary.nbytes}
        sizes["graph"] = 0 if self.graph is None else self.graph.neighbours.nbytes
        shared = [a.nbytes for name, a in self.arrays().items() if not files.per_vector(name)]
        return sizes | {"shared": sum(shared)}

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of both stores and of the graph, per vector."""
        return (sum(self.nbytes.values()) - self.nbytes["shared"]) / len(self)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that the index holds, by name."""
        arrays = {f"projection.{name}": m for name, m in self.projection._asdict().items()}
        for part, vectors in (("primary", self.primary), ("secondary", self.secondary)):
            for name, tensor in files.tensors_of(vectors.store).items():
                arrays[f"{part}.{name}"] = tensor.numpy()
        if self.graph is not None:
            arrays["graph.neighbours"] = self.graph.neighbours.numpy()
        return arrays

    def save(self, path: str | Path) -> None:
        """Write the index to one file, whole or not at all."""
        self.need_vectors()
        entry_point = None if self.graph is None else self.graph.entry_point
        header = {"format": FORMAT, "config": asdict(self.config), "entry_point": entry_point}
        files.write(path, header, self.arrays())

    @classmethod
    def load(cls, path: str | Path) -> LeanVecIndex:
        """Read what `save` wrote. A truncated or foreign file is a `ValueError`."""
        with files.reading(path):
            header, arrays = files.read(path, FORMAT)
            return cls(**header["config"]).restored(header["entry_point"], arrays)

    def restored(self, entry_point: int | None, arrays: dict[str, np.ndarray]) -> LeanVecIndex:
        """Take over `arrays`, after comparing them with those of an index of one vector."""
        config = self.config
        plain = replace(config, method="pca", max_degree=0)
        zero = np.zeros((1, len(arrays["projection.centre"])), np.float32)
        template = LeanVecIndex(**asdict(plain)).build(zero)
        wanted = template.arrays()
        if config.max_degree:
            wanted["graph.neighbours"] = np.zeros((1, config.max_degree), np.int32)
        n = files.match(arrays, wanted)
        primary = files.with_tensors(template.primary.store, "primary", arrays)
        secondary = files.with_tensors(template.secondary.store, "secondary", arrays)
        graph = None
        if config.max_degree:
            edges = torch.from_numpy(arrays["graph.neighbours"])
            if edges.min() < -1 or edges.max() >= n or entry_point not in range(n):
                raise ValueError(f"its graph leads out of the {n} vectors")
            graph = Vamana(edges, entry_point, config.alpha, config.build_window)
        self.projection = Projection(*(arrays[f"projection.{f}"] for f in Projection._fields))
        self.primary = MetricVectors(primary, config.metric)
        self.secondary = MetricVectors(secondary, config.metric)
        self.graph = graph
        return self
