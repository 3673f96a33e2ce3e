"""Cells: the records of one experiment, checked and typed, as tables and figures need them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from paper_figures.comparable import HARDWARE, Conditions, machine_of, scale_of, telling
from paper_figures.methods import SHARED_RUNS, sort_key
from repro.errors import ReproError, one_line
from repro.experiment.record_schema import LEAST, MOST, MOST_LETTERS
from repro.experiment.records import Record

MOST_PIXELS = 2**24  # of a strip: 16 images of 1024 x 1024
COUNTS = ("realised", "params", "macs", "macs_torch_pruning")
MOST_DRAWN = 12  # sizes that have a figure or a row of samples of their own: more are no longer looked at
BUSY = "†"  # marks what was timed on a busy machine


class MissingRecordsError(Exception):
    """A table or figure cannot be made from the records at hand; says which are missing and what to run. Never ends a command."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A file with one row of `count` sample images, of `height` x `width` pixels each; `sha256` is empty in older records."""

    file: str
    count: int
    height: int
    width: int
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The median time of one forward pass on a batch, on the device where it was taken, and its quartiles where they were recorded."""

    batch: int
    ms: float
    device: str
    quartiles: tuple[float, float] | None
    busy: bool


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point on the way of a training: what it had taken, and how good a size was; `value` is None where only the loss was looked at."""

    images: int
    device_hours: float
    train_pflop: float
    validation_loss: float
    value: float | None


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What a further metric finds of the samples that a cell is judged by."""

    metric: str
    scale: Conditions
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What an ablation changes of another method."""

    of: str
    factor: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One (method, size, seed) of the grid; what it lacks is None or empty.

    `base` is the SHA-256 of the weights that it descends from. `device` names the machine, and no two machines of an experiment have one
    name. A base that came trained has the costs of its training, which ran once on `trained_on`.
    """

    name: str
    method: str
    size: float | None
    seed: int
    failure: str | None
    variant: Variant | None
    delivered_by: tuple[str, ...]
    starts_from: str
    base: str
    counts: Mapping[str, float]
    device: str
    machine: Conditions
    busy: bool
    trained_on: str
    device_hours: float | None
    phases_device_hours: Mapping[str, float]
    train_pflop: float | None
    scoring_pflop: float | None
    metric: str | None
    scale: Conditions | None
    n_samples: int | None
    values: tuple[float, ...]
    also: tuple[Opinion, ...]
    strip: Strip | None
    latencies: tuple[Latency, ...]
    curve: tuple[tuple[float, float], ...]  # (step, mean loss since the point before)
    points: Mapping[float, tuple[Point, ...]]  # by size, of a training that was judged on its way
    points_scale: Conditions | None

    @property
    def done(self) -> bool:
        """Whether the cell ended well."""
        return self.failure is None

    @property
    def scales(self) -> tuple[Conditions | None, ...]:
        """The scale of its quality, and of what further metrics find."""
        return (self.scale, *(other.scale for other in self.also))

    @property
    def own(self) -> bool:
        """Whether its method stands on its own, in tables beside the others, and is no ablation of one."""
        return self.variant is None or self.variant.factor == "method"

    @property
    def shared(self) -> bool:
        """Whether it is a run that serves all sizes of a method, and no network of the tables."""
        return self.method.endswith(SHARED_RUNS)

    @property
    def family(self) -> str:
        """The method that its networks belong to: its own, or the one that it serves."""
        return next((self.method.removesuffix(end) for end in SHARED_RUNS if self.method.endswith(end)), self.method)

    @property
    def trains(self) -> bool:
        """Whether it trains a network, in place of extracting one or of scoring channels alone."""
        return self.train_pflop is not None and self.train_pflop > (self.scoring_pflop or 0.0) * (1 + 1e-9)


class Records(tuple[Record, ...]):
    """The records of one reading, which nobody changes, so that their cells are made once for all tables and figures."""

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Their cells, as `cells_of` returns them."""
        return tuple(_cells(self))


def cells_of(records: Iterable[Record]) -> list[Cell]:
    """Returns the cells of one experiment without its trial records, in the order of the tables.

    Raises:
        ReproError: A record lacks a key or holds something of another kind.
    """
    return list(records.cells) if isinstance(records, Records) else _cells(records)


