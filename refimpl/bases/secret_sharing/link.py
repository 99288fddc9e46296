"""The wire between two parties: both send, then both receive. That is one round, and is counted."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

GONE = "the other party has stopped"


@dataclass
class Traffic:
    """What was said. rounds: messages that had to arrive before the next could be computed, those
    that travel at the same time counted once; bits: online, both directions; offline_bits: what the
    dealer handed out to both beforehand."""

    rounds: int = 0
    bits: int = 0
    offline_bits: int = 0

    @property
    def bytes(self) -> float:
        """Online, both directions."""
        return self.bits / 8

    @property
    def offline_bytes(self) -> float:
        return self.offline_bits / 8

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.rounds + other.rounds,
            self.bits + other.bits,
            self.offline_bits + other.offline_bits,
        )


@dataclass(frozen=True)
class Network:
    """A model of a network. delay: seconds for a message to arrive, however short; bandwidth: bytes
    a second in each direction."""

    delay: float
    bandwidth: float

    def seconds(self, traffic: Traffic) -> float:
        """rounds · delay + bytes of one direction / bandwidth; computing is not in it."""
        return traffic.rounds * self.delay + traffic.bytes / 2 / self.bandwidth


# The two settings customary since Cheetah (Huang and others, USENIX Security 2022)
LAN = Network(0.3e-3, 384e6)
WAN = Network(40e-3, 44e6)


class Link:
    """One end of a wire. delay: seconds that every round takes longer, to feel a distance.

    traffic: of each part of the program (see `part`); received: all messages, where they are kept.
    """

    def __init__(self, delay: float = 0.0, keep: bool = False):
        self.delay = delay
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.received: list[np.ndarray] | None = [] if keep else None
        self.name = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is said in this block under a name; the outermost one counts."""
        before = self.name
        self.name = before or name
        yield
        self.name = before

    def exchange(self, *arrays: np.ndarray, bits: int = 64) -> list[np.ndarray]:
        """Send arrays of whole numbers and receive as many of the same shapes: one round.

        bits: of each number that matter, 64 or 1; the wire fills up the last byte, the count does
        not. Raises `ValueError` where the other party's message has another length.
        """
        counted = self.traffic[self.name]
        counted.rounds += 1
        counted.bits += 2 * bits * sum(array.size for array in arrays)
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        message = np.packbits(flat.astype(np.uint8)) if bits == 1 else flat
        data = self.swap(message.tobytes())
        if len(data) != message.nbytes:
            raise ValueError(
                f"the other party sent {len(data)} bytes where {message.nbytes} were expected: the"
                " parties run different programs, or hold shares of different shapes"
            )
        if self.delay:
            time.sleep(self.delay)
        found = np.frombuffer(data, message.dtype)
        if bits == 1:
            found = np.unpackbits(found, count=flat.size).astype(np.uint64)
        if self.received is not None:
            self.received.append(found)
        places = np.cumsum([array.size for array in arrays])[:-1]
        pieces = np.split(found, places)
        return [piece.reshape(array.shape) for piece, array in zip(pieces, arrays, strict=True)]

    def swap(self, data: bytes) -> bytes:
        """Send, then receive."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the other party know that nothing more will come."""


class QueueLink(Link):
    """Between two threads."""

    def __init__(self, to: SimpleQueue, from_: SimpleQueue, **how):
        super().__init__(**how)
        self.to = to
        self.from_ = from_

    def swap(self, data: bytes) -> bytes:
        self.to.put(data)
        found = self.from_.get()
        if found is None:
            raise ConnectionError(GONE)
        return found

    def close(self) -> None:
        self.to.put(None)


class SocketLink(Link):
    """Over a connected stream socket, between processes or machines. A message: length, data."""

    def __init__(self, connected: socket.socket, **how):
        super().__init__(**how)
        self.socket = connected
        if connected.family == socket.AF_INET:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def swap(self, data: bytes) -> bytes:
        """In turns of at most 64 KB, so that two long messages do not block each other's way."""
        self.socket.sendall(len(data).to_bytes(8, "big"))
        size = int.from_bytes(self.read(8), "big")
        found = []
        for start in range(0, max(len(data), size), 1 << 16):
            self.socket.sendall(data[start : start + (1 << 16)])
            found.append(self.read(min(1 << 16, max(size - start, 0))))
        return b"".join(found)

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            more = self.socket.recv(size - len(found))
            if not more:
                raise ConnectionError(GONE)
            found += more
        return bytes(found)

    def close(self) -> None:
        self.socket.close()
