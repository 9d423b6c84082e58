"""The settings of the edge."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gateway.config import Limits
from stack.edge import allowed_origins, limits, reflection, trusted_proxies
from stack.errors import StackError


@pytest.mark.parametrize(
    ("environment", "per_client", "per_address"),
    [
        ({}, 200, 5000),
        ({"MESH_EDGE_RATE_PER_CLIENT": ""}, 200, 5000),
        ({"MESH_EDGE_RATE_PER_CLIENT": "7"}, 7, 5000),
        ({"MESH_EDGE_RATE_PER_CLIENT": "0"}, 0, 0),
        ({"MESH_EDGE_RATE_PER_ADDRESS": "9"}, 200, 9),
        ({"MESH_EDGE_RATE_PER_ADDRESS": "0"}, 200, 0),
        ({"MESH_EDGE_RATE_PER_CLIENT": "0", "MESH_EDGE_RATE_PER_ADDRESS": "9"}, 0, 9),
    ],
    ids=str,
)
def test_rates_are_what_a_person_sets(environment: Mapping[str, str], per_client: int, per_address: int) -> None:
    expected = Limits(requests_per_second=per_client, requests_per_second_of_address=per_address)
    assert limits(environment) == expected


@pytest.mark.parametrize("name", ["MESH_EDGE_RATE_PER_CLIENT", "MESH_EDGE_RATE_PER_ADDRESS"])
def test_a_rate_that_is_none_is_named(name: str) -> None:
    with pytest.raises(StackError, match=f"{name} is 'many'"):
        limits({name: "many"})


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("0", 0), ("2", 2)])
def test_the_number_of_trusted_proxies_is_what_the_environment_sets(text: str, expected: int) -> None:
    assert trusted_proxies({"MESH_EDGE_TRUSTED_PROXIES": text}) == expected
    assert trusted_proxies({}) == 0


@pytest.mark.parametrize("text", ["one", "-1", "11"])
def test_a_number_of_proxies_that_is_none_is_named(text: str) -> None:
    with pytest.raises(StackError, match=f"MESH_EDGE_TRUSTED_PROXIES is '{text}'"):
        trusted_proxies({"MESH_EDGE_TRUSTED_PROXIES": text})


@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("true", True), ("1", True), ("false", False), ("0", False)]
)
def test_reflection_is_what_the_environment_sets(text: str, expected: bool) -> None:
    assert reflection({"MESH_REFLECTION": text}) is expected
    assert reflection({}) is True


def test_a_setting_of_reflection_that_is_no_boolean_is_named() -> None:
    with pytest.raises(StackError, match="MESH_REFLECTION is 'perhaps'"):
        reflection({"MESH_REFLECTION": "perhaps"})


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        (" , ", ()),
        ("*", ("*",)),
        ("https://shop.example", ("https://shop.example",)),
        (
            "https://shop.example, http://localhost:3000,http://[::1]:80",
            ("https://shop.example", "http://localhost:3000", "http://[::1]:80"),
        ),
    ],
)
def test_origins_are_what_the_environment_sets(text: str, origins: tuple[str, ...]) -> None:
    assert allowed_origins({"MESH_EDGE_CORS_ORIGINS": text}) == origins
    assert allowed_origins({}) == ("*",)


@pytest.mark.parametrize("text", ["shop.example", "https://shop.example/", "https://a b", "https://x,'] || true"])
def test_a_text_that_is_no_origin_is_named(text: str) -> None:
    with pytest.raises(StackError, match="MESH_EDGE_CORS_ORIGINS has"):
        allowed_origins({"MESH_EDGE_CORS_ORIGINS": text})
