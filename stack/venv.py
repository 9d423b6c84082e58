"""Prepares `.venv` with everything that the project needs: `make setup`.

Run by whatever Python 3.11 or newer there is, as `python3 -I stack/venv.py`, so it uses the standard library
alone. It does nothing when the environment is what the project's files ask for. Of several that run at once, one
works and the others wait.

uv installs the packages in a few seconds, pip in a minute. pip installs uv, and everything else where uv cannot be had
or fails. Both take the versions and hashes of `requirements.txt`.

A machine may have several Pythons of one version, and how they were built makes a third of their speed: the
environment gets the fastest, unless `--this` asks for the one that runs this.
"""

import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
STAMP = VENV / ".prepared"

_PROBE = """
import ensurepip, json, ssl, sys, timeit, venv
work = "for i in range(200):\\n t[i] = (i, str(i))\\n f(i)"
seconds = min(timeit.repeat(work, "t = {}\\ndef f(x): return x + 1", number=100, repeat=7))
print(json.dumps([sys.executable, sys.version, seconds]))
"""
"""Fails in a Python that cannot make an environment; tells how long a little work takes it."""
_ROUNDS = 5
"""How often each of several is asked, in turn: another program that is busy for a moment must not decide it."""


def main() -> None:
    """Make the environment what it should be."""
    with (ROOT / "requirements.txt").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.exists() or STAMP.read_text() != wanted():
            STAMP.unlink(missing_ok=True)
            prepare()
            STAMP.write_text(wanted())


def wanted() -> str:
    """Return a mark of all that the environment depends on: it is bound to its place and its Python, too."""
    files = [Path(__file__), ROOT / "requirements.txt", ROOT / "pyproject.toml"]
    parts = [str(ROOT), sys.version, *sys.argv[1:], *(file.read_text() for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prepare() -> None:
    """Install the pinned dependencies and the project itself."""
    python, version = (sys.executable, sys.version) if "--this" in sys.argv[1:] else fastest()
    say(f"Preparing {VENV} with Python {version.split()[0]} ({python}).")
    if not is_usable(version):
        run(python, "-m", "venv", "--clear", str(VENV))
    if not (uv_is_installed() and installed_by_uv()):
        install_by_pip()


def uv_is_installed() -> bool:
    """Install the pinned uv with pip; say whether that succeeded."""
    with tempfile.NamedTemporaryFile("w", prefix="requirements-", suffix=".txt") as uv:
        uv.write(requirement("uv"))
        uv.flush()
        return succeeds(*pip_install(), "-qq", *pinned(uv.name))


def installed_by_uv() -> bool:
    """Install the pinned dependencies and the project with uv; say whether that succeeded."""
    install = [str(UV), "pip", "install", "--python", str(PYTHON), "--no-deps"]
    environment = {**uv_settings(), **os.environ}
    # Not the names of a hundred packages: what takes long is shown.
    hidden = (" + ", " - ", " ~ ", "Using Python")
    return all(
        succeeds(*install, *packages, environment=environment, hidden=hidden)
        for packages in (pinned(str(ROOT / "requirements.txt")), project())
    )


def install_by_pip() -> None:
    """Install the pinned dependencies and the project with pip, or end the program."""
    say("uv cannot be used: installing with pip; this takes a minute or two.")
    run(*pip_install(), *pinned(str(ROOT / "requirements.txt")))
    run(*pip_install(), "-qq", *project())


def pip_install() -> list[str]:
    """Return the command that installs with pip."""
    return [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]


def pinned(requirements: str) -> list[str]:
    """Return the arguments, of pip and of uv, for what a file of requirements with hashes names."""
    return ["--require-hashes", "--requirement", requirements]


def project() -> list[str]:
    """Return the arguments, of pip and of uv, for the project: its build backend is among the pinned dependencies."""
    return ["--no-build-isolation", "--editable", str(ROOT)]


def requirement(name: str) -> str:
    """Return the lines of `requirements.txt` for a package: its version and hashes."""
    lines = iter((ROOT / "requirements.txt").read_text().splitlines())
    found: list[str] = []
    for line in lines:
        if line.startswith(f"{name}==") or found:
            found.append(line)
            if not line.endswith("\\"):
                break
    return "\n".join(found)


def uv_settings() -> dict[str, str]:
    """Return settings of uv: pip's settings of the package index, and how to take files from uv's cache."""
    listed = printed(str(PYTHON), "-m", "pip", "config", "list").splitlines()
    settings = dict(line.split("=", 1) for line in listed if "=" in line)
    found = {}
    for of_pip, of_uv in (("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE")):
        for section in ("global", "install", ":env:"):  # the last one counts
            if value := settings.get(f"{section}.{of_pip}"):
                found[of_uv] = ast.literal_eval(value)
    cache = Path(printed(str(UV), "cache", "dir").strip() or "/")
    while not cache.exists():
        cache = cache.parent
    if cache.stat().st_dev != VENV.stat().st_dev:
        # By default uv makes hard links, and warns when it has to copy instead.
        found["UV_LINK_MODE"] = "copy"
    return found


def fastest() -> tuple[str, str]:
    """Return the fastest Python of this one's minor version on PATH, this one included, and its full version."""
    name = f"python3.{sys.version_info.minor}"
    folders = os.environ.get("PATH", "").split(os.pathsep)
    programs = [sys.executable, *(str(Path(folder) / name) for folder in folders if folder)]
    answers: list[tuple[float, str, str]] = []
    asked: dict[str, str] = {}
    for program in dict.fromkeys(programs):
        if answer := probe(program):
            answers.append(answer)
            # Several names may lead to one Python.
            asked.setdefault(os.path.realpath(answer[1]), program)
    if len(asked) > 1:
        answers += [answer for _ in range(_ROUNDS - 1) for program in asked.values() if (answer := probe(program))]
    return min(answers, default=(0.0, sys.executable, sys.version))[1:]


def probe(python: str) -> tuple[float, str, str] | None:
    """Return how many seconds a little work takes a Python, its path and its version; none if it is of no use."""
    answer = printed(python, "-I", "-c", _PROBE)
    if not answer:
        return None
    path, version, seconds = json.loads(answer)
    return seconds, path, version


def is_usable(version: str) -> bool:
    """Say whether the environment has the Python of that full version, with pip."""
    return printed(str(PYTHON), "-I", "-c", "import sys, pip; print(sys.version)").strip() == version.strip()


def printed(*command: str) -> str:
    """Run the command and return what it printed; nothing if it failed or could not be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def run(*command: str) -> None:
    """Run the command, and end with it when it fails: it has said why."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(f"{' '.join(command[:4])} ... failed with code {code}.")


def succeeds(*command: str, environment: Mapping[str, str] = os.environ, hidden: tuple[str, ...] = ()) -> bool:
    """Run the command, show its output except lines that begin with one of `hidden`; say whether it succeeded."""
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        )
    except OSError as error:
        say(str(error))
        return False
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(hidden):
                say(line.rstrip("\n"))
    return process.returncode == 0


def say(text: str) -> None:
    """Tell the person, before what takes long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
