"""What is the grid lookup's own: interpolation, the paper's levels, blocks, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.grid_encode import cost, example, geometric_scales, grid_encode, table_rows
from shared.kernels import needs_triton, problem

SMALL = {"num_levels": 2, "coarsest": 4, "finer": 5, "features": 4, "max_entries": 64}


def test_more_points_than_a_block_of_the_triton_kernel():
    needs_triton()
    arguments = problem("grid_encode", dtype=torch.float32, batch=300, **SMALL)
    torch.testing.assert_close(
        grid_encode(**arguments, backend="triton"), grid_encode(**arguments, backend="torch")
    )


def test_a_dense_level_inside_the_grid_is_bilinear_interpolation():
    """Between the outer grid lines a level is `grid_sample` of its table seen as a picture."""
    scales = (6.0,)  # 7 lines
    points = torch.rand(50, 2, dtype=torch.float64) * (5.5 / 6)
    table = torch.randn(table_rows(scales, 2**20), 3, dtype=torch.float64)
    picture = table[:49].view(7, 7, 3).permute(2, 0, 1)[None]
    place = (points * 6 + 0.5) / 6 * 2 - 1
    wanted = F.grid_sample(picture, place[None, None], align_corners=True)[0, :, 0].T
    torch.testing.assert_close(grid_encode(points, table, scales), wanted)


def test_the_levels_of_the_paper():
    """16 levels, 16 to 1024: lines by the float32 rule, the last alone hashed, 19.7 M numbers."""
    scales = geometric_scales(16, 16, 1024)
    lines = [math.ceil(s) + 1 for s in scales]
    assert lines == [16, 22, 28, 37, 49, 65, 85, 112, 148, 195, 257, 338, 446, 589, 777, 1025]
    assert [r for r in lines if r * r > 2**20] == [1025]
    assert table_rows(scales, 2**20) * 8 == pytest.approx(19.7e6, rel=3e-3)
    assert geometric_scales(1, 8, 8) == (7.0,)


@pytest.mark.parametrize("size", ["small", "large"])
def test_cost_is_bound_by_memory(size):
    arguments = example(size)
    values = grid_encode(**arguments)
    assert values.std() > 0.1
    assert cost(**arguments).flops == 8 * values.numel()
    assert cost(**arguments).intensity < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.rand(5, 3)}, "points must be"),
        ({"points": torch.rand(5)}, "points must be"),
        ({"points": torch.rand(5, 2) + 1}, r"must lie in \[0, 1\]"),
        ({"points": torch.full((5, 2), math.nan)}, r"must lie in \[0, 1\]"),
        ({"points": torch.zeros(5, 2, dtype=torch.long)}, "floating-point"),
        ({"table": torch.rand(7)}, "table must be"),
        ({"table": torch.rand(7, 4)}, "table has 7 rows"),
        ({"scales": ()}, "at least one level"),
        ({"scales": (0.0, 3.0)}, "above 0"),
        ({"max_entries": 0}, "max_entries=0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        grid_encode(**problem("grid_encode", dtype=torch.float32, batch=5, **SMALL) | change)


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
