"""What is the hidden state mixer's own: A cancels, the paper's heart, refusals."""

from __future__ import annotations

import re

import pytest
import torch

from refimpl.kernels.hsm_ssd import hsm_ssd
from refimpl.papers.efficientvim import HSMSSD
from shared.kernels import distance, needs_triton, problem

SMALL = {"batch": 2, "channels": 5, "states": 4, "length": 21, "inner": 6}
SMALL |= {"spread": 1.0, "with_A": True}


def test_A_cancels():
    arguments = problem("hsm_ssd", **SMALL)
    for change in (None, torch.randn(4, dtype=torch.float64) * 10):
        torch.testing.assert_close(
            hsm_ssd(**arguments | {"A": change}), hsm_ssd(**arguments), rtol=1e-12, atol=1e-12
        )
    A = arguments["A"].requires_grad_()
    assert torch.autograd.grad(hsm_ssd(**arguments)[0].square().sum(), A)[0].norm() < 1e-10


def test_equals_the_layer_of_the_paper():
    torch.manual_seed(0)
    layer = HSMSSD(12, 4).eval()
    x = torch.randn(2, 12, 5, 5)
    with torch.no_grad():
        B, C, dt = layer.dw(layer.bcdt(x)).flatten(2).chunk(3, 1)
        wanted, states = layer(x)
        y, h = hsm_ssd(x.flatten(2), dt, B, C, layer.A, layer.D, layer.hz, layer.out)
    torch.testing.assert_close(y.unflatten(2, (5, 5)), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(h, states, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_mixed_types_are_computed_in_the_widest(backend):
    needs_triton(backend)
    arguments = problem("hsm_ssd", dtype=torch.float32, **SMALL)
    arguments["x"] = arguments["x"].bfloat16()
    y, h = hsm_ssd(**arguments, backend=backend)
    wanted, states = hsm_ssd(**arguments | {"x": arguments["x"].float()}, backend=backend)
    assert y.dtype == h.dtype == torch.bfloat16
    assert distance(y, wanted) <= 2**-8 * float(wanted.norm())
    assert distance(h, states) <= 2**-8 * float(states.norm())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(5, 21)}, "x must be (batch, channels, length)"),
        ({"x": torch.ones(2, 5, 21, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"x": torch.randn(2, 0, 21)}, "out_weight must be"),
        ({"x": torch.randn(2, 5, 0)}, "dt must be"),
        ({"dt": torch.randn(2, 4, 20)}, "dt must be (batch, states, length) = (2, states, 21)"),
        ({"B": torch.randn(2, 3, 21)}, "B must be (batch, states, length) = (2, 4, 21)"),
        ({"C": torch.randn(2, 4, 20)}, "C must be (batch, states, length) = (2, 4, 21)"),
        ({"A": torch.randn(5)}, "A must be (states,) = (4,)"),
        ({"D": torch.randn(4)}, "D must be (1,)"),
        ({"hz_weight": torch.randn(11, 5)}, "hz_weight must be (12, channels) = (12, 5)"),
        ({"out_weight": torch.randn(4, 6)}, "out_weight must be (channels, inner) = (5, inner)"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        hsm_ssd(**problem("hsm_ssd", dtype=torch.float32, **SMALL) | change)


def test_no_token_is_refused():
    arguments = problem("hsm_ssd", **SMALL)
    empty = {name: arguments[name][..., :0] for name in ("x", "dt", "B", "C")}
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        hsm_ssd(**arguments | empty)
