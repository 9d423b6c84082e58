"""What `kubectl kustomize` renders, and what must be true of it. Every finding names the object and the field."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import kubernetes_validate
import yaml
from pydantic_settings import BaseSettings

from customer_svc.app import Settings as CustomerSettings
from gateway.settings import EdgeProgramSettings
from mesh.settings import DatabaseSettings
from ops.audit.settings import AuditSettings
from order_svc.app import Settings as OrderSettings
from payment_svc.app import Settings as PaymentSettings
from product_svc.app import Settings as ProductSettings
from tests.processes import ROOT

VERSION = "1.37"
"""The newest Kubernetes whose schemas there are."""

Object = dict[str, Any]
Arrow = tuple[str, str]
"""The names of the workloads at both ends of a connection."""

PROGRAMS: Mapping[str, type[BaseSettings]] = {
    "customer_svc": CustomerSettings,
    "product_svc": ProductSettings,
    "payment_svc": PaymentSettings,
    "order_svc": OrderSettings,
    "gateway": EdgeProgramSettings,
    "ops.audit": AuditSettings,
}
"""The settings of each program, by its module."""
SERVICE_PORT = 9090
_EDGE_PATHS = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
_HEALTH_NAMES = {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": "readiness"}


def render(overlay: str) -> list[Object]:
    """The objects of an overlay."""
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", str(ROOT / "k8s" / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def called(thing: Object) -> str:
    """How findings name an object."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


@dataclass(frozen=True)
class Workload:
    """An object that makes pods."""

    thing: Object

    @property
    def name(self) -> str:
        return str(self.thing["metadata"]["name"])

    @property
    def template(self) -> Object:
        spec = self.thing["spec"]
        return dict((spec["jobTemplate"]["spec"] if self.thing["kind"] == "CronJob" else spec)["template"])

    @property
    def labels(self) -> Mapping[str, str]:
        return dict(self.template["metadata"]["labels"])

    @property
    def spec(self) -> Object:
        return dict(self.template["spec"])

    def containers(self) -> Iterator[tuple[str, Object]]:
        """Each container with its path."""
        for kind in ("initContainers", "containers"):
            for number, container in enumerate(self.spec.get(kind, [])):
                yield f"{called(self.thing)} {kind}[{number}]", container


