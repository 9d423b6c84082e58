"""Checks that no Python code outside the tests repeats an event type of the contracts.

Code gets the type of an event from its contract, with `Event.of` and `handlers`. `make lint` runs this module.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from ops.contracts import DESCRIPTORS
from ops.event_reference import events

ROOT = Path(__file__).resolve().parent.parent

_EXEMPT = {"gen", "tests"}


class Finding(NamedTuple):
    """An event type in a string of Python code."""

    path: Path
    line: int
    type: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: `{self.type}` is a literal: take the type from the contract"


def types() -> list[str]:
    """The event types of the contracts. Raises OSError when there is no generated code."""
    descriptors = FileDescriptorSet.FromString((ROOT / "gen" / DESCRIPTORS).read_bytes())
    return [event.type for event in events(descriptors)]


def check(root: Path) -> Iterator[Finding]:
    """The event types in strings of the Python code below `root`; those in docstrings are left out.

    A subject begins with its event type, so subjects are found too. Raises OSError or SyntaxError for a file that
    cannot be read.
    """
    literal = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, types()))})(?!\w)")
    for path in _modules(root):
        for line, text in _strings(ast.parse(path.read_text("utf-8"), str(path))):
            yield from (Finding(path.relative_to(root), line, match[0]) for match in literal.finditer(text))


def _modules(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.suffix == ".py":
            yield path
        elif path.is_dir() and path.name not in _EXEMPT and not path.name.startswith("."):
            yield from sorted(path.rglob("*.py"))


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The strings of a module, and the lines where they begin. A string that is a statement is documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.event_types", description=check.__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder to check")
    findings = list(check(parser.parse_args(arguments).root))
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
