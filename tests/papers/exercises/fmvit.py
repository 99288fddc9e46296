"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

BORDER = """
def border_error(weight, shift, side):
    out = torch.zeros(len(weight), side, side)
    for row in range(side):
        for column in range(side):
            for i in range(3):
                for j in range(3):
                    y, x = row + i - 1, column + j - 1
                    if {outside}:
                        out[:, row, column] += {sign}weight[:, :, i, j] @ shift
    return out
"""
OUTSIDE = "not (0 <= y < side and 0 <= x < side)"


def border(outside=OUTSIDE, sign=""):
    return BORDER.format(outside=outside, sign=sign)


PADDED = """
def border_error(weight, shift, side):
    frame = F.pad(torch.zeros(1, len(shift), side, side), [1] * 4, value=1.0)
    return F.conv2d(frame * shift.view(1, -1, 1, 1), weight)[0]
"""
WHOLE_PLANE = """
def border_error(weight, shift, side):
    bias = (weight * shift.view(-1, 1, 1)).sum((1, 2, 3))
    return bias.view(-1, 1, 1).expand(-1, side, side)
"""
NOTHING = """
def border_error(weight, shift, side):
    return torch.zeros(len(weight), side, side)
"""

SEES = """
def can_see(groups, in_chans, out_chans):
    seen = torch.zeros(out_chans, in_chans, dtype=torch.bool)
    for g in {groups}:
        o, i = out_chans // g, in_chans // g
        for j in range(g):
            seen[{rows}, {columns}] = True
    return seen
"""


def sees(groups="groups", rows="j * o : j * o + o", columns="j * i : j * i + i"):
    return SEES.format(groups=groups, rows=rows, columns=columns)


SPREAD = """
def can_see(groups, in_chans, out_chans):
    total = 0
    for g in groups:
        total = total + spread(torch.ones(out_chans, in_chans // g, 1, 1), g, 1)
    return total[:, :, 0, 0] > 0
"""

RING = """
def position_bias(n):
    bias = torch.full((n, n), {far})
    for p in range(n):
        for step in {steps}:
            {set}
    return bias
"""


def ring(far="-1e4", steps="(-1, 0, 1)", set="bias[p, (p + step) % n] = 0.0"):
    return RING.format(far=far, steps=steps, set=set)


ROLLED = """
def position_bias(n):
    one = torch.eye(n)
    near = one + one.roll(1, 0) + one.roll(-1, 0)
    return near.clamp_min(1e-30).log()
"""

ANSWERS = {
    1: Answers(
        right=[border(), PADDED],
        wrong=[
            NOTHING,
            WHOLE_PLANE,
            border(sign="-"),  # true minus naive
            border(outside="not 0 <= y < side"),  # rows alone
            border(outside="0 <= y < side and 0 <= x < side"),  # the taps that are right
            "def border_error(weight, shift, side):\n    return weight.sum((1, 2, 3))",
        ],
    ),
    2: Answers(
        right=[sees(), SPREAD],
        wrong=[
            sees(groups="groups[:1]"),  # the first branch alone
            sees(groups="groups[-1:]"),  # the last one
            sees(groups="(1,)"),  # always dense
            sees(columns="j * o : j * o + o"),  # input blocks as large as output blocks
            sees(rows="slice(j, None, g)"),  # interleaved groups
            sees(rows="slice(0, o)"),  # only the first block
            "def can_see(groups, in_chans, out_chans):\n    return torch.eye(out_chans)",
        ],
    ),
    3: Answers(
        right=[ring(), ROLLED],
        wrong=[
            "def position_bias(n):\n    return torch.zeros(n, n)",  # the mean of all
            "def position_bias(n):\n    return torch.eye(n) * 1e4",  # the token itself
            ring(steps="(-1, 1)"),  # without itself
            ring(steps="(0, 1)"),  # one side
            ring(steps="(-2, -1, 0, 1, 2)"),  # mean of five
            ring(far="-1.0"),  # too soft
            ring(set="bias[p, min(max(p + step, 0), n - 1)] = 0.0"),  # a line, not a ring
            "def position_bias(n):\n    return torch.zeros(3, 3)",
        ],
    ),
}

test_exercise = mutations("fmvit", ANSWERS)
