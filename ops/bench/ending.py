"""How a measurement ends before its time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_optimistically(measuring: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`. SIGTERM ends it as Ctrl-C does, with KeyboardInterrupt, once all it has started is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return asyncio.run(measuring)
