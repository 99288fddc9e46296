"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

PRODUCT = """
def pure_product(x, F_, D, G, W1, W2):
    f = torch.einsum("bhwc,oc->bohw", x, F_)
    D = {kernel}
    padded = nn.functional.pad(f, {padding})
    around = 0
    for i in range(7):
        for j in range(7):
            shifted = padded[:, :, i : i + f.shape[2], j : j + f.shape[3]]
            around = around + shifted * D[:, i, j, None, None]
    c = torch.einsum("bchw,oc->bhwo", {inside}, G)
    v = torch.einsum("bhwc,oc->bhwo", x, W1)
    return torch.einsum("bhwc,oc->bhwo", {meet}, W2)


def growth(t):
    return {growth}
"""
RIGHT = {
    "kernel": "D",
    "padding": "(3, 3, 3, 3)",
    "inside": "around",
    "meet": "v * c",
    "growth": "t * t",
}


def product(**changes):
    return PRODUCT.format(**RIGHT | changes)


BY_LOOP = """
def rescue(W1, b1, W2):
    d = W1.shape[1]
    r = len(b1) // d
    order = [tile * d + channel for channel in range(d) for tile in range(r)]
    return W1[order], b1[order], W2[:, order]
"""


def rescue(order, rows="[order]", columns="[:, order]"):
    return (
        "def rescue(W1, b1, W2):\n"
        "    d = W1.shape[1]\n"
        "    r = len(b1) // d\n"
        f"    order = {order}\n"
        f"    return W1{rows}, b1{rows}, W2{columns}\n"
    )


TURNED = "torch.arange(r * d).view(r, d).T.reshape(-1)"


def macs(count):
    return f"def stage_macs(dim, side, ratios):\n    return {count}"


COUNTED = """
def stage_macs(dim, side, ratios):
    total = 0
    for r in ratios:
        block = efficientmod.ModulationBlock(dim, r).eval()
        total += lab.measure.macs(block, torch.zeros(1, side, side, dim))
    return total
"""

ANSWERS = {
    1: Answers(
        right=[product(), product(growth="abs(t) ** 2")],
        wrong=[
            product(growth="t"),  # linear
            product(growth="t**3"),  # as attention's scores and values
            product(growth="abs(t)"),
            product(kernel="D.flip(1, 2)"),  # a true convolution, kernel turned round
            product(kernel="D.mT"),
            product(inside="F.gelu(around)"),  # the GELU left in
            product(meet="v + c"),  # the sum
            product(meet="v"),
            product(meet="F.gelu(v) * c"),
            "def pure_product(x, F_, D, G, W1, W2):\n    return x\n\n\n"
            "def growth(t):\n    return t",
        ],
    ),
    2: Answers(
        right=[BY_LOOP, rescue(TURNED)],
        wrong=[
            rescue("torch.arange(r * d)"),  # as it was
            rescue("torch.arange(r * d).view(d, r).T.reshape(-1)"),  # the inverse
            rescue(TURNED, columns=""),  # the output projection forgotten
            rescue(TURNED, rows=""),
            rescue("torch.arange(r * d - 1, -1, -1)"),
            "def rescue(W1, b1, W2):\n    return W1, b1",
        ],
    ),
    3: Answers(
        right=[
            COUNTED,
            macs("sum(side * side * dim * (2 * dim * (r + 1) + 7 * 7) for r in ratios)"),
        ],
        wrong=[
            macs("side**2 * sum(2 * r * dim**2 + 49 * dim for r in ratios)"),  # F and G forgotten
            macs("side**2 * sum((2 * r + 2) * dim**2 for r in ratios)"),  # D forgotten
            macs("side**2 * sum((2 * r + 2) * dim**2 + 49 * r * dim for r in ratios)"),
            macs("side**2 * sum((4 * r) * dim**2 + 49 * dim for r in ratios)"),  # context r·d wide
            macs("sum((2 * r + 2) * dim**2 + 49 * dim for r in ratios)"),  # one place
            macs("2 * side**2 * sum((2 * r + 2) * dim**2 + 49 * dim for r in ratios)"),  # FLOPs
            macs("22_101_765"),
        ],
    ),
}

test_exercise = mutations("efficientmod", ANSWERS)
