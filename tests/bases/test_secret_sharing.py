"""Two parties on shares: right results, counted rounds and bytes, nothing learned from a share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refimpl.bases import secret_sharing as ss
from refimpl.bases.secret_sharing import functions, ring
from refimpl.bases.secret_sharing.party import Dealer, Party
from shared.models import assert_refused

GENERATOR = np.random.default_rng


def normal(*shape, seed=0):
    return GENERATOR(seed).standard_normal(shape)


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("values", [0.0, [1.5, -2.25], [[2.0**19, -(2.0**19)]], normal(3, 0)])
def test_encode_share_reconstruct(values):
    whole = ss.encode(values)
    first, second = ss.share(whole, GENERATOR(0))
    assert np.array_equal(ss.reconstruct(first, second), whole)
    assert np.abs(ss.decode(whole) - values).max(initial=0) <= 2.0**-17
    if whole.any():
        assert not np.array_equal(first, whole) and not np.array_equal(second, whole)


@pytest.mark.parametrize("bits", [1, 16, 30])
def test_truncation_is_right_to_one_unit(bits):
    whole = GENERATOR(1).integers(-(2**40), 2**40, 20_000)
    first, second = ss.share(whole.view(np.uint64), GENERATOR(2))
    parts = [ring.truncated(part, i, bits) for i, part in enumerate((first, second))]
    found = ss.reconstruct(*parts).view(np.int64)
    assert np.abs(found - (whole >> bits)).max() <= 1


def test_truncation_fails_as_often_as_it_must():
    """By about |x| / 2⁶⁴: a number of 2⁶⁰ so fails in a sixteenth of the draws."""
    whole = np.full(20_000, 2**60, np.uint64)
    pair = ss.share(whole, GENERATOR(3))
    parts = [ring.truncated(part, i) for i, part in enumerate(pair)]
    wrong = np.abs(ss.reconstruct(*parts).view(np.int64) - 2**44) > 1
    assert abs(wrong.mean() - 2.0**-4) < 0.01


# ---------------------------------------------------------------- operations


def test_beaver_is_exact_in_the_ring():
    """Before truncation; d · e is added once, by one party."""
    x, y = GENERATOR(0).integers(0, 2**64, (2, 500), np.uint64)
    generator = GENERATOR(1)
    pairs = [ss.share(part, generator) for part in (x, y)]

    def program(party, blank):
        return party.product(*(pair[party.index] for pair in pairs))

    # Inputs are shares already; the outcome's value is the product, decoded.
    found = ss.run(program, np.zeros(500))
    assert np.array_equal(found.value, ss.decode(x * y))


@pytest.mark.parametrize(
    ("program", "shapes", "wanted", "rounds", "size", "error"),
    [
        (Party.multiply, [(4, 5)] * 2, np.multiply, 1, 32 * 20, 1e-4),
        (Party.square, [(4, 5)], np.square, 1, 16 * 20, 1e-4),
        (Party.matmul, [(3, 4, 5), (3, 5, 2)], np.matmul, 1, 16 * 3 * (20 + 10), 1e-3),
        (Party.relu, [(4, 5)], lambda x: np.maximum(x, 0), 9, 416.25 * 20, 1e-4),
        (functions.exp, [(4, 5)], np.exp, 8, 128 * 20, None),
        (functions.maximum, [(4, 5)], lambda x: x.max(-1, keepdims=True), 27, 416.25 * 16, 1e-3),
        (functions.maximum, [(4, 1)], lambda x: x, 0, 0, 1e-4),
    ],
)
def test_results_rounds_and_bytes(program, shapes, wanted, rounds, size, error):
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    found = ss.run(program, *inputs)
    assert (found.traffic.rounds, found.traffic.bytes) == (rounds, size)
    if error:
        np.testing.assert_allclose(found.value, wanted(*inputs), atol=error)
    other = ss.run(program, *inputs, seed=1)
    np.testing.assert_allclose(other.value, found.value, atol=0.05)


@pytest.mark.parametrize("value", [-5e5, -1.0, -(2.0**-16), 0.0, 2.0**-16, 3.0, 5e5])
def test_comparison_with_zero(value):
    """At the edges, and over many shares of one number: carries run through all 64 bits."""
    found = ss.run(Party.negative, np.full(300, value))
    assert np.array_equal(found.value * 2**16, np.full(300, float(value < 0)))
    assert (found.traffic.rounds, found.traffic.bytes) == (8, 384.25 * 300)


@pytest.mark.parametrize(
    ("function", "wanted", "low", "high", "error", "rounds"),
    [
        (functions.exp, np.exp, -20, 1, 0.02, 8),
        (functions.reciprocal, np.reciprocal, 0.5, 400, 1e-3, 28),
        (functions.inverse_root, lambda x: x**-0.5, 0.1, 100, 0.02, 17),
    ],
)
def test_functions_in_their_range(function, wanted, low, high, error, rounds):
    x = np.linspace(low, high, 501)
    found = ss.run(function, x)
    assert np.abs(found.value - wanted(x)).max() < error
    assert found.traffic.rounds == rounds


def test_gelu_and_layer_norm():
    x = np.linspace(-8, 8, 999)
    found = ss.run(functions.gelu, x)
    wanted = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    inner = np.abs(x) < 2.7
    assert np.abs(found.value - wanted)[inner].max() < 2e-3
    assert np.abs(found.value - wanted).max() < 0.01
    assert (found.traffic.rounds, found.traffic.bytes) == (12, 1328.75 * 999)
    x, weight, bias = 2 * normal(7, 24), normal(24, seed=1), normal(24, seed=2)
    found = ss.run(functions.layer_norm, x, weight, bias)
    tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
    wanted = torch.nn.functional.layer_norm(tensors[0], (24,), *tensors[1:]).numpy()
    np.testing.assert_allclose(found.value, wanted, atol=2e-3)
    assert found.traffic.rounds == 20


@pytest.mark.parametrize("n", [2, 9, 17, 65])
@pytest.mark.parametrize("kind", ss.MAPS)
def test_maps_and_their_closed_form(kind, n):
    scores = 1.5 * normal(2, n, n)
    found = ss.run(lambda party, x: ss.secure_weights(party, x, kind), scores)
    cost = ss.map_cost(kind, n, 2 * n)
    assert (found.traffic.rounds, found.traffic.bits) == (cost.rounds, cost.bits)
    x = torch.from_numpy(scores)
    positive, squares = x.relu(), x.square()
    wanted = {
        "softmax": x.softmax(-1),
        "relu_softmax": positive / (positive.sum(-1, keepdim=True) + 2**-16),
        "two_quad": squares / (squares.sum(-1, keepdim=True) + 2**-16),
        "scaling": x / n,
    }[kind]
    large = (positive if kind == "relu_softmax" else squares).sum(-1) > 0.1
    assert (torch.from_numpy(found.value) - wanted)[large].abs().max() < 0.01


def test_the_measured_table():
    """Rounds, megabytes online and offline, seconds in the two networks: 4 heads, 65 tokens."""
    scores = normal(4, 65, 65)
    found = ss.run(functions.softmax, scores)
    assert found.traffic.rounds == 100
    assert found.traffic.bytes / 1e6 == pytest.approx(9.830, abs=1e-3)
    assert found.traffic.offline_bytes / 1e6 == pytest.approx(16.1, abs=0.05)
    assert ss.LAN.seconds(found.traffic) == pytest.approx(0.043, abs=1e-3)
    assert ss.WAN.seconds(found.traffic) == pytest.approx(4.11, abs=0.01)
    assert {k: v.rounds for k, v in found.parts.items()} == {
        "maximum": 63,
        "exp": 8,
        "division": 29,
    }


def test_tokens_without_gelu_are_cheaper():
    x, fc1, fc2 = normal(5, 8), 0.3 * normal(8, 16), 0.3 * normal(16, 8)
    wide, narrow = normal(16, seed=3), normal(8, seed=4)
    plain = ss.run(ss.secure_mlp, x, fc1, wide, fc2, narrow)
    merged = ss.run(ss.secure_mlp, x, fc1 @ fc2, wide @ fc2 + narrow)
    wanted = np.maximum(x @ fc1 @ fc2 + wide @ fc2 + narrow, 0)
    np.testing.assert_allclose(merged.value, wanted, atol=5e-3)
    u = torch.nn.functional.gelu(torch.from_numpy(x @ fc1 + wide)).numpy()
    np.testing.assert_allclose(plain.value, u @ fc2 + narrow, atol=0.05)
    assert (plain.traffic.rounds, merged.traffic.rounds) == (14, 10)
    assert plain.parts["GELU"].bytes == 1328.75 * 80 and merged.parts["ReLU"].bytes == 416.25 * 40


# ---------------------------------------------------------------- what a party sees


def chi_square(words: np.ndarray) -> float:
    """Of the bytes of these words against uniform ones: 255 degrees of freedom."""
    counts = np.bincount(words.reshape(-1).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


FAR = 380.0  # of χ² with 255 degrees of freedom, beyond which lies a share of 5e-7


def views(program, values, **how):
    """For each party: its share of the input, and all words that reached it but lone bits."""
    outcome = ss.run(program, values, keep=True, **how)
    shares = ss.share(ss.encode(values), GENERATOR(5))
    found = []
    for share, received in zip(shares, outcome.received, strict=True):
        words = [m for m in received if m.max(initial=0) > 1]
        bits = [m for m in received if m.max(initial=0) <= 1]
        found.append((share, np.concatenate(words), np.concatenate(bits or [np.zeros(0)])))
    return found


@pytest.mark.parametrize("program", [functions.softmax, functions.gelu])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_neither_partys_transcript_tells_the_input(program, value):
    """Of an input that is one number everywhere, each share and all messages look uniform."""
    for share, words, bits in views(program, np.full((40, 33), value)):
        assert chi_square(share) < FAR and chi_square(words) < FAR
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / bits.size**0.5
        top = words >> np.uint64(63)
        assert abs(top.mean() - 0.5) < 5 * 0.5 / top.size**0.5


def test_two_inputs_leave_transcripts_that_can_not_be_told_apart():
    """Two samples' bytes against each other, of party 0 and of party 1."""
    before = views(functions.softmax, np.full((40, 33), 0.0))
    after = views(functions.softmax, np.full((40, 33), 9.0), seed=1)
    for (_, words, _), (_, other, _) in zip(before, after, strict=True):
        counts = [np.bincount(w.view(np.uint8), minlength=256) for w in (words, other)]
        chi = ((counts[0] - counts[1]) ** 2 / (counts[0] + counts[1])).sum()
        assert chi < FAR


