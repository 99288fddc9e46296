"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

PLACE = """
def place(depth, heads, count):
    flags = torch.zeros(depth, heads)
    for i in range(count):
        flags[{where}] = 1
    return flags
"""

FROM_BEHIND = """
def place(depth, heads, count):
    full, rest = divmod(count, heads)
    flags = torch.zeros(depth, heads)
    if full:
        flags[-full:] = 1
    if rest:
        flags[0, :rest] = 1
    return flags
"""

HEAD = """
def linear_head(party, q, k, v):
    n, d = q.shape
    inner = party.matmul({inner})
    return party.scale(party.matmul({outer}), {scale})
"""

BOUNDED = """
PREDICTED = {rounds}


def bounded_softmax(party, x, bound=3.0):
    x = functions.exp(party, {shifted})
    return {result}
"""


def bounded(rounds="37", shifted="party.add(x, -bound)", result="functions.normalise(party, x)"):
    return BOUNDED.format(rounds=rounds, shifted=shifted, result=result)


def head(inner="k.T, v", outer="q, inner", scale="1 / (n * d**0.5)"):
    return HEAD.format(inner=inner, outer=outer, scale=scale)


BY_HAND = """
PREDICTED = 37


def bounded_softmax(party, x, bound=3.0):
    y = functions.exp(party, x - party.constant(bound, x))
    inverse = functions.reciprocal(party, y.sum(-1, keepdims=True))
    return party.multiply(y, np.broadcast_to(inverse, y.shape))
"""

ANSWERS = {
    1: Answers(
        right=[PLACE.format(where="i // heads, i % heads"), FROM_BEHIND],
        wrong=[
            PLACE.format(where="i % depth, i // depth"),  # spread over the layers
            "def place(depth, heads, count):\n    return torch.ones(depth, heads)",
            "def place(depth, heads, count):\n    return torch.zeros(depth, heads)",
            "def place(depth, heads, count):\n    return torch.full((depth, heads), count / 28)",
            "def place(depth, heads, count):\n    return torch.zeros(depth * heads)",
        ],
    ),
    2: Answers(
        right=[
            head(),
            head(outer="party.scale(q, d**-0.5), inner", scale="1 / n"),
        ],
        wrong=[
            head("q, k.T", "inner, v"),  # the dear order
            head(scale="d**-0.5"),  # 1/n forgotten
            head(scale="1 / n"),  # 1/√d forgotten
            head(scale="1 / (n * d)"),
            head("k, v"),  # not transposed: shapes do not fit
            head("v.T, k"),  # the transposed of what is wanted
        ],
    ),
    3: Answers(
        right=[bounded(), BY_HAND],
        wrong=[
            bounded(rounds="38"),
            bounded(rounds="28"),  # the exponential forgotten
            bounded(result="x"),  # no division
            bounded(shifted="x - functions.maximum(party, x)"),  # the tournament again
            bounded(result="functions.normalise(party, party.relu(x))"),
            "PREDICTED = 37\n\n\ndef bounded_softmax(party, x, bound=3.0):\n    return None",
            "PREDICTED = 37\nbounded_softmax = functions.softmax",
        ],
    ),
}

test_exercise = mutations("mpcvit", ANSWERS)
