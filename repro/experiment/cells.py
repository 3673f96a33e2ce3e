"""The grid of an experiment: one cell for every (method, size, seed), and the folders that it lives in."""

import dataclasses
import difflib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.config import Config, Data, Evaluation, Training, changed
from repro.config.networks import network_shape
from repro.config.sections import BUDGETS, MOST_SEED, not_negative
from repro.errors import ReproError
from repro.experiment.parts import Parts
from repro.experiment.records import REMEDY, Record, read_record, record_path
from repro.experiment.stage import Costs, Stage, training_work
from repro.files.locks import holder
from repro.files.places import Places
from repro.ofa.sampling_law import Law, check_law, named_law
from repro.program import MODULE, Program
from repro.runtime.clock import Clock
from repro.runtime.heartbeat import duration, read_heartbeat
from repro.size_text import cell_name, size_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repro.data.condition import Condition
    from repro.data.images import Images
    from repro.data.space import Space
    from repro.diffusion.formulation import Formulation
    from repro.diffusion.sampler import Sampler
    from repro.metrics.metric import Metric
    from repro.runtime.progress import CellProgress

Networks = Callable[["Experiment", "Cell", Mapping[str, "Tensor"]], Mapping[float, "nn.Module"]]
Interference = Callable[["Experiment", "Cell", "Mapping[str, Tensor] | None", bool], dict[str, Any]]
ImagesKey = tuple[Data, tuple[int, int, int], Places]  # what determines the training images
BASE = "base"  # the method that everything starts from
ROUNDED = 5e-3  # the most that a size typed with two or more decimals differs from the one meant


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid; `size` is None where a method has no size."""

    method: str
    size: float | None
    seed: int

    @property
    def name(self) -> str:
        """Names the cell's record, folder and locks."""
        return cell_name(self.method, self.size, self.seed)

    def words(self) -> list[str]:
        """Returns the words of the verb `run` that ask for this cell alone, and for what it needs.

        The base is asked for without its size: `--sizes` takes the reported ones, and the whole network need not be among them.
        """
        sizes = [] if self.size is None or self.method == BASE else ["--sizes", size_text(self.size)]
        return ["--methods", self.method, *sizes, "--seeds", str(self.seed)]


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a method makes for a cell.

    Attributes:
        model: The network, or None where there is none to keep.
        training: What the record says of the training; None where nothing was trained.
        realised: Fraction of the prunable internal width that the network's parameters amount to; 1 for the base.
        files: More files to keep beside the network, name -> content.
        pixels: Images to judge in place of the network's samples: (judged, reference), each uint8 [N, C, H, W].
        base_sha256: Hash of the weights of the base that it descends from; known once it has been saved.
    """

    model: "nn.Module | None" = None
    training: dict[str, Any] | None = None
    realised: float | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    pixels: tuple[Any, Any] | None = None
    base_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What an ablation changes: one factor of a method, all else being equal.

    Attributes:
        of: The method that it is held against.
        factor: What is changed.
        label: What it is changed to.
        changes: Configuration key -> value, given the configuration as it is written.
    """

    of: str
    factor: str
    label: str
    changes: Callable[[Config], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to come by a network.

    Attributes:
        name: What the user types.
        summary: One line for the help.
        sizes: The sizes that it has cells for.
        make: Makes the product of a cell.
        needs: The cells whose artefacts it reads.
        delivered_by: Those of them whose cost has to be paid for this cell, the base excluded.
        budget: The section of the configuration whose training it spends; empty where it trains nothing.
        judged: Whether its product has a quality.
        networks: Where its training is judged on its way, the networks of a snapshot by size, given the experiment, the cell and the
            snapshot's weights. None where it is not.
        interference: Where its training serves several sizes, how these interfere at a point of its way, given the experiment, the cell,
            the snapshot's weights (None for the base) and whether weights are swapped, too. None where it does not.
        pixels: Where it makes images in place of a network: how many of them are judged, given the section `evaluation` and the images
            of the reference. None where it makes a network.
        rule: The allocation rule by which its networks count, before any has been made; `uniform` is near what pruning of whole networks
            comes to.
        work: What making some of its cells takes, evaluation left out: given the experiment under the method's configuration, one or more
            cells, and the costs of their sizes. By default the training of `budget`.
        variant: What it changes of another method; None for a method of its own.
        law: The sampling law of its joint training run in place of the configuration's; None takes that.
    """

    name: str
    summary: str
    sizes: Callable[[Config], tuple[float | None, ...]]
    make: Callable[["Experiment", Cell, Clock, "CellProgress"], Product]
    needs: Callable[[Config, Cell], tuple[Cell, ...]] = lambda _config, _cell: ()
    delivered_by: Callable[[Cell], tuple[Cell, ...]] = lambda _cell: ()
    budget: Callable[[Config], str] = lambda _config: ""
    judged: bool = True
    networks: "Networks | None" = None
    interference: "Interference | None" = None
    pixels: Callable[[Evaluation, int], int] | None = None
    rule: Callable[[Config], str] = lambda _config: "uniform"
    work: Callable[["Experiment", Sequence[Cell], Costs], list[Stage]] = training_work
    variant: Variant | None = None
    law: Law | None = None

    def config(self, written: Config) -> Config:
        """Returns the configuration that its cells run under."""
        return changed(written, self.variant.changes(written)) if self.variant else written


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A configuration and where its results lie.

    Attributes:
        config: What is done.
        written: The configuration as it is written, where `config` is that of a variant.
        methods: Every method by name, variants included: what a cell runs under depends on its method.
        results: The folder of its records.
        runs: The folder of its heavy artefacts: weights, checkpoints, samples.
        parts: What a script brings beside methods.
        places: Where data and weights that it did not make lie.
        source: How the configuration was named on the command line, with its overrides, to repeat it.
        program: What a command that makes its cells begins with; a method of one's own is known by its script alone.
    """

    config: Config
    methods: Mapping[str, Method]
    results: Path
    runs: Path
    source: str
    parts: Parts = field(default_factory=Parts)
    places: Places = field(default_factory=Places)
    program: Program = MODULE
    written: Config | None = None
    _loaded: "dict[ImagesKey, Images]" = field(default_factory=dict, repr=False, compare=False)
    _configs: dict[str, Config] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, cell: Cell) -> "Experiment":
        """Returns the experiment under the configuration of a cell's method; the images that either loads serve both."""
        config = self.config_of(cell)
        return self if config == self.config else dataclasses.replace(self, config=config, written=self.written or self.config)

    def method_of(self, cell: Cell) -> Method:
        """Returns a cell's method.

        Raises:
            ReproError: The experiment has no method of this name.
        """
        check_methods([cell.method], self.methods)
        return self.methods[cell.method]

    def config_of(self, cell: Cell) -> Config:
        """Returns the configuration of a cell's method.

        Raises:
            ReproError: The experiment has no method of this name.
        """
        if cell.method not in self._configs:  # a grid asks for that of a method at every size and seed
            self._configs[cell.method] = self.method_of(cell).config(self.written or self.config)
        return self._configs[cell.method]

    def law_of(self, cell: Cell) -> Law:
        """Returns the sampling law of a cell's joint training run: its method's own, else its configuration's.

        Raises:
            ReproError: The method's own breaks the contract of a law.
        """
        config, own = self.config_of(cell), self.method_of(cell).law
        if own is None:
            return named_law(**dataclasses.asdict(config.sampling_law))
        check_law(own, config.sizes.trained)
        return own

    def needs(self, cell: Cell) -> tuple[Cell, ...]:
        """Returns the cells whose artefacts a cell reads."""
        return self.method_of(cell).needs(self.config, cell)

    @property
    def images(self) -> "Images":
        """The training images, loaded when they are first asked for, once for all variants of the experiment."""
        from repro.data.images import load_images

        key = (self.config.data, self.image_shape, self.places)
        if key not in self._loaded:
            self._loaded[key] = load_images(*key)
        return self._loaded[key]

    @cached_property
    def formulation(self) -> "Formulation":
        """How diffusion is formulated."""
        return self.parts.formulation(self.config.diffusion)

    @property
    def space(self) -> "Space":
        """What the network sees of an image."""
        return self.parts.space(self.config.data.space)

    @property
    def condition(self) -> "Condition":
        """What the network is given beside images and noise levels."""
        return self.parts.condition(self.config.data.condition)

    @property
    def metric(self) -> "Metric":
        """What the networks are judged by."""
        return self.parts.metric(self.config.evaluation.metric)

    @property
    def metrics(self) -> "tuple[Metric, ...]":
        """That one first, then those of `evaluation.also`."""
        return (self.metric, *map(self.parts.metric, self.config.evaluation.also))

    @property
    def sampler(self) -> "Sampler":
        """What draws the images that are judged."""
        return self.parts.sampler(self.config.evaluation.sampler)

    def check_parts(self) -> None:
        """Makes sure, before a run, that the parts go together.

        Raises:
            ReproError: They do not; names the key to change.
        """
        config = self.config
        for section in BUDGETS:
            try:
                self.formulation.check(getattr(config, section))
            except ReproError as error:
                raise ReproError(f"{section}.{error}") from error
        self.sampler.check(config.evaluation, self.formulation)

    @property
    def nfe(self) -> int:
        """How often the sampler evaluates the denoiser for an image."""
        from repro.diffusion.sampler import evaluations

        return evaluations(self.sampler, self.config.evaluation, self.formulation)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what the network denoises."""
        return network_shape(self.config.denoiser)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image that is judged."""
        return self.space.image_shape(self.network_shape)

    def folder(self, cell: Cell) -> Path:
        """Where a cell's artefacts lie."""
        return self.runs / cell.name

    def locks(self, cell: Cell) -> tuple[Path, ...]:
        """Where the locks of a cell lie: of its record, and of its artefacts, outside their folder, which a user may delete."""
        folders = dict.fromkeys(folder.resolve() for folder in (self.results, self.runs))  # which may be one and the same
        return tuple(folder / f".{cell.name}.lock" for folder in folders)

    def identity(self, cell: Cell) -> str:
        """Names a cell of this configuration; artefacts of another identity are refused."""
        return f"{cell.name} of configuration {self.config_of(cell).sha256()}"

    def record(self, cell: Cell) -> Record | None:
        """Returns the record of a cell, if it has one.

        Raises:
            ReproError: The record is corrupt, another configuration made it, or what lies in the folder of runs is not what it is of.
        """
        from repro.experiment.artefacts import check_record

        path = record_path(self.results, cell.name)
        if not path.exists():
            return None
        record = read_record(path)
        if problem := contradicts_method(record, self.methods):
            raise ReproError(f"{path}: the record {problem}; {REMEDY}")
        provenance, config = record["provenance"], self.config_of(cell)
        if provenance.get("config_sha256") != config.sha256():
            difference = _difference(provenance.get("config", {}), config.as_dict())
            raise ReproError(
                f"{path}: made by another configuration ({difference}); delete it, or keep it and name others: --results, --runs"
            )
        check_record(self, cell, record)
        return record


