"""What is the selective scan's own: complex scans, blocks, cuts, decoding, transforms, refusals."""

from __future__ import annotations

import re

import pytest
import torch

from refimpl.kernels.selective_scan import (
    composed,
    cost,
    doubling,
    example,
    selective_scan,
    selective_step,
    with_torch,
)
from shared.kernels import gradients, needs_triton, problem

SMALL = {"batch": 2, "groups": 2, "width": 3, "states": 4, "length": 19}
SMALL |= {"constant": "", "shift": 0.0, "extras": True}


def small(dtype: torch.dtype = torch.float64, **choice) -> dict:
    arguments = problem("selective_scan", dtype=dtype, **SMALL | choice)
    return {name: value for name, value in arguments.items() if name != "return_last_state"}


@pytest.fixture(params=[1, 4, 7, 200])
def block(request, monkeypatch):
    """Blocks so short that small problems have several."""
    monkeypatch.setattr(composed, "block_length", lambda states: request.param)


@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_any_length_of_a_block_gives_the_same(block, constant):
    arguments = small(constant=constant)

    def by_blocks(a):
        return selective_scan(**a, return_last_state=True, backend="torch")

    def by_doubling(a):
        return with_torch(**a, scan=doubling)

    torch.testing.assert_close(by_blocks(arguments), by_doubling(arguments))
    wanted = gradients(by_doubling, arguments)
    for name, found in gradients(by_blocks, arguments).items():
        torch.testing.assert_close(found, wanted[name], msg=name)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_hand_written_gradient_is_the_derivative(kind, monkeypatch):
    monkeypatch.setattr(composed, "block_length", lambda states: 3)
    a = small(batch=1, groups=1, width=2, states=2, length=7, extras=False)
    A = a["A"]
    if kind == torch.complex128:
        A = torch.complex(A, torch.randn_like(A))
    times = 7 if kind == torch.float64 else 14
    B, C = torch.randn(2, 1, 2, times, dtype=torch.float64)
    inputs = [m.detach().requires_grad_() for m in (a["u"], a["delta"], A, B, C)]

    def function(*values):
        return selective_scan(*values, delta_softplus=True, backend="torch")

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_transforms_of_torch_func_and_gradients_of_gradients():
    """What case 25 of those that users reported asks for, on the bare scan."""
    a = small(batch=1, groups=1, width=2, states=2, length=5, extras=False)
    inputs = [a[name] for name in ("u", "delta", "A", "B", "C")]
    dims = (0, None, None, None, None)
    several = torch.stack([inputs[0], 2 * inputs[0]])

    def scan(*values):
        return selective_scan(*values, delta_softplus=True)

    def loss(*values):
        return scan(*values).square().sum()

    mapped = torch.func.vmap(scan, dims)(several, *inputs[1:])
    torch.testing.assert_close(mapped[1], scan(several[1], *inputs[1:]))
    each = torch.func.vmap(torch.func.grad(loss), dims)(several, *inputs[1:])
    torch.testing.assert_close(each[0], torch.func.grad(loss)(*inputs))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.jacrev(loss)(*inputs), each[0])
    torch.testing.assert_close(
        torch.func.hessian(loss, argnums=2)(*inputs),
        torch.func.jacrev(torch.func.jacrev(loss, argnums=2), argnums=2)(*inputs),
    )
    u = inputs[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(u, *inputs[1:]), u, create_graph=True)
    slope.square().sum().backward()
    assert u.grad.isfinite().all() and u.grad.any()


class Layer(torch.nn.Module):
    def __init__(self, A, D):
        super().__init__()
        self.A = torch.nn.Parameter(A)
        self.D = torch.nn.Parameter(D)

    def forward(self, u, delta, B, C):
        return selective_scan(u, delta, self.A, B, C, self.D, delta_softplus=True)


def test_exported_it_takes_another_batch_with_gradients_on():
    """Case 18: a dynamic batch, and the program runs outside of `no_grad`."""
    a = small(torch.float32)
    layer = Layer(a["A"], a["D"])
    given = tuple(a[name] for name in ("u", "delta", "B", "C"))
    more = tuple(torch.cat([m] * 3) for m in given)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in given)
    program = torch.export.export(layer, given, dynamic_shapes=shapes, strict=False).module()
    torch.testing.assert_close(program(*more), layer(*more))
    program(*more).sum().backward()


