"""Pages of a list: a size within bounds, and a token that says where the next page begins and cannot be forged."""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b

import orjson

from mesh.errors import InvalidArgument, Violation

DEFAULT_SIZE = 50
MAX_SIZE = 500


class Pages:
    """Makes and reads page tokens. All processes of a service share the secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, digest_size=32, person=b"page tokens").digest()

    @staticmethod
    def size(asked: int) -> int:
        """The page size for what was asked: 0 is the default, the contract refuses more than the maximum."""
        return min(asked or DEFAULT_SIZE, MAX_SIZE)

    def token(self, scope: str, position: list[str]) -> str:
        """The token of the page after `position` in the list that `scope` names (method, filters and order)."""
        return self._signed(scope, orjson.dumps(position))

    def position(self, scope: str, token: str) -> list[str] | None:
        """Where the page begins; none for the first one.

        Raises InvalidArgument / PAGE_TOKEN_INVALID for a token that was changed, or made for another list.
        """
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        body = raw[16:]
        # The texts are compared: base64 has more than one for the same bytes, and only ours is a token.
        if not hmac.compare_digest(token.encode(), self._signed(scope, body).encode()):
            raise InvalidArgument(
                "the page token is not of this list: take it from nextPageToken, with the same filters and order",
                reason="PAGE_TOKEN_INVALID",
                violations=[Violation("page_token", "is not a token of this list")],
            )
        position: list[str] = orjson.loads(body)
        return position

    def _signed(self, scope: str, body: bytes) -> str:
        signature = blake2b(scope.encode() + b"\0" + body, key=self._key, digest_size=16).digest()
        return base64.urlsafe_b64encode(signature + body).decode().rstrip("=")
