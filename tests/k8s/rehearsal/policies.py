"""NetworkPolicies as rules of nftables, and arrows taken out of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.k8s.rehearsal.fields import Object, UnknownField, require_known

TABLE = "rehearsal"
ANYWHERE = "0.0.0.0/0"
_SOURCE, _TARGET, _PORT = "ct original ip saddr", "ct reply ip saddr", "ct reply proto-src"
"""Who has opened the connection of a packet, to whom, and to which port, whichever way the packet goes."""
_ENDS = {"Ingress": ("from", _SOURCE, _TARGET), "Egress": ("to", _TARGET, _SOURCE)}
"""For each direction: the field with the peers, how a rule matches them, and how it matches the selected pods."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A pod as policies and services see it."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str


@dataclass(frozen=True, kw_only=True)
class VirtualAddress:
    """The address and port of a service that has one, and the pods behind it."""

    address: str
    port: int
    pods: Sequence[tuple[str, int]]


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels. Raises UnknownField for an operator but `In`."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise UnknownField(f"the rehearsal does not know the operator {expression['operator']}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def ruleset(
    policies: Sequence[Object],
    members: Sequence[Member],
    services: Sequence[VirtualAddress],
    *,
    node: str,
) -> str:
    """What `nft` enforces: the policies for connections between the members, with addresses for services.

    Each packet has to be allowed, so a removed arrow also ends connections that exist. A refused packet is answered,
    unlike with most network plugins, so that nobody has to wait for a timeout.
    The node itself may connect to each pod: probes need no policy.
    """
    lines = [f"table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    for direction in _ENDS:
        lines += [f"chain {direction} {{", *_rules(policies, direction, members), "}"]
    lines += [
        "chain policies {", 'iif "lo" return', "ct state related return", f"{_SOURCE} {node} return",
        "jump Egress", "jump Ingress", "}",
    ]  # fmt: skip
    for hook in ("input", "forward", "output"):
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority 0", "jump policies", "}"]
    for hook in ("prerouting", "output"):
        lines += [f"chain nat_{hook} {{", f"type nat hook {hook} priority -100"]
        lines += [_translation(each) for each in services if each.pods]
        lines.append("}")
    return "\n".join([*lines, "}", ""])


def _rules(policies: Sequence[Object], direction: str, members: Sequence[Member]) -> Iterator[str]:
    """The rules of a direction. A packet that none of them allows is refused, if a policy selects its end at all."""
    field, peer_end, own_end = _ENDS[direction]
    isolated = _isolated(policies, direction, members)
    yield f"{own_end} != {_set(isolated)} return" if isolated else "return"
    for policy in policies:
        own = {each.address for each in _selected(policy, members)}
        for rule in _allowed(policy, direction):
            peers = _peers(rule[field], policy["metadata"]["namespace"], members) if field in rule else {ANYWHERE}
            if own and peers:
                where = f"{own_end} {_set(own)} {peer_end} {_set(peers)}"
                for port in rule["ports"]:
                    yield f"{where} meta l4proto {port['protocol'].lower()} {_PORT} {port['port']} return"
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject"


def _translation(service: VirtualAddress) -> str:
    """The rule that sends connections to a service to one of its pods."""
    pods = ", ".join(f"{number} : {address} . {port}" for number, (address, port) in enumerate(service.pods))
    choice = f"numgen random mod {len(service.pods)} map {{ {pods} }}"
    return f"ip daddr {service.address} tcp dport {service.port} dnat ip to {choice}"


