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


def test_every_method_of_the_contracts_is_there_and_the_readme_lists_none_as_missing() -> None:
    pool = descriptor_pool.Default()
    services = [service for name in load_contracts() for service in pool.FindFileByName(name).services_by_name.values()]
    servicers = {name: servicer for room in ROOMS for name, servicer in vars(room).items() if name.endswith("Service")}
    assert services
    for service in services:
        assert [each.name for each in service.methods if not hasattr(servicers[service.name], each.name)] == []
    assert re.findall(r"\w+Service", README.split("## Not there yet")[1]) == []
