"""What is state space duality's own: the duality, strong and total decay, ranks, the layer."""

from __future__ import annotations

import re

import pytest
import torch

from refimpl.kernels.ssd import cost, example, segsum, semiseparable, ssd, ssd_combined
from shared.kernels import gradients, needs_triton, normal, problem, ssd_as_matrix

SMALL = {"batch": 2, "groups": 2, "per_group": 2, "width": 3, "states": 5, "length": 21}
SMALL |= {"chunk": 32, "state": True, "reset": False}
FORMS = ["naive", "numpy", "torch", "triton"]


def small(dtype: torch.dtype = torch.float64, **choice) -> dict:
    arguments = problem("ssd", dtype=dtype, **SMALL | choice)
    return {name: v for name, v in arguments.items() if name not in ("chunk", "return_last_state")}


@pytest.mark.parametrize("length", [1, 16, 50])
def test_recurrence_and_masked_matrix_are_dual(length):
    arguments = small(length=length)
    torch.testing.assert_close(
        ssd_as_matrix(**arguments),
        ssd(**arguments, return_last_state=True, backend="naive"),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_a_decay_of_zero_resets_the_state(backend, chunk):
    """a = −∞: nothing of before is left, and no form multiplies it away as 0 · ∞."""
    needs_triton(backend)
    arguments = small()
    arguments["a"][:, 9] = -torch.inf
    after = {k: v[:, 9:] if k != "state" else torch.zeros_like(v) for k, v in arguments.items()}
    whole, last = ssd(**arguments, chunk=chunk, return_last_state=True, backend=backend)
    fresh, fresh_last = ssd(**after, chunk=chunk, return_last_state=True, backend=backend)
    torch.testing.assert_close(whole[:, 9:], fresh)
    torch.testing.assert_close(last, fresh_last)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("chunk", [4, 32])
def test_gradients_through_a_reset_are_those_of_a_decay_that_underflows(backend, chunk):
    needs_triton(backend)
    arguments = small()
    arguments["a"][:, [0, 9, 20]] = -torch.inf

    def compute(a):
        return ssd(**a, chunk=chunk, return_last_state=True, backend=backend)

    found = gradients(compute, arguments)
    finite = arguments | {"a": arguments["a"].clamp(min=-2000)}  # exp(−2000) is 0 too
    for name, wanted in gradients(compute, finite).items():
        assert found[name].isfinite().all(), name
        torch.testing.assert_close(found[name], wanted)
    assert not found["state"].any()


def test_segsum_keeps_its_digits_where_differences_of_sums_lose_them():
    """Strong decay, then weak: late entries are near 1, the sums they are differences of not."""
    g = torch.Generator().manual_seed(0)
    a = -torch.cat([50 + torch.rand(16, generator=g), torch.rand(48, generator=g) / 100])
    truth = segsum(a.double()).exp()
    counted = truth > 1e-20

    def error(sums):
        return float(((sums.double().exp() - truth) / truth)[counted].abs().max())

    sums = a.cumsum(0)
    assert error(segsum(a)) < 1e-6
    assert error(sums[:, None] - sums) > 20 * error(segsum(a))


@pytest.mark.parametrize("backend", FORMS[1:])
def test_strong_decay_neither_overflows_nor_forgets_the_present(backend):
    needs_triton(backend)
    arguments = small(torch.float32, length=70, state=False)
    arguments["a"] = torch.full_like(arguments["a"], -200.0)
    per_head = (arguments["B"] * arguments["C"]).sum(-1, keepdim=True).repeat_interleave(2, 2)
    wanted = arguments["x"] * per_head
    torch.testing.assert_close(ssd(**arguments, backend=backend), wanted, rtol=1e-5, atol=1e-5)


def test_off_diagonal_blocks_have_the_rank_of_the_state():
    a = small(batch=1, groups=1, per_group=1, states=3, length=24, state=False)
    matrix = semiseparable(a["a"] * 0.05, a["B"], a["C"])[0, 0]
    assert torch.linalg.matrix_rank(matrix[12:, :12]) == 3
    assert torch.linalg.matrix_rank(matrix) == 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 21, 4)}, "x must be (batch, length, heads, width), got (2, 21, 4)"),
        ({"x": torch.ones(2, 21, 4, 3, dtype=torch.int32)}, "floating-point"),
        ({"a": torch.randn(2, 20, 4)}, "a must be (batch, length, heads) = (2, 21, 4)"),
        ({"B": torch.randn(2, 20, 2, 5)}, "B must be"),
        ({"C": torch.randn(2, 21, 2, 6)}, "C must be (batch, length, groups, states)"),
        (
            {"state": torch.randn(2, 4, 5, 3)},
            "state must be (batch, heads, width, states) = (2, 4, 3, 5)",
        ),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": 2.5}, "chunk=2.5"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ssd(**small(torch.float32) | change)


