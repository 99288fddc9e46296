"""LeanVec: Search your vectors faster by making them fit (Tepper, Bhati, Aguerrebere, Hildebrand, Willke; TMLR 2024, arXiv 2312.16335).

Official code: IntelLabs/ScalableVectorSearch @ 4c6ba382ab8ec5acd09924e725cb6b6c1ede977a (AGPL-3.0), and the package scalable-vs 0.5.0.

The idea. A search compares a query with thousands of vectors, and each comparison waits for memory. So compare short vectors first: project data to
d ≪ D dimensions and quantise them to 8 bits; walk or scan these, then rank the few best again at full dimension (8 bits too). Queries may be
projected by another matrix than data: they need the directions in which *inner products* differ, which are not those in which the data vary most.

    data X (n, D), training queries Q (m, D), projections A (queries) and B (data), both (D, d)             ⟨q, x⟩ ≈ ⟨Aᵀq, Bᵀx⟩
    loss(A, B) = ‖Q A Bᵀ Xᵀ − Q Xᵀ‖²_F = tr(B Aᵀ K_Q A Bᵀ K_X) − 2 tr(K_Q A Bᵀ K_X) + tr(K_Q K_X),     K_Q = QᵀQ, K_X = XᵀX

    LeanVec-ID    A = B = the top d principal axes of the centred data
    LeanVec-OOD   minimise the loss: Frank–Wolfe in blocks over the spectral-norm ball (as the official code does), or, with A = B, an
                  eigenvector search over the mixture (1−β) K_Q/m + β K_X/n (no official code; the normalisers' places are our convention)

Codes are LVQ (`refimpl.bases.retrieval.lvq`), the graph is Vamana (`refimpl.bases.retrieval.vamana`), inner products on codes are `refimpl.kernels.lvq_inner_product`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.bases.retrieval.lvq import KINDS, Points, store
from refimpl.bases.retrieval.vamana import Vamana

# ------------------------------------------------------------------------------------------------ linear reduction (section 2)


class Projection(NamedTuple):
    """data: B (D, d); query: A (D, d); centre: (D,), subtracted from data (and from queries under L2). Data come first, as in the official code."""

    data: np.ndarray
    query: np.ndarray
    centre: np.ndarray


def top_eigenvectors(K: np.ndarray, d: int) -> np.ndarray:
    """The d leading eigenvectors of a symmetric (D, D) matrix, as columns (D, d), the largest first."""
    return np.linalg.eigh(K)[1][:, ::-1][:, :d]


def pca(X: np.ndarray, d: int) -> Projection:
    """LeanVec-ID: the principal axes of the data serve both sides. X: (n, D)."""
    centre = X.mean(0, dtype=np.float64)
    B = top_eigenvectors(gram(X) - len(X) * np.outer(centre, centre), d)
    return Projection(B, B, centre)


def gram(X: np.ndarray) -> np.ndarray:
    """K = XᵀX in float64, (D, D), without a float64 copy of the whole X."""
    return sum(
        (
            block.T @ block
            for block in (X[i : i + 8192].astype(np.float64) for i in range(0, len(X), 8192))
        ),
        np.zeros((X.shape[1],) * 2),
    )


def loss(A: np.ndarray, B: np.ndarray, K_Q: np.ndarray, K_X: np.ndarray) -> float:
    """‖Q A Bᵀ Xᵀ − Q Xᵀ‖²_F from the Gram matrices alone."""
    KA, KB = K_Q @ A, K_X @ B
    return float(np.sum((A.T @ KA) * (B.T @ KB)) - 2 * np.sum(KA * KB) + np.sum(K_Q * K_X))


def gradients(
    A: np.ndarray, B: np.ndarray, K_Q: np.ndarray, K_X: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """∂loss/∂A and ∂loss/∂B, each (D, d)."""
    KA, KB = K_Q @ A, K_X @ B
    return 2 * (KA @ (B.T @ KB) - K_Q @ KB), 2 * (KB @ (A.T @ KA) - K_X @ KA)


def polar(M: np.ndarray) -> np.ndarray:
    """U Vᵀ of M's thin SVD: the point of the spectral-norm ball that is largest along M. The identity's columns where M is zero."""
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
    """LeanVec-OOD, block-coordinate Frank–Wolfe from A = B = 0. Data (n, D) and queries (m, D) are not centred; losses are appended to `history`.

    Nothing projects the result back onto orthonormal columns, and no step is sure to lower the loss.
    """
    K_Q, K_X, D = gram(Q), gram(X), X.shape[1]
    A, B, before = np.zeros((D, d)), np.zeros((D, d)), np.inf
    for t in range(max_steps):
        step = 1 / (t + 1) ** 0.999  # γ
        A = (1 - step) * A + step * polar(-gradients(A, B, K_Q, K_X)[0])
        B = (1 - step) * B + step * polar(-gradients(A, B, K_Q, K_X)[1])
        now = loss(A, B, K_Q, K_X)
        if history is not None:
            history.append(now)
        if t > 1 and abs(now - before) < rel_tol * before:
            break
        before = now
    return Projection(B, A, np.zeros(D))


def mixture_axes(
    beta: float, K_Q: np.ndarray, m: int, K_X: np.ndarray, n: int, d: int
) -> np.ndarray:
    """P(β): the top d eigenvectors of (1−β) K_Q/m + β K_X/n."""
    return top_eigenvectors((1 - beta) * K_Q / m + beta * K_X / n, d)


def eigenvector_search(X: np.ndarray, Q: np.ndarray, d: int, tol: float = 1e-2) -> Projection:
    """A = B = P(β) at the β of least loss: the best of eleven, then golden-section search between its neighbours down to `tol`."""
    K_Q, K_X = gram(Q), gram(X)

    def at(beta):
        P = mixture_axes(beta, K_Q, len(Q), K_X, len(X), d)
        return loss(P, P, K_Q, K_X)

    grid = np.linspace(0, 1, 11)
    best = int(np.argmin([at(beta) for beta in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 10)]
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > tol:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if at(left) < at(right) else (left, high)
    P = mixture_axes(min((low + high) / 2, grid[best], key=at), K_Q, len(Q), K_X, len(X), d)
    return Projection(P, P, np.zeros(X.shape[1]))


METHODS: dict[str, Callable[..., Projection]] = {
    "pca": lambda X, Q, d: pca(X, d),
    "frank_wolfe": frank_wolfe,
    "eigenvector_search": eigenvector_search,
}


# ------------------------------------------------------------------------------------------------ the index (section 3)

FORMAT = "refimpl.leanvec index 1"
GROUP = 16  # vectors that share a maximum in a scan


class LeanVecIndex:
    """Approximate nearest neighbours of NumPy vectors: a primary store of d dimensions to search in, a secondary one of D to rank with.

    dims: d; method: "pca" (LeanVec-ID), "frank_wolfe" or "eigenvector_search" (LeanVec-OOD: `build` needs training queries);
    metric: "ip", the largest inner products, or "l2", the smallest squared distances; primary, secondary: kinds of storage, see `bases.lvq.KINDS`;
    degree, build_window, alpha: of the graph (degree 0: none, searches scan; alpha: 1.2 for l2, 0.95 for ip); seed: order of insertion.

    The same data and seed give the same index. A call that fails leaves the index as it was.
    """

    def __init__(
        self,
        dims: int,
        method: str = "pca",
        metric: str = "ip",
        primary: str = "lvq8",
        secondary: str = "lvq8",
        degree: int = 32,
        build_window: int = 64,
        alpha: float | None = None,
        seed: int = 0,
    ):
        for name, value, accepted in (
            ("method", method, METHODS),
            ("metric", metric, ("ip", "l2")),
            ("primary", primary, KINDS),
            ("secondary", secondary, KINDS),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(accepted)}")
        for name, value, low in (
            ("dims", dims, 1),
            ("degree", degree, 0),
            ("build_window", build_window, 1),
            ("seed", seed, 0),
        ):
            if not isinstance(value, (int, np.integer)) or value < low:
                raise ValueError(f"{name}={value!r} must be an integer of at least {low}")
        if 0 < degree < 8:
            raise ValueError(f"degree={degree} must be 0 (no graph) or at least 8")
        alpha = {"ip": 0.95, "l2": 1.2}[metric] if alpha is None else alpha
        if not alpha > 0 or (alpha > 1) != (metric == "l2") and alpha != 1:
            raise ValueError(
                f"alpha={alpha} must be at least 1 for metric='l2', above 0 and at most 1 for metric='ip'"
            )
        self.config = {
            "dims": int(dims),
            "method": method,
            "metric": metric,
            "primary": primary,
            "secondary": secondary,
        }
        self.config |= {
            "degree": int(degree),
            "build_window": int(build_window),
            "alpha": float(alpha),
            "seed": int(seed),
        }
        self.projection: Projection | None = None
        self.primary: Points | None = None
        self.secondary: Points | None = None
        self.graph: Vamana | None = None

    def build(
        self, data: np.ndarray, queries: np.ndarray | None = None, progress: Callable = iter
    ) -> LeanVecIndex:
        """Learn the projection from data (n, D) and training queries (m, D), store, build the graph. `progress` wraps its batches, as `tqdm` does."""
        X, c = checked(data, "data"), self.config
        if not 1 <= c["dims"] <= X.shape[1]:
            raise ValueError(
                f"dims={c['dims']} must be between 1 and {X.shape[1]}, the dimension of the data"
            )
        if queries is None and c["method"] != "pca":
            raise ValueError(
                f"method={c['method']!r} learns from training queries: build(data, queries)"
            )
        Q = None if queries is None else checked(queries, "queries", X.shape[1])
        projection = METHODS[c["method"]](X, Q, c["dims"])
        projection = Projection(*(np.asarray(m, np.float32) for m in projection))
        primary = Points(
            store(torch.from_numpy((X - projection.centre) @ projection.data), c["primary"]),
            c["metric"],
        )
        secondary = Points(store(torch.from_numpy(X), c["secondary"]), c["metric"])
        graph = (
            Vamana.build(
                primary, len(X), c["degree"], c["build_window"], c["alpha"], c["seed"], progress
            )
            if c["degree"]
            else None
        )
        self.projection, self.primary, self.secondary, self.graph = (
            projection,
            primary,
            secondary,
            graph,
        )
        return self

    def add(self, data: np.ndarray) -> np.ndarray:
        """Append vectors (n, D) under the projection and the means that `build` learned; returns their ids (n,)."""
        self.need_vectors()
        X, n = checked(data, "data", self.dim), len(self)
        short = torch.from_numpy((X - self.projection.centre) @ self.projection.data)
        primary = Points(self.primary.stored.extended(short), self.config["metric"])
        secondary = Points(
            self.secondary.stored.extended(torch.from_numpy(X)), self.config["metric"]
        )
        graph = self.graph and self.graph.add(primary, len(X))
        self.primary, self.secondary, self.graph = primary, secondary, graph
        return np.arange(n, len(self))

    def search(
        self, queries: np.ndarray, k: int = 10, window: int = 50, scan: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors for queries (m, D): ids (m, k) int64 and inner products or squared distances (m, k) float32, the best first.

        window: candidates that the primary store hands on, also the capacity of the graph's buffer: larger is slower and finds more.
        scan: compare with all the primary vectors, one matrix product for many queries; the default walks the graph where there is one.
        An id is −1 where the graph reached fewer than k vectors.
        """
        self.need_vectors()
        Q = torch.from_numpy(checked(queries, "queries", self.dim, least=0))
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= len(self):
            raise ValueError(
                f"k={k!r} must be between 1 and {len(self)}, the number of vectors in the index"
            )
        if not isinstance(window, (int, np.integer)) or window < k:
            raise ValueError(f"window={window!r} must be an integer of at least k={k}")
        scan = self.graph is None if scan is None else scan
        if not scan and self.graph is None:
            raise ValueError("scan=False, but this index was built with degree=0 and has no graph")
        centre = torch.from_numpy(self.projection.centre) if self.config["metric"] == "l2" else 0
        short = (Q - centre) @ torch.from_numpy(self.projection.query)
        window, chunk = min(window, len(self)), max(1, min(512, 2**27 // len(self)))
        ids, near = torch.empty(len(Q), k, dtype=torch.int64), torch.empty(len(Q), k)
        for i in range(0, len(Q), chunk):
            part = slice(i, i + chunk)
            found = (
                self.scan(short[part], window)
                if scan
                else self.graph.search(self.primary.distance, short[part], window)[0]
            )
            final = self.secondary.distance(Q[part], found.clamp(min=0)).masked_fill(
                found < 0, float("inf")
            )
            near[part], best = final.topk(k, 1, largest=False)
            ids[part] = found.gather(1, best)
        return ids.numpy(), (near if self.config["metric"] == "l2" else -near).numpy()

    def scan(self, short: Tensor, window: int, block: int = 2048) -> Tensor:
        """The `window` nearest by the primary store alone, exactly: ids (b, window) for projected queries (b, d).

        Sorting every distance would cost more than computing it. But the `window` nearest lie in the `window` groups with the smallest minima,
        so one pass over the distances takes minima of groups, and only the members of the best groups are compared one by one.
        """
        n = len(self)
        minima = torch.empty(-(-n // GROUP), len(short))
        for start in range(0, n, block):
            near = self.primary.block(short, slice(start, start + block))  # (vectors, queries)
            if rest := -len(near) % GROUP:
                near = F.pad(near, (0, 0, 0, rest), value=float("inf"))
            near = near.view(-1, GROUP, len(short))
            torch.amin(near, 1, out=minima[start // GROUP : start // GROUP + len(near)])
        groups = (
            minima.T.contiguous()
            .topk(min(window, len(minima)), 1, largest=False, sorted=False)
            .indices
        )
        ids = (groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
        near = torch.cat(
            [
                self.primary.distance(q, i.clamp(max=n - 1))
                for q, i in zip(short.split(64), ids.split(64), strict=True)
            ]
        )
        return ids.gather(
            1, near.masked_fill(ids >= n, float("inf")).topk(window, 1, largest=False).indices
        )

    def __len__(self) -> int:
        return 0 if self.primary is None else len(self.primary.stored)

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
        sizes = dict.fromkeys(("primary", "secondary", "graph", "shared"), 0)
        for name, array in self.arrays().items():
            sizes[name.split(".")[0] if per_vector(name) else "shared"] += array.nbytes
        for name, points in (("primary", self.primary), ("secondary", self.secondary)):
            sizes[name] += 0 if points.norms is None else points.norms.nbytes
        return sizes

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of both stores and of the graph, a vector."""
        return sum(size for part, size in self.nbytes.items() if part != "shared") / len(self)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that the index holds, by name."""
        held = {f"projection.{name}": m for name, m in self.projection._asdict().items()}
        for name, points in (("primary", self.primary), ("secondary", self.secondary)):
            tensors = {f.name: getattr(points.stored, f.name) for f in fields(points.stored)}
            held |= {
                f"{name}.{key}": t.numpy() for key, t in tensors.items() if isinstance(t, Tensor)
            }
        return held | (
            {} if self.graph is None else {"graph.neighbours": self.graph.neighbours.numpy()}
        )

    def save(self, path: str | Path) -> None:
        """Write the index to one file, whole or not at all."""
        self.need_vectors()
        header = {
            "format": FORMAT,
            "config": self.config,
            "entry": None if self.graph is None else self.graph.entry,
        }
        part = Path(f"{path}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, header=np.array(json.dumps(header)), **self.arrays())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> LeanVecIndex:
        """Read what `save` wrote. A truncated or foreign file is a `ValueError`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}, this reads {FORMAT!r}")
                return cls(**header["config"]).restore(
                    header["entry"], {name: file[name] for name in file.files if name != "header"}
                )
        except FileNotFoundError:
            raise
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            EOFError,
            OSError,
            zipfile.BadZipFile,
        ) as error:
            raise ValueError(
                f"{Path(path).name} can't be read as a LeanVec index (truncated, or another format?): {error}"
            ) from error

    def restore(self, entry: int | None, arrays: dict[str, np.ndarray]) -> LeanVecIndex:
        """Take over what `arrays` gave, after checking that it fits together."""
        self.projection = Projection(*(arrays[f"projection.{name}"] for name in Projection._fields))
        n, c = (
            len(arrays["secondary.values" if "secondary.values" in arrays else "secondary.codes"]),
            self.config,
        )
        if not n:
            raise ValueError("it holds no vectors")
        template = LeanVecIndex(**c | {"degree": 0, "method": "pca"}).build(
            np.zeros((1, self.dim), np.float32)
        )
        for name, array in template.arrays().items():
            shape = (n, *array.shape[1:]) if per_vector(name) else array.shape
            if arrays[name].shape != shape or arrays[name].dtype != array.dtype:
                raise ValueError(
                    f"{name} is {arrays[name].dtype} {arrays[name].shape}, wanted {array.dtype} {shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds values that are not finite")
        for part in ("primary", "secondary"):
            points = getattr(template, part)
            given = {
                f.name: torch.from_numpy(arrays[f"{part}.{f.name}"])
                for f in fields(points.stored)
                if f"{part}.{f.name}" in arrays
            }
            setattr(self, part, Points(replace(points.stored, **given), c["metric"]))
        if c["degree"]:
            neighbours = arrays["graph.neighbours"]
            fits = (
                neighbours.shape == (n, c["degree"])
                and neighbours.dtype == np.int32
                and neighbours.min() >= -1
                and neighbours.max() < n
            )
            if not fits or entry not in range(n):
                raise ValueError(
                    f"the graph, {neighbours.dtype} {neighbours.shape} from {entry!r}, does not fit {n} vectors"
                )
            self.graph = Vamana(torch.from_numpy(neighbours), entry, c["alpha"], c["build_window"])
        return self


def per_vector(name: str) -> bool:
    """Whether the array of that name has a row for each vector."""
    return not name.startswith("projection.") and not name.endswith(".mean")


def checked(vectors, name: str, dim: int | None = None, least: int = 1) -> np.ndarray:
    """`vectors` as contiguous float32 (n, D), or a `ValueError` that says what is wrong with them."""
    try:
        x = np.ascontiguousarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers of shape (n, D), got {type(vectors).__name__}: {error}"
        ) from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, D), got {x.shape}")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name} have dimension {x.shape[1]}, the index's is {dim}")
    if len(x) < least:
        raise ValueError(f"{name} holds no vectors")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name}[{int(np.argmin(np.isfinite(x).all(1)))}] holds NaN or infinity (as float32)"
        )
    return x
