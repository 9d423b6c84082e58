"""Run the customer service."""

from customer_svc.app import Settings, build
from mesh.lifecycle import run

if __name__ == "__main__":
    run("customer", Settings, build)
