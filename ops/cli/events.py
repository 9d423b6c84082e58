"""`mesh events`: what is in the streams, dead letters and their redrive, backfills, and received webhooks."""

# ruff: noqa: PLC0415 - each command imports what it needs when it runs, so that `mesh --help` answers at once

from __future__ import annotations

import asyncio
import getpass
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from stack.errors import StackError

if TYPE_CHECKING:
    from ops.events import Details, StoredEvent, Streams

T = TypeVar("T")

events_app = typer.Typer(
    help="Events in the streams, dead letters and their redrive, backfills of lost events, and received webhooks.",
    no_args_is_help=True,
)

Folder = Annotated[
    Path, typer.Option("--state", envvar="MESH_STATE", metavar="DIR", help="The folder that holds the mesh's data.")
]
DEFAULT_FOLDER = Path(".mesh")
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Only these types, as order.placed."),
]
Time = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="A time such as 2026-11-28T20:15 (UTC), or an age such as 90s, 15m, 12h or 3d."),
]
Consumers = Annotated[
    list[str] | None, typer.Option("--consumer", metavar="NAME", help="Only of these consumers, as payment-order.")
]


class WebhookStatus(StrEnum):
    """What became of a webhook."""

    PENDING = "PENDING"
    APPLIED = "APPLIED"
    IGNORED = "IGNORED"


