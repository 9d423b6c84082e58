"""Ports that are free, and one that is not."""

import socket
from pathlib import Path

import pytest

from stack import ports
from stack.errors import PortTaken
from stack.ports import free_ports, require_free


def test_free_ports_differ_and_can_be_listened_on() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        require_free("127.0.0.1", port, remedy="")


def test_port_reported_as_free_is_given_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(ports, "_FIRST", port)
    monkeypatch.setattr(ports, "_LAST", port)
    with pytest.raises(PortTaken):
        free_ports(1)
    monkeypatch.setattr(ports, "_promised", set())
    assert free_ports(1) == [port]
    monkeypatch.setattr(ports, "_promised", set())
    require_free("127.0.0.1", port, remedy="")
    with pytest.raises(PortTaken):
        free_ports(1)


@pytest.fixture
def given_to_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which ports the kernel gives to connections."""
    file = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "_GIVEN_TO_CONNECTIONS", file)
    return file


def test_free_ports_are_none_that_the_kernel_gives_to_connections(given_to_connections: Path) -> None:
    given_to_connections.write_text("20000\t60999\n")
    assert max(free_ports(20)) < 20_000


@pytest.mark.parametrize("given", ["1024\t65535\n", "10000\t65535\n", "10003\t65535\n"])
def test_free_ports_are_found_when_the_kernel_gives_nearly_all_to_connections(
    given_to_connections: Path, given: str
) -> None:
    given_to_connections.write_text(given)
    found = free_ports(20)
    assert len(set(found)) == 20
    assert min(found) >= 10_000


def test_it_is_said_when_too_few_ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST", port)
        monkeypatch.setattr(ports, "_LAST", port)
        with pytest.raises(PortTaken, match=rf"no port of 127\.0\.0\.1 from {port} to {port} is free"):
            free_ports(1)


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} is taken by another program\. Choose another\."):
            require_free("127.0.0.1", port, remedy="Choose another.")


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(PortTaken, match=r"192\.0\.2\.1:8080 cannot be used"):
        require_free("192.0.2.1", 8080, remedy="")
