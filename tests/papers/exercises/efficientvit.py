"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

HEADS = """
def heads_with_switch(x, W, w, cascade=True):
    h, width, c = W.shape
    d = (width - c) // 2
    y, outputs = torch.zeros_like(x[..., :c]), []
    for j in range(h):
        u = {u}
        qkv = torch.einsum("bnc,oc->bno", u, W[j]) + w[j]
        q, k, v = qkv[..., :d], qkv[..., d : 2 * d], qkv[..., 2 * d :]
        A = torch.softmax({logits}, {axis})
        y = A @ v
        outputs.append(y)
    return torch.cat(outputs, -1)
"""
INPUT = "x[..., c * j : c * j + c] + (y if cascade else 0)"
LOGITS = "q @ k.mT * d**-0.5"


def heads(u=INPUT, logits=LOGITS, axis="-1"):
    return HEADS.format(u=u, logits=logits, axis=axis)


FUSED_HEADS = """
def one_head(u, weight, bias, d):
    q, k, v = (u @ weight.T + bias).split((d, d, u.shape[-1]), -1)
    return F.scaled_dot_product_attention(q, k, v)


def heads_with_switch(x, W, w, cascade=True):
    h, c = W.shape[0], W.shape[2]
    d = (W.shape[1] - c) // 2
    out = [one_head(x[..., :c], W[0], w[0], d)]
    for j in range(1, h):
        u = x[..., j * c : (j + 1) * c] + cascade * out[-1]
        out.append(one_head(u, W[j], w[j], d))
    return torch.cat(out, 2)
"""

COUNT = """
def conv(a, b, k=1):
    return {conv}


def cheap(c):
    return conv(1, c, 3) + conv(c, 2 * c) + conv(2 * c, c)


def predict(widths, depths, heads, kernels):
    stem = [3] + [widths[0] // n for n in (8, 4, 2, 1)]
    total = sum(conv(a, b, 3) for a, b in zip(stem, stem[1:]))
    for i in range(3):
        c, h, side = widths[i], heads[i], {sides}[i]
        if i:
            o = widths[i - 1]
            total += {pairs} + {gate}
            total += conv(o, 4 * o) + conv(1, 4 * o, 3) + conv(4 * o, c)
        for _ in range(depths[i]):
            total += 2 * cheap(c) + conv(c, c) + {table}
            for k in {kernels}:
                total += conv(1, 16, k)
            total += h * conv(c // h, 32 + c // h)
    return total + 2 * c + 1000 * (c + 1)
"""
RIGHT = {
    "conv": "a * b * k * k + 2 * b",
    "sides": "(7, 7, 4)",
    "pairs": "cheap(o) + cheap(c)",
    "gate": "8 * o * o + 5 * o",
    "table": "h * side * side",
    "kernels": "kernels[:h]",
}


def count(**changes):
    return COUNT.format(**RIGHT | changes)


BUILT = """
def predict(widths, depths, heads, kernels):
    with torch.device("meta"):
        model = efficientvit.EfficientViT(
            embed_dims=widths, depths=depths, num_heads=heads, kernel_sizes=kernels
        )
    return sum(p.numel() for p in model.parameters())
"""

IN_PLACE = """
def make_alike(x, W, w):
    c = W.shape[2]
    for j in range(1, len(W)):
        x[..., j * c : j * c + c] = x[..., :c]
        W[j], w[j] = W[0], w[0]
    return x, W, w
"""
# Values may differ: maps don't depend on them.
VALUES_DIFFER = """
def make_alike(x, W, w):
    h, c = len(W), W.shape[2]
    mean = x.unflatten(2, (h, c)).mean(2)
    d = (W.shape[1] - c) // 2
    W, w = W.clone(), w.clone()
    W[:, : 2 * d], w[:, : 2 * d] = W[-1, : 2 * d], w[-1, : 2 * d]
    return torch.cat([mean] * h, 2), W, w
"""
SLICES_ALONE = """
def make_alike(x, W, w):
    h, c = len(W), W.shape[2]
    return x[..., :c].repeat(1, 1, h), W, w
"""
WEIGHTS_ALONE = """
def make_alike(x, W, w):
    h = len(W)
    return x, W[:1].repeat(h, 1, 1), w[:1].repeat(h, 1)
"""


def alike(result):
    return f"def make_alike(x, W, w):\n    return {result}"


ANSWERS = {
    1: Answers(
        right=[heads(), FUSED_HEADS],
        wrong=[
            heads(u="x[..., c * j : c * j + c] + y"),  # the switch is ignored
            heads(u="x[..., c * j : c * j + c]"),  # no cascade at all
            # all heads before, not the one before
            heads(u="x[..., c * j : c * j + c] + (sum(outputs) if cascade and outputs else 0)"),
            # ReLU inside the cascade
            heads(u="x[..., c * j : c * j + c] + (y.relu() if cascade else 0)"),
            heads(logits="q @ k.mT"),  # no scale
            heads(logits="q @ k.mT * c**-0.5"),  # the value's width in the scale
            heads(axis="-2"),  # softmax over queries
            "def heads_with_switch(x, W, w, cascade=True):\n    return x[:, :, :3]",
            "def heads_with_switch(x, W, w, cascade=True):\n    return x",
        ],
    ),
    2: Answers(
        right=[count(), BUILT],
        wrong=[
            "def predict(widths, depths, heads, kernels):\n    return 4_187_554",  # M2 by heart
            count(conv="a * b * k * k"),  # norms forgotten
            count(conv="a * b * k * k + b"),  # a bias instead of a norm
            count(pairs="0"),  # nothing around the patch merging
            count(pairs="2 * cheap(c)"),  # both pairs at the new width
            count(gate="8 * o * o"),  # the gate's biases forgotten
            count(gate="0"),
            count(sides="(7, 7, 7)"),  # the last map is 4×4
            count(sides="(14, 7, 4)"),  # windows forgotten
            count(kernels="kernels"),  # four kernels whatever the heads
            count(table="side * side"),  # one table for all heads
            count(table="h * (2 * side - 1) ** 2"),  # Swin's signed offsets
        ],
    ),
    3: Answers(
        right=[IN_PLACE, VALUES_DIFFER],
        wrong=[
            alike("x, W, w"),  # nothing changed
            SLICES_ALONE,
            WEIGHTS_ALONE,
            alike("x, W * 0, w * 0"),  # flat maps
            alike("x[..., :4], W[:1], w[:1]"),  # one head
        ],
    ),
}

test_exercise = mutations("efficientvit", ANSWERS)
