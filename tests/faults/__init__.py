"""The fault campaign: a real run, and everything that can happen to one. `nox -s faults`."""
