"""The rehearsal: the manifests run on this machine as a node would run them, each pod in a network of its own.

It is a test of the manifests, not an orchestrator: nothing is restarted, scheduled or limited. `make rehearse` runs it.
"""
