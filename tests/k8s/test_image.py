"""The images: built from the Containerfile on a bare Debian, and each program in them checked without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT, environment
from tests.services import Keys

NEEDED = ("buildah", "debootstrap")
MEMORY = Path("/dev/shm")
SERVICES = ("customer", "order", "payment", "product")

pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)) or os.geteuid() != 0,
        reason="the images are not built: this takes root and Debian's packages buildah and debootstrap",
    ),
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Buildah:
    """Buildah with a store of its own."""

    store: Path

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["buildah", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        configuration = self.store / "storage.conf"
        return os.environ | {"BUILDAH_ISOLATION": "chroot", "CONTAINERS_STORAGE_CONF": str(configuration)}

    def size(self, image: str) -> float:
        """In bytes, of all layers together."""
        [found] = json.loads(self("images", "--json", image))
        number, unit = found["size"].split()
        return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Both images, and the base that they are built on."""
    # Buildah copies the whole file system at each step: 4 GiB, in memory if there is plenty.
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 12 * 1024**3
    store = Path(tempfile.mkdtemp(prefix="images-", dir=MEMORY)) if has_room else tmp_path_factory.mktemp("images")
    (store / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{store}/graph"\nrunroot = "{store}/run"\n'
    )
    try:
        yield built(Buildah(store))
    finally:
        shutil.rmtree(store)


def built(buildah: Buildah) -> Buildah:
    """Build the base and both images."""
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, str(debian()), "/")
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", base)
    buildah("commit", "--quiet", "--rm", base, "localhost/base")
    # So that pip asks the same index as on this machine.
    volumes = [f"--volume={path}:{path}:ro" for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
    command = [sys.executable, "-I", "k8s/image/build.py", "--builder=buildah", "--base=localhost/base", "--tag=test"]
    done = subprocess.run(
        [*command, *volumes], cwd=ROOT, env=buildah.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return buildah


def debian() -> Path:
    """The files of a bare Debian with Python, made once on a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "commerce-mesh"
    tree = cache / "debian-bookworm"
    if not tree.exists():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = cache / f"debian-bookworm.{os.getpid()}"
        packages = "python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(scratch), *mirror()],
            check=True,
            capture_output=True,
        )
        scratch.rename(tree)
    return tree


def mirror() -> list[str]:
    """Where this machine gets Debian's packages; nothing means debootstrap's own choice."""
    for sources in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for line in sources.read_text().splitlines():
            if line.startswith("URIs:"):
                return [line.split()[1]]
    return []


def checked(buildah: Buildah, image: str, variables: Mapping[str, str], keys: Path | None, *command: str) -> str:
    """The output of a command in a container of the image, as its own user. The keys are mounted at /keys."""
    settings = {
        name: value.replace(str(keys), "/keys") for name, value in variables.items() if name.startswith("MESH_")
    }
    container = buildah("from", f"localhost/{image}:test")
    try:
        return buildah(
            "run",
            *(f"--env={name}={value}" for name, value in settings.items()),
            *([f"--volume={keys}:/keys:ro"] if keys else []),
            container,
            "--",
            *command,
        )
    finally:
        buildah("rm", container)


@pytest.fixture(scope="module")
def mounted(buildah: Buildah) -> tuple[Keys, Path]:
    """Keys that the user of the images may read, and their folder."""
    folder = buildah.store / "keys"
    keys = Keys.made(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return keys, folder


def test_every_service_checks_its_settings_in_the_image(buildah: Buildah, mounted: tuple[Keys, Path]) -> None:
    keys, folder = mounted
    for service in SERVICES:
        output = checked(
            buildah,
            "commerce-mesh",
            environment(service, None, keys),
            folder,
            "python",
            "-m",
            f"{service}_svc",
            "--check",
        )
        assert output == f"{service}: the settings are valid, and the service can be built"


def test_edge_renders_its_configuration_in_the_image_and_envoy_accepts_it(
    buildah: Buildah, mounted: tuple[Keys, Path]
) -> None:
    keys, folder = mounted
    gateway = keys.peers["gateway"]
    variables = {
        **{f"MESH_{service.upper()}_TARGET": f"{service}-svc:9090" for service in SERVICES},
        "MESH_EDGE_FOLDER": "/tmp/edge",
        "MESH_TLS_CA": str(gateway.ca),
        "MESH_TLS_CERT": str(gateway.cert),
        "MESH_TLS_KEY": str(gateway.key),
        "MESH_JWKS": str(keys.signing.jwks),
    }
    script = "python -m gateway --check && envoy --mode validate --config-path /tmp/edge/envoy.yaml"
    output = checked(buildah, "commerce-mesh-edge", variables, folder, "sh", "-c", script)
    assert "configuration '/tmp/edge/envoy.yaml' OK" in output


def test_audit_is_in_the_image_of_the_services(buildah: Buildah) -> None:
    assert "--since SECONDS" in checked(buildah, "commerce-mesh", {}, None, "python", "-m", "ops.audit", "--help")


def test_images_hold_no_compiler_no_server_and_run_as_nobody_special(buildah: Buildah) -> None:
    for image in ("commerce-mesh", "commerce-mesh-edge"):
        programs = "gcc cc pip postgres initdb nats-server redis-server"
        script = (
            f"id -u; for program in {programs}; do command -v $program; done; touch /mesh/x 2>/dev/null && echo written"
        )
        assert checked(buildah, image, {}, None, "sh", "-c", f"{script}; true") == "10001"


def test_images_add_at_most_300_mb_to_their_base(buildah: Buildah) -> None:
    base = buildah.size("localhost/base")
    sizes = {image: buildah.size(f"localhost/{image}:test") - base for image in ("commerce-mesh", "commerce-mesh-edge")}
    assert max(sizes.values()) <= 300e6, sizes
