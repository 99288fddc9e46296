PROMPT = '''
def moving_maximum(xs: list[int], w: int) -> list[int]:
    """The maximum of every run of w neighbouring numbers, from left to right.

    An empty list when there are fewer than w numbers.
    """
'''
EXAMPLES = [(([1, 3, 2, 5], 2), [3, 3, 5]), (([4, 4], 1), [4, 4]), (([1], 3), [])]
SIZES = (20, 200, 2_000, 20_000)


def generate(size, level, case, rng):
    w = 3 if level == 0 else size // 2
    if case % 4 == 0:
        xs = [rng.randrange(-size, size) for _ in range(size)]
    elif case % 4 == 1:
        xs = list(range(size, 0, -1))  # falling: the maximum always leaves next
    elif case % 4 == 2:
        xs = [rng.randrange(3) for _ in range(size)]  # equal maxima
    else:
        xs = list(range(-size, 0))
    return xs, (size + 1 if level == 0 and case == 7 else w)


def reference(xs, w):
    from collections import deque

    falling, out = (
        deque(),
        [],
    )  # positions whose numbers fall from left to right; the first is the maximum
    for i, x in enumerate(xs):
        while falling and xs[falling[-1]] <= x:
            falling.pop()
        falling.append(i)
        if falling[0] <= i - w:
            falling.popleft()
        if i >= w - 1:
            out.append(xs[falling[0]])
    return out


def blocks(xs, w):
    """O(n), right: maxima from the left and from the right within blocks of w."""
    n = len(xs)
    left, right = xs[:], xs[:]
    for i in range(n):
        if i % w and left[i - 1] > left[i]:
            left[i] = left[i - 1]
    for i in range(n - 2, -1, -1):
        if (i + 1) % w and right[i + 1] > right[i]:
            right[i] = right[i + 1]
    return [max(right[i], left[i + w - 1]) for i in range(n - w + 1)]


def lazy_heap(xs, w):
    """O(n log n), right: a heap from which old numbers are dropped when they come up."""
    import heapq

    heap, out = [], []
    for i, x in enumerate(xs):
        heapq.heappush(heap, (-x, i))
        while heap[0][1] <= i - w:
            heapq.heappop(heap)
        if i >= w - 1:
            out.append(-heap[0][0])
    return out


def every_window(xs, w):
    """O(n·w), right: takes every maximum anew."""
    return [max(xs[i : i + w]) for i in range(len(xs) - w + 1)]


def drops_equal(xs, w):
    """O(n), wrong: a set of equal maxima leaves when the first of them does."""
    from collections import deque

    falling, out = deque(), []
    for i, x in enumerate(xs):
        while falling and falling[-1] < x:
            falling.pop()
        if not falling or falling[-1] != x:
            falling.append(x)
        if i >= w and falling[0] == xs[i - w] and len(falling) > 1:
            falling.popleft()
        if i >= w - 1:
            out.append(falling[0])
    return out


def whole_list_when_short(xs, w):
    """O(n·w), wrong: gives one window too many when the list is shorter than w."""
    if len(xs) <= w:
        return [max(xs)] if xs else []
    return [max(xs[i : i + w]) for i in range(len(xs) - w + 1)]
