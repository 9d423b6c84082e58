"""A measurement that is told to end stops what it has started."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

MEASUREMENT = """
import asyncio
import signal
from ops.bench.ending import run_optimistically

# A shell that starts the tests in the background has them ignore it, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def measure():
    try:
        print("begun", flush=True)
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        print("stopped", flush=True)

try:
    run_optimistically(measure())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_that_is_told_to_end_stops_what_it_has_started(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", MEASUREMENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        try:
            assert process.communicate(timeout=30)[0] == "stopped\ninterrupted\n"
        finally:
            process.kill()
        assert process.returncode == 0
