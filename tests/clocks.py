"""A machine whose clock is wrong, for code in this process or for a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

_OURS = ("mesh", "customer_svc", "order_svc", "product_svc", "payment_svc")

_SITECUSTOMIZE = """
import datetime, os, time
by = datetime.timedelta(seconds=float(os.environ["TEST_CLOCK_IS_AHEAD"]))
right, right_time = datetime.datetime, time.time
class Kind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, right)
class Wrong(right, metaclass=Kind):
    __slots__ = ()
    @classmethod
    def now(cls, tz=None):
        return right.now(tz) + by
datetime.datetime = Wrong
time.time = lambda: right_time() + by.total_seconds()
"""


@contextmanager
def machine_clock_ahead(by: timedelta) -> Iterator[None]:
    """Inside the block the clock of the machine is ahead by `by`, or behind, for the code of the mesh."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # it is right but for its time
            return datetime.now(tz) + by

        @classmethod
        def __get_pydantic_core_schema__(cls, _: object, handler: Callable[[object], Any]) -> Any:
            return handler(datetime)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in _OURS and vars(module).get("datetime") is datetime:
                patch.setattr(module, "datetime", Wrong)
        yield


def environment_with_clock_ahead(by: timedelta, folder: Path) -> Mapping[str, str]:
    """The environment of a Python process for which the clock of the machine is ahead by `by`, or behind."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    path = os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))
    return {**os.environ, "PYTHONPATH": path, "TEST_CLOCK_IS_AHEAD": str(by.total_seconds())}
