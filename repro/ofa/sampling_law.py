"""Sampling law: the probability with which each size is drawn for a training step (paper, Eq. 6), and its rivals.

The sizes of a step depend on (seed, step) alone, never on a rank's state, so all ranks train the same subnet.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from repro.errors import ReproError

CHECKED_STEPS = 20
Sizes = tuple[float, ...]


class Law(Protocol):
    """How the sizes of a training step are drawn, and how their losses count. A law of one's own derives from it and defines `shares`.

    The sizes of a step share its batch out among them, and its loss is the weighted mean of theirs, so that a step costs as many images
    under every law.
    """

    def shares(self, sizes: Sizes) -> dict[float, float]:
        """Returns for every trained size the share of the training images that it is expected to see, 1 over all sizes."""

    def draw(self, sizes: Sizes, *, seed: int, step: int) -> Sizes:
        """Draws the sizes that a step trains, as a function of its arguments alone; by default one, by its share."""
        shares = self.shares(sizes)
        return tuple(_stream(seed, step).choices(sizes, weights=[shares[size] for size in sizes]))

    def subnets(self, sizes: Sizes) -> int:
        """Returns how many sizes every step draws."""
        return len(self.draw(sizes, seed=0, step=0))

    def weight(self, size: float, sizes: Sizes) -> float:
        """Returns the factor on the loss of a size."""
        return 1.0


def linear_law(sizes: Sizes, m: float) -> tuple[float, ...]:
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


@dataclass(frozen=True)
class Linear(Law):
    """The paper's law (Eq. 6): one size a step, the smallest `m` times as often as the largest."""

    m: float

    def shares(self, sizes: Sizes) -> dict[float, float]:
        """Returns Eq. 6 by size."""
        return dict(zip(sizes, linear_law(sizes, self.m), strict=True))


@dataclass(frozen=True)
class Uniform(Law):
    """One size a step, all alike."""

    def shares(self, sizes: Sizes) -> dict[float, float]:
        """Returns the same share for every size."""
        return dict.fromkeys(sizes, 1 / len(sizes))

    def draw(self, sizes: Sizes, *, seed: int, step: int) -> Sizes:
        """Draws one size, all alike."""
        return (_stream(seed, step).choice(sizes),)


@dataclass(frozen=True)
class Weighted(Uniform):
    """One size a step, all alike, with the shape of Eq. 6 on the losses, where the paper has it on the draws.

    Under Adam such factors nearly cancel when a step trains one size.
    """

    m: float

    def weight(self, size: float, sizes: Sizes) -> float:
        """Returns Eq. 6 at a size, scaled to a mean of 1 over the sizes."""
        return len(sizes) * linear_law(sizes, self.m)[sizes.index(size)]


@dataclass(frozen=True)
class Sandwich(Law):
    """Every step trains the largest size, the smallest, and `between` others at random (Yu and Huang, 2019)."""

    between: int

    def shares(self, sizes: Sizes) -> dict[float, float]:
        """Returns the shares: the two slices see every step, the others share what lies between."""
        if len(sizes) == 1:
            return {sizes[0]: 1.0}
        inside = set(sizes) - {min(sizes), max(sizes)}
        count = min(self.between, len(inside))
        return {size: (count / len(inside) if size in inside else 1) / (count + 2) for size in sizes}

    def draw(self, sizes: Sizes, *, seed: int, step: int) -> Sizes:
        """Draws the largest size, others between, and the smallest."""
        inside = sorted(set(sizes) - {min(sizes), max(sizes)})
        chosen = _stream(seed, step).sample(inside, min(self.between, len(inside)))
        return (max(sizes), *chosen, min(sizes)) if len(sizes) > 1 else tuple(sizes)


def named_law(law: str, *, m: float, sandwich_random: int) -> Law:
    """Returns the law that the section `sampling_law` of a configuration names.

    Args:
        law: "linear", "uniform", "weighted" or "sandwich".
        m: The slope of Eq. 6, for the linear and the weighted law.
        sandwich_random: How many random sizes a sandwich holds between its two slices.

    Raises:
        ReproError: The law is unknown.
    """
    known: dict[str, Law] = {"linear": Linear(m), "uniform": Uniform(), "weighted": Weighted(m), "sandwich": Sandwich(sandwich_random)}
    if law not in known:
        raise ReproError(f"sampling_law.law: unknown law '{law}'; use linear, uniform, weighted or sandwich")
    return known[law]


def check_law(law: Law, sizes: Sizes) -> None:
    """Makes sure that a law keeps its contract, by the sizes of its first steps.

    Raises:
        ReproError: It is no `Law`, its shares are not those of the sizes, or a step draws what it must not.
    """
    name = type(law).__name__
    if not all(callable(getattr(law, part, None)) for part in ("draw", "shares", "subnets", "weight")):
        raise ReproError(f"law {name}: is no sampling law; derive a class from repro.api.Law and give an object of it (docs/extend.md)")
    shares, count = law.shares(sizes), law.subnets(sizes)
    if shares.keys() != set(sizes) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ReproError(f"law {name}: its shares must name every trained size once and sum to 1; they are {shares}")
    for step in range(CHECKED_STEPS):
        drawn = law.draw(sizes, seed=0, step=step)
        if len(drawn) != count or not set(drawn) <= set(sizes):
            raise ReproError(f"law {name}: step {step} draws {drawn}; every step must draw {count} of the trained sizes {sizes}")


def _stream(seed: int, step: int) -> random.Random:
    """Returns the random stream of a step; every law draws from it."""
    return random.Random(f"sampling law, seed {seed}, step {step}")


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
