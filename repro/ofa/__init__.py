"""The method, in the order of the paper: pipes, importance, allocation, supernet, sampling law.

Nothing in here opens a file, parses a flag or knows a device.
"""