@events_app.command("list")
def list_events(
    types: Types = None,
    aggregate: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Only events of this order, payment, product or customer.")
    ] = None,
    order: Annotated[UUID | None, typer.Option(metavar="ID", help="Only events of this order and its payment.")] = None,
    since: Time = None,
    until: Time = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most so many, the last.")] = 50,
    payloads: Annotated[bool, typer.Option("--payloads", help="Show the decoded payloads too.")] = False,
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """List the last events of the streams, oldest first. Times are those at which the streams have stored them."""
    from ops.events import Filter, decoded, find
    from ops.events.finding import as_json as told

    wanted = Filter(_types(types), aggregate, order, _time(since, "--since"), _time(until, "--until"))
    found = _run(state, lambda streams: find(streams, wanted, most=limit))
    if as_json:
        typer.echo(json.dumps([told(event, decoded(event.type, event.data)) for event in found], indent=2))
        return
    for event in found:
        typer.echo(f"{event.stored:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f"  {event.id}  {_line(event)}")
        if payloads:
            typer.echo(_indented(decoded(event.type, event.data)))
    if not found:
        typer.echo("no events", err=True)


@events_app.command("show")
def show_event(
    event: Annotated[str, typer.Argument(help="The id of an event, or STREAM/NUMBER for a message that is none.")],
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Show all that is known of an event: headers, payload, its consumers, dead letters. Exits with 1 if nothing is."""
    stream, _, number = event.rpartition("/")
    if stream and number.isdecimal():
        _show_message(state, stream, int(number), as_json=as_json)
    else:
        _show_event(state, _event_id(event), as_json=as_json)


def _show_message(state: Path, stream: str, number: int, *, as_json: bool) -> None:
    from ops.events import decoded
    from ops.events.finding import as_json as told

    message = _run(state, lambda streams: streams.get(stream, number))
    if message is None:
        raise StackError(f"{stream} has no message {number}.")
    payload = decoded(message.type, message.data)
    typer.echo(json.dumps(told(message, payload), indent=2) if as_json else _full(message, payload))


def _show_event(state: Path, event_id: UUID, *, as_json: bool) -> None:
    from ops.events import show

    details = _run(state, lambda streams: show(streams, event_id))
    if not (details.copies or details.dead_letters or details.written):
        raise StackError(f"No stream and no outbox has an event {event_id}.")
    if as_json:
        typer.echo(json.dumps(_details_as_json(details), indent=2))
    else:
        _tell(details)


def _details_as_json(details: Details) -> dict[str, Any]:
    from ops.events import decoded
    from ops.events.finding import as_json as told

    return {
        "id": details.event_id,
        "written": _written_as_json(details),
        "copies": [told(copy, decoded(copy.type, copy.data)) for copy in details.copies],
        "applied": {consumer: time.isoformat() for consumer, time in details.applied.items()},
        "unfinished": details.unfinished,
        "deadLetters": [told(letter, decoded(letter.type, letter.data)) for letter in details.dead_letters],
    }


def _written_as_json(details: Details) -> dict[str, Any] | None:
    from ops.events import decoded

    if details.written is None:
        return None
    row: dict[str, Any] = {
        name: each if isinstance(each, bool) else str(each) for name, each in details.written.items()
    }
    row["payload"] = decoded(details.written["type"], details.written["payload"])
    return row


def _tell(details: Details) -> None:
    from ops.events import decoded

    if details.copies:
        typer.echo(_full(details.copies[0], decoded(details.copies[0].type, details.copies[0].data)))
    elif details.written:
        typer.echo(_indented(_written_as_json(details) or {}))
    for copy in details.copies:
        typer.echo(f"in {copy.stream}/{copy.number} since {_moment(copy.stored)}{_redriven(copy)}")
    if written := details.written:
        published = "published" if written["is_published"] else "not published yet"
        typer.echo(f"in the outbox of {written['service']} since {_moment(written['create_time'])}, {published}")
    for consumer, time in details.applied.items():
        typer.echo(f"applied by {consumer} at {_moment(time)}")
    for consumer, count in details.unfinished.items():
        typer.echo(f"{consumer} has begun {count} attempts that did not end")
    for letter in details.dead_letters:
        headers = letter.headers
        typer.echo(
            f"dead letter of {headers.get('mesh-consumer')} since {_moment(letter.stored)}"
            f" after {headers.get('mesh-attempts')} attempts: {headers.get('mesh-error')}"
        )


@events_app.command("dead")
def dead(
    types: Types = None,
    consumer: Consumers = None,
    since: Time = None,
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Show the dead letters by consumer, type and cause, the largest group first."""
    from ops.events import DeadLetters, Selection

    selection = Selection((), _types(types), consumer or (), _time(since, "--since"))
    groups = _run(state, lambda streams: DeadLetters(streams).groups(selection))
    if as_json:
        typer.echo(json.dumps([asdict(group) for group in groups], indent=2, default=datetime.isoformat))
        return
    for group in groups:
        typer.echo(f"{group.count:>6}  {group.consumer}  {group.type or 'no event'}  {group.cause}")
        typer.echo(f"        from {_moment(group.first)} to {_moment(group.last)}, such as {', '.join(group.examples)}")
    if not groups:
        typer.echo("no dead letters")


@events_app.command("redrive")
def redrive(
    event_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of events.")] = None,
    types: Types = None,
    consumer: Consumers = None,
    since: Time = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="At most so many a second.")] = 100.0,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who redrives them, for the record; by default the user.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be redriven.")] = False,
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Hand dead letters back to their consumer. Choose them by id, type, consumer or time, or all.

    An event that its consumer has applied before changes nothing. One that fails again becomes a dead letter again.
    """
    from ops.events import DeadLetters, Selection

    ids = {str(_event_id(each)) for each in event_ids or ()}
    selection = Selection(ids, _types(types), consumer or (), _time(since, "--since"))
    if selection == Selection(set()) and not everything:
        raise typer.BadParameter("choose dead letters by id, --type, --consumer or --since, or --all of them")
    who = by or f"{getpass.getuser()}@{socket.gethostname()}"
    done = _run(state, lambda streams: DeadLetters(streams).redrive(selection, by=who, rate=rate, dry_run=dry_run))
    if as_json:
        typer.echo(json.dumps({"dryRun": dry_run, "by": who, **asdict(done)}, indent=2))
    else:
        verb = "would be redriven" if dry_run else "redriven"
        typer.echo(f"{done.count} dead letters {verb}")
        for name, count in sorted(done.by_consumer.items()):
            typer.echo(f"{count:>6}  to {name}")
    if done.missing:
        raise StackError(f"These are no dead letters: {', '.join(done.missing)}")


@events_app.command("backfill")
def backfill_streams(
    streams: Annotated[
        list[str] | None, typer.Argument(metavar="[STREAM]...", help="Streams, as ORDERS; by default all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is lost.")] = False,
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Publish again, from the outboxes, what streams have lost. The mesh may be in use meanwhile."""
    from mesh.events.cloudevents import stream_of_area
    from ops.events import backfill
    from stack.services import NAMES

    areas = {stream_of_area(name): name for name in NAMES}
    if unknown := sorted(set(streams or ()) - areas.keys()):
        raise typer.BadParameter(f"there is no stream {unknown[0]}, but {', '.join(areas)}")
    chosen = [areas[stream] for stream in streams or areas]
    done = [
        _run(state, lambda opened, area=area: backfill(opened, area, dry_run=dry_run))  # type: ignore[misc]
        for area in chosen
    ]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in done], indent=2, default=datetime.isoformat))
        return
    for each in done:
        what = f"{each.published} published again" if not dry_run else "nothing published"
        range_ = f"since {_moment(each.since)}" if each.since else "in an empty outbox"
        typer.echo(f"{each.stream}: {each.compared} events {range_}, {each.lost} lost, {what}")


