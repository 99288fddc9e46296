"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

PACK = """
def pack_record(seed, probabilities, kept):
    import struct
    order = sorted(range(len(probabilities)), key=lambda c: {by})[:kept]
    values = [float(probabilities[c]) for c in order]
    return struct.pack(f"{form}", {parts})
"""
PACKED = {
    "by": "-probabilities[c]",
    "form": "<i{kept}h{kept}e",
    "parts": "seed, *order, *values",
}


def packed(**changes):
    return PACK.format(**PACKED | changes)


LEAN = """
def lean_loss(logits, indices, probabilities):
    classes, kept = logits.shape[1], indices.shape[1]
    m = (1 - probabilities.sum(1)) / {others}
    z = logits.gather(1, indices)
    tail = logits.sum(1) - {own}
    losses = {norm} - (probabilities * z).sum(1) - m * tail
    return losses.{reduced}
"""
LEANER = {
    "others": "(classes - kept)",
    "own": "z.sum(1)",
    "norm": "torch.logsumexp(logits, 1)",
    "reduced": "mean()",
}


def lean(**changes):
    return LEAN.format(**LEANER | changes)


SHIFTED = """
def lean_loss(logits, indices, probabilities):
    z = logits - logits.amax(1, keepdim=True)
    m = (1 - probabilities.sum(1, keepdim=True)) / (z.shape[1] - indices.shape[1])
    total = z.exp().sum(1).log()
    return (total - ((probabilities - m) * z.gather(1, indices)).sum(1) - (m * z).sum(1)).mean()
"""

DISK = """
def disk_bytes(images, epochs, kept, index_bytes=2):
    record = {record}
    return record * images{epochs}
"""


def disk(record="4 + kept * index_bytes + 2 * kept", epochs=" * epochs"):
    return DISK.format(record=record, epochs=epochs)


test_exercise = mutations(
    "tinyvit",
    {
        1: Answers(
            right=[packed()],
            wrong=[
                packed(by="probabilities[c]"),
                packed(by="c"),
                packed(form=">i{kept}h{kept}e"),
                packed(form="<q{kept}h{kept}e"),
                packed(form="<i{kept}i{kept}e"),
                packed(form="<i{kept}h{kept}f"),
                packed(form="<i{kept}e{kept}h", parts="seed, *values, *order"),
            ],
        ),
        2: Answers(
            right=[lean(), SHIFTED],
            wrong=[
                lean(others="classes"),
                lean(own="0"),
                lean(norm="logits.amax(1)"),
                lean(reduced="sum()"),
                lean(reduced="detach().mean().requires_grad_()"),
                lean(norm="torch.logsumexp(logits, 0).mean()"),
            ],
        ),
        3: Answers(
            right=[disk(), disk("4 + kept * (index_bytes + 2)")],
            wrong=[
                disk("4 + 4 * kept"),
                disk("kept * (index_bytes + 2)"),
                disk(epochs=""),
                disk("8 + kept * (index_bytes + 2)"),
                disk("4 + kept * (index_bytes + 4)"),
            ],
        ),
    },
)
