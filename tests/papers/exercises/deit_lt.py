"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

CLEAN = """
def clean_teacher_loss(student, teacher, images, labels, mix):
    mixed, soft = mix(images, labels)
    with torch.no_grad():
        taught = {taught}
    answers = student.forward_classifiers({seen})
    return {loss}
"""


def clean(
    taught="teacher(images).max(1).indices",
    seen="mixed",
    loss="F.nll_loss(answers[1].log_softmax(1), taught)",
):
    return CLEAN.format(taught=taught, seen=seen, loss=loss)


ADJUSTED = """
def adjusted_loss(logits, labels, counts):
    counts = torch.tensor(counts, dtype=logits.dtype)
    return {loss}
"""


def adjusted(loss="F.nll_loss((logits + counts.log()).log_softmax(1), labels)"):
    return ADJUSTED.format(loss=loss)


def half(formula):
    return f"""
import math


def beta_for(n):
    return {formula}
"""


test_exercise = mutations(
    "deit_lt",
    {
        1: Answers(
            right=[clean()],
            wrong=[
                clean(taught="teacher(mixed).argmax(1)"),  # the paper's
                clean(seen="images"),  # nothing is mixed
                clean(loss="F.cross_entropy(answers[0], taught)"),  # CLS
                clean(taught="labels"),  # no teacher
                clean(loss="F.cross_entropy(answers[1], soft)"),
            ],
        ),
        2: Answers(
            right=[half("2 ** (-1 / n)"), half("math.exp(-math.log(2) / n)")],
            wrong=[
                half("1 - 1 / n if n > 1 else 0.1"),  # where 1 / (1 − β) is n
                half("1 - 1 / (2 * n)"),
                half("0.5**n"),
                half("math.exp(-1 / n)"),
            ],
        ),
        3: Answers(
            right=[
                adjusted(),
                adjusted("F.cross_entropy(logits + (counts / counts.sum()).log(), labels)"),
            ],
            wrong=[
                adjusted("F.cross_entropy(logits - counts.log(), labels)"),  # the wrong way
                adjusted("F.cross_entropy(logits + counts, labels)"),
                adjusted("F.cross_entropy(logits, labels, 1 / counts)"),  # re-weighting
                adjusted("F.cross_entropy(logits + counts.log(), labels, reduction='sum')"),
                adjusted("F.cross_entropy(logits, labels)"),
            ],
        ),
    },
)
