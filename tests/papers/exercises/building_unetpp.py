"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

CHANNELS = """
def channels_in(encoder_dims, decoder_dims):
    depth = len(encoder_dims) - 1
    diagonal = {diagonal}
    found = {{}}
    for i in range(depth):
        for j in range(1, depth - i + 1):
            below = diagonal[i + 1] if {on_it} else encoder_dims[i + 1]
            found[f"{{i}}_{{j}}"] = below + {beside}
    return found
"""
FINEST_FIRST = "list(decoder_dims)[::-1] + [encoder_dims[-1]]"


def channels(diagonal=FINEST_FIRST, on_it="i + j == depth", beside="encoder_dims[i] * j"):
    return CHANNELS.format(diagonal=diagonal, on_it=on_it, beside=beside)


def bound(result):
    return f"def best_mean_iou(a):\n    return {result}"


SEARCH = """
def best_mean_iou(a):
    t = np.linspace(0, a, 2001)
    return float(((t / (t + 1 - a + 1e-300) + (a - t) / (1 - t + 1e-300)) / 2).max())
"""

WALK = """
def needed(column):
    seen, todo = set(), [(0, column)]
    while todo:
        i, j = todo.pop()
        if j > 0:
            seen.add(f"{i}_{j}")
            todo += {steps}
    return seen
"""
BACK = "[(i + 1, j - 1), (i, j - 1)]"


def walk(steps):
    return WALK.replace("{steps}", steps)


def chosen(condition, columns="range(1, 5)"):
    return (
        "def needed(column):\n"
        f"    return {{f'{{i}}_{{j}}' for i in range(5) for j in {columns} if {condition}}}"
    )


ANSWERS = {
    1: Answers(
        right=[channels(), channels(beside="sum([encoder_dims[i]] * j)")],
        wrong=[
            channels(diagonal="list(decoder_dims) + [encoder_dims[-1]]"),  # coarsest last
            channels(on_it="False"),  # no diagonal
            channels(on_it="True"),  # every node below is as wide as the diagonal
            channels(beside="encoder_dims[i]"),  # the encoder's map alone: U-Net
            channels(beside="encoder_dims[i] * (j + 1)"),
            "def channels_in(encoder_dims, decoder_dims):\n    return {}",
            "def channels_in(encoder_dims, decoder_dims):\n    return [432, 336]",
        ],
    ),
    2: Answers(
        right=[bound("1 / (2 / a - 1)"), bound("a / (1 + (1 - a))"), SEARCH],
        wrong=[
            bound("a"),
            bound("1.0"),
            bound("a**2"),
            bound("a / 2"),
            bound("(1 + a) / 2"),  # one class perfect
            bound("a / (2 - a) - 0.01"),
            bound("2 * a / (1 + a)"),  # Dice from IoU
        ],
    ),
    3: Answers(
        right=[walk(BACK), chosen("i + j <= column")],
        wrong=[
            walk("[(i + 1, j - 1)]"),  # the way down alone
            walk("[(i, j - 1)]"),  # the finest level alone
            chosen("i + j == column"),  # U-Net's nodes
            chosen("i + j <= 4"),  # nothing is pruned
            chosen("j <= column and i + j <= 4"),  # columns, to the deepest level
            chosen("i + j < column"),
            chosen("i + j <= column", "range(5)"),  # with the encoder's maps
        ],
    ),
}

test_exercise = mutations("building_unetpp", ANSWERS)
