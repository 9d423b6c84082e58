"""The node: namespaces of this run alone, a bridge, and a network for each pod.

The program runs again in namespaces of its own, of processes, networks and mounts. All that it makes is in them, so the
kernel removes all of it when the program ends, also when it is killed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLS = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nft": "nftables",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ss": "iproute2",
    "unshare": "util-linux",
}
"""The programs that a rehearsal needs, and the packages of Debian that have them."""

FOLDER = Path("/run/netns")
"""Where `ip` keeps the networks that have names; here also a file system in memory for all files of the run."""
ADDRESS = "10.244.0.1"
PODS = "10.244.0.0/24"
SERVICES = "10.96.0.0/24"
BRIDGE = "pods"

_INSIDE = "MESH_REHEARSAL_IS_INSIDE"
_KERNEL = {
    "net/ipv4/ip_forward": "1",
    # A pod reaches others by way of the node, although they are on its bridge: there the policies are.
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # Of frames that stay on the bridge there are none.
    "net/bridge/bridge-nf-call-iptables": "0",
}


class CommandFailed(Exception):
    """A program of the system has failed, with what it said."""


def missing() -> list[str]:
    """What this machine lacks for a rehearsal."""
    found = [] if os.geteuid() == 0 else ["root"]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return found + sorted(
        f"{tool} (Debian's package {package})" for tool, package in TOOLS.items() if not shutil.which(tool, path=path)
    )


def enter(module: str, arguments: Sequence[str]) -> None:
    """Return inside of the namespaces of the run: outside, replace this process by one that runs `module` there."""
    if _INSIDE in os.environ:
        return
    os.environ |= {_INSIDE: "1", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    namespaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child=KILL"]
    os.execvp("unshare", ["unshare", *namespaces, sys.executable, "-m", module, *arguments])


async def run(*command: str, text: str = "") -> str:
    """The output of a program. Raises CommandFailed with its errors."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(text.encode())
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(command)}: {output.decode(errors='replace').strip()}")
    return output.decode(errors="replace")


async def prepare() -> Path:
    """Make the bridge. Returns a folder in memory for the files of the run."""
    await run("mkdir", "-p", str(FOLDER))
    await run("mount", "-t", "tmpfs", "-o", "mode=755", "rehearsal", str(FOLDER))
    for name, value in _KERNEL.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)
    await run("ip", "link", "set", "lo", "up")
    await run("ip", "link", "add", BRIDGE, "type", "bridge")
    await run("ip", "address", "add", f"{ADDRESS}/{PODS.partition('/')[2]}", "dev", BRIDGE)
    await run("ip", "link", "set", BRIDGE, "up")
    await run("ip", "route", "add", SERVICES, "dev", BRIDGE)
    files = FOLDER / ".files"
    files.mkdir()
    return files


async def add_own_address(address: str) -> None:
    """Give the node another address on the bridge, for a server or a client that runs on it."""
    await run("ip", "address", "add", f"{address}/32", "dev", BRIDGE)


async def add_network(name: str, number: int, address: str) -> None:
    """Make a network with this address, on the bridge. All that leaves it goes to the node."""
    inside = ("ip", "-n", name)
    await run("ip", "netns", "add", name)
    await run("ip", "link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
    await run("ip", "link", "set", f"pod{number}", "master", BRIDGE, "up")
    await run("bridge", "link", "set", "dev", f"pod{number}", "isolated", "on")
    await run(*inside, "link", "set", "lo", "up")
    await run(*inside, "address", "add", f"{address}/32", "dev", "eth0")
    await run(*inside, "link", "set", "eth0", "up")
    await run(*inside, "route", "add", ADDRESS, "dev", "eth0")
    await run(*inside, "route", "add", "default", "via", ADDRESS)


async def enforce(rules: str) -> None:
    """Put these rules in the place of all before, in one step."""
    await run("nft", "--file", "-", text=rules)