def contradicts_method(record: Record, methods: Mapping[str, Method]) -> str:
    """Says what a record says that its method does not do; empty where there is nothing, or the method is not known."""
    said = record["cell"]
    method, cell = methods.get(said["method"]), Cell(method=said["method"], size=said.get("size"), seed=said["seed"])
    if method is None:
        return ""
    delivered = [needed.name for needed in method.delivered_by(cell)]
    if (record.get("delivered_by") or []) != delivered:
        return f"says that it is delivered by {record.get('delivered_by') or 'nothing'}, and {cell.name} is by {delivered or 'nothing'}"
    variant = record.get("variant")
    ours = {"of": method.variant.of, "factor": method.variant.factor, "label": method.variant.label} if method.variant else None
    if (variant and {key: variant[key] for key in ("of", "factor", "label")}) != ours:
        return f"says that it varies {variant and variant['of']}, and {said['method']} varies {ours and ours['of']}"
    if record["status"] == "done" and method.judged != bool(record.get("quality")):
        return f"is done and has {'no' if method.judged else 'a'} quality, and {said['method']} is {'' if method.judged else 'not '}judged"
    return ""


def base_cell(config: Config, seed: int) -> Cell:
    """Returns the cell that everything at a seed starts from: a base of its own, or the one that was given for all seeds.

    Args:
        config: The configuration, whose section `base` says which.
        seed: The seed of what starts from it.
    """
    return Cell(method=BASE, size=1.0, seed=seed if config.base.one_for_each_seed else 0)


