"""The one shared runtime of the services. It knows no commerce word: whatever is here serves at least two services."""

import os

# gRPC reads this when it is imported, so it stands here, before that can be. By default a thread of the event engine
# takes a call from the socket and hands it to the one that waits for calls; without, the latter takes it itself. A lone
# call costs a server 0.25 ms of CPU instead of 0.42, and comes back as much sooner.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
