"""A block of a Vision Transformer on shares, and attention maps in four forms with their cost.

Written for the block of `refimpl.papers.mpcvit`, whose second norm acts on the stream itself.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange

from refimpl import checks
from refimpl.bases.secret_sharing import functions
from refimpl.bases.secret_sharing.link import Traffic
from refimpl.bases.secret_sharing.party import Party

MAPS = ("softmax", "relu_softmax", "two_quad", "scaling")


def secure_weights(party: Party, scores: np.ndarray, attention: str) -> np.ndarray:
    """One of `MAPS` on shares of scores, rows of n: (…, n, n) -> (…, n, n).

    Rounds and bytes: `map_cost`. ε is the least number that fixed point knows, 1.5e-5.
    """
    checks.choice("attention", attention, MAPS)
    if attention == "softmax":
        return functions.softmax(party, scores)
    if attention == "relu_softmax":
        return functions.normalise(party, party.relu(scores))
    if attention == "two_quad":
        return functions.normalise(party, party.square(scores))
    return party.scale(scores, 1 / scores.shape[-1])


def map_cost(attention: str, n: int, rows: int = 1) -> Traffic:
    """What `secure_weights` says on the wire for so many rows of n, in closed form, online."""
    checks.choice("attention", attention, MAPS)
    checks.at_least(1, n=n)
    division = 768 + 32 * n  # bytes per row
    rounds, size = {
        "softmax": (9 * (n - 1).bit_length() + 37, 416.25 * (n - 1) + 128 * n + division),
        "relu_softmax": (38, 416.25 * n + division),
        "two_quad": (30, 16 * n + division),
        "scaling": (0, 0),
    }[attention]
    return Traffic(rounds if rows else 0, int(8 * size * rows))


def secure_block(
    party: Party, x: np.ndarray, *weights: np.ndarray, attention: tuple[str, ...]
) -> np.ndarray:
    """A block on shares of tokens and weights: (n, dim) -> (n, dim).

    weights: as `mpcvit.block_weights` gives them; attention: one of `MAPS` for each head. What is
    said is counted in the parts "layer norm", "linear layers", "two products", "map", "GELU".
    """
    w0, b0, w1, b1, qkv, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias = weights
    with party.part("layer norm"):
        normed = functions.layer_norm(party, x, w0, b0)
    with party.part("linear layers"):
        mixed = party.matmul(normed, qkv)
    q, k, v = rearrange(
        mixed, "n (three heads d) -> three heads n d", three=3, heads=len(attention)
    )
    with party.part("two products"):
        scores = party.scale(party.matmul(q, k.swapaxes(1, 2)), q.shape[-1] ** -0.5)
    maps = np.empty_like(scores)
    for kind in dict.fromkeys(attention):
        heads = [i for i, name in enumerate(attention) if name == kind]
        with party.part("map"):
            maps[heads] = secure_weights(party, scores[heads], kind)
    with party.part("two products"):
        y = rearrange(party.matmul(maps, v), "heads n d -> n (heads d)")
    with party.part("linear layers"):
        x = x + party.matmul(y, proj) + proj_bias
    with party.part("layer norm"):
        x = functions.layer_norm(party, x, w1, b1)
    return x + secure_mlp(party, x, fc1, fc1_bias, fc2, fc2_bias)


def secure_mlp(party: Party, x: np.ndarray, *weights: np.ndarray) -> np.ndarray:
    """fc1, GELU, fc2 on shares, or one layer and ReLU where there is only one weight and bias."""
    fc1, fc1_bias, *second = weights
    with party.part("linear layers"):
        u = party.matmul(x, fc1) + fc1_bias
    if not second:
        with party.part("ReLU"):
            return party.relu(u)
    with party.part("GELU"):
        u = functions.gelu(party, u)
    with party.part("linear layers"):
        return party.matmul(u, second[0]) + second[1]
