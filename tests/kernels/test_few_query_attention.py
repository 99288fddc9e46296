"""What is few-query attention's own: large scores, split keys, PyTorch's attention, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.few_query_attention import cost, example, few_query_attention
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "few_query_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
def test_is_what_pytorch_calls_scaled_dot_product_attention(backend):
    needs_triton(backend)
    arguments = problem(OP)
    wanted = F.scaled_dot_product_attention(*arguments.values())
    torch.testing.assert_close(few_query_attention(**arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_large_scores_do_not_overflow(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32)
    arguments["keys"] = 1000 * arguments["keys"]
    found = few_query_attention(**arguments, backend=backend)
    assert found.isfinite().all()
    best = (arguments["queries"] @ arguments["keys"].mT).argmax(-1)
    index = best[..., None].expand(*best.shape, arguments["values"].shape[-1])
    torch.testing.assert_close(found, arguments["values"].gather(2, index))


@pytest.mark.parametrize("keys", [511, 1024, 1100])
def test_keys_that_are_split_are_joined(keys):
    """From 1024 keys on several programs share them; the last part may end in empty tiles."""
    needs_triton()
    arguments = problem(OP, batch=1, heads=1, queries=70, keys=keys, width=3, value_width=5)
    wanted = few_query_attention(**arguments, backend="torch")
    found = few_query_attention(**arguments, backend="triton")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", FORMS)
def test_the_order_of_keys_does_not_matter_and_copies_share_their_weight(backend):
    needs_triton(backend)
    arguments = problem(OP)
    wanted = few_query_attention(**arguments, backend=backend)
    order = torch.randperm(arguments["keys"].shape[2])
    twice = torch.cat([order, order])
    for index in (order, twice):
        moved = {name: arguments[name][:, :, index] for name in ("keys", "values")}
        torch.testing.assert_close(
            few_query_attention(**arguments | moved, backend=backend), wanted
        )


def test_no_query_gives_no_result():
    arguments = problem(OP)
    none = arguments | {"queries": arguments["queries"][:, :, :0]}
    for backend in ("naive", "numpy", "torch"):
        assert few_query_attention(**none, backend=backend).shape[2] == 0


def test_cost_counts_keys_and_values_once():
    arguments = example("large")
    work = cost(**arguments)
    pairs = 8 * 12
    assert work.flops == pairs * 36 * 232 * (4 * 32 + 5)
    assert work.bytes == 4 * pairs * 2 * 32 * (36 + 232)
    assert work.intensity < 36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 5, 7)), "keys must be"),
        (dict(values=torch.randn(2, 2, 5, 8)), "values must be"),
        (dict(keys=torch.randn(2, 2, 0, 8), values=torch.randn(2, 2, 0, 8)), "at least one"),
        (dict(queries=torch.ones(2, 2, 4, 8, dtype=torch.int64)), "queries must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: few_query_attention(**example() | change), message)
