"""The load bench: the speed of a running mesh, measured from outside, and an audit after each load.

`mesh bench` measures one scenario on a running mesh. `make bench` measures the published series on a mesh of its own.
"""
