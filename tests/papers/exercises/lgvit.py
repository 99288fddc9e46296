"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

PATIENCE = """
def leaves_at(answers, times):
    exits, images = answers.shape
    found = torch.full((images,), {never})
    for i in range({last}, {first}, -1):
        window = answers[{begin}:i]
        agree = (window == window[-1]).all(0)
        found = torch.where(agree, {said}, found)
    return found
"""


def patience(never="exits + 1", last="exits", first="times - 1", begin="i - times", said="i"):
    return PATIENCE.format(never=never, last=last, first=first, begin=begin, said=said)


COST = """
def expected_cost(shares, stem, layer, heads):
    total = {start}
    for at, share in shares.items():
        walk = {stem} + at * layer
        for where, macs in heads.items():
            if {passed}:
                walk += macs
        total += share * walk
    return total
"""


def cost(start="0", stem="stem", passed="where <= at"):
    return COST.format(start=start, stem=stem, passed=passed)


ERROR = """
def calibration_error(confidence, right, bins=10):
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            gap = confidence[inside].mean() - right[inside].float().mean()
            total += {weight} * {gap}
    return float(total)
"""


def error(weight="inside.float().mean()", gap="gap.abs()"):
    return ERROR.format(weight=weight, gap=gap)


test_exercise = mutations(
    "lgvit",
    {
        1: Answers(
            right=[patience()],
            wrong=[
                patience(never="exits"),  # the last exit, not beyond it
                patience(said="i - 1"),  # counted from 0
                patience(begin="i - times if i > times else 0", first="0"),  # fewer will do
                patience(begin="i - times - 1", first="times"),  # one more than asked
                patience(said="times"),
            ],
        ),
        2: Answers(
            right=[
                cost(),
                """
def expected_cost(shares, stem, layer, heads):
    def walk(at):
        return at * layer + sum(heads.get(i, 0) for i in range(1, at + 1))

    return sum(share * (stem + walk(at)) for at, share in shares.items())
""",
            ],
            wrong=[
                cost(stem="0"),
                cost(passed="where < at"),  # the exit that it leaves by is free
                cost(passed="where == at"),  # only that one
                cost(passed="True"),  # all exits, always
                cost(passed="False"),  # layers alone, as the paper counts
                cost(start="stem"),  # twice
            ],
        ),
        3: Answers(
            right=[error()],
            wrong=[
                error(weight="1 / bins"),  # bins count alike
                error(gap="gap"),  # over and under cancel
                error(gap="gap**2"),
                """
def calibration_error(confidence, right, bins=10):
    return float((confidence - right.float()).abs().mean())
""",
            ],
        ),
    },
)
