"""Random streams: each is seeded by its labels alone, never by what ran before.

So a resumed run needs no generator state, and neither the number of ranks nor the batch size changes what is drawn.
"""

import hashlib

import torch


def derive_seed(*labels: object) -> int:
    """Returns a 63-bit seed that depends on the labels alone."""
    digest = hashlib.sha256(repr(labels).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(device: torch.device, *labels: object) -> torch.Generator:
    """Returns a fresh generator on a device, seeded by the labels."""
    return torch.Generator(device=device).manual_seed(derive_seed(*labels))
