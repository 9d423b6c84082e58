"""Run the payment service."""

from mesh.program import main
from payment_svc.app import Settings, build

if __name__ == "__main__":
    main("payment", Settings, build)
