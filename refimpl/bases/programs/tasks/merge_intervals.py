PROMPT = '''
def merge_intervals(spans: list[list[int]]) -> list[list[int]]:
    """Merge intervals [start, end] that overlap or touch; the result is sorted by start."""
'''
EXAMPLES = [
    (([[1, 3], [2, 5], [8, 9]],), [[1, 5], [8, 9]]),
    (([],), []),
    (([[4, 6], [1, 2]],), [[1, 2], [4, 6]]),
]
SIZES = (10, 80, 800, 6_000)


def generate(size, level, case, rng):
    spans = [[4 * i, 4 * i + 2] for i in range(size)]  # apart
    if case % 4 == 1:  # some touch
        for i in rng.sample(range(size), size // 3):
            spans[i][1] += 2
    elif case % 4 == 2:  # long ones that contain others
        for i in rng.sample(range(size), max(1, size // 20)):
            spans[i][1] += 4 * rng.randrange(1, 9) + 1
    elif case % 4 == 3:
        spans = [[x, x + rng.randrange(6)] for x in (rng.randrange(8 * size) for _ in range(size))]
    rng.shuffle(spans)
    return (spans,)


def reference(spans):
    merged = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged


def sweep_line(spans):
    """O(n log n), right: counts open intervals along the sorted ends."""
    events = sorted([(a, 0) for a, _ in spans] + [(b, 1) for _, b in spans])
    merged, depth = [], 0
    for x, closing in events:
        if not closing:
            if depth == 0:
                merged.append([x, x])
            depth += 1
        else:
            depth -= 1
            merged[-1][1] = x
    return merged


def insert_one_by_one(spans):
    """O(n²), right: merges each new interval with all that it meets."""
    merged = []
    for start, end in spans:
        apart = []
        for a, b in merged:
            if a <= end and start <= b:
                start, end = min(a, start), max(b, end)
            else:
                apart.append([a, b])
        merged = apart + [[start, end]]
    return sorted(merged)


def until_nothing_changes(spans):
    """O(n³), right: looks for any pair that meets, merges it, starts again."""
    spans = [list(s) for s in spans]
    changed = True
    while changed:
        changed = False
        for i in range(len(spans)):
            for j in range(i):
                if spans[i][0] <= spans[j][1] and spans[j][0] <= spans[i][1]:
                    a, b = spans.pop(i), spans.pop(j)
                    spans.append([min(a[0], b[0]), max(a[1], b[1])])
                    changed = True
                    break
            if changed:
                break
    return sorted(spans)


def touching_stay_apart(spans):
    """O(n log n), wrong: intervals that touch in one point stay apart."""
    merged = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged


def later_end_wins(spans):
    """O(n log n), wrong: an interval inside another one shortens it."""
    merged = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged
