PROMPT = '''
def two_sum(xs: list[int], target: int) -> tuple[int, int] | None:
    """Positions i < j with xs[i] + xs[j] == target, any such pair; None when there is none."""
'''
EXAMPLES = [(([2, 7, 11], 9), (0, 1)), (([1, 2], 7), None), (([3, 1, 3], 6), (0, 2))]
SIZES = (20, 200, 2_000, 20_000)


def generate(size, level, case, rng):
    xs = [2 * rng.randrange(10 * size) for _ in range(size)]
    if case % 4 == 0:  # one odd number, so that no pair has an odd sum but with it
        xs[-1] = 2 * rng.randrange(10 * size) + 1
        return xs, xs[-1] + xs[size // 3]
    if case % 4 == 1:
        return xs, 1
    if case % 4 == 2:  # half of the target stands there once: no pair with itself
        xs = [4 * x for x in xs]
        xs[size // 2] = 4 * 10 * size + 2
        return xs, 2 * xs[size // 2]
    xs[0] = xs[-1] = 40 * size + 2
    return xs, 80 * size + 4


def check(args, answer, output):
    """Many pairs may be right, so the output is judged by the question and not by the answer."""
    xs, target = args
    if answer is None or output is None:
        return output is answer
    if type(output) is not tuple or len(output) != 2 or any(type(i) is not int for i in output):
        return False
    i, j = output
    return 0 <= i < j < len(xs) and xs[i] + xs[j] == target


def reference(xs, target):
    seen = {}
    for j, x in enumerate(xs):
        if target - x in seen:
            return seen[target - x], j
        seen[x] = j
    return None


def two_pointers(xs, target):
    """O(n log n), right: walks inwards from both ends of the sorted list."""
    order = sorted(range(len(xs)), key=xs.__getitem__)
    lo, hi = 0, len(xs) - 1
    while lo < hi:
        total = xs[order[lo]] + xs[order[hi]]
        if total == target:
            return min(order[lo], order[hi]), max(order[lo], order[hi])
        if total < target:
            lo += 1
        else:
            hi -= 1
    return None


def look_behind(xs, target):
    """O(n²), right: searches the rest of the list for each partner, in C."""
    for i, x in enumerate(xs):
        if target - x in xs[i + 1 :]:
            return i, xs.index(target - x, i + 1)
    return None


def all_pairs(xs, target):
    """O(n²), right: the definition."""
    for j in range(len(xs)):
        for i in range(j):
            if xs[i] + xs[j] == target:
                return i, j
    return None


def pairs_with_itself(xs, target):
    """O(n), wrong: takes a number that is half the target twice."""
    where = {x: i for i, x in enumerate(xs)}
    for i, x in enumerate(xs):
        if target - x in where:
            j = where[target - x]
            return min(i, j), max(i, j)
    return None


def wrong_order(xs, target):
    """O(n), wrong: the later position comes first."""
    seen = {}
    for j, x in enumerate(xs):
        if target - x in seen:
            return j, seen[target - x]
        seen[x] = j
    return None
