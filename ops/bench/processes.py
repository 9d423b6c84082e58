"""What the processes of a mesh cost: processor time and memory, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process and all below it, in bytes."""

    rss: int
    """The sum of what is resident; what processes share is counted in each."""
    pss: int
    """The same with what is shared split among those who share it."""


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """The processor time so far, by name: of each process, those below it, and those of them that have ended."""
    tree = _Tree(pids)
    return {name: _TICK * sum(tree.ticks[each] for each in tree.below(pid)) for name, pid in pids.items()}


def memory(pids: Mapping[str, int]) -> dict[str, Memory]:
    """The memory of each process and those below it, by name."""
    tree = _Tree(pids)
    return {name: _total(map(_memory, tree.below(pid))) for name, pid in pids.items()}


def resident(pids: Mapping[str, int]) -> dict[str, int]:
    """The resident bytes of each process alone, by name: cheap enough to be asked again and again."""
    return {name: int(_read(pid, "statm").split()[1]) * _PAGE for name, pid in pids.items()}


def busy_seconds() -> float:
    """The processor time that the whole machine has spent on anything since it was started."""
    # user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5). What was stolen was not to be had.
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return _TICK * (user + nice + system + interrupts + soft_interrupts + stolen)


class _Tree:
    """Who runs, and below whom, at one moment. What has a name of its own is below nobody."""

    def __init__(self, named: Mapping[str, int]) -> None:
        self.ticks: dict[int, int] = {}
        self._children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            pid = int(entry.name)
            try:
                # The second field is the program's name in parentheses, which may hold spaces: proc_pid_stat(5).
                fields = _read(pid, "stat").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # utime, stime, cutime, cstime: the last two are of children that have ended.
            self.ticks[pid] = sum(map(int, fields[11:15]))
            if pid not in named.values():
                self._children.setdefault(int(fields[1]), []).append(pid)

    def below(self, pid: int) -> list[int]:
        """The process itself and all that it and its children have started."""
        if pid not in self.ticks:
            return []
        found = [pid]
        for each in found:
            found += self._children.get(each, ())
        return found


def _total(parts: Iterable[Memory]) -> Memory:
    parts = list(parts)
    return Memory(sum(part.rss for part in parts), sum(part.pss for part in parts))


def _memory(pid: int) -> Memory:
    try:
        lines = _read(pid, "smaps_rollup").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0)
    found = {line.split(":")[0]: int(line.split()[1]) * _KIB for line in lines[1:]}
    return Memory(found.get("Rss", 0), found.get("Pss", 0))


def _read(pid: int, name: str) -> str:
    return (Path("/proc") / str(pid) / name).read_text()
