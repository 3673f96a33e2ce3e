"""The page itself: its sections, in order, and its file."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from paper_figures.cells import Cell, MissingRecordsError, Records, cells_of
from paper_figures.comparable import IncomparableError
from paper_figures.curves import curves_in
from paper_figures.evidence import Grid
from paper_figures.published_selection import NO_LITERATURE, Literature
from paper_figures.report import costs, figures, images, results, verdicts
from paper_figures.report.drawing import Picture
from paper_figures.report.model import Table
from repro.experiment.records import Record
from repro.files.writing import write_atomically

HERE = Path(__file__).parent
METRICS = {
    "fid": "Frechet distance on Inception's 2,048 features",
    "fid768": "Frechet distance on Inception's 768 features, a metric of its own",
    "fid_classifier": "Frechet distance on the features of a small classifier of the same images; not comparable with a published FID",
}
# Content security policy: nothing is fetched, sent or framed; the one style and the one script are allowed by their hashes.
POLICY = "default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"

# Beyond this the page holds an excerpt of the records: browsers choke on a page of 100 MB, and 10,000 records are as long as that.
MOST_LETTERS_HELD = 8_000_000
EXCERPT = {
    "cost": ("device_name", "ranks", "threads_per_rank", "device_hours"),
    "training": ("train_pflop", "scoring_pflop"),
    "quality": ("n_samples", "values"),
    "size": ("realised", "params", "macs", "macs_torch_pruning"),
    "provenance": ("git_commit", "git_dirty", "config_sha256", "ended_utc", "python"),
}
WITHIN_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The records as JSON within the page, and whether that is an excerpt of them."""

    text: Markup
    excerpt: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: pictures, then tables, then what is missing and what to run."""

    key: str
    title: str
    lead: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()


def write_report(folder: Path, records: Sequence[Record], literature: Literature = NO_LITERATURE, target: float | None = None) -> Path:
    """Writes `report.html` into the folder of an experiment and returns its path.

    Raises:
        ReproError: A record or strip is malformed, or the folder cannot be written.
    """
    path = folder / "report.html"
    write_atomically(path, page(folder, records, literature, target).encode())
    return path


def page(folder: Path, records: Sequence[Record], literature: Literature = NO_LITERATURE, target: float | None = None) -> str:
    """Returns the page of an experiment, time to quality to a target where one is asked for; the same records give the same text.

    Raises:
        ReproError: A record or strip is malformed.
    """
    records = Records(record for record in records if not record.get("trial"))
    cells = cells_of(records)
    grid = Grid(records)
    missing: list[str] = []
    judged, claims = _tried(missing, lambda: verdicts.claims(grid)) or ([], None)
    strips_missing: list[str] = []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["said"] = _said
    held = embedded(records)
    style, script = ((HERE / name).read_text() for name in ("style.css", "script.js"))
    script += (HERE / "excerpt.js").read_text() if held.excerpt else ""
    context: dict[str, Any] = {
        "experiment": folder.resolve().name,
        "policy": POLICY.format(style=_hash(style), script=_hash(script)),
        "style": Markup(style),  # noqa: S704  (files of this package)
        "script": Markup(script),  # noqa: S704
        "facts": _facts(records, cells, grid),
        "verdicts": judged,
        "counts": Counter(verdict.verdict for verdict in judged),
        "claims": claims,
        "claims_missing": missing,
        "sections": [*_measured(records, cells, grid, literature, target)],
        "samples": _tried(strips_missing, lambda: images.sample_groups(folder, records)) or [],
        "samples_missing": strips_missing,
        "training": _training(cells),
        "versions": _versions(records),
        "embedded": held,
        "records": len(records),
    }
    template = environment.get_template("page.html")
    size = len(template.render(context, megabytes="0.0").encode())
    return template.render(context, megabytes=f"{size / 1e6:.1f}")


def embedded(records: Sequence[Record]) -> Embedded:
    """Returns the records for embedding, each configuration once: a record has its index in place of it.

    Of records that together are longer than `MOST_LETTERS_HELD` it is an excerpt, which says so.
    """
    configs: dict[str, int] = {}
    held = []
    for record in records:
        provenance = dict(record["provenance"])
        if provenance.get("config") is not None:
            text = json.dumps(provenance["config"], sort_keys=True)
            provenance["config"] = configs.setdefault(text, len(configs))
        held.append(_dumped(record | {"provenance": provenance}))
    if sum(map(len, held)) > MOST_LETTERS_HELD:
        short = _listed(_dumped(_excerpt(record)) for record in records)
        return Embedded(text=_joined(excerpt="true", configs="[]", records=short), excerpt=True)
    return Embedded(text=_joined(configs=_listed(_dumped(json.loads(text)) for text in configs), records=_listed(held)))


def _excerpt(record: Record) -> dict[str, Any]:
    """Returns what the page itself looks at of a record: the parts behind its numbers, and what names their origin."""
    found = {key: {name: part[name] for name in names if name in part} for key, names in EXCERPT.items() if (part := record.get(key))}
    cost, trained = record.get("cost") or {}, (record.get("base") or {}).get("trained")
    if record["cell"].get("size") is None and "cost" in found:  # a run for all sizes, whose bill says what each phase took
        found["cost"]["phases_device_hours"] = cost.get("phases_device_hours")
    if record["cell"]["method"] == "base" and trained:
        found["base"] = {"trained": {name: trained[name] for name in ("device_hours", "train_pflop")}}
    latency = [{name: entry.get(name) for name in ("batch", "ms", "ms_quartiles")} for entry in record.get("latency") or ()]
    return {**found, "cell": record["cell"], "status": record["status"], "latency": latency}


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _listed(texts: Iterable[str]) -> str:
    return f"[{','.join(texts)}]"


def _joined(**parts: str) -> Markup:
    """Returns an object of JSON from the texts of its values, safe within HTML as jinja's `tojson` makes it."""
    text = ",".join(f'"{name}":{parts[name]}' for name in sorted(parts))
    for letter, escape in WITHIN_HTML.items():
        text = text.replace(letter, escape)
    return Markup("{" + text + "}")  # noqa: S704  (what could end the element is escaped)


