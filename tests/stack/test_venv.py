"""When `make setup` has something to do."""

import sys
from pathlib import Path

import pytest

from stack import venv


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that wants little, with an environment that is made in no time."""
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text("little\n")
    monkeypatch.setattr(venv, "ROOT", tmp_path)
    monkeypatch.setattr(venv, "STAMP", tmp_path / ".venv" / ".prepared")
    return tmp_path


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was prepared: an entry each time."""
    times: list[str] = []

    def prepare() -> None:
        (project / ".venv").mkdir(exist_ok=True)
        times.append("prepared")

    monkeypatch.setattr(venv, "prepare", prepare)
    return times


def test_it_is_prepared_once(prepared: list[str]) -> None:
    venv.main()
    venv.main()
    assert len(prepared) == 1


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_it_is_prepared_again_when_more_is_wanted(project: Path, prepared: list[str], name: str) -> None:
    venv.main()
    (project / name).write_text("much\n")
    venv.main()
    assert len(prepared) == 2


def test_a_copy_of_the_project_elsewhere_is_prepared_anew(
    project: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.main()
    copy = project / "copy"
    copy.mkdir()
    for name in ("requirements.txt", "pyproject.toml"):
        (copy / name).write_text("little\n")
    monkeypatch.setattr(venv, "ROOT", copy)
    venv.main()
    assert len(prepared) == 2


def test_a_preparation_that_failed_is_tried_again(
    project: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.main()
    (project / "requirements.txt").write_text("much\n")
    with monkeypatch.context() as broken:
        broken.setattr(venv, "prepare", lambda: venv.run("/bin/false"))
        with pytest.raises(SystemExit, match=r"/bin/false .* failed with code 1"):
            venv.main()
    venv.main()
    assert len(prepared) == 2


def a_python(folder: Path, answer: str) -> None:
    """A Python on PATH that says what the probe of one would print."""
    folder.mkdir()
    program = folder / f"python3.{sys.version_info.minor}"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)


def test_the_environment_gets_the_fastest_python_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_python(tmp_path / "slow", """echo '["/slow", "3.11.0", 9.0]'""")
    a_python(tmp_path / "fast", """echo '["/fast", "3.11.0", 0.0]'""")
    a_python(tmp_path / "without venv", "exit 1")
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("none", "slow", "without venv", "fast")))
    assert venv.fastest() == ("/fast", "3.11.0")


def test_a_moment_in_which_the_machine_was_busy_does_not_decide_which_is_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    a_python(
        tmp_path / "fast",
        f"""if test -e '{asked}'; then echo '["/fast", "3.11.0", 0.0]'; else echo '["/fast", "3.11.0", 9.0]'; fi""",
    )
    a_python(tmp_path / "slow", f"""echo '["/slow", "3.11.0", 0.00001]'; true > '{asked}'""")
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("fast", "slow")))
    assert venv.fastest() == ("/fast", "3.11.0")


def test_a_python_off_the_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert venv.fastest() == (sys.executable, sys.version)
