"""The short form of `make rehearse`: the manifests run on this machine, and an order goes through."""

from __future__ import annotations

import asyncio
import sys
from signal import SIGKILL

import pytest

from stack.process import launched
from tests.k8s.rehearsal import node
from tests.k8s.rehearsal.rehearsal import FORBIDDEN, SHORT
from tests.processes import ROOT, WITHOUT_SETTINGS

MISSING = node.missing()

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"the manifests are not rehearsed: missing are {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]


async def test_manifests_run_an_order_and_their_policies_refuse_what_they_do_not_allow() -> None:
    process = await asyncio.create_subprocess_exec(
        *launched([sys.executable, "-m", "tests.k8s.rehearsal", "--short"], orphan_signal=SIGKILL),
        cwd=ROOT,
        env=WITHOUT_SETTINGS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode()
    assert process.returncode == 0, said
    for part in (
        "an order went from JSON to CONFIRMED",
        "edge and order-svc are connected to each of 2 pods of product-svc",
        *(f"refused: {source} to {target}:{port}" for (source, target), port in FORBIDDEN.items()),
        *(f"without {source} to {target}: " for source, target in SHORT),
        "all pods have drained and exited with 0 after preStop and SIGTERM",
    ):
        assert part in said