def arrows(policies: Sequence[Object], members: Sequence[Member]) -> set[tuple[str, str, int]]:
    """The connections that both ends allow: the addresses of both, and the port."""
    everyone = {each.address for each in members}
    rules = [(each, direction, rule) for each in policies for direction in _ENDS for rule in _allowed(each, direction)]
    every_port = {port["port"] for _, _, rule in rules for port in rule["ports"]}
    found = []
    for direction, (field, _, _) in _ENDS.items():
        isolated = _isolated(policies, direction, members)
        allowed = set(itertools.product(everyone - isolated, everyone, every_port))
        for policy, _, rule in (each for each in rules if each[1] == direction):
            own = [each.address for each in _selected(policy, members)]
            peers = _peers(rule[field], policy["metadata"]["namespace"], members) if field in rule else everyone
            allowed |= set(itertools.product(own, peers, [port["port"] for port in rule["ports"]]))
        found.append(allowed)
    ingress, egress = found
    return {(source, target, port) for source, target, port in egress if (target, source, port) in ingress}


def without(policies: Sequence[Object], source: Member | None, target: Member) -> list[Object]:
    """The policies without the arrow between the two, at both of its ends. Without a source: from anywhere.

    Raises LookupError if the policies of an end do not allow it.
    """
    left = copy.deepcopy(list(policies))
    if source is not None:
        _forget(left, "Egress", of=source, other=target)
    _forget(left, "Ingress", of=target, other=source)
    return left


def _forget(policies: Sequence[Object], direction: str, *, of: Member, other: Member | None) -> None:
    """Remove one peer from all rules of a pod. A rule whose peers are all gone would allow everyone: it goes."""
    field, key = _ENDS[direction][0], direction.lower()
    mine = [each for each in policies if direction in each["spec"]["policyTypes"] and _selected(each, [of])]
    before = copy.deepcopy(mine)
    for policy in mine:
        rules = _allowed(policy, direction)
        if other is None:
            policy["spec"][key] = [rule for rule in rules if field in rule]
            continue
        for rule in (each for each in rules if field in each):
            narrowed = [_narrowed(peer, policy["metadata"]["namespace"], other) for peer in rule[field]]
            rule[field] = [peer for peer in narrowed if peer]
        policy["spec"][key] = [rule for rule in rules if rule.get(field) != []]
    if mine and mine == before:
        raise LookupError(f"the policies of {of.name} do not allow the arrow")


def _narrowed(peer: Object, namespace: str, other: Member) -> Object | None:
    """The peer without the other, or None if nobody is left."""
    if not _peers([peer], namespace, [other]):
        return peer
    for expression in peer.get("podSelector", {}).get("matchExpressions", []):
        expression["values"].remove(other.labels[expression["key"]])
        return peer if expression["values"] else None
    return None


def _allowed(policy: Object, direction: str) -> list[Object]:
    """The rules of a policy. Raises UnknownField for one that the rehearsal does not know."""
    rules = list(policy["spec"].get(direction.lower(), []))
    for rule in rules:
        require_known("a rule of a policy", rule, {_ENDS[direction][0], "ports"})
        if "ports" not in rule:
            raise UnknownField(f"{policy['metadata']['name']}: the rehearsal does not know rules without ports")
    return rules


def _isolated(policies: Iterable[Object], direction: str, members: Sequence[Member]) -> set[str]:
    """The addresses that may connect, or be connected to, only as a policy allows it."""
    of_direction = [each for each in policies if direction in each["spec"]["policyTypes"]]
    return {each.address for policy in of_direction for each in _selected(policy, members)}


def _selected(policy: Object, members: Iterable[Member]) -> list[Member]:
    namespace, selector = policy["metadata"]["namespace"], policy["spec"]["podSelector"]
    return [each for each in members if each.namespace == namespace and matches(selector, each.labels)]


def _peers(peers: Iterable[Object], namespace: str, members: Sequence[Member]) -> set[str]:
    """The addresses of the peers of a rule, in a policy of this namespace."""
    found = set()
    for peer in peers:
        require_known("a peer of a policy", peer, {"podSelector", "namespaceSelector"})
        for each in members:
            if "namespaceSelector" in peer:
                is_near = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": each.namespace})
            else:
                is_near = each.namespace == namespace
            if is_near and matches(peer.get("podSelector", {}), each.labels):
                found.add(each.address)
    return found


def _set(addresses: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(addresses))} }}"
