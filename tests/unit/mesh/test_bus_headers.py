"""Headers of received messages are read as nats-py reads them."""

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from mesh.patches.nats_py import NatsClient

_TEXTS = st.text(st.sampled_from("ab-Z\u00e9\u00a0\x1c \t:"), max_size=6).map(str.encode) | st.binary(max_size=4)
_LINES = st.tuples(_TEXTS, st.sampled_from([b":", b": ", b""]), _TEXTS).map(b"".join)


@given(st.lists(_LINES, max_size=6).map(b"\r\n".join))
def test_headers_are_parsed_like_by_the_library(raw: bytes) -> None:
    assert NatsClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


def test_header_name_is_any_single_word_and_the_last_value_counts() -> None:
    raw = b"ce-id: 1\r\nce-id:2\r\nno name: x\r\nno colon\r\n\xc3\xa9: y\r\nnote:\t a b \r\n\r\n"
    assert NatsClient._parse_header_lines(raw) == {"ce-id": "2", "note": "a b"}
