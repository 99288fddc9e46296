"""The exercises of the chapter on ConViT, each check under mutation."""

from shared.exercises import Answers, mutations

START = """
def start_weights(heads, alpha):
    k = round(heads**0.5); h = torch.arange(heads); one = torch.ones(heads)
    {}
"""
PLACE = """
def attend_by_place(w, v, rows, cols):
    {}
"""
TABLES = """def along(n, a, b, sign=1):
        delta = sign * (torch.arange(n) - torch.arange(n)[:, None])
        return (a[:, None, None] * delta + b[:, None, None] * delta**2).softmax(-1)
    v = v.unflatten(1, (rows, cols))
    mix = lambda r, c, v: torch.einsum('hij,hkl,hjld->hikd', r, c, v)
    """
DESCRIBE = """
def describe(w):
    heads = []
    for a, b, c in w.tolist():
        {}
        heads.append((col, row, word))
    return heads
"""

ANSWERS = {
    1: Answers(
        right=[
            START.format(
                "row, col = h % k - (k - 1) / 2, h // k - (k - 1) / 2; return "
                "torch.stack([2 * alpha * col, 2 * alpha * row, -alpha * one], 1)"
            ),
            START.format(
                "return [[2 * alpha * (i // k - (k - 1) / 2), 2 * alpha * (i % k - (k - "
                "1) / 2), -alpha] for i in range(heads)]"
            ),
        ],
        wrong=[
            START.format(
                "row, col = h // k - (k - 1) / 2, h % k - (k - 1) / 2; return alpha * "
                "torch.stack([2 * col, 2 * row, -one], 1)"
            ),  # rows and columns swapped
            START.format(
                "row, col = h % k - (k - 1) / 2, h // k - (k - 1) / 2; return "
                "torch.stack([2 * col, 2 * row, -alpha * one], 1)"
            ),  # strength in one place
            START.format(
                "row, col = h % k - k // 2, h // k - k // 2; return alpha * "
                "torch.stack([2 * col, 2 * row, -one], 1)"
            ),  # even kernels off
            START.format(
                "row, col = h % k - (k - 1) / 2, h // k - (k - 1) / 2; return alpha * "
                "torch.stack([col, row, -one], 1)"
            ),  # the two forgotten
        ],
    ),
    2: Answers(
        right=[
            PLACE.format(
                TABLES
                + "r, c = along(rows, w[:, 1], w[:, 2]), along(cols, w[:, 0], w[:, 2])\n"
                + "    v = (r @ v.flatten(2)).view_as(v)\n    return (c[:, None] @ v).flatten(1, 2)"
            ),
        ],
        wrong=[
            PLACE.format(
                TABLES
                + (
                    "r, c = along(rows, w[:, 0], w[:, 2]), along(cols, w[:, 1], w[:, 2])\n   "
                    " return mix(r, c, v).flatten(1, 2)"
                )
            ),  # swapped
            PLACE.format(
                TABLES
                + (
                    "r, c = along(rows, w[:, 1], w[:, 2], -1), along(cols, w[:, 0], w[:, 2], "
                    "-1)\n    return mix(r, c, v).flatten(1, 2)"
                )
            ),  # offsets the wrong way
            PLACE.format(
                TABLES
                + (
                    "r, c = along(rows, w[:, 1], 0 * w[:, 2]), along(cols, w[:, 0], w[:, 2])\n"
                    "    return mix(r, c, v).flatten(1, 2)"
                )
            ),  # distance in one axis
            PLACE.format(
                TABLES
                + (
                    "r, c = along(rows, w[:, 1], w[:, 2]), along(cols, w[:, 0], w[:, 2])\n   "
                    " return mix(r, c, v)"
                )
            ),  # not flattened
        ],
    ),
    3: Answers(
        right=[
            DESCRIBE.format(
                "col, row = a / (-2 * c), b / (-2 * c)\n        word = 'avoids' if c > 0 "
                "else 'local' if col**2 + row**2 <= 1 and -c >= 1 / 8 else 'far'"
            ),
        ],
        wrong=[
            DESCRIBE.format(
                "col, row = a / (2 * c), b / (2 * c)\n        word = 'avoids' if c > 0 "
                "else 'local' if col**2 + row**2 <= 1 and -c >= 1 / 8 else 'far'"
            ),  # sign
            DESCRIBE.format(
                "col, row = a / (-2 * c), b / (-2 * c)\n        word = 'local' if col**2 "
                "+ row**2 <= 1 and abs(c) >= 1 / 8 else 'far'"
            ),  # no avoiding
            DESCRIBE.format(
                "col, row = a / (-2 * c), b / (-2 * c)\n        word = 'avoids' if c > 0 "
                "else 'local' if col**2 + row**2 <= 1 else 'far'"
            ),  # the width forgotten
            DESCRIBE.format(
                "col, row = a / (-2 * c), b / (-2 * c)\n        word = 'avoids' if c > 0 "
                "else 'local' if -c >= 1 / 8 else 'far'"
            ),  # the distance forgotten
            DESCRIBE.format(
                "row, col = a / (-2 * c), b / (-2 * c)\n        word = 'avoids' if c > 0 "
                "else 'local' if col**2 + row**2 <= 1 and -c >= 1 / 8 else 'far'"
            ),  # swapped
        ],
    ),
}

test_exercise = mutations("convit", ANSWERS)
