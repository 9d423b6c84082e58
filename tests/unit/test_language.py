"""The check of names and prose against the glossary.

Forbidden words are taken from the glossary's examples, so that this file contains none.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import language

PATTERNS = language.patterns((language.ROOT / language.GLOSSARY).read_text("utf-8"))
WORD = "whoe" + "ver"
"""A forbidden word."""
PHRASE = ("set", "aside")
"""A forbidden phrase, word by word."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the glossary and nothing else."""
    (tmp_path / "docs").mkdir()
    shutil.copy(language.ROOT / language.GLOSSARY, tmp_path / language.GLOSSARY)
    return tmp_path


def plant(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, "utf-8")


def found(root: Path) -> list[tuple[str, int, str]]:
    return [(str(finding.path), finding.line, finding.word) for finding in language.check(root)]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mesh/relay.py", "# The relay wakes\n# {word} waits.\n"),
        ("order_svc/domain.py", '"""Orders.\n{word} asks.\n"""\n'),
        ("order_svc/domain.py", "def place(\n    {word}: str,\n) -> None: ...\n"),
        ("order_svc/domain.py", 'log.info(\n    "{word} failed"\n)\n'),
        ("order_svc/domain.py", "class\\\n    Call{Word}Waits: ...\n"),
        ("tests/unit/test_order.py", "\ndef test_an_order_of_{word}_is_placed() -> None: ...\n"),
        ("README.md", "# Mesh\nA mesh for {word} wants it.\n"),
        ("docs/scaling.md", "# Scaling\n{word} scales.\n"),
        ("docs/adr/0001-ids.md", "# 1. Ids\nAn id for {word} makes it.\n"),
        ("Makefile", "up: ## Start it.\n# For {word} runs it.\n"),
        ("pyproject.toml", "[project]\n# For {word} installs it.\n"),
        ("proto/commerce/order/v1/order.proto", "// Orders.\n// An order of {word} places it.\n"),
        ("order_svc/migrations/versions/0001_first.py", '"""First."""\n# For {word} migrates.\n'),
    ],
)
def test_a_forbidden_word_is_found_in_each_kind_of_file(root: Path, path: str, text: str) -> None:
    plant(root, path, text.format(word=WORD, Word=WORD.capitalize()))
    assert [(where, line, word.lower()) for where, line, word in found(root)] == [(path, 2, WORD)]


def test_a_forbidden_word_is_found_in_the_name_of_a_file(root: Path) -> None:
    plant(root, f"docs/adr/0001-an-order-of-{WORD}.md", "# 1. Ids\n")
    assert found(root) == [(f"docs/adr/0001-an-order-of-{WORD}.md", 0, WORD)]


@pytest.mark.parametrize("between", [" ", "_", "-", "\n", "\n    # ", "\n// "])
def test_a_forbidden_phrase_is_found_across_a_line_break(root: Path, between: str) -> None:
    plant(root, "mesh/stock.py", f"# Stock is\n# {between.join(PHRASE)} for it.\n")
    assert [line for _, line, _ in found(root)] == [2]


def test_a_forbidden_word_inside_another_word_is_not_found(root: Path) -> None:
    plant(root, "README.md", f"x{WORD} and {WORD}x\n")
    assert found(root) == []


def test_a_name_from_the_contracts_is_exempt(root: Path) -> None:
    name = f"{WORD.capitalize()}Asks"
    plant(root, "proto/commerce/order/v1/order.proto", f"message {name} {{\n  string {WORD}_asks = 1;\n}}\n")
    plant(root, "order_svc/wire.py", f'{name}({WORD}_asks="")["{WORD}Asks"]\n')
    assert found(root) == []
    plant(root, "order_svc/wire.py", f"{name}Again()\n")
    assert found(root) == [("order_svc/wire.py", 1, WORD.capitalize())]


def test_a_name_in_a_comment_of_the_contracts_is_not_exempt(root: Path) -> None:
    plant(root, "proto/commerce/order/v1/order.proto", f'// {WORD}.\nmessage Order {{ string id = "{WORD}"; }}\n')
    assert found(root) == [
        ("proto/commerce/order/v1/order.proto", 1, WORD),
        ("proto/commerce/order/v1/order.proto", 2, WORD),
    ]


@pytest.mark.parametrize(
    "path", ["gen/commerce/order.py", "requirements.txt", ".venv/lib/x.py", "ops/bench/results.json"]
)
def test_generated_files_and_lock_files_are_exempt(root: Path, path: str) -> None:
    plant(root, path, f"# {WORD}\n")
    assert found(root) == []


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.example)
def test_each_pattern_finds_its_example_and_not_what_to_write_instead(root: Path, pattern: language.Pattern) -> None:
    plant(root, "mesh/example.py", f"# {pattern.example}\n")
    assert [(where, line) for where, line, _ in found(root)] == [("mesh/example.py", 1)]
    plant(root, "mesh/example.py", f"# {pattern.term}\n")
    assert found(root) == []


def test_a_finding_names_the_file_the_line_the_word_and_the_term(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(root, "README.md", f"# Mesh\n{WORD}\n")
    assert language.main(["--root", str(root)]) == 1
    term = next(pattern.term for pattern in PATTERNS if pattern.example == WORD)
    assert capsys.readouterr().out == f'README.md:2: "{WORD}": write "{term}"\n'


def test_findings_are_counted_by_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(root, "README.md", f"{WORD}\n{WORD}\n")
    plant(root, "docs/scaling.md", f"{WORD}\n")
    assert language.main(["--root", str(root), "--count"]) == 1
    assert capsys.readouterr().out == "    2 README.md\n    1 docs/scaling.md\n    3 in 2 files\n"


def test_text_without_forbidden_words_passes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(root, "README.md", "# Mesh\nThe caller waits.\n")
    assert language.main(["--root", str(root)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("table", ["", "| `(` | x | y |\n"])
def test_a_glossary_without_valid_patterns_is_an_error(root: Path, table: str) -> None:
    plant(root, "docs/glossary.md", f"## Lint patterns\n{table}")
    assert language.main(["--root", str(root)]) == 2


def test_every_row_of_the_table_is_a_pattern() -> None:
    table = (language.ROOT / language.GLOSSARY).read_text("utf-8").partition("## Lint patterns")[2]
    assert len(PATTERNS) == len(re.findall(r"^\| `", table, re.MULTILINE))
