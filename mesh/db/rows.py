"""Rows ↔ aggregates: one mapping, by name, for every table whose rows are values of the domain.

An aggregate is a dataclass or a named tuple whose fields have the names of the table's columns. A new field is one line
in the domain and one in the table; every statement that this module makes then has it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Refusals, Row, Statement, Transaction, stale_write, unless_stale, unnested

A = TypeVar("A")

UUIDS = sa.ARRAY(sa.Uuid)


class MappingBroken(Exception):
    """An aggregate and its table do not fit: a field has no column, or a column has no field."""


class Rows(Generic[A]):
    """The rows of one table, as values of `aggregate`.

    `elsewhere` names fields that other tables hold (the lines of an order): they are given to `read` by name. `apart`
    names columns that are no fields (a generated column, a secret that few may read).
    """

    def __init__(
        self, aggregate: type[A], table: sa.Table, *, elsewhere: Iterable[str] = (), apart: Iterable[str] = ()
    ) -> None:
        """Raises MappingBroken, so that a forgotten column stops the process before it serves."""
        self.table = table
        self._aggregate = aggregate
        hints = get_type_hints(aggregate)
        self._elsewhere = tuple(elsewhere)
        fields = [name for name in _fields_of(aggregate) if name not in self._elsewhere]
        columns = [column.name for column in table.c if column.name not in set(apart)]
        if set(fields) != set(columns):
            raise MappingBroken(f"{aggregate.__name__} and {table.name} differ in {sorted({*fields} ^ {*columns})}")
        self._fields = fields
        self.columns = tuple(table.c[name] for name in fields)
        """The columns of the fields, in the order of the fields."""
        self._enums = {name: kind for name in fields if (kind := _enum_in(hints[name])) is not None}
        self.values: Callable[[A], tuple[Any, ...]] = (
            attrgetter(*fields) if len(fields) > 1 else lambda value: (getattr(value, fields[0]),)
        )
        """The row of an aggregate, in the order of `columns`."""

    def read(self, row: Row, **elsewhere: Any) -> A:
        """The aggregate of a row."""
        values = {name: row[name] for name in self._fields}
        for name, kind in self._enums.items():
            if values[name] is not None:
                values[name] = kind(values[name])
        return self._aggregate(**values, **elsewhere)

    def insertion(
        self,
        *,
        name: str = "",
        returning: Sequence[sa.Column[Any]] = (),
        skip_existing: bool = False,
        refusals: Refusals | None = None,
    ) -> BulkInsert:
        """The statement that adds rows; give it `values` of each."""
        return BulkInsert(*self.columns, name=name, returning=returning, skip_existing=skip_existing, refusals=refusals)

    def by(self, column: sa.Column[Any], *, name: str = "", locked: bool = False) -> Statement:
        """The rows whose `column` is one of `keys`; `locked` for the rest of the transaction, in primary-key order.

        Rows are locked in that order everywhere: two batches over the same rows would block each other for good.
        """
        chosen = sa.select(*self.columns).where(column == sa.any_(sa.bindparam("keys", type_=sa.ARRAY(column.type))))
        if locked:
            chosen = chosen.order_by(*self.table.primary_key.columns).with_for_update()
        return Statement(chosen, name=name)


class Versions(Generic[A]):
    """Writes new versions of aggregates with an id and a version: many with one statement.

    The statement fails with StaleWrite, and changes nothing, when a row has another version than the one that its
    successor was made from.
    """

    def __init__(self, rows: Rows[A], mutable: Iterable[str]) -> None:
        """`mutable` names the fields that change, besides `version`."""
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
            sa.update(table).where(table.c.id == new.c.id).values(assignments), refusals=stale_write(table.c.version)
        )

    def write(self, transaction: Transaction, changes: Iterable[tuple[A, A]]) -> None:
        """Write what became of aggregates, of each (as it is known, as it shall be); the unchanged cost nothing."""
        # In primary-key order, as everywhere.
        in_order = sorted(((known, new) for known, new in changes if new is not known), key=_id_of_known)
        if in_order:
            transaction.write(
                self.statement,
                known_versions=[known.version for known, _ in in_order],  # type: ignore[attr-defined]
                **{f"new_{name}": [getattr(new, name) for _, new in in_order] for name in self._columns},
            )


def _id_of_known(change: tuple[Any, Any]) -> Any:
    return change[0].id


def _fields_of(aggregate: type[Any]) -> Sequence[str]:
    if (names := getattr(aggregate, "_fields", None)) is not None:
        return tuple(names)
    return tuple(aggregate.__dataclass_fields__)


def _enum_in(hint: Any) -> type[Enum] | None:
    """The enum that a field holds, also where the field may be None."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [each for each in get_args(hint) if each is not types.NoneType]
        return _enum_in(kinds[0]) if len(kinds) == 1 else None
    return hint if isinstance(hint, type) and issubclass(hint, Enum) else None
