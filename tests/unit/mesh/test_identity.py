"""Access tokens as a service verifies them."""

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from mesh.errors import Unauthenticated
from mesh.rpc.call import Caller, Kind
from mesh.rpc.identity import CLOCK_SKEW_S, Tokens
from stack.files import write_whole
from stack.pki import SigningKey, make_signing_key


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return make_signing_key(tmp_path)


def header(key: SigningKey, **changes: object) -> str:
    """A bearer token of a customer, valid except for `changes`."""
    private = ECKey.import_key(json.loads(key.private.read_text()))
    now = int(time.time())
    claims: dict[str, object] = {
        "iss": "commerce-mesh",
        "aud": "commerce-mesh",
        "sub": str(uuid4()),
        "role": "customer",
        "iat": now,
        "exp": now + 900,
        **changes,
    }
    return "Bearer " + jwt.encode({"alg": "ES256", "kid": private.kid}, claims, private, algorithms=["ES256"])


def test_valid_token_identifies_its_caller_repeatedly(key: SigningKey) -> None:
    tokens, customer = Tokens(key.jwks), str(uuid4())
    good = header(key, sub=customer)
    assert [tokens.caller(good) for _ in range(2)] == [Caller(Kind.CUSTOMER, customer)] * 2


def test_spellings_of_one_header_are_remembered_once(key: SigningKey) -> None:
    tokens = Tokens(key.jwks)
    _, token = header(key).split()
    for blanks in range(1, 50):
        for scheme in ("Bearer", "bearer", "BEARER"):
            tokens.caller(f"{scheme}{' ' * blanks}{token}{' ' * blanks}")
    assert tokens.remembered == 1


def test_token_of_an_issuer_whose_clock_is_slightly_ahead_is_accepted(key: SigningKey) -> None:
    now = int(time.time())
    assert Tokens(key.jwks).caller(header(key, iat=now + CLOCK_SKEW_S // 2)).kind is Kind.CUSTOMER
    with pytest.raises(Unauthenticated):
        Tokens(key.jwks).caller(header(key, iat=now + 10 * CLOCK_SKEW_S))


def test_token_is_refused_after_its_expiry_without_tolerance(key: SigningKey) -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        Tokens(key.jwks).caller(header(key, exp=int(time.time()) - 1))


def test_keys_that_replace_others_are_used_without_a_restart(key: SigningKey, tmp_path: Path) -> None:
    tokens, old = Tokens(key.jwks), header(key)
    other = make_signing_key(tmp_path / "other")
    both = [json.loads(each.jwks.read_text())["keys"][0] for each in (key, other)]
    with pytest.raises(Unauthenticated):
        tokens.caller(header(other))
    write_whole(key.jwks, json.dumps({"keys": both}).encode())
    tokens.caller(header(other))
    tokens.caller(old)
    write_whole(key.jwks, json.dumps({"keys": both[1:]}).encode())
    tokens.caller(header(other))
    with pytest.raises(Unauthenticated):
        tokens.caller(old)


def test_keys_stay_while_their_file_is_broken_or_missing(key: SigningKey) -> None:
    tokens, good = Tokens(key.jwks), key.jwks.read_bytes()
    write_whole(key.jwks, b"{")
    tokens.caller(header(key))
    key.jwks.unlink()
    tokens.caller(header(key))
    write_whole(key.jwks, good)
    tokens.caller(header(key))


@pytest.mark.parametrize("wrong", [{"iss": "other"}, {"aud": "other"}, {"role": "root"}, {"sub": None}, {"exp": None}])
def test_token_for_another_purpose_is_refused(key: SigningKey, wrong: dict[str, object]) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(key.jwks).caller(header(key, **wrong))
