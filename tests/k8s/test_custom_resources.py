"""Custom resources, against the schemas of their projects: values, required fields, and fields that do not exist."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence

import pytest

from tests.k8s.manifests import Object, render
from tests.k8s.test_manifests import find
from tests.processes import ROOT

SCHEMAS = ROOT / "k8s" / "schemas"

pytestmark = pytest.mark.skipif(
    not shutil.which("node") or not (SCHEMAS / "node_modules").is_dir(),
    reason="custom resources are not validated: this takes Node.js with npm, then `make manifests`",
)


def check(objects: Sequence[Object]) -> list[str]:
    """What the schemas say of objects."""
    done = subprocess.run(
        ["node", str(SCHEMAS / "check.mjs")],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def unknown_field(objects: list[Object]) -> None:
    find(objects, "HTTPRoute/json")["spec"]["rules"][0]["backendRefs"][0]["weigth"] = 1


def wrong_type(objects: list[Object]) -> None:
    find(objects, "GRPCRoute/grpc")["spec"]["rules"][0]["backendRefs"][0]["port"] = "80"


def missing_field(objects: list[Object]) -> None:
    del find(objects, "Certificate/order-svc")["spec"]["secretName"]


def wrong_choice(objects: list[Object]) -> None:
    find(objects, "Gateway/commerce")["spec"]["listeners"][0]["tls"]["mode"] = "Terminated"


def unknown_field_of_an_alert(objects: list[Object]) -> None:
    find(objects, "PrometheusRule/commerce")["spec"]["groups"][0]["rules"][0]["four"] = "5m"


def kind_that_does_not_exist(objects: list[Object]) -> None:
    find(objects, "Issuer/mesh")["kind"] = "Issue"


# One of each kind, so that no kind is passed over.
FAULTS: Sequence[tuple[Callable[[list[Object]], None], str]] = [
    (unknown_field, "HTTPRoute/json spec.rules.0.backendRefs.0.weigth: "),
    (wrong_type, "GRPCRoute/grpc spec.rules.0.backendRefs.0.port: must be integer"),
    (missing_field, "Certificate/order-svc spec: must have required property secretName"),
    (wrong_choice, "Gateway/commerce spec.listeners.0.tls.mode: "),
    (unknown_field_of_an_alert, "PrometheusRule/commerce spec.groups.0.rules.0.four: "),
    (kind_that_does_not_exist, "Issue/mesh kind: is not one of cert-manager.io/v1"),
]


def test_custom_resources_have_no_fault_and_each_planted_one_is_found() -> None:
    production = render("production")
    planted = copy.deepcopy(production)
    for plant, _ in FAULTS:
        plant(planted)
    found = check([*production, *planted])
    starts = [start for _, start in FAULTS]
    assert [each for each in found if not each.startswith(tuple(starts))] == []
    assert [start for start in starts if not any(each.startswith(start) for each in found)] == []
