"""The benchmark: what the harness costs beside the least that could do the same work, each line a ratio of two things timed in turn.

    python -m repro.bench

measures this machine; nothing is trained to an end, and no data set is read.
"""

import os

# The profiler would print a line at each start and stop; it reads this at its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
