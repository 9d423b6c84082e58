"""Whom a program runs as that refuses to be root.

PostgreSQL does. When the mesh is started by root, its PostgreSQL gets a system user of its own. That user
has to reach the program and its data below folders that may be closed to it, as below /root; instead of opening
those folders to everybody for good, the one program is given the right to search folders (capabilities(7)).
That right reaches no further than those of the other servers, which run as root.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stack.errors import FolderUnusable

NAMES = ("postgres", "embedded_postgres")
"""The accounts to use, the first that exists; the last is made if none does."""

# Which lets a process search any folder, the weaker one first: a container often has only the second.
_SEARCHING = {"CAP_DAC_READ_SEARCH": 2, "CAP_DAC_OVERRIDE": 1}
# Needed to hand one of them on in such a way that access(2) respects it (see `stack.launch`).
_CAP_SETPCAP = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemUser:
    """A user to run as, and a capability to keep (as `CAP_DAC_READ_SEARCH`) if any."""

    uid: int
    gid: int
    capability: str | None = None


def unprivileged_user(data: Path, reaching: Iterable[Path]) -> SystemUser | None:
    """Return the user to run PostgreSQL as, or None when we are not root and nothing is to change.

    Data that exist stay with the user who owns them. `reaching` are the paths that the user has to get to.

    Raises:
        FolderUnusable: it cannot get to one of them, and may not be given the right to.
    """
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwuid(data.stat().st_uid) if data.exists() else _system_user()
    closed = [folder for path in reaching for folder in path.resolve().parents if not _may_search(entry, folder)]
    if not closed:
        return SystemUser(uid=entry.pw_uid, gid=entry.pw_gid)
    ours = _effective_capabilities()
    for capability, number in _SEARCHING.items():
        if ours >> number & 1 and ours >> _CAP_SETPCAP & 1:
            return SystemUser(uid=entry.pw_uid, gid=entry.pw_gid, capability=capability)
    raise FolderUnusable(
        f"PostgreSQL does not run as root, and the user {entry.pw_name} that it runs as instead cannot enter"
        f" {closed[0]}. Allow that (chmod o+x {closed[0]}), or start the mesh as another user than root."
    )


def _system_user() -> pwd.struct_passwd:
    for name in NAMES:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is not None:
        command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", NAMES[-1]]
        # Another mesh may be making it right now: what counts is that it is there afterwards.
        subprocess.run(command, check=False, capture_output=True)
    try:
        return pwd.getpwnam(NAMES[-1])
    except KeyError:
        raise FolderUnusable(
            f"PostgreSQL does not run as root, and no user {' or '.join(NAMES)} exists or could be made."
            " Start the mesh as another user than root."
        ) from None


def _may_search(entry: pwd.struct_passwd, folder: Path) -> bool:
    status = folder.stat()
    if status.st_uid == entry.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == entry.pw_gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _effective_capabilities() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
