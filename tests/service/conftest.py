"""What the tests of services share: each module finds the bus as a new mesh does."""

import nats
import pytest

from stack.servers import Servers


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    """No stream and no consumer is left of the modules before: their orders and payments are nobody's here."""
    client = await nats.connect(servers.nats.url)
    try:
        context = client.jetstream()
        for stream in await context.streams_info():
            assert stream.config.name is not None
            await context.delete_stream(stream.config.name)
    finally:
        await client.close()