def test_no_step_and_groups_that_do_not_divide_are_refused():
    arguments = small()
    none = {name: arguments[name][:, :0] for name in ("x", "a", "B", "C")}
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        ssd(**arguments | none)
    three = {name: torch.randn(2, 21, 3, 5) for name in ("B", "C")}
    with pytest.raises(ValueError, match="the 3 groups of B and C must divide the 4 heads"):
        ssd(**arguments | three)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dt": torch.randn(2, 21, 3)}, "dt must be (batch, length, heads) = (2, 21, 4)"),
        ({"A": torch.randn(3)}, "A must be (heads,) = (4,)"),
        ({"D": torch.randn(3, 3)}, "D must be (heads,) = (4,) or (heads, width) = (4, 3)"),
        ({"z": torch.randn(2, 21, 4)}, "z must be (batch, length, heads, width) = (2, 21, 4, 3)"),
        ({"dt_bias": torch.randn(1)}, "dt_bias must be (heads,) = (4,)"),
    ],
)
def test_bad_input_of_the_whole_operation_is_named(change, words):
    a = small(torch.float32)
    good = {"x": a["x"], "dt": torch.rand(2, 21, 4), "A": -torch.rand(4), "B": a["B"], "C": a["C"]}
    with pytest.raises(ValueError, match=re.escape(words)):
        ssd_combined(**good | change)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_skip_per_head_or_per_channel(shape):
    a = small()
    D = torch.randn(*shape, dtype=torch.float64)
    dt = torch.rand(2, 21, 4, dtype=torch.float64)
    A = -torch.rand(4, dtype=torch.float64)
    bare = ssd_combined(a["x"], dt, A, a["B"], a["C"])
    skipped = ssd_combined(a["x"], dt, A, a["B"], a["C"], D) - bare
    torch.testing.assert_close(skipped, a["x"] * D.reshape(4, -1))


def test_the_whole_operation_in_half_precision_is_computed_in_float32():
    g = torch.Generator().manual_seed(0)
    a = small(torch.bfloat16, state=False)
    extras = {"dt": normal(g, 2, 21, 4), "A": -normal(g, 4).exp(), "dt_bias": normal(g, 4)}
    extras |= {"D": normal(g, 4), "z": normal(g, 2, 21, 4, 3)}
    extras = {name: tensor.bfloat16() for name, tensor in extras.items()}
    given = {"x": a["x"], "B": a["B"], "C": a["C"]} | extras
    found = ssd_combined(**given, dt_softplus=True)
    wide = {name: tensor.double() for name, tensor in given.items()}
    truth = ssd_combined(**wide, dt_softplus=True)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - truth).norm()) <= 2**-8 * float(truth.norm())


@pytest.mark.parametrize("size", ["small", "large"])
def test_cost_grows_with_the_chunk(size):
    arguments = example(size)
    assert cost(**arguments, chunk=64).flops > cost(**arguments, chunk=16).flops
    assert cost(**arguments).intensity > 5
