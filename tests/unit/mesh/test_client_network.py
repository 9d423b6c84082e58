"""The network of a client, by which limits count."""

from __future__ import annotations

import pytest

from gateway import filters
from mesh.rpc.call import CLIENT_ADDRESS, Call


def call(address: str | None, peer: str = "gateway") -> Call:
    return Call("/a.B/C", peer=peer, metadata={} if address is None else {CLIENT_ADDRESS: address})


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::1", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        (None, ""),
    ],
)
def test_client_network_is_the_ipv4_address_or_the_ipv6_network(address: str | None, network: str) -> None:
    assert call(address).client_network == network


@pytest.mark.parametrize("peer", ["", "operator", "order"])
def test_client_address_is_accepted_only_from_the_edge(peer: str) -> None:
    assert call("192.0.2.7", peer).client_address == ""
    assert call("192.0.2.7", peer).client_network == ""
    assert call("192.0.2.7").client_address == "192.0.2.7"


def test_edge_and_services_agree_on_the_header() -> None:
    assert filters.CLIENT_ADDRESS == CLIENT_ADDRESS
