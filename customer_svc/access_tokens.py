"""Access tokens, signed: JWTs that Envoy and every service verify with the public half of the key."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from mesh.ids import new_id
from mesh.rpc.call import Kind
from mesh.rpc.identity import ALGORITHM, ISSUER, SESSION
from mesh.watched_file import WatchedFile

log = structlog.get_logger(__name__)


class AccessTokens:
    """Signs access tokens of customers, with the key that its file holds at that moment."""

    def __init__(self, signing_key: Path, lifetime: timedelta) -> None:
        """`signing_key` holds a private JWK on P-256, with its `kid`. Raises ValueError or OSError otherwise."""
        self._file = WatchedFile(signing_key)
        self._key = self._read()
        self._lifetime = lifetime

    def issue(self, customer_id: UUID, session_id: UUID, now: datetime) -> tuple[str, datetime]:
        """A token that says its bearer is this customer, in this session, and when it expires, a whole second."""
        self._reload()
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

    def _reload(self) -> None:
        """Read the key again if its file was replaced. If it cannot be read, the one of before goes on signing."""
        try:
            if self._file.has_changed():
                self._key = self._read()
                log.info("signing key read again", kid=self._key.kid)
        except (OSError, ValueError):
            # The error may contain the file's content.
            log.error("signing key not read again", file=str(self._file.path))

    def _read(self) -> ECKey:
        content = self._file.read()
        try:
            key = ECKey.import_key(json.loads(content))
        except (JoseError, LookupError, TypeError, ValueError):
            # joserfc does not wrap the errors of its parser, which may contain the file's content.
            raise ValueError(f"{self._file.path} holds no key on P-256") from None
        if not key.is_private or key.kid is None or key.curve_name != "P-256":
            raise ValueError(f"{self._file.path} holds no private key on P-256 with a kid")
        return key
