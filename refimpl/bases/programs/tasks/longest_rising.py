PROMPT = '''
def longest_rising(xs: list[int]) -> int:
    """Length of the longest strictly rising subsequence (not necessarily of neighbours)."""
'''
EXAMPLES = [(([3, 1, 2, 5],), 3), (([],), 0), (([5, 4, 3],), 1)]
SIZES = (12, 150, 1_500, 15_000)


def generate(size, level, case, rng):
    if case % 4 == 0:
        return ([rng.randrange(size) for _ in range(size)],)  # with repetitions
    if case % 4 == 1:
        return ([i + rng.randrange(-20, 20) for i in range(size)],)
    if case % 4 == 2:
        return ([rng.randrange(4) for _ in range(size)],)
    return (rng.sample(range(10 * size), size),)


def reference(xs):
    from bisect import bisect_left

    ends = []  # ends[k]: the smallest number that ends a rising run of length k + 1
    for x in xs:
        i = bisect_left(ends, x)
        if i == len(ends):
            ends.append(x)
        else:
            ends[i] = x
    return len(ends)


def patience_by_hand(xs):
    """O(n log n), right: the same piles with a binary search in Python."""
    piles = []
    for x in xs:
        lo, hi = 0, len(piles)
        while lo < hi:
            mid = (lo + hi) // 2
            if piles[mid] < x:
                lo = mid + 1
            else:
                hi = mid
        piles[lo : lo + 1] = [x]
    return len(piles)


def table(xs):
    """O(n²), right: the longest run that ends at each position, from all before it."""
    best = []
    for i, x in enumerate(xs):
        best.append(1 + max((best[j] for j in range(i) if xs[j] < x), default=0))
    return max(best, default=0)


def take_or_leave(xs):
    """O(2ⁿ), right: tries every subsequence."""

    def longest(i, last):
        if i == len(xs):
            return 0
        leave = longest(i + 1, last)
        return max(leave, 1 + longest(i + 1, xs[i])) if last is None or xs[i] > last else leave

    return longest(0, None)


def not_strict(xs):
    """O(n log n), wrong: lets equal numbers follow each other."""
    from bisect import bisect_right

    ends = []
    for x in xs:
        i = bisect_right(ends, x)
        ends[i : i + 1] = [x]
    return len(ends)


def greedy(xs):
    """O(n), wrong: starts at the smallest number and takes whatever is larger than the last."""
    if not xs:
        return 0
    count, last = 0, None
    for x in xs[xs.index(min(xs)) :]:
        if last is None or x > last:
            count, last = count + 1, x
    return count
