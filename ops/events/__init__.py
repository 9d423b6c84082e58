"""Operations on the events of a running mesh: what its streams hold, dead letters and their redrive, and backfills.

The functions print nothing: the `mesh events` command does, and other user interfaces may. All of them begin with
`Streams.of(mesh)`.
"""

from ops.events.backfill import Backfilled, backfill
from ops.events.deadletters import DeadLetters, Group, Redriven, Selection
from ops.events.finding import Details, Filter, find, show
from ops.events.payloads import decoded
from ops.events.streams import Mesh, StoredEvent, Streams
from ops.events.webhooks import ReceivedWebhook, WebhookFilter, find_webhooks, replay_webhooks

__all__ = [
    "Backfilled",
    "DeadLetters",
    "Details",
    "Filter",
    "Group",
    "Mesh",
    "ReceivedWebhook",
    "Redriven",
    "Selection",
    "StoredEvent",
    "Streams",
    "WebhookFilter",
    "backfill",
    "decoded",
    "find",
    "find_webhooks",
    "replay_webhooks",
    "show",
]
