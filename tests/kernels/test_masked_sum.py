"""What is the masked sum's own: words, no product anywhere, attention over codes, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels.masked_sum import cost, example, masked_sum, pack, unpack, with_numpy
from refimpl.papers.shiftaddvit import add_attention
from shared.kernels import needs_triton, problem

OP = "masked_sum"


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 4), st.integers(1, 100))
def test_packing_is_undone(tokens, outputs):
    g = torch.Generator().manual_seed(outputs)
    chosen = torch.rand(2, tokens, outputs, generator=g) < 0.5
    words = pack(chosen)
    assert words.dtype == torch.int32
    assert words.shape == (2, tokens, -(-outputs // 32))
    assert torch.equal(unpack(words, outputs), chosen.int())


def test_a_word_bit_by_bit():
    """The first output lowest; the 32nd is the sign; the 33rd begins a new word."""
    chosen = torch.zeros(33, dtype=torch.bool)
    chosen[[0, 2, 31, 32]] = True
    assert pack(chosen).tolist() == [5 - 2**31, 1]


class Counted(np.ndarray):
    """An array that notes which of NumPy's functions are applied to it."""

    seen: set = set()

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        Counted.seen.add(ufunc.__name__)
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(x.view(np.ndarray) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


def test_sums_of_rows_need_no_product():
    arguments = problem(OP)
    wanted = masked_sum(**arguments)
    Counted.seen.clear()
    found = with_numpy(
        arguments["values"].numpy().view(Counted), arguments["mask"].numpy(), outputs=16
    )
    torch.testing.assert_close(torch.from_numpy(found.view(np.ndarray)), wanted)
    assert Counted.seen == {"add"}


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_both_products_of_attention_over_codes(backend):
    """C_kᵀ v has as many outputs as bits; C_q of its rows has as many as tokens."""
    needs_triton(backend)
    queries, keys = (torch.rand(2, 2, 3, 40, 16) > 0.5).double()
    values = torch.randn(2, 3, 40, 4, dtype=torch.float64)
    context = masked_sum(values.flatten(0, 1), pack(keys.flatten(0, 1)), 16, backend)
    read = masked_sum(context, pack(queries.flatten(0, 1).mT), 40, backend)
    read = values / 2 + read.view_as(values) / math.pi
    wanted = add_attention(queries, keys, values)
    torch.testing.assert_close(read / read.norm(dim=-1, keepdim=True), wanted)


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
def test_what_is_not_chosen_is_not_looked_at(backend):
    """A product would make NaN of 0 · ∞; sums of chosen rows do not, but PyTorch's form is one."""
    needs_triton(backend)
    values = torch.tensor([[[1.0], [torch.inf]]])
    mask = pack(torch.tensor([[[True, False], [False, True]]]))
    found = masked_sum(values, mask, 2, backend)[0, :, 0]
    assert found[1] == torch.inf
    assert found[0].isnan() if backend == "torch" else found[0] == 1


@pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
@pytest.mark.parametrize(("tokens", "channels"), [(0, 3), (2, 0)])
def test_nothing_to_add(backend, tokens, channels):
    needs_triton(backend)
    mask = torch.zeros(2, tokens, 1, dtype=torch.int32)
    found = masked_sum(torch.ones(2, tokens, channels), mask, 5, backend)
    assert found.shape == (2, 5, channels)
    assert not found.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": 0}, "outputs=0 must be an integer of at least 1"),
        ({"outputs": 2.0}, "outputs=2.0 must be an integer"),
        ({"outputs": 33}, r"mask must be \(2, 16, 2\)"),
        ({"values": torch.ones(2, 16, 8, dtype=torch.int64)}, "values must be a floating-point"),
        ({"values": torch.ones(16, 8)}, "values must be"),
        ({"values": torch.ones(2, 15, 8)}, "mask must be"),
        ({"mask": torch.ones(2, 16, 1)}, "mask must be int32"),
    ],
)
def test_bad_input_is_named(change, words):
    choice = {"batch": 2, "tokens": 16, "channels": 8, "outputs": 16}
    with pytest.raises(ValueError, match=words):
        masked_sum(**problem(OP, dtype=torch.float32, **choice) | change)


def test_other_numbers_than_zero_and_one_are_refused():
    for wrong in (2, 0.5, float("nan")):
        with pytest.raises(ValueError, match="chosen must hold zeros and ones only"):
            pack(torch.tensor([0, wrong]))


def test_cost_counts_an_addition_for_every_second_bit():
    work = cost(**example("large"))
    assert work.flops == 4 * 3136 * 16 * 32 / 2
    assert work.bytes == 4 * (4 * 3136 * 32 + 4 * 3136 + 4 * 16 * 32)
    assert 1.9 < work.intensity < 2.1
