"""What is ReLU-softmax attention's own: rows that read nothing, the paper's map, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.relu_attention import cost, example, relu_attention
from refimpl.papers.mpcvit import relu_softmax
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "relu_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
def test_is_the_paper_s_map_times_the_values(backend):
    needs_triton(backend)
    arguments = problem(OP)
    q, k, v = arguments.values()
    wanted = relu_softmax(q @ k.mT * q.shape[-1] ** -0.5) @ v
    torch.testing.assert_close(relu_attention(**arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_a_query_without_a_positive_score_reads_nothing(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32)
    arguments["keys"] = arguments["keys"].abs()
    arguments["queries"][:, :, ::2] = -arguments["queries"][:, :, ::2].abs()
    found = relu_attention(**arguments, backend=backend)
    assert not found[:, :, ::2].any() and found[:, :, 1::2].any()


@pytest.mark.parametrize("backend", FORMS)
def test_copies_of_a_key_share_its_weight(backend):
    needs_triton(backend)
    arguments = problem(OP)
    twice = {name: torch.cat([arguments[name]] * 2, 2) for name in ("keys", "values")}
    torch.testing.assert_close(
        relu_attention(**arguments | twice, backend=backend),
        relu_attention(**arguments, backend=backend),
        rtol=1e-3,
        atol=1e-4,  # ε counts once
    )


def test_no_query_gives_no_result():
    arguments = problem(OP)
    none = arguments | {"queries": arguments["queries"][:, :, :0]}
    for backend in FORMS[:3]:
        assert relu_attention(**none, backend=backend).shape[2] == 0


def test_cost():
    work = cost(**example("large"))
    pairs = 8 * 12
    assert work.flops == pairs * 257**2 * (4 * 16 + 3)
    assert work.bytes == 4 * pairs * 2 * 257 * 32
    assert 60 < work.intensity < 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 5, 7)), "keys must be"),
        (dict(values=torch.randn(2, 2, 5, 8)), "values must be"),
        (dict(keys=torch.randn(2, 2, 0, 8), values=torch.randn(2, 2, 0, 8)), "at least one"),
        (dict(queries=torch.ones(2, 2, 7, 8, dtype=torch.int64)), "queries must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: relu_attention(**example() | change), message)
