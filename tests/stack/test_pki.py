"""Certificates and tokens, looked at with the library that made them and with TLS itself."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from joserfc import jwt
from joserfc.jwk import KeySet

from stack import pki
from stack.pki import (
    LOCAL_STAFF,
    Credentials,
    SigningKey,
    access_token,
    issue,
    make_next_signing_key,
    make_signing_key,
    use_next_signing_key,
)


def names(credentials: Credentials) -> list[str]:
    certificate = x509.load_pem_x509_certificate(credentials.cert.read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def shake_hands(server: Credentials, client: Credentials, server_name: str) -> str:
    """Let the two meet in memory, and return the URI that the server sees in the client's certificate."""
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server.ca)
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.load_cert_chain(server.cert, server.key)
    client_tls = ssl.create_default_context(cafile=client.ca)
    client_tls.load_cert_chain(client.cert, client.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_tls.wrap_bio(to_client, to_server, server_hostname=server_name),
        server_tls.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = ends[1].getpeercert()
    assert certificate is not None
    found: dict[str, str] = dict(certificate["subjectAltName"])  # type: ignore[arg-type]
    return found["URI"]


def test_a_certificate_is_for_the_peers_names_in_the_mesh_and_on_this_machine(tmp_path: Path) -> None:
    assert names(issue(tmp_path, ["order"])["order"]) == [
        "spiffe://commerce-mesh/order",
        "order",
        "localhost",
        "127.0.0.1",
    ]


def test_two_peers_trust_each_other_by_name(tmp_path: Path) -> None:
    peers = issue(tmp_path, ["order", "product"])
    assert shake_hands(peers["product"], peers["order"], "product") == "spiffe://commerce-mesh/order"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(peers["product"], peers["order"], "payment")


def test_peers_of_another_mesh_are_not_trusted(tmp_path: Path) -> None:
    here, there = (issue(tmp_path / folder, ["order"])["order"] for folder in ("here", "there"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(here, there, "order")


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    first = issue(tmp_path, ["order"])["order"].cert.read_bytes()
    assert issue(tmp_path, ["order", "product"])["order"].cert.read_bytes() == first


def test_a_certificate_is_renewed_before_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as short:
        short.setattr(pki, "_CERTIFICATE_LIFETIME", timedelta(days=29))
        first = issue(tmp_path, ["order"])["order"].cert.read_bytes()
    renewed = issue(tmp_path, ["order"])["order"].cert
    assert renewed.read_bytes() != first
    end = x509.load_pem_x509_certificate(renewed.read_bytes()).not_valid_after_utc
    assert end - datetime.now(UTC) > timedelta(days=300)


def test_what_does_not_fit_together_is_made_anew(tmp_path: Path) -> None:
    order, product = issue(tmp_path, ["order", "product"]).values()
    order.key.write_bytes(product.key.read_bytes())
    product.cert.write_text("half a certifi")
    peers = issue(tmp_path, ["order", "product"])
    assert shake_hands(peers["product"], peers["order"], "product") == "spiffe://commerce-mesh/order"


def test_a_new_authority_renews_every_certificate(tmp_path: Path) -> None:
    issue(tmp_path, ["order", "product"])
    (tmp_path / "ca.key").unlink()
    peers = issue(tmp_path, ["order", "product"])
    assert shake_hands(peers["product"], peers["order"], "product") == "spiffe://commerce-mesh/order"


def test_a_token_is_verified_with_the_published_keys(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    keys = KeySet.import_key_set(json.loads(key.jwks.read_text()))
    token = jwt.decode(access_token(key.private, role="staff", subject=LOCAL_STAFF), keys, algorithms=["ES256"])
    claims = token.claims
    assert (claims["iss"], claims["aud"], claims["sub"], claims["role"]) == (
        "commerce-mesh",
        "commerce-mesh",
        str(LOCAL_STAFF),
        "staff",
    )
    assert claims["exp"] - claims["iat"] == 900
    assert token.header["kid"] == keys.keys[0].kid


def test_the_signing_key_stays_and_its_private_half_is_never_published(tmp_path: Path) -> None:
    first = make_signing_key(tmp_path)
    before = first.private.read_bytes(), first.jwks.read_bytes()
    again = make_signing_key(tmp_path)
    assert (again.private.read_bytes(), again.jwks.read_bytes()) == before
    assert "d" not in json.loads(first.jwks.read_text())["keys"][0]


def kid_of(path: Path) -> str:
    return str(json.loads(path.read_text())["kid"])


def published(key: SigningKey) -> list[str]:
    return [each["kid"] for each in json.loads(key.jwks.read_text())["keys"]]


def test_a_rotation_publishes_the_next_key_before_it_signs_and_keeps_the_old_one(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    old = kid_of(key.private)
    new = kid_of(make_next_signing_key(tmp_path))
    # As when `mesh token` runs meanwhile, or a rotation was interrupted.
    make_signing_key(tmp_path)
    assert kid_of(make_next_signing_key(tmp_path)) == new
    assert (kid_of(key.private), published(key)) == (old, [old, new])
    for _ in range(2):
        use_next_signing_key(tmp_path)
        assert (kid_of(key.private), published(key)) == (new, [new, old])
    assert kid_of(make_next_signing_key(tmp_path)) not in (old, new)
    assert not any("d" in each for each in json.loads(key.jwks.read_text())["keys"])


def test_a_retired_key_is_dropped_when_no_token_of_it_can_be_good(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    old = kid_of(key.private)
    make_next_signing_key(tmp_path)
    use_next_signing_key(tmp_path)
    for days, is_kept in ((30, True), (31, False)):
        [retired] = json.loads((tmp_path / "retired-keys.json").read_text())
        retired["retireTime"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        (tmp_path / "retired-keys.json").write_text(json.dumps([retired]))
        make_signing_key(tmp_path)
        assert (old in published(key)) == is_kept


def test_only_the_owner_can_read_the_keys(tmp_path: Path) -> None:
    issue(tmp_path / "pki", ["order"])
    make_signing_key(tmp_path / "pki")
    make_next_signing_key(tmp_path / "pki")
    use_next_signing_key(tmp_path / "pki")
    assert {file.stat().st_mode & 0o077 for file in [tmp_path / "pki", *(tmp_path / "pki").iterdir()]} == {0}
