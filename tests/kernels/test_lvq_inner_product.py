"""What is the LVQ product's own: packing, blocks, half-precision queries, costs, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.lvq_inner_product import cost, example, lvq_inner_product, pack, unpack, width
from shared.kernels import cast, decode_then_multiply, distance, needs_triton, problem

OP = "lvq_inner_product"
SMALL = {"lead": (), "batch": 4, "vectors": 5, "dims": 7, "bits": 8, "with_mean": True}


def test_more_vectors_than_a_block():
    arguments = problem(OP, **SMALL | {"vectors": 5000, "dims": 3, "bits": 4})
    for backend in ("torch", "numpy"):
        torch.testing.assert_close(
            lvq_inner_product(**arguments, backend=backend), decode_then_multiply(**arguments)
        )


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_no_vector_and_no_leading_dimension(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32, **SMALL)
    none = {name: arguments[name][:0] for name in ("codes", "scale", "bias")}
    assert lvq_inner_product(**arguments | none, backend=backend).shape == (4, 0)
    empty = problem(OP, dtype=torch.float32, **SMALL | {"lead": (0,), "batch": 0, "queries": 2})
    assert lvq_inner_product(**empty, backend=backend).shape == (0, 2, 5)


@pytest.mark.parametrize("bits", [4, 8])
def test_many_queries_take_larger_blocks(bits):
    needs_triton()
    arguments = problem(OP, **SMALL | {"batch": 70, "vectors": 70, "dims": 41, "bits": bits})
    torch.testing.assert_close(
        lvq_inner_product(**arguments, backend="triton"),
        lvq_inner_product(**arguments, backend="torch"),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_queries(backend, dtype):
    needs_triton(backend)
    sizes = SMALL | {"vectors": 30, "dims": 24}
    arguments = problem(OP, dtype=torch.float32, **sizes)
    arguments["queries"] = arguments["queries"].to(dtype)
    truth = lvq_inner_product(**cast(arguments, torch.float64), backend="naive")
    found = lvq_inner_product(**arguments, backend=backend)
    yardstick = decode_then_multiply(**cast(arguments, dtype))
    assert found.dtype == dtype
    assert distance(found, truth) <= 2 * distance(yardstick, truth)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(0, 30), st.integers(1, 8))
def test_packing_is_undone(d, bits):
    codes = np.random.default_rng(d).integers(0, 2**bits, (5, d)).astype(np.uint8)
    for values in (codes, torch.from_numpy(codes)):
        packed = pack(values, bits)
        assert packed.shape == (5, width(d, bits))
        assert (np.asarray(unpack(packed, d, bits)) == codes).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits=9 must be a whole number from 1 to 8"),
        ({"queries": torch.ones(4, 7, dtype=torch.int64)}, "queries must be a floating-point"),
        ({"codes": torch.zeros(5, 7)}, "codes must be uint8"),
        ({"codes": torch.zeros(5, 6, dtype=torch.uint8)}, r"\(vectors, 7\), got \(5, 6\)"),
        ({"bits": 4}, r"\(vectors, 4\), got \(5, 7\)"),
        ({"scale": torch.ones(4)}, "scale must be"),
        ({"bias": torch.ones(5, 1)}, "bias must be"),
        ({"mean": torch.ones(5)}, r"mean must be \(dims,\) = \(7,\), got \(5,\)"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        lvq_inner_product(**problem(OP, dtype=torch.float32, **SMALL) | change)


def test_cost_counts_a_byte_a_code():
    work = cost(**example("large"))
    assert work.flops == 64 * 20_000 * (2 * 96 + 3)
    assert work.bytes == 20_000 * (96 + 8) + 4 * (64 * 96 + 64 * 20_000)
