"""Calls in and out: the server and its chain, clients, and what a call carries."""
