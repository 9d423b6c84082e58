"""A measurement that gets a signal cleans up before it ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

MEASUREMENT = """
import asyncio
import signal
from ops.bench.signals import run_until_signal

# The tests ignore it when a shell has started them in the background, and so do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def measure():
    try:
        print("begun", flush=True)
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        print("stopped", flush=True)

try:
    run_until_signal(measure())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_that_gets_a_signal_cleans_up_before_it_ends(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", MEASUREMENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        try:
            assert process.communicate(timeout=30)[0] == "stopped\ninterrupted\n"
        finally:
            process.kill()
        assert process.returncode == 0
