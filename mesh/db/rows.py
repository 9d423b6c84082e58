"""Rows ↔ aggregates: one mapping, by name, for every table whose rows are values of the domain.

An aggregate is a dataclass or a named tuple whose fields have the names of the table's columns. A new field is one line
in the domain and one in the table; every statement of this module then includes it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Refusals, Row, Statement, Transaction, stale_write, unless_stale, unnested

A = TypeVar("A")

UUIDS = sa.ARRAY(sa.Uuid)


class MappingBroken(Exception):
    """An aggregate and its table do not match: a field has no column, or a column has no field."""


class Values(Generic[A]):
    """The rows of any statement, as values of `aggregate`: each field is the column of the same name.

    `elsewhere` names fields that are stored in other tables (such as the lines of an order): pass them to `read`.
    """

    def __init__(self, aggregate: type[A], *, elsewhere: Iterable[str] = ()) -> None:
        hints = get_type_hints(aggregate)
        apart = set(elsewhere)
        self._aggregate = aggregate
        self._fields = [name for name in _fields_of(aggregate) if name not in apart]
        self._cells = _several(itemgetter, self._fields)
        self._enums = [
            (place, kind) for place, name in enumerate(self._fields) if (kind := _enum_in(hints[name])) is not None
        ]

    def read(self, row: Row | Mapping[str, Any], **elsewhere: Any) -> A:
        """The aggregate of a row."""
        values = self._cells(row)
        if self._enums:
            values = list(values)
            for place, kind in self._enums:
                if values[place] is not None:
                    values[place] = kind(values[place])
        if elsewhere:
            return self._aggregate(**dict(zip(self._fields, values, strict=True)), **elsewhere)
        return self._aggregate(*values)


class Rows(Values[A]):
    """The rows of one table, as values of `aggregate`.

    `apart` names columns that are not fields (such as a generated column or a secret).
    """

    def __init__(
        self, aggregate: type[A], table: sa.Table, *, elsewhere: Iterable[str] = (), apart: Iterable[str] = ()
    ) -> None:
        """Raises MappingBroken, so that a process with a forgotten column does not start."""
        super().__init__(aggregate, elsewhere=elsewhere)
        self.table = table
        columns = {column.name for column in table.c} - {*apart}
        if columns != {*self._fields}:
            raise MappingBroken(f"{aggregate.__name__} and {table.name} differ in {sorted(columns ^ {*self._fields})}")
        self.columns = tuple(table.c[name] for name in self._fields)
        """The columns of the fields, in the order of the fields."""
        self.values: Callable[[A], Sequence[Any]] = _several(attrgetter, self._fields)
        """The row of an aggregate, in the order of `columns`."""

    def insertion(
        self,
        *,
        name: str = "",
        returning: Sequence[sa.Column[Any]] = (),
        skip_existing: bool = False,
        refusals: Refusals | None = None,
    ) -> BulkInsert:
        """The statement that inserts rows, each in the form of `values`."""
        return BulkInsert(*self.columns, name=name, returning=returning, skip_existing=skip_existing, refusals=refusals)

    def by(self, column: sa.Column[Any], *, name: str = "", locked: bool = False) -> Statement:
        """The rows whose `column` is one of `keys`. With `locked`, they are locked until the end of the transaction.

        All statements lock rows in the order of the primary key; in different orders, two batches would deadlock.
        """
        chosen = sa.select(*self.columns).where(column == sa.any_(sa.bindparam("keys", type_=sa.ARRAY(column.type))))
        if locked:
            chosen = chosen.order_by(*self.table.primary_key.columns).with_for_update()
        return Statement(chosen, name=name)


class Versions(Generic[A]):
    """Writes new versions of aggregates that have an id and a version, many with one statement.

    The statement raises StaleWrite and changes nothing if the version of a row is no longer the one that its new
    version is based on.
    """

    def __init__(self, rows: Rows[A], mutable: Iterable[str], *, name: str = "") -> None:
        """`mutable` names the fields that may change, without `version`."""
        table = rows.table
        changing = (*mutable, "version")
        self._columns = ("id", *changing)
        new = unnested(
            {f"new_{name}": (name, table.c[name].type) for name in self._columns}
            | {"known_versions": ("known_version", sa.BigInteger)}
        )
        assignments: Mapping[str, Any] = {name: new.c[name] for name in changing} | {
            "version": unless_stale(table.c.version, new.c.known_version, new.c.version)
        }
        self.statement = Statement(
            sa.update(table).where(table.c.id == new.c.id).values(assignments),
            name=name,
            refusals=stale_write(table.c.version),
        )

    def write(self, transaction: Transaction, changes: Iterable[tuple[A, A]]) -> None:
        """Write changed aggregates, as pairs (known, new). Unchanged ones are skipped."""
        # All statements lock rows in the order of the primary key.
        in_order = sorted(((known, new) for known, new in changes if new is not known), key=_id_of_known)
        if in_order:
            transaction.write(
                self.statement,
                known_versions=[known.version for known, _ in in_order],  # type: ignore[attr-defined]
                **{f"new_{name}": [getattr(new, name) for _, new in in_order] for name in self._columns},
            )


def _id_of_known(change: tuple[Any, Any]) -> Any:
    return change[0].id


def _several(getter: Callable[..., Callable[[Any], Any]], names: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
    """`getter` of these names. It returns a sequence even for a single name."""
    get = getter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


def _fields_of(aggregate: type[Any]) -> Sequence[str]:
    if (names := getattr(aggregate, "_fields", None)) is not None:
        return tuple(names)
    return tuple(aggregate.__dataclass_fields__)


def _enum_in(hint: Any) -> type[Enum] | None:
    """The enum type of a field, also of an optional field."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [each for each in get_args(hint) if each is not types.NoneType]
        return _enum_in(kinds[0]) if len(kinds) == 1 else None
    return hint if isinstance(hint, type) and issubclass(hint, Enum) else None
