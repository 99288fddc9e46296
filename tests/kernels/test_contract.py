"""One contract for all operations: every form against the loops in float64, over drawn shapes.

What an operation is drawn from, and the composed form whose error is the yardstick, stand in
`shared/kernels.py`. A kernel's own test file holds what is its own.
"""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from refimpl import kernels
from refimpl.kernels import BACKENDS, operations
from shared.kernels import (
    CONTRACTS,
    allowed,
    call,
    cast,
    composed,
    distance,
    gradients,
    is_real,
    needs_triton,
    problem,
)

OPERATIONS = operations()
OTHERS = [backend for backend in BACKENDS if backend != "naive"]
HALF = (torch.float16, torch.bfloat16)

every_operation = pytest.mark.parametrize("op", sorted(OPERATIONS))
every_backend = pytest.mark.parametrize("backend", BACKENDS)
other_backends = pytest.mark.parametrize("backend", OTHERS)
gradient_backends = pytest.mark.parametrize("backend", ["torch", "triton"])


def examples(count: int) -> settings:
    phases = [Phase.explicit, Phase.generate]
    return settings(deadline=None, max_examples=count, derandomize=True, phases=phases)


def draw(data, op: str) -> dict:
    """One choice of everything that a problem of this operation is made from."""
    choices = CONTRACTS[op].shapes.items()
    return data.draw(st.fixed_dictionaries({k: st.sampled_from(v) for k, v in choices}), label=op)


def skip_forward_only(op: str, backend: str) -> None:
    if backend == "triton" and CONTRACTS[op].forward_only:
        pytest.skip(CONTRACTS[op].forward_only)


def test_every_operation_is_under_contract():
    assert set(CONTRACTS) == set(OPERATIONS)


@other_backends
@every_operation
@examples(5)
@given(st.data())
def test_equals_the_loops_in_float64(op, backend, data):
    needs_triton(backend)
    arguments = problem(op, **draw(data, op))
    wanted = call(OPERATIONS[op], arguments, "naive")
    found = call(OPERATIONS[op], arguments, backend)
    assert all(result.any() for result in wanted if result.numel())  # never on zeros alone
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@other_backends
@every_operation
@examples(3)
@given(st.data())
def test_error_is_at_most_twice_that_of_the_composed_form(op, backend, data):
    needs_triton(backend)
    arguments = problem(op, dtype=torch.float32, **draw(data, op))
    truth = call(OPERATIONS[op], cast(arguments, torch.float64), "naive")
    yardstick = composed(op, arguments)
    found = call(OPERATIONS[op], arguments, backend)
    for ours, theirs, true in zip(found, yardstick, truth, strict=True):
        assert ours.dtype == torch.float32
        limit = allowed(distance(theirs, true), true, torch.float32, 2, CONTRACTS[op].floor)
        assert distance(ours, true) <= limit


@pytest.mark.parametrize("dtype", HALF)
@other_backends
@every_operation
def test_half_precision_comes_back_as_it_went_in(op, backend, dtype):
    needs_triton(backend)
    arguments = problem(op, dtype=dtype)
    truth = call(OPERATIONS[op], cast(arguments, torch.float64), "torch")
    yardstick = call(OPERATIONS[op], arguments, "torch")
    found = call(OPERATIONS[op], arguments, backend)
    assert found[0].dtype == dtype
    for ours, theirs, true in zip(found, yardstick, truth, strict=True):
        limit = allowed(distance(theirs, true), true, dtype, 2, CONTRACTS[op].floor)
        assert ours.dtype == theirs.dtype
        assert distance(ours, true) <= limit


