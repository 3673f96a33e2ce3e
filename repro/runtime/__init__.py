"""The process and its machine: ranks, device, precision, seeds, signals, clock, progress, provenance."""
