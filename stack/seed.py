"""A few products to begin with."""

from pathlib import Path

import httpx

from stack.errors import StackError
from stack.pki import LOCAL_STAFF, access_token

_PRODUCTS = [
    ("TEA-ASSAM-250", "Assam tea, 250 g", "Strong and malty, from the second flush.", ("8", 900_000_000), 120),
    ("TEA-SENCHA-100", "Sencha tea, 100 g", "Green tea from the first harvest of the year.", ("11", 500_000_000), 80),
    ("POT-CAST-IRON", "Cast iron teapot", "Holds 0.8 litres, enamelled inside.", ("54", 0), 25),
    ("CUP-STONEWARE", "Stoneware cup", "Glazed by hand; no two are alike.", ("14", 250_000_000), 200),
    ("FILTER-PAPER-100", "Paper filters, 100 pieces", "Unbleached, for pots and cups.", ("3", 990_000_000), 500),
]


async def seed(edge: str, signing_key: Path) -> None:
    """Make the products, through the edge, if the mesh has none.

    Raises:
        StackError: the mesh refuses.
    """
    token = access_token(signing_key, role="staff", subject=LOCAL_STAFF)
    async with httpx.AsyncClient(
        base_url=edge, headers={"authorization": f"Bearer {token}"}, timeout=10, trust_env=False
    ) as client:
        listed = await _checked(client.build_request("GET", "/v1/products", params={"pageSize": 1}), client)
        if listed.get("products"):
            return
        for sku, name, description, (units, nanos), stock in _PRODUCTS:
            product = {
                "sku": sku,
                "name": name,
                "description": description,
                "price": {"currencyCode": "EUR", "units": units, "nanos": nanos},
                "initialStock": stock,
            }
            headers = {"idempotency-key": f"seed-{sku}"}
            await _checked(client.build_request("POST", "/v1/products", json=product, headers=headers), client)


async def _checked(request: httpx.Request, client: httpx.AsyncClient) -> dict[str, object]:
    try:
        response = await client.send(request)
    except httpx.HTTPError as error:
        raise StackError(f"{request.method} {request.url} failed: {error}") from error
    if not response.is_success:
        raise StackError(f"{request.method} {request.url} answered {response.status_code}: {response.text}")
    content: dict[str, object] = response.json()
    return content
