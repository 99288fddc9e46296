"""Two parties compute on numbers that neither of them knows: additive secret sharing as it runs.

A number v becomes a whole number x = round(v · 2¹⁶) mod 2⁶⁴, and that is split: x = x₀ + x₁ with
x₀ drawn uniformly. Party 0 holds x₀, party 1 holds x₁; each alone is noise. Sums are computed on
shares without a word. Products take one exchange of masked numbers, with the help of random triples
(a, b, ab) that a *dealer* handed out beforehand. Comparisons take eight exchanges.

    ring.py         fixed point in 64 bits: encode, decode, share, reconstruct
    link.py         the wire, which counts rounds and bits; queues, or a TCP socket
    party.py        what one party can do with its shares: multiply, square, truncate, compare
    functions.py    maximum, exp, reciprocal, inverse root, softmax, GELU, layer norm, from these
    transformer.py  attention maps in four forms, a block
    session.py      `run(program, *inputs)`: two parties in two threads, or in two processes

What it protects: *semi-honest* parties follow the protocol and may look at everything that reaches
them; they learn nothing of the other's numbers but shapes, and what is opened on purpose. It does
not protect against a party that lies, nor against both together, nor against the dealer, which is
trusted. Masks come from NumPy's generator, which is no cryptographic one: this shows and counts,
and must guard nobody's data.

Sources: Beaver, CRYPTO 1991 (triples); Mohassel and Zhang, SecureML, 2017 (local truncation);
CrypTen, arXiv 2109.00984 (exp, reciprocal and inverse root, with its constants); PUMA, arXiv
2307.12533 (GELU in pieces, fitted anew here).
"""

from refimpl.bases.secret_sharing import functions
from refimpl.bases.secret_sharing.link import LAN, WAN, Network, Traffic
from refimpl.bases.secret_sharing.party import Party
from refimpl.bases.secret_sharing.ring import BITS, decode, encode, reconstruct, share
from refimpl.bases.secret_sharing.session import Outcome, run
from refimpl.bases.secret_sharing.transformer import (
    MAPS,
    map_cost,
    secure_block,
    secure_mlp,
    secure_weights,
)

__all__ = [
    "BITS",
    "LAN",
    "MAPS",
    "Network",
    "Outcome",
    "Party",
    "Traffic",
    "WAN",
    "decode",
    "encode",
    "functions",
    "map_cost",
    "reconstruct",
    "run",
    "secure_block",
    "secure_mlp",
    "secure_weights",
    "share",
]
