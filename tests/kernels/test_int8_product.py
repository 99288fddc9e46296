"""What is the integer product's own: exact sums, zero points, costs, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.int8_product import MOST_INPUTS, cost, example, int8_product
from shared.kernels import needs_triton, problem

OP = "int8_product"
backends = pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])


@backends
def test_sums_are_exact_whole_numbers(backend):
    """Scales of 1: what float32 could not add one by one comes out to the last unit."""
    needs_triton(backend)
    codes = torch.full((1, 1300), 127, dtype=torch.int8)
    codes[0, -1] = 126
    weight = torch.full((2, 1300), 127, dtype=torch.int8)
    weight[1] = -128
    one = torch.tensor(1.0, dtype=torch.float64)
    y = int8_product(codes, weight, one, torch.ones(2).double(), backend=backend)
    assert y.tolist() == [[1299 * 127**2 + 126 * 127, -128 * (1299 * 127 + 126)]]


@backends
def test_a_zero_point_is_taken_from_every_code(backend):
    needs_triton(backend)
    arguments = problem(OP, zero_point=-128)
    wanted = int8_product(**arguments, backend=backend)
    codes = arguments["codes"].double() + 128
    x = codes * arguments["scale"]
    weight = arguments["weight"].double() * arguments["weight_scale"][:, None]
    bias = arguments["bias"]
    found = x @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(found, wanted)


@backends
def test_no_output(backend):
    needs_triton(backend)
    arguments = problem(OP, has_bias=False)
    none = {name: arguments[name][:0] for name in ("weight", "weight_scale")}
    assert int8_product(**arguments | none, backend=backend).shape == (5, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": torch.ones(5, 32)}, "codes must be int8, got torch.float32"),
        ({"weight": torch.ones(12, 32, dtype=torch.uint8)}, "weight must be int8"),
        ({"scale": torch.ones(32)}, "scale must be"),
        ({"weight_scale": torch.ones(11)}, "weight_scale must be"),
        ({"weight_scale": torch.ones(12, dtype=torch.int32)}, "weight_scale must be a floating"),
        ({"zero_point": 128}, "zero_point=128 must be an integer from -128 to 127"),
        ({"zero_point": 0.5}, "zero_point=0.5"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        int8_product(**problem(OP, inputs=32, outputs=12, has_bias=False) | change)


def test_a_sum_that_could_leave_32_bits_is_refused():
    inputs = MOST_INPUTS + 1
    codes = torch.ones(1, inputs, dtype=torch.int8)
    with pytest.raises(ValueError, match="codes have 65,537 inputs"):
        int8_product(codes, codes, torch.tensor(1.0), torch.ones(1))


def test_cost_counts_a_byte_a_code():
    work = cost(**example("large"))
    assert work.flops == 2 * 64 * 1024 * 1024
    assert work.bytes == 64 * 1024 + 1024 * 1024 + 4 * (2 * 1024 + 1) + 4 * 64 * 1024
