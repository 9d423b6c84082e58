"""A small fake of Stripe, written from Stripe's documentation: none of it is Stripe's, nor was it compared with Stripe.

It has what localstripe lacks: idempotency keys, refusals of refunds above what is left, off-session payments that ask
for 3-D Secure, search that lags behind, disputes, fees, parameters of the API version that our SDK speaks, signatures.

Sources, as of November 2026: docs.stripe.com/api (payment_intents, refunds, customers, payment_methods, disputes,
errors, idempotent_requests), /testing, /currencies, /search, /webhooks/signature.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

Json = dict[str, Any]

VISA = "4242424242424242"
DECLINED = "4000000000000341"
"""Can be attached to a customer, and every charge is declined."""
AUTHENTICATED = "4000002760003184"
"""Asks for 3-D Secure at every payment."""
DISPUTED = "4000000000000259"
"""Charged, and disputed at once."""
UNREFUNDABLE = "4000000000005126"
"""Charged, and its refunds fail."""
_THREE_DECIMALS = {"bhd", "jod", "kwd", "omr", "tnd"}
_CREATE = {
    "amount", "currency", "customer", "payment_method", "allowed_payment_method_types", "confirm", "off_session",
    "metadata", "expand",
}  # fmt: skip
"""Parameters of a new PaymentIntent, of those that Stripe documents, that the fake knows."""


class Refused(Exception):
    """An error reply. `executed` is whether the endpoint had begun, so that its result is kept for the key."""

    def __init__(self, status: int, kind: str, code: str | None = None, *, executed: bool = True, **more: Any) -> None:
        super().__init__(code or kind)
        self.status = status
        self.body: Json = {"error": {"type": kind, "code": code, "message": f"{kind}: {code}"} | more}
        self.executed = executed


@dataclass
class _Saved:
    """What an idempotency key stands for; without a reply while the first request is under way."""

    request: tuple[str, str]
    reply: tuple[int, Json] | None = None


@dataclass
class FakeStripe:
    """The fake, served on `url` while it runs. Tests read and change its fields."""

    secret_key: str = "sk_test_fake"
    webhook_secret: str = "whsec_fake"
    fee: int = 0
    """The fee of a payment, in minor units."""
    search_lags: bool = False
    """Whether search finds nothing yet."""
    failures: list[Refused] = field(default_factory=list)
    """Errors that the next requests get before anything is done."""
    failing: str = ""
    """With what the path after `/v1/` begins of requests that get one of the `failures`."""
    stalled: asyncio.Event | None = None
    """Charges wait for it, if there is one, after they were made."""
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    intents: dict[str, Json] = field(default_factory=dict)
    refunds: dict[str, Json] = field(default_factory=dict)
    customers: dict[str, Json] = field(default_factory=dict)
    methods: dict[str, Json] = field(default_factory=dict)
    disputes: dict[str, Json] = field(default_factory=dict)
    _numbers: dict[str, str] = field(default_factory=dict)
    _saved: dict[str, _Saved] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def __aenter__(self) -> FakeStripe:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def captured(self) -> list[Json]:
        """The PaymentIntents that were paid."""
        return [intent for intent in self.intents.values() if intent["status"] == "succeeded"]

    def method(self, number: str) -> str:
        """A new payment method for a card, as Stripe's library in a browser makes one."""
        made = self._new("pm", self.methods, object="payment_method", type="card", customer=None)
        made["card"] = {"brand": "visa", "last4": number[-4:], "exp_month": 12, "exp_year": 2040}
        self._numbers[made["id"]] = number
        return str(made["id"])

    def authenticate(self, client_secret: str, *, success: bool) -> None:
        """The customer passes or fails 3-D Secure, as Stripe's library in a browser reports it."""
        [intent] = [each for each in self.intents.values() if each["client_secret"] == client_secret]
        if intent["status"] != "requires_action":
            raise Refused(400, "invalid_request_error", "payment_intent_unexpected_state")
        if success:
            self._pay(intent)
        else:
            self._fail(intent, "payment_intent_authentication_failure")

    def dispute(self, intent_id: str, *, fee: int = 1500, status: str = "needs_response") -> str:
        """The customer's bank disputes a payment."""
        intent = self.intents[intent_id]
        made = self._new(
            "dp", self.disputes, object="dispute", amount=intent["amount"], currency=intent["currency"], status=status,
            payment_intent=intent_id, charge=intent["latest_charge"]["id"], metadata={},
        )  # fmt: skip
        made["balance_transactions"] = [self._balance(-intent["amount"], intent["currency"], fee)]
        intent["latest_charge"]["disputed"] = True
        return str(made["id"])

    def event(self, kind: str, about: Json, *, event_id: str = "") -> bytes:
        """The body of a webhook."""
        event = {
            "id": event_id or f"evt_{next(self._ids)}",
            "object": "event",
            "type": kind,
            "created": int(time.time()),
            "data": {"object": about},
        }
        return json.dumps(event, indent=2).encode()

    def signed(self, body: bytes, *, at: float | None = None, secret: str = "") -> dict[str, str]:
        """The headers of a webhook with this body, signed at `at`, in seconds since 1970."""
        moment = int(time.time() if at is None else at)
        signature = hmac.new((secret or self.webhook_secret).encode(), b"%d." % moment + body, sha256).hexdigest()
        return {"stripe-signature": f"t={moment},v1={signature}", "content-type": "application/json; charset=utf-8"}

    async def _serve(self, request: web.Request) -> web.Response:
        path, text = request.path.removeprefix("/v1/"), await request.text()
        self.requests.append(f"{request.method} /v1/{path}")
        key = request.headers.get("Idempotency-Key", "") if request.method == "POST" else ""
        saved: _Saved | None = None
        try:
            if request.headers.get("Authorization") != f"Bearer {self.secret_key}":
                raise Refused(401, "invalid_request_error", executed=False)
            if self.failures and path.startswith(self.failing):
                raise self.failures.pop(0)
            if key and (known := self._saved.get(key)):
                return self._replayed(known, (path, text))
            saved = self._saved[key] = _Saved((path, text))
            query = text if request.method == "POST" else request.query_string
            status, body = 200, self._handled(request.method, path, _nested(parse_qsl(query)))
            executed = True
        except Refused as refused:
            status, body, executed = refused.status, refused.body, refused.executed
        reply = json.loads(json.dumps(body))
        if saved is not None and key and executed:
            saved.reply = (status, reply)
        elif saved is not None:
            del self._saved[key]
        if self.stalled is not None and (request.method, path) == ("POST", "payment_intents"):
            await self.stalled.wait()
        return web.json_response(reply, status=status, headers={"Request-Id": f"req_{next(self._ids)}"})

    @staticmethod
    def _replayed(saved: _Saved, request: tuple[str, str]) -> web.Response:
        if saved.request != request:
            raise Refused(400, "idempotency_error", executed=False)
        if saved.reply is None:
            raise Refused(409, "idempotency_error", "idempotency_key_in_use", executed=False)
        status, body = saved.reply
        return web.json_response(body, status=status, headers={"Idempotent-Replayed": "true"})

    def _handled(self, method: str, path: str, params: Json) -> Json:
        for verb, pattern, handle in self._routes():
            if verb == method and (match := re.fullmatch(pattern, path)):
                return handle(params, *match.groups())
        raise Refused(404, "invalid_request_error", executed=False)

    def _routes(self) -> list[tuple[str, str, Callable[..., Json]]]:
        def found(there: Mapping[str, Json]) -> Callable[..., Json]:
            return lambda _, name: _get(there, name)

        return [
            ("GET", "balance", lambda _: {"object": "balance"}),
            ("GET", "payment_methods/(.+)", found(self.methods)),
            ("GET", "customers/(.+)", found(self.customers)),
            ("POST", "customers", self._customer),
            ("POST", "payment_intents", self._intent),
            ("GET", "payment_intents", lambda params: _page(self.intents, params, "/v1/payment_intents")),
            ("GET", "payment_intents/search", self._search),
            ("GET", "payment_intents/(.+)", found(self.intents)),
            ("POST", "payment_intents/(.+)/cancel", self._cancel),
            ("POST", "payment_intents/(.+)/confirm", self._confirm),
            ("POST", "refunds", self._refund),
            ("GET", "refunds", lambda params: _page(self.refunds, params, "/v1/refunds")),
            ("GET", "refunds/(.+)", found(self.refunds)),
            ("GET", "disputes", lambda params: _page(self.disputes, params, "/v1/disputes")),
        ]

    def _customer(self, params: Json) -> Json:
        if method := params.get("payment_method"):
            attached = _get(self.methods, method)
            if attached["customer"]:
                raise Refused(400, "invalid_request_error", "resource_already_attached", executed=False)
        made = self._new("cus", self.customers, object="customer", metadata=params.get("metadata", {}))
        if method:
            self.methods[method]["customer"] = made["id"]
        return made

    def _intent(self, params: Json) -> Json:
        if "payment_method_types" in params:
            raise Refused(400, "invalid_request_error", "payment_method_types_no_longer_supported", executed=False)
        if unknown := params.keys() - _CREATE:
            raise Refused(400, "invalid_request_error", "parameter_unknown", executed=False, param=min(unknown))
        amount, currency = int(params["amount"]), params["currency"]
        if amount < 50:
            raise Refused(400, "invalid_request_error", "amount_too_small", executed=False)
        if currency != currency.lower() or (currency in _THREE_DECIMALS and amount % 10):
            raise Refused(400, "invalid_request_error", "parameter_invalid_integer", executed=False)
        method = params.get("payment_method")
        if method and _get(self.methods, method)["customer"] != params.get("customer"):
            raise Refused(400, "invalid_request_error", "resource_missing", executed=False)
        made = self._new(
            "pi", self.intents, object="payment_intent", amount=amount, currency=currency, latest_charge=None,
            customer=params.get("customer"), payment_method=method, metadata=params.get("metadata", {}),
            status="requires_confirmation" if method else "requires_payment_method", last_payment_error=None,
        )  # fmt: skip
        made["client_secret"] = f"{made['id']}_secret_{next(self._ids)}"
        if params.get("confirm") == "true" and method:
            self._attempt(made, method, off_session=params.get("off_session") == "true")
        return made

    def _confirm(self, params: Json, intent_id: str) -> Json:
        intent = _get(self.intents, intent_id)
        if intent["status"] not in {"requires_payment_method", "requires_confirmation"}:
            raise Refused(400, "invalid_request_error", "payment_intent_unexpected_state", payment_intent=intent)
        self._attempt(intent, params["payment_method"], off_session=False)
        return intent

    def _attempt(self, intent: Json, method: str, *, off_session: bool) -> None:
        intent["payment_method"], intent["last_payment_error"] = method, None
        match self._numbers[method]:
            case number if number == DECLINED:
                self._fail(intent, "card_declined", decline_code="generic_decline")
            case number if number == AUTHENTICATED and off_session:
                self._fail(intent, "authentication_required")
            case number if number == AUTHENTICATED:
                intent["status"] = "requires_action"
                intent["next_action"] = {"type": "use_stripe_sdk", "use_stripe_sdk": {}}
                return
            case _:
                self._pay(intent)
                return
        raise Refused(402, "card_error", payment_intent=intent, **_without_type(intent["last_payment_error"]))

    def _fail(self, intent: Json, code: str, **more: Any) -> None:
        method = self.methods[intent["payment_method"]]
        error = {"type": "card_error", "code": code, "payment_method": method, **more}
        intent |= {"status": "requires_payment_method", "payment_method": None, "last_payment_error": error}
        intent.pop("next_action", None)

    def _pay(self, intent: Json) -> None:
        amount, currency = intent["amount"], intent["currency"]
        intent.pop("next_action", None)
        intent |= {"status": "succeeded", "amount_received": amount}
        intent["latest_charge"] = {
            "id": f"ch_{next(self._ids)}", "object": "charge", "amount": amount, "amount_captured": amount,
            "currency": currency, "created": int(time.time()), "disputed": False, "metadata": intent["metadata"],
            "payment_intent": intent["id"], "balance_transaction": self._balance(amount, currency, self.fee),
        }  # fmt: skip
        if self._numbers[intent["payment_method"]] == DISPUTED:
            self.dispute(intent["id"])

    def _cancel(self, _: Json, intent_id: str) -> Json:
        intent = _get(self.intents, intent_id)
        if intent["status"] in {"succeeded", "canceled"}:
            raise Refused(400, "invalid_request_error", "payment_intent_unexpected_state", payment_intent=intent)
        intent["status"] = "canceled"
        return intent

    def _search(self, params: Json) -> Json:
        match = re.fullmatch(r"metadata\['key'\]:'(.+)'", params["query"])
        assert match is not None
        found = [each for each in self.intents.values() if each["metadata"].get("key") == match[1]]
        return {"object": "search_result", "data": [] if self.search_lags else found, "has_more": False}

    def _refund(self, params: Json) -> Json:
        intent, amount = _get(self.intents, params["payment_intent"]), int(params["amount"])
        if intent["status"] != "succeeded":
            raise Refused(400, "invalid_request_error", "payment_intent_unexpected_state")
        active = [each for each in self.refunds.values() if each["status"] in {"succeeded", "pending"}]
        left = intent["amount"] - sum(each["amount"] for each in active if each["payment_intent"] == intent["id"])
        if not left:
            raise Refused(400, "invalid_request_error", "charge_already_refunded")
        if amount > left:
            # Stripe's documentation names no code for it.
            raise Refused(400, "invalid_request_error", param="amount")
        made = self._new(
            "re", self.refunds, object="refund", amount=amount, currency=intent["currency"], status="succeeded",
            payment_intent=intent["id"], metadata=params.get("metadata", {}), failure_reason=None,
        )  # fmt: skip
        if self._numbers[intent["payment_method"]] == UNREFUNDABLE:
            made |= {"status": "failed", "failure_reason": "expired_or_canceled_card"}
        return made

    def _new(self, prefix: str, there: dict[str, Json], **fields: Any) -> Json:
        name = f"{prefix}_{next(self._ids):06}"
        there[name] = {"id": name, "created": int(time.time()), "livemode": False, **fields}
        return there[name]

    def _balance(self, amount: int, currency: str, fee: int) -> Json:
        return {
            "id": f"txn_{next(self._ids)}", "object": "balance_transaction", "amount": amount, "currency": currency,
            "fee": fee, "created": int(time.time()),
        }  # fmt: skip


def _get(there: Mapping[str, Json], name: str) -> Json:
    with suppress(KeyError):
        return there[name]
    raise Refused(404, "invalid_request_error", "resource_missing", executed=False)


def _page(there: Mapping[str, Json], params: Json, url: str) -> Json:
    """A page of a list, the newest first."""
    found = [
        each
        for each in reversed(there.values())  # type: ignore[call-overload]  # dict views are reversible
        if "payment_intent" not in params or each["payment_intent"] == params["payment_intent"]
    ]
    if after := params.get("starting_after"):
        found = found[[each["id"] for each in found].index(after) + 1 :]
    most = int(params.get("limit", 10))
    return {"object": "list", "url": url, "data": found[:most], "has_more": len(found) > most}


def _nested(pairs: list[tuple[str, str]]) -> Json:
    """`metadata[key]=a` as `{"metadata": {"key": "a"}}`."""
    params: Json = {}
    for name, value in pairs:
        outer, _, inner = name.partition("[")
        if inner:
            params.setdefault(outer, {})[inner.rstrip("]")] = value
        else:
            params[outer] = value
    return params


def _without_type(error: Json) -> Json:
    return {name: value for name, value in error.items() if name != "type"}
