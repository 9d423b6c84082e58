"""The manners of the edge in front of the real services."""

from __future__ import annotations

from tests.running import RunningMesh, reason_of


async def test_a_long_query_is_refused_by_its_service_and_not_by_grpc(mesh: RunningMesh) -> None:
    for size in (12_000, 31_000):
        answer = await mesh.call("GET", f"/v1/products?query={'x' * size}")
        assert (answer.status_code, reason_of(answer)) == (400, "VALIDATION_FAILED")
    answer = await mesh.call("GET", f"/v1/products?query={'x' * 33_000}")
    assert (answer.status_code, reason_of(answer)) == (431, "REQUEST_TOO_LARGE")


async def test_head_is_answered_like_get_by_the_services(mesh: RunningMesh) -> None:
    product = await mesh.product(3)
    for path in ("/v1/products?pageSize=1", f"/v1/products/{product}", "/v1/products/unknown", "/healthz"):
        get, head = await mesh.call("GET", path), await mesh.call("HEAD", path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"] == "application/json"


async def test_scripts_of_any_origin_may_call_a_local_mesh(mesh: RunningMesh) -> None:
    answer = await mesh.http.get("/v1/products", headers={"origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
