"""The sandbox: a provider without money, with a durable record of its own beside the service's tables."""

from payment_svc.providers.sandbox.provider import Sandbox
from payment_svc.providers.sandbox.settings import SandboxSettings

__all__ = ["Sandbox", "SandboxSettings"]
