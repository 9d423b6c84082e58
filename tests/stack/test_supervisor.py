"""A supervisor with small programs: Python scripts that die, answer and refuse on request."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.errors import StartFailed
from stack.process import Identity
from stack.supervisor import Death, Pace, Program, Supervisor
from tests.services import TEST_TIMEOUT_S

BRISK = Pace(restart_after=0.01, probe_every=0.02)

ANSWER = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); "
"""The beginning of a program that is ready when its file is there."""
STAY = "signal.pause()"
UNTIL_TOLD = (
    "import time; told = pathlib.Path(sys.argv[1]).with_suffix('.told')\n"
    "while not told.exists(): time.sleep(0.01)\n"
)  # fmt: skip
"""The program goes on once the test has made the file; at once, when it is started again."""


def program(folder: Path, name: str, script: str = ANSWER + STAY, **settings: object) -> Program:
    """A program that runs a Python script with one argument, a path; it is ready when there is something."""
    path = folder / f"{name}.ready"

    async def probe() -> None:
        if not path.exists():
            raise ConnectionError("no file yet")

    return Program(
        name=name,
        command=[sys.executable, "-I", "-S", "-c", script, str(path)],
        address="nowhere",
        probe=probe,
        **{"stop_grace": TEST_TIMEOUT_S, **settings},  # type: ignore[arg-type]
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the supervisor tells nobody but its callbacks
            await asyncio.sleep(0.01)


def identity(supervisor: Supervisor, name: str) -> Identity:
    found = supervisor[name].identity
    assert found is not None
    return found


async def test_a_program_is_started_again_when_it_was_killed(tmp_path: Path) -> None:
    deaths: list[Death] = []
    async with Supervisor(logs=tmp_path, pace=BRISK, died=deaths.append) as supervisor:
        await supervisor.start([program(tmp_path, "order")])
        first = identity(supervisor, "order")
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: supervisor["order"].restarts == 1 and supervisor["order"].is_ready)
        assert identity(supervisor, "order") != first
    assert [(death.name, death.how) for death in deaths] == [("order", "was ended by SIGKILL")]


async def test_the_pause_before_a_restart_doubles_up_to_a_limit(tmp_path: Path) -> None:
    deaths: list[Death] = []
    pace = Pace(restart_after=0.01, restart_at_most=0.05)
    async with Supervisor(logs=tmp_path, pace=pace, died=deaths.append) as supervisor:
        await supervisor.start([program(tmp_path, "order", ANSWER + UNTIL_TOLD)])
        (tmp_path / "order.told").touch()
        await until(lambda: len(deaths) >= 5)
    assert [death.restart_in for death in deaths[:5]] == pytest.approx([0.01, 0.02, 0.04, 0.05, 0.05])


async def test_the_pause_is_short_again_after_a_steady_while(tmp_path: Path) -> None:
    deaths: list[Death] = []
    pace = Pace(restart_after=0.01, steady_after=0.0)
    async with Supervisor(logs=tmp_path, pace=pace, died=deaths.append) as supervisor:
        await supervisor.start([program(tmp_path, "order")])
        for number in (1, 2):
            await until(lambda: supervisor["order"].identity)
            os.kill(identity(supervisor, "order").pid, signal.SIGKILL)
            await until(lambda: len(deaths) >= number)  # noqa: B023  # it is awaited at once
    assert [death.in_a_row for death in deaths[:2]] == [1, 1]


async def test_what_keeps_dying_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    deaths: list[Death] = []
    script = ANSWER + UNTIL_TOLD + "print('no more', flush=True); sys.exit(3)"
    async with Supervisor(logs=tmp_path, pace=BRISK, died=deaths.append) as supervisor:
        await supervisor.start([program(tmp_path, "order", script)])
        (tmp_path / "order.told").touch()
        await until(lambda: len(deaths) >= 3)
    assert [death.how for death in deaths[:3]] == ["exited with code 3"] * 3
    assert not deaths[0].log_end
    assert "no more" in deaths[2].log_end


async def test_a_program_that_cannot_start_fails_the_start_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        with pytest.raises(StartFailed) as failure:
            await supervisor.start([program(tmp_path, "order", "print('no database'); raise SystemExit(4)")])
    assert "order does not start: it exited with code 4" in str(failure.value)
    assert "no database" in str(failure.value)


async def test_a_program_that_never_answers_fails_the_start(tmp_path: Path) -> None:
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        with pytest.raises(StartFailed, match=r"order is not ready after 0\.3 s.*no file yet"):
            await supervisor.start([program(tmp_path, "order", "import signal; signal.pause()", ready_within=0.3)])
        left = identity(supervisor, "order")
    assert not left.is_alive()


async def test_one_failed_start_ends_the_wait_for_the_others(tmp_path: Path) -> None:
    stays = program(tmp_path, "product", "import signal; signal.pause()", ready_within=300.0)
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        with pytest.raises(StartFailed, match="order does not start"):
            await supervisor.start([stays, program(tmp_path, "order", "raise SystemExit(4)")])


async def test_a_program_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    missing = program(tmp_path, "order")
    missing = Program(name="order", command=["/no/such/program"], address="", probe=missing.probe)
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        with pytest.raises(StartFailed, match="/no/such/program: No such file"):
            await supervisor.start([missing])


async def test_readiness_follows_what_the_program_answers(tmp_path: Path) -> None:
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order")])
        (tmp_path / "order.ready").unlink()
        await until(lambda: not supervisor["order"].is_ready)
        (tmp_path / "order.ready").touch()
        await until(lambda: supervisor["order"].is_ready)
        assert supervisor["order"].restarts == 0


async def test_when_one_recovers_the_others_are_asked_again_before_they_count_as_ready(tmp_path: Path) -> None:
    seen: list[bool] = []

    def note() -> None:
        if not (tmp_path / "edge.ready").exists():
            seen.append(all(one.is_ready and not one.is_doubted for one in supervisor.supervised))

    seldom = Pace(restart_after=0.01, probe_every=300.0)
    async with Supervisor(logs=tmp_path, pace=seldom, changed=note) as supervisor:
        await supervisor.start([program(tmp_path, "order"), program(tmp_path, "edge")])
        (tmp_path / "edge.ready").unlink()
        os.kill(identity(supervisor, "order").pid, signal.SIGKILL)
        await until(lambda: supervisor["order"].restarts and supervisor["order"].is_ready)
        await until(lambda: not supervisor["edge"].is_ready)
        assert seen
        assert not any(seen)
        (tmp_path / "edge.ready").touch()
        await until(lambda: all(one.is_ready and not one.is_doubted for one in supervisor.supervised))


async def test_programs_are_stopped_in_reverse_order(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys; path = pathlib.Path(sys.argv[1])\n"
        "def stop(*_):\n"
        "    with open(path.parent / 'stopped', 'a') as file: file.write(path.stem + ' ')\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, stop); path.touch(); signal.pause()"
    )
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        for name in ("postgres", "order", "edge"):
            await supervisor.start([program(tmp_path, name, script)])
    assert (tmp_path / "stopped").read_text() == "edge order postgres "


async def test_a_program_is_drained_before_it_is_stopped(tmp_path: Path) -> None:
    alive: list[bool] = []

    async def drain() -> None:
        alive.append(identity(supervisor, "order").is_alive())
        raise ConnectionError("whatever it raises")

    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order", drain=drain)])
    assert alive == [True]


async def test_a_program_that_ends_while_it_is_drained_is_not_waited_for(tmp_path: Path) -> None:
    async def drain() -> None:
        supervisor.kill()
        await asyncio.Event().wait()

    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order", drain=drain, drain_within=300.0)])


async def test_the_number_of_a_program_that_has_ended_gets_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled: list[int] = []
    pace = Pace(restart_after=300.0, restart_at_most=300.0)
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=pace) as supervisor:
        await supervisor.start([program(tmp_path, "order")])
        os.kill(identity(supervisor, "order").pid, signal.SIGKILL)
        await until(lambda: supervisor["order"].identity is None)
        monkeypatch.setattr("stack.supervisor.end_group", lambda pid, _: signalled.append(pid))
    assert signalled == []


async def test_a_program_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + ANSWER + STAY
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order", script, stop_grace=0.2)])
        left = identity(supervisor, "order")
    assert not left.is_alive()


async def test_what_a_killed_program_had_started_ends_too(tmp_path: Path) -> None:
    script = (
        "import pathlib, subprocess, sys, signal\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "path = pathlib.Path(sys.argv[1]); path.with_suffix('.child').write_text(str(child.pid))\n"
        "path.touch(); signal.pause()"
    )
    async with Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order", script)])
        child = Identity.of(int((tmp_path / "order.child").read_text()))
        assert child is not None
        os.kill(identity(supervisor, "order").pid, signal.SIGKILL)
        assert await child.gone(within=TEST_TIMEOUT_S)


async def test_what_is_ended_at_once_needs_no_grace(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + ANSWER + STAY
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order", script, stop_grace=300.0)])
        asyncio.get_running_loop().call_later(0.1, supervisor.kill)


async def test_what_is_ended_at_once_is_not_started_again(tmp_path: Path) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path, pace=BRISK) as supervisor:
        await supervisor.start([program(tmp_path, "order"), program(tmp_path, "product")])
        supervisor.kill()
        with pytest.raises(asyncio.CancelledError):
            await supervisor.broken()
        assert [one.restarts for one in supervisor.supervised] == [0, 0]


async def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from stack.supervisor import Supervisor
from tests.stack.test_supervisor import program

async def main():
    folder = Path({str(tmp_path)!r})
    async with Supervisor(logs=folder) as supervisor:
        await supervisor.start([program(folder, "order")])
        print(supervisor["order"].identity.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert supervisor.stdout is not None
    left = Identity.of(int(await supervisor.stdout.readline()))
    supervisor.kill()
    await supervisor.communicate()
    assert left is not None
    assert await left.gone(within=TEST_TIMEOUT_S)
