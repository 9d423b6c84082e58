"""The record of the last audit: where the next one goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from ops.audit import Check, Report
from ops.audit.record import Record

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def a_report(*, full: bool, breaches: int = 0, minutes: int = 0) -> Report:
    until = NOW + timedelta(minutes=minutes)
    check = Check("on-hand", "", "everything", 7, breaches)
    return Report(until, None if full else NOW, until, 1.0, [check])


def test_audit_goes_on_where_the_last_clean_one_has_ended(folder: Path) -> None:
    record = Record(folder / "audit.json")
    assert record.clean_until() is None
    record.keep(a_report(full=True))
    assert record.clean_until() == NOW
    record.keep(a_report(full=False, minutes=1))
    assert record.clean_until() == NOW + timedelta(minutes=1)
    # The breach is found again until it is repaired.
    record.keep(a_report(full=False, minutes=2, breaches=1))
    assert record.clean_until() == NOW + timedelta(minutes=1)


def test_audit_after_a_full_one_with_a_breach_is_a_full_one(folder: Path) -> None:
    record = Record(folder / "audit.json")
    record.keep(a_report(full=True))
    record.keep(a_report(full=True, breaches=1, minutes=1))
    assert record.clean_until() is None


def test_record_that_cannot_be_read_is_as_good_as_none(folder: Path) -> None:
    (folder / "audit.json").write_text("{")
    assert Record(folder / "audit.json").clean_until() is None