def _measured(records: Sequence[Record], cells: Sequence[Cell], grid: Grid, literature: Literature, target: float | None) -> list[Section]:
    """Returns the sections of quality, cost and evidence."""
    missing: dict[str, list[str]] = {key: [] for key, _, _ in SECTIONS}
    curved = bool(curves_in(grid).of)
    rows, latency = _tried(missing["quality"], lambda: results.latencies(cells)) or ([], None)
    table = _tried(missing["quality"], lambda: results.results(records, cells, literature))
    paid = [
        _tried(missing["cost"], make)
        for make in (lambda: costs.against_ofa(records, cells), lambda: costs.fair(grid), lambda: costs.bills(records, cells))
    ]
    varied = _tried(missing["ablations"], lambda: verdicts.ablations(grid))
    drawn = {
        "quality": figures.quality(records, literature, rows),
        "cost": figures.cost(records, grid),
        "time": figures.time_to_quality(grid, target) if curved else ([], []),
        "ablations": figures.evidence(grid) if varied else ([], []),
    }
    sooner = _tried(missing["time"], lambda: costs.time_to_quality_of(grid, target)) if curved else None
    tables = {"quality": [table, latency], "cost": paid, "time": [sooner], "ablations": [varied]}
    return [
        Section(
            key=key,
            title=title,
            lead=lead,
            pictures=drawn[key][0],
            tables=[made.slim() for made in tables[key] if made],
            missing=[*missing[key], *(line for line in drawn[key][1] if line.removeprefix("the figure ") not in missing[key])],
        )
        for key, title, lead in SECTIONS
        if curved or key != "time"
    ]


SECTIONS = (
    ("quality", "Quality at each size", "Lower is better. A size P is the fraction of the prunable width that a network keeps."),
    ("cost", "What it costs", "Device-hours and training PFLOP to have every size, without evaluation. OFA pays for its joint run once."),
    ("time", "How fast", "Every training judged on its way: what it had taken by the time that a size was as good as a target."),
    ("ablations", "What each part is worth", "One factor at a time is changed, everything else being equal."),
)


def _training(cells: Sequence[Cell]) -> Section:
    pictures, notes = figures.curves(cells)
    lead = (
        f"A recorded point is the mean loss of the steps since the point before. Thin: each run; bold: the mean over seeds, smoothed over "
        f"{figures.WINDOW} points. The first steps may lie above the frame. Ablations are left out here; their curves are in their records."
    )
    return Section(key="training", title="Training", lead=lead, pictures=pictures, missing=notes)


def _facts(records: Sequence[Record], cells: Sequence[Cell], grid: Grid) -> dict[str, str]:
    """Returns the facts about the experiment as a whole; what the records lack is left out."""
    failed = sum(not cell.done for cell in cells)
    seeds = sorted({cell.seed for cell in cells})
    commits = sorted({str(record["provenance"].get("git_commit") or "unknown")[:10] for record in records})
    days = sorted(str(day)[:10] for record in records if (day := record["provenance"].get("ended_utc")))
    facts = {
        "Records": f"{len(cells):,}" + (f", of which {failed:,} failed" if failed else ""),
        "Methods": str(len({cell.family for cell in cells if cell.own})),
        "Ablations": str(len({cell.family for cell in cells if not cell.own})),
        "Seeds": ", ".join(map(str, seeds)),
        "Metric": f"{grid.metric}, {grid.n_samples:,} samples: {METRICS.get(grid.metric, 'lower is better')}" if grid.metric else "",
        "Device": "; ".join(sorted({cell.device for cell in cells if cell.device})),
        "Commit": ", ".join(commits),
        "Measured": days[0] if len({*days}) == 1 else f"{days[0]} to {days[-1]}" if days else "",
    }
    return {name: text for name, text in facts.items() if text and text != "0"}


def _versions(records: Sequence[Record]) -> list[str]:
    """Returns every version of every package that the records name."""
    found = set()
    for record in records:
        packages = record["provenance"].get("packages")
        found |= {f"{name} {version}" for name, version in packages.items()} if isinstance(packages, dict) else set()
        found |= {f"Python {record['provenance']['python']}"} if record["provenance"].get("python") else set()
    return sorted(found, key=str.lower)


def _tried(missing: list[str], make: Callable[[], Made]) -> Made | None:
    """Returns what is made, or None and a line in `missing` about what it takes."""
    try:
        return make()
    except (MissingRecordsError, IncomparableError) as error:
        missing.append(str(error))
        return None


def _said(text: str) -> Markup:
    """Returns a line as the page says it: with a capital, and what stands between backticks as code."""
    parts = (text[:1].upper() + text[1:]).split("`")
    return Markup().join(Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts))


def _hash(text: str) -> str:
    """Returns the hash by which a content security policy allows a text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
