"""Whom PostgreSQL runs as when the mesh is started by root."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from stack import system_user
from stack.errors import FolderUnusable
from stack.system_user import unprivileged_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")


def test_who_is_not_root_stays_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unprivileged_user(tmp_path / "data", reaching=[tmp_path]) is None


@needs_root
def test_root_becomes_a_system_user_that_may_enter_closed_folders(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = unprivileged_user(tmp_path / "data", reaching=[tmp_path / "data"])
    assert found is not None
    assert pwd.getpwuid(found.uid).pw_name in system_user.NAMES
    assert found.capability == "CAP_DAC_READ_SEARCH"


@needs_root
def test_data_stay_with_the_user_who_owns_them(tmp_path: Path) -> None:
    shutil.chown(tmp_path, "nobody")
    found = unprivileged_user(tmp_path, reaching=[])
    assert found is not None
    assert pwd.getpwuid(found.uid).pw_name == "nobody"


@needs_root
@pytest.mark.parametrize("capabilities", [0, 1 << 2], ids=["none", "without CAP_SETPCAP to hand it on"])
def test_a_folder_that_cannot_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: int
) -> None:
    monkeypatch.setattr(system_user, "_effective_capabilities", lambda: capabilities)
    tmp_path.chmod(0o700)
    with pytest.raises(FolderUnusable, match="cannot enter /"):
        unprivileged_user(tmp_path / "data", reaching=[tmp_path / "data"])
