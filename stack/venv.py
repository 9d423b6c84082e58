"""Prepares `.venv` with everything that the project needs: `make setup`.

Run by whatever Python 3.11 or newer there is, as `python3 -I stack/venv.py`, so it uses the standard library
alone. It does nothing when the environment is what the project's files ask for. Of several that run at once, one
works and the others wait.
"""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".prepared"


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
    parts = [str(ROOT), sys.version, *((ROOT / name).read_text() for name in ("requirements.txt", "pyproject.toml"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prepare() -> None:
    """Install the pinned dependencies and the project itself."""
    say(f"Preparing {VENV} with Python {sys.version.split()[0]}; this takes a minute or two.")
    if not is_usable():
        run(sys.executable, "-m", "venv", "--clear", str(VENV))
    install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    run(*install, "--require-hashes", "--requirement", str(ROOT / "requirements.txt"))
    # Its build backend is among what was just installed.
    run(*install, "--no-build-isolation", "--editable", str(ROOT))


def is_usable() -> bool:
    """Say whether the environment has this Python, with pip."""
    script = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run([str(PYTHON), "-I", "-c", script], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return found.stdout.strip() == sys.version.strip()


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
