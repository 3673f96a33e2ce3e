"""The ablations: each changes one factor of a method, all else being equal.

A variant is a method with cells of its own whose configuration differs at the keys that it names. One that changes nothing, because the
configuration has that value already, has no cells.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from repro.config import Config
from repro.experiment.cells import Variant
from repro.experiment.stage import base_macs, costs_of
from repro.ofa.sampling_law import Law, named_law

METHOD = "method"  # the factor of a variant that is a method of its own: tables show it beside the others
DISTILLATION = 0.5
DIGITS = 6  # of the sizes of a chain


def chain(config: Config, count: int) -> tuple[float, ...]:
    """Returns `count` trained sizes, evenly spaced from the largest to the smallest, with the reported ones among them.

    A reported size such as 1/3 takes the place of the evenly spaced one that is it but for rounding.
    """
    largest, smallest = max(config.sizes.trained), min(config.sizes.trained)
    even = {round(largest - index * (largest - smallest) / (count - 1), DIGITS) for index in range(count)}
    reported = set(config.sizes.reported)
    return tuple(sorted(even - {round(size, DIGITS) for size in reported} | reported, reverse=True))


def compute_ratio(config: Config, law: Law | None = None) -> float:
    """Returns how many times the compute of one joint run the independent runs of all reported sizes take, by analytic training work.

    No base has been scored yet, so both sides are taken to find all channels equally important. A joint run's sizes then have the MACs of
    the configured rule's plan; those of independent runs, whose method prunes where it likes, are affine in P: whole - (1 - P) * internal.
    What scores the channels counts on both sides too: Formula 4 takes a forward and one backward pass, 2/3 of a training image's work, and
    Diff-Pruning's pass a training image's. `law` stands in for the configuration's.
    """
    alone, joint, scoring, formula4 = compute(config, law)
    return (alone + scoring) / (joint + formula4)


def compute(config: Config, law: Law | None = None) -> tuple[float, float, float, float]:
    """Returns the MACs, times images, of all independent training runs, of the joint run, of Diff-Pruning's scoring and of Formula 4."""
    shares = (law or named_law(**dataclasses.asdict(config.sampling_law))).shares(config.sizes.trained)
    macs = base_macs(config.denoiser, config.allocation.resampling_units)
    planned = costs_of(config, config.allocation.rule).macs
    joint = sum(share * planned[size] for size, share in shares.items())
    alone = sum(macs.at(size) for size in config.sizes.reported)
    images = [settings.steps * settings.batch_size for settings in (config.baseline_training, config.ofa_training)]
    pruning = config.pruning
    scoring = pruning.images * (pruning.timesteps or config.diffusion.num_train_timesteps) * macs.whole
    return alone * images[0], joint * images[1], scoring, config.importance.images * macs.whole * 2 / 3


def _scaled(steps: int, config: Config, *, of_joint: bool) -> int:
    """Returns the steps with which one side's whole compute, scoring included, is that of the other; at least 1."""
    alone, joint, scoring, formula4 = compute(config)
    factor = (alone + scoring - formula4) / joint if of_joint else (joint + formula4 - scoring) / alone
    return max(1, round(steps * factor))


def _below(config: Config) -> Mapping[str, Any]:
    """Leaves size 1 out, trained and reported: the base itself is that. Changes nothing where there is no other size."""
    sizes = {f"sizes.{key}": tuple(size for size in getattr(config.sizes, key) if size < 1) for key in ("reported", "trained")}
    return sizes if all(sizes.values()) else {}


def _then_apart(share: float) -> Callable[[Config], Mapping[str, Any]]:
    """Returns a joint run cut short, and private runs of all reported sizes that spend the rest of its compute, as many images each."""

    def changes(config: Config) -> Mapping[str, Any]:
        _, joint, _, _ = compute(config)
        macs = costs_of(config, config.allocation.rule).macs
        images = share * joint / sum(macs[size] for size in config.sizes.reported)
        return {
            "ofa_training.steps": max(1, round((1 - share) * config.ofa_training.steps)),
            "finetuning.steps": max(1, round(images / config.finetuning.batch_size)),
        }

    return changes


def _set(**values: Any) -> Callable[[Config], Mapping[str, Any]]:
    """Returns fixed changes; `section__key` stands for `section.key`."""
    return lambda _config: {key.replace("__", "."): value for key, value in values.items()}