def _cells(records: Iterable[Record]) -> list[Cell]:
    cells = []
    for record in records:
        if record.get("trial"):
            continue
        try:
            cells.append(_cell(record))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            cell = record["cell"]
            name = cell.get("name", "?") if isinstance(cell, dict) else "?"
            problem = f"lacks the key {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
            remedy = "delete it and run the cell again, or restore it from version control"
            raise ReproError(f"{record['experiment']}/{name}.json: the record {problem}; {remedy}") from error
    return sorted(_with_machines_told(cells), key=lambda cell: (sort_key(cell.method, cell.size), cell.seed, cell.name))


def some_of(sizes: Iterable[float]) -> list[float]:
    """Returns the sizes that are drawn one by one, ascending: all of a few, else `MOST_DRAWN` spread evenly from end to end."""
    held = sorted(set(sizes))
    if len(held) <= MOST_DRAWN:
        return held
    return [held[round(index * (len(held) - 1) / (MOST_DRAWN - 1))] for index in range(MOST_DRAWN)]


def second_opinions(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the records as each of their further metrics judges them: `quality.also` has its values, of the same samples.

    A record that a metric has not judged has no quality then; curves have none but their losses.
    """
    names = sorted({other["metric"] for record in records for other in (record.get("quality") or {}).get("also") or ()})
    return {name: [_judged_by(record, name) for record in records] for name in names}


def _judged_by(record: Record, metric: str) -> Record:
    quality = record.get("quality") or {}
    other = next((other for other in quality.get("also") or () if other["metric"] == metric), None)
    return {**record, "quality": _in_place_of(quality, other) if other else None, "curves": None}


def _in_place_of(quality: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a quality as a further metric states it, which shares the samples and the reference."""
    return {key: value for key, value in quality.items() if key not in ("also", "kid", "extractor", "tool")} | dict(other)


def _opinion(quality: Mapping[str, Any], other: Mapping[str, Any]) -> Opinion:
    return Opinion(metric=str(other["metric"]), scale=scale_of(_in_place_of(quality, other)), values=_values(other["values"]))


def _cell(record: Record) -> Cell:
    cell, size, cost = record["cell"], record.get("size") or {}, record.get("cost") or {}
    training, quality = record.get("training") or {}, record.get("quality") or {}
    trained = (record.get("base") or {}).get("trained") or {} if cell["method"] == "base" else {}
    failed, name = record["status"] == "failed", str(cell["name"])
    return Cell(
        name=name,
        method=str(cell["method"]),
        size=_size(cell["size"]),
        seed=int(cell["seed"]),
        failure=one_line(str(record.get("reason") or "no reason recorded"), MOST_LETTERS) if failed else None,
        variant=Variant(**{key: str(record["variant"][key]) for key in ("of", "factor", "label")}) if record.get("variant") else None,
        delivered_by=tuple(record.get("delivered_by") or ()),
        starts_from=str(record.get("starts_from") or ""),
        base=str((record.get("base") or {}).get("sha256") or ""),
        counts={key: number for key in COUNTS if (number := _number(size[key])) is not None} if size else {},
        device=_device(cost),
        machine=machine_of(cost, record["provenance"]),
        busy=bool((cost.get("busy") or {}).get("marked")),
        trained_on=_plain(trained["device_name"]) if trained else "",
        device_hours=_number(trained["device_hours"] if trained else cost.get("device_hours")),
        phases_device_hours={phase: _number(hours) or 0.0 for phase, hours in (cost.get("phases_device_hours") or {}).items()},
        train_pflop=_number(trained["train_pflop"] if trained else training.get("train_pflop")),
        scoring_pflop=_number(training.get("scoring_pflop")),
        metric=str(quality["metric"]) if quality else None,
        scale=scale_of(quality) if quality else None,
        n_samples=int(quality["n_samples"]) if quality else None,
        values=_values(quality["values"]) if quality else (),
        also=tuple(_opinion(quality, other) for other in quality.get("also") or ()),
        strip=_strip(record["samples"], name) if record.get("samples") else None,
        latencies=tuple(_latency(entry) for entry in record.get("latency") or ()),
        curve=tuple((float(step), float(_number(loss) or 0.0)) for step, loss in training.get("curve") or ()),
        points=_points(record.get("curves") or {}),
        points_scale=scale_of(record["curves"]["metric"]) if (record.get("curves") or {}).get("metric") else None,
    )


def _points(curves: Mapping[str, Any]) -> dict[float, tuple[Point, ...]]:
    """Returns the points of a training by size."""
    found: dict[float, list[Point]] = {}
    for point in curves.get("points") or ():
        taken = {key: _positive(point[key]) for key in ("device_hours", "train_pflop")}
        for size, judged in point["sizes"].items():
            value = None if judged.get("value") is None else _positive(judged["value"])
            loss = _positive(judged["validation_loss"])
            found.setdefault(_size(float(size)) or 0.0, []).append(
                Point(images=int(point["images"]), validation_loss=loss, value=value, **taken)
            )
    return {size: tuple(points) for size, points in found.items()}


def _positive(value: float) -> float:
    """Returns a number of which a logarithm is taken."""
    number = _number(value)
    if not number or number < 0:
        raise ValueError("a point has a number that is not positive")
    return number


def _size(value: float | None) -> float | None:
    size = _number(value)
    if size is not None and not 0 < size <= 1:
        raise ValueError(f"its size {size:g} does not lie in (0, 1]")
    return size


def _values(values: Sequence[float]) -> tuple[float, ...]:
    """Returns the values of a quality, of which logarithms are taken."""
    numbers = tuple(number for value in values if (number := _number(value)))
    if not numbers or len(numbers) < len(values):
        raise ValueError("its quality has no values, or one that is not positive")
    return numbers


def _strip(samples: Mapping[str, Any], name: str) -> Strip:
    """Returns the strip of a cell; its path must be the one that this program writes."""
    strip = Strip(**{key: samples[key] for key in ("file", "count", "height", "width")}, sha256=samples.get("sha256") or "")
    if strip.file != f"samples/{name}.png":
        raise ValueError(f"samples.file is {strip.file!r:.80}, not 'samples/{name}.png'")
    if min(strip.count, strip.height, strip.width) < 1 or strip.count * strip.height * strip.width > MOST_PIXELS:
        raise ValueError(f"{strip.count} samples of {strip.width} x {strip.height} are no strip")
    return strip


def _latency(entry: Mapping[str, Any]) -> Latency:
    """Returns one latency; its precision and its number of threads are part of the device's name."""
    ms, threads = _number(entry["ms"]), entry.get("threads")
    if not ms or ms < 0 or not 0 < int(entry["batch"]) <= MOST_PIXELS:
        raise ValueError("a latency is not positive")
    name = one_line(str(entry["device_name"]), MOST_LETTERS)
    about = [f"{int(threads)} thread{'s' * (int(threads) != 1)}"] if threads else []
    about += [precision] if (precision := one_line(str(entry.get("precision") or "float32"), MOST_LETTERS)) != "float32" else []
    quartiles = tuple(_number(end) or 0.0 for end in entry.get("ms_quartiles") or ())
    if quartiles and not (len(quartiles) == 2 and quartiles[0] <= ms <= quartiles[1]):
        raise ValueError("a latency does not lie between its quartiles")
    return Latency(
        batch=int(entry["batch"]),
        ms=ms,
        device=", ".join([name, *about]),
        quartiles=(quartiles[0], quartiles[1]) if quartiles else None,
        busy=bool(entry.get("busy")),
    )


def _device(cost: Mapping[str, Any]) -> str:
    """Names the device and, when there are several, its ranks: device-hours of other rank counts are not comparable."""
    if not cost:
        return ""
    ranks, name = int(cost["ranks"]), _plain(cost["device_name"])
    return name if ranks == 1 else f"{name}, {ranks} ranks"


def _plain(name: object) -> str:
    """Returns a name without leading characters that begin a formula in a spreadsheet."""
    return one_line(str(name), MOST_LETTERS).lstrip("=+-@ ")


def _with_machines_told(cells: Sequence[Cell]) -> list[Cell]:
    """Returns the cells, each device name completed by the facts that distinguish its machine from others of that name."""
    by_device: dict[str, list[Conditions]] = {}
    for cell in cells:
        by_device.setdefault(cell.device, []).append(cell.machine)
    several = {device: list(dict.fromkeys(machines)) for device, machines in by_device.items() if device and len(set(machines)) > 1}
    return [_told(cell, several[cell.device]) if cell.device in several else cell for cell in cells]


def _told(cell: Cell, machines: Sequence[Conditions]) -> Cell:
    device = ", ".join([cell.device, *telling(cell.machine, machines, leaving_out=("device", "ranks"))])
    versions = telling(cell.machine, machines, leaving_out=HARDWARE)  # a latency names its threads itself
    latencies = tuple(replace(entry, device=", ".join([entry.device, *versions])) for entry in cell.latencies)
    return replace(cell, device=device, latencies=latencies)


def _number(value: float | None) -> float | None:
    number = None if value is None else float(value)
    if number and not LEAST <= number <= MOST:
        raise ValueError(f"{number:g} lies outside of what can be")
    return number
