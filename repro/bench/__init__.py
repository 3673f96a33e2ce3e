"""The benchmark: overhead of the harness against a minimal loop, timed alternately; each line is a ratio.

    python -m repro.bench

measures this machine; nothing is trained to an end, and no data set is read.
"""
