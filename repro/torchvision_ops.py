"""Makes torchvision importable beside a CPU build of torch; import it before diffusers or torch-fidelity.

Both import torchvision, but a torchvision built for CUDA cannot load its compiled operators beside a CPU build of torch and fails at
import. Nothing here uses those operators: declaring them is enough.
"""

import importlib
import sys

import torch

OPERATORS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

try:
    importlib.import_module("torchvision")
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    # The declarations last as long as the library object.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for signature in OPERATORS:
        LIBRARY.define(signature)
    importlib.import_module("torchvision")
