"""The published series: some loads on a mesh of its own, as Markdown and JSON."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ops.bench.events import BACKLOG, drain
from ops.bench.load import Watcher, run
from ops.bench.report import markdown
from ops.bench.result import Drained, Result
from ops.bench.scenario import Scenario, Terms
from ops.running_mesh import RunningMesh
from stack.errors import StackError
from stack.ports import free_ports

FOLDER = Path(__file__).resolve().parent
BEGIN = "<!-- measured by `make bench`; edits between these lines are lost -->"
END = "<!-- end of the measured part -->"
_ON_DISK = "/var/tmp"  # noqa: S108 - a folder of our own below it; unlike /tmp it is never memory
_UNLIMITED = {
    "MESH_EDGE_RATE_PER_CLIENT": "0",
    "MESH_EDGE_RATE_PER_ADDRESS": "0",
    "MESH_SIGN_IN_RATE_PER_ADDRESS": "0",
}
"""All users of a load have one address."""
_MIB = 2**20

FEW, MANY, HALF = "orders, 64 users", "orders, 256 users", "orders, half the rate of 64 users"
HOT, MIXED, READS, EVENTS = "one hot product, 256 users", "mixed, 1,000 users", "reads, 64 users", "events"


class Figure(NamedTuple):
    """A figure to reach on two cores, with the driver on the same machine."""

    name: str
    goal: str
    measured: str
    is_reached: bool


@dataclass(frozen=True, slots=True)
class Series:
    """A measured series."""

    commit: str
    start_seconds: float
    """Of `mesh up` in an empty folder."""
    loads: Mapping[str, Result]
    events: Drained

    @property
    def violations(self) -> list[str]:
        """Of all loads."""
        results: dict[str, Result | Drained] = {**self.loads, EVENTS: self.events}
        return [f"{name}: {each}" for name, result in results.items() for each in result.violations]

    def figures(self) -> Iterator[Figure]:
        """The figures, the most important first."""
        few, many, hot = (self.loads[name] for name in (FEW, MANY, HOT))
        for name, result, goal in ((FEW, few, 0.22), (MANY, many, 0.35)):
            ratio = result.confirmed_of_transactions or 0.0
            measured = f"{ratio:.3f} R ({_confirmed(result):,.0f}/s)"
            yield Figure(f"confirmed {name}", f"≥ {goal:g} R", measured, ratio >= goal)
        ratio = _confirmed(hot) / _confirmed(many)
        yield Figure(f"confirmed orders, {HOT}", f"≥ 0.8 of {MANY}", f"{ratio:.2f}", ratio >= 0.8)
        half, mixed = (_p99(self.loads[name]) for name in (HALF, MIXED))
        yield Figure(f"p99 of placing: {HALF}", "≤ 60 ms", f"{half:.1f} ms", half <= 60)
        failed = sum(self.loads[MIXED].failures.values())
        reached = not failed and mixed <= 250
        yield Figure(f"p99 of placing: {MIXED}", "≤ 250 ms, no failure", f"{mixed:.0f} ms, {failed} failures", reached)
        rate = self.events.events_per_second
        yield Figure("events applied from a backlog", "≥ 4,000/s", f"{rate:,.0f}/s", rate >= 4000)
        cpu = max(each.orders.cost.cpu_ms_total for each in (few, many) if each.orders and each.orders.cost)
        yield Figure("CPU of a confirmed order, all processes but the driver", "≤ 2 ms", f"{cpu:.2f} ms", cpu <= 2)
        services = ("customer", "product", "payment", "order")
        memory = max(result.memory[name] for result in self.loads.values() for name in services) / _MIB
        yield Figure("memory of a service, the largest", "≤ 150 MiB", f"{memory:.0f} MiB", memory <= 150)
        yield Figure("`mesh up` in an empty folder", "≤ 6 s", f"{self.start_seconds:.1f} s", self.start_seconds <= 6)

    def publish(self, folder: Path) -> None:
        """Write RESULTS.md and results.json. Text outside of the measured part of RESULTS.md stays."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "machine": self.events.machine,
            "figures": [figure._asdict() for figure in self.figures()],
            "loads": {name: _in_short(each) for name, each in self.loads.items()},
            "events": _in_short(self.events),
        }
        (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        results = folder / "RESULTS.md"
        before = results.read_text() if results.exists() else f"# Results of the bench\n\n{BEGIN}\n{END}\n"
        head, _, rest = before.partition(BEGIN)
        _, _, tail = rest.partition(END)
        results.write_text(f"{head}{BEGIN}\n\n{self._measured()}{END}{tail}")

    def _measured(self) -> str:
        machine = self.events.machine
        lines = [
            f"Measured at commit `{self.commit}` on {machine['cores']} cores of {machine['processor']},",
            f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, with the driver on the same machine: Python",
            f"{machine['python']}, PostgreSQL {machine['postgresql']} (fsync {machine['fsync']}, synchronous_commit",
            f"{machine['synchronous_commit']}), NATS {machine['nats']}, Envoy {machine['envoy']}, grpcio",
            f"{machine['grpcio']}, asyncpg {machine['asyncpg']}.",
            "",
            "| figure | goal | measured | |",
            "|---|---|---|---|",
            *(f"| {each.name} | {each.goal} | {each.measured} | {'✓' if each.is_reached else '**no**'} |"
              for each in self.figures()),
            "",
            *markdown({**self.loads, EVENTS: self.events}),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


async def measure(watcher: Watcher, *, seconds: float = 20.0, backlog: int = BACKLOG) -> Series:
    """Measure the series."""
    loads: dict[str, Result] = {}
    commit = _commit()
    async with _mesh(watcher) as (mesh, start_seconds):

        async def load(name: str, terms: Terms) -> Result:
            watcher.tell(name)
            loads[name] = await run(mesh, terms, watcher)
            return loads[name]

        few = await load(FEW, Terms(scenario=Scenario.ORDERS, concurrency=64, seconds=seconds))
        # Right after it: the speed of a machine drifts within minutes.
        rate = max(1.0, _confirmed(few) / 2)
        await load(HALF, Terms(scenario=Scenario.ORDERS, rate=rate, seconds=seconds, calibrated=False))
        many = await load(MANY, Terms(scenario=Scenario.ORDERS, concurrency=256, seconds=seconds))
        stock = max(1, int(0.8 * _confirmed(many) * seconds))
        await load(HOT, Terms(scenario=Scenario.HOT, concurrency=256, seconds=seconds, stock=stock, calibrated=False))
        await load(MIXED, Terms(scenario=Scenario.MIXED, seconds=seconds, calibrated=False))
        await load(READS, Terms(scenario=Scenario.READS, seconds=seconds, calibrated=False))
        return Series(commit, start_seconds, loads, await drain(mesh, watcher, count=backlog))


@asynccontextmanager
async def _mesh(watcher: Watcher) -> AsyncIterator[tuple[RunningMesh, float]]:
    """A mesh in an empty folder, without rate limits, and how long it took to start. It is removed afterwards."""
    (port,) = free_ports(1)
    with _folder() as folder:
        watcher.tell("starting a mesh")
        began = time.monotonic()
        try:
            await _mesh_command("up", "--detach", "--edge-port", str(port), state=folder)
            yield RunningMesh.find(folder, {}), time.monotonic() - began
        finally:
            await _mesh_command("down", state=folder)


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder on a disk, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-", dir=_ON_DISK) as name:
        folder = Path(name)
        # PostgreSQL may run as another user.
        folder.chmod(0o711)
        yield folder


async def _mesh_command(*arguments: str, state: Path) -> None:
    """Run `mesh`. Raises StackError with its error output when it fails."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.cli", *arguments, "--state", str(state)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=settings | _UNLIMITED,
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise StackError(f"mesh {' '.join(arguments)} failed:\n{errors.decode().strip()}")


def _confirmed(result: Result) -> float:
    return result.orders.confirmed_per_second if result.orders else 0.0


def _p99(result: Result) -> float:
    latency = result.requests["place"].latency
    return latency.percentiles["p99"] if latency else float("inf")


def _in_short(result: Result | Drained) -> dict[str, object]:
    """Without the statements, which are in RESULTS.md, and the machine, which is the same for all."""
    content = result.as_json()
    content.pop("machine")
    content.get("database", {}).pop("by_name", None)
    return content


def _commit() -> str:
    """The commit that is measured, with a `+` when files differ from it."""
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--abbrev=10", "--dirty=+"]  # as git is on PATH
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
