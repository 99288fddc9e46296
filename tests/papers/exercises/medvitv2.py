"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

KEYS = """
def keys_of(i, length, k, dilation):
    r, p = i % dilation, i // dilation
    n = {count}
    s = {start}
    return [(s + a) * dilation + r for a in range(k)]
"""
COUNT = "(length - r + dilation - 1) // dilation"
START = "max(0, min(p - k // 2, n - k))"

BY_HAND = """
def weights_by_hand(bumps, grid):
    x = torch.linspace(-{span}, {span}, 300)
    features = bumps(x, grid)
    gram = features.T @ features + {penalty} * torch.eye(8)
    w = torch.linalg.solve(gram, features.T @ {target})
    return torch.cat([w, {second}]){shape}
"""

HAND = dict(span="1.8", penalty="1e-3", target="x.abs()", second="-w", shape="[None]")

ERRORS = """
def four_errors():
    return {}
"""

ANSWERS = {
    1: Answers(
        right=[KEYS.format(count=COUNT, start=START)],
        wrong=[
            KEYS.format(count=COUNT, start="p - k // 2"),  # runs over the border
            KEYS.format(count=COUNT, start="max(0, p - k // 2)"),  # only the left border
            KEYS.format(count="length // dilation", start=START),  # classes of equal size
            "def keys_of(i, length, k, dilation):\n    return list(range(k))",
        ],
    ),
    2: Answers(
        right=[BY_HAND.format(**HAND)],
        wrong=[
            BY_HAND.format(**HAND | {"second": "w"}),  # the sum, not the difference
            BY_HAND.format(**HAND | {"target": "x"}),  # without the absolute value
            BY_HAND.format(**HAND | {"shape": ""}),  # a vector
            BY_HAND.format(**HAND | {"penalty": "1e3"}),  # all but silenced
        ],
    ),
    3: Answers(
        right=[ERRORS.format("0.1, 0.5, 0.4, 0.6"), ERRORS.format("[0.0, 0.2, 0.3, 0.35]")],
        wrong=[
            ERRORS.format("0.1, 0.2, 0.2, 0.4"),  # loses less
            ERRORS.format("0.3, 0.5, 0.2, 0.6"),  # more errors on clean images
            ERRORS.format("0.1, 0.5, 0.4, 0.4"),  # a baseline that loses nothing
            ERRORS.format("10, 50, 40, 60"),  # per cent
        ],
    ),
}

test_exercise = mutations("medvitv2", ANSWERS)
