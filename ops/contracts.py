"""The contracts: what is generated from `proto/`, and the checks that keep both sound.

Nothing here needs a network. The `.proto` text of google/api, google/rpc and google/type comes from the
package googleapis-common-protos; that of buf/validate exists only as the descriptor inside the package
protovalidate, so it reaches protoc as a descriptor set. buf then reads images that protoc made.
"""

from __future__ import annotations

import filecmp
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parent.parent

ERROR_DETAILS = ("google/rpc/error_details.proto", "google/rpc/status.proto")
"""Nothing imports these, but Envoy can only print error details whose types it knows."""

EVENTS = Path("docs", "events.md")
"""The reference of events."""

DESCRIPTORS = Path("commerce", "commerce.binpb")
"""The contracts as a descriptor set, in the package `commerce` so that it is installed with it."""

OPENAPI = Path("commerce", "openapi.json")
"""The contracts as the OpenAPI document of the edge, in the same package."""

_SERVICE = re.compile(r"^service ", re.MULTILINE)


class ContractsError(Exception):
    """The contracts cannot be compiled; the text says why."""


class NotCompared(Exception):
    """There is nothing to compare the contracts with; the text says why."""


def generate(root: Path = ROOT) -> list[Path]:
    """Make `gen/` and `docs/events.md` from `proto/`, and return the files that changed, relative to `root`.

    Files that are the same are left alone.

    Raises:
        ContractsError: the contracts do not compile.
    """
    with tempfile.TemporaryDirectory(prefix="contracts-") as scratch:
        fresh = Path(scratch) / "gen"
        contracts = image(root / "proto", Path(scratch) / "image.binpb")
        _compile(root / "proto", contracts, fresh)
        changed = _differences(fresh, root / "gen")
        for relative in changed:
            source, target = fresh / relative, root / "gen" / relative
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            else:
                target.unlink()
        # Last, because it imports the generated code.
        reference = _event_reference(contracts)
    if not _is_current(root / EVENTS, reference):
        (root / EVENTS).parent.mkdir(exist_ok=True)
        (root / EVENTS).write_text(reference, "utf-8")
        return [*(Path("gen") / relative for relative in changed), EVENTS]
    return [Path("gen") / relative for relative in changed]


def lint(root: Path = ROOT) -> list[str]:
    """Return what buf's rules in `buf.yaml`, and its formatter, find in `proto/`."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as scratch:
        contracts = image(root / "proto", Path(scratch) / "image.binpb")
        findings = _buf(root, "lint", str(contracts), "--path", "commerce")
    unformatted = _buf(root, "format", "proto", "--diff", "--exit-code")
    return [*findings, *unformatted]


def breaking(root: Path = ROOT, against: str | None = None) -> list[str]:
    """Return what in `proto/` breaks a client of the contracts at a commit.

    `against` is any name git knows a commit by; by default the last commit on main. When it has no contracts yet,
    there is nothing to break.

    Raises:
        ContractsError: the contracts do not compile.
        NotCompared: there is no such commit, or git does not give it: a copy of the project need not be a repository.
    """
    commit = against or _last_commit_on_main(root)
    with tempfile.TemporaryDirectory(prefix="contracts-") as scratch:
        before = Path(scratch) / "before"
        if not _extract(root, commit, before):
            return []
        old = image(before / "proto", Path(scratch) / "old.binpb")
        new = image(root / "proto", Path(scratch) / "new.binpb")
        return _buf(root, "breaking", str(new), "--against", str(old), "--path", "commerce")


def drift(root: Path = ROOT) -> list[str]:
    """Return the generated files that are not what `generate` makes of `proto/`."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as scratch:
        fresh = Path(scratch) / "gen"
        contracts = image(root / "proto", Path(scratch) / "image.binpb")
        _compile(root / "proto", contracts, fresh)
        found = [Path("gen") / relative for relative in _differences(fresh, root / "gen")]
        reference = _event_reference(contracts)
    if not _is_current(root / EVENTS, reference):
        found.append(EVENTS)
    return [f"{path}: differs from what `mesh contracts generate` makes" for path in found]


def image(protos: Path, into: Path) -> Path:
    """Write what buf reads, a descriptor set of the contracts with their comments, and return its path.

    Raises:
        ContractsError: the contracts do not compile.
    """
    _protoc(
        protos,
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={into}",
        *_contracts(protos),
    )
    return into


def _event_reference(contracts: Path) -> str:
    # Imported here, because they import generated code, which `generate` must be able to make anew.
    from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: PLC0415

    from ops import event_reference  # noqa: PLC0415

    declared = event_reference.events(FileDescriptorSet.FromString(contracts.read_bytes()))
    return event_reference.reference(declared, event_reference.consumers())


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


