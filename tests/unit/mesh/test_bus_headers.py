"""Headers of received messages are read as nats-py reads them."""

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from mesh.patches.nats_py import NatsClient

_TEXTS = st.text(st.sampled_from("ab-Z\u00e9\u00a0\x1c \t:"), max_size=6).map(str.encode) | st.binary(max_size=4)
_LINES = st.tuples(_TEXTS, st.sampled_from([b":", b": ", b""]), _TEXTS).map(b"".join)


@given(st.lists(_LINES, max_size=6).map(b"\r\n".join))
def test_whatever_comes_is_read_as_the_library_reads_it(raw: bytes) -> None:
    assert NatsClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


def test_a_name_may_be_any_that_is_one_word_and_the_last_of_two_counts() -> None:
    raw = b"ce-id: 1\r\nce-id:2\r\nno name: x\r\nno colon\r\n\xc3\xa9: y\r\nnote:\t a b \r\n\r\n"
    assert NatsClient._parse_header_lines(raw) == {"ce-id": "2", "note": "a b"}
