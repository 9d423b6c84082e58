"""Run the payment service."""

from mesh.lifecycle import run
from payment_svc.app import Settings, build

if __name__ == "__main__":
    run("payment", Settings, build)