def _compile(protos: Path, commented: Path, into: Path) -> None:
    """Write Python code, type stubs, the descriptor set and the OpenAPI document to the folder `into`.

    `commented` is an image of the same contracts.
    """
    into.mkdir(parents=True)
    plugins = [f"--plugin={name}={_tool(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    contracts = _contracts(protos)
    _protoc(
        protos,
        *plugins,
        f"--python_out={into}",
        f"--mypy_out=quiet:{into}",
        *contracts,
        "buf/validate/validate.proto",
    )
    services = [name for name in contracts if _SERVICE.search((protos / name).read_text("utf-8"))]
    _protoc(protos, *plugins, f"--grpc_python_out={into}", f"--mypy_grpc_out=quiet:{into}", *services)
    _protoc(
        protos,
        "--include_imports",
        f"--descriptor_set_out={into / DESCRIPTORS}",
        *contracts,
        *ERROR_DETAILS,
    )
    for package in {folder for file in into.rglob("*.py") for folder in file.relative_to(into).parents}:
        if package != Path():
            (into / package / "__init__.py").touch()
            if package.parent == Path():
                (into / package / "py.typed").touch()
    _write_openapi(commented, into)


def _write_openapi(commented: Path, gen: Path) -> None:
    """Write the OpenAPI document in a process of its own, which imports the code just generated in `gen`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gateway.openapi", str(commented), str(gen / OPENAPI)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(gen), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ContractsError(f"the OpenAPI document: {done.stderr.strip() or 'failed'}")


def _contracts(protos: Path) -> list[str]:
    return sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))


def _protoc(protos: Path, *arguments: str) -> None:
    common_protos = find_spec("google.rpc.status_pb2")
    if common_protos is None or common_protos.origin is None:
        raise ContractsError("googleapis-common-protos is not installed")
    site_packages = Path(common_protos.origin).parents[2]
    with tempfile.TemporaryDirectory(prefix="contracts-") as scratch:
        known = Path(scratch) / "known.binpb"
        known.write_bytes(_descriptors_without_text())
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{protos}",
                f"-I{site_packages}",
                f"--descriptor_set_in={known}",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise ContractsError(f"protoc: {done.stderr.strip() or 'failed'}")


def _descriptors_without_text() -> bytes:
    """Return, as a descriptor set, the imports whose `.proto` text no package holds."""
    # Imported here, because the `mesh` command loads this module to say `--help`.
    from google.protobuf import (  # noqa: PLC0415
        any_pb2,
        descriptor_pb2,
        duration_pb2,
        field_mask_pb2,
        timestamp_pb2,
    )
    from protovalidate._gen.buf.validate import validate_pb  # noqa: PLC0415

    known = descriptor_pb2.FileDescriptorSet()
    for module in (any_pb2, descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(known.file.add())
    known.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    return known.SerializeToString(deterministic=True)


def _buf(root: Path, *arguments: str) -> list[str]:
    """Run buf, which reads `buf.yaml`, and return what it found, a line each."""
    with tempfile.TemporaryDirectory(prefix="mesh-buf-") as cache:
        # It has nothing to keep; without a home directory it would keep that among the contracts.
        done = subprocess.run(
            [_tool("buf"), *arguments],
            cwd=root,
            env={**os.environ, "BUF_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    # 100 is buf's code for findings; they are on stdout. Anything else is a failure to look at all.
    if done.returncode not in (0, 100):
        raise ContractsError(f"buf {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _tool(name: str) -> str:
    """Return the path of a program that comes with the development dependencies."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise ContractsError(f"{name} is not installed: install the development dependencies")
    return path


def _last_commit_on_main(root: Path) -> str:
    found = _git(root, "for-each-ref", "--format=%(objectname)", "refs/heads/main", "refs/remotes/origin/main").split()
    if not found:
        raise NotCompared("there is no branch main")
    return found[0].decode()


def _extract(root: Path, commit: str, into: Path) -> bool:
    """Write `proto/` as it was at a commit; False when that commit has none."""
    if not _git(root, "ls-tree", "--name-only", commit, "proto"):
        return False
    archive = _git(root, "archive", "--format=tar", commit, "proto")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # Not extractall, which is safe only with a filter: Python 3.11 has none before 3.11.4.
        for member in tar.getmembers():
            if file := tar.extractfile(member):
                (into / member.name).parent.mkdir(parents=True, exist_ok=True)
                (into / member.name).write_bytes(file.read())
    return True


def _git(root: Path, *arguments: str) -> bytes:
    """Return git's output. Raises NotCompared when there is no git, or when it fails."""
    git = shutil.which("git")
    if git is None:
        raise NotCompared("git is not installed")
    done = subprocess.run([git, *arguments], cwd=root, capture_output=True, check=False)
    if done.returncode != 0:
        raise NotCompared(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _differences(fresh: Path, committed: Path) -> list[Path]:
    """Return, relative to both folders, the files that only one of them has or that are not alike."""
    ours, theirs = set(_files(fresh)), set(_files(committed))
    alike = {
        relative for relative in ours & theirs if filecmp.cmp(fresh / relative, committed / relative, shallow=False)
    }
    return sorted((ours | theirs) - alike)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name != "__pycache__":
            yield path.relative_to(folder)


contracts_app = typer.Typer(help="Generate code from the contracts, and check them.", no_args_is_help=True)


@contracts_app.command("generate")
def generate_command() -> None:
    """Make gen/ and docs/events.md from proto/."""
    try:
        changed = generate()
    except ContractsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for path in changed:
        typer.echo(path)
    typer.echo(f"the generated files are up to date, {len(changed)} changed")


@contracts_app.command("check")
def check_command() -> None:
    """Lint proto/, look for changes that break clients of main, and for drift of generated files."""
    findings = []
    try:
        findings += [*lint(), *drift()]
        findings += breaking()
    except NotCompared as error:
        typer.echo(f"not compared with main, so that what breaks its clients is not found: {error}", err=True)
    except ContractsError as error:
        findings.append(str(error))
    for finding in findings:
        typer.echo(finding, err=True)
    if findings:
        raise typer.Exit(1)
    typer.echo("the contracts are sound")
