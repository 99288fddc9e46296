"""What is the scatter's own: PyTorch's attention with roles exchanged, the pair, many queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.few_query_attention import few_query_attention
from refimpl.kernels.scatter_attention import cost, example, scatter_attention
from refimpl.papers.lookupvit import LookupBlock, look_up
from shared.kernels import needs_triton, problem
from shared.models import assert_refused, lively

OP = "scatter_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
def test_is_attention_in_which_keys_ask_queries(backend):
    needs_triton(backend)
    q, k, v = problem(OP).values()
    wanted = F.scaled_dot_product_attention(k, q, v)
    torch.testing.assert_close(scatter_attention(q, k, v, backend=backend), wanted)


def test_the_pair_of_kernels_is_the_block():
    """Gather and scatter from the same queries and keys, without stored scores."""
    torch.manual_seed(0)
    block = lively(LookupBlock(24, 3))
    compressed, lookup = torch.randn(2, 4, 24), torch.randn(2, 9, 24)
    with torch.no_grad():
        wanted = look_up(compressed, lookup, block.gather, block.refine, block.scatter)
        queries, keys, values = block.gather(compressed, lookup)
        found = few_query_attention(queries, keys, values).transpose(1, 2).flatten(2)
        thought = block.refine(compressed + block.gather.proj(found))
        answers = scatter_attention(queries, keys, block.scatter(thought))
        written = lookup + block.scatter.proj(answers.transpose(1, 2).flatten(2))
    torch.testing.assert_close((thought, written), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FORMS)
def test_large_scores_do_not_overflow(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32)
    arguments["keys"] = 1e5 * arguments["keys"]
    found = scatter_attention(**arguments, backend=backend)
    assert found.isfinite().all()
    best = (arguments["keys"] @ arguments["queries"].mT).argmax(-1)
    index = best[..., None].expand(*best.shape, arguments["values"].shape[-1])
    torch.testing.assert_close(found, arguments["values"].gather(2, index))


@pytest.mark.parametrize("queries", [64, 65, 150])
def test_more_queries_than_a_tile_holds(queries):
    needs_triton()
    arguments = problem(OP, batch=1, heads=1, queries=queries, keys=70, width=3, value_width=5)
    wanted = scatter_attention(**arguments, backend="torch")
    found = scatter_attention(**arguments, backend="triton")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", FORMS)
def test_each_of_the_many_takes_a_mean_of_its_own(backend):
    """Equal values come back everywhere; reordering keys reorders results, and nothing else."""
    needs_triton(backend)
    arguments = problem(OP)
    one = torch.full_like(arguments["values"], 3.0)
    found = scatter_attention(**arguments | {"values": one}, backend=backend)
    torch.testing.assert_close(found, torch.full_like(found, 3.0))
    order = torch.randperm(arguments["keys"].shape[2])
    wanted = scatter_attention(**arguments, backend=backend)[:, :, order]
    moved = arguments | {"keys": arguments["keys"][:, :, order]}
    torch.testing.assert_close(scatter_attention(**moved, backend=backend), wanted)


def test_nobody_to_answer_gives_no_result():
    arguments = problem(OP)
    none = arguments | {"keys": arguments["keys"][:, :, :0]}
    for backend in ("naive", "numpy", "torch"):
        assert scatter_attention(**none, backend=backend).shape[2] == 0


def test_cost_counts_keys_and_results_once():
    work = cost(**example("large"))
    pairs = 8 * 12
    assert work.flops == pairs * 25 * 196 * (4 * 64 + 5)
    assert work.bytes == 4 * pairs * 2 * 64 * (25 + 196)
    assert work.intensity < 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 5, 7)), "keys must be"),
        (dict(values=torch.randn(2, 2, 19, 8)), "values must be"),
        (dict(queries=torch.randn(2, 2, 0, 8), values=torch.randn(2, 2, 0, 8)), "at least one"),
        (dict(queries=torch.ones(2, 2, 4, 8, dtype=torch.int64)), "queries must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: scatter_attention(**example() | change), message)
