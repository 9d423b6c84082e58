"""The order service: the single writer of an order, and the process manager of its saga."""
