"""The state folder: all that one mesh keeps on this machine.

version                 of this layout
lock                    held by the running mesh
run.json                the running mesh: its processes, where they are, whether they are ready
logs/                   a file for each process, and mesh.log
pki/                    authority, certificates and the signing keys of access tokens
secrets/                passwords of the servers
postgres/ nats/ redis/  their data
edge/                   the configuration of Envoy
audit.json              the last audit of the mesh
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGQUIT
from typing import Any, Self

from stack.errors import AlreadyRunning, FolderUnusable, NotRunning, StateTooNew
from stack.files import write_whole
from stack.process import Identity, end_group

VERSION = 1
"""Of the layout above. It grows when an older `mesh` could no longer use the folder."""


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """One process of a running mesh; `identity` is None between a death and the restart."""

    name: str
    identity: Identity | None
    ready: bool
    address: str
    restarts: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A running mesh, as others see it. A record of a mesh that was killed stays until the next start."""

    supervisor: Identity
    edge: str
    """The URL of the edge."""
    ready: bool
    """Everything has started, and answers."""
    sockets: Path
    """The folder of Unix sockets, with a short path."""
    processes: Sequence[ProcessRecord] = field(default=())

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), default=str, indent=2).encode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError for what `to_json` did not make."""
        content: dict[str, Any] = json.loads(text)
        return cls(
            supervisor=Identity(**content["supervisor"]),
            edge=content["edge"],
            ready=content["ready"],
            sockets=Path(content["sockets"]),
            processes=[
                ProcessRecord(**{**process, "identity": Identity(**identity) if identity else None})
                for process in content["processes"]
                for identity in [process["identity"]]
            ],
        )


@dataclass(frozen=True, slots=True)
class State:
    """A state folder of this version that can be written to."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Make the folder, or check that it is one of ours.

        Raises:
            FolderUnusable: it cannot be made, read or written.
            StateTooNew: a later version of the mesh has written it.
        """
        folder = folder.absolute()
        version = folder / "version"
        try:
            # Open to pass through: PostgreSQL may run as another user. What is inside is closed one by one.
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "lock").touch()
            if not version.exists():
                write_whole(version, f"{VERSION}\n".encode())
            found = version.read_text().strip()
        except OSError as error:
            raise FolderUnusable(
                f"The state folder {folder} cannot be used: {error.strerror}. Choose another with --state."
            ) from error
        if not found.isdecimal() or int(found) > VERSION:
            raise StateTooNew(
                f"The state folder {folder} is of version {found}, and this mesh knows none after {VERSION}."
                " Run the mesh that wrote it, or choose another folder with --state."
            )
        return cls(folder.resolve())

    @classmethod
    def find(cls, folder: Path) -> Self:
        """Return the state of a mesh that has been started before, and what `open` raises.

        Raises:
            NotRunning: there is no such folder.
        """
        if not (folder / "version").exists():
            raise NotRunning(
                f"No mesh was ever started in {folder.resolve()}. `mesh up` does, --state names another folder."
            )
        return cls.open(folder)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def passwords(self) -> Path:
        return self.folder / "secrets" / "passwords.json"

    @property
    def audit(self) -> Path:
        return self.folder / "audit.json"

    def last_audit(self) -> dict[str, Any] | None:
        """Return the report of the last audit; None if there is none."""
        try:
            last: dict[str, Any] = json.loads(self.audit.read_text())["last"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return last

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other mesh out of the folder. The lock ends with the process, however that ends.

        Raises:
            AlreadyRunning: another one holds it.
        """
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                run = self.last_run()
                which = f" (pid {run.supervisor.pid}, {run.edge})" if run and run.supervisor.is_alive() else ""
                raise AlreadyRunning(
                    f"A mesh is running in {self.folder}{which}."
                    " `mesh down` stops it; another --state and --edge-port start a second one."
                ) from None
            yield

    def last_run(self) -> RunRecord | None:
        """Return the record of the mesh that runs, or that ran last and was killed; None after a clean stop."""
        try:
            return RunRecord.from_json((self.folder / "run.json").read_text())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise FolderUnusable(
                f"{self.folder / 'run.json'} is damaged ({error}). If no mesh is running there, remove it."
            ) from error

    def running(self) -> RunRecord:
        """Return the record of the running mesh. Raises NotRunning if there is none."""
        run = self.last_run()
        if run is None or not run.supervisor.is_alive():
            raise NotRunning(f"No mesh is running in {self.folder}. `mesh up` starts one.")
        return run

    def record(self, run: RunRecord) -> None:
        write_whole(self.folder / "run.json", run.to_json())

    def forget_run(self) -> None:
        (self.folder / "run.json").unlink(missing_ok=True)

    async def clear_remains(self, *, timeout: float = 10.0) -> list[str]:
        """End what a killed mesh has left running, and return the names. The lock must be held.

        The kernel has ended most of it together with the supervisor: this is for systems where it does not.
        `timeout` is the time in seconds from the polite signal to the other.
        """
        run = self.last_run()
        if run is None:
            return []
        left = [process for process in run.processes if process.identity and process.identity.is_alive()]
        for process in left:
            assert process.identity is not None
            # PostgreSQL takes its own processes with it at the first, the others need the second.
            for signal in (SIGQUIT, SIGKILL):
                end_group(process.identity.pid, signal)
                if await process.identity.gone(timeout):
                    break
        shutil.rmtree(run.sockets, ignore_errors=True)
        self.forget_run()
        return [process.name for process in left]
