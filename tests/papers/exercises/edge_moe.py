"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

UPDATE = """
import math


def update(total, highest, score):
    apart = {apart}
    factor = math.exp({exponent})
    if score > highest:
        return {raised}
    return {kept}
"""

ROUNDED = """
def rounded(a, b):
    return {product}
"""

QUEUES = """
def queues(chosen):
    found = {{}}
    for token, pair in enumerate(chosen):
        for expert in pair:
            found.setdefault({key}, []).append({entry})
    return {result}
"""


def update(
    apart="abs(score - highest)",
    exponent="-apart",
    raised="(total * factor + 1, score)",
    kept="(total + factor, highest)",
):
    return UPDATE.format(apart=apart, exponent=exponent, raised=raised, kept=kept)


def queues(key="expert", entry="token", result="dict(sorted(found.items()))"):
    return QUEUES.format(key=key, entry=entry, result=result)


ANSWERS = {
    1: Answers(
        right=[update(), update("min(score, highest) - max(score, highest)", "apart")],
        wrong=[
            update(raised="(total + 1, score)"),  # the old sum keeps its old maximum
            update(raised="(total * factor, score)"),  # the new score itself is left out
            update(kept="(total + factor, score)"),
            update(kept="(total * factor + 1, highest)"),
            update("score - highest", "apart"),  # a positive exponent
        ],
    ),
    2: Answers(
        right=[
            ROUNDED.format(product="(a * b + 8192) // 16384"),
            ROUNDED.format(product="(a * b >> 14) + (a * b >> 13 & 1)"),
        ],
        wrong=[
            ROUNDED.format(product="a * b >> 14"),
            ROUNDED.format(product="a * b + (1 << 14) >> 14"),
            ROUNDED.format(product="np.round(a * b / 2**14)"),  # no whole numbers
            ROUNDED.format(product="(a >> 14) * b"),
        ],
    ),
    3: Answers(
        right=[queues(), queues(result="{e: found[e] for e in sorted(found)}")],
        wrong=[
            queues(result="found"),  # in order of arrival
            queues(key="token", entry="expert"),
            queues(entry="expert"),
            queues(key="pair[0]"),  # the second choice forgotten
            queues(result="{e: found.get(e, []) for e in range(16)}"),  # also those without work
        ],
    ),
}

test_exercise = mutations("edge_moe", ANSWERS)
