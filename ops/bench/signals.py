"""How a measurement ends early."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_signal(measurement: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in which SIGTERM has the effect of Ctrl-C: KeyboardInterrupt, when all clean-up is done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return asyncio.run(measurement)
