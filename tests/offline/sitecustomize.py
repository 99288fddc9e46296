"""On PYTHONPATH this cuts Python off from every address but this machine's own.

No test and no chapter needs a network.
"""

import socket

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")
connect, connect_ex, getaddrinfo = (
    socket.socket.connect,
    socket.socket.connect_ex,
    socket.getaddrinfo,
)


def is_local(host) -> bool:
    return (
        host is None
        or host in ("", b"")
        or str(host).startswith(LOCAL)
        or str(host) == socket.gethostname()
    )


def refuse(host):
    raise OSError(f"the tests run without a network, and something asked for {host}")


def checked(real):
    def call(self, address, *args):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            refuse(address[0])
        return real(self, address, *args)

    return call


def resolve(host, *args, **kwargs):
    if not is_local(host):
        refuse(host)
    return getaddrinfo(host, *args, **kwargs)


socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = (
    checked(connect),
    checked(connect_ex),
    resolve,
)
