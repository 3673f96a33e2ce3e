"""Denoisers: building, narrowing, saving and loading them; their parameters, MACs, latency and memory."""
