"""Every form of state space duality against the loops in float64: any length, any chunk, values, states, gradients, refusals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.ssd import cost, example, segsum, semiseparable, ssd, ssd_combined
from shared.kernels import apart, as_double, needs_triton

quick = settings(deadline=None, max_examples=10, derandomize=True)
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "groups": st.sampled_from([1, 2]),
        "per_group": st.integers(1, 3),
        "width": st.integers(1, 9),
        "states": st.integers(1, 9),
        "length": st.integers(1, 50),
        "state": st.booleans(),
    }
)
chunk_sizes = st.sampled_from([1, 3, 16, 64, 200])
FORMS = ["numpy", "torch", "triton"]


def problem(
    batch=2,
    groups=2,
    per_group=2,
    width=3,
    states=5,
    length=21,
    state=True,
    dtype=torch.float64,
    seed=0,
):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    heads = groups * per_group
    a = {
        "x": draw(batch, length, heads, width),
        "a": -draw(batch, length, heads).abs(),
        "B": draw(batch, length, groups, states),
    }
    return a | {
        "C": draw(batch, length, groups, states),
        "state": draw(batch, heads, width, states) if state else None,
    }


def as_matrix(x, a, B, C, state=None):
    """The masked matrix in x's own precision (from zero): the yardstick of the error."""
    return (semiseparable(a, B, C) @ x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("backend", FORMS)
@quick
@given(shapes, chunk_sizes)
def test_every_form_and_chunk_equals_the_loops_in_float64(backend, drawn, chunk):
    needs_triton(backend)
    arguments = problem(**drawn)
    wanted = ssd(**arguments, return_last_state=True, backend="naive")
    torch.testing.assert_close(
        ssd(**arguments, chunk=chunk, return_last_state=True, backend=backend),
        wanted,
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("backend", FORMS)
@settings(quick, max_examples=6)
@given(shapes, chunk_sizes)
def test_float32_error_is_at_most_twice_the_matrix_form_s(backend, drawn, chunk):
    """Floor for tiny shapes, where the matrix form may be exact: two roundings of the output."""
    needs_triton(backend)
    arguments = problem(**drawn | {"state": False}, dtype=torch.float32)
    truth = ssd(**as_double(arguments), backend="naive")
    assert apart(ssd(**arguments, chunk=chunk, backend=backend), truth) <= max(
        2 * apart(as_matrix(**arguments), truth), 2**-22 * float(truth.norm())
    )


@quick
@given(shapes)
def test_recurrence_and_masked_matrix_are_dual(drawn):
    arguments = problem(**drawn | {"state": False})
    torch.testing.assert_close(
        as_matrix(**arguments), ssd(**arguments, backend="naive"), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients(backend):
    needs_triton(backend)
    arguments = problem(length=13, dtype=torch.float32)
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(arguments[k].shape, generator=g) for k in ("x", "state")]

    def gradients(arguments, **how):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in arguments.items()}
        outputs = ssd(**leaves, return_last_state=True, **how)
        return torch.autograd.grad(
            outputs,
            list(leaves.values()),
            [m.to(o.dtype) for m, o in zip(upstream, outputs, strict=True)],
        )

    truth, yardstick = (
        gradients(as_double(arguments), backend="torch", chunk=1),
        gradients(arguments, backend="torch", chunk=13),
    )
    for name, f, y, t in zip(
        arguments, gradients(arguments, backend=backend, chunk=5), yardstick, truth, strict=True
    ):
        assert apart(f, t) <= max(3 * apart(y, t), 2**-21 * float(t.norm())), name


def test_gradient_of_the_torch_form_in_float64():
    leaves = [
        m.requires_grad_() for m in problem(batch=1, groups=1, width=2, states=2, length=5).values()
    ]
    assert torch.autograd.gradcheck(
        lambda *m: ssd(*m, chunk=2, return_last_state=True, backend="torch"), leaves
    )


@pytest.mark.parametrize("backend", ["naive", *FORMS])
def test_layouts_and_an_empty_batch(backend):
    needs_triton(backend)
    a = problem(dtype=torch.float32)
    wanted = ssd(**a, backend="torch")
    spread = {k: v.mT.contiguous().mT for k, v in a.items()}
    torch.testing.assert_close(ssd(**spread, chunk=8, backend=backend), wanted)
    y, last = ssd(**{k: v[:0] for k, v in a.items()}, return_last_state=True, backend=backend)
    assert y.shape == (0, 21, 4, 3) and last.shape == (0, 4, 3, 5)


@pytest.mark.parametrize("backend", FORMS)
def test_half_precision_comes_back_as_it_went_in(backend):
    needs_triton(backend)
    a = {k: v.bfloat16() for k, v in problem(dtype=torch.float32).items()}
    truth = ssd(**as_double(a), backend="naive")
    y, last = ssd(**a, return_last_state=True, backend=backend)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert apart(y, truth) <= 2**-7 * float(truth.norm())


def test_segsum_keeps_its_digits_where_differences_of_sums_lose_them():
    """Strong decay early, weak decay late: the late entries are near 1, and the cumulative sums they are differences of are not."""
    g = torch.Generator().manual_seed(0)
    a = -torch.cat([50 + torch.rand(16, generator=g), torch.rand(48, generator=g) / 100])
    truth = segsum(a.double()).exp()
    counted = truth > 1e-20
    error = lambda m: float(((m.double().exp() - truth) / truth)[counted].abs().max())  # noqa: E731
    sums = a.cumsum(0)
    assert error(segsum(a)) < 1e-6 and error(sums[:, None] - sums) > 20 * error(segsum(a))


@pytest.mark.parametrize("backend", FORMS)
def test_strong_decay_neither_overflows_nor_forgets_the_present(backend):
    needs_triton(backend)
    a = problem(length=70, state=False, dtype=torch.float32)
    a["a"] = torch.full_like(a["a"], -200.0)
    wanted = a["x"] * (a["B"] * a["C"]).sum(-1, keepdim=True).repeat_interleave(2, 2)
    torch.testing.assert_close(ssd(**a, backend=backend), wanted, rtol=1e-5, atol=1e-5)


def test_off_diagonal_blocks_have_the_rank_of_the_state():
    a = problem(batch=1, groups=1, per_group=1, states=3, length=24, state=False)
    matrix = semiseparable(a["a"] * 0.05, a["B"], a["C"])[0, 0]
    assert (
        torch.linalg.matrix_rank(matrix[12:, :12]) == 3 and torch.linalg.matrix_rank(matrix) == 24
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 21, 4)}, "got 3 dimensions"),
        ({"x": torch.ones(2, 21, 4, 3, dtype=torch.int32)}, "floating-point"),
        ({"x": torch.randn(2, 0, 4, 3)}, "at least one step"),
        ({"a": torch.randn(2, 20, 4)}, "a must be (batch, length, heads) = (2, 21, 4)"),
        ({"B": torch.randn(2, 20, 2, 5)}, "B must be"),
        ({"B": torch.randn(2, 21, 3, 5)}, "the 3 groups of B must divide the 4 heads"),
        ({"C": torch.randn(2, 21, 2, 6)}, "B and C must have the same shape"),
        (
            {"state": torch.randn(2, 4, 5, 3)},
            "state must be (batch, heads, width, states) = (2, 4, 3, 5)",
        ),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": 2.5}, "chunk=2.5"),
        ({"backend": "jax"}, "backend='jax'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ssd(**problem(dtype=torch.float32) | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dt": torch.randn(2, 21, 3)}, "dt must have shape (2, 21, 4)"),
        ({"A": torch.randn(3)}, "A must have shape (4,)"),
        ({"D": torch.randn(3, 3)}, "D must have shape (4,) or (4, 3)"),
        ({"z": torch.randn(2, 21, 4)}, "z must have shape (2, 21, 4, 3)"),
        ({"dt_bias": torch.randn(1)}, "dt_bias must have shape (4,)"),
    ],
)
def test_bad_input_of_the_whole_operation_is_named(change, words):
    a = problem(dtype=torch.float32)
    good = {"x": a["x"], "dt": torch.rand(2, 21, 4), "A": -torch.rand(4), "B": a["B"], "C": a["C"]}
    with pytest.raises(ValueError, match=re.escape(words)):
        ssd_combined(**good | change)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_skip_a_head_or_a_channel(shape):
    a, D = problem(), torch.randn(*shape, dtype=torch.float64)
    dt, A = torch.rand(2, 21, 4, dtype=torch.float64), -torch.rand(4, dtype=torch.float64)
    bare = ssd_combined(a["x"], dt, A, a["B"], a["C"])
    torch.testing.assert_close(
        ssd_combined(a["x"], dt, A, a["B"], a["C"], D) - bare, a["x"] * D.reshape(4, -1)
    )


@pytest.mark.parametrize("size", ["small", "large"])
def test_example_and_cost(size):
    arguments = example(size)
    torch.testing.assert_close(
        ssd(**arguments, backend="numpy"),
        ssd(**arguments, backend="torch", chunk=64),
        rtol=1e-3,
        atol=1e-4,
    )
    assert (
        cost(**arguments, chunk=64).flops > cost(**arguments, chunk=16).flops
        and cost(**arguments).intensity > 5
    )
