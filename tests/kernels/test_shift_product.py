"""What is the shift product's own: codes, exactness, a shift layer, integers, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.bases.deepshift import ShiftLinear, fixed_point, shift_weight
from refimpl.kernels.shift_product import cost, encode, example, shift_product, weights
from shared.kernels import needs_triton, problem

OP = "shift_product"


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 4), st.sampled_from([torch.float16, torch.float64]))
def test_codes_are_the_weights_of_a_shift_layer(k, n, dtype):
    g = torch.Generator().manual_seed(k)
    shift = 20 * torch.rand(n, k, generator=g) - 17  # beyond both ends
    sign = 2 * torch.randn(n, k, generator=g)
    codes = encode(shift, sign)
    assert codes.dtype == torch.int32
    assert codes.shape == (-(-k // 6), n)
    assert torch.equal(weights(codes, k, dtype), shift_weight(shift, sign).T.to(dtype))


def test_a_word_bit_by_bit():
    """Six weights, the first lowest: 1, −1, 2^−14, −2^−14, 0, 1/2."""
    shift = torch.tensor([[0.0, 0, -14, -14, -3, -1]])
    sign = torch.tensor([[1.0, -1, 1, -1, 0, 1]])
    digits = "00001_01111_11110_01110_10000_00000"
    assert encode(shift, sign).item() == int(digits.replace("_", ""), 2)


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_it_is_the_shift_layer_on_fixed_point_numbers(backend):
    needs_triton(backend)
    torch.manual_seed(0)
    layer = ShiftLinear(20, 7)
    x = torch.randn(5, 20)
    codes = encode(layer.shift.detach(), layer.sign.detach())
    found = shift_product(fixed_point(x), codes, backend) + fixed_point(layer.bias)
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_one_weight_is_an_exact_shift(backend):
    """Down to the smallest numbers: no rounding where one weight alone is not zero."""
    needs_triton(backend)
    x = torch.tensor([[1.7, 3e30, -1e-20]]).T.repeat(1, 15)
    shift = -torch.arange(15.0)
    found = shift_product(x, encode(torch.diag(shift), torch.eye(15)), backend)
    assert torch.equal(found, torch.ldexp(x, shift.int()))


def test_shifts_of_integers_round_down_and_miss_by_less_than_a_unit_each():
    """The official integer operation, Σ ± (x >> e), against the product: a bias, as d6 says."""
    arguments = problem(OP, inputs=20)
    x = (arguments["x"] * 2**10).floor()
    codes = arguments["codes"]
    weight = weights(codes, 20, torch.float64)
    sign, exponent = weight.sign().long(), weight.abs().log2().neg()
    exponent = torch.where(weight == 0, 0, exponent).long()
    integers = (sign * (x.long()[:, :, None] >> exponent)).sum(1)
    exact = shift_product(x, codes)
    divided = x[:, :, None] / 2.0**exponent
    lost = (sign * (divided.floor() - divided)).sum(1)
    torch.testing.assert_close(integers - exact, lost)
    assert 0 < lost.abs().max() < 20


def test_numpy_shifts_each_input_once_and_multiplies_nothing(monkeypatch):
    arguments = problem(OP, dtype=torch.float64)
    wanted = shift_product(**arguments)
    seen = []
    ldexp = np.ldexp
    monkeypatch.setattr(np, "ldexp", lambda x, e: seen.append(e.min()) or ldexp(x, e))
    torch.testing.assert_close(shift_product(**arguments, backend="numpy"), wanted)
    assert len(seen) == arguments["x"].shape[1]
    assert min(seen) < 0


def test_many_rows_take_larger_blocks():
    needs_triton()
    arguments = problem(OP, batch=70, inputs=33, outputs=35)
    torch.testing.assert_close(
        shift_product(**arguments, backend="triton"), shift_product(**arguments, backend="torch")
    )


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 3), (4, 0)])
def test_empty_sides(backend, inputs, outputs):
    needs_triton(backend)
    codes = torch.zeros(-(-inputs // 6), outputs, dtype=torch.int32)
    found = shift_product(torch.ones(2, inputs), codes, backend)
    assert found.shape == (2, outputs)
    assert not found.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(5, 20, dtype=torch.int64)}, "x must be a floating-point"),
        ({"x": torch.ones(20)}, "x must be"),
        ({"x": torch.ones(5, 25)}, r"codes must be \(5, outputs\)"),
        ({"codes": torch.ones(4, 12)}, "codes must be int32"),
        ({"codes": torch.ones(4, dtype=torch.int32)}, "codes must be"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        shift_product(**problem(OP, dtype=torch.float32, inputs=20) | change)


def test_nan_is_no_exponent():
    with pytest.raises(ValueError, match="shift and sign must not hold NaN"):
        encode(torch.full((1, 1), float("nan")), torch.ones(1, 1))


def test_cost_counts_packed_bytes():
    work = cost(**example("large"))
    assert work.flops == 2 * 784 * 128 * 1024
    assert work.bytes == 4 * (784 * 128 + 22 * 1024 + 784 * 1024)
