"""Every form of the selective scan against the loops in float64: values, states, gradients, layouts, refusals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.selective_scan import cost, example, selective_scan, selective_step
from shared.kernels import apart, as_double, needs_triton

quick = settings(deadline=None, max_examples=12, derandomize=True)
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "groups": st.sampled_from([1, 2, 3]),
        "width": st.integers(1, 5),
        "states": st.integers(1, 7),
        "length": st.integers(1, 70),
        "constant": st.sampled_from(["", "B", "C", "BC"]),
        "extras": st.booleans(),
    }
)
FORMS = [
    ("numpy", {}),
    ("torch", {}),
    ("torch", {"block": 7}),
    ("torch", {"method": "associative"}),
    ("triton", {}),
]


def problem(
    batch=2,
    groups=2,
    width=3,
    states=4,
    length=19,
    constant="",
    extras=True,
    dtype=torch.float64,
    seed=0,
):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    channels = groups * width
    matrix = lambda name: (
        draw(channels, states) if name in constant else draw(batch, groups, states, length)
    )  # noqa: E731
    arguments = {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": -draw(channels, states).exp(),
        "B": matrix("B"),
        "C": matrix("C"),
    }
    if extras:
        more = {
            "D": draw(channels),
            "z": draw(batch, channels, length),
            "delta_bias": draw(channels),
            "state": draw(batch, channels, states),
        }
        arguments |= more | {"delta_softplus": True}
    else:
        arguments["delta"] = arguments["delta"].abs()
    return arguments


@pytest.mark.parametrize(("backend", "options"), FORMS)
@settings(quick, max_examples=8)
@given(shapes)
def test_every_form_equals_the_loops_in_float64(backend, options, drawn):
    needs_triton(backend)
    drawn = drawn | (
        {"length": min(drawn["length"], 20), "states": min(drawn["states"], 3), "batch": 1}
        if backend == "triton"
        else {}
    )
    arguments = problem(**drawn)
    wanted = selective_scan(**arguments, return_last_state=True, backend="naive")
    found = selective_scan(**arguments, return_last_state=True, backend=backend, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("backend", "options"), FORMS)
@settings(quick, max_examples=5)
@given(shapes)
def test_float32_error_is_at_most_twice_the_composed_form_s(backend, options, drawn):
    needs_triton(backend)
    drawn = drawn | (
        {"length": min(drawn["length"], 20), "states": min(drawn["states"], 3), "batch": 1}
        if backend == "triton"
        else {}
    )
    arguments = problem(**drawn, dtype=torch.float32)
    truth = selective_scan(**as_double(arguments), backend="naive")
    yardstick = apart(selective_scan(**arguments, backend="torch", method="associative"), truth)
    found = selective_scan(**arguments, backend=backend, **options)
    assert found.dtype == torch.float32
    assert apart(found, truth) <= max(2 * yardstick, 2**-22 * float(truth.norm()))


@pytest.mark.parametrize("constant", ["", "B", "C"])
@pytest.mark.parametrize(
    ("backend", "options"), [("torch", {}), ("torch", {"block": 4}), ("triton", {})]
)
def test_gradients_of_every_input(backend, options, constant):
    needs_triton(backend)
    arguments = problem(
        batch=2 if backend == "torch" else 1,
        length=11,
        width=2,
        states=3,
        constant=constant,
        dtype=torch.float32,
    )
    names = [k for k, v in arguments.items() if torch.is_tensor(v)]
    shape = arguments["u"].shape
    g = torch.Generator().manual_seed(1)
    upstream = (
        torch.randn(shape, generator=g),
        torch.randn(*arguments["state"].shape, generator=g),
    )

    def gradients(arguments, **how):
        leaves = {k: arguments[k].detach().clone().requires_grad_() for k in names}
        outputs = selective_scan(**(arguments | leaves), return_last_state=True, **how)
        return torch.autograd.grad(
            outputs,
            list(leaves.values()),
            [m.to(o.dtype) for m, o in zip(upstream, outputs, strict=True)],
        )

    truth = gradients(as_double(arguments), backend="torch", method="associative")
    yardstick = gradients(arguments, backend="torch", method="associative")
    found = gradients(arguments, backend=backend, **options)
    for name, f, y, t in zip(names, found, yardstick, truth, strict=True):
        assert apart(f, t) <= max(3 * apart(y, t), 2**-21 * float(t.norm())), name


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_hand_written_gradient_is_the_derivative(kind):
    a = problem(batch=1, groups=1, width=2, states=2, length=7)
    A = (
        a["A"].to(kind)
        if kind == torch.float64
        else torch.complex(a["A"], torch.randn_like(a["A"]))
    )
    times = 7 if kind == torch.float64 else 14
    B, C = (torch.randn(1, 2, times, dtype=torch.float64) for _ in "BC")
    leaves = [m.detach().requires_grad_() for m in (a["u"], a["delta"], A, B, C)]
    assert torch.autograd.gradcheck(
        lambda u, delta, A, B, C: selective_scan(
            u, delta, A, B, C, delta_softplus=True, backend="torch", block=3
        ),
        leaves,
    )


def test_composed_form_can_be_differentiated_twice():
    a = problem(batch=1, groups=1, width=1, states=2, length=4, extras=False)
    leaves = [a[k].requires_grad_() for k in ("u", "delta", "A", "B", "C")]
    assert torch.autograd.gradgradcheck(
        lambda *m: selective_scan(*m, backend="torch", method="associative"), leaves
    )


@pytest.mark.parametrize(("backend", "options"), [("naive", {}), *FORMS])
def test_layouts_and_an_empty_batch(backend, options):
    needs_triton(backend)
    a = problem(batch=2, width=2, states=3, length=9, dtype=torch.float32)
    wanted = selective_scan(**a, backend="torch")
    spread = {
        k: v.mT.contiguous().mT if torch.is_tensor(v) and v.dim() > 1 else v for k, v in a.items()
    }
    torch.testing.assert_close(selective_scan(**spread, backend=backend, **options), wanted)
    none = {k: v[:0] if k in ("u", "delta", "B", "C", "z", "state") else v for k, v in a.items()}
    y, last = selective_scan(**none, backend=backend, return_last_state=True, **options)
    assert y.shape == (0, 4, 9) and last.shape == (0, 4, 3)


@pytest.mark.parametrize(("backend", "options"), FORMS)
def test_half_precision_comes_back_as_it_went_in(backend, options):
    needs_triton(backend)
    a = {
        k: v.bfloat16() if torch.is_tensor(v) else v
        for k, v in problem(batch=1, states=3, length=12, dtype=torch.float32).items()
    }
    truth = selective_scan(**as_double(a), backend="naive")
    y, last = selective_scan(**a, return_last_state=True, backend=backend, **options)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert apart(y, truth) <= 2**-8 * float(truth.norm()), (
        "arithmetic in float32, one rounding at the end"
    )


def test_a_scan_can_be_cut_anywhere():
    a = problem(length=21)
    whole, end = selective_scan(**a, return_last_state=True)
    timed = ("u", "delta", "B", "C", "z")
    for cut in (1, 8, 20):
        first, middle = selective_scan(
            **a | {k: a[k][..., :cut] for k in timed}, return_last_state=True
        )
        second, last = selective_scan(
            **a | {k: a[k][..., cut:] for k in timed} | {"state": middle}, return_last_state=True
        )
        torch.testing.assert_close(torch.cat([first, second], -1), whole)
        torch.testing.assert_close(last, end)


def test_decoding_step_by_step_is_the_scan():
    a = problem(groups=1, length=6)
    whole, end = selective_scan(**a, return_last_state=True)
    state, fixed = a["state"], {k: a[k] for k in ("A", "D", "delta_bias")}
    for t in range(6):
        y, state = selective_step(
            state,
            u=a["u"][..., t],
            delta=a["delta"][..., t],
            B=a["B"][:, 0, :, t],
            C=a["C"][:, 0, :, t],
            z=a["z"][..., t],
            **fixed,
            delta_softplus=True,
        )
        torch.testing.assert_close(y, whole[..., t])
    torch.testing.assert_close(state, end)


def test_strong_decay_neither_overflows_nor_forgets_the_present():
    a = problem(groups=1, length=300, extras=False, dtype=torch.float32)
    a |= {"delta": torch.full_like(a["delta"], 60.0), "A": torch.full_like(a["A"], -30.0)}
    for backend in ("numpy", "torch"):
        found = selective_scan(**a, backend=backend)
        wanted = a["delta"] * a["u"] * (a["B"] * a["C"]).sum(2)  # nothing of the past is left
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.randn(2, 6)}, "u must be (batch, channels, length), got 2 dimensions"),
        ({"u": torch.ones(2, 6, 19, dtype=torch.int64)}, "floating-point"),
        ({"u": torch.randn(2, 6, 0)}, "length 0"),
        ({"u": torch.randn(2, 0, 19)}, "no channels"),
        ({"delta": torch.randn(2, 6, 18)}, "delta must have shape (2, 6, 19)"),
        ({"A": torch.randn(5, 4)}, "A must be (channels, states) with 6 channels"),
        ({"A": torch.randn(6, 0)}, "at least one state"),
        ({"B": torch.randn(2, 3, 19)}, "B must be"),
        ({"C": torch.randn(2, 2, 4, 20)}, "C must be"),
        ({"B": torch.randn(2, 4, 4, 19)}, "the 4 groups of B must divide the 6 channels"),
        ({"B": torch.randn(2, 0, 4, 19)}, "B must be"),
        ({"D": torch.randn(5)}, "D must have shape (6,)"),
        ({"z": torch.randn(2, 6, 18)}, "z must have shape"),
        ({"delta_bias": torch.randn(1)}, "delta_bias must have shape"),
        ({"state": torch.randn(2, 6, 5)}, "state must have shape (2, 6, 4)"),
        ({"block": 0}, "block=0"),
        ({"method": "fast"}, "method='fast' is not one of 'blocks', 'associative'"),
        ({"backend": "cuda"}, "backend='cuda' is not one of"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        selective_scan(**problem(dtype=torch.float32) | {"backend": "torch"} | change)


def test_triton_refuses_complex_scans_with_a_reason():
    needs_triton()
    with pytest.raises(ValueError, match="A is complex"):
        selective_scan(
            torch.randn(1, 2, 3),
            torch.randn(1, 2, 3),
            torch.randn(2, 2, dtype=torch.complex64),
            torch.randn(1, 2, 6),
            torch.randn(1, 2, 6),
            backend="triton",
        )


@pytest.mark.parametrize("size", ["small", "large"])
def test_example_and_cost(size):
    arguments = example(size)
    wanted = selective_scan(**arguments, backend="torch")
    torch.testing.assert_close(
        selective_scan(**arguments, backend="numpy"), wanted, rtol=1e-3, atol=1e-4
    )
    work = cost(**arguments)
    assert (
        work.flops > 7 * 16 * wanted.numel()
        and work.bytes > 12 * wanted.numel()
        and work.intensity < 12
    )