def test_the_test_finds_a_party_whose_masks_are_missing(monkeypatch):
    """Positive control: the same protocol with a dealer whose random numbers are small."""
    monkeypatch.setattr(
        Dealer, "random", lambda self, shape: self.generator.integers(0, 2**20, shape, np.uint64)
    )
    chi = [chi_square(words) for _, words, _ in views(functions.softmax, np.full((40, 33), -3.0))]
    assert min(chi) > 10 * FAR


def test_a_share_and_its_number_are_independent():
    values = GENERATOR(0).integers(0, 2, 50_000).astype(float)
    for part in ss.share(ss.encode(values), GENERATOR(1)):
        for bit in (0, 16, 40, 63):
            seen = (part >> np.uint64(bit)) & np.uint64(1)
            assert abs(np.corrcoef(seen, values)[0, 1]) < 5 / 50_000**0.5


# ---------------------------------------------------------------- the wire


def test_two_processes_say_and_find_the_same():
    x = normal(3, 9)
    here = ss.run(functions.softmax, x)
    there = ss.run(functions.softmax, x, transport="processes")
    assert np.array_equal(there.value, here.value)
    assert there.parts == here.parts


def test_long_messages_pass_a_socket():
    x = normal(400, 400)
    there = ss.run(Party.square, x, transport="processes")
    np.testing.assert_allclose(there.value, x**2, atol=1e-4)


