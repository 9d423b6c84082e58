"""The blocks of docs/clients.md, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from uuid import uuid4

from tests.running import RunningMesh

ROOT = Path(__file__).parents[2]


async def test_the_clients_of_the_guide_work_as_they_are_written(mesh: RunningMesh, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "clients.md").read_text("utf-8")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", guide, re.DOTALL))
    [client] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "client.py").write_text(client, "utf-8")
    # Another port and other folders, and names that an earlier run has not taken; the rest is as it stands.
    script = script.replace("127.0.0.1:8080", mesh.edge.removeprefix("http://"))
    script = script.replace(".mesh/", f"{mesh.state}/").replace(".venv/bin/", "")
    once = uuid4().hex[:8]
    for name in ("grace@", "TEA-2"):
        script = script.replace(name, f"{once}-{name}")
    script = re.sub(r"Idempotency-Key: ", f"Idempotency-Key: {once}-", script)
    for file in ("dist", "client.py", "watched.jsonl"):
        script = re.sub(rf"(?<![\w/]){re.escape(file)}\b", str(tmp_path / file), script)
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
    out, errors = await asyncio.wait_for(process.communicate(), 100)
    told = out.decode()
    assert process.returncode == 0, errors.decode() + told
    watched = [json.loads(line)["order"]["status"] for line in (tmp_path / "watched.jsonl").read_text().splitlines()]
    assert watched[-1] == "ORDER_STATUS_DELIVERED"
    assert "commerce.order.delivered" in told
    assert '"reason":"STOCK_INSUFFICIENT"' in told.replace(" ", "")
    # The output of client.py comes last.
    assert told.splitlines()[-2:] == ["ORDER_STATUS_CONFIRMED", "refused: STOCK_INSUFFICIENT"]
    assert "message CreateOrderRequest" in told
