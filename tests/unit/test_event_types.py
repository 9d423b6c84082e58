"""The check that event types are taken from the contracts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import event_types


def plant(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("order_svc/wire.py", '\nPLACED = "commerce.order.placed"\n'),
        ("ops/audit/audit.py", "\nwait(f'commerce.order.placed.{order_id}')\n"),
        ("mesh/events/relay.py", "\nif event.type == 'commerce.order.placed': ...\n"),
        ("order_svc/store.py", '"""Orders."""\nSQL = "SELECT FROM outbox WHERE type = \'commerce.order.placed\'"\n'),
        ("payment_svc/consumers.py", "\nasync def table(): return {'commerce.order.placed.*': apply}\n"),
        ("new_svc/consumers.py", "\ntable = ['commerce.order.placed']\n"),
    ],
)
def test_an_event_type_in_a_string_is_found(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert list(event_types.check(tmp_path)) == [(Path(path), 2, "commerce.order.placed")]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("order_svc/wire.py", '"""Of `commerce.order.placed`."""\n'),
        (
            "order_svc/wire.py",
            'class A:\n    """Of `commerce.order.placed`."""\n    a = 1\n    """commerce.order.placed"""\n',
        ),
        ("order_svc/wire.py", "# commerce.order.placed\n"),
        ("order_svc/wire.py", "NAME = 'commerce.order.v1.OrderPlaced'\n"),
        ("order_svc/wire.py", "NAME = 'commerce.order.placed_by'\n"),
        ("order_svc/wire.py", "NAME = 'org.commerce.order.placed'\n"),
        ("tests/order/test_events.py", "TYPE = 'commerce.order.placed'\n"),
        (".venv/lib/a.py", "TYPE = 'commerce.order.placed'\n"),
    ],
)
def test_documentation_tests_and_other_names_are_no_findings(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert list(event_types.check(tmp_path)) == []


def test_the_code_has_no_literal_event_type() -> None:
    assert [str(finding) for finding in event_types.check(event_types.ROOT)] == []


def test_a_planted_event_type_is_printed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert event_types.main(["--root", str(tmp_path)]) == 0
    plant(tmp_path, "order_svc/wire.py", "PLACED = 'commerce.order.placed'\n")
    assert event_types.main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("order_svc/wire.py:1: `commerce.order.placed` is a literal")


def test_make_lint_looks_for_literal_event_types() -> None:
    commands = subprocess.run(
        ["make", "--dry-run", "lint"], cwd=event_types.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert ".venv/bin/python -m tests.event_types\n" in commands
