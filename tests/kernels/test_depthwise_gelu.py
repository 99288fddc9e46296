"""What is the depthwise kernel's own: the model's context, borders, blocks, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.depthwise_gelu import cost, depthwise_gelu, example
from refimpl.papers.efficientmod import ContextLayer
from shared.kernels import needs_triton, problem


def test_is_the_convolution_inside_a_context_layer():
    layer = ContextLayer(6)
    x = torch.randn(2, 5, 9, 6)
    inside = depthwise_gelu(layer.proj_in(x), layer.conv.weight[:, 0], layer.conv.bias)
    torch.testing.assert_close(layer.proj_out(inside), layer(x))


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_a_kernel_larger_than_the_map_sees_zeros_outside(backend):
    needs_triton(backend)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    weight = torch.randn(4, 7, 7, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    padded = F.pad(x.permute(0, 3, 1, 2), [3, 3, 3, 3])
    wanted = F.gelu(F.conv2d(padded, weight[:, None], bias, groups=4)).permute(0, 2, 3, 1)
    torch.testing.assert_close(depthwise_gelu(x, weight, bias, backend=backend), wanted)


def test_more_pixels_and_channels_than_a_block_of_the_triton_kernel():
    needs_triton()
    arguments = problem(
        "depthwise_gelu", dtype=torch.float32, batch=3, height=7, width=5, channels=70
    )
    torch.testing.assert_close(
        depthwise_gelu(**arguments, backend="triton"), depthwise_gelu(**arguments)
    )


def test_triton_refuses_gradients_and_auto_gives_them():
    needs_triton()
    arguments = problem("depthwise_gelu")
    arguments["x"].requires_grad_()
    depthwise_gelu(**arguments).sum().backward()
    assert arguments["x"].grad.any()
    with pytest.raises(ValueError, match="no backward pass"):
        depthwise_gelu(**arguments, backend="triton")


def test_cost_of_the_large_example():
    assert cost(**example("large")).intensity == pytest.approx(13, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 3, 4)}, "x must be"),
        ({"weight": torch.randn(5, 3, 3)}, "weight must be"),
        ({"weight": torch.randn(4, 3, 5)}, "weight must be"),
        ({"weight": torch.randn(4, 2, 2)}, "k odd"),
        ({"bias": torch.randn(3)}, "bias must be"),
        ({"x": torch.randn(2, 0, 3, 4)}, "x must have pixels"),
        ({"bias": torch.randn(4).double()}, "bias is torch.float64"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.randn(2, 3, 3, 4), "weight": torch.randn(4, 3, 3)}
    arguments["bias"] = torch.randn(4)
    with pytest.raises(ValueError, match=message):
        depthwise_gelu(**arguments | change)
