"""Every form of grid_encode against the loops in float64: values, gradients, layouts, refusals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.grid_encode import (
    PRIME,
    cost,
    example,
    geometric_scales,
    grid_encode,
    table_rows,
)
from shared.kernels import apart, as_double, needs_triton

quick = settings(deadline=None, max_examples=12, derandomize=True)
shapes = st.tuples(
    st.integers(0, 40),  # points
    st.integers(1, 4),  # levels
    st.integers(2, 9),  # coarsest grid
    st.integers(0, 23),  # how much finer the finest is
    st.sampled_from([1, 2, 4, 8]),  # features
    st.sampled_from([16, 64, 2**20]),  # rows a level, below which it is not hashed
)


def problem(n, levels, base, finer, f, max_entries, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = geometric_scales(levels, base, base + finer)
    points = torch.rand(n, 2, generator=g, dtype=torch.float64).to(dtype)
    table = torch.randn(table_rows(scales, max_entries), f, generator=g, dtype=torch.float64).to(
        dtype
    )
    return dict(points=points, table=table, scales=scales, max_entries=max_entries)


def composed(points, table, scales, max_entries):
    """The lookup as a chain of plain operations, level by level, in the precision of its inputs: the yardstick of the error."""
    out, first = [], 0
    for scale in scales:
        lines = math.ceil(scale) + 1
        rows = min((lines**2 + 7) // 8 * 8, max_entries)
        place = points * scale + 0.5
        cell = place.detach().floor()
        t = place - cell
        level = 0
        for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = (cell + torch.tensor([i, j])).long().unbind(1)
            index = (
                (x ^ (y * PRIME & 0xFFFFFFFF)) % rows
                if lines**2 > max_entries
                else (x + y * lines) % rows
            )
            weight = (t[:, 0] if i else 1 - t[:, 0]) * (t[:, 1] if j else 1 - t[:, 1])
            level = level + weight[:, None] * table[first + index]
        out.append(level)
        first += rows
    return torch.cat(out, 1)


@quick
@given(shapes)
def test_every_form_equals_the_loops_in_float64(drawn):
    arguments = problem(*drawn)
    truth = grid_encode(**arguments, backend="naive")
    assert truth.shape == (drawn[0], drawn[1] * drawn[4])
    for backend in ("numpy", "torch"):
        torch.testing.assert_close(
            grid_encode(**arguments, backend=backend), truth, rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(composed(**arguments), truth, rtol=1e-12, atol=1e-12)


@settings(quick, max_examples=8)
@given(shapes)
@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_float32_error_is_at_most_twice_the_composed_form_s(backend, drawn):
    needs_triton(backend)
    arguments = problem(*drawn, dtype=torch.float32)
    truth = grid_encode(**as_double(arguments), backend="naive")
    yardstick = apart(composed(**arguments), truth)
    assert apart(grid_encode(**arguments, backend=backend), truth) <= max(
        2 * yardstick, 2**-23 * float(truth.norm())
    )


@settings(quick, max_examples=6)
@given(shapes)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_of_table_and_points(backend, drawn):
    needs_triton(backend)
    arguments = problem(*drawn, dtype=torch.float32)
    upstream = torch.randn(
        drawn[0], drawn[1] * drawn[4], generator=torch.Generator().manual_seed(1)
    )

    def gradients(call, arguments):
        leaves = {k: arguments[k].detach().clone().requires_grad_() for k in ("points", "table")}
        out = call(**(arguments | leaves))
        return torch.autograd.grad(out, list(leaves.values()), upstream.to(out.dtype))

    truth, yardstick = gradients(composed, as_double(arguments)), gradients(composed, arguments)
    found = gradients(lambda **a: grid_encode(**a, backend=backend), arguments)
    for name, f, y, t in zip(("points", "table"), found, yardstick, truth, strict=True):
        assert f.isfinite().all()
        assert apart(f, t) <= max(3 * apart(y, t), 2**-22 * float(t.norm())), name


def test_gradient_of_the_torch_form_in_float64():
    a = problem(7, 3, 3, 9, 2, 64)
    leaves = a["points"].requires_grad_(), a["table"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, t: grid_encode(p, t, a["scales"], a["max_entries"], backend="torch"), leaves
    )


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_non_contiguous_points_and_table(backend):
    needs_triton(backend)
    a = problem(11, 2, 4, 5, 4, 64, torch.float32)
    wanted = grid_encode(**a, backend="torch")
    spread = dict(a, points=a["points"].T.contiguous().T, table=a["table"].T.contiguous().T)
    torch.testing.assert_close(grid_encode(**spread, backend=backend), wanted)


def test_more_points_than_a_block_of_the_triton_kernel():
    needs_triton()
    a = problem(300, 2, 4, 5, 4, 64, torch.float32)
    torch.testing.assert_close(
        grid_encode(**a, backend="triton"), grid_encode(**a, backend="torch")
    )


def test_a_dense_level_inside_the_grid_is_bilinear_interpolation():
    """Between the outer grid lines a level is `grid_sample` of its table seen as a picture."""
    (scale,) = scales = (6.0,)  # 7 lines
    points = torch.rand(50, 2, dtype=torch.float64) * (5.5 / scale)
    table = torch.randn(table_rows(scales, 2**20), 3, dtype=torch.float64)
    picture = table[:49].view(7, 7, 3).permute(2, 0, 1)[None]
    place = (points * scale + 0.5) / 6 * 2 - 1
    wanted = F.grid_sample(picture, place[None, None], align_corners=True)[0, :, 0].T
    torch.testing.assert_close(grid_encode(points, table, scales), wanted)


def test_the_levels_of_the_paper():
    """16 levels from 16 to 1024: the grid lines that the float32 rule gives, the last level alone hashed, 19.7 M numbers."""
    scales = geometric_scales(16, 16, 1024)
    lines = [math.ceil(s) + 1 for s in scales]
    assert lines == [16, 22, 28, 37, 49, 65, 85, 112, 148, 195, 257, 338, 446, 589, 777, 1025]
    assert [r for r in lines if r * r > 2**20] == [1025]
    assert table_rows(scales, 2**20) * 8 == pytest.approx(19.7e6, rel=3e-3)
    assert geometric_scales(1, 8, 8) == (7.0,)


def test_example_and_cost():
    for size in ("small", "large"):
        a = example(size)
        out = grid_encode(**a)
        assert out.isfinite().all() and out.std() > 0.1
        assert cost(**a).flops == 8 * out.numel()
        assert cost(**a).intensity < 1
    np.testing.assert_array_equal(example(seed=3)["table"], example(seed=3)["table"])
    with pytest.raises(ValueError, match="size='huge'"):
        example("huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(points=torch.rand(5, 3)), "points must be"),
        (dict(points=torch.rand(5)), "points must be"),
        (dict(points=torch.rand(5, 2) + 1), r"must lie in \[0, 1\]"),
        (dict(points=torch.full((5, 2), math.nan)), r"must lie in \[0, 1\]"),
        (dict(points=torch.zeros(5, 2, dtype=torch.long)), "floating point"),
        (dict(table=torch.rand(7)), "table must be"),
        (dict(table=torch.rand(7, 4)), "table has 7 rows"),
        (dict(scales=()), "at least one level"),
        (dict(scales=(0.0, 3.0)), "above 0"),
        (dict(max_entries=0), "max_entries=0"),
        (dict(backend="cuda"), "backend='cuda' is not one of"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        grid_encode(**(problem(5, 2, 4, 5, 4, 64, torch.float32) | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 8), "num_levels=0"),
        ((2, 1, 8), "base_resolution=1"),
        ((2, 9, 8), "max_resolution=8"),
    ],
)
def test_bad_levels(arguments, message):
    with pytest.raises(ValueError, match=message):
        geometric_scales(*arguments)


@pytest.mark.parametrize("change", [dict(dtype=torch.float64), dict(f=3)])
def test_what_the_triton_form_refuses(change):
    needs_triton()
    a = problem(5, 2, 4, 5, change.get("f", 4), 64, change.get("dtype", torch.float32))
    with pytest.raises(ValueError, match="the Triton form takes"):
        grid_encode(**a, backend="triton")
