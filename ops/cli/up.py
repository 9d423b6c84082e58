"""`mesh up`: run a mesh in this terminal, or leave it running behind."""

import asyncio
import contextlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from stack.errors import StackError, StartFailed
from stack.local_mesh import LocalMesh, Options
from stack.logfile import open_log, rotate
from stack.report import Kind, Listener, Report
from stack.state import State


def foreground(state: State, options: Options) -> None:
    """Run the mesh until Ctrl-C. Raises StackError when it cannot run."""
    with _terminal() as show:

        def tell(report: Report) -> None:
            show(report)
            if report.kind is Kind.READY:
                show(Report(Kind.NOTE, "Ctrl-C stops it."))

        _run(state, options, tell)


def detached(state: State, options: Options) -> None:
    """Run the mesh in a process of its own; return when it is ready. Raises StackError when it cannot run."""
    reading, writing = os.pipe()
    # No thread and no event loop is running yet: a plain fork is safe.
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_detached(state, options, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe, _terminal() as show:
        try:
            for line in pipe:
                report = Report.from_line(line)
                if report.kind is Kind.FAILED:
                    raise StackError(report.text)
                show(report)
                if report.kind is Kind.READY:
                    show(Report(Kind.NOTE, "It goes on by itself; `mesh down` stops it."))
                    return
        except KeyboardInterrupt:
            os.kill(child, SIGTERM)
            os.waitpid(child, 0)
            raise
    raise StartFailed(f"The mesh ended before it was ready. {_log_file(state)} may say why.")


def _become_detached(state: State, options: Options, writing: int) -> NoReturn:
    """Run the mesh in this process, telling the other end of the pipe until it is ready; then end the process."""
    code = 1
    try:
        _leave_terminal(_log_file(state))
        with os.fdopen(writing, "wb", buffering=0) as pipe:

            def tell(report: Report) -> None:
                # Nobody listens any more once it is ready, or when the other process was killed.
                if not pipe.closed:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.write(report.to_line())
                    if report.kind is Kind.READY:
                        pipe.close()

            try:
                _run(state, options, tell)
                code = 0
            except (StackError, OSError) as error:
                tell(Report(Kind.FAILED, str(error)))
    except BaseException:  # noqa: BLE001 - the process ends here, and its log is to say why
        traceback.print_exc()
    finally:
        # Not sys.exit: what the parent wants to do at its exit is not for this process to do.
        os._exit(code)


def _leave_terminal(log_file: Path) -> None:
    """Belong to no terminal, so that closing one ends nothing, and print to the log."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing, open_log(log_file) as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _run(state: State, options: Options, tell: Listener) -> None:
    """Run the mesh until a signal, telling the listener and the log."""
    rotate(_log_file(state))
    with open_log(_log_file(state)) as log:

        def tell_and_log(report: Report) -> None:
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {report.kind} {report.text}\n".encode())
            tell(report)

        try:
            asyncio.run(_until_told_to_stop(state, options, tell_and_log))
        except StackError as error:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} failed {error}\n".encode())
            raise


async def _until_told_to_stop(state: State, options: Options, tell: Listener) -> None:
    mesh = LocalMesh(state, options, os.environ, tell)
    running = asyncio.create_task(mesh.run())
    told = asyncio.Event()

    def stop() -> None:
        if told.is_set():
            mesh.kill()
        else:
            told.set()
            # First of all, whatever becomes of what is said.
            running.cancel()
            tell(Report(Kind.STOPPING, "stopping; once more ends it at once"))

    # Under nohup a terminal that is closed ends nothing.
    ending = (SIGINT, SIGTERM) if getsignal(SIGHUP) is SIG_IGN else (SIGINT, SIGTERM, SIGHUP)
    for signal in ending:
        asyncio.get_running_loop().add_signal_handler(signal, stop)
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


def _log_file(state: State) -> Path:
    state.logs.mkdir(exist_ok=True, mode=0o700)
    return state.logs / "mesh.log"


@contextmanager
def _terminal() -> Iterator[Listener]:
    """Show reports to a person: a spinner, or else a line, for what is waited for; a line for what is there.

    When the terminal is closed, or nobody reads the pipe any more, they go nowhere.
    """
    console = Console(highlight=False)
    waiting = console.status("")

    def draw(report: Report) -> None:
        text = escape(report.text)
        match report.kind:
            case Kind.BEGUN if not console.is_terminal:
                console.print(f"… {text}")
            case Kind.BEGUN:
                waiting.update(text)
                waiting.start()
            case Kind.DONE:
                waiting.stop()
                console.print(f"[green]✓[/green] {text}")
            case Kind.READY:
                console.print(f"The mesh is ready at [bold]{text}[/bold]")
            case _:
                console.print(text)

    def show(report: Report) -> None:
        with _unless_gone():
            draw(report)

    try:
        yield show
    finally:
        with _unless_gone():
            waiting.stop()


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Print; when the output is gone, send it nowhere from now on."""
    try:
        yield
    except (OSError, SystemExit):  # the second is what rich makes of a broken pipe
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 1)
