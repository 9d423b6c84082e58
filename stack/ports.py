"""TCP ports on this machine."""

import errno
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path

from stack.errors import PortTaken


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nobody listens on, and that the kernel gives to nobody by itself.

    They lie below the range for outgoing connections: a port of that range could be taken by one while the
    program that owns it is being started again.
    """
    ports: list[int] = []
    candidates = range(10_000, min(_first_ephemeral(), 32_768))
    with ExitStack() as held:
        while len(ports) < count:
            port = secrets.choice(candidates)
            listener = held.enter_context(socket.socket())
            try:
                listener.bind((host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                ports.append(port)
    return ports


def require_free(host: str, port: int, *, remedy: str) -> None:
    """Raise PortTaken if nobody could listen on the address now; `remedy` says what to do about it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            # As servers do: connections that have just ended are no hindrance.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise PortTaken(f"{host}:{port} {why}. {remedy}") from error


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:
        return 32_768
