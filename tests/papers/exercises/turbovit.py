"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

UNROLL = """
def unrolled(side, times):
    places = torch.arange(side * side).view(1, side, side)
    for _ in range({times}):
        places = rearrange(places, "{pattern}", y=2, x=2)
    return places.flatten().tolist()
"""
PATTERN = "p (h y) (w x) -> (p y x) h w"

COUNT = """
def parameters_of(d, out, hidden):
    total = {norms} + 3 * d * out + 3 * out + out * out + out + 2 * out * hidden + hidden + out
    return total + ({shortcut})
"""
NORMS = "2 * d + 2 * out"
SHORTCUT = "(d * out + out) * (d != out)"

ACCEPT = """
def acceptance(shares, allowed, picks=()):
    if len(picks) == len(shares):
        return {leaf}
    share = shares[len(picks)]
    return sum({weight} * acceptance(shares, allowed, (*picks, i)) for i in range(len(share)))
"""
LEAF = "float(allowed(picks))"

ANSWERS = {
    1: Answers(
        right=[UNROLL.format(times="times", pattern=PATTERN)],
        wrong=[
            UNROLL.format(times="times", pattern="p (h y) (w x) -> (p x y) h w"),
            UNROLL.format(times="times", pattern="p (y h) (x w) -> (p y x) h w"),
            UNROLL.format(times="times", pattern="p (h y) (w x) -> (y x p) h w"),
            UNROLL.format(times="1", pattern=PATTERN),  # one pooling only
            "def unrolled(side, times):\n    return list(range(side * side))",
        ],
    ),
    2: Answers(
        right=[COUNT.format(norms=NORMS, shortcut=SHORTCUT)],
        wrong=[
            COUNT.format(norms="d + out", shortcut=SHORTCUT),  # norms without their bias
            COUNT.format(norms="4 * out", shortcut=SHORTCUT),  # the first norm is d wide
            COUNT.format(norms=NORMS, shortcut="d * out + out"),  # a shortcut everywhere
            COUNT.format(norms=NORMS, shortcut="(d * out) * (d != out)"),
        ],
    ),
    3: Answers(
        right=[ACCEPT.format(leaf=LEAF, weight="share[i]")],
        wrong=[
            ACCEPT.format(leaf=LEAF, weight="1 / len(share)"),  # as if all were alike
            ACCEPT.format(leaf="1.0", weight="share[i]"),
            ACCEPT.format(leaf="float(not allowed(picks))", weight="share[i]"),
            ACCEPT.format(leaf=LEAF, weight="max(share)"),
        ],
    ),
}

test_exercise = mutations("turbovit", ANSWERS)
