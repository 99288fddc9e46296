"""The exercises on EfficientVMamba: other right answers pass, plausible wrong ones don't."""

from shared.exercises import Answers, mutations

ORDER = """
def order(h, w):
    index = torch.arange(h * w).reshape(h, w)
    parts = {parts}
    return torch.stack([part.flatten() for part in parts])
"""
ANSWERS = {
    1: Answers(
        right=[
            ORDER.format(
                parts="index[::2, ::2], index[1::2, ::2].T, index[::2, 1::2], index[1::2, 1::2].T"
            ),
            """
def order(h, w):
    def walk(r, c, down):
        rows, columns = range(r, h, 2), range(c, w, 2)
        if down:
            return [i * w + j for j in columns for i in rows]
        return [i * w + j for i in rows for j in columns]
    return torch.tensor([walk(0, 0, False), walk(1, 0, True), walk(0, 1, False), walk(1, 1, True)])
""",
        ],
        wrong=[
            ORDER.format(
                parts="index[::2, ::2], index[::2, 1::2], index[1::2, ::2].T, index[1::2, 1::2].T"
            ),  # the middle two parts swapped
            ORDER.format(
                parts="index[::2, ::2], index[1::2, ::2], index[::2, 1::2], index[1::2, 1::2]"
            ),  # all along the rows
            ORDER.format(
                parts=(
                    "index[::2, ::2], index[1::2, ::2].T.flip(0, 1), index[::2, 1::2], "
                    "index[1::2, 1::2].T.flip(0, 1)"
                )
            ),  # two walks backwards
            ORDER.format(parts="index.reshape(4, -1)"),  # four bands
            "def order(h, w):\n    return torch.arange(h * w).float().reshape(4, -1)",
            (
                "def order(h, w):\n    return torch.arange(0, h * w, 2).repeat(2).reshape(4, -1)"
            ),  # some pixels twice
        ],
    ),
    2: Answers(
        right=[
            (
                "def combine(first, second):\n    return first[0] * second[0], second[0] * "
                "first[1] + second[1]"
            ),
            (
                "def combine(f, s):\n    at = lambda h: s[0] * (f[0] * h + f[1]) + s[1]\n    "
                "return at(1.0) - at(0.0), at(0.0)"
            ),
        ],
        wrong=[
            (
                "def combine(first, second):\n    return first[0] * second[0], first[0] * "
                "second[1] + first[1]"
            ),  # the other order
            (
                "def combine(first, second):\n    return first[0] * second[0], first[1] + second[1]"
            ),  # nothing fades
            (
                "def combine(first, second):\n    return first[0] + second[0], second[0] * "
                "first[1] + second[1]"
            ),  # decays added, not multiplied
            (
                "def combine(first, second):\n    return second[0], second[0] * first[1] + "
                "second[1]"
            ),  # right from the left only
        ],
    ),
    3: Answers(
        right=[
            "def exact_hold(delta, A):\n    return (torch.expm1(delta.double() * A) / A).float()",
            """
def exact_hold(delta, A):
    z = delta.double() * A
    series = delta * (1 + z / 2 + z * z / 6 + z**3 / 24)
    return torch.where(z.abs() < 1e-2, series, (z.exp() - 1) / A)
""",
        ],
        wrong=[
            # loses its digits for small steps
            "def exact_hold(delta, A):\n    return (torch.exp(delta * A) - 1) / A",
            "def exact_hold(delta, A):\n    return delta",  # the first-order term
            # the ratio to Δ
            "def exact_hold(delta, A):\n    return torch.expm1(delta * A) / (delta * A)",
            "def exact_hold(delta, A):\n    return torch.expm1(delta * A) * A",
            "def exact_hold(delta, A):\n    return torch.log(-delta)",  # not a number
        ],
    ),
}

test_exercise = mutations("efficientvmamba", ANSWERS)
