"""Files: reading untrusted ones, writing atomically, locks, checksums, weights, and the paths of caches."""
