"""The mesh's own certificate authority, and the key that signs access tokens.

For one machine and for tests. Everything lives in one folder of PEM and JSON files, readable by its
owner only; every function may be called again and keeps what is still good.
"""

import fcntl
import ipaddress
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
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

LONGEST_TOKEN = timedelta(days=30)
"""The longest lifetime of an access token."""

_RETIRED_KEY_KEPT = LONGEST_TOKEN + timedelta(days=1)
"""The time in which tokens of a key are accepted after another one has taken its place."""

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
    """The key of access tokens: the private JWK, and the JWKS with all keys whose tokens are accepted."""

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
    """Return the ES256 key pair of `folder`, made at the first call. The JWKS drops keys whose tokens have expired."""
    with _locked(folder) as keys:
        if not keys.current.exists():
            _make_key(keys.current)
        keys.publish()
    return SigningKey(keys.current, keys.jwks)


def make_next_signing_key(folder: Path) -> Path:
    """Make a key that will be the signing key, and add it to the JWKS; its private JWK.

    A second call returns the same key, until `use_next_signing_key` is called.
    """
    with _locked(folder) as keys:
        if not keys.next.exists():
            _make_key(keys.next)
        keys.publish()
    return keys.next


def use_next_signing_key(folder: Path) -> None:
    """Sign with the next key from now on, if there is one. Tokens of the one before are accepted until they expire."""
    with _locked(folder) as keys:
        if keys.next.exists():
            keys.retire()
            keys.next.replace(keys.current)
        keys.publish()


@dataclass(frozen=True, slots=True)
class _SigningKeys:
    """The files of the keys. The JWKS follows from the others, so an interrupted change can be repeated."""

    folder: Path

    @property
    def current(self) -> Path:
        return self.folder / "signing-key.json"

    @property
    def next(self) -> Path:
        return self.folder / "next-signing-key.json"

    @property
    def retired(self) -> Path:
        """A list of public keys, each with the time when it was retired."""
        return self.folder / "retired-keys.json"

    @property
    def jwks(self) -> Path:
        return self.folder / "jwks.json"

    def publish(self) -> None:
        """Write the JWKS if it changes."""
        keys = [_public_jwk(path) for path in (self.current, self.next) if path.exists()]
        keys += [each["key"] for each in self._retired()]
        by_id = {key["kid"]: key for key in keys}
        content = json.dumps({"keys": list(by_id.values())}).encode()
        if not self.jwks.exists() or self.jwks.read_bytes() != content:
            write_whole(self.jwks, content)

    def retire(self) -> None:
        """Keep the public half of the current key."""
        retired = [*self._retired(), {"key": _public_jwk(self.current), "retireTime": datetime.now(UTC).isoformat()}]
        write_whole(self.retired, json.dumps(retired).encode())

    def _retired(self) -> list[dict[str, Any]]:
        """The retired keys whose tokens may still be good."""
        if not self.retired.exists():
            return []
        expired = datetime.now(UTC) - _RETIRED_KEY_KEPT
        return [
            each
            for each in json.loads(self.retired.read_text())
            if datetime.fromisoformat(each["retireTime"]) > expired
        ]


@contextmanager
def _locked(folder: Path) -> Iterator[_SigningKeys]:
    """The keys of a folder, for one process at a time."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _SigningKeys(folder)
    finally:
        os.close(descriptor)


def _make_key(path: Path) -> None:
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, private=True, auto_kid=True)
    write_whole(path, json.dumps(key.as_dict(private=True)).encode())


def _public_jwk(path: Path) -> dict[str, Any]:
    return dict(ECKey.import_key(json.loads(path.read_text())).as_dict(private=False))


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
