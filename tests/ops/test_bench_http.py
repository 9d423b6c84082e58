"""The load driver's reading of answers: as they come, in whatever pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.http import Answer, NotHttp, order_id, parse, reason

statuses = st.integers(min_value=100, max_value=599)
bodies = st.binary(max_size=200)


def plain(status: int, body: bytes, name: bytes = b"content-length") -> bytes:
    return b"HTTP/1.1 %d Whatever\r\ncontent-type: application/json\r\n%b: %d\r\n\r\n%b" % (
        status,
        name,
        len(body),
        body,
    )


def chunked(status: int, parts: list[bytes]) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*filter(None, parts), b""])
    return b"HTTP/1.1 %d Whatever\r\ntransfer-encoding: chunked\r\n\r\n%b" % (status, chunks)


@given(statuses, bodies, st.sampled_from([b"content-length", b"Content-Length", b"CONTENT-LENGTH"]))
def test_an_answer_is_read_once_it_is_whole_and_not_before(status: int, body: bytes, name: bytes) -> None:
    answer = plain(status, body, name)
    assert [parse(answer[:length]) for length in range(len(answer))] == [None] * len(answer)
    assert parse(answer) == Answer(status, body, is_last=False)


@given(statuses, st.lists(bodies, max_size=4))
def test_a_chunked_answer_is_read_likewise(status: int, parts: list[bytes]) -> None:
    answer = chunked(status, parts)
    assert [parse(answer[:length]) for length in range(len(answer))] == [None] * len(answer)
    assert parse(answer) == Answer(status, b"".join(parts), is_last=False)


@given(bodies, st.binary(min_size=1, max_size=20))
def test_more_than_one_answer_is_nothing_that_was_asked_for(body: bytes, more: bytes) -> None:
    with pytest.raises(NotHttp):
        parse(plain(200, body) + more)


@given(st.binary(min_size=9, max_size=60).filter(lambda data: not data.startswith(b"HTTP/1.1 ")))
def test_what_is_not_http_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(NotHttp):
        parse(data)


def test_an_answer_that_tells_no_length_is_refused() -> None:
    with pytest.raises(NotHttp, match="without a length"):
        parse(b"HTTP/1.1 200 OK\r\n\r\n")


def test_the_last_answer_of_a_connection_says_so() -> None:
    answer = parse(b"HTTP/1.1 503 Overloaded\r\nConnection: close\r\ncontent-length: 0\r\n\r\n")
    assert answer == Answer(503, b"", is_last=True)


def test_the_id_of_an_order_and_the_reason_of_a_refusal_are_found() -> None:
    identity = b"0190a0b0-0000-7000-8000-000000000001"
    body = b'{"id":"%b","status":"ORDER_STATUS_PENDING","items":[{"id":"another"}]}' % identity
    assert order_id(body) == identity
    assert order_id(b'{"code":3}') == b""
    refusal = (
        b'{"code":9,"details":[{"@type":"x"},{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"WHY"}]}'
    )
    assert reason(refusal) == "WHY"
    assert reason(b"upstream connect error") == reason(b"[]") == reason(b'{"code":9}') == ""
