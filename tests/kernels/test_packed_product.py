"""What is the packed product's own: words, every bit width, empty sides, costs, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.packed_product import cost, example, pack, packed_product, per_word, unpack
from refimpl.kernels.packed_product.composed import dequantised
from shared.kernels import needs_triton, problem

OP = "packed_product"
SMALL = {"batch": 3, "groups": 2, "group_size": 5, "outputs": 7, "bits": 3}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 70), st.integers(1, 4), st.integers(1, 8))
def test_packing_is_undone(k, n, bits):
    g = torch.Generator().manual_seed(k)
    codes = torch.randint(0, 2**bits, (k, n), generator=g)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (-(-k // per_word(bits)), n)
    assert torch.equal(unpack(words, k, bits).long(), codes)


def test_a_word_bit_by_bit():
    """Ten codes of 3 bits, the first lowest; the two highest bits stay empty."""
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7])[:, None]
    first, second = pack(codes, 3)[:, 0].tolist()
    digits = "010_001_000_111_110_101_100_011_010_001"
    assert first == int(digits.replace("_", ""), 2)
    assert second == 7


def test_the_highest_code_makes_the_word_negative():
    words = pack(torch.full((8, 1), 15), 4)
    assert words.tolist() == [[-1]]
    assert words.numpy().view(np.uint32).tolist() == [[2**32 - 1]]
    assert unpack(words, 8, 4).flatten().tolist() == [15] * 8


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("backend", ["naive", "numpy", "triton"])
def test_every_width(backend, bits):
    needs_triton(backend)
    arguments = problem(OP, **SMALL | {"bits": bits, "group_size": 11})
    wanted = packed_product(**arguments, backend="torch")
    torch.testing.assert_close(packed_product(**arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_no_output(backend):
    needs_triton(backend)
    arguments = problem(OP, **SMALL)
    none = {name: arguments[name][:, :0] for name in ("qweight", "qzeros", "scales")}
    assert packed_product(**arguments | none, backend=backend).shape == (3, 0)


def test_many_rows_take_larger_blocks():
    needs_triton()
    arguments = problem(OP, **SMALL | {"batch": 70, "group_size": 41, "outputs": 40})
    torch.testing.assert_close(
        packed_product(**arguments, backend="triton"), packed_product(**arguments, backend="torch")
    )


def test_it_is_the_product_with_the_dequantised_matrix():
    arguments = problem(OP, **SMALL)
    x = arguments.pop("x")
    weight = dequantised(**arguments, k=x.shape[1])
    torch.testing.assert_close(packed_product(x, **arguments), x @ weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits=9 must be at most 8"),
        ({"bits": 0}, "bits=0 must be an integer of at least 1"),
        ({"bits": 2.0}, "bits=2.0 must be an integer"),
        ({"x": torch.ones(3, 10, dtype=torch.int64)}, "x must be a floating-point"),
        ({"x": torch.ones(10)}, "x must be"),
        ({"x": torch.ones(3, 11)}, "qweight must be"),
        ({"qweight": torch.zeros(1, 7)}, "qweight must be int32"),
        ({"qzeros": torch.zeros(2, 2, dtype=torch.int32)}, r"qzeros must be \(2, 1\)"),
        ({"bits": 8}, "qweight must be"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        packed_product(**problem(OP, dtype=torch.float32, **SMALL) | change)


def test_groups_must_divide_the_inputs():
    arguments = problem(OP, dtype=torch.float32, **SMALL)
    three = {"qzeros": torch.zeros(3, 1, dtype=torch.int32), "scales": torch.ones(3, 7)}
    with pytest.raises(ValueError, match="scales has 3 groups, which must divide the 10 inputs"):
        packed_product(**arguments | three)


@pytest.mark.parametrize(
    ("codes", "bits", "words"),
    [
        (torch.tensor([[4]]), 2, "codes run from 4 to 4, must lie between 0 and 3: bits=2"),
        (torch.tensor([[-1]]), 2, "codes run from -1"),
        (torch.ones(2, 2), 2, "codes must be integers"),
        (torch.ones(2, dtype=torch.int64), 2, "of 1 dimensions"),
        (torch.tensor([[1]]), 12, "bits=12"),
    ],
)
def test_codes_without_room_are_refused(codes, bits, words):
    with pytest.raises(ValueError, match=words):
        pack(codes, bits)


def test_cost_counts_packed_bytes():
    work = cost(**example("large"))
    assert work.flops == 2 * 5 * 1024 * 1024
    codes, zeros, scales = 1024 * 1024 // 4, 16 * 1024 // 4, 4 * 16 * 1024
    assert work.bytes == codes + zeros + scales + 4 * 2 * 4 * 1024
