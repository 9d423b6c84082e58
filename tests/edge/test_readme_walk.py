"""The README's commands, run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from uuid import uuid4

from tests.running import RunningMesh
from tests.services import TEST_TIMEOUT_S

ROOT = Path(__file__).parents[2]


async def test_the_commands_of_the_readme_work_as_they_are_written(mesh: RunningMesh) -> None:
    walk = (ROOT / "README.md").read_text().partition("## Place an order with curl")[2].partition("## Architecture")[0]
    script = "\n".join(re.findall(r"```sh\n(.*?)```", walk, re.DOTALL))
    # Another port, and names that an earlier run has not taken; the rest is as it stands.
    script = script.replace("127.0.0.1:8080", mesh.edge.removeprefix("http://"))
    once = uuid4().hex[:8]
    script = script.replace("ada@", f"ada-{once}@").replace("TEA-1", f"TEA-{once}").replace(".venv/bin/", "")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        cwd=ROOT,
        env={
            **os.environ,
            "MESH_STATE": str(mesh.state),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), TEST_TIMEOUT_S)
    told = out.decode()
    assert process.returncode == 0, errors.decode() + told
    assert "PAYMENT_STATUS_CAPTURED" in told
    assert '"onHand":8,"reserved":0' in told.replace(" ", "")
    assert "ORDER_STATUS_PENDING" in told
