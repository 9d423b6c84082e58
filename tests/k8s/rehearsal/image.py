"""What is in the root of a container: the files of the working tree in the places where the images have them."""

from __future__ import annotations

import shlex
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.processes import ROOT

ENVIRONMENT = {
    "PATH": "/mesh/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "/mesh/src:/mesh/src/gen",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}
"""The variables of the images, as in the Containerfile."""
FOLDER = "/mesh"
"""The working directory, as in the Containerfile."""

_IMAGES = {"commerce-mesh", "commerce-mesh-edge"}
_SYSTEM = ("usr", "bin", "lib", "lib64", "sbin")
_ETC = ("group", "ld.so.cache", "nsswitch.conf", "passwd", "ssl")


def bind(source: Path, target: Path, *, is_read_only: bool = True) -> Iterator[str]:
    """The commands of a shell that show a file or folder at `target`, which they make."""
    place = shlex.quote(str(target))
    if source.is_dir():
        yield f"mkdir -p {place}"
    else:
        yield f"mkdir -p {shlex.quote(str(target.parent))}"
        yield f"test -e {place} || touch {place}"
    yield f"mount --bind {'-o ro ' if is_read_only else ''}{shlex.quote(str(source))} {place}"


def mounts(name: str, root: Path) -> Iterator[str]:
    """The commands of a shell that make the root of a container of this image.

    It has this machine's programs, the environment of the working tree as the image's own, and of the tree what the
    images have of it. Raises LookupError for an image that is not of the mesh.
    """
    if name.partition(":")[0] not in _IMAGES:
        raise LookupError(f"no image {name}")
    yield f"mount -t tmpfs -o mode=755 root {shlex.quote(str(root))}"
    yield from _system(root)
    for path in Path(sys.prefix).iterdir():
        if not path.is_symlink():
            yield from bind(path, root / "mesh" / path.name)
    if name.partition(":")[0] == "commerce-mesh-edge":
        # The program itself, in the place of the script that starts it.
        program = Path(sysconfig.get_path("purelib")) / "envoy" / "_bin" / "envoy"
        yield from bind(program, root / "mesh" / "bin" / "envoy")
    for each in packages():
        yield from bind(ROOT / each, root / "mesh" / "src" / each)


def _system(root: Path) -> Iterator[str]:
    """What the base image has: the programs and libraries of this machine."""
    for each in _SYSTEM:
        path = Path("/") / each
        if path.is_symlink():
            yield f"ln -s {path.readlink()} {root / each}"
        elif path.is_dir():
            yield from bind(path, root / each)
    for each in _ETC:
        if (path := Path("/etc") / each).exists():
            yield from bind(path, root / "etc" / each)
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        yield from bind(Path(sys.base_prefix), root / sys.base_prefix.lstrip("/"))


def packages() -> list[str]:
    """The folders of the tree that the images have: those that .dockerignore leaves."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!") and (ROOT / line[1:]).is_dir()]
