"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

NEAREST = """
def nearest(x, fraction_bits):
    return {body}
"""
COMMON = """
def common(sq, sk):
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
        right=[COMMON.format(body="((sq + 1) @ (sk + 1).T) / 4")],
        wrong=[
            COMMON.format(body="sq @ sk.T"),
            COMMON.format(body="(sq @ sk.T + sq.shape[1]) / 2"),  # bits that agree, zeros too
            COMMON.format(body="(sq @ sk.T + sq.shape[1]) / 4"),
            COMMON.format(body="(sk @ sq.T + sq.shape[1]) / 4"),
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
