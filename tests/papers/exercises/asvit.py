"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

FOLDS = """
def folds(z):
    centred = {centred}
    steps = {steps}
    return float({result})
"""

ORDER = """
def order_within(x, y, group):
    found = []
    for i in range(len(x)):
        for j in range({start}, len(x)):
            product = (x[i] - x[j]) * (y[i] - y[j])
            if {kept}:
                found.append({value})
    return {result}
"""

REWARD = """
def newest_reward(lengths, kappas):
    if len(lengths) == 1:
        return 0.0

    def change(values):
        recent = {recent}
        return {change}

    return {result}
"""


def folds(
    centred="z - z.mean(0)",
    steps="torch.roll(z, -1, 0) - z",
    result="steps.norm(dim=1).sum() / centred.norm(dim=1).mean() / (2 * np.pi)",
):
    return FOLDS.format(centred=centred, steps=steps, result=result)


def order(
    start="i + 1",
    kept="group[i] == group[j] and product != 0",
    value="1 if product > 0 else -1",
    result="sum(found) / len(found)",
):
    return ORDER.format(start=start, kept=kept, value=value, result=result)


def reward(
    recent="values[-20:]",
    change="(values[-1] - values[-2]) / (max(recent) - min(recent))",
    result="change(lengths) - change(kappas)",
):
    return REWARD.format(recent=recent, change=change, result=result)


ANSWERS = {
    1: Answers(
        right=[folds(), folds(steps="torch.diff(torch.cat([z, z[:1]]), dim=0)")],
        wrong=[
            folds(steps="z[1:] - z[:-1]"),  # the way back is missing
            folds(centred="z"),  # distance from the origin
            folds(result="steps.norm(dim=1).sum() / (2 * np.pi)"),  # stretching counts
            folds(result="steps.norm(dim=1).sum() / centred.norm(dim=1).mean()"),
            folds(result="steps.norm(dim=1).mean() / centred.norm(dim=1).mean() / (2 * np.pi)"),
        ],
    ),
    2: Answers(
        right=[order(), order(start="0"), order(value="abs(product) / product")],
        wrong=[
            order(kept="product != 0"),  # all groups
            order(kept="group[i] == group[j]"),  # a tie counts against
            order(value="int(product > 0)"),
            order(result="sum(found)"),
            order(value="product"),
        ],
    ),
    3: Answers(
        right=[reward(), reward(recent="values[max(0, len(values) - 20):]")],
        wrong=[
            reward(recent="values"),  # all values
            reward(
                recent="values[-21:-1]",
                change="(values[-1] - values[-2]) / (1e-6 + max(recent) - min(recent))",
            ),
            reward(change="values[-1] - values[-2]"),
            reward(result="change(lengths) + change(kappas)"),
            reward(change="(values[-1] - values[-2]) / values[-2]"),
        ],
    ),
}

test_exercise = mutations("asvit", ANSWERS)
