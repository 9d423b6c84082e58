"""Observability: logs and traces."""
