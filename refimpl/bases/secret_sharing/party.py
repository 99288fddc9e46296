"""One party: what it can do with its own shares, a wire to the other, and the dealer's gifts.

Both parties run the same program, each on its shares: arrays of uint64, of any shape, fixed point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refimpl.bases.secret_sharing.link import Link
from refimpl.bases.secret_sharing.ring import encode, random, share, truncated

WORD = 64
ONE = np.uint64(1)


class Dealer:
    """Random numbers with a known relation, shared between the parties before they meet.

    A third machine that both trust; it never sees a number of theirs. Here each party runs a copy
    from one seed, and looks at its own half alone. bits: handed out so far, to both.
    """

    def __init__(self, index: int, seed: int):
        self.index = index
        self.generator = np.random.Generator(np.random.SFC64([seed, 0xD]))
        self.bits = 0

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return random(self.generator, shape)

    def own(self, whole: np.ndarray) -> np.ndarray:
        """This party's share of a number in the ring."""
        self.bits += 2 * WORD * whole.size
        return share(whole, self.generator)[self.index]

    def own_word(self, word: np.ndarray) -> np.ndarray:
        """This party's share of 64 bits: word = share₀ xor share₁."""
        self.bits += 2 * WORD * word.size
        mask = self.random(word.shape)
        return mask if self.index == 0 else word ^ mask

    def triple(self, product: Callable, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """Shares of random a and b, and of product(a, b)."""
        a, b = (self.random(shape) for shape in shapes)
        return [self.own(a), self.own(b), self.own(product(a, b))]

    def square(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Shares of random a and a²."""
        a = self.random(shape)
        return [self.own(a), self.own(a * a)]

    def and_triple(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Shares, by xor, of random words a and b, and of a and b."""
        a, b = self.random(shape), self.random(shape)
        return [self.own_word(a), self.own_word(b), self.own_word(a & b)]

    def bit(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """A random bit, shared by xor and in the ring."""
        bit = self.generator.integers(0, 2, shape, np.uint64)
        mask = self.generator.integers(0, 2, shape, np.uint64)
        self.bits += 2 * bit.size
        return [mask if self.index == 0 else bit ^ mask, self.own(bit)]


class Party:
    """Party 0 or 1. Methods take and give shares; each says how many rounds it takes."""

    def __init__(self, index: int, link: Link, dealer: Dealer):
        self.index = index
        self.link = link
        self.dealer = dealer

    def part(self, name: str):
        """A context: what is said in it is counted under this name."""
        return self.link.part(name)

    def exchange(self, *arrays: np.ndarray, bits: int = WORD) -> list[np.ndarray]:
        """The other party's arrays for these: one round."""
        counted = self.link.traffic[self.link.name]
        counted.offline_bits += self.dealer.bits
        self.dealer.bits = 0
        return self.link.exchange(*arrays, bits=bits)

    def open(self, *shares: np.ndarray) -> list[np.ndarray]:
        """The numbers themselves, to both parties: one round for all."""
        return [own + other for own, other in zip(shares, self.exchange(*shares), strict=True)]

    def constant(self, value, like: np.ndarray) -> np.ndarray:
        """A share of a number that both know: party 0 holds it all."""
        whole = encode(np.broadcast_to(np.asarray(value, np.float64), like.shape))
        return whole if self.index == 0 else np.zeros_like(whole)

    def add(self, x: np.ndarray, value) -> np.ndarray:
        """x + a number that both know. No round."""
        return x + self.constant(value, x)

    def scale(self, x: np.ndarray, value) -> np.ndarray:
        """x · a number that both know. No round; right to one unit of 2⁻¹⁶."""
        return self.truncate(x * encode(value))

    def truncate(self, x: np.ndarray) -> np.ndarray:
        """x / 2¹⁶, which a product of two fixed-point numbers needs. No round."""
        return truncated(x, self.index)

    def product(self, x: np.ndarray, y: np.ndarray, times: Callable = np.multiply) -> np.ndarray:
        """times(x, y) in the ring, not truncated: one round, after Beaver.

        With d = x − a and e = y − b open: x y = ab + d b + a e + d e, the last added by one party.
        """
        a, b, c = self.dealer.triple(times, x.shape, y.shape)
        d, e = self.open(x - a, y - b)
        z = c + times(d, b) + times(a, e)
        return z + times(d, e) if self.index == 0 else z

    def multiply(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x · y, number by number, of one shape: one round, 32 bytes each."""
        if x.shape != y.shape:
            raise ValueError(f"x and y must have one shape, got {x.shape} and {y.shape}")
        return self.truncate(self.product(x, y))

    def matmul(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x @ y: (…, m, k), (…, k, n) -> (…, m, n). One round, 16 (m k + k n) bytes."""
        if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
            raise ValueError(f"x {x.shape} and y {y.shape} can't be multiplied as matrices")
        return self.truncate(self.product(x, y, np.matmul))

    def square(self, x: np.ndarray) -> np.ndarray:
        """x², number by number: one round, 16 bytes each, as only one number is opened."""
        a, c = self.dealer.square(x.shape)
        (d,) = self.open(x - a)
        z = c + np.uint64(2) * d * a
        return self.truncate(z + d * d if self.index == 0 else z)

    def both(self, *pairs: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        """x and y of words that are shared by xor, all pairs in one round of 32 bytes a word."""
        triples = [self.dealer.and_triple(x.shape) for x, _ in pairs]
        masked = []
        for (x, y), (a, b, _) in zip(pairs, triples, strict=True):
            masked += [x ^ a, y ^ b]
        opened = [own ^ other for own, other in zip(masked, self.exchange(*masked), strict=True)]
        found = []
        for i, (a, b, c) in enumerate(triples):
            d, e = opened[2 * i : 2 * i + 2]
            z = c ^ (d & b) ^ (a & e)
            found.append(z ^ (d & e) if self.index == 0 else z)
        return found

    def negative(self, x: np.ndarray) -> np.ndarray:
        """1 where x < 0, else 0, as a whole number (no fixed point): 8 rounds, 384.25 bytes each.

        The top bit of x₀ + x₁ needs the carry of the 63 bits below: a Kogge–Stone adder finds all
        carries in six steps. generate, propagate: whether a run of bits makes, or hands on, one.
        """
        zero = np.zeros_like(x)
        first, second = (x, zero) if self.index == 0 else (zero, x)
        sums = propagate = first ^ second
        (generate,) = self.both((first, second))
        for step in (1, 2, 4, 8, 16):
            shift = np.uint64(step)
            more, propagate = self.both(
                (propagate, generate << shift), (propagate, propagate << shift)
            )
            generate = generate ^ more
        (more,) = self.both((propagate, generate << np.uint64(32)))
        generate = generate ^ more
        return self.to_ring((sums ^ (generate << ONE)) >> np.uint64(63))

    def to_ring(self, bit: np.ndarray) -> np.ndarray:
        """A bit that is shared by xor, as a whole number in the ring: a round of one bit."""
        mask, ring_mask = self.dealer.bit(bit.shape)
        (other,) = self.exchange(bit ^ mask, bits=1)
        opened = bit ^ mask ^ other  # b xor r = c, so b = c + r − 2 c r
        z = ring_mask - np.uint64(2) * opened * ring_mask
        return z + opened if self.index == 0 else z

    def relu(self, x: np.ndarray) -> np.ndarray:
        """max(x, 0): 9 rounds, 416.25 bytes each."""
        keep = (ONE if self.index == 0 else np.uint64(0)) - self.negative(x)
        return self.product(x, keep)
