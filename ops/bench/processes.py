"""Processor time and memory of the processes of a mesh, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """The processor time of each process so far, by name, with the processes that it has started."""
    ticks, below = _trees(pids)
    return {name: _TICK * sum(ticks[each] for each in below[name]) for name in pids}


def memory(pids: Mapping[str, int]) -> dict[str, int]:
    """The bytes in memory of each process, with the processes that it has started.

    Memory that several processes share is divided among them (PSS).
    """
    _, below = _trees(pids)
    return {name: sum(map(_memory, below[name])) for name in pids}


def busy_seconds() -> float:
    """The processor time that the whole machine has spent since it was started."""
    # user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5).
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return _TICK * (user + nice + system + interrupts + soft_interrupts + stolen)


def _trees(named: Mapping[str, int]) -> tuple[dict[int, int], dict[str, list[int]]]:
    """The clock ticks of all processes, and the pids of each named process and those that it has started."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The second field is the name of the program in parentheses. It may hold spaces: proc_pid_stat(5).
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except _GONE:
            continue
        pid = int(entry.name)
        # utime, stime, cutime, cstime: the last two are of children that have ended.
        ticks[pid] = sum(map(int, fields[11:15]))
        if pid not in named.values():
            children.setdefault(int(fields[1]), []).append(pid)
    below = {}
    for name, pid in named.items():
        found = [pid] if pid in ticks else []
        for each in found:
            found += children.get(each, ())
        below[name] = found
    return ticks, below


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except _GONE:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
