"""What is this operation's own: the summed weights, the decoder's node, its cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.upsample_concat_conv import by_parity, cost, example, upsample_concat_conv
from refimpl.lab import measure
from refimpl.papers.building_unetpp import Node
from shared import models
from shared.kernels import enlarge_join_convolve, needs_triton


def test_summed_weights_of_a_constant_kernel():
    """Of nine ones, an even row and column see 1, 2 / 2, 4 pixels, the odd ones mirrored."""
    summed = by_parity(torch.ones(1, 1, 3, 3)).squeeze(1).tolist()
    assert summed == [[[1, 2], [2, 4]], [[2, 1], [4, 2]], [[2, 4], [1, 2]], [[4, 2], [2, 1]]]


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_one_weight_at_a_time(backend):
    """Every tap of the kernel, on maps where no two pixels are alike, at the border too."""
    needs_triton(backend)
    below = torch.arange(6.0).view(1, 1, 2, 3) + 1
    beside = torch.arange(24.0).view(1, 1, 4, 6) + 100
    each = torch.eye(18).view(18, 2, 3, 3)  # output k has its k-th weight alone
    arguments = below, beside, each, torch.zeros(18)
    found = upsample_concat_conv(*arguments, backend=backend)
    assert torch.equal(found, enlarge_join_convolve(*arguments))


def test_is_what_a_node_s_first_convolution_computes():
    torch.manual_seed(0)
    node = models.lively(Node(3, 4, 4))
    below, *left = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 8, 10), torch.randn(2, 2, 8, 10)
    conv = node.conv1.fuse()
    with torch.inference_mode():
        found = upsample_concat_conv(below, torch.cat(left, 1), conv.weight, conv.bias)
        wanted = node(below, *left)
        assert models.error(F.relu(node.conv2(F.relu(found))), wanted) < 1e-5


def test_cost_is_what_is_multiplied():
    """4 products for 9 where the map is enlarged: the counter sees the ring of zeros, too."""
    arguments = example("large")
    below, beside, weight, _ = arguments.values()
    plain = measure.macs(lambda: enlarge_join_convolve(**arguments))
    channels, more = below.shape[1], beside.shape[1]
    share = (4 * channels + 9 * more) / (9 * (channels + more))
    assert cost(**arguments).flops == pytest.approx(2 * plain * share)
    counted = measure.macs(lambda: upsample_concat_conv(**arguments))
    ring = (33 / 32) ** 2
    wanted = plain * (4 * channels * ring + 9 * more) / (9 * (channels + more))
    assert counted == pytest.approx(wanted)
    assert len(weight) * cost(**arguments).bytes > 0


SHAPES = {
    "below": torch.randn(2, 3, 4, 5),
    "beside": torch.randn(2, 2, 8, 10),
    "weight": torch.randn(4, 5, 3, 3),
    "bias": torch.randn(4),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beside": torch.randn(2, 2, 8, 9)}, "beside is 8×9 pixels, it must be twice as large"),
        ({"beside": torch.randn(1, 2, 8, 10)}, "beside must be (batch, more, rows, columns)"),
        ({"weight": torch.randn(4, 6, 3, 3)}, "weight takes 6 channels, below and beside have 3"),
        ({"weight": torch.randn(4, 5, 5, 5)}, "weight must be (outputs, inputs, 3, 3)"),
        ({"bias": torch.randn(5)}, "bias must be (outputs,)"),
        ({"bias": torch.randn(4).double()}, "bias is torch.float64, below is torch.float32"),
        ({"below": torch.randn(2, 0, 4, 5)}, "channels=0 must be at least 1"),
        ({"below": torch.ones(2, 3, 4, 5, dtype=torch.int64)}, "below must be a floating-point"),
    ],
)
def test_bad_input_is_named(change, words):
    models.assert_refused(lambda: upsample_concat_conv(**SHAPES | change), words)
