"""Holds are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.errors import MeshError
from product_svc.domain import Hold, Reservation, Shelf

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from product_svc.store import HoldStore


class Reservations:
    """Requests for holds."""

    def __init__(self, units: UnitsOfWork, holds: HoldStore) -> None:
        self._units = units
        self._holds = holds

    async def reserve_each(self, reservations: Sequence[Reservation]) -> list[Hold | Exception]:
        """Hold stock for each reservation, all its lines or none; one result each.

        A reservation whose key has a hold gets that hold, under the order id of the first attempt. The result of a
        rejected one is ProductNotFound, ProductArchived, CurrencyMismatch, TotalTooLarge, PriceChanged,
        StockInsufficient, HoldKeyReused or HoldResolved.
        """
        return await self._units.run_each_optimistically(self._reserve, reservations)

    async def _reserve(self, work: UnitOfWork, reservations: Sequence[Reservation]) -> list[Hold | MeshError]:
        shelf = await self._holds.shelf_for(work, reservations)
        results = [_reserved(shelf, reservation) for reservation in reservations]
        self._holds.add(work, shelf, self._units.now())
        return results


def _reserved(shelf: Shelf, reservation: Reservation) -> Hold | MeshError:
    try:
        return shelf.reserve(reservation)
    except MeshError as rejection:
        return rejection
