"""`mesh logs`: the ends of log files, and what is added to them."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from stack.logfile import Follower, tail


def show(files: Sequence[Path], *, lines: int, follow: bool) -> None:
    """Print the last lines of each file, with its name before each line if there are several.

    With `follow`, go on until Ctrl-C.
    """
    width = max(len(file.stem) for file in files)

    def write(file: Path, line: str) -> None:
        typer.echo(f"{file.stem:<{width}} | {line}" if len(files) > 1 else line)

    followers = [Follower(file) for file in files] if follow else []
    for file in files:
        for line in tail(file, lines):
            write(file, line)
    with contextlib.suppress(KeyboardInterrupt):
        while followers:
            for follower in followers:
                for line in follower.added():
                    write(follower.path, line)
            # Files tell nobody that they have grown; a fifth of a second is soon enough for a reader.
            time.sleep(0.2)
