"""`mesh down`, when the mesh has not yet said who it is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM

import pytest

from ops.cli import running
from stack.errors import StackError
from stack.state import State

HOLD = """
import signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from stack.process import Identity
from stack.state import RunRecord, State

state = State.find(Path({folder!r}))
with state.locked():
    print("locked", flush=True)
    sys.stdin.readline()
    state.record(RunRecord(supervisor=Identity.mine(), edge="", ready=False, sockets=state.folder / "sockets"))
    print("recorded", flush=True)
    signal.pause()
"""


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path)


@pytest.fixture
def starting(state: State) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of the folder, and writes the record of the run on a line of input."""
    script = HOLD.format(path=sys.path, folder=str(state.folder))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_mesh_that_begins_to_start_is_waited_for_and_stopped(
    state: State, starting: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_it_say(_: float) -> None:
        assert starting.stdin is not None
        assert starting.stdout is not None
        starting.stdin.write("\n")
        starting.stdin.flush()
        assert starting.stdout.readline() == "recorded\n"

    monkeypatch.setattr(running, "sleep", let_it_say)
    running.stop(state)
    assert starting.wait(timeout=60) == -SIGTERM


@pytest.mark.usefixtures("starting")
def test_what_holds_the_folder_and_is_no_mesh_is_not_waited_for_for_ever(state: State) -> None:
    with pytest.raises(StackError, match="Something else than a running mesh is at work"):
        running.stop(state, said_within=0.1)
