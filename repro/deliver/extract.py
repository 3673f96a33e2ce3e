"""Exports a subnet as a diffusers pipeline with a model card: `python -m repro extract`."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from repro.config.sections import MOST_SEED, not_negative
from repro.data.images import png_of
from repro.deliver.model_card import is_of_package, model_card
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, joint_cell
from repro.experiment.evaluate import Drawing
from repro.methods.train_once import load_supernet
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import load_denoiser, load_pipeline, save_denoiser
from repro.ofa.accounting import size_of
from repro.runtime.distributed import device
from repro.runtime.precision import laid_out
from repro.size_text import size_text

GRID = (4, 4)  # rows and columns of the sample images
LEAST_SIDE = 64  # pixels of an image in the grid; smaller ones are enlarged without smoothing
EDGE = 2  # pixels


def extract_subnet(experiment: Experiment, *, size: float, seed: int, out: Path, onnx: bool = False) -> Path:
    """Saves the subnet of a size as a diffusers pipeline with a model card and sample images.

    Args:
        experiment: The configuration and its folders.
        size: One of the trained sizes.
        seed: The seed of the joint training run.
        out: The folder to make.
        onnx: Whether to put an ONNX file beside it.

    Returns:
        The folder.

    Raises:
        ReproError: The size is not a trained one, the seed is out of range, nothing has been trained yet, the folder is in the way, or the
            ONNX file is not equal.
    """
    not_negative("--seed", seed, MOST_SEED)
    if size not in experiment.config.sizes.trained:
        known = ", ".join(map(size_text, experiment.config.sizes.trained))
        raise ReproError(f"--size {size_text(size)}: not a trained size; use one of {known}")
    check_new(out)
    cell = Cell(method="ofa", size=size, seed=seed)
    supernet = load_supernet(experiment, joint_cell(cell))
    return save_subnet(experiment, cell, supernet.extract(size), supernet.base, out=out, onnx=onnx, recorded=True)


def check_new(out: Path) -> None:
    """Makes sure that nothing lies where a folder is to be made.

    Raises:
        ReproError: Something does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReproError(f"--out {out}: something is there already; name a new folder")


def save_subnet(experiment: Experiment, cell: Cell, subnet: nn.Module, base: nn.Module, *, out: Path, onnx: bool, recorded: bool) -> Path:
    """Saves a subnet with its card, its sample images and, if asked, its ONNX file; the folder appears whole or not at all.

    Args:
        experiment: The configuration and its folders.
        cell: Whose subnet it is.
        subnet: The network, on the CPU.
        base: The whole network that it was cut from.
        out: The folder to make.
        onnx: Whether to put an ONNX file beside it.
        recorded: Whether the cell is one of the grid, or of a size that was trained.
    """
    files: dict[str, bytes] = {}
    drawn = sample_images(experiment, subnet, cell)
    files["samples.png"] = grid_png(drawn)
    difference = None
    if onnx:
        from repro.deliver.onnx_export import to_onnx

        timesteps = experiment.formulation.timesteps(experiment.formulation.ladder(experiment.config.diffusion.num_train_timesteps))
        content, difference = to_onnx(subnet.eval(), experiment.network_shape, timesteps)
        files["model.onnx"] = content
    macs = count_macs(subnet, experiment.network_shape)
    about = {
        "realised": size_of(base, subnet, experiment.config.allocation.resampling_units),
        "params": count_params(subnet.parameters()),
        "params_base": count_params(base.parameters()),
        "macs": macs.total,
        "macs_conv_linear": macs.conv_linear,
        "drawn": len(drawn),
    }
    card = model_card(experiment, cell, about, recorded=recorded, folder=out.name, onnx_difference=difference)
    files["README.md"] = card.encode()
    scheduler = experiment.formulation.scheduler(clip_sample=experiment.config.evaluation.clip_sample)
    save_denoiser(subnet, scheduler, out, files=files)
    if is_of_package(experiment.config):  # what cannot be read back is no delivery
        load_pipeline(out)
    else:
        load_denoiser(out, experiment.config.denoiser)
    return out


def sample_images(experiment: Experiment, subnet: nn.Module, cell: Cell) -> Tensor:
    """Returns the first images of a subnet at a seed, as its record's samples begin, uint8 [N, C, H, W]."""
    settings, count = experiment.config.evaluation, GRID[0] * GRID[1]
    indices = range(min(count, settings.samples))
    model = laid_out(copy.deepcopy(subnet), experiment.config.compute, device()).eval()
    return Drawing(experiment, model, cell, len(indices))(indices, settings.sampling_seeds[0])


def grid_png(pixels: Tensor) -> bytes:
    """Returns images, uint8 [N, C, H, W], as one PNG in rows, with a white edge around each."""
    scale = max(1, LEAST_SIDE // pixels.shape[-1])
    enlarged = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    enlarged = nn.functional.pad(enlarged, (EDGE, EDGE, EDGE, EDGE), value=255)
    columns = min(GRID[1], len(enlarged))
    rows = [torch.cat(list(row), dim=2) for row in enlarged[: len(enlarged) // columns * columns].split(columns)]
    return png_of(torch.cat(rows, dim=1))
