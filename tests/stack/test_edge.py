"""The settings of the edge."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gateway.config import Limits
from stack.edge import edge_settings
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
    assert edge_settings(environment).limits() == expected


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("0", 0), ("2", 2)])
def test_the_number_of_trusted_proxies_is_what_the_environment_sets(text: str, expected: int) -> None:
    assert edge_settings({"MESH_EDGE_TRUSTED_PROXIES": text}).edge_trusted_proxies == expected
    assert edge_settings({}).edge_trusted_proxies == 0


@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("true", True), ("1", True), ("false", False), ("0", False)]
)
def test_reflection_and_documents_are_what_the_environment_sets(text: str, expected: bool) -> None:
    assert edge_settings({"MESH_REFLECTION": text}).reflection is expected
    assert edge_settings({"MESH_EDGE_DOCS": text}).edge_docs is expected
    assert edge_settings({}).reflection is edge_settings({}).edge_docs is True


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
    assert edge_settings({"MESH_EDGE_CORS_ORIGINS": text}).edge_cors_origins == origins
    assert edge_settings({}).edge_cors_origins == ("*",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MESH_EDGE_RATE_PER_CLIENT", "many"),
        ("MESH_EDGE_RATE_PER_CLIENT", "-1"),
        ("MESH_EDGE_RATE_PER_ADDRESS", str(2**32)),
        ("MESH_EDGE_TRUSTED_PROXIES", "one"),
        ("MESH_EDGE_TRUSTED_PROXIES", "11"),
        ("MESH_REFLECTION", "perhaps"),
        ("MESH_EDGE_DOCS", "perhaps"),
        ("MESH_EDGE_CORS_ORIGINS", "shop.example"),
        ("MESH_EDGE_CORS_ORIGINS", "https://shop.example/"),
        ("MESH_EDGE_CORS_ORIGINS", "https://a b"),
        ("MESH_EDGE_CORS_ORIGINS", "https://x,'] || true"),
    ],
)
def test_setting_that_is_not_valid_is_named(name: str, text: str) -> None:
    with pytest.raises(StackError, match=f"^{name}"):
        edge_settings({name: text})
