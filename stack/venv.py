"""Prepares `.venv` with everything that the project needs: `make setup`.

Run by whatever Python 3.11 or newer there is, as `python3 -I stack/venv.py`, so it uses the standard library
alone. It does nothing when the environment is what the project's files ask for. Of several that run at once, one
works and the others wait.

A machine may have several Pythons of one version, and how they were built makes a third of their speed: the
environment gets the fastest, unless `--this` asks for the one that runs this.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".prepared"

_PROBE = """
import ensurepip, json, ssl, sys, timeit, venv
work = "for i in range(200):\\n t[i] = (i, str(i))\\n f(i)"
seconds = min(timeit.repeat(work, "t = {}\\ndef f(x): return x + 1", number=100, repeat=7))
print(json.dumps([sys.executable, sys.version, seconds]))
"""
"""Fails in a Python that cannot make an environment; tells how long a little work takes it."""
_ROUNDS = 5
"""How often each is asked, in turn: whoever else is busy on the machine for a moment must not decide it."""


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
    say(f"Preparing {VENV} with Python {version.split()[0]} ({python}); this takes a minute or two.")
    if not is_usable(version):
        run(python, "-m", "venv", "--clear", str(VENV))
    # Twice quiet: only errors.
    install = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--no-deps"]
    run(*install, "--require-hashes", "--requirement", str(ROOT / "requirements.txt"))
    # Its build backend is among what was just installed.
    run(*install, "--no-build-isolation", "--editable", str(ROOT))


def fastest() -> tuple[str, str]:
    """Return the fastest Python of this one's minor version on PATH, this one included, and its full version."""
    name = f"python3.{sys.version_info.minor}"
    folders = os.environ.get("PATH", "").split(os.pathsep)
    programs = [sys.executable, *(str(Path(folder) / name) for folder in folders if folder)]
    answers = [answer for _ in range(_ROUNDS) for program in programs if (answer := probe(program))]
    return min(answers, default=(0.0, sys.executable, sys.version))[1:]


def probe(python: str) -> tuple[float, str, str] | None:
    """Return how many seconds a little work takes a Python, its path and its version; none if it is of no use."""
    try:
        answer = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, check=False)
    except OSError:
        return None
    if answer.returncode != 0:
        return None
    path, version, seconds = json.loads(answer.stdout)
    return seconds, path, version


def is_usable(version: str) -> bool:
    """Say whether the environment has the Python of that full version, with pip."""
    script = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run([str(PYTHON), "-I", "-c", script], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return found.stdout.strip() == version.strip()


def run(*command: str) -> None:
    """Run the command, and end with it when it fails: it has said why."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(f"{' '.join(command[:4])} ... failed with code {code}.")


def say(text: str) -> None:
    """Tell the person, before what takes long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