def test_a_model_of_a_network():
    traffic = ss.Traffic(rounds=10, bits=8 * 2_000_000)
    assert ss.Network(0.1, 1e6).seconds(traffic) == pytest.approx(2.0)
    assert traffic + traffic == ss.Traffic(20, 16 * 2_000_000)


# ---------------------------------------------------------------- refusals


def disagree(party, x):
    return party.square(x if party.index == 0 else x[:1])


def broken(party, x):
    raise RuntimeError("no such layer")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.encode([np.nan]), "values must be finite"),
        (lambda: ss.encode([1e9]), "values reach 1e+09, fixed point takes numbers below"),
        (lambda: ss.run(Party.square, [np.inf]), "values must be finite"),
        (lambda: ss.run(disagree, [1.0, 2.0]), "bytes where"),
        (lambda: ss.run(Party.square, [1.0], transport="pigeon"), "transport='pigeon'"),
        (lambda: ss.run(Party.square, [1.0], delay=-1), "delay=-1 must be at least 0"),
        (lambda: ss.run(Party.square, [1.0], keep=True, transport="processes"), "keep=True wants"),
        (lambda: ss.run(lambda p, x: x, [1.0], transport="processes"), "must be a function of a"),
        (lambda: ss.run(Party.multiply, [1.0], [1.0, 2.0]), "one shape"),
        (lambda: ss.run(Party.matmul, [[1.0]], [[1.0], [2.0]]), "can't be multiplied"),
        (
            lambda: ss.reconstruct(np.zeros(2, np.uint64), np.zeros(3, np.uint64)),
            "shares must be two uint64 arrays of one shape",
        ),
    ],
)
def test_refusals(call, message):
    assert_refused(call, message)


def test_what_a_program_raises_comes_out_and_stops_both():
    with pytest.raises(RuntimeError, match="no such layer"):
        ss.run(broken, [1.0])
