"""The benchmark: what the harness costs beside the least that could do the same work, each line a ratio of two things timed in turn.

    python -m repro.bench

measures this machine; nothing is trained to an end, and no data set is read.
"""
