"""Right and wrong answers to the exercises of the chapter `enamel`."""

from shared.exercises import Answers, mutations

FACTORIALS = """
def factorial(n):
    return math.prod([float(i) for i in range(1, n + 1)])
"""

ANSWERS = {
    1: Answers(
        right=[
            "def lambda_two(n):\n    return [(r - 1) / math.comb(n, 2) for r in range(2, n + 1)]",
            "def lambda_two(n):\n    w = np.arange(1, n, dtype=float)\n    return w / w.sum()",
        ],
        wrong=[
            "def lambda_two(n):\n    return [2 / n] * (n - 1)",
            # forgets that a mark is no partner of its own
            "def lambda_two(n):\n    return [r / math.comb(n, 2) for r in range(2, n + 1)]",
            # the weights of the minimum
            "def lambda_two(n):\n    return [(n - r) / math.comb(n, 2) for r in range(2, n + 1)]",
            # one too many
            "def lambda_two(n):\n    return [(r - 1) / math.comb(n, 2) for r in range(1, n + 1)]",
            "def lambda_two(n):\n    return [(r - 1) for r in range(2, n + 1)]",  # not divided
            # right for n = 6 only
            "def lambda_two(n):\n    return [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15]",
        ],
    ),
    2: Answers(
        right=[
            FACTORIALS
            + "fails_at = 2\nwhile math.isfinite(factorial(fails_at)):\n    fails_at += 1",
            "fails_at = 171",
        ],
        wrong=[
            "fails_at = 170",
            "fails_at = 172",
            "fails_at = 1030",
            "fails_at = 171.0",
            "fails_at = 'n'",
            "fails_at = 0",
            "fails_at = True",
        ],
    ),
    3: Answers(
        right=[
            """
def median_of(marks, k):
    subsets = list(itertools.combinations(sorted(marks), k))
    return sum(s[k // 2] for s in subsets) / len(subsets)
""",
        ],
        wrong=[
            "def median_of(marks, k):\n    return eff_at_k(marks, k)",
            "def median_of(marks, k):\n    return float(np.median(marks))",
            # one subset instead of all
            "def median_of(marks, k):\n    return float(np.median(marks[:k]))",
            """
def median_of(marks, k):
    n, m = len(marks), (k - 1) // 2
    ranks = enumerate(marks, 1)
    return sum(math.comb(r - 1, m) * math.comb(n - r, m) / math.comb(n, k) * e for r, e in ranks)
""",  # forgets to sort
            """
def median_of(marks, k):
    n, m = len(marks), (k - 1) // 2
    ranks = enumerate(sorted(marks), 1)
    return sum(math.comb(r, m) * math.comb(n - r, m) / math.comb(n, k) * e for r, e in ranks)
""",  # one rank off
            "def median_of(marks, k):\n    return float(np.mean(marks)) if k == 1 else None",
        ],
    ),
}

test_exercise = mutations("enamel", ANSWERS)
