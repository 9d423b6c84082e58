"""The mesh's own certificate authority, and the key that signs access tokens.

For one machine and for tests. Everything lives in one folder of PEM and JSON files, readable by its
owner only; every function may be called again and keeps what is still good.
"""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from joserfc import jwt
from joserfc.jwk import ECKey
from uuid_utils import uuid7

from mesh.rpc.identity import ALGORITHM, ISSUER, TRUST_DOMAIN
from stack.files import write_whole

LOCAL_STAFF = UUID("01900000-0000-7000-8000-000000000001")
"""The staff member of local work: always the same one, so that an idempotency key stays theirs."""

_AUTHORITY_LIFETIME = timedelta(days=3650)
_CERTIFICATE_LIFETIME = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The PEM files of one peer: what it presents, and the authority it trusts."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key of access tokens: the private JWK and the JWKS with its public half."""

    private: Path
    jwks: Path


def issue(folder: Path, names: Iterable[str]) -> dict[str, Credentials]:
    """Return credentials for each peer of `names`, made or renewed where needed.

    A certificate is for the URI `spiffe://commerce-mesh/<name>`, the DNS names `<name>` and `localhost`,
    and 127.0.0.1, as a server and as a client. It is renewed 30 days before it expires, and when
    it does not fit its key or its authority, as after a crash in the middle of a renewal.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority(folder)
    issued = {}
    for name in names:
        peer = Credentials(ca=authority.cert, cert=folder / f"{name}.pem", key=folder / f"{name}.key")
        if not _is_good(peer.cert, peer.key, issuer=_certificate(authority.cert)):
            _issue_peer(name, peer, authority)
        issued[name] = peer
    return issued


def make_signing_key(folder: Path) -> SigningKey:
    """Return the ES256 key pair of `folder`, made at the first call."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = SigningKey(private=folder / "signing-key.json", jwks=folder / "jwks.json")
    if not files.private.exists():
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, private=True, auto_kid=True)
        write_whole(files.private, json.dumps(key.as_dict(private=True)).encode())
    public = ECKey.import_key(json.loads(files.private.read_text())).as_dict(private=False)
    jwks = json.dumps({"keys": [public]}).encode()
    if not files.jwks.exists() or files.jwks.read_bytes() != jwks:
        write_whole(files.jwks, jwks)
    return files


def access_token(
    signing_key: Path,
    *,
    role: Literal["customer", "staff"],
    subject: UUID | str,
    lifetime: timedelta = timedelta(minutes=15),
) -> str:
    """Return an access token signed with the private JWK in the file `signing_key`, good from now on."""
    key = ECKey.import_key(json.loads(signing_key.read_text()))
    now = datetime.now(UTC)
    claims = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": str(subject),
        "role": role,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
        "jti": str(uuid7()),
    }
    return jwt.encode({"alg": ALGORITHM, "kid": key.kid, "typ": "JWT"}, claims, key)


def _authority(folder: Path) -> Credentials:
    files = Credentials(ca=folder / "ca.pem", cert=folder / "ca.pem", key=folder / "ca.key")
    if _is_good(files.cert, files.key):
        return files
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Commerce Mesh local authority")])
    certificate = (
        _builder(name, key.public_key(), _AUTHORITY_LIFETIME)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(files, certificate, key)
    return files


def _issue_peer(name: str, peer: Credentials, authority: Credentials) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _certificate(authority.cert)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, key.public_key(), _CERTIFICATE_LIFETIME)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier(TRUST_DOMAIN + name),
                    x509.DNSName(name),
                    x509.DNSName("localhost"),
                    x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
                ]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_private_key(authority.key).public_key()),
            critical=False,
        )
        .sign(_private_key(authority.key), hashes.SHA256())
    )
    _write_pair(peer, certificate, key)


def _builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, lifetime: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(cert: Path, key: Path, issuer: x509.Certificate | None = None) -> bool:
    """Say whether the pair is there, belongs together and under `issuer`, and is far from its end."""
    try:
        certificate = _certificate(cert)
        certificate.verify_directly_issued_by(issuer or certificate)
        fits = certificate.public_key() == _private_key(key).public_key()
    except (FileNotFoundError, InvalidSignature, TypeError, ValueError):
        return False
    return fits and certificate.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} holds no elliptic curve key")
    return key


def _write_pair(files: Credentials, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_whole(files.key, pem)
    write_whole(files.cert, certificate.public_bytes(serialization.Encoding.PEM))
