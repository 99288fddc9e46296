"""Every form of lvq_inner_product against the loops in float64: values, gradients, layouts, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.lvq_inner_product import cost, example, lvq_inner_product, pack, unpack, width
from shared.kernels import apart, as_double, needs_triton

quick = settings(deadline=None, max_examples=12, derandomize=True)
shapes = st.tuples(
    st.sampled_from([(), (3,), (2, 1)]),
    st.integers(1, 19),
    st.integers(1, 70),
    st.integers(1, 41),
    st.integers(1, 8),
    st.booleans(),
)


def problem(lead, m, n, d, bits, with_mean=True, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*lead, n, d), generator=g, dtype=torch.uint8)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    scale = draw(*lead, n).abs() / (2**bits - 1)
    return {
        "queries": draw(*lead, m, d),
        "codes": pack(codes, bits),
        "scale": scale,
        "bias": draw(*lead, n),
        "mean": draw(d) if with_mean else None,
        "bits": bits,
    }


def decode_then_multiply(queries, codes, scale, bias, mean, bits):
    """The composed form in the queries' own precision: the yardstick of the error."""
    vectors = (
        unpack(codes, queries.shape[-1], bits).to(queries.dtype) * scale[..., None]
        + bias[..., None]
    )
    return queries @ (vectors if mean is None else vectors + mean).mT


@quick
@given(shapes)
def test_numpy_and_torch_equal_the_loops_in_float64(drawn):
    arguments = problem(*drawn)
    truth = lvq_inner_product(**arguments, backend="naive")
    for backend in ("numpy", "torch"):
        torch.testing.assert_close(
            lvq_inner_product(**arguments, backend=backend), truth, rtol=1e-12, atol=1e-12
        )


@settings(quick, max_examples=6)
@given(shapes)
@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_float32_error_is_at_most_twice_the_composed_form_s(backend, drawn):
    """The factored form subtracts large numbers only where Σq is large: floor of a few roundings of the terms for tiny shapes."""
    needs_triton(backend)
    lead, m, n, d, bits, with_mean = drawn
    arguments = problem(lead, min(m, 5), n, d, bits, with_mean, torch.float32)
    truth = lvq_inner_product(**as_double(arguments), backend="naive")
    yardstick = apart(decode_then_multiply(**arguments), truth)
    rounding = 2**-24 * float(
        truth.norm()
        + (arguments["queries"].double().abs().sum(-1).norm() * arguments["bias"].double().norm())
    )
    assert apart(lvq_inner_product(**arguments, backend=backend), truth) <= max(
        2 * yardstick, 4 * rounding
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients(backend, bits):
    needs_triton(backend)
    arguments = problem((2,), 5, 17, 9, bits, dtype=torch.float32)
    upstream = torch.randn(2, 5, 17, generator=torch.Generator().manual_seed(1))
    names = ("queries", "scale", "bias", "mean")

    def gradients(call, arguments):
        leaves = {k: arguments[k].detach().clone().requires_grad_() for k in names}
        out = call(**(arguments | leaves))
        return torch.autograd.grad(out, list(leaves.values()), upstream.to(out.dtype))

    truth = gradients(decode_then_multiply, as_double(arguments))
    yardstick = gradients(decode_then_multiply, arguments)
    found = gradients(lambda **a: lvq_inner_product(**a, backend=backend), arguments)
    for name, f, y, t in zip(names, found, yardstick, truth, strict=True):
        assert apart(f, t) <= max(3 * apart(y, t), 2**-22 * float(t.norm())), name


def test_gradient_of_the_torch_form_in_float64():
    a = problem((), 3, 5, 7, 4)
    leaves = [a[k].requires_grad_() for k in ("queries", "scale", "bias", "mean")]
    assert torch.autograd.gradcheck(
        lambda q, s, b, mean: lvq_inner_product(q, a["codes"], s, b, mean, bits=4, backend="torch"),
        leaves,
    )


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_non_contiguous_and_empty(backend):
    needs_triton(backend)
    a = problem((), 6, 20, 11, 8, dtype=torch.float32)
    wanted = lvq_inner_product(**a, backend="torch")
    spread = dict(
        a,
        queries=a["queries"].T.contiguous().T,
        codes=a["codes"].T.contiguous().T,
        scale=torch.stack([a["scale"], a["bias"]], 1)[:, 0],
    )
    torch.testing.assert_close(lvq_inner_product(**spread, backend=backend), wanted)
    assert lvq_inner_product(**dict(a, queries=a["queries"][:0]), backend=backend).shape == (0, 20)
    none = dict(a, codes=a["codes"][:0], scale=a["scale"][:0], bias=a["bias"][:0])
    assert lvq_inner_product(**none, backend=backend).shape == (6, 0)
    batch = problem((0,), 2, 3, 4, 4, dtype=torch.float32)
    assert lvq_inner_product(**batch, backend=backend).shape == (0, 2, 3)


def test_more_vectors_than_a_block():
    a = problem((), 2, 5000, 3, 4)
    torch.testing.assert_close(lvq_inner_product(**a, backend="torch"), decode_then_multiply(**a))
    torch.testing.assert_close(lvq_inner_product(**a, backend="numpy"), decode_then_multiply(**a))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_queries(backend, dtype):
    needs_triton(backend)
    a = problem((), 4, 30, 24, 8, dtype=torch.float32)
    a["queries"] = a["queries"].to(dtype)
    truth = lvq_inner_product(**as_double(a), backend="naive")
    result = lvq_inner_product(**a, backend=backend)
    assert result.dtype == dtype
    assert apart(result, truth) <= 2 * apart(
        decode_then_multiply(
            **{
                k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in a.items()
            }
        ),
        truth,
    )


@quick
@given(st.integers(0, 30), st.integers(1, 8))
def test_packing_is_undone(d, bits):
    codes = np.random.default_rng(d).integers(0, 2**bits, (5, d)).astype(np.uint8)
    for values in (codes, torch.from_numpy(codes)):
        packed = pack(values, bits)
        assert packed.shape == (5, width(d, bits))
        assert (np.asarray(unpack(packed, d, bits)) == codes).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits=9 must be 1 to 8"),
        ({"queries": torch.ones(4, 7, dtype=torch.int64)}, "queries must be floating point"),
        ({"codes": torch.zeros(5, 7)}, "codes must be uint8"),
        ({"codes": torch.zeros(5, 6, dtype=torch.uint8)}, r"have shape \(n, 7\), got \(5, 6\)"),
        ({"bits": 4}, r"have shape \(n, 4\), got \(5, 7\)"),
        ({"scale": torch.ones(4)}, "scale has shape"),
        ({"bias": torch.ones(5, 1)}, "bias has shape"),
        ({"mean": torch.ones(5)}, r"mean has shape \(5,\), wanted \(7,\)"),
        ({"backend": "cuda"}, "backend='cuda' is not one of"),
    ],
)
def test_bad_input_is_named(change, words):
    a = problem((), 4, 5, 7, 8, dtype=torch.float32) | change
    with pytest.raises(ValueError, match=words):
        lvq_inner_product(**a)


def test_triton_refuses_float64():
    needs_triton()
    with pytest.raises(ValueError, match="float32"):
        lvq_inner_product(**problem((), 2, 3, 4, 8), backend="triton")


def test_cost_counts_a_byte_a_code():
    a = example("large")
    work = cost(**a)
    assert work.flops == 64 * 20_000 * (2 * 96 + 3)
    assert work.bytes == 20_000 * (96 + 8) + 4 * (64 * 96 + 64 * 20_000)
