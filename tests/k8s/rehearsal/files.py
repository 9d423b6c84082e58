"""The files of a pod: volumes, and what the kubelet writes to /etc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.k8s.rehearsal import node
from tests.k8s.rehearsal.fields import Object, UnknownField, require_known

_READABLE = 0o644


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The secrets and ConfigMaps that pods refer to, by name: keys and values."""

    secrets: Mapping[str, Mapping[str, str]]
    config_maps: Mapping[str, Mapping[str, str]]

    def variables(self, container: Object) -> dict[str, str]:
        """The environment that the manifest gives to a container. Raises KeyError if it refers to what is not there."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            require_known("envFrom", source, {"configMapRef"})
            found |= self.config_maps[source["configMapRef"]["name"]]
        for variable in container.get("env", []):
            require_known("env", variable, {"name", "value", "valueFrom"})
            if source := variable.get("valueFrom"):
                require_known("env valueFrom", source, {"secretKeyRef"})
                value = self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            else:
                value = variable["value"]
                if "$(" in value:
                    raise UnknownField(f"env {variable['name']}: the rehearsal does not know references to others")
            found[variable["name"]] = value
        return found

    def content(self, volume: Object) -> tuple[Mapping[str, str], int]:
        """The files of a volume of a secret or ConfigMap, and their mode."""
        require_known("volume", volume, {"name", "secret", "configMap"})
        source = volume.get("secret") or volume["configMap"]
        require_known("volume", source, {"secretName", "name", "defaultMode"})
        content = self.secrets[source["secretName"]] if "secret" in volume else self.config_maps[source["name"]]
        return content, source.get("defaultMode", _READABLE)


async def make_volume(volume: Object, folder: Path, group: int, stored: Stored) -> None:
    """Make a volume in a new folder, for pods whose fsGroup is `group`."""
    await node.run("mkdir", "-p", str(folder))
    if "emptyDir" in volume:
        options = ["mode=2777", f"gid={group}"]
        if size := volume["emptyDir"].get("sizeLimit"):
            # The kernel knows k, m and g, each of 1024.
            options.append(f"size={size.removesuffix('i').lower()}")
        await node.run("mount", "-t", "tmpfs", "-o", ",".join(options), volume["name"], str(folder))
        return
    content, mode = stored.content(volume)
    for name, value in content.items():
        path = folder / name
        path.write_text(value)
        os.chown(path, 0, group)
        # The group reads what belongs to it, as the kubelet has it.
        path.chmod(mode | 0o040)


def write_etc(folder: Path, *, name: str, address: str, resolver: str) -> None:
    """Write the files that name the pod and its resolver."""
    folder.mkdir()
    (folder / "hostname").write_text(f"{name}\n")
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
    (folder / "resolv.conf").write_text(resolver)