def joint_cell(cell: Cell, method: str = "ofa") -> Cell:
    """Returns the joint training run of a method that trains once, at the seed of a cell."""
    return Cell(method=f"{method}_joint", size=None, seed=cell.seed)


def scores_cell(method: str, cell: Cell) -> Cell:
    """Returns the cell that holds the one gradient pass which all sizes of a method share at the seed of a cell."""
    return Cell(method=f"{method}_scores", size=None, seed=cell.seed)


def check_methods(names: Iterable[str], known: Iterable[str]) -> None:
    """Makes sure that methods are known by the names that were asked for.

    Raises:
        ReproError: One is not; the message names the nearest that is.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"did you mean '{near[0]}'? Known: {', '.join(known)}" if near else "the experiment has no methods at all; give it some"
            raise ReproError(f"--methods {name}: no such method; {hint}")


def plan_cells(experiment: Experiment, names: list[str], sizes: list[float] | None, seeds: list[int]) -> list[Cell]:
    """Lists the cells of a request, each after those it needs.

    Args:
        experiment: The configuration and its methods.
        names: The methods that are asked for.
        sizes: The sizes that are asked for; None takes all that a method has.
        seeds: The seeds; a base that was given is one for all of them.

    Raises:
        ReproError: A method is unknown, a seed is negative or has more than 32 bits, or a size is outside (0, 1] or not reported.
    """
    config, methods = experiment.config, experiment.methods
    check_methods(names, methods)
    for seed in seeds:
        not_negative("--seeds", seed, MOST_SEED)
    for asked in sizes or []:
        if not 0 < asked <= 1:
            raise ReproError(f"--sizes {size_text(asked)}: a size must lie in (0, 1]")
        if asked not in config.sizes.reported:
            known, near = ", ".join(map(size_text, config.sizes.reported)), _nearest(asked, config.sizes.reported)
            remedy = f"write --sizes {size_text(near)}" if near else "name one of these"
            keys = ("reported",) if asked in config.sizes.trained else ("trained", "reported")
            added = " ".join(with_size(f"sizes.{key}", getattr(config.sizes, key), asked) for key in keys)
            raise ReproError(f"--sizes {size_text(asked)}: not among the reported sizes ({known}); {remedy}, or add it: {added}")
    cells: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for needed in methods[cell.method].needs(config, cell):
            add(needed)
        cells.setdefault(cell)

    for name in names:
        for size in methods[name].sizes(config):
            if size is None or sizes is None or size in sizes or name == BASE:
                for seed in seeds:
                    add(base_cell(config, seed) if name == BASE else Cell(method=name, size=size, seed=seed))
    return list(cells)


def with_size(key: str, sizes: tuple[float, ...], size: float) -> str:
    """Returns the words of a command that add a size to those of a key."""
    return shlex.join(["--set", f"{key}=[{', '.join(map(str, (*sizes, size)))}]"])


def _nearest(asked: float, sizes: tuple[float, ...]) -> float | None:
    """Returns the size that a rounded one such as 0.333 stands for; None where there is none."""
    near = min(sizes, key=lambda size: abs(size - asked))
    return near if abs(near - asked) < ROUNDED else None


def state_of(experiment: Experiment, cell: Cell) -> tuple[str, str]:
    """Returns a cell's state (done, failed, running, interrupted or missing) and a remark."""
    record = experiment.record(cell)
    if record and record["status"] == "done":
        quality = record.get("quality")
        return "done", f"{quality['metric']} {quality['mean']:.2f}" if quality else ""
    beat, who = read_heartbeat(experiment.folder(cell)), next(filter(None, map(holder, experiment.locks(cell))), None)
    if who:
        return "running", ", ".join([_progress(beat), f"process {who['pid']} on {who['host']}"] if beat else ["starting"])
    if record:
        return "failed", str(record["reason"])
    if beat:
        return "interrupted", _progress(beat)
    return "missing", ""


