"""The product service's contracts: request → use case → reply."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID

from commerce.product.v1 import inventory_pb2 as inventory
from commerce.product.v1 import product_pb2 as product
from mesh.batch.group_commit import GroupCommit
from mesh.ids import parse_id
from mesh.rpc.call import Call
from mesh.rpc.replies import Change, Reply
from product_svc import wire
from product_svc.domain import Hold, HoldStates, Product, Reservation, Stock
from product_svc.usecases import Catalogue, Holds, Inventory, Watching


class ProductService:
    """`commerce.product.v1.ProductService`."""

    def __init__(self, catalogue: Catalogue, reads: GroupCommit[UUID, Product]) -> None:
        self._catalogue = catalogue
        self._reads = reads

    async def CreateProduct(self, request: product.CreateProductRequest, call: Call) -> Reply[Product]:
        change: Change[Product] = Change(call, lambda made: product.CreateProductResponse(product=wire.product(made)))
        return await self._catalogue.create_product(
            change,
            wire.product_details(request),
            initial_stock=request.initial_stock,
            low_stock_threshold=request.low_stock_threshold if request.HasField("low_stock_threshold") else None,
        )

    async def GetProduct(self, request: product.GetProductRequest, call: Call) -> product.GetProductResponse:
        found = await self._reads.submit(parse_id(request.product_id))
        return product.GetProductResponse(product=wire.product(found))

    async def BatchGetProducts(
        self, request: product.BatchGetProductsRequest, call: Call
    ) -> product.BatchGetProductsResponse:
        found = await self._catalogue.get_products([parse_id(each) for each in request.product_ids])
        return product.BatchGetProductsResponse(products=[wire.product(each) for each in found])

    async def ListProducts(self, request: product.ListProductsRequest, call: Call) -> product.ListProductsResponse:
        found, token = await self._catalogue.list_products(
            wire.product_filter(request),
            order_by=request.order_by,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return product.ListProductsResponse(products=[wire.product(each) for each in found], next_page_token=token)

    async def UpdateProduct(self, request: product.UpdateProductRequest, call: Call) -> Reply[Product]:
        change: Change[Product] = Change(call, lambda made: product.UpdateProductResponse(product=wire.product(made)))
        return await self._catalogue.update_product(
            change, parse_id(request.product.id), wire.product_update(request), etag=request.product.etag
        )

    async def ArchiveProduct(self, request: product.ArchiveProductRequest, call: Call) -> Reply[Product]:
        change: Change[Product] = Change(call, lambda made: product.ArchiveProductResponse(product=wire.product(made)))
        return await self._catalogue.archive_product(change, parse_id(request.product_id), etag=request.etag)

    async def UnarchiveProduct(self, request: product.UnarchiveProductRequest, call: Call) -> Reply[Product]:
        change: Change[Product] = Change(
            call, lambda made: product.UnarchiveProductResponse(product=wire.product(made))
        )
        return await self._catalogue.unarchive_product(change, parse_id(request.product_id), etag=request.etag)

    async def ListPriceChanges(
        self, request: product.ListPriceChangesRequest, call: Call
    ) -> product.ListPriceChangesResponse:
        found, token = await self._catalogue.list_price_changes(
            parse_id(request.product_id), page_size=request.page_size, page_token=request.page_token
        )
        return product.ListPriceChangesResponse(
            price_changes=[wire.price_change(each) for each in found], next_page_token=token
        )


class InventoryService:
    """`commerce.product.v1.InventoryService`."""

    def __init__(
        self,
        inventory: Inventory,
        holds: Holds,
        reservations: GroupCommit[Reservation, Hold],
        watching: Watching,
    ) -> None:
        self._inventory = inventory
        self._holds = holds
        self._reservations = reservations
        self._watching = watching

    async def GetStock(self, request: inventory.GetStockRequest, call: Call) -> inventory.GetStockResponse:
        stock = await self._inventory.get_stock(parse_id(request.product_id))
        return inventory.GetStockResponse(stock=wire.stock(stock))

    async def UpdateStock(self, request: inventory.UpdateStockRequest, call: Call) -> Reply[Stock]:
        change: Change[Stock] = Change(call, lambda stock: inventory.UpdateStockResponse(stock=wire.stock(stock)))
        return await self._inventory.update_stock(change, wire.stock_change(request))

    async def ListStockMovements(
        self, request: inventory.ListStockMovementsRequest, call: Call
    ) -> inventory.ListStockMovementsResponse:
        found, token = await self._inventory.list_movements(
            parse_id(request.product_id), page_size=request.page_size, page_token=request.page_token
        )
        return inventory.ListStockMovementsResponse(
            stock_movements=[wire.movement(each) for each in found], next_page_token=token
        )

    async def WatchStock(
        self, request: inventory.WatchStockRequest, call: Call
    ) -> AsyncIterator[inventory.WatchStockResponse]:
        async with aclosing(self._watching.watch_stock(parse_id(request.product_id))) as states:
            async for state in states:
                yield inventory.WatchStockResponse(stock=wire.stock(state))

    async def ReserveStock(self, request: inventory.ReserveStockRequest, call: Call) -> inventory.ReserveStockResponse:
        results = await self._reservations.submit_all([wire.reservation(each) for each in request.reservations])
        return inventory.ReserveStockResponse(results=[wire.reservation_result(each) for each in results])

    async def CommitStock(self, request: inventory.CommitStockRequest, call: Call) -> Reply[HoldStates]:
        ids = [parse_id(each) for each in request.order_ids]
        change: Change[HoldStates] = Change(
            call, lambda states: inventory.CommitStockResponse(results=_results(ids, states))
        )
        return await self._holds.commit_stock(change, ids)

    async def ReleaseStock(self, request: inventory.ReleaseStockRequest, call: Call) -> Reply[HoldStates]:
        ids = [parse_id(each) for each in request.order_ids]
        change: Change[HoldStates] = Change(
            call, lambda states: inventory.ReleaseStockResponse(results=_results(ids, states))
        )
        return await self._holds.release_stock(change, ids)

    async def GetHoldTimeline(
        self, request: inventory.GetHoldTimelineRequest, call: Call
    ) -> inventory.GetHoldTimelineResponse:
        steps = await self._holds.get_timeline(parse_id(request.order_id))
        return inventory.GetHoldTimelineResponse(events=[wire.timeline_event(each) for each in steps])


def _results(ids: list[UUID], states: HoldStates) -> list[inventory.HoldResult]:
    return [wire.hold_result(order_id, states.get(order_id)) for order_id in ids]
