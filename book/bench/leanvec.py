"""Measure vector search: our LeanVec index beside exact search in NumPy, faiss and Intel's SVS.

    python book/bench/leanvec.py [--vectors 100000] [--rounds 5] [--no-graph]

Writes `book/results/cpu/leanvec.json` after every round. 100,000 unit vectors of 384 dimensions
(1,000 clusters of intrinsic dimension 48, and noise), 2,000 held-out queries, inner product, one
thread, all indexes in turns. For an index with a knob: the smallest settings that reach a recall@10
of 0.90 and 0.95. The peers (extra `peers`) are left out where they can't be imported. Building our
graph takes minutes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import torch
from tqdm import tqdm

from refimpl.lab import measure
from refimpl.papers.leanvec import LeanVecIndex

ROOT = Path(__file__).resolve().parents[2]
K, DIMS, DEGREE = 10, 96, 32
KNOBS = (10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)


def clustered(
    n: int, m: int, dim: int = 384, clusters: int = 1000, intrinsic: int = 48, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, dim) and queries (m, dim) of unit length, float32.

    Points around cluster centres in a subspace, and noise in all of the space.
    """
    g = np.random.default_rng(seed)
    basis = g.standard_normal((intrinsic, dim)) / np.sqrt(intrinsic)
    centres = g.standard_normal((clusters, intrinsic))

    def draw(count: int) -> np.ndarray:
        inside = centres[g.integers(clusters, size=count)] + 0.5 * g.standard_normal(
            (count, intrinsic)
        )
        x = inside @ basis + 0.1 * g.standard_normal((count, dim))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return draw(n), draw(m)


