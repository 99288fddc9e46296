"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

WALK = """
def next_level(level, count, rng):
    new = level + {step}
    return {result}
"""

CROP = """
def crop(table, side):
    largest = (table.shape[0] + 1) // 2
    return table[{rows}, {columns}]
"""

CONFLICT = """
def conflict(a, b):
    both = {both}
    return {cosine}
"""

STEP = "rng.choice((-1, 0, 1))"
INSIDE = "new if 0 <= new < count else level"
MIDDLE = "largest - side : largest + side - 1"
COSINE = "(a[both] @ b[both]) / (a[both].norm() * b[both].norm())"

ANSWERS = {
    1: Answers(
        right=[
            WALK.format(step=STEP, result=INSIDE),
            WALK.format(step="rng.choice((-1, 1))", result=INSIDE),
        ],
        wrong=[
            WALK.format(step=STEP, result="new % count"),  # jumps from end to end
            WALK.format(step=STEP, result="new"),  # leaves the levels
            WALK.format(step=STEP, result="abs(new) if new < count else 2 * count - 2 - new"),
            WALK.format(step="rng.choice((-1, 0))", result=INSIDE),  # only downwards
            WALK.format(step="0", result="new"),
            WALK.format(step=STEP, result="rng.randrange(count)"),  # no walk
        ],
    ),
    2: Answers(
        right=[CROP.format(rows=MIDDLE, columns=MIDDLE)],
        wrong=[
            CROP.format(rows=": 2 * side - 1", columns=": 2 * side - 1"),  # the first corner
            CROP.format(rows=f"{MIDDLE} + 1", columns=MIDDLE),
            CROP.format(rows="largest - side : largest", columns="largest - side : largest"),
            CROP.format(rows=MIDDLE, columns=": 2 * side - 1"),
        ],
    ),
    3: Answers(
        right=[
            CONFLICT.format(both="(a * b) != 0", cosine=COSINE),
            CONFLICT.format(both="a.bool() & b.bool()", cosine=COSINE),
        ],
        wrong=[
            CONFLICT.format(both="slice(None)", cosine=COSINE),  # over all weights
            CONFLICT.format(both="a != 0", cosine=COSINE.replace(" * b[both]", " * b")),
            CONFLICT.format(both="(a != 0) & (b != 0)", cosine="a[both] @ b[both]"),
            CONFLICT.format(both="(a != 0) | (b != 0)", cosine=COSINE),
        ],
    ),
}

test_exercise = mutations("elasticvit", ANSWERS)
