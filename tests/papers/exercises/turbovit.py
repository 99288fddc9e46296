"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

LUCK = """
def luck(loud, true, budget):
    total, left = 0.0, 1.0
    order = sorted(zip(loud, true), reverse={down})
    for louder, (_, quality) in enumerate(order):
        chance = min(1.0, {chance})
        total += left * chance * quality
        left *= {kept}
    return total
"""
CHANCE = "budget / (len(loud) - louder)"

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
        right=[LUCK.format(down="True", chance=CHANCE, kept="1 - chance")],
        wrong=[
            LUCK.format(down="False", chance=CHANCE, kept="1 - chance"),  # the quietest
            LUCK.format(down="True", chance="budget / len(loud)", kept="1 - chance"),
            LUCK.format(down="True", chance=CHANCE, kept="1"),  # delivered with every set
            "def luck(loud, true, budget):\n    return sum(true) / len(true)",
            "def luck(loud, true, budget):\n    return max(zip(loud, true))[1]",
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
