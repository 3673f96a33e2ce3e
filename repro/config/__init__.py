"""The configuration of an experiment: frozen dataclasses, loaded from TOML.

Every value is checked when the configuration is made; an unknown key is an error that names it and the nearest valid one.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from repro.config.execution import Cluster, Execution
from repro.config.networks import ARCHITECTURES, Architecture, Denoiser, Network, Transformer
from repro.config.sections import (
    ABSENT,
    BUDGETS,
    MOST_HOURS,
    PARTS,
    Allocation,
    Base,
    Classifier,
    Compute,
    Curves,
    Data,
    Diffusion,
    Evaluation,
    ImportanceSettings,
    Pruning,
    SamplingLaw,
    Sizes,
    Training,
    check,
    not_negative,
    one_of,
)
from repro.errors import ReproError, one_line
from repro.files.reading import MOST_INTEGER, parse_toml, read_toml
from repro.files.writing import sha256_of_json

__all__ = [
    "Allocation",
    "Base",
    "Classifier",
    "Cluster",
    "Compute",
    "Config",
    "Curves",
    "Data",
    "Diffusion",
    "Evaluation",
    "Execution",
    "ImportanceSettings",
    "Network",
    "Pruning",
    "SamplingLaw",
    "Sizes",
    "Training",
    "Transformer",
    "build",
    "changed",
    "load_config",
]

SHIPPED = Path(__file__).parents[1] / "configs"
NAME = re.compile("[A-Za-z0-9_-]{1,100}")
GUIDED = "asks a network that was trained without its condition, too; set data.condition_dropout, such as 0.1, or guidance = 1"
ALIKE = "a base is trained on in the formulation that it was trained in; name another base, or set both alike"
AUGMENT_LABELS = 9
AUGMENTED = f"needs a network that is told of it: song_unet.augment_dim = {AUGMENT_LABELS}"
CURVED = ("ofa_training", "baseline_training")  # the sections whose trainings are judged on their way, where there are [curves]
NO_END = "where there are [curves]: a point of a falling rate is not the end of a shorter run"
OF_DIFFUSERS = ("network", "transformer")
ONE_NETWORK = "a base is a [network], a [transformer] or of another architecture; write one of these sections"
NO_KEYS = ("own", "section")  # of a configuration and of an architecture, which stands under a name of its own
CHANGE_NOTHING = ("execution", "cluster")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment.

    Attributes:
        name: Names its folders of records and artefacts.
        network: The base's architecture, where it is a UNet.
        transformer: Where it is a transformer.
        curves: Where trainings are judged on their way as well.
        own: Where it is another, of the package or of a script; one of the three. Its section has a name of its own.
        hours: How long all of it may take on the device at hand; its training steps are scaled to that once, by a measured
            throughput. 0 takes the steps as they are written.
        trial: Whether the run only tries the machinery; its records are marked, and no table or figure shows them.
    """

    name: str
    data: Data = field(default_factory=Data)
    network: Network | None = None
    transformer: Transformer | None = None
    own: Architecture | None = None
    diffusion: Diffusion = field(default_factory=Diffusion)
    base: Base = field(default_factory=Base)
    sizes: Sizes
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)
    allocation: Allocation = field(default_factory=Allocation)
    sampling_law: SamplingLaw = field(default_factory=SamplingLaw)
    base_training: Training
    ofa_training: Training
    baseline_training: Training
    finetuning: Training
    pruning: Pruning = field(default_factory=Pruning)
    evaluation: Evaluation = field(default_factory=Evaluation)
    curves: Curves | None = None
    classifier: Classifier = field(default_factory=Classifier)
    compute: Compute = field(default_factory=Compute)
    execution: Execution = field(default_factory=Execution)
    cluster: Cluster = field(default_factory=Cluster)
    hours: float = 0.0
    trial: bool = False

    def __post_init__(self) -> None:
        check("name", NAME.fullmatch(self.name) is not None, "use at most 100 ASCII letters, digits, '-' and '_': it names a folder")
        given = [section for section in (self.network, self.transformer, self.own) if section is not None]
        check("network", len(given) == 1, ONE_NETWORK)
        fits = self.network is not None or self.base.source in ("train", "shipped") or bool(self.base.file)
        check(
            "base.source",
            fits,
            "must be 'train' or 'shipped' without [network]: only a UNet is taken from a hub or a folder; base.file takes any",
        )
        not_negative("hours", self.hours, MOST_HOURS, "0 takes the training steps as they are written")
        trained_in, formulation = self.base.formulation, self.diffusion.formulation
        check("base.formulation", trained_in in ("", formulation), f"is {trained_in!r}, and diffusion.formulation {formulation!r}: {ALIKE}")
        check("base_training.distillation", self.base_training.distillation == 0, "must be 0: the base has no teacher")
        chain = self.sizes.candidates == "chain"
        check("sizes.candidates", chain or not self.compute.compile, "an open set has no subnets to compile; set compute.compile = false")
        steps, timesteps = self.evaluation.sampler_steps, self.diffusion.num_train_timesteps
        visited = formulation == "ddpm" and self.evaluation.sampler != "heun"
        check(
            "evaluation.sampler_steps", steps <= timesteps or not visited, f"is {steps}, but there are only {timesteps} timesteps to visit"
        )
        scored = self.pruning.timesteps
        check("pruning.timesteps", scored <= timesteps, f"is {scored}, but there are only {timesteps} (diffusion.num_train_timesteps)")
        check("evaluation.guidance", self.evaluation.guidance == 1 or self.data.condition_dropout > 0, GUIDED)
        for section in CURVED if self.curves else ():
            check(f"{section}.schedule", getattr(self, section).schedule == "constant", f"must be 'constant' {NO_END}")
            check(f"{section}.cooldown", getattr(self, section).cooldown == 0, f"must be 0 {NO_END}")
        told = getattr(self.denoiser, "augment_dim", 0)
        for section in BUDGETS:
            augmented = getattr(self, section).augment_probability > 0
            check(f"{section}.augment_probability", not augmented or told == AUGMENT_LABELS, f"{AUGMENTED}, not {told}")
        shift, side = self.classifier.crop_padding, self.denoiser.sample_size
        check("classifier.crop_padding", shift < side, f"{shift} shifts images of {side} x {side} out of themselves; make it smaller")

    @property
    def denoiser(self) -> Denoiser:
        """The base's architecture."""
        denoiser = self.network or self.transformer or self.own
        assert denoiser is not None
        return denoiser

    def as_dict(self) -> dict[str, Any]:
        """Returns everything that can change a result, as plain values, as a record holds it."""
        plain: dict[str, Any] = json.loads(json.dumps(_written(self)))
        if self.own:
            plain[self.own.section] = plain.pop("own")
        return {key: value for key, value in plain.items() if key not in CHANGE_NOTHING and value is not None}

    def sha256(self) -> str:
        """Returns the hash of everything that can change a result."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return sha256_of_json(self.as_dict())


def load_config(
    name_or_path: str,
    overrides: list[str] | None = None,
    names: Mapping[str, tuple[str, ...]] = PARTS,
    architectures: Mapping[str, type[Architecture]] = MappingProxyType(ARCHITECTURES),
) -> Config:
    """Loads a configuration.

    Args:
        name_or_path: A shipped configuration, or the path of a TOML file.
        overrides: `section.key=value` strings; the value is written as in TOML, quotes around text may be left out.
        names: Key -> its known values, where a script may bring others (`Parts.names`).
        architectures: Section -> architecture, beside `network` and `transformer` (`Parts.architectures`).

    Raises:
        ReproError: No such configuration, no valid TOML, an unknown key, or a value of the wrong kind or out of range.
    """
    path = _find(name_or_path)
    try:
        values = read_toml(path)
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not a readable TOML file ({error}); mend it or name another") from error
    for override in overrides or []:
        _override(values, override)
    try:
        given = [name for name in (*OF_DIFFUSERS, *architectures) if name in values]
        check("network", len(given) <= 1, f"{ONE_NETWORK}, not {' and '.join(given)}")
        ready = {}
        for name in given:
            if name in architectures:
                ready["own"] = build(architectures[name], values.pop(name), f"{name}.")
        config = build(Config, values, **ready)
        for key, known in names.items():
            section, _, leaf = key.partition(".")
            one_of(key, getattr(getattr(config, section), leaf), known)
        for name in config.evaluation.also if "evaluation.metric" in names else ():
            one_of("evaluation.also", name, names["evaluation.metric"])
    except ReproError as error:
        raise ReproError(f"{path}: {error}") from error
    assert isinstance(config, Config)
    return config


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values at some keys, `section.key` each.

    Raises:
        ReproError: A value is out of range.
    """
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        try:
            part = dataclasses.replace(getattr(config, section), **{leaf: value})
        except ReproError as error:  # a section does not know its own name
            raise ReproError(f"{section}.{error}") from error
        config = dataclasses.replace(config, **{section: part})
    return config


