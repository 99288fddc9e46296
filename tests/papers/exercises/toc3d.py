"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

BRIDGE = """
def bridge_weights(s):
    weights = {weights}
    return weights / weights.{total}
"""


def bridge(weights="s.exp()", total="sum(1, keepdim=True)"):
    return BRIDGE.format(weights=weights, total=total)


COUNT = """
def computed(h, w, side, ratio):
    rows = [min(side, h - top) for top in range(0, h, side)]
    columns = [min(side, w - left) for left in range(0, w, side)]
    released = {windows} * int(ratio * {area})
    fair = sum({kept} for height in rows for width in columns)
    return released, fair
"""


def count(
    windows="len(rows) * len(columns)",
    area="side**2",
    kept="max(int(ratio * height * width + 1e-9), 1)",
):
    return COUNT.format(windows=windows, area=area, kept=kept)


MOVE = """
def seen_now(point, velocity, then, now, age):
    point = torch.cat([{point}, torch.ones(1)])
    velocity = torch.cat([velocity, torch.zeros(1)])
    return ({path})[:3]
"""


def move(point="point", path="now.inverse() @ (then @ point + {age} * velocity)", age="age"):
    return MOVE.format(point=point, path=path.format(age=age))


test_exercise = mutations(
    "toc3d",
    {
        1: Answers(
            right=[bridge(), bridge(weights="(s - s.amax(1, keepdim=True)).exp()")],
            wrong=[
                bridge(weights="s"),  # as released: upside down
                bridge(weights="1 / s"),  # the right order, the wrong proportion
                bridge(total="sum()"),  # over all windows
                bridge(weights="(-s).exp()"),
                "def bridge_weights(s):\n    return s.softmax(0)\n",
                "def bridge_weights(s):\n    return s.exp()\n",
            ],
        ),
        2: Answers(
            right=[count()],
            wrong=[
                count(windows="(h // side) * (w // side)"),  # windows at the border forgotten
                count(kept="max(int(ratio * side**2), 1)"),  # padding counted again
                count(kept="max(round(ratio * height * width), 1)"),
                count(windows="1", area="h * w"),  # of the whole map
                "def computed(h, w, side, ratio):\n    return h * w, int(ratio * h * w)\n",
            ],
        ),
        3: Answers(
            right=[
                move(),
                move(path="torch.linalg.solve(now, then @ point + age * velocity)"),
            ],
            wrong=[
                move(age="-age"),
                move(age="0"),  # the object stands still
                move(path="now @ (then @ point + age * velocity)"),  # not inverted
                move(path="now.inverse() @ then @ (point + age * velocity)"),  # the car's velocity
                move(path="point + age * velocity"),  # the car stands still
            ],
        ),
    },
)
