"""The name of a peer: the URI name in its certificate, and nothing else."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from mesh.rpc.identity import peer_name

SAN, CN = "x509_subject_alternative_name", "x509_common_name"


@pytest.mark.parametrize(
    ("key", "identities", "name"),
    [
        (SAN, [b"spiffe://commerce-mesh/order", b"order", b"127.0.0.1"], "order"),
        (SAN, [b"order", b"spiffe://commerce-mesh/order"], "order"),
        (SAN, [b"order", b"spiffe://elsewhere/order"], ""),
        # A certificate without such names is identified by its common name, which anybody can choose.
        (CN, [b"spiffe://commerce-mesh/order"], ""),
        (None, None, ""),
    ],
)
def test_peer_is_named_by_its_certificate(key: str | None, identities: list[bytes] | None, name: str) -> None:
    context: Any = Mock(spec=grpc.aio.ServicerContext)
    context.peer_identity_key.return_value = key
    context.peer_identities.return_value = identities
    assert peer_name(context) == name
