"""Makes torchvision importable beside a CPU build of torch.

diffusers and torch-fidelity import torchvision, but a torchvision built for CUDA cannot load its compiled operators beside a CPU build
of torch and then fails at import. Nothing here uses those operators: declaring the two that the import asks for is enough.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = ("nms", "qnms")
FIRST_USE = "torchvision._meta_registrations"  # imported once torchvision has tried to load its compiled operators


class DeclareMissingOperators(MetaPathFinder):
    """Declares the operators just before their first use, and only when they did not load."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Finds nothing itself; leaves every module to the finders after it."""
        if fullname == FIRST_USE:
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        # The declarations last as long as the library object, so it is kept on this module.
        globals()["LIBRARY"] = library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def install() -> None:
    """Waits for torchvision to be imported; does nothing when it already was."""
    if FIRST_USE not in sys.modules and not any(isinstance(finder, DeclareMissingOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeclareMissingOperators())
