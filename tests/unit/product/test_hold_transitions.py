"""The states of a hold: every transition, and what two of them in one batch come to."""

from __future__ import annotations

from uuid import uuid4

import pytest

from product_svc.domain import HoldState, resolve
from tests.unit.product.things import hold

HELD, COMMITTED, RELEASED, RETURNED = HoldState
TRANSITIONS = {
    "commit": {HELD: COMMITTED, COMMITTED: COMMITTED, RELEASED: RELEASED, RETURNED: RETURNED},
    "release": {HELD: RELEASED, COMMITTED: RETURNED, RELEASED: RELEASED, RETURNED: RETURNED},
}


@pytest.mark.parametrize("operation", TRANSITIONS)
@pytest.mark.parametrize("state", HoldState)
def test_hold_in_each_state_is_committed_and_released(operation: str, state: HoldState) -> None:
    before = hold({1: 2, 2: 1}, state)
    after = before.commit() if operation == "commit" else before.release()
    assert after == before._replace(state=TRANSITIONS[operation][state])
    assert (after is before) == (after.state is state), "only a transition makes a new hold"


@pytest.mark.parametrize("state", HoldState)
def test_order_that_is_committed_and_released_in_one_batch_is_released_last(state: HoldState) -> None:
    only = hold({1: 2}, state)
    resolution = resolve({only.order_id: only}, commit=[only.order_id], release=[only.order_id])
    path = {HELD: [COMMITTED, RETURNED], COMMITTED: [RETURNED], RELEASED: [], RETURNED: []}[state]
    assert [step.state for step in resolution.steps] == path
    assert resolution.states == {only.order_id: [state, *path][-1]}


def test_orders_named_twice_are_resolved_once_and_those_without_a_hold_are_passed_over() -> None:
    sold, freed, kept = hold({1: 1}), hold({1: 2}), hold({1: 3})
    holds = {each.order_id: each for each in (sold, freed, kept)}
    resolution = resolve(holds, commit=[sold.order_id, uuid4(), sold.order_id], release=[freed.order_id] * 2)
    assert [(step.order_id, step.state) for step in resolution.steps] == [
        (sold.order_id, COMMITTED),
        (freed.order_id, RELEASED),
    ]
    assert resolution.states == {sold.order_id: COMMITTED, freed.order_id: RELEASED, kept.order_id: HELD}
    assert resolution.holds[kept.order_id] is kept
