"""The order of what `make bench` measures, where the order is what makes a figure true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ops.bench import figures, series
from ops.bench.run import Wish
from ops.running_mesh import RunningMesh as Target


class Listener:
    """Keeps the names of what was found."""

    def __init__(self) -> None:
        self.found_names: list[str] = []

    def tell(self, text: str) -> None:
        """Nothing is said."""

    def show(self, *, elapsed: float, seconds: float, answered: int, failed: int, lag: float) -> None:
        """Nothing is shown."""

    def found(self, name: str, result: Any) -> None:
        """A run is over."""
        self.found_names.append(name)
        assert result == len(self.found_names)


async def test_a_mesh_with_a_past_is_loaded_in_turn_with_a_young_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[Any, Wish]] = []
    meshes: list[str] = []
    young, past = object(), object()

    async def run(target: Any, wish: Wish, _watcher: Any) -> Any:
        assert meshes == ["up"]
        loads.append((target, wish))
        return len(loads)

    async def up(*_: Any) -> float:
        meshes.append("up")
        return 1.0

    async def mesh(*arguments: str, **_: Path) -> None:
        meshes.extend(arguments)

    monkeypatch.setattr(series, "run", run)
    monkeypatch.setattr(series, "until_first_order", up)
    monkeypatch.setattr(series, "mesh", mesh)
    monkeypatch.setattr(Target, "find", lambda *_: young)
    compare: Any = series._compare
    listener = Listener()
    runs = await compare(past, series.FULL, listener)
    assert listener.found_names == [*runs], "each is told when it is over"
    for grown, beside, names in (
        (figures.GROWN_64, figures.YOUNG_64, [*runs][:7]),
        (figures.GROWN_256, figures.YOUNG_256, [*runs][7:]),
    ):
        assert names[::2] == [*beside]
        assert names[1::2] == [*grown]
    assert [*runs.values()] == [*range(1, 15)], "as they were carried out"
    assert [target for target, _ in loads] == [young, past, young, past, young, past, young] * 2
    assert [wish.concurrency for _, wish in loads] == [64] * 7 + [256] * 7
    assert {wish.seconds for _, wish in loads} == {20}
    assert [wish.products for _, wish in loads] == [300, 10_000, 300, 10_000, 300, 10_000, 300] * 2
    assert meshes == ["up", "down"]
