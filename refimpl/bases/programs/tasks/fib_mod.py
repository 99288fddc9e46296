PROMPT = '''
def fib_mod(n: int, m: int) -> int:
    """The remainder of the n-th Fibonacci number modulo m.

    F(0) = 0, F(1) = 1; n may have thousands of binary digits.
    """
'''
EXAMPLES = [((10, 100), 55), ((0, 7), 0), ((20, 1000), 765)]
SIZES = (16, 300, 3_000, 20_000)


def generate(size, level, case, rng):
    if level == 0:  # small enough for every method that is right
        return case * 3 % (size + 1), (1, 2, 10, 97)[case % 4]
    if level == 1:
        return rng.randrange(size // 2, size), (10**9 + 7, 1, 2**31, 97)[case % 4]
    bits = size if level == 3 else size // 8
    return rng.getrandbits(bits) | 1 << bits, (10**9 + 7, 2**31, 10**9 + 9, 998244353)[case % 4]


def reference(n, m):
    a, b = 0, 1 % m  # F(i), F(i + 1) for the leading bits i of n
    for bit in bin(n)[2:]:
        a, b = a * (2 * b - a) % m, (a * a + b * b) % m
        if bit == "1":
            a, b = b, (a + b) % m
    return a % m


def matrix_power(n, m):
    """O(log n), right: powers of [[1, 1], [1, 0]], eight products where doubling needs three."""

    def product(p, q):
        return [[sum(p[i][k] * q[k][j] for k in range(2)) % m for j in range(2)] for i in range(2)]

    result, base = [[1, 0], [0, 1]], [[1, 1], [1, 0]]
    while n:
        if n & 1:
            result = product(result, base)
        base = product(base, base)
        n >>= 1
    return result[0][1] % m


def loop(n, m):
    """O(n), right: one addition a step."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, (a + b) % m
    return a % m


def recursion(n, m):
    """O(2ⁿ), right: the definition, which computes the same numbers again and again."""

    def fib(i):
        return i if i < 2 else fib(i - 1) + fib(i - 2)

    return fib(n) % m


def golden_ratio(n, m):
    """O(1), wrong: floating point holds F(n) up to n = 70 only."""
    return round(((1 + 5**0.5) / 2) ** n / 5**0.5) % m


def period_of_sixty(n, m):
    """O(1), wrong: takes the period of the last decimal digit for that of every modulus."""
    a, b = 0, 1
    for _ in range(n % 60):
        a, b = b, a + b
    return a % m
