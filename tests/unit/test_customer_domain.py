"""The rules of customers, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from customer_svc.domain import (
    Customer,
    NewCustomer,
    PaymentMethodMissing,
    PaymentMethodNotFound,
    PaymentMethodSecret,
    ProviderTokenUnknown,
    Session,
    Wallet,
    same_email,
)
from customer_svc.providers.sandbox import Sandbox

NOW = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)


def a_secret(token: str = "tok_visa") -> PaymentMethodSecret:
    return PaymentMethodSecret(uuid4(), uuid4(), "sandbox", token)


def test_two_spellings_of_an_email_address_are_the_same() -> None:
    assert same_email("Ada@Example.COM") == same_email("ada@example.com")
    assert same_email("ada@example.com") != same_email("ada.l@example.com")


def test_a_change_makes_a_new_version() -> None:
    customer = Customer(uuid4(), "a@example.com", "Ada", "", NOW, NOW, version=1)
    later = NOW.replace(year=2027)
    changed = customer.changed(later)
    assert (changed.version, changed.update_time, changed.create_time) == (2, later, NOW)


def test_a_wallet_gives_the_named_one_or_the_default() -> None:
    one, two = a_secret(), a_secret()
    wallet = Wallet(uuid4(), [one, two], default_id=two.id)
    assert wallet.pick(one.id) is one
    assert wallet.pick(None) is two
    with pytest.raises(PaymentMethodNotFound):
        wallet.pick(uuid4())


def test_an_empty_wallet_has_no_default_and_nothing_named() -> None:
    wallet = Wallet(uuid4(), [], default_id=None)
    with pytest.raises(PaymentMethodMissing):
        wallet.pick(None)
    with pytest.raises(PaymentMethodNotFound):
        wallet.pick(uuid4())


def test_no_secret_shows_in_a_representation() -> None:
    values = [
        a_secret("a-secret"),
        NewCustomer("a@example.com", "Ada", "", "a-secret"),
        Session(uuid4(), NOW, "a-secret", "a-secret"),
    ]
    assert "a-secret" not in repr(values)


async def test_a_card_of_the_sandbox_has_not_expired() -> None:
    card = await Sandbox().describe("tok_visa", uuid4(), NOW)
    assert (card.provider, card.brand, card.last4) == ("sandbox", "visa", "4242")
    assert (card.expire_month, card.expire_year) == (12, 2029)


async def test_an_unknown_token_shows_nowhere_in_its_refusal() -> None:
    with pytest.raises(ProviderTokenUnknown) as refusal:
        await Sandbox().describe("tok_of_nobody", uuid4(), NOW)
    error = refusal.value
    assert "tok_of_nobody" not in repr((error, error.message, error.metadata, error.violations, error.__cause__))
