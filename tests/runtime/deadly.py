"""A consumer whose process is killed by the message `poison`, and which is started again each time.

It reads what it consumes as JSON and prints a line for each process that has ended. The processes are forks, so each
starts at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

from google.protobuf.wrappers_pb2 import StringValue

from mesh.db.database import Database
from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.cloudevents import Received
from mesh.events.consumers import Consumer, Handler
from mesh.events.relay import Relay
from tests.runtime.process import do

POISON = "poison"


async def consume(database_url: str, nats_url: str, area: str) -> None:
    """Consume until the process is killed."""
    database, bus = Database(database_url), Bus(nats_url, name="deadly")
    units = UnitsOfWork(database, Relay("test", database, bus))
    handlers = {f"commerce.{area}.happened": Handler(StringValue, apply)}
    for part in (database, bus, Consumer("test", area, handlers, bus=bus, units=units, ack_wait=0.5, pause=0.01)):
        await part.start()
    await asyncio.Event().wait()


async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
    """Store the texts of the events, or kill the process."""
    texts = [event.payload.value for event in events]
    if POISON in texts:
        os.kill(os.getpid(), signal.SIGKILL)
    await do(work, *texts)


if __name__ == "__main__":
    where = json.load(sys.stdin)
    while True:
        child = os.fork()
        if not child:
            asyncio.run(consume(**where))
        os.waitpid(child, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()
