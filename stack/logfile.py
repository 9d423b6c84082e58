"""Log files that programs append to by themselves and that stay within a size.

A program writes to its file directly, not through a pipe: nothing here is in its way, and its last words are
on disk even when everything else is dead.
"""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

SIZE = 16 * 2**20
"""Bytes of a log file after which it is put aside."""

KEPT = 2
"""How many older files are kept, as NAME.log.1 (the newest) and so on."""

_PART = 2**16
"""Bytes that are read at a time, backwards from the end."""


def open_log(path: Path) -> BinaryIO:
    """Open for appending: each write goes to the end, wherever `rotate` has put that."""
    return path.open("ab", buffering=0)


def rotate(path: Path, *, size: int = SIZE, kept: int = KEPT) -> bool:
    """Put the content of a file that has outgrown `size` aside and empty it; say whether it was done.

    The writer keeps the file open, so the file is copied and then cut. A line written between the last look
    at its length and the cut, two system calls apart, is lost.
    """
    try:
        if path.stat().st_size <= size:
            return False
    except FileNotFoundError:
        return False
    for number in range(kept, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    with path.open("r+b") as source, path.with_name(f"{path.name}.1").open("wb") as copy:
        while source.tell() < os.fstat(source.fileno()).st_size:
            shutil.copyfileobj(source, copy, 2**20)
        source.truncate(0)
    return True


def tail(path: Path, lines: int, *, since: int = 0) -> list[str]:
    """Return the last lines of the file, of those after its first `since` bytes; none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Emptied meanwhile, all that is there came after.
            found = _end(file, lines, since if since <= size else 0, size).split(b"\n")
    except FileNotFoundError:
        return []
    if not found[-1]:  # what comes after the end of the last line
        found.pop()
    return [line.decode(errors="replace") for line in found[max(len(found) - lines, 0) :]]


def _end(file: BinaryIO, lines: int, begin: int, end: int) -> bytes:
    """Read backwards from `end` until `lines` whole lines are read, or `begin` is reached."""
    parts: list[bytes] = []
    ends = 0
    while end > begin and ends <= lines:
        start = max(begin, end - _PART)
        file.seek(start)
        parts.append(file.read(end - start))
        ends += parts[-1].count(b"\n")
        end = start
    return b"".join(reversed(parts))


class Follower:
    """Reads what is added to a log file from now on, also after `rotate` has emptied it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._unfinished = b""

    def added(self) -> list[str]:
        """Return the whole lines added since the last call."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                *lines, self._unfinished = (self._unfinished + file.read()).split(b"\n")
                self._offset = file.tell()
        except FileNotFoundError:
            return []
        return [line.decode(errors="replace") for line in lines]
