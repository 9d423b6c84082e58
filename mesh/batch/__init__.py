"""Work that arrives together, committed together."""
