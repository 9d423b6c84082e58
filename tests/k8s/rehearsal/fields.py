"""Fields of the manifests. One that the rehearsal does not know is an error: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

Object = dict[str, Any]
"""A part of a manifest."""


class UnknownField(Exception):
    """The manifests ask for something that the rehearsal does not do."""


def require_known(where: str, part: Object, known: Collection[str]) -> None:
    """Raise UnknownField if the part has a field that is not known."""
    if unknown := sorted(part.keys() - set(known)):
        raise UnknownField(f"{where}: the rehearsal does not know {', '.join(unknown)}")
