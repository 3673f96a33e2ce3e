"""The Frechet distance between sets of images, by torch-fidelity, always.

Three metrics on three scales, each with a name of its own: `fid` (Inception's 2,048 features), `fid768`, and `fid_classifier`. This module
computes the last.
"""

import warnings
from importlib.metadata import version

import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset

from repro.harness.classifier import EXTRACTOR, LAYER, Extractor

TOOL = f"torch-fidelity {version('torch-fidelity')}"


class PixelSet(Dataset[Tensor]):
    """uint8 images as torch-fidelity wants them: three channels.

    Args:
        pixels: [N, C, H, W] with C = 1 or 3.
    """

    def __init__(self, pixels: Tensor) -> None:
        assert pixels.dtype == torch.uint8, pixels.dtype
        self._pixels = pixels.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index]


def frechet_distance(samples: Tensor, reference: Tensor, extractor: Extractor, *, batch_size: int = 256) -> float:
    """Returns the Frechet distance between the features of two sets of images (Heusel et al., 2017, Eq. 6).

    Args:
        samples: uint8, [N, C, H, W]; none is dropped, whatever the batch.
        reference: uint8, [M, C, H, W].
        extractor: The classifier that gives the features.
        batch_size: Images of a forward pass; the result does not depend on it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = torch_fidelity.calculate_metrics(
            input1=PixelSet(samples),
            input2=PixelSet(reference),
            fid=True,
            feature_extractor=EXTRACTOR,
            feature_extractor_weights_path=str(extractor.path),
            feature_layer_fid=LAYER,
            batch_size=batch_size,
            cuda=torch.cuda.is_available(),
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
    return float(metrics[torch_fidelity.KEY_METRIC_FID])
