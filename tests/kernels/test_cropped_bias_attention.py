"""What attention with a cropped bias has of its own: the crop, the sign of offsets, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.bases.elastic_blocks import Attention
from refimpl.bases.swin import offset_index
from refimpl.kernels.cropped_bias_attention import cost, cropped_bias_attention, example
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "cropped_bias_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
def test_is_pytorchs_attention_with_the_bias_of_a_window(backend):
    needs_triton(backend)
    arguments = problem(OP, larger=0)
    side = 3
    index = offset_index((side, side))
    bias = arguments["table"].flatten(1)[:, index]
    q, k, v = (arguments[name] for name in ("queries", "keys", "values"))
    wanted = F.scaled_dot_product_attention(q, k, v, bias[None])
    torch.testing.assert_close(cropped_bias_attention(**arguments, backend=backend), wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_only_the_middle_of_the_table_counts(backend):
    needs_triton(backend)
    arguments = problem(OP, side=3, larger=3)
    wanted = cropped_bias_attention(**arguments, backend=backend)
    table = torch.full_like(arguments["table"], torch.nan)
    table[:, 3:-3, 3:-3] = arguments["table"][:, 3:-3, 3:-3]
    for changed in (table, table[:, 2:-2, 2:-2], table[:, 3:-3, 3:-3]):
        found = cropped_bias_attention(**arguments | {"table": changed}, backend=backend)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_a_bias_can_point_to_one_neighbour(backend):
    """A high bias at the offset (0, 1): every token takes the value of its left neighbour."""
    needs_triton(backend)
    arguments = problem(OP, side=3, larger=1)
    arguments["table"] = torch.zeros_like(arguments["table"])
    arguments["table"][:, 3, 4] = 1000.0
    found = cropped_bias_attention(**arguments, backend=backend)
    torch.testing.assert_close(found[:, :, 1:3], arguments["values"][:, :, 0:2])


@pytest.mark.parametrize("backend", FORMS)
def test_is_what_the_layer_computes(backend):
    needs_triton(backend)
    torch.manual_seed(0)
    layer = Attention(32, 4, 3)
    torch.nn.init.normal_(layer.bias_table)
    torch.nn.init.eye_(layer.proj.weight[:, :32])
    seen = {}
    layer.proj.register_forward_pre_hook(lambda module, args: seen.update(y=args[0]))
    layer.value_conv.register_forward_hook(lambda module, args, output: seen.update(v=output))
    x = torch.randn(2, 16, 32)
    with torch.no_grad():
        layer(x)
        qkv = layer.qkv(layer.norm(x)).unflatten(2, (2, -1)).transpose(1, 2)
        table = layer.bias_table.T.unflatten(1, (7, 7))
        values = seen["v"].flatten(2).unflatten(1, (2, -1)).mT
        found = cropped_bias_attention(
            qkv[..., :16], qkv[..., 16:32], values, table, backend=backend
        )
        torch.testing.assert_close(F.hardswish(found.transpose(1, 2).flatten(2)), seen["y"])


def test_triton_refuses_what_is_no_single_tile():
    needs_triton()
    arguments = problem(OP, batch=1, heads=1, side=33, larger=0)
    assert_refused(lambda: cropped_bias_attention(**arguments, backend="triton"), "1024 tokens")


def test_cost_counts_the_table_once_for_a_batch():
    work = cost(**example("large"))
    pairs, n, d, e = 32, 144, 16, 32
    assert work.flops == pairs * n * n * (2 * (d + e) + 7)
    assert work.bytes == 4 * (pairs * n * 2 * (d + e) + 4 * 23**2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 9, 7)), "keys must be"),
        (dict(values=torch.randn(2, 2, 5, 8)), "values must be"),
        (dict(table=torch.randn(2, 3, 3)), "table must hold an odd square of offsets, 5 or more"),
        (dict(table=torch.randn(2, 6, 6)), "table must hold an odd square"),
        (dict(table=torch.randn(2, 5, 7)), "table must hold an odd square"),
        (dict(table=torch.ones(2, 5, 5, dtype=torch.int64)), "table must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: cropped_bias_attention(**example() | change), message)


def test_tokens_of_no_square_grid_are_refused():
    given = {name: torch.randn(1, 2, 6, 4) for name in ("queries", "keys", "values")}
    table = torch.randn(2, 7, 7)
    assert_refused(lambda: cropped_bias_attention(**given, table=table), "of a square grid")