class Manifests:
    """The objects of an overlay, and the findings about them."""

    def __init__(self, objects: Sequence[Object]) -> None:
        self.objects = objects
        self.workloads = [
            Workload(each) for each in objects if each["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob")
        ]
        self.shared: Mapping[str, str] = next(
            (each["data"] for each in objects if each["kind"] == "ConfigMap" and "MESH_LISTEN" in each["data"]), {}
        )

    def of_kind(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def findings(self) -> list[str]:
        """Everything that is wrong."""
        return [
            *self.schemas(), *self.settings(), *self.probes(), *self.ports(), *self.selectors(), *self.arrows(),
            *self.secrets(), *self.security(), *self.drains(),
        ]  # fmt: skip

    def schemas(self) -> Iterator[str]:
        """Differences from the schemas of Kubernetes. Custom resources have none here."""
        for each in self.objects:
            if error := _schema_error(json.dumps(each)):
                yield f"{called(each)} {error}"

    def settings(self) -> Iterator[str]:
        """Variables that are no settings, and required settings that no variable sets."""
        for path, container, settings in self._programs():
            known = {f"MESH_{name.upper()}": field for name, field in settings.model_fields.items()}
            own = {variable["name"] for variable in container.get("env", []) if variable["name"].startswith("MESH_")}
            shared = set(self.shared) if "envFrom" in container else set()
            yield from (f"{path} env {name}: is not a setting" for name in sorted(own - known.keys()))
            required = {name for name, field in known.items() if field.is_required()}
            yield from (f"{path} env {name}: is required and not set" for name in sorted(required - own - shared))
        every = {f"MESH_{name.upper()}" for settings in PROGRAMS.values() for name in settings.model_fields}
        yield from (f"ConfigMap/mesh data {name}: is not a setting" for name in sorted(self.shared.keys() - every))

    def _programs(self) -> Iterator[tuple[str, Object, type[BaseSettings]]]:
        for workload in self.workloads:
            for path, container in workload.containers():
                command = container.get("command", [])
                if command[:2] == ["python", "-m"]:
                    only_database = {"--migrate", "--await-migrations"} & set(command)
                    yield path, container, DatabaseSettings if only_database else PROGRAMS[command[2]]

    def probes(self) -> Iterator[str]:
        """Probes that are missing, or ask another port or name than the program answers."""
        health = int(self.shared.get("MESH_HEALTH_LISTEN", ":0").rpartition(":")[2])
        for workload in self.workloads:
            if workload.thing["kind"] != "Deployment":
                continue
            path = f"{called(workload.thing)} containers[0]"
            container = workload.spec["containers"][0]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe, name in _HEALTH_NAMES.items():
                asks = container.get(probe)
                if asks is None:
                    yield f"{path} {probe}: is missing"
                elif workload.name == "edge":
                    http = asks.get("httpGet", {})
                    if http.get("path") != _EDGE_PATHS[probe]:
                        yield f"{path} {probe}.httpGet.path: {http.get('path')} is not {_EDGE_PATHS[probe]}"
                    if http.get("port") not in ports:
                        yield f"{path} {probe}.httpGet.port: the container has no port {http.get('port')}"
                elif asks.get("grpc") != {"port": health, "service": name}:
                    yield f"{path} {probe}.grpc: {asks.get('grpc')} is not port {health}, service {name}"

    def ports(self) -> Iterator[str]:
        """Services whose port no pod has, and targets that no service has."""
        offered: dict[str, set[int]] = {}
        for service in self.of_kind("Service"):
            pods = [each for each in self.workloads if _selects(service["spec"]["selector"], each.labels)]
            named = {
                port["name"]: port["containerPort"]
                for each in pods
                for _, container in each.containers()
                for port in container.get("ports", [])
            }
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in named:
                    yield f"{called(service)} spec.ports {port['name']}: no pod has the port {port['targetPort']}"
            offered[service["metadata"]["name"]] = {port["port"] for port in service["spec"]["ports"]}
        for name, value in self.shared.items():
            host, _, number = value.rpartition(":")
            if name.endswith("_TARGET") and int(number) not in offered.get(host, set()):
                yield f"ConfigMap/mesh data {name}: no service {host} has the port {number}"
        listen = int(self.shared.get("MESH_LISTEN", ":0").rpartition(":")[2])
        for workload in self._services():
            ports = {port["name"]: port["containerPort"] for port in workload.spec["containers"][0]["ports"]}
            if ports.get("grpc") != listen:
                yield f"{called(workload.thing)} containers[0].ports grpc: {ports.get('grpc')} is not {listen}"

    def selectors(self) -> Iterator[str]:
        """Selectors that select no pod, or pods that serve nothing."""
        for kind in ("Service", "PodDisruptionBudget"):
            for each in self.of_kind(kind):
                selector = each["spec"]["selector"]
                labels = selector.get("matchLabels", {}) if kind != "Service" else selector
                selected = {workload.thing["kind"] for workload in self.workloads if _selects(labels, workload.labels)}
                if not labels or not selected or "Job" in selected:
                    yield f"{called(each)} spec.selector: selects {sorted(selected) or 'nothing'}"

    def arrows(self) -> Iterator[str]:
        """Connections between edge and services that the policies allow and no program needs, or the reverse."""
        if not (policies := self.of_kind("NetworkPolicy")):
            return
        deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        if not any(each["spec"] == deny for each in policies):
            yield "NetworkPolicy/deny-all spec.podSelector: no policy denies everything"
        needed = needed_arrows()
        names = {workload.name: workload.labels for workload in [*self._services(), *self._edge()]}
        for source, target in ((s, t) for s in names for t in names if s != t):
            for direction, end, other in (("egress", source, target), ("ingress", target, source)):
                allowed = any(
                    _allows(policy["spec"], direction, names[other], SERVICE_PORT)
                    for policy in policies
                    if _selects(policy["spec"]["podSelector"].get("matchLabels", {}), names[end])
                )
                word = "to" if direction == "egress" else "from"
                if (source, target) in needed and not allowed:
                    yield f"NetworkPolicy/{end} spec.{direction}: allows no connection {word} {other}:{SERVICE_PORT}"
                if (source, target) not in needed and allowed:
                    yield f"NetworkPolicy/{end} spec.{direction}: nothing needs the connection {word} {other}"

    def secrets(self) -> Iterator[str]:
        """Secrets in the tree. Only references to them belong there."""
        yield from (f"{called(each)} data: a secret is in the tree" for each in self.of_kind("Secret"))
        for each in self.of_kind("ConfigMap"):
            for name, value in each["data"].items():
                if _SECRET.search(value):
                    yield f"{called(each)} data {name}: holds a secret"
        for workload in self.workloads:
            for path, container in workload.containers():
                for variable in container.get("env", []):
                    if _SECRET.search(variable.get("value", "")):
                        yield f"{path} env {variable['name']}: holds a secret"

    def security(self) -> Iterator[str]:
        """What the restricted level of pod security, and more, asks of each pod."""
        for workload in self.workloads:
            pod, path = workload.spec, called(workload.thing)
            if pod.get("automountServiceAccountToken") is not False:
                yield f"{path} automountServiceAccountToken: is not false"
            context = pod.get("securityContext", {})
            if context.get("runAsNonRoot") is not True or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{path} securityContext: is not restricted"
            for where, container in workload.containers():
                wanted = {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                if container.get("securityContext") != wanted:
                    yield f"{where} securityContext: is not {wanted}"
                resources = container.get("resources", {})
                for amount in ("requests", "limits"):
                    if resources.get(amount, {}).keys() != {"cpu", "memory"}:
                        yield f"{where} resources.{amount}: does not name cpu and memory"

    def drains(self) -> Iterator[str]:
        """Pods that are killed before they have drained, and rollouts that go below the number of pods."""
        for workload in [*self._services(), *self._edge()]:
            pod, path = workload.spec, called(workload.thing)
            container = pod["containers"][0]
            own = {each["name"]: each.get("value", "") for each in container.get("env", [])}
            name = "MESH_EDGE_DRAIN_SECONDS" if workload.name == "edge" else "MESH_DRAIN_SECONDS"
            drain = float({**self.shared, **own}.get(name, "0"))
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if not pause:
                yield f"{path} containers[0].lifecycle.preStop: gives load balancers no time"
            if pod["terminationGracePeriodSeconds"] <= drain + pause:
                yield f"{path} terminationGracePeriodSeconds: is not above {drain + pause:g}"
            if workload.thing["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
                yield f"{path} strategy.rollingUpdate.maxUnavailable: is not 0"
        for budget in self.of_kind("PodDisruptionBudget"):
            if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                yield f"{called(budget)} spec.unhealthyPodEvictionPolicy: is not AlwaysAllow"

    def _services(self) -> list[Workload]:
        return [each for each in self.workloads if each.labels.get("app.kubernetes.io/component") == "service"]

    def _edge(self) -> list[Workload]:
        return [each for each in self.workloads if each.labels.get("app.kubernetes.io/component") == "edge"]


def needed_arrows() -> set[Arrow]:
    """The connections that the programs make: each has a setting with the addresses of every service that it calls."""
    return {
        ("edge" if program == "gateway" else program.replace("_", "-"), f"{name.removesuffix('_target')}-svc")
        for program, settings in PROGRAMS.items()
        for name in settings.model_fields
        if name.endswith("_target")
    }


@cache
def _schema_error(thing: str) -> str:
    """The field and the error of an object in JSON, or nothing."""
    try:
        kubernetes_validate.validate(json.loads(thing), VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return ""
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    return ""


_SECRET = re.compile(r"PRIVATE KEY|://[^/:@$]+:[^@$]+@|(?i:password|secret)\s*[:=]\s*[^$\s]")


def _selects(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def _allows(policy: Object, direction: str, other: Mapping[str, str], port: int) -> bool:
    end = "to" if direction == "egress" else "from"
    return any(
        any(each["port"] == port for each in rule.get("ports", []))
        and (end not in rule or any(_peer_selects(peer, other) for peer in rule[end]))
        for rule in policy.get(direction, [])
    )


def _peer_selects(peer: Object, labels: Mapping[str, str]) -> bool:
    if "namespaceSelector" in peer or "podSelector" not in peer:
        return False
    selector = peer["podSelector"]
    return _selects(selector.get("matchLabels", {}), labels) and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )
