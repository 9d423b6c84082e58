"""Checks that names and prose use the terms of the glossary.

The patterns are read from the table in `docs/glossary.md`, so the document is their only source. `make language` runs
this module; `--count` prints the number of findings of each file instead of the findings.
"""

from __future__ import annotations

import argparse
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = Path("docs", "glossary.md")

_SUFFIXES = {".cfg", ".ini", ".md", ".mako", ".proto", ".py", ".sh", ".toml", ".yaml", ".yml"}
_NAMES = {"Containerfile", "Dockerfile", "Makefile"}
_EXEMPT = {GLOSSARY, Path("gen"), Path("requirements.txt")}
"""The glossary shows the words that it forbids. The others are generated."""

_ROW = re.compile(r"\| `(?P<pattern>(?:[^`])+)` \| (?P<example>[^|]+) \| (?P<term>[^|]+) \|")
_CAMEL_CASE_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PROTO_PROSE = re.compile(r"//.*|\"(?:[^\"\\]|\\.)*\"")
_SPACE = r"(?:[-_ ]|[ \t]*\n[-\s#*/|]*)"
"""A space between two words: also a dash, or the end of a line, with the mark of a comment on the next one."""


class Pattern(NamedTuple):
    """A row of the glossary's table of patterns."""

    expression: re.Pattern[str]
    example: str
    """A text that contains a match."""
    term: str
    """What to write instead."""


class Finding(NamedTuple):
    """A forbidden word. Line 0 is the name of the file."""

    path: Path
    line: int
    word: str
    term: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.word}": write "{self.term}"'


def patterns(glossary: str) -> list[Pattern]:
    """The patterns in the text of a glossary. Raises ValueError when it has none, or an invalid one."""
    _, _, table = glossary.partition("## Lint patterns")
    rows = [Pattern(_expression(row["pattern"]), row["example"], row["term"]) for row in _ROW.finditer(table)]
    if not rows:
        raise ValueError("the glossary has no lint patterns")
    return rows


def _expression(pattern: str) -> re.Pattern[str]:
    # A table of Markdown cannot contain a bare "|". Underscores separate words, so \b does not find their borders.
    pattern = pattern.replace("\\|", "|").replace("[ _]", _SPACE)
    try:
        return re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"invalid lint pattern {pattern}: {error}") from error


def contract_names(root: Path) -> frozenset[str]:
    """All identifiers of the contracts, and their JSON names."""
    names: set[str] = set()
    for path in (root / "proto").rglob("*.proto"):
        names.update(_IDENTIFIER.findall(_PROTO_PROSE.sub("", path.read_text("utf-8"))))
    return frozenset(names | {_json_name(name) for name in names})


def _json_name(field: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), field)


def files(root: Path) -> Iterator[Path]:
    """The files to check, relative to `root`, in order: no hidden ones, no generated ones, no lock files."""
    for path in sorted(root.iterdir()):
        yield from _files(root, path)


def _files(root: Path, path: Path) -> Iterator[Path]:
    relative = path.relative_to(root)
    if path.name.startswith((".", "__pycache__", "node_modules")) or relative in _EXEMPT:
        return
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _files(root, child)
    elif path.suffix in _SUFFIXES or path.name in _NAMES:
        yield relative


def check(root: Path) -> Iterator[Finding]:
    """All forbidden words in the names and the texts of the files below `root`.

    Raises OSError or ValueError when `root` has no glossary with lint patterns.
    """
    forbidden = patterns((root / GLOSSARY).read_text("utf-8"))
    exempt = contract_names(root)
    for path in files(root):
        # The first line is the name of the file: line 0.
        text = f"{path}\n{(root / path).read_text('utf-8')}"
        findings = [
            Finding(path, text.count("\n", 0, first), " ".join(text[first:last].split()), term)
            for first, last, term in _matches(text, forbidden, exempt)
        ]
        yield from sorted(findings)


def _matches(text: str, forbidden: Sequence[Pattern], exempt: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """Where in the text the forbidden words are, and what to write instead."""
    borders = [match.start() for match in _CAMEL_CASE_BORDER.finditer(text)]
    # In this text, each border is followed by one character more than in `text`.
    snake_case = _CAMEL_CASE_BORDER.sub("_", text)
    shifted = [border + number for number, border in enumerate(borders, 1)]
    for expression, _, term in forbidden:
        for match in expression.finditer(snake_case):
            first, last = (place - bisect_right(shifted, place) for place in match.span())
            if not _is_within_a_name(text, first, last, exempt):
                yield first, last, term


def _is_within_a_name(text: str, first: int, last: int, names: frozenset[str]) -> bool:
    line = text.rfind("\n", 0, first) + 1
    return any(
        name.start() <= first and last <= name.end()
        for name in _IDENTIFIER.finditer(text, line, last + 100)
        if name[0] in names
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if there are any, 2 if the glossary cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.language", description=check.__doc__)
    parser.add_argument("--count", action="store_true", help="print the number of findings of each file")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder to check")
    options = parser.parse_args(arguments)
    try:
        findings = list(check(options.root))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.count:
        counts = Counter(finding.path for finding in findings)
        lines = [f"{count:5} {path}" for path, count in counts.most_common()]
        lines.append(f"{len(findings):5} in {len(counts)} files")
    else:
        lines = [str(finding) for finding in findings]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
