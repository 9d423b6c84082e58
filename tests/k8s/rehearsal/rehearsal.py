"""What is rehearsed, step by step."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager

from stack.errors import StackError
from stack.pki import LOCAL_STAFF, access_token
from stack.supervisor import Supervisor, together
from tests.k8s.manifests import render
from tests.k8s.rehearsal import node, policies
from tests.k8s.rehearsal.cluster import CLIENT, RESOLVER, SERVICES, Arrow, Cluster
from tests.k8s.rehearsal.fields import UnknownField
from tests.k8s.rehearsal.node import CommandFailed
from tests.k8s.rehearsal.pod import PodFailed
from tests.k8s.rehearsal.servers import Bridged
from tests.k8s.rehearsal.walk import Walk, WalkFailed

OUTSIDE = "clients"
USED: Collection[Arrow] = (
    (OUTSIDE, "edge"),
    *(("edge", f"{service}-svc") for service in SERVICES),
    ("customer-svc", "order-svc"),
    ("customer-svc", "payment-svc"),
    ("payment-svc", "customer-svc"),
    ("order-svc", "customer-svc"),
    ("order-svc", "product-svc"),
    ("order-svc", "payment-svc"),
    *((f"{service}-svc", f"{service}-db") for service in SERVICES),
    *((f"{service}-svc", "redis") for service in SERVICES),
    ("product-svc", "nats"),
    ("payment-svc", "nats"),
    ("order-svc", "nats"),
)
"""The arrows without which the walk fails."""
UNUSED: Mapping[Arrow, int] = {
    # It asks about holds that are minutes old.
    ("product-svc", "order-svc"): 9090,
    # No service consumes the events of customers.
    ("customer-svc", "nats"): 4222,
}
"""The arrows that the walk can do without, with their ports."""
SHORT: Collection[Arrow] = (("order-svc", "product-svc"), ("payment-svc", "nats"))
"""The arrows that are taken away in the short form."""
FORBIDDEN: Mapping[Arrow, int] = {
    ("product-svc", "payment-svc"): 9090,
    ("customer-svc", "order-db-rw"): 5432,
    ("edge", "nats"): 4222,
}
"""Connections that no policy allows, from pods to names of services. Each port answers those who may ask."""

_HEALED_WITHIN_S = 120.0
"""How long the mesh may take until orders go through: far longer than it takes on a busy machine."""
_READY_WITHIN_S = 300.0
"""How long pods may take to become ready, migrations included."""
_PAUSE_S = 0.2
_CONNECT = "import socket; socket.create_connection(({host!r}, {port}), timeout=10).close()"


class RehearsalFailed(Exception):
    """Something is not as it must be."""


FAILURES = (RehearsalFailed, PodFailed, WalkFailed, UnknownField, CommandFailed, StackError)
"""What `rehearse` raises."""


async def rehearse(*, is_short: bool) -> None:
    """Run the overlay and put it to the test. Raises one of FAILURES."""
    async with _cluster() as cluster:
        await together(_Rehearsal(cluster).steps(is_short=is_short), *(pod.run() for pod in cluster.pods.values()))


@asynccontextmanager
async def _cluster() -> AsyncIterator[Cluster]:
    """The cluster, with its servers, before its pods run."""
    folder = await node.prepare()
    cluster = Cluster(render("rehearsal"), render("production"), folder)
    transport = await cluster.start_network()
    try:
        async with Supervisor(logs=folder / "logs") as supervisor:
            addresses = {name: member.address for name, member in cluster.servers.items()}
            bridged = Bridged.under(folder, supervisor, addresses)
            await bridged.servers.start()
            await cluster.make_pods(bridged)
            yield cluster
    finally:
        transport.close()


class _Rehearsal:
    """The steps. Each says what has been seen."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._policies = cluster.policies
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._walk_s = 0.0
        """How long the last walk took that succeeded."""
        self._last_failure = ""

    async def steps(self, *, is_short: bool) -> None:
        """Take all steps. At the end no pod runs."""
        await self._all_are_ready()
        self._say(f"{len(self._cluster.serving)} pods are ready, run from the files of the working tree")
        await self._an_order_goes_through()
        self._say("an order went from JSON to CONFIRMED")
        await self._clients_find_all_pods()
        await self._forbidden_connections_are_refused()
        self._arrows_are_known()
        for arrow in SHORT if is_short else USED:
            await self._walk_fails_without(arrow)
        if not is_short:
            await self._names_need_the_resolver()
            for arrow, port in UNUSED.items():
                await self._connection_needs(arrow, port)
        await self._orders_go_on_while_a_pod_is_deleted()
        await asyncio.gather(*(pod.delete() for pod in self._cluster.serving if not pod.is_deleted))
        self._say("all pods have drained and exited with 0 after preStop and SIGTERM")

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{self._clock() - self._begun:6.1f} s  {text}\n")
        sys.stdout.flush()

    def _walk(self, timeout_s: float) -> Walk:
        cluster = self._cluster
        staff = access_token(cluster.signing_key, role="staff", subject=LOCAL_STAFF)
        return Walk(edge=cluster.virtual_address("edge"), client=CLIENT, staff=staff, timeout_s=timeout_s)

    async def _an_order_goes_through(self) -> None:
        """Walk until it succeeds: clients try again what has failed while something was not there."""

        async def goes_through() -> bool:
            begun = self._clock()
            try:
                await self._walk(_HEALED_WITHIN_S)()
            except WalkFailed as error:
                self._last_failure = str(error)
                return False
            self._walk_s = self._clock() - begun
            return True

        await self._until(goes_through, "no order goes through")

    async def _until(self, is_so: Callable[[], Awaitable[bool]], complaint: str) -> None:
        """Ask until it is so. Raises RehearsalFailed if that takes too long."""
        try:
            async with asyncio.timeout(_HEALED_WITHIN_S):
                while not await is_so():  # noqa: ASYNC110 - it is so in other processes
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise RehearsalFailed(f"{complaint} after {_HEALED_WITHIN_S:g} s ({self._last_failure})") from None

    async def _clients_find_all_pods(self) -> None:
        clients = {self._cluster.member(name).address: name for name in ("edge", "order-svc")}
        products = [each.member.name for each in self._cluster.serving if each.member.name.startswith("product-svc-")]

        async def are_connected() -> bool:
            return all([await _are_connected(clients, each) for each in products])

        await self._until(are_connected, "clients have not found all pods")
        self._say(f"{' and '.join(clients.values())} are connected to each of {len(products)} pods of product-svc")

    async def _forbidden_connections_are_refused(self) -> None:
        for (source, target), port in FORBIDDEN.items():
            if await self._connects(source, target, port):
                raise RehearsalFailed(f"{source} can connect to {target}:{port}")
            self._say(f"refused: {source} to {target}:{port}")
        # An allowed one, so that it was no mistake in the question that was refused.
        if not await self._connects("order-svc", "payment-svc", 9090):
            raise RehearsalFailed("order-svc cannot connect to payment-svc:9090")

    def _arrows_are_known(self) -> None:
        """That each arrow of the policies is tried, or said to be unused."""
        known = {*USED, *UNUSED} - {(OUTSIDE, "edge")}
        found = {arrow for arrow in self._cluster.arrows() if RESOLVER.name not in arrow}
        if unknown := found ^ known:
            raise RehearsalFailed(f"the policies and the rehearsal differ in the arrows {sorted(unknown)}")

    async def _walk_fails_without(self, arrow: Arrow) -> None:
        begun = self._clock()
        async with self._removed(arrow):
            try:
                # Events get the time that all of a walk takes, and more.
                await self._walk(timeout_s=3 + 2 * self._walk_s)()
            except WalkFailed as error:
                failure = str(error)
            else:
                raise RehearsalFailed(f"an order goes through without the arrow from {arrow[0]} to {arrow[1]}")
        await self._an_order_goes_through()
        took = self._clock() - begun
        self._say(f"without {arrow[0]} to {arrow[1]}: {failure}; restored after {took:.1f} s")

    async def _connection_needs(self, arrow: Arrow, port: int) -> None:
        if not await self._connects(*arrow, port):
            raise RehearsalFailed(f"{arrow[0]} cannot connect to {arrow[1]}:{port}")
        async with self._removed(arrow):
            if await self._connects(*arrow, port):
                raise RehearsalFailed(f"{arrow[0]} connects to {arrow[1]}:{port} without an arrow")
        self._say(f"without {arrow[0]} to {arrow[1]}: a connection is refused; the walk does not need it")

    async def _names_need_the_resolver(self) -> None:
        pod = self._cluster.pods["order-svc-1"]
        question = ("getent", "ahosts", "product-svc")
        await pod.execute(*question)
        async with self._removed(("order-svc", RESOLVER.name)):
            try:
                await pod.execute(*question)
            except CommandFailed:
                self._say("without DNS: order-svc does not find product-svc")
            else:
                raise RehearsalFailed("a name is resolved without an arrow to the resolver")

    async def _orders_go_on_while_a_pod_is_deleted(self) -> None:
        pod, gone, walks = self._cluster.pods["product-svc-1"], asyncio.Event(), 0

        async def delete() -> None:
            await pod.delete()
            gone.set()

        async def walk() -> None:
            nonlocal walks
            while not gone.is_set():
                # Not repeated when it fails: clients do not notice that a pod goes.
                await self._walk(_HEALED_WITHIN_S)()
                walks += 1

        await together(delete(), walk())
        self._say(f"each of {walks} orders went through while {pod.member.name} was deleted")

    @asynccontextmanager
    async def _removed(self, arrow: Arrow) -> AsyncIterator[None]:
        """The policies without the arrow. At the end they are as before, and all pods ready."""
        source, target = arrow
        end = None if source == OUTSIDE else self._cluster.member(source)
        self._cluster.policies = policies.without(self._policies, end, self._cluster.member(target))
        await self._cluster.enforce()
        yield
        self._cluster.policies = self._policies
        await self._cluster.enforce()
        await self._all_are_ready()

    async def _all_are_ready(self) -> None:
        """Return when all pods are ready. Raises RehearsalFailed if that takes too long, with their logs."""
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await asyncio.gather(*(pod.ready() for pod in self._cluster.serving))
        except TimeoutError:
            late = [pod.describe() for pod in self._cluster.serving if not pod.is_ready]
            raise RehearsalFailed("\n".join([f"not ready after {_READY_WITHIN_S:g} s:", *late])) from None

    async def _connects(self, source: str, target: str, port: int) -> bool:
        """Whether a pod of the source connects to the name. Raises CommandFailed if there is another reason than that
        it is refused."""
        try:
            await self._cluster.pods[f"{source}-1"].execute("python", "-c", _CONNECT.format(host=target, port=port))
        except CommandFailed as error:
            if "ConnectionRefusedError" not in str(error):
                raise
            return False
        return True


async def _are_connected(addresses: Iterable[str], network: str) -> bool:
    """Whether there are connections from all these addresses to the service in a network."""
    shown = await node.run("ip", "netns", "exec", network, "ss", "-Htn", "state", "established", "sport = :9090")
    peers = {line.split()[3].rpartition(":")[0] for line in shown.splitlines()}
    # The kernel shows IPv4 in the form of IPv6 if the socket takes both.
    return set(addresses) <= {each.strip("[]").removeprefix("::ffff:") for each in peers}
