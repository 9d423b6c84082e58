"""Run the order service."""

from mesh.program import main
from order_svc.app import Settings, build

if __name__ == "__main__":
    main("order", Settings, build)
