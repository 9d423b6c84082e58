"""The load bench: what a running mesh can do, measured from outside, and the proof that nothing went wrong meanwhile.

`mesh bench` runs one scenario against a running mesh; `python -m ops.bench` (`make bench`) runs the published series.
"""
