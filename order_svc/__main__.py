"""Run the order service."""

from mesh.lifecycle import run
from order_svc.app import Settings, build

if __name__ == "__main__":
    run("order", Settings, build)
