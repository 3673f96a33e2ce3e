"""A network as an ONNX file, for devices without Python; it is held against torch before anybody gets it."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import ReproError

TOLERANCE = 1e-4  # largest difference of a predicted noise, whose pixels have standard deviation 1
TRIED = (1, 2, 5)  # batches
REMEDY = "--onnx: needs onnx, onnxscript and onnxruntime; pip install -e '.[onnx]'"


def to_onnx(model: nn.Module, image_shape: tuple[int, int, int], timesteps: int) -> tuple[bytes, float]:
    """Exports a denoiser: `sample` [B, C, H, W] and `timestep` [B] (int64) give `noise` [B, C, H, W], for any B.

    Args:
        model: The network, on the CPU, in evaluation mode.
        image_shape: [C, H, W].
        timesteps: How many there are.

    Returns:
        The file, weights included, and the largest difference from torch over several batches of noise.

    Raises:
        ReproError: The packages are missing, or onnxruntime computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ReproError(REMEDY) from error
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about its own future
        program: Any = torch.onnx.export(
            _Plain(model).eval(),
            _example(2, image_shape, timesteps),
            dynamo=True,
            verbose=False,
            input_names=["sample", "timestep"],
            output_names=["noise"],
            dynamic_shapes={"sample": {0: batch}, "timestep": {0: batch}},
        )
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
        content = path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = max(_difference(session, model, _example(count, image_shape, timesteps)) for count in TRIED)
    if not difference <= TOLERANCE:
        raise ReproError(
            f"--onnx: onnxruntime {onnxruntime.__version__} differs from torch by {difference:.2g}, more than {TOLERANCE:g}; "
            "nothing was written; leave --onnx out, or take another version"
        )
    return content, difference


class _Plain(nn.Module):
    """A denoiser that takes and returns tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        noise: Tensor = self.model(sample, timestep, return_dict=False)[0]
        return noise


def _example(count: int, image_shape: tuple[int, int, int], timesteps: int) -> tuple[Tensor, Tensor]:
    """Returns a batch of noise, with timesteps from the first to the last."""
    images = torch.randn(count, *image_shape, generator=torch.Generator().manual_seed(count))
    return images, torch.linspace(0, timesteps - 1, count).long()


@torch.no_grad()
def _difference(session: Any, model: nn.Module, example: tuple[Tensor, Tensor]) -> float:
    images, timesteps = example
    (found,) = session.run(["noise"], {"sample": images.numpy(), "timestep": timesteps.numpy()})
    return float((torch.from_numpy(found) - model(images, timesteps, return_dict=False)[0]).abs().max())