def _progress(beat: dict[str, Any]) -> str:
    """Says how far a run is, how fast, how long it will still take at that, and when it last gave a sign of life."""
    parts = [f"{beat['stage']} {beat['done']:,}/{beat['total']:,}" if beat["total"] else str(beat["stage"])]
    if beat.get("img_per_sec"):
        parts.append(f"{beat['img_per_sec']:,.0f} img/s")
    if beat.get("sec_left"):
        parts.append(f"{duration(beat['sec_left'] / 3600)} left")
    return ", ".join([*parts, f"last sign {duration(beat['age_sec'] / 3600)} ago"])


def _difference(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> str:
    """Names the first key in which two configurations differ."""
    for key in sorted(theirs.keys() | ours.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            if mine != other:
                return _difference(other, mine, f"{prefix}{key}.")
        elif mine != other:
            return f"{prefix}{key} was {other!r}, is {mine!r}"
    return "hash differs"


def training_summary(settings: Training, *, pflop: float, scoring_pflop: float, curve: list[list[float]]) -> dict[str, Any]:
    """Returns what a record says of a training run; its PFLOP hold those of the scoring that went before it."""
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "images": settings.steps * settings.batch_size,
        "train_pflop": pflop + scoring_pflop,
        "scoring_pflop": scoring_pflop,
        "final_loss": curve[-1][1],
        "curve": curve,
        "settings": dataclasses.asdict(settings),
    }
