"""Two workers of each service: what is sold, and what is refused, is as with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge import test_orders_through_the_edge as through_the_edge
from tests.faults.test_kill import TWO_OF_EACH
from tests.running import running_mesh


@pytest.mark.timeout(180)
async def test_buyers_get_what_there_is_and_never_more(tmp_path: Path) -> None:
    async with running_mesh(tmp_path / "state", *TWO_OF_EACH, environment={"MESH_EDGE_RATE_PER_CLIENT": "0"}) as mesh:
        assert {"order-1", "order-2", "product-2", "payment-2", "customer-2"} <= set(await mesh.processes())
        await through_the_edge.test_two_hundred_buyers_of_fifty_get_exactly_fifty(mesh)
        await through_the_edge.test_what_declined_buyers_free_is_sold_to_others_and_never_more(mesh)
        await through_the_edge.test_an_order_of_three_lines_goes_from_json_to_confirmed(mesh)
