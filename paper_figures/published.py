"""Published figures: what `published.toml` says of the literature, checked when it is read."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.config.sections import METRICS, check, one_of
from repro.errors import ReproError, one_line
from repro.files.reading import MOST_INTEGER, read_toml

SECTIONS = ("sources", "references", "protocols", "entries")
TORCH_PRUNING = "torch-pruning"

Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a figure was published."""

    cite: str
    title: str
    url: str

    def __post_init__(self) -> None:
        check("url", self.url.startswith("https://"), "must begin with https://")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The real images that stand against the samples; `copy` is the hash of their pixels where they are not the official files."""

    data: str
    split: str
    images: int
    copy: str = ""

    def __post_init__(self) -> None:
        check("images", self.images >= 2, "must be at least 2")

    def __str__(self) -> str:
        copied = f", a copy with sha256 {self.copy[:8]}" if self.copy else ""
        return f"{self.data} {self.split}, {self.images:,} images{copied}"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that a FID depends on beside the network; what is None is unknown.

    Attributes:
        data: The data set.
        resolution: Width and height of its images, in pixels.
        class_conditional: Whether the samples were drawn given a class.
        metric: As in the records.
        n_samples: Images sampled.
        reference: What they stand against.
        sampler: Its name, as in the records.
        nfe: Evaluations of the network for each image.
        spacing: Of the sampler's timesteps.
        eta: DDIM's noise.
        clip_sample: Whether the predicted clean image is clipped to [-1, 1] at every step.
        churn: EDM's S_churn, the noise that its sampler adds.
        tool: What computed the FID.
    """

    data: str
    resolution: int | None = None
    class_conditional: bool = False
    metric: str
    n_samples: int | None = None
    reference: Reference | None = None
    sampler: str | None = None
    nfe: int | None = None
    spacing: str | None = None
    eta: float | None = None
    clip_sample: bool | None = None
    churn: float | None = None
    tool: str | None = None

    def __post_init__(self) -> None:
        one_of("metric", self.metric, METRICS)
        for key in ("resolution", "n_samples", "nfe"):
            check(key, getattr(self, key) is None or getattr(self, key) >= 1, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure.

    Attributes:
        method: As in the records, where the harness has it: it picks the marker.
        label: As tables print it.
        source: The publication.
        where: The place in it, such as `Table 1`.
        protocol: How it was measured.
        fid: The figure.
        params: Parameters.
        macs: Multiply-accumulates of one forward on one image.
        macs_counter: What counted them.
        train_steps: Optimisation steps that the network itself took.
        train_batch_size: Images of a step.
        base_weights: Which weights of a training run the network is or started from: `ema` or `raw`.
        note: What else a reader must know.
    """

    method: str
    label: str
    source: Source
    where: str
    protocol: Protocol
    fid: float
    params: int | None = None
    macs: int | None = None
    macs_counter: str | None = None
    train_steps: int | None = None
    train_batch_size: int | None = None
    base_weights: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check("fid", 0 < self.fid < math.inf, "must be positive and finite")
        for key in ("params", "macs", "train_steps", "train_batch_size"):
            check(key, getattr(self, key) is None or getattr(self, key) >= 1, "must be at least 1")
        check("macs_counter", (self.macs is None) == (self.macs_counter is None), "goes with macs: counters differ by several per cent")
        if self.base_weights is not None:
            one_of("base_weights", self.base_weights, ("ema", "raw"))

    @property
    def title(self) -> str:
        """What tables call it: nobody may take it for a measured row."""
        return f"{self.label} (published)"

    @property
    def macs_torch_pruning(self) -> int | None:
        """The MACs, if they stand beside torch-pruning's count of ours."""
        return self.macs if self.macs_counter == TORCH_PRUNING else None


def load_published(path: Path) -> list[Published]:
    """Reads a file of published figures.

    Raises:
        ReproError: It cannot be read, or an entry has an unknown key, lacks one, or holds a value of the wrong kind or out of range.
    """
    try:
        values = read_toml(path)
    except (OSError, ValueError) as error:
        raise ReproError(
            f"{path}: not a readable TOML file ({error}); mend it, name another with --published or use --no-published"
        ) from error
    try:
        return _entries(values)
    except ReproError as error:
        raise ReproError(f"{path}: {error}") from error


def _entries(values: Table) -> list[Published]:
    _known_keys(values, SECTIONS, "the file")
    named: dict[str, dict[str, Any]] = {}
    for section, cls, links in (("sources", Source, ()), ("references", Reference, ()), ("protocols", Protocol, ("references",))):
        tables = values.get(section, {})
        check(section, isinstance(tables, dict), f"must be sections, such as [{section}.name]")
        linked = {link.removesuffix("s"): named[link] for link in links}
        named[section] = {name: _build(cls, table, f"{section}.{name}", linked) for name, table in tables.items()}
    entries = values.get("entries", [])
    check("entries", isinstance(entries, list), "must be a list, each begun by [[entries]]")
    linked = {"source": named["sources"], "protocol": named["protocols"]}
    return [_build(Published, table, f"entry {number}{_label_of(table)}", linked) for number, table in enumerate(entries, 1)]


def _label_of(table: object) -> str:
    return f" ({table['label']})" if isinstance(table, dict) and "label" in table else ""


def _build(cls: type, table: object, where: str, linked: dict[str, dict[str, Any]]) -> Any:
    """Makes a dataclass from a TOML table; the values of the keys in `linked` are names of things made before."""
    if not isinstance(table, dict):
        raise ReproError(f"{where}: must be a table of keys")
    hints = typing.get_type_hints(cls)
    _known_keys(table, tuple(hints), where)
    for item in dataclasses.fields(cls):
        if item.default is dataclasses.MISSING and item.name not in table:
            raise ReproError(f"{where}: the key '{item.name}' is missing; add it")
    arguments = {}
    try:
        for key, value in table.items():
            if key in linked:
                one_of(key, str(value), tuple(linked[key]))
                arguments[key] = linked[key][value]
            else:
                arguments[key] = _checked(key, value, hints[key])
        return cls(**arguments)
    except ReproError as error:
        raise ReproError(f"{where}: {error}") from error


def _known_keys(table: Table, known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ReproError(f"{where}: unknown key '{key}'; did you mean '{near[0]}'?")


def _checked(key: str, value: object, hint: Any) -> object:
    kinds = [kind for kind in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)) if kind is not types.NoneType]
    check(key, type(value) is not int or abs(value) < MOST_INTEGER, "must be an integer of at most 64 bits")
    if float in kinds and type(value) is int:
        value = float(value)
    check(key, type(value) in kinds, f"must be of type {kinds[0].__name__}, not {value!r:.80}")
    check(key, type(value) is not str or value == one_line(value), "must be one line of at most 2,000 letters, without control characters")
    return value
