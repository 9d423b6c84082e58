"""Run the customer service."""

from customer_svc.app import Settings, build
from mesh.program import main

if __name__ == "__main__":
    main("customer", Settings, build)
