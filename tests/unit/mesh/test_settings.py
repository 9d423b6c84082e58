"""Settings: read once from the environment, with all errors reported together and without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mesh.settings import ServiceSettings, SettingsInvalid, Target, read, secret_bytes


class Some(ServiceSettings):
    """Settings of a service that calls another one."""

    order_target: Target
    """The addresses of the order service."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> pytest.MonkeyPatch:
    for name in ("TLS_CA", "TLS_CERT", "TLS_KEY", "JWKS"):
        (folder / name).touch()
        monkeypatch.setenv(f"MESH_{name}", str(folder / name))
    monkeypatch.setenv("MESH_DATABASE_URL", "postgresql://user:hunter2@/db")
    monkeypatch.setenv("MESH_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("MESH_PAGE_SECRET", "0123456789abcdef")
    monkeypatch.setenv("MESH_ORDER_TARGET", "127.0.0.1:1, 127.0.0.1:2")
    return monkeypatch


def test_settings_are_read_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MESH_LISTEN", "127.0.0.1:40123")
    settings = read(Some)
    assert settings.listen == "127.0.0.1:40123"
    assert settings.order_target == ("127.0.0.1:1", "127.0.0.1:2")
    assert secret_bytes(settings.page_secret) == b"0123456789abcdef"
    assert settings.drain_seconds == 20.0


def test_settings_cannot_be_changed(environment: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    with pytest.raises(ValidationError, match="frozen"):
        read(Some).listen = "elsewhere"


def test_empty_variable_counts_as_missing(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MESH_MAX_IN_FLIGHT", "")
    assert read(Some).max_in_flight == 4096


def test_all_faults_of_the_settings_are_reported_by_their_variables(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("MESH_DATABASE_URL")
    environment.setenv("MESH_JWKS", "/no/such/file")
    environment.setenv("MESH_LOG_LEVEL", "loud")
    environment.setenv("MESH_MAX_IN_FLIGHT", "0")
    environment.setenv("MESH_ORDER_TARGET", " , ")
    with pytest.raises(SettingsInvalid) as refusal:
        read(Some)
    told = {line.partition(":")[0] for line in str(refusal.value).splitlines()}
    assert told == {
        "MESH_DATABASE_URL",
        "MESH_JWKS",
        "MESH_LOG_LEVEL",
        "MESH_MAX_IN_FLIGHT",
        "MESH_ORDER_TARGET",
    }


def test_secrets_are_in_no_error_and_no_representation(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MESH_NATS_URL", "nats://mesh:hunter2@127.0.0.1:4222")
    assert "hunter2" not in repr(read(Some))
    environment.setenv("MESH_PAGE_SECRET", "too short")
    with pytest.raises(SettingsInvalid) as refusal:
        read(Some)
    assert "too short" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("url", ["nats://mesh:hun/ter2@127.0.0.1:4222", "nats://[", "hunter2"], ids=repr)
def test_invalid_nats_url_is_refused_without_being_shown(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("MESH_NATS_URL", url)
    with pytest.raises(SettingsInvalid, match="MESH_NATS_URL") as refusal:
        read(Some)
    assert "hun" not in str(refusal.value)
