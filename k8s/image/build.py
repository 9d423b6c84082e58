"""Builds the images of the services and of the edge from the Containerfile, with docker or buildah.

It needs Python's standard library only, and runs before the environment of the project exists.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"services": "commerce-mesh", "edge": "commerce-mesh-edge"}
"""The stages of the Containerfile and the names of their images."""


BUILDERS = ("docker", "buildah")


def _works(builder: str) -> bool:
    return (
        bool(shutil.which(builder))
        and not subprocess.run([builder, "info"], capture_output=True, check=False).returncode
    )


def main() -> None:
    """Build the images. Exits with 1 if neither tool is installed, else with the code of the tool."""
    parser = argparse.ArgumentParser(prog="make image", description=__doc__)
    parser.add_argument("--base", help="the image that both are built on; it has Python 3.11 and its venv module")
    parser.add_argument("--tag", default="dev", help="the tag of the images (default: dev)")
    parser.add_argument("--volume", action="append", default=[], help="a folder for buildah's build, SRC:DST:ro")
    parser.add_argument("--builder", choices=BUILDERS, help="the tool (default: the first that works here)")
    options = parser.parse_args()
    if not (builder := options.builder or next(filter(_works, BUILDERS), None)):
        sys.exit("make image: neither docker (with its daemon) nor buildah works here")
    for target, name in TARGETS.items():
        command = [builder, "build", "--file", "Containerfile", "--target", target, "--tag", f"{name}:{options.tag}"]
        if options.base:
            command += ["--build-arg", f"BASE={options.base}"]
        for volume in options.volume:
            command += ["--volume", volume]
        if builder == "buildah":
            command += ["--layers"]
        code = subprocess.run([*command, "."], cwd=ROOT, check=False).returncode
        if code:
            sys.exit(code)
        sys.stdout.write(f"{name}:{options.tag} is built\n")


if __name__ == "__main__":
    main()
