"""The providers that the settings can switch on, by name. This is the only list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from customer_svc.providers import stripe
from customer_svc.providers.protocol import Provider
from customer_svc.providers.sandbox import Sandbox, SandboxSettings
from mesh.settings import split_list


class ProviderSettings(SandboxSettings, stripe.StripeSettings):
    """The settings of all providers. Those of a provider that is not switched on count for nothing."""


PROVIDERS: Mapping[str, Callable[[ProviderSettings], Provider]] = {"sandbox": Sandbox.of, "stripe": stripe.make}
"""The providers: what makes each of them."""


def _require_known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted({*names} - PROVIDERS.keys()):
        raise ValueError(f"{unknown[0]} is no payment provider; there are {', '.join(PROVIDERS)}")
    return names


Names = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(split_list), AfterValidator(_require_known), Field(min_length=1)
]
"""Names of providers, separated by commas in the environment."""