def test_a_scan_can_be_cut_anywhere():
    a = small(length=21)
    whole, end = selective_scan(**a, return_last_state=True)
    timed = ("u", "delta", "B", "C", "z")
    for cut in (1, 8, 20):
        head = a | {k: a[k][..., :cut] for k in timed}
        first, middle = selective_scan(**head, return_last_state=True)
        tail = a | {k: a[k][..., cut:] for k in timed} | {"state": middle}
        second, last = selective_scan(**tail, return_last_state=True)
        torch.testing.assert_close(torch.cat([first, second], -1), whole)
        torch.testing.assert_close(last, end)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decoding_step_by_step_is_the_scan(dtype):
    """Also in its types: y in u's, arithmetic and state in float32 at least."""
    a = small(dtype, groups=1, length=6)
    whole, end = selective_scan(**a, return_last_state=True)
    state = a["state"]
    fixed = {k: a[k] for k in ("A", "D", "delta_bias")}
    for t in range(6):
        now = {k: a[k][..., t] for k in ("u", "delta", "z")}
        shared = {k: a[k][:, 0, :, t] for k in ("B", "C")}
        y, state = selective_step(state, **now, **shared, **fixed, delta_softplus=True)
        assert y.dtype == whole.dtype == dtype
        torch.testing.assert_close(y, whole[..., t])
    assert state.dtype == end.dtype
    torch.testing.assert_close(state, end)


def test_bad_input_of_a_step_is_named():
    good = {"state": (2, 6, 4), "u": (2, 6), "delta": (2, 6), "A": (6, 4), "B": (2, 4), "C": (2, 4)}
    good = {name: torch.randn(*shape) for name, shape in good.items()}
    for name, value in good.items():
        with pytest.raises(ValueError, match="must be"):
            selective_step(**good | {name: value[..., None]})


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_strong_decay_neither_overflows_nor_forgets_the_present(backend):
    needs_triton(backend)
    length = 40 if backend == "triton" else 300
    a = small(torch.float32, groups=1, length=length, extras=False)
    a |= {"delta": torch.full_like(a["delta"], 60.0), "A": torch.full_like(a["A"], -30.0)}
    found = selective_scan(**a, backend=backend)
    wanted = a["delta"] * a["u"] * (a["B"] * a["C"]).sum(2)  # nothing of the past is left
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.randn(2, 6)}, "u must be (batch, channels, length), got (2, 6)"),
        ({"u": torch.ones(2, 6, 19, dtype=torch.int64)}, "floating-point"),
        ({"delta": torch.randn(2, 6, 18)}, "delta must be (batch, channels, length) = (2, 6, 19)"),
        ({"A": torch.randn(5, 4)}, "A must be (channels, states) = (6, states)"),
        ({"B": torch.randn(2, 3, 19)}, "B must be"),
        ({"C": torch.randn(2, 2, 4, 20)}, "C must be"),
        ({"B": torch.randn(2, 4, 4, 19)}, "the 4 groups of B must divide the 6 channels"),
        ({"B": torch.randn(2, 0, 4, 19)}, "the 0 groups of B"),
        ({"D": torch.randn(5)}, "D must be (channels,) = (6,)"),
        ({"z": torch.randn(2, 6, 18)}, "z must be"),
        ({"delta_bias": torch.randn(1)}, "delta_bias must be"),
        ({"state": torch.randn(2, 6, 5)}, "state must be (batch, channels, states) = (2, 6, 4)"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        selective_scan(**small(torch.float32) | {"backend": "torch"} | change)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 6, 0, 4), "length=0 must be at least 1"),
        ((2, 0, 19, 4), "channels=0 must be at least 1"),
        ((2, 6, 19, 0), "states=0 must be at least 1"),
    ],
)
def test_sizes_of_zero_are_refused(shape, words):
    batch, channels, length, states = shape
    u = torch.randn(batch, channels, length)
    B = torch.randn(batch, states, length)
    with pytest.raises(ValueError, match=words):
        selective_scan(u, u, torch.randn(channels, states), B, B)


def test_triton_refuses_complex_scans_with_a_reason():
    needs_triton()
    u = torch.randn(1, 2, 3)
    A = torch.randn(2, 2, dtype=torch.complex64)
    B = torch.randn(1, 2, 6)
    with pytest.raises(ValueError, match="A is complex"):
        selective_scan(u, u, A, B, B, backend="triton")


@pytest.mark.parametrize("size", ["small", "large"])
def test_cost_counts_states_and_streams(size):
    arguments = example(size)
    steps = arguments["u"].numel()
    work = cost(**arguments)
    assert work.flops > 7 * 16 * steps
    assert work.bytes > 12 * steps
    assert work.intensity < 12
