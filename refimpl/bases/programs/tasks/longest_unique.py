PROMPT = '''
def longest_unique(s: str) -> int:
    """Length of the longest run of neighbouring characters without a repetition."""
'''
EXAMPLES = [(("abcab",), 3), (("",), 0), (("aaaa",), 1)]
SIZES = (20, 100, 1_000, 20_000)


def generate(size, level, case, rng):
    if case % 4 == 0:
        return ("".join(chr(rng.randrange(97, 123)) for _ in range(size)),)
    if case % 4 == 1:  # all characters differ
        return ("".join(chr(0x4E00 + i % 20_000) for i in range(size)),)
    if case % 4 == 2:  # the window's start must not move back
        return (("abba" + "cdefghijk"[: 5 + case % 3]) * (size // 10),)
    return ("".join(chr(rng.randrange(300, 300 + size // 4 + 2)) for _ in range(size)),)


def reference(s):
    last, start, best = {}, 0, 0
    for i, c in enumerate(s):
        if last.get(c, -1) >= start:
            start = last[c] + 1
        last[c] = i
        if i - start >= best:
            best = i - start + 1
    return best


def shrinking_window(s):
    """O(n), right: drops characters at the left until the new one is unique."""
    inside, start, best = set(), 0, 0
    for c in s:
        while c in inside:
            inside.remove(s[start])
            start += 1
        inside.add(c)
        best = max(best, len(inside))
    return best


def string_window(s):
    """O(n·w), right: searches and cuts the window itself, a string of length w."""
    window, best = "", 0
    for c in s:
        window = window[window.find(c) + 1 :] + c
        best = max(best, len(window))
    return best


def every_start(s):
    """O(n·w), right: starts again at every position."""
    best = 0
    for i in range(len(s)):
        seen = set()
        for c in s[i:]:
            if c in seen:
                break
            seen.add(c)
        best = max(best, len(seen))
    return best


def every_run(s):
    """O(n³), right: makes a set of every run."""
    return max(
        (
            j - i
            for i in range(len(s))
            for j in range(i + 1, len(s) + 1)
            if len(set(s[i:j])) == j - i
        ),
        default=0,
    )


def moves_back(s):
    """O(n), wrong: a repetition from before the window moves its start back."""
    last, start, best = {}, 0, 0
    for i, c in enumerate(s):
        if c in last:
            start = last[c] + 1
        last[c] = i
        best = max(best, i - start + 1)
    return best
