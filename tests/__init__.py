"""The tests: unit (no socket), service (one service, real servers), mesh (the whole mesh), faults."""
