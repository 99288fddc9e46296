"""Every form of the hidden-state-mixer layer against the loops in float64: values, gradients, layouts, refusals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.hsm_ssd import cost, example, hsm_ssd
from shared.kernels import apart, as_double, needs_triton

quick = settings(deadline=None, max_examples=10, derandomize=True)
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "channels": st.integers(1, 20),
        "states": st.integers(1, 19),
        "length": st.integers(1, 80),
        "inner": st.integers(1, 9),
        "spread": st.sampled_from([1.0, 50.0]),
        "with_A": st.booleans(),
    }
)
FORMS = ["numpy", "torch", "triton"]


def problem(
    batch=2,
    channels=5,
    states=4,
    length=21,
    inner=6,
    spread=1.0,
    with_A=True,
    dtype=torch.float64,
    seed=0,
):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    tokens = {"x": draw(batch, channels, length)} | {
        k: draw(batch, states, length) for k in ("dt", "B", "C")
    }
    tokens["dt"] *= spread
    return tokens | {
        "A": draw(states) if with_A else None,
        "D": draw(1),
        "hz_weight": draw(2 * inner, channels),
        "out_weight": draw(channels, inner),
    }


@pytest.mark.parametrize("backend", FORMS)
@quick
@given(shapes)
def test_every_form_equals_the_loops_in_float64(backend, drawn):
    needs_triton(backend)
    arguments = problem(**drawn)
    torch.testing.assert_close(
        hsm_ssd(**arguments, backend=backend),
        hsm_ssd(**arguments, backend="naive"),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@settings(quick, max_examples=6)
@given(shapes)
def test_float32_error_is_at_most_twice_the_composed_form_s(backend, drawn):
    needs_triton(backend)
    arguments = problem(**drawn, dtype=torch.float32)
    truth = hsm_ssd(**as_double(arguments), backend="naive")
    for found, composed, t in zip(
        hsm_ssd(**arguments, backend=backend),
        hsm_ssd(**arguments, backend="torch"),
        truth,
        strict=True,
    ):
        assert apart(found, t) <= max(2 * apart(composed, t), 2**-20 * float(t.norm()))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients(backend):
    needs_triton(backend)
    arguments = problem(length=37, states=17, dtype=torch.float32)
    names = [k for k in arguments if k != "A"]
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(2, 5, n, generator=g) for n in (37, 17)]

    def gradients(arguments, backend):
        leaves = {k: arguments[k].detach().clone().requires_grad_() for k in names}
        outputs = hsm_ssd(**arguments | leaves, backend=backend)
        return torch.autograd.grad(
            outputs,
            list(leaves.values()),
            [m.to(o.dtype) for m, o in zip(upstream, outputs, strict=True)],
        )

    truth, yardstick = gradients(as_double(arguments), "torch"), gradients(arguments, "torch")
    for name, f, y, t in zip(names, gradients(arguments, backend), yardstick, truth, strict=True):
        assert apart(f, t) <= max(3 * apart(y, t), 2**-20 * float(t.norm())), name


def test_gradient_of_the_torch_form_in_float64():
    leaves = [
        m.requires_grad_()
        for m in problem(batch=1, channels=2, states=2, length=4, inner=2).values()
    ]
    assert torch.autograd.gradcheck(lambda *m: hsm_ssd(*m, backend="torch"), leaves)


def test_A_cancels():
    arguments = problem()
    for change in (None, torch.randn(4, dtype=torch.float64) * 10):
        torch.testing.assert_close(
            hsm_ssd(**arguments | {"A": change}), hsm_ssd(**arguments), rtol=1e-12, atol=1e-12
        )
    A = arguments["A"].requires_grad_()
    assert torch.autograd.grad(hsm_ssd(**arguments)[0].square().sum(), A)[0].norm() < 1e-10


@pytest.mark.parametrize("backend", ["naive", *FORMS])
def test_layouts_and_an_empty_batch(backend):
    needs_triton(backend)
    a = problem(dtype=torch.float32)
    wanted = hsm_ssd(**a, backend="torch")
    spread = {k: v.mT.contiguous().mT if v.dim() > 1 else v for k, v in a.items()}
    torch.testing.assert_close(hsm_ssd(**spread, backend=backend), wanted, rtol=1e-4, atol=1e-5)
    y, h = hsm_ssd(
        **{k: v[:0] if k in ("x", "dt", "B", "C") else v for k, v in a.items()}, backend=backend
    )
    assert y.shape == (0, 5, 21) and h.shape == (0, 5, 4)


@pytest.mark.parametrize("backend", FORMS)
def test_half_precision_comes_back_as_it_went_in(backend):
    needs_triton(backend)
    a = {k: v.bfloat16() for k, v in problem(dtype=torch.float32).items()}
    truth = hsm_ssd(**as_double(a), backend="naive")
    composed = hsm_ssd(**a, backend="torch")
    for found, y, t in zip(hsm_ssd(**a, backend=backend), composed, truth, strict=True):
        assert found.dtype == torch.bfloat16 and apart(found, t) <= max(
            2 * apart(y, t), 2**-7 * float(t.norm())
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(5, 21)}, "x must be a floating-point tensor (batch, channels, length)"),
        ({"x": torch.randn(2, 5, 0)}, "at least one channel and one token"),
        ({"dt": torch.randn(2, 4, 20)}, "dt must be (batch, states, length) = (2, states, 21)"),
        ({"B": torch.randn(2, 3, 21)}, "B must have shape (2, 4, 21)"),
        ({"C": torch.randn(2, 4, 20)}, "C must have shape (2, 4, 21)"),
        ({"A": torch.randn(5)}, "A must have shape (4,)"),
        ({"D": torch.randn(4)}, "D must have shape (1,)"),
        ({"hz_weight": torch.randn(11, 5)}, "hz_weight must have shape (12, 5)"),
        ({"out_weight": torch.randn(4, 6)}, "out_weight must have shape (5, 6)"),
        ({"backend": "fast"}, "backend='fast'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        hsm_ssd(**problem(dtype=torch.float32) | change)


@pytest.mark.parametrize("size", ["small", "large"])
def test_example_and_cost(size):
    arguments = example(size)
    torch.testing.assert_close(
        hsm_ssd(**arguments, backend="numpy"),
        hsm_ssd(**arguments, backend="torch"),
        rtol=1e-3,
        atol=1e-4,
    )
    assert cost(**arguments).flops > 0 and cost(**arguments).intensity > 1
