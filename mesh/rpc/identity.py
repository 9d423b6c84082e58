"""The identity of callers: people have an access token, services the certificate of their connection."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from mesh.errors import Unauthenticated
from mesh.rpc.call import ANYBODY, GATEWAY, Caller, Kind
from mesh.watched_file import WatchedFile

if TYPE_CHECKING:
    import grpc

ISSUER = "commerce-mesh"
"""Both `iss` and `aud` of the access tokens."""
ALGORITHM = "ES256"
SESSION = "sid"
"""The claim with the id of the session to which a token belongs. A token that no sign-in has issued lacks it."""
CLOCK_SKEW_S = 60
"""The seconds by which the clock of the issuer of a token may be ahead. The expiry of tokens has no tolerance."""
TRUST_DOMAIN = "spiffe://commerce-mesh/"
"""The prefix of the URI name in every certificate of the mesh. The peer's name follows."""
OUTSIDERS = frozenset({"", GATEWAY, "operator"})
"""Peers that are not services. Their calls come from people."""

_REMEMBERED = 20_000
_NOBODY = (ANYBODY, None)

log = structlog.get_logger(__name__)


class _Known(NamedTuple):
    """What a valid token says."""

    caller: Caller
    expires: float
    session: str
    """Empty if the token belongs to no session."""


class Tokens:
    """Verifies access tokens. A valid token is remembered until it expires.

    Expiry is checked with the clock of this machine, as by the edge and every other reader of a JWT.
    """

    def __init__(self, jwks: Path, *, revoked: Collection[str] = ()) -> None:
        """`revoked` are the ids of sessions and subjects whose tokens are refused; it may change, and so may the file.

        Raises ValueError or OSError if `jwks` is not a file with a JSON Web Key Set.
        """
        self._revoked = revoked
        self._jwks = WatchedFile(jwks)
        self._keys = KeySet.import_key_set(json.loads(self._jwks.read()))
        self._rules = jwt.JWTClaimsRegistry(
            leeway=CLOCK_SKEW_S,
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": ISSUER},
            sub={"essential": True},
            exp={"essential": True},
            role={"essential": True, "values": [Kind.CUSTOMER.value, Kind.STAFF.value]},
        )
        self._known: dict[str, _Known] = {}

    @property
    def remembered(self) -> int:
        """The number of tokens that need no second verification."""
        return len(self._known)

    def caller(self, authorization: str) -> Caller:
        """The caller that an `authorization` header identifies; `ANYBODY` if it is empty. Raises as `verified`."""
        return self.verified(authorization)[0]

    def verified(self, authorization: str, *, ended_subject: bool = False) -> tuple[Caller, float | None]:
        """The caller that an `authorization` header identifies, and when its token expires, in seconds since the epoch.

        `ANYBODY` and None if the header is empty.
        Raises Unauthenticated / TOKEN_INVALID unless it contains a valid bearer token that has neither expired nor been
        revoked. With `ended_subject`, a token is valid also if all tokens of its subject are revoked.
        """
        if not authorization:
            return _NOBODY
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the authorization header must contain a bearer token")
        # The token is the key of the cache: a caller can write one header in many ways, each of the maximum length.
        token = credentials.strip()
        known = self._known.get(token)
        if known is None:
            known = self._decoded(token)
            if len(self._known) >= _REMEMBERED:
                self._forget()
            self._known[token] = known
        if known.expires <= time.time():  # noqa: TID251  # see above
            raise Unauthenticated("the access token has expired")
        if self._revoked and (
            known.session in self._revoked or (known.caller.id in self._revoked and not ended_subject)
        ):
            raise Unauthenticated("the access token is revoked: its session has ended")
        return known.caller, known.expires

    def _decoded(self, token: str) -> _Known:
        self._reload_keys()
        try:
            claims: dict[str, Any] = jwt.decode(token, self._keys, algorithms=[ALGORITHM]).claims
            self._rules.validate(claims)
            caller = Caller(Kind(claims["role"]), str(claims["sub"]))
            return _Known(caller, float(claims["exp"]), str(claims.get(SESSION, "")))
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated("the access token is not valid") from error

    def _reload_keys(self) -> None:
        """Read the keys again if their file was replaced. If they cannot be read, the ones of before stay."""
        try:
            if not self._jwks.has_changed():
                return
            self._keys = KeySet.import_key_set(json.loads(self._jwks.read()))
        except Exception:  # joserfc does not wrap the errors of its parser
            log.exception("keys of access tokens not read again", file=str(self._jwks.path))
        else:
            # Tokens of a key that is gone are no longer accepted.
            self._known.clear()
            log.info("keys of access tokens read again", keys=len(self._keys.keys))

    def _forget(self) -> None:
        now = time.time()  # noqa: TID251
        self._known = {token: known for token, known in self._known.items() if known.expires > now}
        if len(self._known) >= _REMEMBERED:
            self._known.clear()


def peer_name(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name in the peer's verified certificate; empty if there is none."""
    if context.peer_identity_key() != "x509_subject_alternative_name":
        return ""
    for name in context.peer_identities() or ():
        text = name.decode()
        if text.startswith(TRUST_DOMAIN):
            return text.removeprefix(TRUST_DOMAIN)
    return ""
