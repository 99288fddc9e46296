"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

SCORES = """
def scores_over_batches(slopes, c):
    return {result}
"""

CUT = """
def cut_out(fc1, fc2, gates):
    alive = {alive}
    first = nn.Linear({inputs}, {hidden})
    second = nn.Linear({hidden}, fc2.out_features)
    with torch.no_grad():
        first.weight.copy_({rows})
        first.bias.copy_({bias})
        second.weight.copy_({columns})
        second.bias.copy_({offset})
    return first, second
"""

FIRST = """
def first_to_die(scores, seconds, sizes, eta):
    found = []
    for axis, units in scores.items():
        worth = [score - {saved} for score in units]
        order = sorted(range(len(units)), key=lambda i: {key})
        group = order[{group}]
        if {may_die}:
            found.append(({value}, axis, group))
    _, axis, group = {pick}(found)
    return axis, group
"""


def cut(
    alive="[i for i, gate in enumerate(gates.tolist()) if gate]",
    inputs="fc1.in_features",
    hidden="len(alive)",
    rows="fc1.weight[alive]",
    bias="fc1.bias[alive]",
    columns="fc2.weight[:, alive]",
    offset="fc2.bias",
):
    return CUT.format(
        alive=alive,
        inputs=inputs,
        hidden=hidden,
        rows=rows,
        bias=bias,
        columns=columns,
        offset=offset,
    )


def first(
    saved="eta * seconds[axis]",
    key="worth[i]",
    group=":sizes[axis]",
    may_die="len(units) > sizes[axis]",
    value="sum(worth[i] for i in group)",
    pick="min",
):
    return FIRST.format(saved=saved, key=key, group=group, may_die=may_die, value=value, pick=pick)


ANSWERS = {
    1: Answers(
        right=[
            SCORES.format(result="torch.stack([(row / c) ** 2 for row in slopes]).mean(0)"),
            SCORES.format(result="(slopes ** 2).sum(0) / (len(slopes) * c * c)"),
        ],
        wrong=[
            SCORES.format(result="(slopes / c).mean(0).square()"),  # the mean slope is near zero
            SCORES.format(result="slopes.square().mean(0) / c"),  # divided after squaring
            SCORES.format(result="(slopes / c).square().sum(0)"),
            SCORES.format(result="(slopes / c).square().mean(1)"),  # over units
            SCORES.format(result="(slopes / c).abs().mean(0)"),
        ],
    ),
    2: Answers(
        right=[cut(), cut(alive="gates > 0", hidden="int(gates.sum())")],
        wrong=[
            cut(columns="fc2.weight[:, : len(alive)]"),  # the first columns, not theirs
            cut(bias="fc1.bias[: len(alive)]"),
            cut(offset="0 * fc2.bias"),
            cut(alive="(gates == 0).nonzero().flatten()"),  # the dead ones
            cut(
                hidden="fc1.out_features", rows="fc1.weight", bias="fc1.bias", columns="fc2.weight"
            ),
        ],
    ),
    3: Answers(
        right=[first(), first(key="units[i]")],
        wrong=[
            first(saved="seconds[axis]"),  # η forgotten
            first(saved="-eta * seconds[axis]"),
            first(may_die="True"),  # an axis loses its last group
            first(group=":1"),  # units, not groups
            first(value="worth[group[0]]"),  # the least unit, not the sum
            first(group="-sizes[axis]:"),
        ],
    ),
}

test_exercise = mutations("nvit", ANSWERS)
