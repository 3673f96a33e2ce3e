"""Cost of a run before it starts: work, throughput, estimate, checks."""
