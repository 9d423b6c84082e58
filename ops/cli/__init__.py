"""The `mesh` command.

Exit codes: 0 done, 1 failed (the reason is on stderr), 2 not understood.
"""

# ruff: noqa: PLC0415 - each command imports what it needs when it runs, so that `mesh --help` answers at once

import os
import sys
from datetime import timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from ops.bench.scenario import Scenario
from ops.cli.events import events_app
from ops.contracts import contracts_app
from stack.errors import StackError

app = typer.Typer(
    name="mesh",
    help="Commerce Mesh on this machine: real PostgreSQL, NATS, Redis and Envoy, and four services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(contracts_app, name="contracts")
app.add_typer(events_app, name="events")
keys_app = typer.Typer(help="The keys that sign access tokens.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Folder = Annotated[
    Path, typer.Option("--state", envvar="MESH_STATE", metavar="DIR", help="The folder that holds the mesh's data.")
]
DEFAULT_FOLDER = Path(".mesh")


class Role(StrEnum):
    """Whose token it is."""

    STAFF = "staff"
    CUSTOMER = "customer"


@app.command()
def up(
    state: Folder = DEFAULT_FOLDER,
    edge_port: Annotated[int, typer.Option(min=1, max=65535, help="The port that clients reach the mesh at.")] = 8080,
    edge_host: Annotated[str, typer.Option(help="The IP address that the edge listens on.")] = "127.0.0.1",
    workers: Annotated[
        list[str] | None, typer.Option(metavar="SERVICE=N", help="Run several processes of a service, as order=2.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the mesh is ready; it goes on by itself.")
    ] = False,
    seed: Annotated[bool, typer.Option("--seed", help="Make a few products if there are none.")] = False,
) -> None:
    """Start everything, say when it is ready and where. Ctrl-C stops it."""
    from ops.cli.up import detached, foreground
    from stack.local_mesh import Options
    from stack.state import State

    options = Options(edge_host=_ip_address(edge_host), edge_port=edge_port, workers=_workers(workers or []), seed=seed)
    run = detached if detach else foreground
    run(State.open(state), options)


@app.command()
def down(state: Folder = DEFAULT_FOLDER) -> None:
    """Stop the mesh. Its data stay."""
    from ops.cli.running import stop
    from stack.state import State

    stop(State.find(state))


@app.command()
def status(
    state: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what runs and whether it answers. Exits with 1 unless everything does."""
    from ops.cli.running import show_status

    raise typer.Exit(0 if show_status(state, as_json=as_json) else 1)


@app.command()
def logs(
    service: Annotated[
        str | None, typer.Argument(help="One process or service, as postgres, order or order-2.")
    ] = None,
    state: Folder = DEFAULT_FOLDER,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")] = 20,
) -> None:
    """Show the end of the logs."""
    from ops.cli.logs import show
    from stack.state import State

    found = State.find(state)
    names = sorted(path.stem for path in found.logs.glob("*.log"))
    if not names:
        raise StackError(f"Nothing was ever logged in {found.folder}. `mesh up` does.")
    chosen = [name for name in names if service in (None, name, name.rpartition("-")[0])]
    if not chosen:
        raise typer.BadParameter(f"there is no log of {service}, but of {', '.join(names)}")
    show([found.logs / f"{name}.log" for name in chosen], lines=lines, follow=follow)


@app.command()
def token(
    role: Annotated[Role, typer.Option(help="Whose token it is.")],
    subject: Annotated[
        UUID | None,
        typer.Option(
            help="The customer's id, or a staff member's; by default a new customer's, or always the same one."
        ),
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it is good for, as 90s, 15m or 12h; at most 30d.")
    ] = "15m",
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Print an access token for local work, and nothing else."""
    from mesh.ids import new_id
    from stack.pki import LOCAL_STAFF, LONGEST_TOKEN, access_token, make_signing_key
    from stack.state import State

    good_for = _duration(lifetime)
    if good_for > LONGEST_TOKEN:
        raise typer.BadParameter(
            f"{lifetime} is longer than {LONGEST_TOKEN.days}d, for which keys are kept", param_hint="--lifetime"
        )
    if subject is None:
        subject = LOCAL_STAFF if role is Role.STAFF else new_id()
    # Only where there is a mesh, or was one: nobody would accept what another key has signed.
    key = make_signing_key(State.find(state).pki)
    typer.echo(access_token(key.private, role=role.value, subject=subject, lifetime=good_for))


@keys_app.command("rotate")
def rotate_keys(state: Folder = DEFAULT_FOLDER) -> None:
    """Sign access tokens with a new key, without a restart. Tokens of the old key stay good until they expire."""
    from ops.cli.keys import rotate
    from stack.state import State

    key_id = rotate(State.find(state))
    typer.echo(f"access tokens are signed with the new key {key_id}; those of the old key stay good until they expire")


@app.command()
def demo(state: Folder = DEFAULT_FOLDER) -> None:
    """Take a customer through an order at the running mesh, showing each request and its answer."""
    from ops.cli.demo import run
    from stack.state import State

    found = State.find(state)
    run(found.running().edge, found.pki)


@app.command()
def migrate(state: Folder = DEFAULT_FOLDER) -> None:
    """Bring the databases of all services up to date. `mesh up` does so by itself."""
    from ops.cli.migrate import migrate_all
    from stack.state import State

    migrate_all(State.open(state), os.environ)


@app.command()
def audit(
    state: Folder = DEFAULT_FOLDER,
    check: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this invariant; may be given several times.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Check everything, not only what has changed since the last clean audit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check the invariants of the running mesh, and name each breach. Exits with 1 if there is one."""
    from ops.audit import NAMES
    from ops.cli.audit import audit as run

    if unknown := set(check or ()).difference(NAMES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(NAMES)}", param_hint="--check")
    raise typer.Exit(0 if run(state, names=check or (), full=full, as_json=as_json) else 1)


@app.command()
def bench(
    scenario: Annotated[Scenario, typer.Argument(help="What the load is made of.")],
    state: Folder = DEFAULT_FOLDER,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Users at a time; each scenario has its own number.")
    ] = None,
    duration: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long is measured.")] = 20.0,
    rate: Annotated[
        float | None, typer.Option(min=1, help="Open loop: so many requests a second, answered or not.")
    ] = None,
    stock: Annotated[int | None, typer.Option(min=1, help="hot: how much of the one product there is.")] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure what this machine can do first; results are ratios to that.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Load the running mesh, show what it can do, and check that nothing was sold twice, charged twice or lost."""
    from ops.bench.scenario import Terms
    from ops.cli.bench import measure

    terms = Terms(
        scenario=scenario, concurrency=concurrency, seconds=duration, rate=rate, stock=stock, calibrated=calibrate
    )
    measure(state, terms, as_json=as_json)


def main() -> None:
    """Run the command, and say what went wrong without a traceback where a person can do something about it."""
    try:
        app()
    except StackError as error:
        reason = str(error)
    except OSError as error:  # as a file of another user's, or a full disk
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        return
    typer.echo(f"mesh: {reason}", err=True)
    sys.exit(1)


def _workers(given: list[str]) -> dict[str, int]:
    from stack.services import NAMES

    workers = {}
    for part in (part for value in given for part in value.split(",")):
        name, _, number = part.partition("=")
        if name not in NAMES or not number.isdecimal() or not 1 <= int(number) <= 64:
            raise typer.BadParameter(
                f"{part!r} is not a number of workers from 1 to 64 of {', '.join(NAMES)}, as order=2",
                param_hint="--workers",
            )
        workers[name] = int(number)
    return workers


def _ip_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not an IP address such as 127.0.0.1, 0.0.0.0 or ::1", param_hint="--edge-host"
        ) from None


def _duration(text: str) -> timedelta:
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if text[:-1].isdecimal() and text[-1] in units and int(text[:-1]) > 0:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    raise typer.BadParameter(f"{text!r} is not a time such as 90s, 15m, 12h or 30d", param_hint="--lifetime")
