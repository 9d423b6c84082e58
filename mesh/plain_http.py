"""HTTP without TLS, to servers on this machine."""

import ssl
from pathlib import Path

import httpx


def plain_client(socket: Path | None = None) -> httpx.AsyncClient:
    """Return a client that connects by TCP, or to a Unix socket whatever the URL says."""
    # By default each client reads all certificate authorities, which takes 40 ms; this one needs none.
    no_authorities = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    uds = str(socket) if socket is not None else None
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=uds, verify=no_authorities), trust_env=False)
