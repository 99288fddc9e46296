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
    place, arrow, pointer = slice(0, 16), slice(16, 32), slice(32, 48)
    one = torch.eye(16)
    query, key, value = torch.zeros(16, 48), torch.zeros(16, 48), torch.zeros(48, 48)
    query[:, {asks}] = {sharp} * one
    key[:, {answers}] = one
    value[{into}, {fetched}] = one
    return query, key, value
"""
BACK = {
    "asks": "pointer",
    "sharp": "50",
    "answers": "arrow",
    "into": "pointer",
    "fetched": "place",
}


def walk(**changes):
    return WALK.format(**BACK | changes)


SHARP_KEYS = """
def walk_back():
    one, none = torch.eye(16), torch.zeros(16, 16)
    query = torch.cat([none, none, 7 * one], 1)
    key = torch.cat([none, 7 * one, none], 1)
    value = torch.cat([torch.zeros(32, 48), torch.cat([one, none, none], 1)])
    return query, key, value
"""

FINISHED = """
def after_a_look(known):
    new = set()
    for mine in known:
        for its in known:
            new |= {step + mine - its for step in known}
    return frozenset(new)
"""


def look(result):
    return f"def after_a_look(known):\n    return {result}"


PAIRS = "for a in known for b in known"

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
        right=[walk(), walk(sharp="60"), SHARP_KEYS],
        wrong=[
            walk(answers="place", fetched="arrow"),  # forwards
            walk(answers="place"),  # stays where it is
            walk(fetched="arrow"),  # looks back, fetches the way forth again
            walk(into="place"),  # the next head gets no pointer
            walk(asks="arrow"),  # every head asks for the same
            walk(sharp="0"),  # flat maps
            "def walk_back():\n    return [torch.zeros(16, 48)] * 3",  # the value's shape
        ],
    ),
    3: Answers(
        right=[FINISHED, look(f"{{a - b + c {PAIRS} for c in known}}")],
        wrong=[
            look("known"),  # nothing changed
            look(f"{{a + b {PAIRS}}}"),  # looks forward alone
            look(f"{{a - b {PAIRS}}}"),  # where the token stands, not what it knows
            look(f"{{a + b + c {PAIRS} for c in known}}"),  # no matching
            look(f"[a - b + c {PAIRS} for c in known]"),  # a list
            look("set(range(min(known) - 1, max(known) + 2))"),  # one step on each side
        ],
    ),
}

test_exercise = mutations("efficientvit", ANSWERS)
