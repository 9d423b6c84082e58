"""Passwords of the servers of one mesh: random, made once, in a file that only its owner can read."""

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from stack.files import write_whole


def keep_passwords(file: Path, names: Iterable[str]) -> Mapping[str, str]:
    """Return a password for each of `names`, from the file where it has one, else made and added to it."""
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in names if name not in known]
    if missing:
        known |= {name: secrets.token_urlsafe(24) for name in missing}
        write_whole(file, json.dumps(known, indent=2).encode())
    return known