@events_app.command("webhooks")
def webhooks(
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this provider, as stripe.")] = None,
    status: Annotated[
        WebhookStatus | None, typer.Option(case_sensitive=False, help="Only those with this status.")
    ] = None,
    payment: Annotated[UUID | None, typer.Option(metavar="ID", help="Only those that name this payment.")] = None,
    since: Time = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most so many, the last.")] = 50,
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """List the webhooks that payment providers have sent, oldest first. Their bodies are not stored."""
    from ops.events import WebhookFilter, find_webhooks

    wanted = WebhookFilter(None, provider, status.value if status else None, payment, _time(since, "--since"))
    found = _run(state, lambda streams: find_webhooks(streams.mesh, wanted, most=limit))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2, default=str))
        return
    for each in found:
        names = " ".join(str(name) for name in (each.payment_id, each.refund_id, each.reference) if name)
        typer.echo(f"{_moment(each.create_time)}  {each.id}  {each.provider}  {each.type}  {each.status}  {names}")
    if not found:
        typer.echo("no webhooks", err=True)


@events_app.command("replay")
def replay(
    webhook_ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="Ids of webhooks.")],
    as_json: AsJson = False,
    state: Folder = DEFAULT_FOLDER,
) -> None:
    """Let the payment service apply webhooks again: it asks the provider what they are about."""
    from ops.events import WebhookFilter, find_webhooks, replay_webhooks

    known = _run(state, lambda streams: find_webhooks(streams.mesh, WebhookFilter(webhook_ids), most=len(webhook_ids)))
    if missing := set(webhook_ids) - {each.id for each in known}:
        raise StackError(f"These are no webhooks: {', '.join(sorted(map(str, missing)))}")
    replayed = _run(state, lambda streams: replay_webhooks(streams.mesh, webhook_ids))
    if as_json:
        typer.echo(json.dumps({"replayed": sorted(map(str, replayed))}))
    else:
        waiting = len(webhook_ids) - len(replayed)
        typer.echo(f"{len(replayed)} webhooks are applied again" + (f", {waiting} waited already" if waiting else ""))


def _run(folder: Path, work: Callable[[Streams], Awaitable[T]]) -> T:
    """Run an operation on the streams of the running mesh."""
    from mesh.observe import logs
    from ops.events import Streams
    from ops.running_mesh import RunningMesh

    logs.configure("events", "error")
    # A poison message may keep a service from being ready.
    mesh = RunningMesh.find(folder, even_unready=True)

    async def run() -> T:
        async with Streams.of(mesh) as streams:
            return await work(streams)

    return asyncio.run(run())


def _types(given: list[str] | None) -> tuple[str, ...]:
    """Event types from what was typed: also without the common beginning."""
    types = tuple(each if each.startswith("commerce.") else f"commerce.{each}" for each in given or ())
    for each in types:
        if each.count(".") != 2 or not all(each.split(".")):
            raise typer.BadParameter(f"{each!r} is not an event type such as order.placed", param_hint="--type")
    return types


def _time(given: str | None, option: str) -> datetime | None:
    if given is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if given[:-1].isdecimal() and given[-1] in units:
        return datetime.now(UTC) - timedelta(**{units[given[-1]]: int(given[:-1])})
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(
            f"{given!r} is neither a time such as 2026-11-28T20:15 nor an age such as 15m", param_hint=option
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _event_id(given: str) -> UUID:
    try:
        return UUID(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is not the id of an event") from None


def _line(event: StoredEvent) -> str:
    sequence = event.headers.get("ce-sequence", "")
    return (
        f"{event.type or 'no event'}  {event.headers.get('ce-subject', event.subject)}  #{sequence}{_redriven(event)}"
    )


def _redriven(event: StoredEvent) -> str:
    from ops.events.deadletters import REDRIVEN_BY

    by = event.headers.get(REDRIVEN_BY)
    return f", redriven by {by}" if by else ""


def _full(event: StoredEvent, payload: dict[str, Any]) -> str:
    headers = [f"{name}: {value}" for name, value in event.headers.items() if name != "Nats-Msg-Id"]
    return "\n".join([*headers, "", _indented(payload), ""])


def _indented(payload: dict[str, Any]) -> str:
    return json.dumps(payload, indent=2)


def _moment(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if time else "?"
