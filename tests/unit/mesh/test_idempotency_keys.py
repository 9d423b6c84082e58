"""The parts of an idempotency key: its caller, its text, its method and its request."""

from __future__ import annotations

import pytest
from google.type.money_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st

from mesh.db.idempotency import IdempotencyKey, IdempotencyKeyReused, Replay, Retries
from mesh.errors import Code, InvalidArgument
from mesh.rpc.call import ANYBODY, Caller, Kind

ADA, BOB = Caller(Kind.CUSTOMER, "ada"), Caller(Kind.CUSTOMER, "bob")
METHOD = "/commerce.order.v1.OrderService/CreateOrder"
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


def key(text: str = "key", caller: Caller = ADA, method: str = METHOD, request: Money | None = None) -> IdempotencyKey:
    return IdempotencyKey.of(text, caller, method, request or Money(units=1))


def row(stored: IdempotencyKey, reply: bytes = b"reply") -> dict[str, object]:
    return {"method": stored.method, "request_hash": stored.request_hash, "reply": reply}


@given(VISIBLE)
def test_key_of_visible_ascii_characters_is_accepted(text: str) -> None:
    assert len(key(text).digest) == 32


@pytest.mark.parametrize(
    "text", ["", " ", "a b", "a\n", "\nkey", "key\0", "schlüssel", "k" * 256, "\x7f", "key\t"], ids=repr
)
def test_any_other_key_is_refused_with_its_field_named(text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        key(text)
    assert refusal.value.reason == "IDEMPOTENCY_KEY_INVALID"
    assert [violation.field for violation in refusal.value.violations] == ["idempotency-key"]


def test_key_belongs_to_its_caller() -> None:
    others = [ADA, BOB, ANYBODY, Caller(Kind.STAFF, "ada"), Caller(Kind.SERVICE, "ada")]
    assert len({key(caller=caller).digest for caller in others}) == len(others)


def test_boundary_between_caller_and_key_cannot_be_shifted() -> None:
    assert key("bc", Caller(Kind.CUSTOMER, "a")).digest != key("c", Caller(Kind.CUSTOMER, "ab")).digest


def test_same_request_under_the_same_key_is_replayed() -> None:
    outcome = key().outcome(row(key(), b"stored"))  # type: ignore[arg-type]  # a row reads like a mapping
    assert isinstance(outcome, Replay)
    assert outcome.wire == b"stored"


@pytest.mark.parametrize(
    "other",
    [key(request=Money(units=2)), key(method="/commerce.order.v1.OrderService/CancelOrder")],
    ids=["another request", "another method"],
)
def test_another_request_or_method_under_the_same_key_is_refused(other: IdempotencyKey) -> None:
    assert other.digest == key().digest
    outcome = other.outcome(row(key()))  # type: ignore[arg-type]  # a row reads like a mapping
    assert isinstance(outcome, IdempotencyKeyReused)
    assert (outcome.code, outcome.reason) == (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


def test_hash_of_a_request_depends_on_the_key() -> None:
    assert key("one").request_hash != key("two").request_hash


def test_call_is_a_retry_if_its_key_was_received_before() -> None:
    retries = Retries(most=3)

    def among(*texts: str) -> str:
        known = retries.among([key(text) for text in texts])
        return "".join(dict.fromkeys(text for text in texts if key(text) in known))

    assert among("a", "b") == ""
    assert among("b", "c") == "b"
    assert among("d") == ""
    assert among("a") == "", "the oldest is forgotten"
    assert among("b", "c", "d") == "cd", "a key that was received again is newer"
    assert among("e", "e") == "", "duplicates are not retries of each other"
    other = key("e", caller=BOB)
    assert other not in retries
    assert retries.among([other]) == []
    assert other in retries
    assert None not in retries
