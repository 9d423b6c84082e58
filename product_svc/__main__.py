"""Run the product service."""

from mesh.lifecycle import run
from product_svc.app import Settings, build

if __name__ == "__main__":
    run("product", Settings, build)
