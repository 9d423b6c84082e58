"""Errors ↔ google.rpc.Status: the error that a service sends is the one that its caller gets."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BRANCHES, Code, DeadlineExceeded, Internal, MeshError, NotFound, Unavailable, Violation
from mesh.rpc import status

TEXT = st.text(max_size=20)
ERRORS = st.builds(
    lambda branch, message, reason, metadata, violations, retry_after: branch(
        message, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after
    ),
    st.sampled_from(sorted(BRANCHES.values(), key=lambda branch: branch.code)),
    TEXT,
    st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.lists(st.builds(Violation, TEXT, TEXT), max_size=3),
    st.none() | st.integers(0, 3_600_000).map(lambda milliseconds: milliseconds / 1000),
)


@given(ERRORS)
def test_error_survives_the_conversion_to_a_status_and_back(error: MeshError) -> None:
    sent = status_pb2.Status.FromString(status.to_status(error).SerializeToString())
    back = status.from_status(sent)
    assert type(back) is type(error)
    for field in ("code", "message", "reason", "metadata", "violations", "retry_after"):
        assert getattr(back, field) == getattr(error, field)


def test_status_with_a_thousand_violations_fits_into_the_headers() -> None:
    for length in (1, 100, 4_000):
        violations = [Violation(f"items[{number}]", "x" * length) for number in range(1000)]
        sent = status.to_status(Unavailable("y" * 5_000, violations=violations, retry_after=1.5))
        assert sent.ByteSize() <= status.MAX_STATUS_BYTES
        assert status.from_status(sent).violations[:1] == (violations[0],)
        assert status.from_status(sent).retry_after == 1.5


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_branch_and_its_code_on_the_transport(code: Code) -> None:
    assert BRANCHES[code].code is code
    assert status.grpc_code(status_pb2.Status(code=code)).name == code.name


def test_subclass_of_a_branch_is_sent_as_the_branch_with_its_reason() -> None:
    class ThingNotFound(NotFound):
        reason = "THING_NOT_FOUND"

    sent = status.to_status(ThingNotFound("there is no thing", metadata={"thingId": "1"}))
    info = error_details_pb2.ErrorInfo()
    assert sent.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("THING_NOT_FOUND", "commerce", {"thingId": "1"})
    assert len(sent.details) == 1, "no empty details"
    back = status.from_status(sent)
    assert (type(back), back.reason) == (NotFound, "THING_NOT_FOUND")


@pytest.mark.parametrize("code", [1, 2, 11, 15, 99])
def test_code_that_the_mesh_does_not_use_is_a_fault(code: int) -> None:
    assert type(status.from_status(status_pb2.Status(code=code, message="odd"))) is Internal


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.CANCELLED, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, Internal),
    ],
)
def test_failure_of_the_transport_becomes_an_error_of_the_mesh(code: grpc.StatusCode, kind: type[MeshError]) -> None:
    assert type(status.from_rpc_error(AioRpcError(code, Metadata(), Metadata()), "order")) is kind


def test_error_of_a_service_has_priority_over_the_error_of_the_transport() -> None:
    said = status.to_status(NotFound("there is no order", reason="ORDER_NOT_FOUND"))
    failure = AioRpcError(grpc.StatusCode.NOT_FOUND, Metadata(), Metadata(*status.trailers(said)))
    assert status.from_rpc_error(failure, "order").reason == "ORDER_NOT_FOUND"
