"""`mesh keys`: the keys that sign access tokens."""

import json
from datetime import timedelta
from time import monotonic, sleep
from uuid import uuid4

import httpx

from gateway.render import write_keys
from stack.errors import NotRunning, StackError
from stack.pki import access_token, make_next_signing_key, make_signing_key, use_next_signing_key
from stack.state import State

_ACCEPTED_WITHIN_S = 30.0
_WORKERS_FOLLOW_S = 1.0
"""Envoy hands new keys to its worker threads within milliseconds, and does not say when all have them."""


def rotate(state: State) -> str:
    """Replace the signing key and return the id of the new one.

    The new key signs once the edge accepts its tokens; services read the keys again by themselves. An interrupted
    rotation is continued by the next one.

    Raises:
        StackError: a mesh is running and its edge does not accept the new key. The old key goes on signing.
    """
    keys = make_signing_key(state.pki)
    new = make_next_signing_key(state.pki)
    key_id: str = json.loads(new.read_text())["kid"]
    token = access_token(new, role="customer", subject=uuid4(), lifetime=timedelta(minutes=5))
    try:
        run = state.running()
    except NotRunning:
        pass
    else:
        write_keys(keys.jwks, state.folder / "edge")
        _until_accepted(run.edge, token)
    use_next_signing_key(state.pki)
    return key_id


def _until_accepted(edge: str, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    end = monotonic() + _ACCEPTED_WITHIN_S
    while monotonic() < end:
        try:
            # The customer does not exist. Whatever else the edge or a service answers, the token was accepted.
            answer = httpx.get(f"{edge}/v1/customers/me", headers=headers, timeout=5)
        except httpx.TransportError:
            pass
        else:
            if answer.status_code not in (httpx.codes.UNAUTHORIZED, httpx.codes.TOO_MANY_REQUESTS):
                sleep(_WORKERS_FOLLOW_S)
                return
        sleep(0.05)
    raise StackError(
        f"The edge at {edge} does not accept tokens of the new key after {_ACCEPTED_WITHIN_S:g} s."
        " The old key goes on signing. `mesh status` may say why; `mesh keys rotate` tries again."
    )
