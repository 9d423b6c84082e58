"""Checks the files with keys and certificates. gRPC would report an invalid one as a failure to listen."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.rpc.identity import Tokens
from mesh.settings import SettingsInvalid

if TYPE_CHECKING:
    from mesh.settings import ServiceSettings


def require_valid(settings: ServiceSettings) -> None:
    """Raise SettingsInvalid, with a line for each invalid file, unless all files are valid."""
    faults = [
        *_faults_of_authority(settings.tls_ca),
        *_faults_of_certificate(settings.tls_cert, settings.tls_key),
        *_faults_of_key_set(settings.jwks),
    ]
    if faults:
        raise SettingsInvalid("\n".join(faults))


def _faults_of_authority(ca: Path) -> list[str]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except (ssl.SSLError, OSError):
        return ["MESH_TLS_CA: holds no certificate, PEM"]
    return []


def _faults_of_certificate(cert: Path, key: Path) -> list[str]:
    try:
        # With a password, because OpenSSL would otherwise prompt for the one of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return ["MESH_TLS_KEY: is not the key of the certificate in MESH_TLS_CERT"]
        return ["MESH_TLS_CERT, MESH_TLS_KEY: hold no certificate and private key, PEM, without a password"]
    except OSError:
        return ["MESH_TLS_CERT, MESH_TLS_KEY: cannot be read"]
    return []


def _faults_of_key_set(jwks: Path) -> list[str]:
    try:
        Tokens(jwks)
    except Exception:  # noqa: BLE001  # joserfc does not wrap the errors of its parser
        return ["MESH_JWKS: holds no JSON Web Key Set"]
    return []
