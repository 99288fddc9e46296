"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

MACS = """
def generation_macs(k, n, c):
    asked = {asked}
    return c * c * ({asking} * k + 2 * asked) + {products}
"""


def macs(asked="k + n", asking="10", products="2 * k * asked * c"):
    return MACS.format(asked=asked, asking=asking, products=products)


POOL = """
def pool(windows, s, mean=False):
    b, c, h, w = windows.shape
    out = windows.new_zeros(b, s * s, c)
    for cell in range(s * s):
        i, j = {order}
        top, left = i * h // s, j * w // s
        bottom = {bottom}
        right = {right}
        part = windows[:, :, top:bottom, left:right]
        out[:, cell] = {value}
    return out
"""


def pool(
    order="divmod(cell, s)",
    bottom="((i + 1) * h + s - 1) // s",
    right="((j + 1) * w + s - 1) // s",
    value="part.mean((2, 3)) if mean else part.amax((2, 3))",
):
    return POOL.format(order=order, bottom=bottom, right=right, value=value)


BY_PYTORCH = """
def pool(windows, s, mean=False):
    how = F.adaptive_avg_pool2d if mean else F.adaptive_max_pool2d
    return rearrange(how(windows, s), "b c y x -> b (y x) c")
"""

WINDOWS = """
def larger_windows(size, side=7):
    length = {length}
    starts = [{start} for i in range(size // side)]
    return length, starts
"""


def windows(length="min(side + side // 2, size)", start=None):
    start = start or "min(max(0, i * side - (length - side) // 2), size - length)"
    return WINDOWS.format(length=length, start=start)


test_exercise = mutations(
    "stvit",
    {
        1: Answers(
            right=[
                macs(),
                "def generation_macs(k, n, c):\n    return cross_macs(k, k + n, c)\n",
            ],
            wrong=[
                macs(asked="n"),  # the centres are not among their own keys
                macs(asking="2"),  # without the MLP
                macs(products="k * asked * c"),  # one product of the two
                macs(asked="n", asking="12", products="2 * k * n * c"),
                "def generation_macs(k, n, c):\n    return cross_macs(n + k, n + k, c)\n",
            ],
        ),
        2: Answers(
            right=[pool(), BY_PYTORCH],
            wrong=[
                pool(bottom="(i + 1) * h // s", right="(j + 1) * w // s"),  # no overlap
                pool(order="divmod(cell, s)[::-1]"),  # column by column
                pool(value="part.amax((2, 3))"),  # never the mean
                pool(value="part.mean((2, 3))"),
                pool().replace("return out", "return out.mT"),
            ],
        ),
        3: Answers(
            right=[
                windows(start="i * (size - length) // max(size // side - 1, 1)").replace(
                    "length = ", "length = size if size == side else "
                ),
                """
def larger_windows(size, side=7):
    length = min(side + side // 2, size)
    middle = [i * side + side / 2 - length / 2 for i in range(size // side)]
    return length, [int(min(max(m, 0), size - length)) for m in middle]
""",
            ],
            wrong=[
                windows(start="4 * i"),  # as released: leaves its own window behind
                windows(start="i * side"),  # the last one leaves the image
                windows(length="10"),  # longer than an image of seven
                windows(length="2 * side"),
                windows(length="side", start="i * side"),  # no larger than before
            ],
        ),
    },
)
