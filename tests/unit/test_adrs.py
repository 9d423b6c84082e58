"""The form of the architecture decision records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import language

FOLDER = language.ROOT / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("*.md"))
MAX_WORDS = 300
SECTIONS = ["## Context", "## Decision", "## Consequences"]

every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)


@every_record
def test_an_adr_has_at_most_300_words(record: Path) -> None:
    assert len(record.read_text("utf-8").split()) <= MAX_WORDS


@every_record
def test_an_adr_has_context_decision_and_consequences_or_names_its_successor(record: Path) -> None:
    title, *lines = [line for line in record.read_text("utf-8").splitlines() if line]
    assert title.startswith(f"# {int(record.name[:4])}. ")
    if lines[0].startswith("Superseded"):
        assert len(lines) == 1
        assert re.fullmatch(r"Superseded by ADR-\d{4}\.", lines[0])
    else:
        assert [line for line in lines if line.startswith("#")] == SECTIONS


def test_adrs_are_numbered_from_1_without_a_gap() -> None:
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))


def test_every_adr_that_is_referenced_exists() -> None:
    numbers = {record.name[:4] for record in RECORDS}
    missing = {
        (str(path), number)
        for path in language.files(language.ROOT)
        for number in re.findall(r"ADR-(\d{4})", (language.ROOT / path).read_text("utf-8"))
        if number not in numbers
    }
    assert not missing


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    broken = {
        (path.name, target)
        for path in [language.ROOT / "README.md", *(language.ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8"))
        if not (path.parent / target).exists()
    }
    assert not broken
