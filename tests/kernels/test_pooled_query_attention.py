"""What attention with pooled queries has of its own: the maximum, the layer it serves, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.bases.hiera import MaskUnitAttention, unroll
from refimpl.kernels.pooled_query_attention import cost, example, pooled_query_attention
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "pooled_query_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("pool", [1, 4])
def test_is_pytorchs_attention_of_maxima(backend, pool):
    needs_triton(backend)
    arguments = problem(OP, pool=pool, keys=70)
    q, k, v = (arguments[name] for name in ("queries", "keys", "values"))
    parts = q.chunk(pool, dim=2)
    asked = torch.stack(parts).amax(0)
    wanted = F.scaled_dot_product_attention(asked, k, v)
    torch.testing.assert_close(pooled_query_attention(**arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("local", [True, False])
def test_is_what_the_layer_computes(backend, local):
    needs_triton(backend)
    torch.manual_seed(0)
    layer = MaskUnitAttention(8, 16, 2, (8, 8), 2, local, pool=True)
    seen = {}
    layer.proj.register_forward_pre_hook(lambda module, args: seen.update(y=args[0]))
    tokens = unroll(torch.randn(2, 8, 8, 8), 2)
    with torch.no_grad():
        layer(tokens)
        units = 4 if local else 1
        split = layer.qkv(tokens).unflatten(1, (-1, units)).unflatten(-1, (3, 2, 8))
        q, k, v = split.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (3, b · units, heads, n, d)
        found = pooled_query_attention(q, k, v, backend=backend)
    wanted = seen["y"].unflatten(1, (-1, units)).unflatten(-1, (2, 8))
    wanted = wanted.permute(0, 2, 3, 1, 4).flatten(0, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FORMS)
def test_lower_queries_of_a_group_say_nothing(backend):
    needs_triton(backend)
    arguments = problem(OP, queries=4, pool=4)
    q = arguments["queries"]
    asked = q.unflatten(2, (4, 4)).amax(2)
    low = torch.where(q == asked.repeat(1, 1, 4, 1), q, q - 5)
    wanted = pooled_query_attention(**arguments, backend=backend)
    found = pooled_query_attention(**arguments | {"queries": low}, backend=backend)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_large_scores_do_not_overflow(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32)
    arguments["keys"] = 1000 * arguments["keys"]
    assert pooled_query_attention(**arguments, backend=backend).isfinite().all()


def test_cost_counts_everything_once():
    arguments = example("large")
    work = cost(**arguments)
    pairs = 8 * 49 * 2
    assert work.flops == pairs * 16 * 64 * (4 * 96 + 5)
    assert work.bytes == 4 * pairs * 96 * (64 + 2 * 64 + 16)
    assert work.intensity == pytest.approx(4.99, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 7, 9)), "keys must be"),
        (dict(values=torch.randn(2, 2, 5, 8)), "values must be"),
        (dict(keys=torch.randn(2, 2, 0, 8), values=torch.randn(2, 2, 0, 8)), "at least one"),
        (dict(queries=torch.ones(2, 2, 12, 8, dtype=torch.int64)), "queries must be a floating"),
        (dict(pool=5), "pool=5 must divide the 12 queries"),
        (dict(pool=0), "pool=0 must be an integer of at least 1"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: pooled_query_attention(**example() | change), message)
