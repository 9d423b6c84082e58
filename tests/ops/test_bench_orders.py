"""The orders that a load has placed: a lost order and an order that nobody placed are found."""

from __future__ import annotations

from uuid import UUID, uuid4

from ops.bench.driver import Answers, Tally
from ops.bench.load import accepted_and_there


def tally_of(*orders: UUID, unknown: int = 0) -> Tally:
    answers = Answers()
    answers.times.extend([0.0] * len(orders))
    return Tally(answers={"place": answers}, orders={str(each).encode() for each in orders}, unknown=unknown)


def test_accepted_orders_that_exist_are_right() -> None:
    orders = [uuid4(), uuid4()]
    assert accepted_and_there(tally_of(*orders), orders) == []


def test_a_lost_order_is_named() -> None:
    kept, lost = uuid4(), uuid4()
    assert accepted_and_there(tally_of(kept, lost), [kept]) == [f"1 accepted orders do not exist, such as {lost}"]


def test_two_acceptances_of_one_order_are_found() -> None:
    order = uuid4()
    assert accepted_and_there(tally_of(order, order), [order]) == ["2 orders were accepted under 1 ids"]


def test_an_order_that_no_reply_has_named_is_right_only_if_a_reply_was_lost() -> None:
    more = uuid4()
    assert accepted_and_there(tally_of(unknown=1), [more]) == []
    assert accepted_and_there(tally_of(), [more]) == [f"1 orders exist that no reply has named, such as {more}"]
