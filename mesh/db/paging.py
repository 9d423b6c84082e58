"""Pages of a list: a bounded size, and a signed page token that contains the start of the next page."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

import orjson

from mesh.errors import InvalidArgument, Violation

T = TypeVar("T")

DEFAULT_SIZE = 50
MAX_SIZE = 500


class Pages:
    """Creates and verifies page tokens. All processes of a service must have the same secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, digest_size=32, person=b"page tokens").digest()

    @staticmethod
    def size(asked: int) -> int:
        """The page size for a requested size. 0 means the default; the contract rejects more than the maximum."""
        return min(asked or DEFAULT_SIZE, MAX_SIZE)

    def token(self, scope: str, position: list[str]) -> str:
        """The token of the page after `position`. `scope` identifies the list: method, filters and order."""
        return self._signed(scope, orjson.dumps(position))

    def position(self, scope: str, token: str) -> list[str] | None:
        """The position after which the page begins, or None for the first page.

        Raises InvalidArgument / PAGE_TOKEN_INVALID if the token was altered or belongs to another list.
        """
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        body = raw[16:]
        # Compare the texts, not the bytes: several base64 texts decode to the same bytes, and only one is valid.
        if not hmac.compare_digest(token.encode(), self._signed(scope, body).encode()):
            raise InvalidArgument(
                "the page token is not of this list: take it from nextPageToken, with the same filters and order",
                reason="PAGE_TOKEN_INVALID",
                violations=[Violation("page_token", "is not a token of this list")],
            )
        position: list[str] = orjson.loads(body)
        return position

    def page(self, scope: str, found: list[T], size: int, position: Callable[[T], list[str]]) -> tuple[list[T], str]:
        """The page of a list, and the token of the next one; empty for the last page.

        `found` are up to `size + 1` items: one more than the page holds shows that there is a next page. `position`
        is the position of an item.
        """
        if len(found) <= size:
            return found, ""
        return found[:size], self.token(scope, position(found[size - 1]))

    def _signed(self, scope: str, body: bytes) -> str:
        signature = blake2b(scope.encode() + b"\0" + body, key=self._key, digest_size=16).digest()
        return base64.urlsafe_b64encode(signature + body).decode().rstrip("=")
