"""`python -m ops.cli` is the `mesh` command."""

from ops.cli import main

main()