def build(cls: type, values: dict[str, Any], prefix: str = "", **ready: Any) -> Any:
    """Makes a dataclass from a table of TOML or JSON, checking names and kinds of values; `ready` fields are taken as they are.

    Raises:
        ReproError: An unknown or missing key, or a value of the wrong kind or out of range.
    """
    hints = {key: hint for key, hint in typing.get_type_hints(cls).items() if key not in NO_KEYS}
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise ReproError(f"unknown key '{prefix}{key}'; did you mean '{prefix}{near[0]}'?")
    required = [item.name for item in dataclasses.fields(cls) if item.default is item.default_factory is dataclasses.MISSING]
    missing = [key for key in required if key not in values]
    if missing:
        raise ReproError(f"the key '{prefix}{missing[0]}' is missing; add it")
    arguments = {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**arguments, **ready)
    except ReproError as error:  # a section does not know its own name
        raise ReproError(f"{prefix}{error}") from error


def _written(section: Any) -> Any:
    """Returns a dataclass as a dictionary without the keys that came later and mean nothing at their value, so that hashes survive them."""
    if not dataclasses.is_dataclass(section):
        return section
    items = [(item, getattr(section, item.name)) for item in dataclasses.fields(section)]
    return {item.name: _written(value) for item, value in items if not (item.metadata.get(ABSENT) and value == item.default)}


