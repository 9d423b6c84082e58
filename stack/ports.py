"""TCP ports on this machine."""

import errno
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from stack.errors import PortTaken

_FIRST = 10_000
"""Below it are the well-known ports, and those that programs have for a default."""
_LAST = 65_535
_promised: set[int] = set()
"""Ports that somebody in this process has been told are free, and may not listen on yet."""
_GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nobody listens on, that nobody in this process was given or has asked for before, and that the
    kernel gives to nobody by itself.

    They lie below the range for outgoing connections: a port of that range could be taken by one while the
    program that owns it is being started again. Where that leaves too few, as where it begins at 1024, the others
    have to do.

    Raises:
        PortTaken: there are not so many.
    """
    free: list[int] = []
    first_given = min(max(_first_given_to_connections(), _FIRST), _LAST + 1)
    candidates = chain(_shuffled(range(_FIRST, first_given)), _shuffled(range(first_given, _LAST + 1)))
    with ExitStack() as held:
        while len(free) < count:
            port = next(candidates, None)
            if port in _promised:
                continue
            if port is None:
                raise PortTaken(f"Besides {len(free)}, no port of {host} from {_FIRST} to {_LAST} is free.")
            listener = socket.socket()
            try:
                listener.bind((host, port))
            except OSError as error:
                listener.close()
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                held.enter_context(listener)
                free.append(port)
    _promised.update(free)
    return free


def require_free(host: str, port: int, *, remedy: str) -> None:
    """Raise PortTaken if nobody could listen on the address now; `remedy` says what to do about it.

    `free_ports` gives its port to nobody then.
    """
    _promised.add(port)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            # As servers do: connections that have just ended are no hindrance.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise PortTaken(f"{host}:{port} {why}. {remedy}") from error


def _first_given_to_connections() -> int:
    try:
        return int(_GIVEN_TO_CONNECTIONS.read_text().split()[0])
    except FileNotFoundError:
        return 32_768


def _shuffled(ports: range) -> Iterator[int]:
    """Give the ports one by one in random order: two meshes that start at once are not to want the same."""
    left = list(ports)
    while left:
        chosen = secrets.randbelow(len(left))
        left[chosen], left[-1] = left[-1], left[chosen]
        yield left.pop()
