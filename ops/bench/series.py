"""The published series: a mesh of its own, everything measured once, results as JSON, Markdown and a picture."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from ops.bench import figures
from ops.bench.backlog import BACKLOG, drain
from ops.bench.figures import Series
from ops.bench.fill import fill
from ops.bench.markdown import written
from ops.bench.result import Result, rounded
from ops.bench.run import Watcher, Wish, run
from ops.bench.scenario import Scenario
from ops.bench.start import Starts, import_times, mesh, until_first_order
from ops.bench.sweep import plot, sweep
from ops.running_mesh import RunningMesh
from stack.ports import free_ports

FOLDER = Path(__file__).resolve().parent
_ON_DISK = "/var/tmp"  # noqa: S108 - a folder of our own below it; unlike /tmp it is never memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How long and how much."""

    seconds: float
    """The window of a run."""
    long_seconds: float
    """That of the run that shows whether memory grows."""
    backlog: int
    past_orders: int
    past_products: int


FULL = Extent(seconds=20, long_seconds=600, backlog=BACKLOG, past_orders=1_000_000, past_products=100_000)
QUICK = Extent(seconds=5, long_seconds=20, backlog=10_000, past_orders=20_000, past_products=2_000)
"""To see whether the series works; its figures mean little."""


async def measure(extent: Extent, watcher: Watcher) -> Measured:
    """Measure everything, once."""
    commit = _commit()
    async with _mesh(watcher) as (state, starts):
        target = RunningMesh.find(state, {})
        runs, points = await _loads(target, extent, watcher)
        events = await drain(target, watcher, count=extent.backlog)
        await fill(target, orders=extent.past_orders, products=extent.past_products, tell=watcher.tell)
        runs |= await _compare(target, extent, watcher)
    return Measured(commit, extent, Series(runs, events, starts), points)


@dataclass(frozen=True, slots=True)
class Measured:
    """A series that was carried out."""

    commit: str
    """What was measured, as it was before the first result was written."""
    extent: Extent
    series: Series
    points: list[Result]
    """Orders at rising rates."""

    @property
    def breaches(self) -> list[str]:
        """Those of all its runs."""
        return [
            *(f"{name}: {breach}" for name, each in self.series.runs.items() for breach in each.breaches),
            *(f"at {each.terms.rate:g}/s: {breach}" for each in self.points for breach in each.breaches),
            *(f"events: {breach}" for breach in self.series.events.breaches),
        ]

    def publish(self, folder: Path) -> None:
        """Write RESULTS.md, results.json and latency.png."""
        folder.mkdir(parents=True, exist_ok=True)
        plot(self.points, folder / "latency.png")
        series = self.series
        content = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "extent": asdict(self.extent),
            "figures": [asdict(each) for each in figures.figures(series)],
            "starts": rounded(asdict(series.starts)),
            "events": series.events.as_json(),
            "runs": {name: each.as_json() for name, each in series.runs.items()},
            "latency_against_load": [each.as_json() for each in self.points],
        }
        (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        results = folder / "RESULTS.md"
        before = results.read_text() if results.exists() else ""
        extent = self.extent
        results.write_text(written(before, series, extent.past_orders, extent.past_products, self.commit))


@asynccontextmanager
async def _mesh(watcher: Watcher) -> AsyncIterator[tuple[Path, Starts]]:
    """A mesh with default settings in an empty folder, stopped and removed afterwards; how long it took to start."""
    watcher.tell("importing each service")
    imports = await import_times()
    async with _state_folder() as (state, port):
        watcher.tell("starting a mesh, twice")
        fresh = await until_first_order(state, port, watcher.tell)
        await mesh("down", state=state)
        again = await until_first_order(state, port, watcher.tell)
        yield state, Starts(fresh=fresh, again=again, imports=imports)


@asynccontextmanager
async def _state_folder() -> AsyncIterator[tuple[Path, int]]:
    """An empty state folder and a free port for a mesh, which is stopped and removed afterwards."""
    (port,) = free_ports(1)
    with _folder() as folder:
        state = folder / "state"
        try:
            yield state, port
        finally:
            await mesh("down", state=state)


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder on a real disk, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-", dir=_ON_DISK) as name:
        folder = Path(name)
        # Others may pass through: PostgreSQL may run as another user.
        folder.chmod(0o711)
        yield folder


async def _loads(target: RunningMesh, extent: Extent, watcher: Watcher) -> tuple[dict[str, Result], list[Result]]:
    """The runs on a young mesh by name, and those at rising rates."""
    runs: dict[str, Result] = {}

    async def load(name: str, wish: Wish) -> Result:
        result = runs[name] = await _run(name, target, wish, watcher)
        return result

    orders = Wish(scenario=Scenario.ORDERS, seconds=extent.seconds)
    few = await load(figures.ORDERS_64, _at(orders, 64))
    assert few.orders
    # At once: what the machine can do in a minute drifts by a fifth until a quarter of an hour later, and half of it
    # would be half of another machine's.
    half = max(1.0, few.orders.settled_per_second / 2)
    await load(figures.HALF, Wish(scenario=Scenario.ORDERS, seconds=extent.seconds, rate=half, calibrated=False))
    many = await load(figures.ORDERS_256, _at(orders, 256))
    assert many.orders
    # As much as is sold in the time at the rate that is to be reached.
    stock = int(0.8 * many.orders.settled_per_second * extent.seconds)
    await load(
        figures.HOT_256, Wish(scenario=Scenario.HOT, concurrency=256, seconds=extent.seconds, stock=max(1, stock))
    )
    points = await sweep(target, orders, few.orders.settled_per_second, watcher)
    await load(figures.MIXED, Wish(scenario=Scenario.MIXED, seconds=extent.seconds, calibrated=False))
    await load(figures.READS, Wish(scenario=Scenario.READS, seconds=extent.seconds))
    await load(figures.LONG, Wish(scenario=Scenario.ORDERS, seconds=extent.long_seconds, rate=half, calibrated=False))
    return runs, points


async def _compare(past: RunningMesh, extent: Extent, watcher: Watcher) -> dict[str, Result]:
    """Loads on a mesh that has a long past, in turn with loads on a young one that is up beside it.

    Three of them, which is about the time from one checkpoint to the next at that rate. Right after one, pages are
    written to the log whole; a single load would show the checkpoint, or none, and not the past.
    """
    runs: dict[str, Result] = {}
    orders = Wish(scenario=Scenario.ORDERS, seconds=extent.seconds, calibrated=False)
    wide = replace(orders, products=min(10_000, extent.past_products))
    async with _state_folder() as (state, port):
        watcher.tell("starting a young mesh beside the one with a past")
        await until_first_order(state, port, watcher.tell)
        young = RunningMesh.find(state, {})
        for grown, beside, concurrency in (
            (figures.GROWN_64, figures.YOUNG_64, 64),
            (figures.GROWN_256, figures.YOUNG_256, 256),
        ):
            for name in [*chain.from_iterable(zip(beside, grown, strict=False)), beside[-1]]:
                target, wish = (past, wide) if name in grown else (young, orders)
                runs[name] = await _run(name, target, _at(wish, concurrency), watcher)
    return runs


async def _run(name: str, target: RunningMesh, wish: Wish, watcher: Watcher) -> Result:
    watcher.tell(name)
    result = await run(target, wish, watcher)
    watcher.found(name, result)
    return result


def _at(wish: Wish, concurrency: int) -> Wish:
    return replace(wish, concurrency=concurrency)


def _commit() -> str:
    """The commit that is measured, with a `+` when files differ from it."""
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--abbrev=10", "--dirty=+"]  # as git is on PATH
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
