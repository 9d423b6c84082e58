"""`mesh demo`: a guided order through the JSON edge."""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from stack.errors import StackError
from stack.pki import LOCAL_STAFF, access_token, make_signing_key

_DECIDED_WITHIN_S = 15.0
"""The demo fails if an order or stock has not changed by then."""

_SECRETS = {"accessToken", "refreshToken", "password"}


class Tour:
    """Sends requests to the edge, and shows each with its answer."""

    def __init__(self, client: httpx.Client, console: Console) -> None:
        self._client = client
        self._console = console
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin a new step."""
        self._steps += 1
        self._console.print(f"\n[bold]{self._steps}. {escape(title)}[/bold]")

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        key: str = "",
        body: Mapping[str, object] | None = None,
        expected: int = 200,
        show: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Send a request, show it and its answer, or of that only the fields to `show`, and return the answer.

        Raises:
            StackError: the status is not the expected one, or the edge does not answer.
        """
        content = self._send(method, path, token=token, key=key, body=body, expected=expected)
        self._console.print(f"   {method} {path}" + (f"   [dim]Idempotency-Key: {key}[/dim]" if key else ""))
        if body is not None:
            self._console.print(f"   [dim]→ {escape(_shown(body))}[/dim]")
        self._console.print(f"   [dim]← {expected} {escape(_shown(content, show))}[/dim]")
        return content

    def wait(
        self, path: str, token: str, *, until: Callable[[Mapping[str, Any]], bool], show: Sequence[str]
    ) -> dict[str, Any]:
        """Read until the answer is as wanted, show that one and how long it took, and return it.

        Raises:
            StackError: it is not so in time.
        """
        begun = time.monotonic()
        while not until(content := self._send("GET", path, token=token)):
            if time.monotonic() - begun > _DECIDED_WITHIN_S:
                raise StackError(f"GET {path} is still {_shown(content)} after {_DECIDED_WITHIN_S:g} s.")
            time.sleep(0.02)
        self._console.print(f"   GET {path}   [dim]so after {time.monotonic() - begun:.2f} s[/dim]")
        self._console.print(f"   [dim]← 200 {escape(_shown(content, show))}[/dim]")
        return content

    def require(self, found: object, expected: object, what: str) -> None:
        """Raise StackError unless the two are equal."""
        if found != expected:
            raise StackError(f"{what} is {found}, not {expected}.")

    def _send(
        self,
        method: str,
        path: str,
        *,
        token: str,
        key: str = "",
        body: Mapping[str, object] | None = None,
        expected: int = 200,
    ) -> dict[str, Any]:
        headers = {name: value for name, value in (("idempotency-key", key),) if value}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            response = self._client.request(method, path, headers=headers, json=body)
        except httpx.HTTPError as error:
            raise StackError(f"{method} {path} failed: {error}") from error
        if response.status_code != expected:
            raise StackError(f"{method} {path} answered {response.status_code}, not {expected}: {response.text}")
        content: dict[str, Any] = response.json()
        return content


