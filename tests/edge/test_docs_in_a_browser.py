"""The page at /docs in a browser, which runs its scripts."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.openapi import OPERATIONS
from tests.running import RunningMesh

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="LEFT OUT: /docs was not opened in a browser, chromium is not installed")
async def test_the_page_shows_every_operation_and_breaks_no_rule_of_its_policy(
    mesh: RunningMesh, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
        # Nothing but the edge can be reached.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        # The console goes to the log: violations of the policy, errors of scripts.
        *("--enable-logging=stderr", "--v=0"),
        # Time that passes while the page has nothing to do; it does not depend on the machine.
        *("--virtual-time-budget=30000", "--dump-dom", f"{mesh.edge}/docs"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, log = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
    page = out.decode()
    assert [line for line in log.decode().splitlines() if ":CONSOLE" in line] == []
    shown = set(re.findall(r'class="opblock [^>]*id="operations-\w+-(\w+)"', page))
    assert shown == set(OPERATIONS), log.decode()[-2000:]
    assert "OAS 3.1" in page
