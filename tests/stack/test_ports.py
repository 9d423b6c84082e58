"""Ports that are free, and one that is not."""

import socket
from pathlib import Path

import pytest

from stack.errors import PortTaken
from stack.ports import free_ports, require_free


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        require_free("127.0.0.1", port, remedy="")


def test_free_ports_are_none_that_the_kernel_gives_to_connections() -> None:
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(free_ports(20)) < first_given


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} is taken by another program\. Choose another\."):
            require_free("127.0.0.1", port, remedy="Choose another.")


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(PortTaken, match=r"192\.0\.2\.1:8080 cannot be used"):
        require_free("192.0.2.1", 8080, remedy="")
