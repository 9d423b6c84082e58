"""Access tokens, signed: JWTs that Envoy and every service verify with the public half of the key."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from joserfc import jwt
from joserfc.jwk import ECKey

from mesh.ids import new_id
from mesh.rpc.call import Kind
from mesh.rpc.identity import ALGORITHM, ISSUER, SESSION


class AccessTokens:
    """Signs access tokens of customers."""

    def __init__(self, signing_key: Path, lifetime: timedelta) -> None:
        """`signing_key` holds a private JWK on P-256, with its `kid`. Raises ValueError or OSError otherwise."""
        self._key = ECKey.import_key(json.loads(signing_key.read_text()))
        if not self._key.is_private or self._key.kid is None:
            raise ValueError(f"{signing_key} holds no private key with a kid")
        self._lifetime = lifetime

    def issue(self, customer_id: UUID, session_id: UUID, now: datetime) -> tuple[str, datetime]:
        """A token that says its bearer is this customer, in this session, and when it expires, a whole second."""
        issued = now.replace(microsecond=0)
        expires = issued + self._lifetime
        claims = {
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": str(customer_id),
            "role": Kind.CUSTOMER.value,
            SESSION: str(session_id),
            "iat": int(issued.timestamp()),
            "exp": int(expires.timestamp()),
            "jti": str(new_id()),
        }
        return jwt.encode({"alg": ALGORITHM, "kid": self._key.kid, "typ": "JWT"}, claims, self._key), expires
