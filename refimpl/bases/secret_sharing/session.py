"""`run(program, *inputs)`: share the inputs, let both parties run the program, join the results."""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from refimpl import checks
from refimpl.bases.secret_sharing.link import Link, QueueLink, SocketLink, Traffic
from refimpl.bases.secret_sharing.party import Dealer, Party
from refimpl.bases.secret_sharing.ring import decode, encode, reconstruct, share

Program = Callable[..., np.ndarray]  # (party, *shares) -> share
TRANSPORTS = ("threads", "processes")


@dataclass
class Outcome:
    """What came out. value: float64; parts: traffic by the names that the program gave.

    received: for each party all the messages that reached it, where `keep` was asked for.
    """

    value: np.ndarray
    parts: dict[str, Traffic]
    received: list[list[np.ndarray]] = field(default_factory=list)

    @property
    def traffic(self) -> Traffic:
        """Of all parts together."""
        return sum(self.parts.values(), Traffic())


def run(
    program: Program,
    *inputs,
    seed: int = 0,
    transport: str = "threads",
    delay: float = 0.0,
    keep: bool = False,
) -> Outcome:
    """Run a program on shares of these arrays of real numbers.

    program: called by each party as `program(party, *shares)`; gives a share.
    seed: of all masks; another one gives other shares and, but for rounding, the same result.
    transport: "threads" of this process, or two "processes" that talk over TCP on the loopback; the
        second takes functions of modules that can be imported.
    delay: seconds that each round waits, to feel a distance.
    keep: remember all messages (threads only).
    Raises `ValueError` for inputs that fixed point can't hold, and what the program raises.
    """
    checks.choice("transport", transport, TRANSPORTS)
    checks.at_least(0, delay=delay, seed=seed)
    if keep and transport != "threads":
        raise ValueError("keep=True wants transport='threads': other processes keep their own")
    generator = np.random.Generator(np.random.SFC64([seed, 0x5]))
    pairs = [share(encode(values), generator) for values in inputs]
    shares = [[pair[index] for pair in pairs] for index in (0, 1)]
    how = dict(delay=delay, keep=keep)
    if transport == "threads":
        results, link, received = in_threads(program, shares, seed, how)
    else:
        results, link, received = in_processes(program, shares, seed, how)
    return Outcome(decode(reconstruct(*results)), dict(link.traffic), received if keep else [])


def take_part(program: Program, index: int, link: Link, shares: list, seed: int) -> np.ndarray:
    """One party's whole work."""
    try:
        return program(Party(index, link, Dealer(index, seed)), *shares)
    finally:
        link.close()


def in_threads(program: Program, shares: list, seed: int, how: dict):
    ways = SimpleQueue(), SimpleQueue()
    links = [QueueLink(ways[i], ways[1 - i], **how) for i in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        parties = [pool.submit(take_part, program, i, links[i], shares[i], seed) for i in (0, 1)]
    failures = [party.exception() for party in parties if party.exception()]
    for failure in sorted(failures, key=lambda error: isinstance(error, ConnectionError)):
        raise failure  # what went wrong first; that the other then stopped is no news
    return [party.result() for party in parties], links[0], [link.received for link in links]


def in_processes(program: Program, shares: list, seed: int, how: dict):
    """Party 0 here, party 1 in a process of its own; the port is one that the system gives."""
    module, name = program.__module__, program.__qualname__
    if module == "__main__" or found(module, name) is not program:
        raise ValueError(
            f"program={module}.{name} must be a function of a module that the other process can"
            " import; transport='threads' takes any function"
        )
    task = dict(module=module, name=name, seed=seed, delay=how["delay"])
    task["shapes"] = [part.shape for part in shares[1]]
    with socket.create_server(("127.0.0.1", 0)) as server:
        task["port"] = server.getsockname()[1]
        other = subprocess.Popen(
            [sys.executable, "-m", __package__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with ThreadPoolExecutor(1) as pool:
            said = (
                json.dumps(task).encode() + b"\n" + b"".join(part.tobytes() for part in shares[1])
            )
            answer = pool.submit(other.communicate, said)
            try:
                link = SocketLink(accept(server, other), **how)
                result = take_part(program, 0, link, shares[0], seed)
            except ConnectionError as error:
                raise RuntimeError(answer.result()[1].decode()) from error
            data, _ = answer.result()
    return [result, np.frombuffer(data, np.uint64).reshape(result.shape)], link, []


def found(module: str, name: str) -> object:
    """What a module holds under a dotted name, or `None`."""
    thing = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing


def accept(server: socket.socket, other: subprocess.Popen) -> socket.socket:
    """The other process's connection, or a `ConnectionError` when it has ended instead."""
    server.settimeout(0.1)
    while other.poll() is None:
        try:
            connected, _ = server.accept()
        except TimeoutError:
            continue
        connected.settimeout(None)
        return connected
    raise ConnectionError("the other process has ended before it connected")


def second_party(task: bytes) -> bytes:
    """What the other process does: a line of JSON and its shares in, a share of the result out."""
    line, _, data = task.partition(b"\n")
    order = json.loads(line)
    shares = []
    for shape in order["shapes"]:
        size = 8 * math.prod(shape)
        shares.append(np.frombuffer(data[:size], np.uint64).reshape(shape))
        data = data[size:]
    program = found(order["module"], order["name"])
    connected = socket.create_connection(("127.0.0.1", order["port"]))
    link = SocketLink(connected, delay=order["delay"])
    return take_part(program, 1, link, shares, order["seed"]).tobytes()
