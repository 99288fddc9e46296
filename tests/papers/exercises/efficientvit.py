"""Answers to the chapter's exercises: right ones in another form, and the mistakes that readers make."""

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
INPUT, LOGITS = "x[..., c * j : c * j + c] + (y if cascade else 0)", "q @ k.mT * d**-0.5"


def heads(u=INPUT, logits=LOGITS, axis="-1"):
    return HEADS.format(u=u, logits=logits, axis=axis)


COUNT = """
def predict(widths, depths, heads, kernels):
    conv = lambda a, b, k=1: {conv}
    cheap = lambda c: conv(1, c, 3) + conv(c, 2 * c) + conv(2 * c, c)
    stem = [3] + [widths[0] // n for n in (8, 4, 2, 1)]
    total = sum(conv(a, b, 3) for a, b in zip(stem, stem[1:]))
    for i in range(3):
        c, h, side = widths[i], heads[i], {sides}[i]
        if i:
            o = widths[i - 1]
            total += cheap(o) + cheap(c) + conv(o, 4 * o) + conv(1, 4 * o, 3) + conv(4 * o, c) + {gate}
        for _ in range(depths[i]):
            total += 2 * cheap(c) + conv(c, c) + {table}
            for k in {kernels}:
                total += conv(1, 16, k)
            total += h * conv(c // h, 32 + c // h)
    return total + 2 * c + 1000 * (c + 1)
"""
ORDER = {
    "conv": "a * b * k * k + 2 * b",
    "sides": "(7, 7, 4)",
    "gate": "8 * o * o + 5 * o",
    "table": "h * side * side",
    "kernels": "kernels[:h]",
}


def count(**changes):
    return COUNT.format(**ORDER | changes)


ANSWERS = {
    1: Answers(
        right=[
            heads(),
            """
def heads_with_switch(x, W, w, cascade=True):
    h, c = W.shape[0], W.shape[2]
    d = (W.shape[1] - c) // 2
    kernel = lambda x, j: F.scaled_dot_product_attention(*(x @ W[j].T + w[j]).split((d, d, c), -1))
    out = [kernel(x[..., :c], 0)]
    for j in range(1, h):
        out.append(kernel(x[..., j * c : (j + 1) * c] + cascade * out[-1], j))
    return torch.cat(out, 2)
""",
        ],
        wrong=[
            heads(u="x[..., c * j : c * j + c] + y"),  # the switch is ignored
            heads(u="x[..., c * j : c * j + c]"),  # no cascade at all
            heads(
                u="x[..., c * j : c * j + c] + (sum(outputs) if cascade and outputs else 0)"
            ),  # all heads before, not the one before
            heads(
                u="x[..., c * j : c * j + c] + (y.relu() if cascade else 0)"
            ),  # ReLU inside the cascade
            heads(logits="q @ k.mT"),  # no scale
            heads(logits="q @ k.mT * c**-0.5"),  # the value's width in the scale
            heads(axis="-2"),  # softmax over queries
            "def heads_with_switch(x, W, w, cascade=True):\n    return x[:, :, :3]",
            "def heads_with_switch(x, W, w, cascade=True):\n    return x",
        ],
    ),
    2: Answers(
        right=[
            count(),
            """
def predict(widths, depths, heads, kernels):
    with torch.device("meta"):
        model = efficientvit.EfficientViT(embed_dim=widths, depth=depths, num_heads=heads, kernels=kernels)
    return sum(p.numel() for p in model.parameters())
""",
        ],
        wrong=[
            "def predict(widths, depths, heads, kernels):\n    return 4_187_554",  # M2 by heart
            count(conv="a * b * k * k"),  # norms forgotten
            count(conv="a * b * k * k + b"),  # a bias instead of a norm
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
        right=[
            """
def make_alike(x, W, w):
    c = W.shape[2]
    for j in range(1, len(W)):
        x[..., j * c : j * c + c] = x[..., :c]
        W[j], w[j] = W[0], w[0]
    return x, W, w
""",
            """
def make_alike(x, W, w):
    h, c = len(W), W.shape[2]
    mean = x.unflatten(2, (h, c)).mean(2)
    d = (W.shape[1] - c) // 2
    W, w = W.clone(), w.clone()
    W[:, : 2 * d], w[:, : 2 * d] = W[-1, : 2 * d], w[-1, : 2 * d]  # values may differ: the maps don't depend on them
    return torch.cat([mean] * h, 2), W, w
""",
        ],
        wrong=[
            "def make_alike(x, W, w):\n    return x, W, w",  # nothing changed
            "def make_alike(x, W, w):\n    h, c = len(W), W.shape[2]\n    return x[..., :c].repeat(1, 1, h), W, w",  # the slices alone
            "def make_alike(x, W, w):\n    return x, W[:1].repeat(len(W), 1, 1), w[:1].repeat(len(W), 1)",  # the weights alone
            "def make_alike(x, W, w):\n    return x, W * 0, w * 0",  # flat maps
            "def make_alike(x, W, w):\n    return x[..., :4], W[:1], w[:1]",  # one head
        ],
    ),
}

test_exercise = mutations("efficientvit", ANSWERS)
