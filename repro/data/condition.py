"""The contract of a condition, what a network is given beside images and noise levels; unconditional, and class labels."""

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from repro.data.images import Images
from repro.errors import ReproError
from repro.runtime.seeds import derive_seed


@runtime_checkable
class Condition(Protocol):
    """What a network is conditioned on. One of one's own derives from this class, and an object of it is given to `repro.api.main`.

    Attributes:
        name: Its value of `data.condition`.
    """

    name: str

    @abstractmethod
    def rows(self, images: Images) -> dict[str, Tensor]:
        """Returns what each image is conditioned on, by the name of the network's argument, [N, ...]."""

    def null(self, images: Images) -> dict[str, Tensor]:
        """Returns the row that stands for no condition, [...] each, which training takes for some images where guidance is wanted.

        Raises:
            ReproError: There is none; the default.
        """
        raise ReproError(f"data.condition_dropout: the condition {self.name} has nothing that stands for none; set 0")

    def about(self, images: Images) -> dict[str, Any]:
        """Returns what records and cards say of it beside its name, as plain values; by default, how many class labels there are."""
        classes = self._classes(images)
        return {"num_classes": classes} if classes else {}

    def _classes(self, images: Images) -> int:
        labels = self.rows(images).get("class_labels")
        return 0 if labels is None else int(labels.max()) + 1

    def check(self, images: Images, accepted: int, *, dropped: bool) -> None:
        """Makes sure, before a run, that the network takes what the images are conditioned on; by default, their class labels.

        Args:
            images: The training images.
            accepted: How many classes the network takes; 0 for a network that takes none.
            dropped: Whether one of them stands for no condition.

        Raises:
            ReproError: It does not.
        """
        if not (classes := self._classes(images)):
            return
        needed = classes + dropped
        if accepted != needed:
            extra = " and one for no label" if dropped else ""
            has = f"{images.name} has labels of {needed - dropped}{extra}"
            raise ReproError(f"num_class_embeds: the network has {accepted} classes, and {has}; set {needed}, or another data.condition")

    def of_samples(self, images: Images, indices: range, *seeds: int) -> dict[str, Tensor]:
        """Returns what samples are conditioned on: each on what a random training image is, so that the judged set has the training's mix.

        Args:
            images: The training images.
            indices: Of the samples; what one is conditioned on depends on its index and the seeds alone.
            *seeds: The cell's and the sampling's.
        """
        stream = torch.Generator()
        lent = [int(torch.randint(len(images), (), generator=stream.manual_seed(derive_seed("condition", *seeds, i)))) for i in indices]
        return {name: rows[lent] for name, rows in self.rows(images).items()}


class Unconditional(Condition):
    """Nothing beside images and noise levels."""

    name = "none"

    def rows(self, images: Images) -> dict[str, Tensor]:
        """Returns nothing."""
        return {}

    def of_samples(self, images: Images, indices: range, *seeds: int) -> dict[str, Tensor]:
        """Returns nothing."""
        return {}

    def check(self, images: Images, accepted: int, *, dropped: bool) -> None:
        """Refuses a network that asks for classes, and a dropout of nothing."""
        if accepted:
            raise ReproError("data.condition: the network has classes (num_class_embeds); set data.condition = 'class_labels'")
        if dropped:
            raise ReproError("data.condition_dropout: nothing is conditioned on; set 0, or name a data.condition")


class ClassLabels(Condition):
    """The label of each image, as diffusers' networks take it; the network's last class stands for none, where labels are dropped."""

    name = "class_labels"

    def rows(self, images: Images) -> dict[str, Tensor]:
        """Returns the labels, int64, [N]."""
        return {"class_labels": images.labels}

    def null(self, images: Images) -> dict[str, Tensor]:
        """Returns the class after the last label."""
        return {"class_labels": images.labels.max() + 1}


UNCONDITIONAL = Unconditional()
CONDITIONS: dict[str, Condition] = {condition.name: condition for condition in (UNCONDITIONAL, ClassLabels())}
