"""The manifests: each overlay renders and has no fault, and a planted fault is found with its object and field."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.manifests import Manifests, Object, needed_arrows, render
from tests.processes import ROOT

OVERLAYS = ("production", "rehearsal")


@pytest.fixture(scope="module")
def production() -> list[Object]:
    """What the overlay renders."""
    return render("production")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_no_fault(overlay: str) -> None:
    assert Manifests(render(overlay)).findings() == []


def find(objects: list[Object], called: str) -> Any:
    kind, _, name = called.partition("/")
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"].partition("-45")[0]) == (kind, name)]
    return found


def container(objects: list[Object], called: str) -> Any:
    return find(objects, called)["spec"]["template"]["spec"]["containers"][0]


def shared(objects: list[Object]) -> Any:
    return next(each["data"] for each in objects if each["kind"] == "ConfigMap" and "MESH_LISTEN" in each["data"])


def wrong_container_port(objects: list[Object]) -> None:
    container(objects, "Deployment/order-svc")["ports"][0]["containerPort"] = 9091


def wrong_target_port(objects: list[Object]) -> None:
    find(objects, "Service/order-svc")["spec"]["ports"][0]["targetPort"] = "http"


def wrong_target(objects: list[Object]) -> None:
    shared(objects)["MESH_ORDER_TARGET"] = "orders:9090"


def missing_variable(objects: list[Object]) -> None:
    container(objects, "Deployment/order-svc")["env"].pop(0)


def unknown_variable(objects: list[Object]) -> None:
    container(objects, "Deployment/order-svc")["env"].append({"name": "MESH_PAGE_SECRETS", "value": "x"})


def wrong_probe(objects: list[Object]) -> None:
    container(objects, "Deployment/order-svc")["readinessProbe"]["grpc"]["service"] = "liveness"


def missing_probe(objects: list[Object]) -> None:
    del container(objects, "Deployment/edge")["startupProbe"]


def missing_arrow(objects: list[Object]) -> None:
    [rule, *_] = find(objects, "NetworkPolicy/order-svc")["spec"]["egress"]
    rule["to"][0]["podSelector"]["matchExpressions"][0]["values"].remove("product-svc")


def extra_arrow(objects: list[Object]) -> None:
    [rule, *_] = find(objects, "NetworkPolicy/payment-svc")["spec"]["ingress"]
    rule["from"][0]["podSelector"]["matchExpressions"][0]["values"].append("product-svc")


def no_deny(objects: list[Object]) -> None:
    objects.remove(find(objects, "NetworkPolicy/deny-all"))


def secret_in_the_tree(objects: list[Object]) -> None:
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "order-svc"}, "data": {"a": "Yg=="}})


def secret_in_a_variable(objects: list[Object]) -> None:
    variable = {"name": "MESH_DATABASE_URL", "value": "postgresql://order:hunter2@order-db/order"}
    container(objects, "Deployment/order-svc")["env"][0] = variable


def field_that_does_not_exist(objects: list[Object]) -> None:
    find(objects, "Deployment/order-svc")["spec"]["replica"] = 3


def selector_of_the_migration(objects: list[Object]) -> None:
    del find(objects, "Service/order-svc")["spec"]["selector"]["app.kubernetes.io/component"]


def root_that_is_written(objects: list[Object]) -> None:
    container(objects, "Deployment/order-svc")["securityContext"]["readOnlyRootFilesystem"] = False


def grace_below_the_drain(objects: list[Object]) -> None:
    find(objects, "Deployment/order-svc")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (wrong_container_port, "Deployment/order-svc containers[0].ports grpc: 9091 is not 9090"),
        (wrong_target_port, "Service/order-svc spec.ports grpc: no pod has the port http"),
        (wrong_target, "ConfigMap/mesh data MESH_ORDER_TARGET: no service orders has the port 9090"),
        (missing_variable, "Deployment/order-svc containers[0] env MESH_DATABASE_URL: is required and not set"),
        (unknown_variable, "Deployment/order-svc containers[0] env MESH_PAGE_SECRETS: is not a setting"),
        (wrong_probe, "Deployment/order-svc containers[0] readinessProbe.grpc: "),
        (missing_probe, "Deployment/edge containers[0] startupProbe: is missing"),
        (missing_arrow, "NetworkPolicy/order-svc spec.egress: allows no connection to product-svc:9090"),
        (extra_arrow, "NetworkPolicy/payment-svc spec.ingress: nothing needs the connection from product-svc"),
        (no_deny, "NetworkPolicy/deny-all spec.podSelector: no policy denies everything"),
        (secret_in_the_tree, "Secret/order-svc data: a secret is in the tree"),
        (secret_in_a_variable, "Deployment/order-svc containers[0] env MESH_DATABASE_URL: holds a secret"),
        (field_that_does_not_exist, "Deployment/order-svc spec: "),
        (selector_of_the_migration, "Service/order-svc spec.selector: selects ['Deployment', 'Job']"),
        (root_that_is_written, "Deployment/order-svc containers[0] securityContext: is not"),
        (grace_below_the_drain, "Deployment/order-svc terminationGracePeriodSeconds: is not above 25"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_fault_is_found(production: list[Object], plant: Callable[[list[Object]], None], finding: str) -> None:
    objects = copy.deepcopy(production)
    plant(objects)
    [found] = Manifests(objects).findings()
    assert found.startswith(finding)


def test_diagram_in_the_docs_has_the_arrows_of_the_programs() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    [table] = [part for part in text.split("\n\n") if part.startswith("| from | to |")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    documented = {(row[0].strip("`"), each.strip().strip("`")) for row in rows for each in row[1].split(",")}
    assert {arrow for arrow in documented if arrow[1].endswith("-svc")} == needed_arrows()


def test_commands_in_the_docs_name_objects_that_exist(production: list[Object]) -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    kinds = {each["kind"].lower() for each in production}
    named = {each for each in re.findall(r"kubectl .*?\b([a-z]+)/([a-z-]+)", text) if each[0] in kinds}
    objects = {("service", "edge"), ("deployment", "order-svc"), ("deployment", "edge"), ("cronjob", "audit-full")}
    assert named == objects
    assert named <= {(each["kind"].lower(), each["metadata"]["name"]) for each in production}
    selected = set(re.findall(r"kubectl .*?\b([a-z]+) -l ([\w./]+)=(\w+)", text))
    assert selected == {("job", "app.kubernetes.io/component", "migration")}
    for kind, label, value in selected:
        labels = [each["metadata"].get("labels", {}) for each in production if each["kind"].lower() == kind]
        assert [each.get(label) for each in labels] == [value] * 4
