"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

OVERFLOWS = """
def overflows(low, high, bits):
    s = (high - low) / {steps}
    return {condition}
"""


def overflows(condition="(low > s / 2) | (high < -s / 2)", steps="(2**bits - 1)"):
    return OVERFLOWS.format(condition=condition, steps=steps)


BY_CODES = overflows("((low / s).round() > 0) | ((low / s).round() < 1 - 2**bits)")

SHIFT = """
@torch.no_grad()
def shift(A, B, c):
    A.bias += c
    {back}
    return True
"""

FACTOR = """
def best_factor(x, weight, g, by):
    grid = minmax_grid(x, {bits}, symmetric=True)
    errors = []
    for factor in by:
        apart = {apart}
        errors.append({error})
    return {answer}
"""


def factor(**changes):
    right = {
        "bits": "4",
        "apart": "x @ weight.T - grid.times(factor)(x) @ weight.T",
        "error": "(g**2 * apart**2).sum()",
        "answer": "float(by[torch.stack(errors).argmin()])",
    }
    return FACTOR.format(**right | changes)


ANSWERS = {
    1: Answers(
        right=[overflows(), BY_CODES],
        wrong=[
            overflows("(low > 0) | (high < 0)"),  # half a step forgotten
            overflows("(low > s) | (high < -s)"),  # a whole one
            overflows("low > s / 2"),  # one side
            overflows("low * high > 0"),
            overflows("(low <= s / 2) & (high >= -s / 2)"),  # the other way round
            "def overflows(low, high, bits):\n    return bool((low > 0).any())",
        ],
    ),
    2: Answers(
        right=[
            SHIFT.format(back="B.bias -= B(torch.full((7,), c)) - B(torch.zeros(7))"),
            SHIFT.format(back="B.bias.data = B.bias - B.weight @ torch.full((7,), c)"),
        ],
        wrong=[
            SHIFT.format(back="B.bias -= c"),  # without the weights
            SHIFT.format(back="B.bias += c * B.weight.sum(1)"),  # sign
            SHIFT.format(back="B.bias -= c * B.weight.mean(1)"),
            SHIFT.format(back="A.bias -= c"),  # nothing was shifted
            SHIFT.format(back="pass"),
        ],
    ),
    3: Answers(
        right=[factor(), factor(error="(g * apart).square().mean()")],
        wrong=[
            factor(error="apart.square().mean()"),  # without the gradient
            factor(error="(g * apart.square()).mean()"),  # not squared
            factor(apart="x - grid.times(factor)(x)", error="apart.square().sum()"),
            factor(answer="float(torch.stack(errors).argmin())"),  # the index
            factor(answer="float(by[torch.stack(errors).argmax()])"),
            factor(bits="8"),
        ],
    ),
}

test_exercise = mutations("qhyvit", ANSWERS)
