"""Log files that others write to."""

from pathlib import Path

import pytest

from stack.logfile import Follower, open_log, rotate, tail


def test_a_log_that_has_grown_too_long_is_put_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "order.log"
    with open_log(path) as log:
        for part in (b"first\n", b"second\n", b"third\n"):
            log.write(part)
            assert rotate(path, size=3, kept=2)
        log.write(b"fourth\n")
    files = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert files == {"order.log": "fourth\n", "order.log.1": "third\n", "order.log.2": "second\n"}


def test_a_short_log_and_a_missing_one_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "order.log").write_text("short")
    assert not rotate(tmp_path / "order.log")
    assert not rotate(tmp_path / "missing.log")


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "order.log"
    path.write_text("".join(f"line {number}\n" for number in range(5000)))
    assert tail(path, 2) == ["line 4998", "line 4999"]
    assert tail(path, 0) == []
    assert tail(tmp_path / "missing.log", 3) == []


@pytest.mark.parametrize("ending", ["\n", ""])
def test_the_tail_is_whole_lines_however_long(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "order.log"
    lines = [f"{number} {'é' * 100_000}" for number in range(5)]
    path.write_text("\n".join(lines) + ending)
    assert tail(path, 2) == lines[-2:]
    assert tail(path, 9) == lines


def test_tail_begins_no_earlier_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "order.log"
    path.write_text("before\nafter\n")
    assert tail(path, 9, since=len("before\n")) == ["after"]
    assert tail(path, 9, since=len("before\nafter\n")) == []
    # Emptied meanwhile, all that is there came after.
    assert tail(path, 9, since=1000) == ["before", "after"]


def test_a_follower_gives_whole_lines_only_and_goes_on_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "order.log"
    with open_log(path) as log:
        log.write(b"before\n")
        follower = Follower(path)
        log.write(b"one\ntw")
        assert follower.added() == ["one"]
        log.write(b"o\n")
        assert follower.added() == ["two"]
        rotate(path, size=0)
        log.write(b"3\n")
        assert follower.added() == ["3"]
