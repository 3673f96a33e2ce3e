"""Independent pruning, one network per size: what OFA-Diffusion Compression is compared with.

Uses the harness, never the method.
"""

import repro  # noqa: F401  (makes torchvision importable before diffusers asks for it)
