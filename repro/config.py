"""The configuration of an experiment: frozen dataclasses, loaded from TOML.

Every value is checked when the configuration is made; an unknown key is an error that names it and the nearest valid one.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import ReproError

SHIPPED = Path(__file__).parent / "configs"
DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images: `digits` (scikit-learn's handwritten digits)."""

    name: str = "digits"

    def __post_init__(self) -> None:
        _one_of("name", self.name, ("digits",))


@dataclass(frozen=True, kw_only=True)
class Network:
    """The base's architecture, in the words of diffusers' `UNet2DModel`."""

    sample_size: int
    channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attention_head_dim: int = 0  # 0: one head as wide as the layer
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    downsample_padding: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        _check("down_block_types", len(self.down_block_types) == levels, f"needs one entry for each of the {levels} widths")
        _check("up_block_types", len(self.up_block_types) == levels, f"needs one entry for each of the {levels} widths")
        _check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")
        for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for block in getattr(self, key):
                _one_of(key, block, known)
        fits = self.norm_num_groups >= 1 and all(width % self.norm_num_groups == 0 for width in self.block_out_channels)
        _check("norm_num_groups", fits, f"must divide every width in block_out_channels, {self.block_out_channels}")


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise schedule (DDPM) that the base was or is trained with."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _check("num_train_timesteps", self.num_train_timesteps >= 1, "must be at least 1")
        _one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        _check("beta_start", 0 < self.beta_start <= self.beta_end < 1, "needs 0 < beta_start <= beta_end < 1")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes P that the supernet is trained on, and those that are evaluated."""

    trained: tuple[float, ...]
    reported: tuple[float, ...]

    def __post_init__(self) -> None:
        for key, sizes in (("trained", self.trained), ("reported", self.reported)):
            _check(key, bool(sizes), "needs at least one size")
            _check(key, all(0 < size <= 1 for size in sizes), "every size must lie in (0, 1]")
            _check(key, len(set(sizes)) == len(sizes), "names a size twice")
        extra = sorted(set(self.reported) - set(self.trained))
        _check("reported", not extra, f"{extra} are not among sizes.trained; add them there or leave them out here")


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """How channels are scored (paper, Formula 4)."""

    images: int = 1024
    batch_size: int = 128

    def __post_init__(self) -> None:
        _check("images", self.images >= 1, "must be at least 1")
        _check("batch_size", self.batch_size >= 1, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How the channels of a size are shared among the pipes (paper, Formula 5)."""

    rule: str = "gradual"
    floor: float = 0.25

    def __post_init__(self) -> None:
        _one_of("rule", self.rule, ("gradual", "formula5", "uniform"))
        _check("floor", 0 < self.floor <= 1, "must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class SamplingLaw:
    """Which sizes a step trains (paper, Eq. 6)."""

    law: str = "linear"
    m: float = 3.0
    sandwich_random: int = 2

    def __post_init__(self) -> None:
        _one_of("law", self.law, ("linear", "uniform", "sandwich"))
        _check("m", self.m > 0, "must be positive")
        _check("sandwich_random", self.sandwich_random >= 0, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The budget and optimiser of one training run: Adam, warm-up, EMA."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    schedule: str = "constant"
    gradient_clipping: float = 1.0
    ema_decay: float = 0.9999
    dropout: float = 0.0
    horizontal_flip: bool = False
    zero_stage: int = 0
    checkpoint_every_steps: int = 1000

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "checkpoint_every_steps"):
            _check(key, getattr(self, key) >= 1, "must be at least 1")
        _check("learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite")
        _check("warmup_steps", self.warmup_steps >= 0, "must not be negative")
        _check("gradient_clipping", self.gradient_clipping >= 0, "must not be negative; 0 clips nothing")
        _check("ema_decay", 0 <= self.ema_decay < 1, "must lie in [0, 1)")
        _check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")
        _one_of("schedule", self.schedule, ("constant", "cosine"))
        _check(
            "zero_stage",
            self.zero_stage in (0, 1, 2),
            "must be 0, 1 or 2; stage 3 partitions the parameters, and a supernet gathers slices of whole ones",
        )


@dataclass(frozen=True, kw_only=True)
class Base:
    """The pretrained network that both approaches start from."""

    source: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("source", self.source, ("train",))


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How the independent baselines are pruned (Diff-Pruning, Fang et al., 2023)."""

    images: int = 128
    threshold: float = 0.05

    def __post_init__(self) -> None:
        _check("images", self.images >= 1, "must be at least 1")
        _check("threshold", 0 <= self.threshold < 1, "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network is sampled and judged."""

    metric: str = "fid_classifier"
    samples: int = 50_000
    sampling_seeds: tuple[int, ...] = (0,)
    batch_size: int = 256
    sampler_steps: int = 100
    spacing: str = "quadratic"
    clip_sample: bool = True

    def __post_init__(self) -> None:
        _one_of("metric", self.metric, ("fid_classifier",))
        _one_of("spacing", self.spacing, ("uniform", "quadratic"))
        _check("samples", self.samples >= 2, "must be at least 2: a covariance needs two samples")
        _check("sampler_steps", self.sampler_steps >= 1, "must be at least 1")
        _check("sampler_steps", self.sampler_steps >= 2 or self.spacing != "quadratic", "quadratic spacing needs at least 2")
        _check("batch_size", self.batch_size >= 1, "must be at least 1")
        _check("sampling_seeds", bool(self.sampling_seeds), "needs at least one seed")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The feature extractor of `fid_classifier`, trained on the labelled images themselves."""

    width: int = 32
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    held_out: float = 0.2
    least_accuracy: float = 0.97
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("width", "steps", "batch_size"):
            _check(key, getattr(self, key) >= 1, "must be at least 1")
        _check("width", self.width % 8 == 0, "must be a multiple of 8: its normalisation has 8 groups")
        _check("learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite")
        _check("held_out", 0 < self.held_out < 1, "must lie in (0, 1)")
        _check("least_accuracy", 0 <= self.least_accuracy <= 1, "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    name: str
    data: Data = field(default_factory=Data)
    network: Network
    diffusion: Diffusion = field(default_factory=Diffusion)
    base: Base = field(default_factory=Base)
    sizes: Sizes
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)
    allocation: Allocation = field(default_factory=Allocation)
    sampling_law: SamplingLaw = field(default_factory=SamplingLaw)
    base_training: Training
    ofa_training: Training
    baseline_training: Training
    pruning: Pruning = field(default_factory=Pruning)
    evaluation: Evaluation = field(default_factory=Evaluation)
    classifier: Classifier = field(default_factory=Classifier)
    trial: bool = False

    def __post_init__(self) -> None:
        _check("name", self.name.replace("_", "").replace("-", "").isalnum(), "use letters, digits, '-' and '_' only: it names a folder")
        steps, timesteps = self.evaluation.sampler_steps, self.diffusion.num_train_timesteps
        _check("evaluation.sampler_steps", steps <= timesteps, f"is {steps}, but there are only {timesteps} timesteps to visit")

    def as_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain values, as a record holds it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def sha256(self) -> str:
        """Returns the hash of everything that can change a result."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def load_config(name_or_path: str, overrides: list[str] | None = None) -> Config:
    """Loads a configuration.

    Args:
        name_or_path: A shipped configuration, or the path of a TOML file.
        overrides: `section.key=value` strings; the value is written as in TOML, quotes around text may be left out.

    Raises:
        ReproError: No such configuration, no valid TOML, an unknown key, or a value of the wrong kind or out of range.
    """
    path = _find(name_or_path)
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ReproError(f"{path}: not a readable TOML file ({error}); mend it or name another") from error
    for override in overrides or []:
        _override(values, override)
    try:
        config = _build(Config, values, "")
    except ReproError as error:
        raise ReproError(f"{path}: {error}") from error
    assert isinstance(config, Config)
    return config


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
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, leaf = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ReproError(f"--set {override}: '{section}' is no section")
    values[leaf] = value


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    """Makes a dataclass from a TOML table, checking names and kinds of values."""
    hints = typing.get_type_hints(cls)
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
        return cls(**arguments)
    except ReproError as error:  # a section does not know its own name
        raise ReproError(f"{prefix}{error}") from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        _check(key, isinstance(value, dict), "must be a section")
        return _build(typing.cast(type, hint), value, f"{key}.")
    if isinstance(hint, types.GenericAlias):
        _check(key, isinstance(value, list), "must be a list, such as [1, 2]")
        return tuple(_convert(typing.get_args(hint)[0], item, key) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    _check(key, type(value) is hint, f"must be of type {hint.__name__}, not {value!r}")
    return value


def _check(key: str, holds: bool, what: str) -> None:
    if not holds:
        raise ReproError(f"{key}: {what}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
    hint = f"; did you mean '{near[0]}'?" if len(known) > 1 else ""
    _check(key, value in known, f"unknown value '{value}', use {', '.join(known)}{hint}")
