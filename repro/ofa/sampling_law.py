"""Sampling law: the probability with which each size is drawn for a training step (paper, Eq. 6), and its rivals.

The sizes of a step depend on (seed, step) alone, never on a rank's state, so all ranks train the same subnet.
"""

import random
from typing import Protocol

from repro.errors import ReproError


class Law(Protocol):
    """Draws the sizes that a step trains; every step as many."""

    def __call__(self, sizes: tuple[float, ...], *, seed: int, step: int) -> tuple[float, ...]:
        """Draws from the trained sizes, as a function of its arguments alone: all ranks must draw alike."""


def linear_law(sizes: tuple[float, ...], m: float) -> tuple[float, ...]:
    """Returns the paper's law: the smallest size is drawn m times as often as the largest (paper, Eq. 6).

        p(P) proportional to 1 + (m - 1) * (P_max - P) / (P_max - P_min)

    Args:
        sizes: The trained sizes.
        m: How much more often the smallest is drawn; 3 in the paper, 1 draws all alike.

    Returns:
        One probability for each size, in the order given.
    """
    span = max(sizes) - min(sizes)
    weights = [1 + (m - 1) * (max(sizes) - size) / span if span else 1.0 for size in sizes]
    return tuple(weight / sum(weights) for weight in weights)


def draw_sizes(sizes: tuple[float, ...], *, law: str, m: float, sandwich_random: int, seed: int, step: int) -> tuple[float, ...]:
    """Draws the sizes that one optimisation step trains.

    They share the step's batch out among them, and its loss is the mean of theirs, so that a step costs as many images under every law.

    Args:
        sizes: The trained sizes.
        law: "linear" (Eq. 6), "uniform" (all alike), "weighted" (all alike, see `loss_weight`), or "sandwich" (the largest, the smallest
            and `sandwich_random` others).
        m: The slope of the linear law.
        sandwich_random: How many random sizes a sandwich holds between its two slices.
        seed: The run's seed.
        step: The optimisation step.

    Raises:
        ReproError: The law is unknown.
    """
    stream = random.Random(f"sampling law, seed {seed}, step {step}")
    if law == "linear":
        return tuple(stream.choices(sizes, weights=linear_law(sizes, m)))
    if law in ("uniform", "weighted"):
        return (stream.choice(sizes),)
    if law == "sandwich":
        between = sorted(set(sizes) - {min(sizes), max(sizes)})
        chosen = stream.sample(between, min(sandwich_random, len(between)))
        return (max(sizes), *chosen, min(sizes)) if len(sizes) > 1 else tuple(sizes)
    raise ReproError(f"sampling_law.law: unknown law '{law}'; use linear, uniform, weighted or sandwich")


def expected_shares(sizes: tuple[float, ...], *, law: str, m: float, k: int) -> dict[float, float]:
    """Returns the share of the training images that each size is expected to see, 1 over all sizes.

    Args:
        sizes: The trained sizes.
        law: As for `draw_sizes`.
        m: Likewise.
        k: How many random sizes a sandwich holds.
    """
    if law == "linear":
        return dict(zip(sizes, linear_law(sizes, m), strict=True))
    if law in ("uniform", "weighted") or len(sizes) == 1:
        return dict.fromkeys(sizes, 1 / len(sizes))
    between = set(sizes) - {min(sizes), max(sizes)}
    k = min(k, len(between))
    return {size: (k / len(between) if size in between else 1) / (k + 2) for size in sizes}


def loss_weight(size: float, sizes: tuple[float, ...], *, law: str, m: float) -> float:
    """Returns the factor on the loss of a size, 1 on average over the sizes.

    Only "weighted" has any but 1: the linear law's shape (paper, Eq. 6) on the losses, where the paper has it on the draws. Under Adam
    such factors nearly cancel when a step trains one size.
    """
    return len(sizes) * linear_law(sizes, m)[sizes.index(size)] if law == "weighted" else 1.0


def draw_widths(units: dict[str, int], floors: dict[str, int], *, seed: int, step: int) -> dict[str, int]:
    """Draws a width for every pipe from an open candidate set, each on its own, all alike (Once-for-All, Cai et al., 2020, elastic width).

    Args:
        units: How many units each pipe has.
        floors: The least that it keeps.
        seed: The run's seed.
        step: The optimisation step.

    Returns:
        For every pipe how many units the step keeps.
    """
    stream = random.Random(f"open candidate set, seed {seed}, step {step}")
    return {name: stream.randint(floors[name], count) for name, count in units.items()}
