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

WALK = """
def walk_back():
    place, arrow, pointer = slice(0, 9), slice(9, 18), slice(18, 27)
    one = torch.eye(9)
    query, key, value = torch.zeros(9, 27), torch.zeros(9, 27), torch.zeros(27, 27)
    query[:, {asks}] = {sharp} * one
    key[:, {answers}] = one
    value[{into}, {fetched}] = one
    return query, key, value
"""
BACK = {
    "asks": "pointer",
    "sharp": "30",
    "answers": "arrow",
    "into": "pointer",
    "fetched": "place",
}


def walk(**changes):
    return WALK.format(**BACK | changes)


SHARP_KEYS = """
def walk_back():
    one, none = torch.eye(9), torch.zeros(9, 9)
    query = torch.cat([none, none, 6 * one], 1)
    key = torch.cat([none, 6 * one, none], 1)
    value = torch.cat([torch.zeros(18, 27), torch.cat([one, none, none], 1)])
    return query, key, value
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
        right=[walk(), walk(sharp="40"), SHARP_KEYS],
        wrong=[
            walk(answers="place", fetched="arrow"),  # forwards
            walk(answers="place"),  # stays where it is
            walk(fetched="arrow"),  # looks back, fetches the way forth again
            walk(into="place"),  # the next head gets no pointer
            walk(asks="arrow"),  # every head asks for the same
            walk(sharp="0"),  # flat maps
            "def walk_back():\n    return [torch.zeros(9, 27)] * 3",  # the value's shape
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
