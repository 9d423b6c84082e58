"""The settings of the auditor as a program of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh.settings import require_url
from ops.audit.mesh import DATABASES


class AuditSettings(BaseSettings):
    """What the auditor reads. Each field is read from the variable `MESH_` plus its name in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="MESH_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    customer_database_url: SecretStr
    """The URL of the customer service's database, of a role that may read all of it."""
    order_database_url: SecretStr
    """The URL of the order service's database, as above."""
    payment_database_url: SecretStr
    """The URL of the payment service's database, as above. It has the record of the sandbox provider, too."""
    product_database_url: SecretStr
    """The URL of the product service's database, as above."""
    nats_url: Annotated[SecretStr, AfterValidator(require_url)]
    """The URL of NATS, of a user who may read all streams."""
    audit_record: Path | None = None
    """The file in which the last report is kept. Without one, each audit is a full one unless `--since` is given."""


class ConfiguredMesh:
    """The mesh that these settings name."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings

    @property
    def nats_url(self) -> str:
        """A NATS user who may read all streams."""
        return self._settings.nats_url.get_secret_value()

    def audit_url(self, database: str) -> str:
        """The URL of a database, as a role that may read all of it."""
        service = next(name for name, its in DATABASES.items() if its == database)
        url: SecretStr = getattr(self._settings, f"{service}_database_url")
        return url.get_secret_value()
