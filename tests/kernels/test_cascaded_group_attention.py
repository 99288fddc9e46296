"""What is the cascaded heads' own: real sizes, the paper's heart, costs, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refimpl.kernels.cascaded_group_attention import cascaded_group_attention, cost, example
from refimpl.papers.efficientvit import CascadedGroupAttention
from shared.kernels import cast, distance, needs_triton, problem

OP = "cascaded_group_attention"
SMALL = {"batch": 2, "side": 3, "heads": 2, "key_dim": 4, "width": 3, "kernel": 3}


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_a_full_window_of_the_smallest_model(backend):
    needs_triton(backend)
    sizes = {"batch": 1, "side": 7, "heads": 2, "key_dim": 16, "width": 16, "kernel": 5}
    arguments = problem(OP, dtype=torch.float32, **sizes)
    truth = cascaded_group_attention(**cast(arguments, torch.float64), backend="torch")
    found = cascaded_group_attention(**arguments, backend=backend)
    assert distance(found, truth) <= 1e-5 * float(truth.norm())


def test_a_window_larger_than_a_block_of_the_triton_kernel():
    needs_triton()
    sizes = {"batch": 1, "side": 9, "heads": 2, "key_dim": 3, "width": 18, "kernel": 3}
    arguments = problem(OP, **sizes)
    torch.testing.assert_close(
        cascaded_group_attention(**arguments, backend="triton"),
        cascaded_group_attention(**arguments, backend="torch"),
        rtol=1e-11,
        atol=1e-11,
    )


def test_gradients_in_float32_are_close_to_those_in_float64():
    def gradients(arguments):
        leaves = [t.detach().clone().requires_grad_() for t in arguments.values()]
        return torch.autograd.grad(cascaded_group_attention(*leaves).square().sum(), leaves)

    arguments = problem(OP, dtype=torch.float32, **SMALL)
    found = gradients(arguments)
    wanted = gradients(cast(arguments, torch.float64))
    for name, ours, truth in zip(arguments, found, wanted, strict=True):
        assert distance(ours, truth) <= 1e-4 * float(truth.norm()), name


def from_model(model: CascadedGroupAttention) -> dict:
    """The kernel's weights out of the model: norms folded, smaller kernels centred in zeros."""
    projections = [projection.fuse() for projection in model.qkv_projs]
    depthwise = [convolution.fuse() for convolution in model.query_convs]
    largest = max(convolution.kernel_size[0] for convolution in depthwise)
    padded = []
    for convolution in depthwise:
        side = (largest - convolution.kernel_size[0]) // 2
        padded.append(nn.functional.pad(convolution.weight[:, 0], (side, side, side, side)))
    return {
        "qkv_weight": torch.stack([projection.weight.flatten(1) for projection in projections]),
        "qkv_bias": torch.stack([projection.bias for projection in projections]),
        "dw_weight": torch.stack(padded),
        "dw_bias": torch.stack([convolution.bias for convolution in depthwise]),
        "bias_table": model.attention_biases,
    }


def test_equals_the_heads_of_the_paper():
    torch.manual_seed(0)
    model = CascadedGroupAttention(24, 4, 3, 5, (7, 5, 3)).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, std=0.1)
    nn.init.normal_(model.attention_biases)
    model.proj = nn.Identity()
    x = torch.randn(2, 24, 5, 5)
    with torch.no_grad():
        heads = cascaded_group_attention(x.flatten(2).transpose(1, 2), **from_model(model))
        torch.testing.assert_close(
            heads.relu().transpose(1, 2).unflatten(2, (5, 5)), model(x), rtol=1e-4, atol=1e-5
        )


def test_cost_counts_the_padded_depthwise_and_weights_once():
    small, large = (cost(**example(size)) for size in ("small", "large"))
    assert small.flops == 2 * (2 * 9 * 12 * 14 + 2 * 9 * 2 * 4 * 9 + 2 * 81 * 2 * 10 + 5 * 81 * 2)
    assert large.bytes == 4 * (2 * 256 * 49 * 128 + 4 * (64 * 32 + 64 + 16 * 49 + 16 + 49))
    assert round(large.intensity) == 41


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 8, 6)}, "x has 8 tokens a window, wanted side²"),
        ({"x": torch.zeros(9, 6)}, r"x must be \(windows, tokens, channels\)"),
        ({"x": torch.zeros(2, 9, 7)}, "don't divide the 7 channels"),
        ({"dw_weight": torch.zeros(2, 4, 4, 4)}, "K odd"),
        ({"qkv_weight": torch.zeros(2, 10, 3)}, r"\(2, 11, 3\), got \(2, 10, 3\)"),
        ({"qkv_bias": torch.zeros(2, 12)}, "qkv_bias"),
        ({"dw_bias": torch.zeros(3, 4)}, "dw_bias"),
        ({"bias_table": torch.zeros(2, 8)}, "bias_table"),
        ({"bias_table": torch.zeros(2, 9, dtype=torch.float64)}, "bias_table is torch.float64"),
    ],
)
def test_refusals_give_their_reason(change, words):
    with pytest.raises(ValueError, match=words):
        cascaded_group_attention(**problem(OP, dtype=torch.float32, **SMALL) | change)


def test_triton_refuses_what_it_cannot_do():
    needs_triton()
    arguments = problem(OP, dtype=torch.float32, **SMALL)
    leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
    with pytest.raises(ValueError, match="no backward"):
        cascaded_group_attention(**leaves, backend="triton")
    assert cascaded_group_attention(**leaves).requires_grad  # "auto" takes the form that can
    wide = problem(OP, dtype=torch.float32, **SMALL | {"heads": 1, "width": 129})
    with pytest.raises(ValueError, match="at most 128 channels"):
        cascaded_group_attention(**wide, backend="triton")
