PROMPT = '''
def max_subarray(xs: list[int]) -> int:
    """The largest sum of a run of one or more neighbouring numbers."""
'''
EXAMPLES = [(([1, -2, 3, 4],), 7), (([5],), 5), (([2, -1, 2],), 3)]
SIZES = (20, 300, 6_000, 400_000)


def generate(size, level, case, rng):
    low, high = ((-100, 100), (-100, -1), (1, 100), (-100, 60))[case % 4]
    return (rng.choices(range(low, high + 1), k=size),)


def reference(xs):
    best = here = xs[0]
    for x in xs[1:]:
        here = x if here < 0 else here + x
        if here > best:
            best = here
    return best


def prefix_sums(xs):
    """O(n), right: the largest prefix sum less the smallest before it."""
    from itertools import accumulate

    lowest, best = 0, xs[0]
    for s in accumulate(xs):
        if s - lowest > best:
            best = s - lowest
        if s < lowest:
            lowest = s
    return best


def halves(xs):
    """O(n log n), right: the best run lies left, right, or across the middle."""
    from itertools import accumulate

    def best(lo, hi):
        if hi - lo == 1:
            return xs[lo]
        mid = (lo + hi) // 2
        across = max(accumulate(reversed(xs[lo:mid]))) + max(accumulate(xs[mid:hi]))
        return max(best(lo, mid), best(mid, hi), across)

    return best(0, len(xs))


def all_starts(xs):
    """O(n²), right: extends a run from every start."""
    best = xs[0]
    for i in range(len(xs)):
        total = 0
        for x in xs[i:]:
            total += x
            if total > best:
                best = total
    return best


def all_runs(xs):
    """O(n³), right: sums every run anew."""
    return max(sum(xs[i:j]) for i in range(len(xs)) for j in range(i + 1, len(xs) + 1))


def empty_allowed(xs):
    """O(n), wrong: the empty run slips in, so that all-negative lists give 0."""
    best = here = 0
    for x in xs:
        here = max(0, here + x)
        best = max(best, here)
    return best
