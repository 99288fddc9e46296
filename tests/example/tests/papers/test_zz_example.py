"""ZZ-Example: equal to the reference outputs; the mean stays, distances shrink."""

import pytest
import torch

from refimpl import golden
from refimpl.papers.zz_example import ZZExample, lean

STEM = "zz_example"


def test_official(official_case):
    assert golden.certify(ZZExample(**official_case.kwargs), official_case) < 1e-5


def test_the_mean_stays_and_distances_shrink():
    tokens = torch.randn(2, 9, 4, dtype=torch.float64)
    leaned = lean(tokens, 0.25)
    assert torch.allclose(leaned.mean(dim=1), tokens.mean(dim=1))
    assert torch.allclose(leaned[:, 0] - leaned[:, 1], 0.75 * (tokens[:, 0] - tokens[:, 1]))


def test_a_fraction_above_one_passes_the_mean():
    assert lean(torch.tensor([[[0.0], [2.0]]]), 1.5).flatten().tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "named"), [({"img_size": 30}, "img_size=30"), ({"depth": 0}, "depth=0")]
)
def test_bad_arguments_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        ZZExample(**arguments)
