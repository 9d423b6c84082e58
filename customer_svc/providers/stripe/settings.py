"""The settings of the provider `stripe`. They are read whether or not it is switched on, so Stripe's SDK is not."""

from __future__ import annotations

import os

from pydantic import AnyHttpUrl, Field, SecretStr

from mesh.settings import DatabaseSettings, SettingsInvalid


class StripeSettings(DatabaseSettings):
    """The settings of the provider `stripe`."""

    stripe_secret_key: SecretStr = SecretStr("")
    """The secret API key of the Stripe account, `sk_…` or, restricted, `rk_…`. Required with provider `stripe`."""
    stripe_api_url: AnyHttpUrl = AnyHttpUrl("https://api.stripe.com")
    """Where Stripe's API is."""
    stripe_timeout: float = Field(default=20.0, gt=0)
    """Seconds after which a request to Stripe is given up, if the call is not given up before."""

    def require_valid(self) -> None:
        """Raise SettingsInvalid unless the secret key is there, and the SDK prints no secrets."""
        faults = []
        if not self.stripe_secret_key.get_secret_value().strip():
            faults.append("MESH_STRIPE_SECRET_KEY: required with the provider stripe")
        if os.environ.get("STRIPE_LOG"):
            faults.append("STRIPE_LOG: must not be set, Stripe's SDK would print secrets")
        if faults:
            raise SettingsInvalid("\n".join(faults))
