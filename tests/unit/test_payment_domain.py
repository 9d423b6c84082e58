"""The payment's life, without anything around it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_svc.domain import (
    LONGEST_BACKOFF,
    AmountInvalid,
    CurrencyMismatch,
    Due,
    EtagMismatch,
    NewPayment,
    NewRefund,
    Payment,
    PaymentStateRefused,
    PaymentStatus,
    ProviderContradiction,
    Refund,
    RefundContradiction,
    RefundExceedsPayment,
    RefundStatus,
    amount_of,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
UNTIL = NOW + timedelta(seconds=10)
AMOUNT = Decimal("12.50")


def new(amount: Decimal = AMOUNT) -> NewPayment:
    return NewPayment(uuid4(), uuid4(), amount, "EUR", "sandbox", uuid4(), "tok_visa")


def pending() -> Payment:
    return Payment.begin(uuid4(), new(), "", NOW, UNTIL)


def cancelled() -> Payment:
    return pending().request_cancel("", NOW, UNTIL)


def captured() -> Payment:
    return pending().capture("ch_1", NOW, UNTIL)


def free() -> Payment:
    return Payment.free(uuid4(), new(Decimal(0)), "", NOW)


def test_payment_of_zero_is_captured_without_a_provider_and_voided_when_it_is_called_off() -> None:
    assert (free().status, free().provider, free().token, free().due) == (PaymentStatus.CAPTURED, "", "", None)
    assert free().process_time == NOW
    voided = free().request_cancel("", NOW, UNTIL)
    assert (voided.status, voided.due, voided.version) == (PaymentStatus.VOIDED, None, 3)
    assert voided.request_cancel("", NOW, UNTIL) == voided
    early = Payment.called_off(uuid4(), new(Decimal(0)), "", NOW)
    assert (early.status, early.due) == (PaymentStatus.VOIDED, None)


@pytest.mark.parametrize(("amount", "currency"), [(Decimal("-0.01"), "EUR"), (Decimal(0), ""), (Decimal(1), "")])
def test_less_than_nothing_or_an_amount_without_currency_is_not_charged(amount: Decimal, currency: str) -> None:
    with pytest.raises(AmountInvalid):
        NewPayment(uuid4(), uuid4(), amount, currency, "sandbox", uuid4())


def test_what_is_due_follows_from_the_state() -> None:
    assert pending().due is Due.CHARGE
    assert cancelled().due is Due.VOID
    assert captured().due is None
    assert captured().request_cancel("", NOW, UNTIL).due is None
    assert cancelled().capture("ch_1", NOW, UNTIL).due is None
    assert pending().decline("no", NOW).due is None
    assert cancelled().void(NOW).due is None


def waiting() -> Payment:
    return pending().require_action("pi_1", NOW)


def test_payment_that_requires_action_is_looked_up_until_it_has_an_outcome() -> None:
    payment = waiting()
    assert (payment.status, payment.due) == (PaymentStatus.REQUIRES_ACTION, Due.LOOKUP)
    assert (payment.provider_reference, payment.token, payment.process_time) == ("pi_1", "", None)
    again = payment.require_action("pi_1", NOW)
    assert again.version == payment.version
    assert again.next_attempt_time is not None
    assert payment.next_attempt_time is not None
    captured_later = again.capture("pi_1", NOW, UNTIL)
    assert (captured_later.status, captured_later.due, captured_later.process_time) == (
        PaymentStatus.CAPTURED,
        None,
        NOW,
    )
    assert payment.decline("no", NOW).status is PaymentStatus.DECLINED
    off = payment.request_cancel("", NOW, UNTIL)
    assert (off.due, off.void(NOW).status) == (Due.VOID, PaymentStatus.VOIDED)
    assert off.capture("pi_1", NOW, UNTIL).cancel_requested


def test_action_that_is_required_too_late_changes_nothing() -> None:
    for payment in (cancelled(), captured(), pending().decline("no", NOW), cancelled().void(NOW)):
        assert payment.require_action("pi_1", NOW) is payment


def test_the_token_is_forgotten_with_the_outcome_and_never_shown() -> None:
    assert pending().token == "tok_visa"
    assert captured().token == ""
    assert "tok_visa" not in repr(pending())


def test_the_key_depends_on_the_payment_alone() -> None:
    payment = pending()
    moved = payment.postpone(NOW).request_cancel("", NOW, UNTIL).capture("ch_1", NOW, UNTIL)
    assert moved.provider_key == payment.provider_key != pending().provider_key


def test_a_decline_after_a_cancel_request_counts_as_voided() -> None:
    assert pending().decline("no", NOW).status is PaymentStatus.DECLINED
    voided = cancelled().decline("no", NOW)
    assert (voided.status, voided.failure_reason) == (PaymentStatus.VOIDED, "no")


def test_the_same_answer_again_changes_nothing() -> None:
    payment = captured()
    assert payment.capture("ch_1", NOW, UNTIL) is payment
    declined, voided = pending().decline("no", NOW), cancelled().void(NOW)
    assert declined.decline("no", NOW) is declined
    assert voided.void(NOW) is voided
    asked = cancelled()
    assert asked.request_cancel("", NOW, UNTIL) is asked


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: captured().capture("ch_2", NOW, UNTIL),
        lambda: captured().decline("no", NOW),
        lambda: captured().void(NOW),
        lambda: pending().void(NOW),
        lambda: waiting().void(NOW),
        lambda: waiting().refund(AMOUNT, NOW),
        lambda: pending().decline("no", NOW).capture("ch_1", NOW, UNTIL),
        lambda: cancelled().void(NOW).capture("ch_1", NOW, UNTIL),
        lambda: pending().refund(AMOUNT, NOW),
        lambda: captured().refund(AMOUNT + 1, NOW),
        lambda: captured().refund(Decimal(0), NOW),
    ],
)
def test_an_answer_that_cannot_be_raises(impossible: Callable[[], Payment]) -> None:
    with pytest.raises(ProviderContradiction):
        impossible()


def test_money_is_refunded_in_parts_and_never_above_the_capture() -> None:
    payment = captured().refund(Decimal(5), NOW)
    assert (payment.status, payment.refundable) == (PaymentStatus.PARTIALLY_REFUNDED, Decimal("7.50"))
    payment = payment.refund(payment.refundable, NOW)
    assert (payment.status, payment.refundable) == (PaymentStatus.REFUNDED, Decimal(0))


def test_pauses_grow_to_a_limit_and_begin_anew_with_the_next_step() -> None:
    payment, pauses = pending(), []
    for _ in range(40):
        payment = payment.postpone(NOW)
        assert payment.next_attempt_time is not None
        pauses.append(payment.next_attempt_time - NOW)
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[1]
    assert pauses[-1] == LONGEST_BACKOFF
    assert payment.request_cancel("", NOW, UNTIL).attempts == 0


def test_an_order_is_charged_what_it_was_charged_and_not_when_called_off() -> None:
    wanted = new()
    payment = Payment.begin(uuid4(), wanted, "", NOW, UNTIL)
    payment.require_same(wanted)
    with pytest.raises(PaymentStateRefused, match="already"):
        payment.require_same(NewPayment(wanted.order_id, wanted.customer_id, AMOUNT + 1, "EUR", "sandbox", uuid4()))
    with pytest.raises(PaymentStateRefused, match="cancelled"):
        payment.request_cancel("", NOW, UNTIL).require_same(wanted)


def refund_of(payment: Payment, amount: Decimal) -> Refund:
    begun = Refund.begin(
        uuid4(), payment, amount, reason="broken", actor="staff:1", traceparent="", now=NOW, until=UNTIL
    )
    assert begun.provider_key == f"refund-{begun.id}"
    return begun


@pytest.mark.parametrize(
    ("wanted", "pending_amount", "amount"),
    [(None, 0, AMOUNT), (None, 5, AMOUNT - 5), (5, 5, 5), (AMOUNT, 0, AMOUNT)],
)
def test_refund_is_of_the_amount_asked_for_or_of_all_that_is_left(
    wanted: Decimal | None, pending_amount: int, amount: Decimal
) -> None:
    payment = captured()
    under_way = [refund_of(payment, Decimal(pending_amount))] if pending_amount else []
    assert amount_of(NewRefund(payment.id, wanted, "EUR", "broken"), payment, under_way) == amount


@pytest.mark.parametrize(
    ("payment", "wanted", "currency", "etag", "refusal"),
    [
        (captured(), AMOUNT + Decimal("0.01"), "EUR", "", RefundExceedsPayment),
        (captured().refund(AMOUNT, NOW), None, "EUR", "", RefundExceedsPayment),
        (free(), None, "EUR", "", RefundExceedsPayment),
        (captured(), Decimal(1), "USD", "", CurrencyMismatch),
        (captured(), Decimal(1), "EUR", "1", EtagMismatch),
        (pending(), None, "EUR", "", PaymentStateRefused),
        (pending().decline("no", NOW), Decimal(1), "EUR", "", PaymentStateRefused),
    ],
)
def test_refund_that_cannot_be_made_is_refused_by_name(
    payment: Payment, wanted: Decimal | None, currency: str, etag: str, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        amount_of(NewRefund(payment.id, wanted, currency, "broken", etag), payment, [])


def test_refund_of_another_amount_than_asked_for_contradicts_the_books() -> None:
    begun = refund_of(captured(), Decimal(5))
    assert begun.succeed("re_1", Decimal(5), NOW).status is RefundStatus.SUCCEEDED
    with pytest.raises(RefundContradiction):
        begun.succeed("re_1", Decimal(6), NOW)


STEPS: list[Callable[[Payment], Payment]] = [
    lambda payment: payment.request_cancel("", NOW, UNTIL),
    lambda payment: payment.capture("ch_1", NOW, UNTIL),
    lambda payment: payment.decline("no", NOW),
    lambda payment: payment.void(NOW),
    lambda payment: payment.refund(Decimal(5), NOW),
    lambda payment: payment.refund(payment.refundable, NOW),
    lambda payment: payment.postpone(NOW) if payment.due else payment,
]


@given(st.lists(st.sampled_from(STEPS), max_size=12))
def test_whatever_is_said_in_whatever_order_the_books_stay_right(steps: list[Callable[[Payment], Payment]]) -> None:
    payment = pending()
    for step in steps:
        try:
            after = step(payment)
        except ProviderContradiction:
            continue
        assert after.version >= payment.version
        assert not (payment.cancel_requested and not after.cancel_requested)
        payment = after
        assert 0 <= payment.refunded_amount <= payment.amount
        assert (payment.status is PaymentStatus.REFUNDED) == (payment.refunded_amount == payment.amount)
        # What is due is never forgotten, and what is final is never taken up.
        assert (payment.next_attempt_time is not None) == (payment.due is not None)
        assert (payment.process_time is None) == (payment.status is PaymentStatus.PENDING)
        assert payment.token == "" or payment.status is PaymentStatus.PENDING
