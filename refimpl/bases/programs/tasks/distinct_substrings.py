PROMPT = '''
def distinct_substrings(s: str, k: int) -> int:
    """How many different substrings of length k there are in s."""
'''
EXAMPLES = [(("abab", 2), 2), (("aaaa", 1), 1), (("abc", 4), 0)]
SIZES = (20, 200, 2_500, 25_000)


def generate(size, level, case, rng):
    letters = ("abcdefghij", "ab", "abcdefghijklmnopqrstuvwxyz", "abcd")[case % 4]
    s = "".join(rng.choice(letters) for _ in range(size))
    if case % 4 == 3 and level == 0:
        return s[:3], 5
    return s, (6, 14, 4, 8)[case % 4]


def reference(s, k):
    return len({s[i : i + k] for i in range(len(s) - k + 1)})


def sort_neighbours(s, k):
    """O(n log n), right: sorts all substrings and counts where neighbours differ."""
    from itertools import pairwise

    parts = sorted(s[i : i + k] for i in range(len(s) - k + 1))
    return len(parts) - sum(a == b for a, b in pairwise(parts))


def character_by_character(s, k):
    """O(n), right: builds each substring a letter at a time."""
    seen = set()
    for i in range(len(s) - k + 1):
        part = ""
        for j in range(i, i + k):
            part += s[j]
        seen.add(part)
    return len(seen)


def look_in_list(s, k):
    """O(n²), right: searches a list instead of a set."""
    seen = []
    for i in range(len(s) - k + 1):
        if s[i : i + k] not in seen:
            seen.append(s[i : i + k])
    return len(seen)


def short_hash(s, k):
    """O(n), wrong: a 16-bit rolling hash takes different substrings for one."""
    if len(s) < k:
        return 0
    base, modulus = 257, 65_521
    top, h = pow(base, k - 1, modulus), 0
    for c in s[:k]:
        h = (h * base + ord(c)) % modulus
    seen = {h}
    for i in range(len(s) - k):
        h = ((h - ord(s[i]) * top) * base + ord(s[i + k])) % modulus
        seen.add(h)
    return len(seen)


def one_window_short(s, k):
    """O(n), wrong: never looks at the last substring."""
    return len({s[i : i + k] for i in range(len(s) - k)}) or int(len(s) >= k)
