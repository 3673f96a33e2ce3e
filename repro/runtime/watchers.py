"""Shows a run in TensorBoard and Weights & Biases while it goes on: losses, rates, points of curves and samples, over training images."""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from repro.errors import ReproError
from repro.runtime import distributed

PROJECT = "ofa-diffusion"


class Watcher(Protocol):
    """Where the numbers and images of a cell go."""

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """Takes values after so many training images."""

    def image(self, name: str, pixels: Tensor, images: int) -> None:
        """Takes an image, uint8 [C, H, W], grey or RGB, after so many training images."""

    def close(self) -> None:
        """Writes what has not been written yet."""


class TensorBoard:
    """Writes event files into the folder `tensorboard` of a cell.

    Args:
        folder: The cell's.
        name: The cell's.
        identity: The run's, which one that goes on has in common with the one before.
    """

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """Takes values after so many training images."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)

    def image(self, name: str, pixels: Tensor, images: int) -> None:
        """Takes an image, uint8 [C, H, W], after so many training images."""
        self._writer.add_image(name, pixels, images)

    def close(self) -> None:
        """Writes what has not been written yet."""
        self._writer.close()


class WeightsAndBiases:
    """Sends a cell to Weights & Biases as a run of the project `ofa-diffusion`; WANDB_MODE=offline keeps it in the cell's folder.

    Args:
        folder: The cell's.
        name: The cell's.
        identity: The run's; one that goes on after a kill goes on there, too.
    """

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        import wandb

        self._wandb: Any = wandb
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            id=hashlib.sha256(f"{folder.resolve()} {identity}".encode()).hexdigest()[:32],
            resume="allow",
            dir=folder,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """Takes values after so many training images."""
        self._run.log({**values, "images": images})

    def image(self, name: str, pixels: Tensor, images: int) -> None:
        """Takes an image, uint8 [C, H, W], after so many training images."""
        self._run.log({name: self._wandb.Image(pixels.permute(1, 2, 0).squeeze(-1).numpy()), "images": images})

    def close(self) -> None:
        """Waits until what was logged is written, or sent."""
        self._run.finish()


WATCHERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Watchers:
    """All watchers of a cell as one; none by default, and on another rank than the first.

    Args:
        names: Of `WATCHERS`.
        folder: The cell's.
        name: The cell's.
        identity: The run's.
    """

    def __init__(self, names: Iterable[str] = (), folder: Path = Path(), name: str = "", identity: str = "") -> None:
        first = distributed.rank() == 0
        self._all: list[Watcher] = [WATCHERS[each](folder, name, identity) for each in names if first]

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """Takes values after so many training images."""
        for each in self._all:
            each.scalars(values, images)

    def image(self, name: str, pixels: Tensor, images: int) -> None:
        """Takes an image, uint8 [C, H, W], after so many training images."""
        for each in self._all:
            each.image(name, pixels, images)

    def close(self) -> None:
        """Writes what has not been written yet."""
        for each in self._all:
            each.close()


def check_watchers(names: Iterable[str]) -> None:
    """Makes sure that what watchers need is installed.

    Raises:
        ReproError: It is not; says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ReproError(f"execution.watchers: {name} is not installed; python -m pip install {name}")
