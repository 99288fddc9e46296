"""Every form of cascaded_group_attention against the loops in float64: values, gradients, layouts, refusals, and the model's own heads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from refimpl.kernels.cascaded_group_attention import cascaded_group_attention, cost, example
from refimpl.papers.efficientvit import CascadedGroupAttention
from shared.kernels import apart, as_double, needs_triton

quick = settings(
    deadline=None, max_examples=8, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
# windows, side, heads, key_dim, head width, K
shapes = st.tuples(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5, 7]),
)


def problem(windows, side, heads, key_dim, c, kernel, dtype=torch.float64, seed=0):
    """Weights that keep the variance, as a folded norm leaves them: otherwise logits grow from head to head until a softmax is a coin toss."""
    g = torch.Generator().manual_seed(seed)
    shape = {
        "x": (windows, side * side, heads * c),
        "qkv_weight": (heads, 2 * key_dim + c, c),
        "qkv_bias": (heads, 2 * key_dim + c),
        "dw_weight": (heads, key_dim, kernel, kernel),
        "dw_bias": (heads, key_dim),
        "bias_table": (heads, side * side),
    }
    drawn = {name: torch.randn(s, generator=g, dtype=torch.float64) for name, s in shape.items()}
    drawn["qkv_weight"] /= c**0.5
    drawn["dw_weight"] /= kernel
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


@quick
@given(shapes)
@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_equals_the_loops_in_float64(backend, drawn):
    needs_triton(backend)
    arguments = problem(*drawn)
    truth = cascaded_group_attention(**arguments, backend="naive")
    torch.testing.assert_close(
        cascaded_group_attention(**arguments, backend=backend), truth, rtol=1e-11, atol=1e-11
    )


@settings(quick, max_examples=5)
@given(shapes)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("numpy", torch.float32), ("triton", torch.float32), ("triton", torch.float16)],
)
def test_error_is_at_most_twice_the_composed_form_s(backend, dtype, drawn):
    """Floor for tiny shapes, where the composed form may be exact: two roundings of the output."""
    needs_triton(backend)
    arguments = problem(*drawn, dtype=dtype)
    truth = cascaded_group_attention(**as_double(arguments), backend="numpy")
    yardstick = apart(cascaded_group_attention(**arguments, backend="torch"), truth)
    result = cascaded_group_attention(**arguments, backend=backend)
    assert result.dtype == dtype
    assert apart(result, truth) <= max(
        2 * yardstick, 2 * torch.finfo(dtype).eps * float(truth.norm())
    )


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_a_full_window_of_the_smallest_model(backend):
    needs_triton(backend)
    arguments = problem(1, 7, 2, 16, 16, 5, torch.float32)
    truth = cascaded_group_attention(**as_double(arguments), backend="torch")
    assert apart(cascaded_group_attention(**arguments, backend=backend), truth) <= 1e-5 * float(
        truth.norm()
    )


def test_gradients():
    arguments = problem(2, 2, 2, 2, 3, 3)
    leaves = [t.requires_grad_() for t in arguments.values()]
    assert torch.autograd.gradcheck(lambda *a: cascaded_group_attention(*a, backend="auto"), leaves)


def test_gradients_in_float32_are_close_to_those_in_float64():
    def gradients(arguments):
        leaves = [t.detach().clone().requires_grad_() for t in arguments.values()]
        return torch.autograd.grad(cascaded_group_attention(*leaves).square().sum(), leaves)

    arguments = problem(2, 3, 3, 4, 5, 3, torch.float32)
    for name, ours, truth in zip(
        arguments, gradients(arguments), gradients(as_double(arguments)), strict=True
    ):
        assert apart(ours, truth) <= 1e-4 * float(truth.norm()), name


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_non_contiguous_and_empty(backend):
    needs_triton(backend)
    arguments = problem(2, 3, 2, 4, 3, 3, torch.float32)
    wanted = cascaded_group_attention(**arguments, backend="torch")
    spread = {name: torch.stack([t, t + 1], -1)[..., 0] for name, t in arguments.items()}
    assert not spread["x"].is_contiguous()
    torch.testing.assert_close(
        cascaded_group_attention(**spread, backend=backend), wanted, rtol=1e-4, atol=1e-5
    )
    assert cascaded_group_attention(
        **arguments | {"x": arguments["x"][:0]}, backend=backend
    ).shape == (0, 9, 6)


def from_model(model: CascadedGroupAttention) -> dict:
    """The kernel's weights out of the model: norms folded, smaller query kernels centred in zeros."""
    largest = max(dw.conv.kernel_size[0] for dw in model.query_convs)
    dws = [dw.fuse() for dw in model.query_convs]
    pads = [(largest - dw.kernel_size[0]) // 2 for dw in dws]
    return {
        "qkv_weight": torch.stack([qkv.fuse().weight.flatten(1) for qkv in model.qkv_projs]),
        "qkv_bias": torch.stack([qkv.fuse().bias for qkv in model.qkv_projs]),
        "dw_weight": torch.stack(
            [
                nn.functional.pad(dw.weight[:, 0], (p, p, p, p))
                for dw, p in zip(dws, pads, strict=True)
            ]
        ),
        "dw_bias": torch.stack([dw.bias for dw in dws]),
        "bias_table": model.attention_biases,
    }


def test_equals_the_model_s_heads():
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
        ({"x": torch.zeros(2, 8, 6)}, r"x must be \(windows, side², channels\)"),
        ({"x": torch.zeros(9, 6)}, "x must be"),
        ({"x": torch.zeros(2, 9, 7)}, "don't divide the 7 channels"),
        ({"dw_weight": torch.zeros(2, 4, 4, 4)}, "K odd"),
        ({"qkv_weight": torch.zeros(2, 10, 3)}, r"qkv_weight is \(2, 10, 3\), wanted \(2, 11, 3\)"),
        ({"qkv_bias": torch.zeros(2, 12)}, "qkv_bias"),
        ({"dw_bias": torch.zeros(3, 4)}, "dw_bias"),
        ({"bias_table": torch.zeros(2, 8)}, "bias_table"),
        ({"bias_table": torch.zeros(2, 9, dtype=torch.float64)}, "bias_table is torch.float64"),
        ({"backend": "cuda"}, "backend='cuda' is not one of"),
    ],
)
def test_refusals_give_their_reason(change, words):
    with pytest.raises(ValueError, match=words):
        cascaded_group_attention(**problem(2, 3, 2, 4, 3, 3, torch.float32) | change)


def test_triton_refuses_what_it_cannot_do():
    needs_triton()
    with pytest.raises(ValueError, match="no backward"):
        cascaded_group_attention(
            **{k: t.requires_grad_() for k, t in problem(1, 2, 1, 2, 2, 1, torch.float32).items()},
            backend="triton",
        )
    with pytest.raises(ValueError, match="keeps a window on chip"):
        cascaded_group_attention(**problem(1, 17, 1, 2, 2, 1, torch.float32), backend="triton")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="interpreter"):
            cascaded_group_attention(**problem(1, 2, 1, 2, 2, 1, torch.bfloat16), backend="triton")
    with pytest.raises(ValueError, match="size='huge'"):
        example("huge")
