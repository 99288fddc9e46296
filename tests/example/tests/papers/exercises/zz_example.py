"""The exercises of the chapter on ZZ-Example, each check under mutation."""

from shared.exercises import Answers, mutations

NUMBER = "def answer():\n    return {}"

test_exercise = mutations(
    "zz_example",
    {
        1: Answers(
            right=[NUMBER.format("4 / 8")],
            wrong=[NUMBER.format(1), NUMBER.format(0.25), NUMBER.format("'half'")],
        ),
        2: Answers(
            right=[NUMBER.format("2**0")],
            wrong=[NUMBER.format(0), NUMBER.format(2), NUMBER.format(0.5)],
        ),
        3: Answers(
            right=[NUMBER.format("3 * 2")],
            wrong=[NUMBER.format(3), NUMBER.format(9), NUMBER.format(12)],
        ),
    },
)
