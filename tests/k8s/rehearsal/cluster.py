"""The objects of an overlay as pods that run, with addresses, names and policies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stack import pki
from tests.k8s.rehearsal import node, policies
from tests.k8s.rehearsal.fields import Object, UnknownField
from tests.k8s.rehearsal.files import Stored
from tests.k8s.rehearsal.names import DOMAIN, Resolver, resolver_settings
from tests.k8s.rehearsal.pod import Pod
from tests.k8s.rehearsal.policies import Member, VirtualAddress, matches
from tests.k8s.rehearsal.servers import Bridged

SERVICES = ("customer", "product", "payment", "order")
CLIENT = "10.244.0.2"
"""The address of a client outside of the cluster."""
RESOLVER = Member(name="kube-dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}, address="10.244.0.53")

Arrow = tuple[str, str]
"""The names of the deployments or servers at both ends of a connection."""

_PAGE_SECRET = "a secret of the rehearsal"
_LEFT_OUT = {"CronJob", "Namespace", "PodDisruptionBudget", "ServiceAccount"}
_DONE = {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "Service"}


class Cluster:
    """What the rendered manifests describe, on this node."""

    def __init__(self, overlay: Sequence[Object], production: Sequence[Object], folder: Path) -> None:
        """`production` gives what the overlay leaves to others: the labels, services and policies of the servers.

        Raises UnknownField if the overlay asks for something that the rehearsal does not do.
        """
        if unknown := {each["kind"] for each in overlay} - _LEFT_OUT - _DONE:
            raise UnknownField(f"the rehearsal does not know the kinds {sorted(unknown)}")
        [self.namespace] = {each["metadata"]["namespace"] for each in overlay if each["kind"] == "Deployment"}
        self.pods: dict[str, Pod] = {}
        """The pods by name, those of deployments with a number."""
        self.servers = self._members_of_servers(production)
        self.policies = _of_kind(overlay, "NetworkPolicy") + _policies_of(production, self.servers.values())
        """The policies that are enforced; after a change, call `enforce`."""
        self._overlay = overlay
        self._folder = folder
        self._services = {
            each["metadata"]["name"]: each["spec"]
            for each in [*_of_kind(overlay, "Service"), *_services_of(production, self.servers.values())]
        }
        with_address = [name for name, spec in self._services.items() if spec.get("clusterIP") != "None"]
        self._virtual = dict(zip(with_address, _numbered("10.96.0", 10), strict=False))
        self._enforcing = asyncio.Lock()

    async def start_network(self) -> asyncio.DatagramTransport:
        """Give addresses to the servers, the client and the resolver, enforce the policies, and answer for names."""
        for address in [CLIENT, RESOLVER.address, *(each.address for each in self.servers.values())]:
            await node.add_own_address(address)
        await self.enforce()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Resolver(self.addresses), local_addr=(RESOLVER.address, 53)
        )
        return transport

    async def make_pods(self, bridged: Bridged) -> None:
        """Make the pods of the deployments and jobs, each in a network of its own, without running them."""
        stored = self._stored(bridged)
        addresses = _numbered("10.244.0", 100)
        for workload in [*_of_kind(self._overlay, "Job"), *_of_kind(self._overlay, "Deployment")]:
            name, template = workload["metadata"]["name"], workload["spec"]["template"]
            count = workload["spec"]["replicas"] if workload["kind"] == "Deployment" else 1
            for number in range(1, count + 1):
                member = Member(
                    name=f"{name}-{number}" if workload["kind"] == "Deployment" else name,
                    namespace=self.namespace,
                    labels=template["metadata"]["labels"],
                    address=next(addresses),
                )
                self.pods[member.name] = Pod(
                    member,
                    template["spec"],
                    stored=stored,
                    folder=self._folder / "pods" / member.name,
                    resolver=resolver_settings(RESOLVER.address, self.namespace),
                    changed=self.enforce,
                )
        for number, pod in enumerate(self.pods.values()):
            await node.add_network(pod.member.name, number, pod.member.address)
        await self.enforce()

    @property
    def signing_key(self) -> Path:
        """The private key of access tokens."""
        return pki.make_signing_key(self._folder / "pki").private

    @property
    def serving(self) -> list[Pod]:
        """The pods of deployments."""
        return [each for each in self.pods.values() if not each.is_job]

    def member(self, name: str) -> Member:
        """A server, the resolver, or the first pod of a deployment; KeyError if there is none."""
        others = {RESOLVER.name: RESOLVER, **self.servers}
        return others[name] if name in others else self.pods[f"{name}-1"].member

    def arrows(self) -> set[Arrow]:
        """The connections that the policies allow, by the names of deployments and servers. None to itself."""
        named = {each.address: each.labels.get("app.kubernetes.io/name", each.name) for each in self._members()}
        found = policies.arrows(self.policies, self._members())
        return {(named[source], named[target]) for source, target, _ in found if named[source] != named[target]}

    def addresses(self, full_name: str) -> Sequence[str] | None:
        """What a name stands for now: the address of a service, or those of its pods that are ready."""
        name, _, domain = full_name.partition(".")
        if domain != f"{self.namespace}.{DOMAIN}" or name not in self._services:
            return None
        if name in self._virtual:
            return [self._virtual[name]]
        return [each.address for each in self._endpoints(name)]

    def virtual_address(self, service: str) -> str:
        """The address of a service that has one for all its pods, with the port."""
        return f"{self._virtual[service]}:{self._services[service]['ports'][0]['port']}"

    async def enforce(self) -> None:
        """Enforce the policies for all pods that are there."""
        async with self._enforcing:
            rules = policies.ruleset(self.policies, self._members(), [*self._virtual_addresses()], node=node.ADDRESS)
            await node.enforce(rules)

    def _members(self) -> list[Member]:
        return [*(pod.member for pod in self.pods.values()), *self.servers.values(), RESOLVER]

    def _virtual_addresses(self) -> Iterator[VirtualAddress]:
        for name, address in self._virtual.items():
            for port in self._services[name]["ports"]:
                pods = [(each.address, self._port(each, port["targetPort"])) for each in self._endpoints(name)]
                yield VirtualAddress(address=address, port=port["port"], pods=pods)

    def _port(self, member: Member, target: str | int) -> int:
        return self.pods[member.name].ports[target] if isinstance(target, str) else target

    def _endpoints(self, service: str) -> list[Member]:
        selector = {"matchLabels": self._services[service]["selector"]}
        running = [pod.member for pod in self.pods.values() if pod.is_ready and not pod.is_deleted]
        return [each for each in [*running, *self.servers.values()] if matches(selector, each.labels)]

    def _members_of_servers(self, production: Sequence[Object]) -> dict[str, Member]:
        """The servers: a database for each service, NATS and the primary of Redis, with the labels of production."""
        labels = {
            each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
            for each in _of_kind(production, "StatefulSet")
        } | {
            each["metadata"]["name"]: each["spec"]["inheritedMetadata"]["labels"]
            for each in _of_kind(production, "Cluster")
        }
        names = [f"{service}-db" for service in SERVICES] + ["nats", "redis"]
        return {
            name: Member(name=name, namespace=self.namespace, labels=labels[name], address=address)
            for name, address in zip(names, _numbered("10.244.0", 10), strict=False)
        }

    def _stored(self, bridged: Bridged) -> Stored:
        """The secrets and ConfigMaps of the overlay, as docs/kubernetes.md has them made."""
        issued = pki.issue(self._folder / "pki", [*SERVICES, "gateway"])
        signing = pki.make_signing_key(self._folder / "pki")
        tls = {
            name: {
                "ca.crt": files.ca.read_text(),
                "tls.crt": files.cert.read_text(),
                "tls.key": files.key.read_text(),
            }
            for name, files in issued.items()
        }
        return Stored(
            secrets={
                **{
                    f"{name}-svc": {**bridged.urls(name), "page-secret": "a secret of the rehearsal"}
                    for name in SERVICES
                },
                **{f"{name}-svc-tls": tls[name] for name in SERVICES},
                "edge-tls": tls["gateway"],
                "mesh-signing-key": {"private.json": signing.private.read_text()},
            },
            config_maps={
                **{each["metadata"]["name"]: each["data"] for each in _of_kind(self._overlay, "ConfigMap")},
                "mesh-jwks": {"jwks.json": signing.jwks.read_text()},
            },
        )


def _of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def _policies_of(objects: Iterable[Object], servers: Iterable[Member]) -> list[Object]:
    """The policies that select one of the servers by its labels."""
    names = {each.name for each in servers}
    return [each for each in _of_kind(objects, "NetworkPolicy") if each["metadata"]["name"] in names]


def _services_of(objects: Iterable[Object], servers: Iterable[Member]) -> Iterator[Object]:
    """The services of the servers. Those of the databases are made by CloudNativePG."""
    found = {each["metadata"]["name"]: each for each in _of_kind(objects, "Service")}
    for server in servers:
        if server.name in found:
            yield found[server.name]
        else:
            selector = {"app.kubernetes.io/name": server.labels["app.kubernetes.io/name"]}
            spec = {"clusterIP": "None", "selector": selector, "ports": []}
            yield {"metadata": {"name": f"{server.name}-rw"}, "spec": spec}


def _numbered(network: str, first: int) -> Iterator[str]:
    return (f"{network}.{number}" for number in itertools.count(first))