def exact_numpy(X: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Ids (m, K) by inner product: a matrix product and a partial sort of 500 queries at a time."""
    found = []
    for start in range(0, len(Q), 500):
        scores = Q[start : start + 500] @ X.T
        found.append(np.argpartition(scores, -K, axis=1)[:, -K:])
    return np.concatenate(found)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found[:, :, None] == truth[:, None]).any(1).mean())


def timed(build):
    start = time.perf_counter()
    return build(), time.perf_counter() - start


def ours(X: np.ndarray, graph: bool):
    """Name, build seconds, bytes per vector, and search(queries, knob) of our index.

    Scanning, and (where built) walking the graph.
    """
    index, seconds = timed(lambda: LeanVecIndex(DIMS, max_degree=0).build(X))
    yield (
        f"refimpl LeanVec {DIMS}, scan",
        seconds,
        index.bytes_per_vector,
        lambda Q, knob: index.search(Q, K, search_window=knob)[0],
    )
    if graph:
        walk, seconds = timed(
            lambda: LeanVecIndex(DIMS, max_degree=DEGREE).build(
                X, progress=lambda b: tqdm(b, desc="our graph", unit="batch")
            )
        )
        yield (
            f"refimpl LeanVec {DIMS}, graph",
            seconds,
            walk.bytes_per_vector,
            lambda Q, knob: walk.search(Q, K, search_window=knob)[0],
        )


def of_faiss(X: np.ndarray):
    import faiss

    faiss.omp_set_num_threads(1)
    for name, knob_name in (
        ("Flat", None),
        (f"HNSW{DEGREE}", "efSearch"),
        (f"HNSW{DEGREE}_SQ8", "efSearch"),
    ):
        index = faiss.index_factory(X.shape[1], name, faiss.METRIC_INNER_PRODUCT)

        def build(index=index):
            index.train(X)
            index.add(X)

        _, seconds = timed(build)

        def search(Q, knob, index=index, knob_name=knob_name):
            if knob_name:
                faiss.ParameterSpace().set_index_parameter(index, knob_name, knob)
            return index.search(Q, K)[1]

        yield (
            f"faiss {name}",
            seconds,
            len(faiss.serialize_index(index)) / len(X),
            search if knob_name else lambda Q, _, search=search: search(Q, None),
        )


def svs_compresses() -> bool:
    """Whether SVS's LVQ and LeanVec run here: on other than Intel's processors they exit."""
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def of_svs(X: np.ndarray):
    import svs

    parameters = svs.VamanaBuildParameters(graph_max_degree=DEGREE, window_size=64, alpha=0.95)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "vectors.fvecs")
        svs.write_vecs(X, path)
        loader = svs.VectorDataLoader(path, svs.DataType.float32, dims=X.shape[1])
        sources = {"Vamana float32": (X, 4 * X.shape[1])}
        if svs_compresses():
            kind = svs.LeanVecKind.lvq8
            sources["Vamana LVQ8"] = (svs.LVQLoader(loader, primary=8), X.shape[1] + 8)
            lean = svs.LeanVecLoader(loader, DIMS, primary_kind=kind, secondary_kind=kind)
            sources[f"Vamana LeanVec {DIMS}"] = (lean, DIMS + X.shape[1] + 16)
        for name, (source, size) in sources.items():
            index, seconds = timed(
                lambda source=source: svs.Vamana.build(
                    parameters, source, svs.DistanceType.MIP, num_threads=1
                )
            )

            def search(Q, knob, index=index):
                index.search_window_size = knob
                return index.search(Q, K)[0]

            # bytes of codes, constants and edges, computed
            yield f"SVS {name}", seconds, size + 4 * DEGREE, search


def settings_that_reach(name: str, seconds: float, size: float, search, Q, truth) -> list[dict]:
    """A row for the smallest knob that reaches each goal of recall; one row where they agree."""
    rows = []
    goals = [0.90, 0.95]
    for knob in KNOBS:
        fraction = recall(search(Q, knob), truth)
        if goals and fraction >= goals[0]:
            row = {"index": name, "knob": knob, "recall": fraction, "build_seconds": seconds}
            rows.append(row | {"bytes": size, "search": functools.partial(search, Q, knob)})
            goals = [goal for goal in goals if fraction < goal]
        if not goals:
            break
    return rows


def measured(rows: list[dict], seconds: list[list[float]], queries: int) -> list[dict]:
    """The rows with their rates; ratios are those of one round, NumPy's time by the index's own."""
    found = []
    for row, times in zip(rows, seconds, strict=True):
        ratios = [numpy / own for numpy, own in zip(seconds[0], times, strict=True)]
        shown = {name: value for name, value in row.items() if name != "search"}
        shown["qps"] = queries / statistics.median(times)
        shown["ratio_to_numpy"] = statistics.median(ratios)
        shown["low"] = min(ratios)
        shown["high"] = max(ratios)
        found.append(shown)
    return found


def versions() -> dict[str, str]:
    modules = {"numpy": "numpy", "torch": "torch", "faiss-cpu": "faiss", "scalable-vs": "svs"}
    there = [package for package, module in modules.items() if importlib.util.find_spec(module)]
    return {package: importlib.metadata.version(package) for package in there}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    output = ROOT / "book" / "results" / "cpu" / "leanvec.json"
    parser.add_argument("--vectors", type=int, default=100_000, metavar="N")
    parser.add_argument("--queries", type=int, default=2_000, metavar="M", help="in one batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in turns")
    parser.add_argument(
        "--no-graph", action="store_true", help="leave our graph out: it takes minutes to build"
    )
    parser.add_argument("--output", type=Path, default=output, metavar="FILE")
    arguments = parser.parse_args()
    part = Path(f"{arguments.output}.part")
    try:  # before minutes of work
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("", encoding="utf-8")
        part.unlink()
    except OSError as error:
        parser.error(f"results can't be written: {error}")
    torch.set_num_threads(1)
    X, Q = clustered(arguments.vectors, arguments.queries)
    truth = exact_numpy(X, Q)

    sources = [ours(X, not arguments.no_graph)]
    sources += [of_faiss(X)] if importlib.util.find_spec("faiss") else []
    sources += [of_svs(X)] if importlib.util.find_spec("svs") else []
    exact = {"index": "NumPy, exact", "knob": None, "recall": 1.0, "build_seconds": 0.0}
    rows = [exact | {"bytes": 4.0 * X.shape[1], "search": functools.partial(exact_numpy, X, Q)}]
    for name, seconds, size, search in itertools.chain(*sources):
        rows += settings_that_reach(name, seconds, size, search, Q, truth)
        print(f"{name}: built in {seconds:.1f} s, {size:.0f} bytes per vector")

    result = {
        "machine": measure.machine() | {"threads": 1},
        "versions": versions(),
        "vectors": len(X),
        "dim": X.shape[1],
        "queries": len(Q),
        "k": K,
    }
    if importlib.util.find_spec("svs") and not svs_compresses():
        result["left_out"] = "LVQ and LeanVec of scalable-vs run on Intel processors only"
    seconds = [[] for _ in rows]
    for turn in tqdm(range(arguments.rounds), unit="round", desc="in turns"):
        for i in range(len(rows))[:: 1 if turn % 2 == 0 else -1]:
            seconds[i].append(timed(rows[i]["search"])[1])
        result["rows"] = measured(rows, seconds, len(Q))
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(part, arguments.output)  # after each round: what is measured is not lost
    for row in result["rows"]:
        rate = f"{row['qps']:>8,.0f} queries/s {row['ratio_to_numpy']:>6.1f}x"
        setting = f"{row['index']:<28} {row['knob'] or '':>4}"
        print(f"{setting} recall {row['recall']:.3f} {rate} {row['bytes']:>6.0f} bytes")
    print(f"-> {arguments.output}")


if __name__ == "__main__":
    main()
