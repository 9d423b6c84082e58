"""Events: the bus, the relay that publishes the outbox, and the consumers that apply them."""
