"""The check for breaking changes, when there is nothing to compare with: it says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops import contracts


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the contracts that is no repository."""
    for scope in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{scope}", "/dev/null")
    shutil.copytree(contracts.ROOT / "proto", tmp_path / "proto")
    shutil.copy(contracts.ROOT / "buf.yaml", tmp_path)
    return tmp_path


def commit(root: Path, path: str, *, branch: str) -> None:
    for command in (
        ["init", "-q", "-b", branch],
        ["add", path],
        ["-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-qm", "Begin"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)


def test_a_copy_that_is_no_repository_is_not_compared(copy: Path) -> None:
    with pytest.raises(contracts.NotCompared, match="not a git repository"):
        contracts.breaking(copy)


def test_a_repository_without_main_is_not_compared(copy: Path) -> None:
    commit(copy, ".", branch="other")
    with pytest.raises(contracts.NotCompared, match="there is no branch main"):
        contracts.breaking(copy)
    assert contracts.breaking(copy, against="other") == []
    with pytest.raises(contracts.NotCompared, match="nowhere"):
        contracts.breaking(copy, against="nowhere")


def test_what_git_refuses_is_not_compared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(copy, ".", branch="main")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(contracts.NotCompared, match="dubious ownership"):
        contracts.breaking(copy)


def test_a_main_without_contracts_has_nothing_to_break(copy: Path) -> None:
    commit(copy, "buf.yaml", branch="main")
    assert contracts.breaking(copy) == []


def test_the_command_says_that_it_has_not_compared(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from ops.cli import main; main()", "contracts", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={"PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "the contracts are sound\n")
    assert done.stderr.startswith("not compared with main")
    assert done.stderr.endswith("git is not installed\n")