@gradient_backends
@every_operation
@examples(2)
@given(st.data())
def test_gradient_error_is_at_most_three_times_that_of_the_composed_form(op, backend, data):
    needs_triton(backend)
    skip_forward_only(op, backend)
    arguments = problem(op, dtype=torch.float32, **draw(data, op))
    truth = gradients(lambda a: composed(op, a), cast(arguments, torch.float64))
    yardstick = gradients(lambda a: composed(op, a), arguments)
    found = gradients(lambda a: call(OPERATIONS[op], a, backend), arguments)
    for name, ours in found.items():
        assert ours.isfinite().all(), name
        error = distance(yardstick[name], truth[name])
        limit = allowed(error, truth[name], torch.float32, 3, 2 * CONTRACTS[op].floor)
        # What cancels to (nearly) zero, as the gradient of A in the mixer, has no digits to lose
        assert distance(ours, truth[name]) <= max(limit, 1e-6), name


@every_operation
def test_first_and_second_derivative_of_the_torch_form(op):
    smallest = {name: values[0] for name, values in CONTRACTS[op].shapes.items()}
    arguments = problem(op, **smallest | {"batch": 1})
    names = [name for name, value in arguments.items() if is_real(value)]
    inputs = [arguments[name].requires_grad_() for name in names]

    def function(*values):
        return call(OPERATIONS[op], arguments | dict(zip(names, values, strict=True)), "torch")

    assert torch.autograd.gradcheck(function, inputs)
    if op == "grid_encode":
        pytest.skip("embedding_bag of PyTorch has no second derivative")
    assert torch.autograd.gradgradcheck(function, inputs)


@every_backend
@every_operation
def test_any_layout_in_memory(op, backend):
    needs_triton(backend)
    arguments = problem(op, dtype=torch.float32)
    wanted = call(OPERATIONS[op], arguments, backend)
    spread = {
        name: torch.stack([v, v + 1], -1)[..., 0] if isinstance(v, torch.Tensor) else v
        for name, v in arguments.items()
    }
    turned = {
        name: v.mT.contiguous().mT if isinstance(v, torch.Tensor) and v.dim() > 1 else v
        for name, v in arguments.items()
    }
    for layout in (spread, turned):
        assert any(isinstance(v, torch.Tensor) and not v.is_contiguous() for v in layout.values())
        torch.testing.assert_close(
            call(OPERATIONS[op], layout, backend), wanted, rtol=1e-4, atol=1e-5
        )


@every_backend
@every_operation
def test_an_empty_batch(op, backend):
    needs_triton(backend)
    full = call(OPERATIONS[op], problem(op, dtype=torch.float32, batch=1), "torch")
    found = call(OPERATIONS[op], problem(op, dtype=torch.float32, batch=0), backend)
    for ours, one in zip(found, full, strict=True):
        assert ours.numel() == 0
        assert ours.dtype == one.dtype
        assert ours.dim() == one.dim()


@gradient_backends
@every_operation
def test_gradients_of_an_empty_batch_are_zero(op, backend):
    needs_triton(backend)
    skip_forward_only(op, backend)
    arguments = problem(op, dtype=torch.float32, batch=0)
    for name, grad in gradients(lambda a: call(OPERATIONS[op], a, backend), arguments).items():
        assert grad.shape == arguments[name].shape
        assert not grad.any()


@every_operation
def test_an_unknown_backend_is_refused(op):
    with pytest.raises(ValueError, match="backend='cuda' is not known"):
        OPERATIONS[op].function(**problem(op), backend="cuda")


@every_operation
def test_triton_that_is_missing_or_has_no_device_is_refused(op, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="triton is not installed"):
            OPERATIONS[op].function(**problem(op), backend="triton")
    needs_triton()
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="move them to a GPU"):
            OPERATIONS[op].function(**problem(op), backend="triton")


@every_operation
def test_tensors_that_do_not_fit_are_named(op):
    arguments = problem(op)
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    first = next(iter(tensors))
    for name, value in tensors.items():
        for wrong in (value[..., None], value.to("meta")):
            # The first one may set the sizes that the others are found not to fit
            with pytest.raises(ValueError, match=None if name == first else name):
                OPERATIONS[op].function(**arguments | {name: wrong}, backend="torch")
    with pytest.raises(ValueError, match=first):
        whole = torch.ones_like(arguments[first], dtype=torch.int64)
        OPERATIONS[op].function(**arguments | {first: whole}, backend="torch")


