"""The shared runtime of the services. It contains nothing of the domain, and at least two services use each part."""

import os

# gRPC reads this at its import, so it must be set before. By default a thread of the event engine reads a call from the
# socket and passes it to the thread that waits for calls. Without the event engine, that thread reads the call itself.
# A single call costs a server 0.25 ms of CPU instead of 0.42 ms, and its latency decreases by the same amount.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
