"""Sampling law: the probability with which each size is drawn for a training step (paper, Eq. 6), and its rivals.

The sizes of a step depend on (seed, step) alone, never on a rank's state, so all ranks train the same subnet.
"""

import random

from repro.errors import ReproError


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
    """Draws the sizes that one optimisation step trains; the step's loss is the mean of theirs.

    Args:
        sizes: The trained sizes.
        law: "linear" (Eq. 6), "uniform" (all alike), or "sandwich" (the largest, the smallest and `sandwich_random` others).
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
    if law == "uniform":
        return (stream.choice(sizes),)
    if law == "sandwich":
        between = sorted(set(sizes) - {min(sizes), max(sizes)})
        chosen = stream.sample(between, min(sandwich_random, len(between)))
        return (max(sizes), *chosen, min(sizes)) if len(sizes) > 1 else tuple(sizes)
    raise ReproError(f"sampling_law.law: unknown law '{law}'; use linear, uniform or sandwich")
