"""What is the pool mixer's own: borders, the paper's block, its stencil, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.pool_mixer import pool_mixer
from refimpl.papers.efficientformer import pooling
from shared import models
from shared.kernels import needs_triton, problem

BACKENDS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_means_at_the_border_are_over_real_pixels(backend):
    """A constant map stays as it is, also in its corners and in maps of one row or column."""
    needs_triton(backend)
    for shape in ((1, 2, 5, 4), (2, 2, 1, 6), (1, 2, 3, 1), (1, 2, 1, 1)):
        x = torch.full(shape, 3.0)
        assert torch.allclose(pool_mixer(x, torch.tensor([0.7, -2.0]), backend), x, atol=1e-5)


def test_equals_the_mixer_of_the_paper():
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    scale = torch.randn(5, dtype=torch.float64)
    wanted = x + scale[:, None, None] * pooling(x)
    torch.testing.assert_close(pool_mixer(x, scale), wanted, rtol=1e-12, atol=1e-12)


def test_inside_it_is_one_depthwise_stencil():
    """Centre 1 − λ + λ/9, all others λ/9; at the border the means are over fewer pixels."""
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    scale = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)
    stencil = (scale / 9)[:, None, None, None].repeat(1, 1, 3, 3)
    stencil[:, 0, 1, 1] += 1 - scale
    found = F.conv2d(x, stencil, padding=1, groups=3)
    wanted = pool_mixer(x, scale)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])
    assert not torch.allclose(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_widest_type_computes(backend):
    needs_triton(backend)
    arguments = problem("pool_mixer", dtype=torch.float32)
    wanted = pool_mixer(**arguments, backend=backend)
    found = pool_mixer(arguments["x"].bfloat16(), arguments["scale"], backend)
    assert found.dtype == torch.bfloat16
    assert models.error(found.float(), wanted) < 2**-7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(4, 5, 6)}, "x must be (batch, channels, height, width)"),
        ({"x": torch.ones(1, 3, 4, 4, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"x": torch.randn(1, 3, 0, 4)}, "height=0 must be at least 1"),
        ({"scale": torch.randn(4)}, "scale must be (channels,) = (3,), got (4,)"),
        ({"scale": torch.randn(3, 1, 1)}, "scale must be (channels,)"),
    ],
)
def test_bad_input_is_named(change, words):
    arguments = {"x": torch.randn(1, 3, 4, 4), "scale": torch.randn(3)} | change
    models.assert_refused(lambda: pool_mixer(**arguments), words)