def _find(name_or_path: str) -> Path:
    shipped = {path.stem: path for path in SHIPPED.glob("*.toml")}
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ReproError(f"--config {name_or_path}: no such configuration; use {', '.join(sorted(shipped))}, or the path of a TOML file")
    return path


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ReproError(f"--set {override}: write it as section.key=value")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    *sections, leaf = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ReproError(f"--set {override}: '{section}' is no section")
    values[leaf] = value


def _convert(hint: Any, value: Any, key: str) -> Any:
    if isinstance(hint, types.UnionType):  # of a section that may be missing
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        check(key, isinstance(value, dict), "must be a section")
        return build(typing.cast(type, hint), value, f"{key}.")
    if isinstance(hint, types.GenericAlias):
        check(key, isinstance(value, list), "must be a list, such as [1, 2]")
        return tuple(_convert(typing.get_args(hint)[0], item, key) for item in value)
    check(key, type(value) is not int or abs(value) < MOST_INTEGER, "must be an integer of at most 64 bits")
    if hint is float and type(value) is int:
        value = float(value)
    check(key, type(value) is hint, f"must be of type {hint.__name__}, not {value!r:.80}")
    check(key, type(value) is not float or math.isfinite(value), f"must be a finite number, not {value}")
    check(key, type(value) is not str or value == one_line(value), "must be one line of at most 2,000 letters, without control characters")
    return value
