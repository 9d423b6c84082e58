"""The `mesh` command as a person meets it: what it prints, and the code it exits with."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import pytest
from joserfc import jws, jwt
from joserfc.jwk import KeySet

from stack.pki import LOCAL_STAFF
from stack.state import VERSION, State


def mesh(
    *arguments: str, state: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `mesh` with these arguments to its end."""
    command = [sys.executable, "-c", "from ops.cli import main; main()", *arguments, "--state", str(state)]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def claims(token: str, state: Path) -> dict[str, object]:
    keys = KeySet.import_key_set(json.loads((state / "pki" / "jwks.json").read_text()))
    return jwt.decode(token, keys, algorithms=["ES256"]).claims


def test_a_staff_token_is_printed_and_nothing_else(tmp_path: Path) -> None:
    State.open(tmp_path)
    done = mesh("token", "--role", "staff", "--lifetime", "12h", state=tmp_path)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.stdout)
    found = claims(done.stdout.strip(), tmp_path)
    assert (found["role"], found["sub"]) == ("staff", str(LOCAL_STAFF))
    assert int(str(found["exp"])) - int(str(found["iat"])) == 12 * 3600


def test_a_customers_token_is_for_that_customer(tmp_path: Path) -> None:
    State.open(tmp_path)
    customer = "01920000-0000-7000-8000-00000000000a"
    done = mesh("token", "--role", "customer", "--subject", customer, state=tmp_path)
    assert claims(done.stdout.strip(), tmp_path)["sub"] == customer


def test_a_token_for_no_customer_in_particular_is_for_a_new_one_each_time(tmp_path: Path) -> None:
    State.open(tmp_path)
    subjects = [
        UUID(str(claims(mesh("token", "--role", "customer", state=tmp_path).stdout.strip(), tmp_path)["sub"]))
        for _ in range(2)
    ]
    assert subjects[0] != subjects[1]
    assert {subject.version for subject in subjects} == {7}


def test_a_token_of_a_rotated_key_and_one_of_the_key_before_are_both_good(tmp_path: Path) -> None:
    State.open(tmp_path)
    before = mesh("token", "--role", "staff", state=tmp_path).stdout.strip()
    assert mesh("keys", "rotate", state=tmp_path).returncode == 0
    after = mesh("token", "--role", "staff", state=tmp_path).stdout.strip()
    kids = {jws.extract_compact(token.encode()).headers()["kid"] for token in (before, after)}
    assert len(kids) == 2
    for token in (before, after):
        assert claims(token, tmp_path)["role"] == "staff"


def test_a_token_that_no_mesh_would_accept_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = mesh("token", "--role", "staff", state=missing)
    assert done.stderr.startswith(f"mesh: No mesh was ever started in {missing}.")
    assert (done.returncode, done.stdout, missing.exists()) == (1, "", False)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["token", "--role", "staff", "--lifetime", "soon"], "'soon' is not a time"),
        (["token", "--role", "staff", "--lifetime", "31d"], "31d is longer than 30d"),
        (["token", "--role", "staff", "--subject", "me"], "--subject"),
        (["up", "--workers", "orders=2"], "'orders=2' is not a number of workers"),
        (["up", "--workers", "order=0"], "'order=0' is not a number of workers"),
        (["up", "--edge-port", "65536"], "65535"),
        (["up", "--edge-host", "localhost"], "'localhost' is not an IP address"),
    ],
)
def test_what_is_not_understood_exits_with_2(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = mesh(*arguments, state=tmp_path)
    # The message is laid out in a box.
    assert complaint in " ".join(done.stderr.replace("│", " ").split())
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_taken_port_is_named_with_how_to_choose_another(tmp_path: Path, detach: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = mesh("up", "--edge-port", str(port), *detach, state=tmp_path)
    assert done.stderr == (
        f"mesh: 127.0.0.1:{port} is taken by another program. Choose another port with --edge-port.\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("rate", ["many", "-1", "4294967296"])
def test_a_rate_that_is_none_is_named_before_anything_is_started(tmp_path: Path, rate: str) -> None:
    done = mesh("up", state=tmp_path, environment={"MESH_EDGE_RATE_PER_CLIENT": rate})
    assert done.stderr.startswith("mesh: MESH_EDGE_RATE_PER_CLIENT: Input should be ")
    assert (done.returncode, done.stdout) == (1, "")
    assert not (tmp_path / "postgres").exists()


def test_a_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(str(VERSION + 1))
    done = mesh("up", state=tmp_path)
    assert f"is of version {VERSION + 1}" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("version", "lock")] == []


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_server_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path, detach: list[str]) -> None:
    store = tmp_path / "nats" / "store"
    store.parent.mkdir()
    store.write_text("a file where NATS wants a folder")
    done = mesh("up", *detach, state=tmp_path)
    assert "nats does not start: it exited with code 1" in done.stderr
    assert f"The end of {tmp_path}/logs/nats.log:" in done.stderr
    assert "storage directory is not a directory" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert json.loads(mesh("status", "--json", state=tmp_path).stdout)["processes"] == []


def test_without_a_mesh_there_is_nothing_to_show_or_to_stop(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    status = mesh("status", "--json", state=missing)
    assert (status.returncode, json.loads(status.stdout)) == (1, {"ready": False, "edge": None, "processes": []})
    assert mesh("demo", state=missing).returncode == 1
    assert not missing.exists()
    State.open(tmp_path)
    down = mesh("down", state=tmp_path)
    assert (down.returncode, down.stdout) == (0, "no mesh is running\n")


def test_the_logs_of_one_service_are_those_of_all_its_workers(tmp_path: Path) -> None:
    State.open(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in ("order-1", "order-2", "product"):
        (tmp_path / "logs" / f"{name}.log").write_text(f"first of {name}\nlast of {name}\n")
    both = mesh("logs", "order", "--lines", "1", state=tmp_path)
    assert both.stdout.splitlines() == ["order-1 | last of order-1", "order-2 | last of order-2"]
    assert mesh("logs", "product", state=tmp_path).stdout.splitlines() == ["first of product", "last of product"]
    assert mesh("logs", "payment", state=tmp_path).returncode == 2


@pytest.mark.parametrize("service", [[], ["order"]])
def test_before_the_first_start_there_are_no_logs(tmp_path: Path, service: list[str]) -> None:
    State.open(tmp_path)
    done = mesh("logs", *service, state=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"mesh: Nothing was ever logged in {tmp_path}. `mesh up` does.\n")
