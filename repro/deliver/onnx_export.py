"""Exports a network to ONNX, for devices without Python, and compares it with torch in onnxruntime."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import ReproError
from repro.models.example import conditions_of

TOLERANCE = 1e-4  # largest difference of a predicted noise, whose pixels have standard deviation 1
TRIED = (1, 2, 5)  # batches
REMEDY = "--onnx: needs onnx, onnxscript and onnxruntime; pip install onnx onnxscript onnxruntime"


def to_onnx(model: nn.Module, shape: tuple[int, int, int], timesteps: Tensor) -> tuple[bytes, float]:
    """Exports a denoiser: `sample` [B, C, H, W], `timestep` [B] and what it is conditioned on give `noise` [B, C, H, W], for any B.

    The output has this name whatever the network predicts.

    Args:
        model: The network, on the CPU, in evaluation mode.
        shape: [C, H, W] of an image as it takes it.
        timesteps: All that it takes, of the kind that it takes them.

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
    batch, names = torch.export.Dim("batch"), ["sample", "timestep", *conditions_of(model, 1, "cpu")]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about its own future
        program: Any = torch.onnx.export(
            _Plain(model).eval(),
            _example(model, 2, shape, timesteps),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["noise"],
            dynamic_shapes=({0: batch}, {0: batch}, *([tuple({0: batch} for _ in names[2:])] if names[2:] else [])),
        )
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
        content = path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = max(_difference(session, names, model, _example(model, count, shape, timesteps)) for count in TRIED)
    if not difference <= TOLERANCE:
        raise ReproError(
            f"--onnx: onnxruntime {onnxruntime.__version__} differs from torch by {difference:.2g}, more than {TOLERANCE:g}; "
            "nothing was written; leave --onnx out, or take another version"
        )
    return content, difference


class _Plain(nn.Module):
    """A denoiser whose forward pass takes and returns plain tensors, as the exporter wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = list(conditions_of(model, 1, "cpu"))

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        noise: Tensor = self.model(sample, timestep, **dict(zip(self.names, conditions, strict=True)), return_dict=False)[0]
        return noise


def _example(model: nn.Module, count: int, shape: tuple[int, int, int], timesteps: Tensor) -> tuple[Tensor, ...]:
    """Returns a batch of noise, with timesteps from the first to the last."""
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    chosen = timesteps[torch.linspace(0, len(timesteps) - 1, count).long()]
    return (images, chosen, *conditions_of(model, count, "cpu").values())


@torch.no_grad()
def _difference(session: Any, names: list[str], model: nn.Module, example: tuple[Tensor, ...]) -> float:
    try:
        (found,) = session.run(["noise"], {name: values.numpy() for name, values in zip(names, example, strict=True)})
    except Exception as error:  # of many kinds, all of onnxruntime's own
        raise ReproError(f"--onnx: onnxruntime cannot run the file ({str(error).splitlines()[0]:.200}); leave --onnx out") from error
    return float((torch.from_numpy(found) - _Plain(model)(*example)).abs().max())
