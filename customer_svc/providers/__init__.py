"""Payment providers, as far as customers are concerned: what card is behind a token, and what currencies it pays in."""

from customer_svc.providers.bounded import Bounded
from customer_svc.providers.protocol import Provider

__all__ = ["Bounded", "Provider"]
