"""Calls: the server and its chain, the clients, and the context of a call."""