def run(edge: str, pki: Path) -> None:
    """Walk through an order that is paid, one that is declined, and one for more than there is.

    Raises:
        StackError: something was not as it should be.
    """
    console = Console(highlight=False, soft_wrap=True)
    staff = access_token(make_signing_key(pki).private, role="staff", subject=LOCAL_STAFF)
    # So that the demo can be run again and again on the same data.
    mark = secrets.token_hex(3)
    with httpx.Client(base_url=edge, timeout=10, trust_env=False) as client:
        tour = Tour(client, console)

        tour.step("A customer signs up, signs in, and adds a payment method")
        login = {"email": f"ada.{mark}@example.com", "password": secrets.token_urlsafe(12)}
        tour.ask("POST", "/v1/customers", body={"name": "Ada Lovelace", **login})
        session = tour.ask("POST", "/v1/sessions", body=login)
        customer, token = session["customerId"], session["accessToken"]
        methods = f"/v1/customers/{customer}/paymentMethods"
        visa = tour.ask("POST", methods, token=token, body={"token": "tok_visa", "makeDefault": True})

        tour.step("Staff put three products on sale")
        products = [
            tour.ask("POST", "/v1/products", token=staff, body=_product(mark, number, name, price))
            for number, (name, price) in enumerate((("Tea", "9"), ("Pot", "54"), ("Cup", "14")), start=1)
        ]

        tour.step("The customer orders 1, 2 and 3 of them; the stock is held at once")
        lines = [{"productId": product["id"], "quantity": n} for n, product in enumerate(products, start=1)]
        body = {"items": lines, "paymentMethodId": visa["id"]}
        key = f"demo-{mark}"
        order = tour.ask("POST", "/v1/orders", token=token, key=key, body=body)

        tour.step("The same request again is the same order")
        again = tour.ask("POST", "/v1/orders", token=token, key=key, body=body, show=("id", "status"))
        tour.require(again["id"], order["id"], "The order")

        tour.step("The payment is captured and the order confirmed, by events")
        tour.require(_decided(tour, token, order)["status"], "ORDER_STATUS_CONFIRMED", "The order")
        tour.ask(
            "GET", f"/v1/orders/{order['id']}/payment", token=token, show=("status", "amount", "providerReference")
        )
        for product, line in zip(products, lines, strict=True):
            _await_stock(tour, staff, product, on_hand=10 - line["quantity"])

        tour.step("A declined payment cancels the order and frees the stock")
        declined = tour.ask("POST", methods, token=token, body={"token": "tok_declined"})
        first = [{"productId": products[0]["id"], "quantity": 1}]
        body = {"items": first, "paymentMethodId": declined["id"]}
        order = tour.ask("POST", "/v1/orders", token=token, key=f"{key}-declined", body=body, show=("id", "status"))
        order = _decided(tour, token, order)
        tour.require(order["cancelReason"], "CANCEL_REASON_PAYMENT_DECLINED", "The reason")
        _await_stock(tour, staff, products[0], on_hand=9)

        tour.step("More than there is cannot be ordered, and the refusal says why")
        body = {"items": [{"productId": products[0]["id"], "quantity": 100}], "paymentMethodId": visa["id"]}
        refusal = tour.ask("POST", "/v1/orders", token=token, key=f"{key}-too-many", body=body, expected=400)
        tour.require(refusal["details"][0]["reason"], "STOCK_INSUFFICIENT", "The reason")
        _await_stock(tour, staff, products[0], on_hand=9)
    console.print("\n[green]All as it should be.[/green]")


def _product(mark: str, number: int, name: str, price: str) -> dict[str, object]:
    return {
        "sku": f"DEMO-{mark}-{number}",
        "name": f"{name} {mark}",
        "price": {"currencyCode": "EUR", "units": price},
        "initialStock": 10,
    }


def _decided(tour: Tour, token: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Return the order when its payment has been decided on."""
    undecided = ("ORDER_STATUS_PENDING", "ORDER_STATUS_CANCELLING")
    return tour.wait(
        f"/v1/orders/{order['id']}",
        token,
        until=lambda now: now["status"] not in undecided,
        show=("status", "cancelReason"),
    )


def _await_stock(tour: Tour, staff: str, product: Mapping[str, Any], *, on_hand: int) -> None:
    """See that so much is on hand and nothing of it reserved, once the product service has heard of the order."""
    path = f"/v1/products/{product['id']}/stock"
    tour.wait(
        path, staff, until=lambda now: (now["onHand"], now["reserved"]) == (on_hand, 0), show=("onHand", "reserved")
    )


def _shown(content: Mapping[str, object], fields: Sequence[str] = ()) -> str:
    """Return JSON on one line, without secrets: these fields, or all."""
    shown = {key: "…" if key in _SECRETS else content[key] for key in fields or content}
    return json.dumps(shown, ensure_ascii=False)
