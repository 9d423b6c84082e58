"""What the README says is so."""

import re
from pathlib import Path

from google.protobuf import descriptor_pool

from customer_svc import rpc as customer_rpc
from mesh.rpc.reflection import load_contracts
from order_svc import rpc as order_rpc
from payment_svc import rpc as payment_rpc
from product_svc import rpc as product_rpc

README = (Path(__file__).parents[2] / "README.md").read_text()
ROOMS = (customer_rpc, order_rpc, product_rpc, payment_rpc)


def test_the_readme_lists_exactly_the_methods_that_are_not_there_yet() -> None:
    listed = {
        f"{service}.{method}"
        for service, methods in re.findall(
            r"^- (\w+Service): ([^-]+?)(?= \(and|\n- |\n\n)", README.split("## Not there yet")[1], re.MULTILINE
        )
        for method in re.split(r",\s+", methods.strip())
    }
    pool = descriptor_pool.Default()
    services = [service for name in load_contracts() for service in pool.FindFileByName(name).services_by_name.values()]
    servicers = {name: servicer for room in ROOMS for name, servicer in vars(room).items() if name.endswith("Service")}
    missing = {
        f"{service.name}.{method.name}"
        for service in services
        for method in service.methods
        if not hasattr(servicers[service.name], method.name)
    }
    assert listed == missing
    assert {name.partition(".")[0] for name in missing} <= {"PaymentService"}
