"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

NEAREST = """
def nearest(x, fraction_bits):
    return {body}
"""
KEPT = """
def steady(y, logits):
    gate = logits.softmax(-1).amax(-1, keepdim=True)
    return {body}
"""
SPLIT = """
def split(a, b):
    return {body}
"""

ANSWERS = {
    1: Answers(
        right=[NEAREST.format(body="(x * 2**fraction_bits).round() / 2**fraction_bits")],
        wrong=[
            NEAREST.format(body="fixed_point(x, 16, fraction_bits)"),
            NEAREST.format(body="x.round()"),
            NEAREST.format(body="x"),
            NEAREST.format(body="(x * 2**fraction_bits).ceil() / 2**fraction_bits"),
        ],
    ),
    2: Answers(
        right=[KEPT.format(body="y + y * (gate.log() - gate.log().detach())")],
        wrong=[
            KEPT.format(body="y"),
            KEPT.format(body="y * gate"),
            KEPT.format(body="y + gate - gate.detach()"),  # does not know what y is worth
            KEPT.format(body="y * gate.detach() / gate"),  # the wrong way round
        ],
    ),
    3: Answers(
        right=[SPLIT.format(body="1 - b / (a + b)")],
        wrong=[
            SPLIT.format(body="b / (a + b)"),
            SPLIT.format(body="0.5"),
            SPLIT.format(body="0.6"),
            SPLIT.format(body="a / b"),
        ],
    ),
}

test_exercise = mutations("shiftaddvit", ANSWERS)
