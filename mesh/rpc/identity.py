"""Who calls: people by the access token they carry, services by the certificate of their connection."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from mesh.errors import Unauthenticated
from mesh.rpc.call import ANYBODY, GATEWAY, Caller, Kind

if TYPE_CHECKING:
    import grpc

ISSUER = "commerce-mesh"
"""Both `iss` and `aud` of the access tokens."""
ALGORITHM = "ES256"
CLOCK_SKEW_S = 60
"""How far the clock of whoever signed a token may be ahead. When one expires, it is our clock that counts."""
TRUST_DOMAIN = "spiffe://commerce-mesh/"
"""What the URI name in every certificate of the mesh begins with; the rest is the peer's name."""
OUTSIDERS = frozenset({"", GATEWAY, "operator"})
"""Peers that are no service: what they carry in comes from people."""

_REMEMBERED = 20_000


class Tokens:
    """Verifies access tokens: each one once, then from memory until it expires.

    Expiry is checked by the clock of this machine, as the edge and every other reader of a JWT does.
    """

    def __init__(self, jwks: Path) -> None:
        """Raises ValueError or OSError when `jwks` is no file with a JSON Web Key Set."""
        self._keys = KeySet.import_key_set(json.loads(jwks.read_text()))
        self._rules = jwt.JWTClaimsRegistry(
            leeway=CLOCK_SKEW_S,
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": ISSUER},
            sub={"essential": True},
            exp={"essential": True},
            role={"essential": True, "values": [Kind.CUSTOMER.value, Kind.STAFF.value]},
        )
        self._known: dict[str, tuple[Caller, float]] = {}

    def caller(self, authorization: str) -> Caller:
        """The caller behind an `authorization` header; anybody when it is empty.

        Raises Unauthenticated / TOKEN_INVALID for anything else than a valid, unexpired bearer token.
        """
        if not authorization:
            return ANYBODY
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the authorization header must hold a bearer token")
        # The key is the token: a caller can write one header in many ways, each as long as a header may be.
        token = credentials.strip()
        known = self._known.get(token)
        if known is None:
            known = self._verified(token)
            if len(self._known) >= _REMEMBERED:
                self._forget()
            self._known[token] = known
        caller, expires = known
        if expires <= time.time():  # noqa: TID251  # see above
            raise Unauthenticated("the access token has expired")
        return caller

    def _verified(self, token: str) -> tuple[Caller, float]:
        try:
            claims: dict[str, Any] = jwt.decode(token, self._keys, algorithms=[ALGORITHM]).claims
            self._rules.validate(claims)
            return Caller(Kind(claims["role"]), str(claims["sub"])), float(claims["exp"])
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated("the access token is not valid") from error

    def _forget(self) -> None:
        now = time.time()  # noqa: TID251
        self._known = {token: known for token, known in self._known.items() if known[1] > now}
        if len(self._known) >= _REMEMBERED:
            self._known.clear()


def peer_name(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The mesh name in the peer's verified certificate; empty when there is none."""
    if context.peer_identity_key() != "x509_subject_alternative_name":
        return ""
    for name in context.peer_identities() or ():
        text = name.decode()
        if text.startswith(TRUST_DOMAIN):
            return text.removeprefix(TRUST_DOMAIN)
    return ""
