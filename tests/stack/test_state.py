"""The state folder: who may use it, and what a killed mesh leaves in it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from stack.errors import AlreadyRunning, FolderUnusable, NotRunning, StateTooNew
from stack.process import Identity
from stack.state import VERSION, ProcessRecord, RunRecord, State


def record(supervisor: Identity, *processes: ProcessRecord, sockets: Path = Path("/nowhere")) -> RunRecord:
    return RunRecord(
        supervisor=supervisor, edge="http://127.0.0.1:8080", ready=True, sockets=sockets, processes=processes
    )


def process(name: str, identity: Identity | None) -> ProcessRecord:
    return ProcessRecord(name=name, identity=identity, ready=True, address="127.0.0.1:1", restarts=0)


def test_a_new_folder_is_made_and_found_again(tmp_path: Path) -> None:
    made = State.open(tmp_path / "a" / "b")
    assert State.find(tmp_path / "a" / "b") == made
    assert (made.folder / "version").read_text() == f"{VERSION}\n"


def test_a_folder_that_is_not_there_has_no_mesh(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="No mesh was ever started"):
        State.find(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_folder_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(f"{VERSION + 1}\n")
    with pytest.raises(StateTooNew, match=f"version {VERSION + 1}"):
        State.open(tmp_path)
    assert (tmp_path / "version").read_text() == f"{VERSION + 1}\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # Not even root can make a folder in a file.
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match=f"{tmp_path}/file/state"):
        State.open(tmp_path / "file" / "state")


def test_a_folder_belongs_to_one_mesh_at_a_time(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    with state.locked():
        state.record(record(Identity.mine()))
        with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}, http://127.0.0.1:8080"), state.locked():
            pass
    with state.locked():
        pass


def test_the_record_of_a_run_reads_as_it_was_written(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    run = record(Identity.mine(), process("order", Identity.mine()), process("product", None))
    state.record(run)
    found = state.running()
    assert (found.supervisor, found.edge, found.ready, found.sockets) == (run.supervisor, run.edge, True, run.sockets)
    assert list(found.processes) == list(run.processes)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    (tmp_path / "run.json").write_text('{"supervisor": 7}')
    with pytest.raises(FolderUnusable, match=r"run\.json is damaged"):
        state.running()


def test_a_number_that_another_process_has_got_is_not_the_mesh(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    state.record(record(Identity(os.getpid(), "long ago")))
    with pytest.raises(NotRunning):
        state.running()


async def test_what_a_killed_mesh_left_running_is_ended(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGQUIT, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    state = State.open(tmp_path / "state")
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    left = await run(stubborn, start_new_session=True)
    reused = await run("print('up', flush=True); import signal; signal.pause()")
    processes = [
        process("order", Identity.of(left.pid)),
        process("product", Identity(reused.pid, "when another process had this number")),
        process("payment", None),
    ]
    state.record(record(Identity(1, "killed"), *processes, sockets=sockets))
    assert await state.clear_remains(timeout=0.2) == ["order"]
    assert await left.wait() == -signal.SIGKILL
    assert reused.returncode is None
    reused.kill()
    await reused.communicate()
    assert state.last_run() is None
    assert not sockets.exists()


async def run(script: str, *, start_new_session: bool = False) -> asyncio.subprocess.Process:
    """Run a Python script and wait for its first line."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, start_new_session=start_new_session
    )
    assert started.stdout is not None
    await started.stdout.readline()
    return started
