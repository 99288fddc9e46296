"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

FOLD = """
def folded(block):
    found = []
    for conv, norm in ((block.mlp.fc1, block.mlp.norm1), (block.mlp.fc2, block.mlp.norm2)):
        s = {scale}
        found += [torch.diag(s) @ conv.weight[:, :, 0, 0], {bias}]
    W1, b1, W2, b2 = found
    k = block.layer_scale_2
    return W1, b1, {last}
"""
SCALE = "norm.weight * (norm.running_var + norm.eps) ** -0.5"
BIAS = "s * conv.bias - s * norm.running_mean + norm.bias"
LAST = "torch.einsum('o,oi->oi', k, W2), k * b2"


def fold(scale=SCALE, bias=BIAS, last=LAST):
    return FOLD.format(scale=scale, bias=bias, last=last)


# By asking the block itself: its convolutions and norms are affine, one unit vector a time.
PROBED = """
def affine(layer, norm, width):
    zero = norm(layer(torch.zeros(1, width, 1, 1)))[0, :, 0, 0]
    ones = norm(layer(torch.eye(width)[:, :, None, None]))[:, :, 0, 0]
    return (ones - zero).T, zero


def folded(block):
    W1, b1 = affine(block.mlp.fc1, block.mlp.norm1, block.mlp.fc1.in_channels)
    W2, b2 = affine(block.mlp.fc2, block.mlp.norm2, block.mlp.fc2.in_channels)
    return W1, b1, (W2.T * block.layer_scale_2).T, b2 * block.layer_scale_2
"""

STENCIL = """
def stencil(scale):
    kernel = torch.full((len(scale), 1, 3, 3), {around})
    kernel = kernel * scale[:, None, None, None]
    kernel[:, :, 1, 1] {sign}= {centre}
    return kernel
"""


def stencil(around="1 / 9", sign="+", centre="(1 - scale)[:, None]"):
    return STENCIL.format(around=around, sign=sign, centre=centre)


DELTA = """
def stencil(scale):
    delta = torch.zeros(1, 1, 3, 3)
    delta[..., 1, 1] = 1
    return delta + scale.view(-1, 1, 1, 1) * (torch.ones(1, 1, 3, 3) / 9 - delta)
"""

COUNT = """
def conv(a, b, k):
    return {conv}


def predict(widths, depths, num_vit):
    c = widths[-1]
    total = conv(3, widths[0] // 2, 3) + conv(widths[0] // 2, widths[0], 3)
    for a, b in zip(widths[:-1], widths[1:]):
        total += conv(a, b, {kernel})
    maps = list(depths)
    maps[-1] -= {tokens}
    for w, n in zip(widths, maps):
        total += n * (conv(w, 4 * w, 1) + conv(4 * w, w, 1) + {scales})
    block = 1536 * c + 1536 + 1024 * c + c + {table}
    block += 8 * c * c + 5 * c + {norms} + 2 * c
    return total + num_vit * block + 2 * c + {heads} * (1000 * c + 1000)
"""
RIGHT = {
    "conv": "a * b * k * k + 3 * b",
    "kernel": "3",
    "tokens": "num_vit",
    "scales": "2 * w",
    "table": "8 * 49",
    "norms": "4 * c",
    "heads": "2",
}


def count(**changes):
    return COUNT.format(**RIGHT | changes)


BUILT = """
def predict(widths, depths, num_vit):
    with torch.device("meta"):
        model = efficientformer.EfficientFormer(
            embed_dims=widths, depths=depths, num_vit=num_vit
        )
    return sum(p.numel() for p in model.parameters())
"""

ANSWERS = {
    1: Answers(
        right=[fold(), PROBED],
        wrong=[
            fold(scale="norm.weight / (norm.running_var + norm.eps)"),  # variance, no root
            fold(scale="norm.weight"),  # no division at all
            fold(bias="s * conv.bias + norm.bias"),  # the mean forgotten
            fold(bias="norm.bias - s * norm.running_mean"),  # the convolution's own bias
            fold(bias="conv.bias - s * norm.running_mean + norm.bias"),  # it is scaled, too
            fold(last="W2, b2"),  # λ₂ forgotten
            fold(last="k[:, None] * W2, b2"),  # … for the bias
            fold(last="k * W2.mT, k * b2"),  # transposed
        ],
    ),
    2: Answers(
        right=[stencil(), DELTA],
        wrong=[
            stencil(centre="1.0"),  # x is added once more, nothing subtracted
            stencil(sign="", centre="(1 - scale)[:, None]"),  # the middle has its share of the mean
            stencil(around="1.0"),  # a sum, no mean
            stencil(around="1 / 8"),  # a mean without the middle
            "def stencil(scale):\n    return torch.full((len(scale), 1, 3, 3), 1 / 9)",
            "def stencil(scale):\n    return torch.full((1, 1, 3, 3), 1 / 9)",
        ],
    ),
    3: Answers(
        right=[count(), BUILT],
        wrong=[
            "def predict(widths, depths, num_vit):\n    return 31_406_000",  # L3 by heart
            count(conv="a * b * k * k + 2 * b"),  # convolutions without bias
            count(conv="a * b * k * k + b"),  # norms forgotten
            count(kernel="2"),
            count(tokens="0"),  # 3D blocks stand in place of 4D ones
            count(scales="0"),  # λ forgotten
            count(scales="w"),
            count(table="49 * 49 * 8"),  # a bias for every pair
            count(table="0"),
            count(norms="2 * c"),
            count(heads="1"),
        ],
    ),
}

test_exercise = mutations("efficientformer", ANSWERS)
