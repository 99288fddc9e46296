PROMPT = '''
def count_primes(n: int) -> int:
    """How many primes are smaller than n."""
'''
EXAMPLES = [((10,), 4), ((2,), 0), ((100,), 25)]
SIZES = (100, 1_500, 20_000, 500_000)


def generate(size, level, case, rng):
    if level == 0:
        return ((0, 2, 3, 10, 26, 50, 98, 100)[case % 8],)
    return (size - rng.randrange(size // 20),)


def reference(n):
    if n < 3:
        return 0
    sieve = bytearray([1]) * n
    sieve[:2] = b"\0\0"
    for i in range(2, int(n**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n, i)))
    return sum(sieve)


def sieve_in_a_loop(n):
    """O(n log log n), right: strikes out multiples one at a time."""
    sieve = [True] * n
    count = 0
    for i in range(2, n):
        if sieve[i]:
            count += 1
            for j in range(i * i, n, i):
                sieve[j] = False
    return count


def divide_up_to_the_root(n):
    """O(n√n), right: tries every divisor up to the root."""
    count = 0
    for i in range(2, n):
        d = 2
        while d * d <= i and i % d:
            d += 1
        count += d * d > i
    return count


def divide_by_all(n):
    """O(n²), right: tries every smaller number."""
    return sum(all(i % d for d in range(2, i)) for i in range(2, n))


def fermat(n):
    """O(n log n), wrong: 341 = 11 · 31 and others pass Fermat's test for base 2."""
    return sum(i == 2 or pow(2, i - 1, i) == 1 for i in range(2, n))


def includes_n(n):
    """O(n log log n), wrong: counts n itself when it is prime."""
    sieve = [True] * (n + 1)
    count = 0
    for i in range(2, n + 1):
        if sieve[i]:
            count += 1
            for j in range(i * i, n + 1, i):
                sieve[j] = False
    return count
