"""Run the product service."""

from mesh.program import main
from product_svc.app import Settings, build

if __name__ == "__main__":
    main("product", Settings, build)
