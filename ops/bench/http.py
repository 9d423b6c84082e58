"""HTTP/1.1 of the load driver: requests put together from parts made beforehand, answers read as far as needed.

A connection has one request under way at a time, so whatever has arrived belongs to one answer.
"""

from __future__ import annotations

import json
from typing import NamedTuple

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_CLOSE = b"\r\nconnection: close"


class NotHttp(Exception):
    """What has arrived is no answer to one request."""


class Answer(NamedTuple):
    """One answer, whole."""

    status: int
    body: bytes
    is_last: bool
    """The server closes the connection after it."""


def parse(received: bytes | bytearray) -> Answer | None:
    """The answer in `received`, or None while it is not there as a whole.

    Raises:
        NotHttp: it is not HTTP/1.1, tells no length, or more has arrived than one answer.
    """
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        if not received.startswith(b"HTTP/1.1 "[: len(received)]):
            raise NotHttp(f"{bytes(received[:40])!r} is no answer")
        return None
    # Names of headers may be in any case. The blank line ends the last one, as the others are ended.
    head = received[: head_end + 2].lower()
    if not head.startswith(b"http/1.1 ") or not head[9:12].isdigit():
        raise NotHttp(f"{bytes(head[:40])!r} is no answer")
    status = int(head[9:12])
    begin = head_end + len(_HEAD_END)
    at = head.find(_LENGTH)
    if at >= 0:
        at += len(_LENGTH)
        end = begin + int(head[at : head.index(b"\r", at)])
        body = received[begin:end]
    elif _CHUNKED in head:
        unwrapped = _chunks(received, begin)
        if unwrapped is None:
            return None
        body, end = unwrapped
    else:
        raise NotHttp("an answer without a length")
    if len(received) < end:
        return None
    if len(received) > end:
        raise NotHttp(f"{len(received) - end} bytes that nobody asked for")
    return Answer(status, bytes(body), _CLOSE in head)


def _chunks(received: bytes | bytearray, begin: int) -> tuple[bytes, int] | None:
    """The body of a chunked answer and where it ends; None while it is not whole. Trailers are not expected."""
    parts = []
    while (line_end := received.find(b"\r\n", begin)) >= 0:
        size = int(received[begin:line_end].partition(b";")[0], 16)
        begin = line_end + 2 + size + 2
        if len(received) < begin:
            return None
        parts.append(bytes(received[line_end + 2 : begin - 2]))
        if size == 0:
            return b"".join(parts), begin
    return None


def order_id(body: bytes) -> bytes:
    """The id in the answer to a placing, a bare order. Empty when there is none."""
    begin = body.find(b'"id":"') + 6
    return body[begin : begin + 36] if begin > 5 else b""


def reason(body: bytes) -> str:
    """The reason of an error answer; empty when it has none."""
    try:
        details = json.loads(body).get("details", [])
    except (ValueError, AttributeError):
        return ""
    return next((str(detail["reason"]) for detail in details if "reason" in detail), "")
