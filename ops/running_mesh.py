"""A running mesh on this machine, and what it takes to audit and measure it: servers, signing key, processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import yaml

from gateway.filters import RATE_OF_ADDRESS, RATE_OF_CLIENT
from stack.errors import StackError
from stack.passwords import keep_passwords
from stack.pki import access_token, make_signing_key
from stack.servers import AUDITORS, DATABASES, EmbeddedPostgres, Postgres
from stack.servers.postgres import SUPERUSER
from stack.state import RunRecord, State

_PASSWORDS = (SUPERUSER, "nats", *DATABASES, *AUDITORS)
_TOKEN_LIFETIME = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that runs on this machine."""

    state: State
    run: RunRecord
    postgres: Postgres
    nats_url: str
    rate_limits: Mapping[str, int]
    """Requests a second that the edge accepts, of each `customer` and from each `address`; 0 is no limit."""

    @classmethod
    def find(
        cls, folder: Path, environment: Mapping[str, str] = os.environ, *, even_unready: bool = False
    ) -> RunningMesh:
        """The mesh that runs in a state folder. Raises NotRunning, or StackError when it is not ready.

        With `even_unready`, a mesh is found whose servers run, whatever its services do.
        """
        state = State.find(folder)
        run = state.running()
        if not run.ready and not even_unready:
            raise StackError("The mesh is not ready: `mesh status` says what is missing.")
        passwords = keep_passwords(state.passwords, _PASSWORDS)
        given = environment.get("MESH_POSTGRES_URL")
        postgres = (
            Postgres(given, passwords)
            if given
            else EmbeddedPostgres(state.folder / "postgres", run.sockets / "postgres", passwords)
        )
        nats_url = environment.get("MESH_NATS_URL") or next(
            f"nats://mesh:{quote(passwords['nats'], safe='')}@{urlsplit(process.address).netloc}"
            for process in run.processes
            if process.name == "nats"
        )
        return cls(state, run, postgres, nats_url, _rate_limits(state.folder / "edge" / "envoy.yaml"))

    @property
    def host(self) -> str:
        """Host of the edge."""
        return urlsplit(self.run.edge).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """Port of the edge."""
        return urlsplit(self.run.edge).port or 80

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the mesh by name, the supervisor as `mesh`. Raises StackError when one is down."""
        pids = {"mesh": self.run.supervisor.pid}
        for process in self.run.processes:
            if process.identity is None or not process.identity.is_alive():
                raise StackError(f"{process.name} is not running.")
            pids[process.name] = process.identity.pid
        return pids

    def died(self) -> list[str]:
        """The processes that have ended, or been started again, since this was made."""
        return [process.name for process in self.run.processes if process.identity and not process.identity.is_alive()]

    def token(self, role: Literal["customer", "staff"], subject: UUID) -> str:
        """An access token that outlasts any bench."""
        key = make_signing_key(self.state.pki).private
        return access_token(key, role=role, subject=subject, lifetime=_TOKEN_LIFETIME)

    def url_for(self, database: str) -> str:
        """The URL of a database, as superuser."""
        return urlunsplit(urlsplit(self.postgres.superuser_url)._replace(path=f"/{database}"))

    def audit_url(self, database: str) -> str:
        """The URL of a database, as the role that may read it and change nothing."""
        return self.postgres.audit_url_of(database)

    async def connect(self, database: str) -> asyncpg.Connection:
        """A connection to a database of the mesh, as superuser."""
        return await asyncpg.connect(self.url_for(database), server_settings={"application_name": "mesh ops"})


def _rate_limits(envoy: Path) -> dict[str, int]:
    """The limits in the configuration of the running edge: the environment of `mesh up` may have been another one."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    config: dict[str, Any] = yaml.load(envoy.read_text(), loader)  # noqa: S506 - a safe loader
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    filters = {each["name"]: each["typed_config"] for each in manager["http_filters"] if "typed_config" in each}
    return {
        who: int(filters[name]["descriptors"][0]["token_bucket"]["tokens_per_fill"]) if name in filters else 0
        for who, name in (("customer", RATE_OF_CLIENT), ("address", RATE_OF_ADDRESS))
    }
