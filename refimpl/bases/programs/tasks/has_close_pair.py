PROMPT = '''
def has_close_pair(xs: list[float], gap: float) -> bool:
    """True when two of the numbers, at different positions, differ by less than `gap`."""
'''
EXAMPLES = [
    (([1.0, 2.0, 3.9], 0.5), False),
    (([1.0, 2.8, 3.0, 4.0], 0.5), True),
    (([], 1.0), False),
]
SIZES = (20, 200, 2_000, 20_000)


def generate(size, level, case, rng):
    xs = [3.0 * i for i in range(size)]
    rng.shuffle(xs)
    if case % 4 == 1:  # one pair, far apart in the list
        xs[-1] = xs[0] + 0.25
    elif case % 4 == 2:  # a tie
        xs[-1] = xs[0]
    elif case % 4 == 3:  # exactly `gap` apart is not close
        return xs, 3.0
    return xs, 0.5


def reference(xs, gap):
    from itertools import pairwise

    xs = sorted(xs)
    return any(b - a < gap for a, b in pairwise(xs))


def buckets(xs, gap):
    """O(n), right: a number can only be close to those in its own bucket and the two beside it."""
    seen = {}
    for x in xs:
        i = int(x // gap)
        for j in (i - 1, i, i + 1):
            if j in seen and abs(x - seen[j]) < gap:
                return True
        seen[i] = x
    return False


def all_pairs(xs, gap):
    """O(n²), right: the definition."""
    for i in range(len(xs)):
        for j in range(i):
            if abs(xs[i] - xs[j]) < gap:
                return True
    return False


def sorted_insertion(xs, gap):
    """O(n²), right: keeps a sorted list, whose insertions move half of it."""
    import bisect

    kept = []
    for x in xs:
        i = bisect.bisect(kept, x)
        if (i and x - kept[i - 1] < gap) or (i < len(kept) and kept[i] - x < gap):
            return True
        kept.insert(i, x)
    return False


def forgets_ties(xs, gap):
    """O(n log n), wrong: a set loses equal numbers, which are the closest of all."""
    from itertools import pairwise

    xs = sorted(set(xs))
    return any(b - a < gap for a, b in pairwise(xs))


def neighbours_as_given(xs, gap):
    """O(n), wrong: compares only numbers that stand beside each other."""
    from itertools import pairwise

    return any(abs(a - b) < gap for a, b in pairwise(xs))
