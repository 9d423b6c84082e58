"""Places in a message."""

from __future__ import annotations

Path = tuple[str | int, ...]
"""Names of fields, and an index after the name of each list: `("items", 0, "quantity")`."""
Fault = tuple[Path, str]
"""The place of a violation and its description."""


def text_of(path: Path) -> str:
    """A path as clients see it, `items[0].quantity`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
