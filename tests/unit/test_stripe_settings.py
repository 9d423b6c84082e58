"""What the provider `stripe` needs before a service starts with it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from customer_svc.providers import stripe as customers
from mesh.settings import SettingsInvalid
from payment_svc.providers import stripe as payments

DATABASE: dict[str, Any] = {"database_url": SecretStr("postgresql:///nowhere")}
KEY, SIGNING = SecretStr("sk_test_planted"), SecretStr("whsec_planted")


def test_all_missing_secrets_are_named_at_once() -> None:
    with pytest.raises(SettingsInvalid) as refusal:
        payments.make(payments.StripeSettings(**DATABASE))
    assert [line.partition(":")[0] for line in str(refusal.value).splitlines()] == [
        "MESH_STRIPE_SECRET_KEY",
        "MESH_STRIPE_WEBHOOK_SECRET",
    ]
    with pytest.raises(SettingsInvalid, match="MESH_STRIPE_SECRET_KEY"):
        customers.make(customers.StripeSettings(**DATABASE, stripe_secret_key=SecretStr(" ")))


def test_sdk_that_would_print_secrets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_LOG", "debug")
    with pytest.raises(SettingsInvalid, match="STRIPE_LOG"):
        payments.make(payments.StripeSettings(**DATABASE, stripe_secret_key=KEY, stripe_webhook_secret=SIGNING))
    with pytest.raises(SettingsInvalid, match="STRIPE_LOG"):
        customers.make(customers.StripeSettings(**DATABASE, stripe_secret_key=KEY))


def test_settings_and_providers_do_not_show_their_secrets() -> None:
    settings = payments.StripeSettings(**DATABASE, stripe_secret_key=KEY, stripe_webhook_secret=SIGNING)
    shown = f"{settings!r} {settings} {payments.make(settings)!r}"
    assert "stripe_api_url" in shown
    assert "planted" not in shown