@every_operation
def test_an_array_of_numpy_is_refused(op):
    arguments = problem(op)
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match="must be a torch.Tensor, got a numpy.ndarray; torch.from"):
        OPERATIONS[op].function(**arrays)


@every_operation
def test_gradients_by_torch_func(op):
    arguments = problem(op)
    names = [name for name, value in arguments.items() if is_real(value)]
    inputs = tuple(arguments[name] for name in names)

    def function(*values):
        results = call(OPERATIONS[op], arguments | dict(zip(names, values, strict=True)), "auto")
        return sum(result.square().sum() for result in results)

    found = torch.func.grad(function, argnums=tuple(range(len(inputs))))(*inputs)
    leaves = [value.clone().requires_grad_() for value in inputs]
    wanted = torch.autograd.grad(function(*leaves), leaves)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["naive", "numpy", "triton"])
@every_operation
def test_what_bears_no_transform_says_which_form_does(op, backend):
    needs_triton(backend)
    arguments = problem(op)
    name = next(k for k, v in arguments.items() if is_real(v))

    def function(value):
        return call(OPERATIONS[op], arguments | {name: value}, backend)[0].sum()

    with pytest.raises(ValueError, match="take backend='torch'"):
        torch.func.grad(function)(arguments[name])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_operation
def test_traced_at_one_batch_it_runs_at_another(op):
    small = problem(op, dtype=torch.float32, **CONTRACTS[op].plain | {"batch": 2})
    names = [name for name in CONTRACTS[op].batched if small.get(name) is not None]
    large = {name: torch.cat([small[name]] * 3) for name in names}

    def function(*values):
        arguments = small | dict(zip(names, values, strict=True))
        return OPERATIONS[op].function(**arguments)

    given_small = tuple(small[name] for name in names)
    traced = torch.jit.trace(function, given_small, check_trace=False)
    torch.testing.assert_close(traced(*large.values()), function(*large.values()))


@pytest.mark.parametrize("size", ["small", "large"])
@every_operation
def test_examples_run_and_cost(op, size):
    operation = OPERATIONS[op]
    arguments = operation.example(size)
    found = call(operation, arguments, "numpy")
    wanted = call(operation, arguments, "torch")
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert all(result.isfinite().all() and result.std() > 1e-3 for result in wanted)
    cost = operation.cost(**arguments)
    least = sum(v.nbytes for v in arguments.values() if isinstance(v, torch.Tensor))
    assert cost.flops >= sum(result.numel() for result in wanted[:1])
    assert 0 < cost.intensity < 200
    assert cost.bytes <= 3 * (least + sum(result.nbytes for result in wanted))
    again = operation.example(size, seed=0)
    for name, value in arguments.items():
        assert torch.equal(again[name], value) if torch.is_tensor(value) else again[name] == value


@every_operation
def test_sizes_of_examples_are_named(op):
    with pytest.raises(ValueError, match="size='huge'"):
        OPERATIONS[op].example("huge")


@every_operation
def test_a_form_is_called_as_the_operation_is(op):
    """Tests, benchmarks and the book call every form by the same names of arguments."""
    for backend in ("naive", "numpy", "torch"):
        accepted = set(inspect.signature(kernels.form(op, backend)).parameters)
        wanted = set(inspect.signature(OPERATIONS[op].function).parameters)
        assert wanted - {"backend", "return_last_state"} <= accepted


def test_a_number_that_a_gpu_would_round_to_float32_is_no_argument():
    with pytest.raises(TypeError, match="constants"):
        kernels.launch(None, 1, torch.zeros(1), 0.1)