def _ofa(factor: str, label: str, changes: Callable[[Config], Mapping[str, Any]]) -> Variant:
    return Variant(of="ofa", factor=factor, label=label, changes=changes)


# Each has a joint training run of its own.
TRAINED_ONCE = {
    "slimmable": _ofa(
        METHOD,
        "slimmable: uniform prefix widths, sandwich",
        _set(allocation__rule="uniform", allocation__ranking="prefix", sampling_law__law="sandwich"),
    ),
    "ofa_n7": _ofa("candidate set", "chain of 7", lambda config: {"sizes.trained": chain(config, 7)}),
    "ofa_n31": _ofa("candidate set", "chain of 31", lambda config: {"sizes.trained": chain(config, 31)}),
    "ofa_open": _ofa("candidate set", "open", _set(sizes__candidates="open", compute__compile=False)),
    "ofa_open_long": _ofa(
        "candidate set",
        "open, four times the steps",
        lambda config: {"sizes.candidates": "open", "compute.compile": False, "ofa_training.steps": 4 * config.ofa_training.steps},
    ),
    "ofa_below": _ofa("candidate set", "without size 1, which is the base itself", _below),
    "ofa_formula5": _ofa("allocation", "formula5", _set(allocation__rule="formula5")),
    "ofa_uniform": _ofa("allocation", "uniform", _set(allocation__rule="uniform")),
    "ofa_magnitude": _ofa("ranking", "magnitude", _set(allocation__ranking="magnitude")),
    "ofa_random": _ofa("ranking", "random", _set(allocation__ranking="random")),
    "ofa_prefix": _ofa("ranking", "prefix", _set(allocation__ranking="prefix")),
    "ofa_regroup": _ofa("GroupNorm", "regroup", _set(allocation__groupnorm="regroup")),
    "ofa_m1": _ofa("sampling law", "linear, m = 1", _set(sampling_law__law="linear", sampling_law__m=1.0)),
    "ofa_m5": _ofa("sampling law", "linear, m = 5", _set(sampling_law__law="linear", sampling_law__m=5.0)),
    "ofa_weighted": _ofa("sampling law", "loss weights, m = 3", _set(sampling_law__law="weighted", sampling_law__m=3.0)),
    "ofa_sandwich": _ofa("sampling law", "sandwich", _set(sampling_law__law="sandwich")),
    "ofa_distilled": _ofa("distillation", "from the base, half the loss", _set(ofa_training__distillation=DISTILLATION)),
    "ofa_half": _ofa("budget", "half of the steps", lambda config: {"ofa_training.steps": max(1, config.ofa_training.steps // 2)}),
    "ofa_long": _ofa(
        "budget",
        "the compute of all independent runs",
        lambda config: {"ofa_training.steps": _scaled(config.ofa_training.steps, config, of_joint=True)},
    ),
}
# Each trains every size alone, as diff_pruning does.
TRAINED_ALONE = {
    "diff_pruning_t0": Variant(of="diff_pruning", factor="threshold", label="0", changes=_set(pruning__threshold=0.0)),
    "diff_pruning_t02": Variant(of="diff_pruning", factor="threshold", label="0.02", changes=_set(pruning__threshold=0.02)),
    "diff_pruning_distilled": Variant(
        of="diff_pruning",
        factor="distillation",
        label="from the base, half the loss",
        changes=_set(baseline_training__distillation=DISTILLATION),
    ),
    "diff_pruning_short": Variant(
        of="diff_pruning",
        factor="budget",
        label="the compute of one joint run, shared by all sizes",
        changes=lambda config: {"baseline_training.steps": _scaled(config.baseline_training.steps, config, of_joint=False)},
    ),
    "diff_pruning_averaged": Variant(
        of="diff_pruning",
        factor="channels",
        label="averaged over normalisation groups, norms unscored",
        changes=_set(pruning__channels="averaged"),
    ),
}
# Each has a shorter joint run of its own, after which every size is trained alone; together they take the compute of one joint run.
TRAINED_APART = {
    f"ofa_apart_{round(100 * share)}": _ofa("joint, then apart", f"{share:.0%} of the compute apart", _then_apart(share))
    for share in (0.25, 0.5, 0.75)
}
FINETUNED = _ofa("fine-tune", "each size after its extraction", _set())
