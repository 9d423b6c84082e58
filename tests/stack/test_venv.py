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


@pytest.fixture
def programs(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an environment whose programs only write down how they were called, in `calls`."""
    uv = "uv==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n    # via project\n"
    (project / "requirements.txt").write_text(f"tea==1 \\\n    --hash=sha256:aa\n{uv}uvloop==3\n")
    folder = project / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "uv"):
        monkeypatch.setattr(venv, name.upper(), folder / name)
        a_program(folder / name, "")
    monkeypatch.setattr(venv, "VENV", project / ".venv")
    monkeypatch.setattr(venv, "fastest", lambda: (sys.executable, sys.version))
    monkeypatch.setattr(venv, "is_usable", lambda _: True)
    for name in ("UV_DEFAULT_INDEX", "UV_LINK_MODE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def a_program(path: Path, script: str) -> None:
    path.write_text(f"""#!/bin/sh
echo "$(basename "$0") $*" >> '{path.parent}/calls'
{script}
""")
    path.chmod(0o755)


def installations(folder: Path) -> list[str]:
    """What was installed, and by what."""
    return [call for call in (folder / "calls").read_text().splitlines() if " install " in call]


def test_everything_is_installed_with_the_pinned_uv(
    programs: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a_program(
        programs / "python", f"""for last; do test ! -f "$last" || cat "$last" > '{programs}/uv-requirement'; done"""
    )
    a_program(programs / "uv", "echo 'Downloading tea'; echo ' + tea==1'")
    venv.prepare()
    [by_pip, *by_uv] = installations(programs)
    assert by_pip.startswith("python -m pip install")
    assert "--require-hashes" in by_pip
    assert (programs / "uv-requirement").read_text() == "uv==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc"
    assert [call.partition("--no-deps ")[2] for call in by_uv] == [
        f"--require-hashes --requirement {project}/requirements.txt",
        f"--no-build-isolation --editable {project}",
    ]
    shown = capfd.readouterr().out
    assert "Downloading tea\n" in shown
    assert "tea==1" not in shown


@pytest.mark.parametrize("fault", ["uv cannot be installed", "uv fails", "uv cannot be run"])
def test_pip_installs_everything_where_uv_cannot(programs: Path, project: Path, fault: str) -> None:
    if fault == "uv cannot be installed":
        a_program(programs / "python", 'case "$*" in *requirements-*) exit 1;; esac')
    elif fault == "uv fails":
        a_program(programs / "uv", "exit 2")
    else:
        (programs / "uv").unlink()
    venv.prepare()
    assert [call.partition("--no-deps ")[2] for call in installations(programs)[-2:]] == [
        f"--require-hashes --requirement {project}/requirements.txt",
        f"-qq --no-build-isolation --editable {project}",
    ]


def test_a_setup_that_uv_and_pip_cannot_do_fails(programs: Path) -> None:
    for name in ("python", "uv"):
        a_program(programs / name, "exit 2")
    with pytest.raises(SystemExit, match="failed with code 2"):
        venv.prepare()


def test_uv_takes_packages_from_the_index_that_pip_is_set_to(programs: Path) -> None:
    settings = ["global.index-url='https://far.example/simple'", ":env:.index-url='https://near.example/simple'"]
    a_program(programs / "python", "\n".join(f'echo "{setting}"' for setting in settings))
    assert venv.uv_settings()["UV_DEFAULT_INDEX"] == "https://near.example/simple"


@pytest.mark.parametrize(("cache", "settings"), [("/proc/none/uv", {"UV_LINK_MODE": "copy"}), ("", {})])
def test_uv_copies_files_only_where_it_cannot_link_them(
    programs: Path, project: Path, cache: str, settings: dict[str, str]
) -> None:
    a_program(programs / "uv", f"echo {cache or project / 'cache'}")
    assert venv.uv_settings() == settings


def test_the_project_pins_the_uv_that_it_is_installed_with() -> None:
    lines = venv.requirement("uv").splitlines()
    assert lines[0].startswith("uv==")
    assert len(lines) > 1
    assert all(line.strip().startswith("--hash=sha256:") for line in lines[1:])


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


def test_one_python_under_several_names_is_asked_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        a_python(
            tmp_path / name,
            f"""echo asked >> '{tmp_path}/asked'; echo '["{sys.executable}", "{sys.version.split()[0]}", 9.0]'""",
        )
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("one", "two", "one")))
    assert venv.fastest() == (sys.executable, sys.version)
    assert (tmp_path / "asked").read_text() == "asked\n" * 2


def test_a_python_off_the_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert venv.fastest() == (sys.executable, sys.version)
