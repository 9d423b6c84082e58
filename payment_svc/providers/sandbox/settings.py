"""The settings of the sandbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from mesh.settings import DatabaseSettings, split_list


class SandboxSettings(DatabaseSettings):
    """The settings of the sandbox. Its record is in the database of the service."""

    sandbox_connections: int = Field(default=4, ge=2)
    """The most database connections of the sandbox provider, beside the service's own."""
    sandbox_slow_seconds: float = Field(default=2.0, ge=0)
    """How long the sandbox provider takes to answer for `tok_slow`."""
    sandbox_action_seconds: float = Field(default=5.0, ge=0)
    """Seconds after which the customer of a payment with `tok_3ds` has authenticated it."""
    sandbox_dispute_seconds: float = Field(default=3.0, ge=0)
    """How long after its charge a payment with `tok_dispute` is disputed."""
    sandbox_webhook_secret: SecretStr = SecretStr("")
    """The secret that signs the webhooks of the sandbox provider. Without it, all of them are refused."""
    sandbox_webhook_url: str = ""
    """Where the sandbox provider sends its webhooks, `https://…/v1/paymentWebhooks/sandbox`. Empty: it sends none."""
    sandbox_currencies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)] = ()
    """The currencies that the sandbox takes, separated by commas; all if empty. The same as in the customer service."""
