"""What is the gate's own: the model's product, the narrow block, less traffic, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.modulation_gate import cost, example, modulation_gate
from refimpl.lab import measure
from refimpl.papers.efficientmod import Modulation
from shared.kernels import needs_triton, problem


@pytest.mark.parametrize("ratio", [1, 6])
def test_is_the_product_inside_a_modulation(ratio):
    layer = Modulation(8, ratio)
    x = torch.randn(2, 5, 4, 8)
    value = layer.fc1(x).flatten(0, 2)
    gated = modulation_gate(value, layer.context_layer(x).flatten(0, 2))
    torch.testing.assert_close(layer.fc2(gated).view_as(x), layer(x))


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_one_tile_has_no_activation(backend):
    needs_triton(backend)
    arguments = problem("modulation_gate", ratio=1)
    wanted = arguments["value"] * arguments["context"]
    torch.testing.assert_close(modulation_gate(**arguments, backend=backend), wanted)


def test_more_pixels_and_channels_than_a_block_of_the_triton_kernel():
    needs_triton()
    arguments = problem("modulation_gate", dtype=torch.float32, batch=50, channels=300, ratio=2)
    torch.testing.assert_close(
        modulation_gate(**arguments, backend="triton"), modulation_gate(**arguments)
    )


def test_traffic_of_the_operators_is_that_of_the_module_s_text():
    """(6 r + 1) d numbers per pixel as three operators, (2 r + 1) d in one pass."""
    arguments = example("large")
    value, context = arguments.values()
    pixels, hidden = value.shape
    d = context.shape[1]
    r = hidden // d
    as_operators = measure.traffic(lambda: F.gelu(value) * context.repeat(1, r))
    # the counter sees the repetition write its r·d numbers through an expanded view: not the read
    assert as_operators == pytest.approx(4 * pixels * (6 * r + 1) * d, rel=0.2)
    assert cost(**arguments).bytes == 4 * pixels * (2 * r + 1) * d
    assert cost(**arguments).intensity < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.randn(3)}, "value must be"),
        ({"context": torch.randn(4, 4)}, "context must be"),
        ({"context": torch.randn(3, 5)}, r"value.shape\[1\]=8 must be a positive multiple of 5"),
        ({"context": torch.randn(3, 0)}, "at least one channel"),
        ({"value": torch.randn(3, 0)}, r"value.shape\[1\]=0"),
        ({"context": torch.randn(3, 4).double()}, "context is torch.float64"),
    ],
)
def test_bad_input(change, message):
    arguments = {"value": torch.randn(3, 8), "context": torch.randn(3, 4)} | change
    with pytest.raises(ValueError, match=message):
        modulation_gate(**arguments)
