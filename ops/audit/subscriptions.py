"""Which consumer applies which events: the tables in the `consumers.py` of each service."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from mesh.events.cloudevents import stream_of
from ops.audit.mesh import DATABASES


class Subscription(NamedTuple):
    """A durable consumer of a stream."""

    consumer: str
    service: str
    """The service whose inbox records what it has applied."""
    stream: str
    source: str
    """The service that writes the events."""
    types: frozenset[str]


def subscriptions(services: Iterable[str] = DATABASES) -> list[Subscription]:
    """The consumers of all services."""
    return [found for service in services for found in _of(service)]


def _of(service: str) -> Iterator[Subscription]:
    if find_spec(f"{service}_svc.consumers") is None:
        return
    module = import_module(f"{service}_svc.consumers")
    for name, table in vars(module).items():
        if inspect.isfunction(table) and table.__module__ == module.__name__ and name[0] != "_":
            handlers = table(*(_Named() for _ in inspect.signature(table).parameters))
            payloads = [handler.payload for handler in handlers.values()]
            # commerce.<source>.<event>, and consumers are named <service>-<source>.
            source = next(iter(handlers)).split(".")[1]
            yield Subscription(f"{service}-{source}", service, stream_of(payloads[0]), source, frozenset(handlers))


class _Named:
    """In place of the use cases of a service."""

    def __getattr__(self, name: str) -> str:
        return name
