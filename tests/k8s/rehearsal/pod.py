"""A pod: its containers with command, environment, files and user from the manifest, its probes, and its end."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM

from mesh import tasks
from stack.supervisor import together
from tests.k8s.rehearsal import files, image, node
from tests.k8s.rehearsal.fields import Object, require_known
from tests.k8s.rehearsal.files import Stored
from tests.k8s.rehearsal.policies import Member
from tests.k8s.rehearsal.probes import Probe, ProbeFailed

_POD = {"containers", "initContainers", "volumes", "securityContext", "terminationGracePeriodSeconds", "restartPolicy"}
_POD_LEFT_OUT = {
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "topologySpreadConstraints",
}
_CONTAINER = {
    "name", "image", "command", "env", "envFrom", "ports", "startupProbe", "livenessProbe", "readinessProbe",
    "lifecycle", "securityContext", "volumeMounts",
}  # fmt: skip
_CONTAINER_LEFT_OUT = {"imagePullPolicy", "resources"}
_SECURITY = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup"}
_SECURITY_LEFT_OUT = {"seccompProfile"}
_OWN_SECURITY = {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}

_DEVICES = ("null", "zero", "full", "random", "urandom")


class PodFailed(Exception):
    """A pod did what it should not, with the end of its log."""


class Pod:
    """A pod in a network of its own."""

    def __init__(
        self,
        member: Member,
        spec: Object,
        *,
        stored: Stored,
        folder: Path,
        resolver: str,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`folder` is for its files, `resolver` is its resolv.conf, `changed` is called when its readiness changes.

        Raises UnknownField if the manifest asks for something that the rehearsal does not do.
        """
        name = member.name
        require_known(name, spec, _POD | _POD_LEFT_OUT)
        require_known(f"{name} securityContext", spec["securityContext"], _SECURITY | _SECURITY_LEFT_OUT)
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            where = f"{name} {container['name']}"
            require_known(where, container, _CONTAINER | _CONTAINER_LEFT_OUT)
            require_known(f"{where} securityContext", container["securityContext"], _OWN_SECURITY)
        self.member = member
        self.is_ready = False
        self.is_deleted = False
        """Whether it gets no more new connections."""
        self._spec = spec
        self._stored = stored
        self._folder = folder
        self._resolver = resolver
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        [self._container] = spec["containers"]
        self._became_ready = asyncio.Event()

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports of the container by name."""
        return {each["name"]: each["containerPort"] for each in self._container.get("ports", [])}

    async def run(self) -> None:
        """Run it until it has ended, by itself as a job, or after `delete`.

        Raises PodFailed if a container fails or ends too early, or a probe has failed too often.
        """
        await self._write_files()
        for container in self._spec.get("initContainers", []):
            async with self._running(container) as process:
                if code := await process.wait():
                    raise self._failed(container, f"exited with {code}")
        async with self._running(self._container) as self._process:
            ending = asyncio.create_task(self._process.wait())
            probing = asyncio.create_task(self._probe())
            try:
                await asyncio.wait([ending, probing], return_when=asyncio.FIRST_COMPLETED)
                if probing.done():
                    await probing
                code = await ending
            finally:
                await tasks.end(probing, ending)
            if code or not (self.is_deleted or self.is_job):
                raise self._failed(self._container, f"exited with {code}")

    async def ready(self) -> None:
        """Return when it is ready."""
        while not self.is_ready:
            self._became_ready.clear()
            await self._became_ready.wait()

    async def delete(self) -> None:
        """End it as the kubelet does: no new connections, preStop, SIGTERM.

        Raises PodFailed if it needs longer than its grace period.
        """
        assert self._process is not None
        self.is_deleted = True
        await self._changed()
        grace = self._spec["terminationGracePeriodSeconds"]
        try:
            async with asyncio.timeout(grace):
                hook = self._container.get("lifecycle", {}).get("preStop", {})
                require_known(f"{self.member.name} preStop", hook, {"sleep"})
                await asyncio.sleep(hook.get("sleep", {}).get("seconds", 0))
                os.kill(self._first_process(), SIGTERM)
                await self._process.wait()
        except TimeoutError:
            os.kill(self._first_process(), SIGKILL)
            raise self._failed(self._container, f"has not ended within {grace} s") from None

    async def execute(self, *command: str) -> str:
        """Run a command inside, as the user of the pod; what it printed. Raises CommandFailed."""
        context = self._spec["securityContext"]
        inside = ("nsenter", "--target", str(self._first_process()), "--mount", "--net", "--pid", "--root")
        user = ("--setuid", str(context["runAsUser"]), "--setgid", str(context["runAsGroup"]))
        return await node.run(*inside, *user, "env", "--ignore-environment", *_assignments(image.ENVIRONMENT), *command)

    @property
    def is_job(self) -> bool:
        """Whether it ends by itself."""
        return bool(self._spec.get("restartPolicy") == "Never")

    def _first_process(self) -> int:
        """The number of the container's process, which is 1 inside."""
        assert self._process is not None
        pid = self._process.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    async def _probe(self) -> None:
        probes = {
            name: Probe(self._container[name], self.member.address, self.ports)
            for name in ("startupProbe", "livenessProbe", "readinessProbe")
            if name in self._container
        }
        if startup := probes.get("startupProbe"):
            await self._guarded("startupProbe", startup.succeeds())
        work = []
        if liveness := probes.get("livenessProbe"):
            work.append(self._guarded("livenessProbe", liveness.keeps_succeeding()))
        if readiness := probes.get("readinessProbe"):
            work.append(readiness.follow(self._set_ready))
        # Without probes there is nothing to do, and that is no end.
        await together(_for_ever(), *work)

    async def _guarded(self, name: str, probe: Awaitable[None]) -> None:
        try:
            await probe
        except ProbeFailed as error:
            raise self._failed(self._container, f"{name} has failed: {error}") from error

    async def _set_ready(self, is_ready: bool) -> None:
        self.is_ready = is_ready
        self._became_ready.set()
        await self._changed()

    def describe(self) -> str:
        """Its name, and the end of its log."""
        return "\n  ".join([self.member.name, *self._log_end(self._container)])

    def _failed(self, container: Object, how: str) -> PodFailed:
        title = f"{self.member.name}, container {container['name']}: {how}"
        return PodFailed("\n  ".join([title, *self._log_end(container)]))

    def _log_end(self, container: Object) -> list[str]:
        log = self._log(container)
        return log.read_text(errors="replace").splitlines()[-15:] if log.exists() else ["it has not started"]

    def _log(self, container: Object) -> Path:
        return self._folder / f"{container['name']}.log"

    @asynccontextmanager
    async def _running(self, container: Object) -> AsyncIterator[asyncio.subprocess.Process]:
        """The process of a container. At the end it is killed if it has not ended."""
        root = self._folder / f"{container['name']}.root"
        root.mkdir()
        script = "\n".join([*self._mounts(container, root), shlex.join(self._command(container, root))])
        with self._log(container).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self.member.name),
                *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"),
                *("sh", "-ec", script),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _mounts(self, container: Object, root: Path) -> Iterator[str]:
        """The commands of a shell that make the root of a container."""
        yield f"echo {self.member.name} > /proc/sys/kernel/hostname"
        yield from image.mounts(container["image"], root)
        yield f"mkdir -p {root}/proc {root}/sys {root}/dev"
        yield f"mount -t proc proc {root}/proc"
        yield f"mount -t sysfs -o ro sysfs {root}/sys"
        yield f"mount -t tmpfs -o mode=755 dev {root}/dev"
        yield f"mkdir -m 1777 {root}/dev/shm"
        yield f"ln -s /proc/self/fd {root}/dev/fd"
        for device in _DEVICES:
            yield from image.bind(Path("/dev") / device, root / "dev" / device, is_read_only=False)
        for file in self._etc.iterdir():
            yield from image.bind(file, root / "etc" / file.name)
        writable = {each["name"] for each in self._spec.get("volumes", []) if "emptyDir" in each}
        for mount in container.get("volumeMounts", []):
            require_known(f"{self.member.name} volumeMounts", mount, {"name", "mountPath", "readOnly"})
            is_read_only = mount.get("readOnly", False) or mount["name"] not in writable
            target = root / mount["mountPath"].lstrip("/")
            yield from image.bind(self._volumes / mount["name"], target, is_read_only=is_read_only)
        if container["securityContext"].get("readOnlyRootFilesystem"):
            yield f"mount -o remount,ro {root}"

    def _command(self, container: Object, root: Path) -> Sequence[str]:
        """The command that becomes the user of the pod and then the container's own command."""
        context, own = self._spec["securityContext"], container["securityContext"]
        if context.get("runAsNonRoot") and not context["runAsUser"]:
            raise PodFailed(f"{self.member.name}: runAsNonRoot, and its user is root")
        become = [
            f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", f"--groups={context['fsGroup']}"
        ]  # fmt: skip
        if own.get("allowPrivilegeEscalation") is False:
            become.append("--no-new-privs")
        if "capabilities" in own:
            require_known(f"{self.member.name} capabilities", own["capabilities"], {"drop"})
            become += [f"--bounding-set={_dropped(own)}", f"--inh-caps={_dropped(own)}"]
        variables = {
            "HOME": "/",
            "HOSTNAME": self.member.name,
            **image.ENVIRONMENT,
            **self._stored.variables(container),
        }
        return [
            "exec", "chroot", str(root), "setpriv", *become,
            "env", "--ignore-environment", f"--chdir={image.FOLDER}", *_assignments(variables), *container["command"],
        ]  # fmt: skip

    @property
    def _volumes(self) -> Path:
        return self._folder / "volumes"

    @property
    def _etc(self) -> Path:
        return self._folder / "etc"

    async def _write_files(self) -> None:
        self._folder.mkdir(parents=True)
        files.write_etc(self._etc, name=self.member.name, address=self.member.address, resolver=self._resolver)
        group = self._spec["securityContext"]["fsGroup"]
        for volume in self._spec.get("volumes", []):
            await files.make_volume(volume, self._volumes / volume["name"], group, self._stored)


async def _for_ever() -> None:
    await asyncio.Event().wait()


def _dropped(context: Object) -> str:
    """The capabilities to drop, as setpriv has them."""
    return ",".join(f"-{each.lower()}" for each in context["capabilities"]["drop"])


def _assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]
