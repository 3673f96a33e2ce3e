"""Selects published results of the same protocol; the others become footnotes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper_figures.published import Protocol, Published, Reference
from repro.config.known_sets import known_as
from repro.errors import ReproError
from repro.experiment.records import Record

# The other metrics are this project's own: no published result has them.
METRIC = "fid"
# Parts of a protocol that must agree, by their names in footnotes. A sampler's settings mean nothing to another sampler.
COMPARED = {
    "resolution": "resolution",
    "class_conditional": "class-conditional",
    "n_samples": "samples",
    "reference": "reference set",
    "sampler": "sampler",
    "nfe": "NFE",
    "spacing": "spacing",
    "eta": "eta",
    "churn": "churn",
}
DDIM, HEUN = "ddim", "heun"
OF_SAMPLERS = {"spacing": DDIM, "eta": DDIM, "churn": HEUN}
WEIGHTS = {"ema": "EMA"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A published figure that may be shown, and what must be said of it."""

    entry: Published
    note: str


@dataclass(frozen=True, kw_only=True)
class Literature:
    """The published figures beside one experiment, and the footnotes of its table."""

    shown: tuple[Shown, ...] = ()
    footnotes: tuple[str, ...] = ()

    @property
    def entries(self) -> list[Published]:
        """The figures without their notes."""
        return [item.entry for item in self.shown]


NO_LITERATURE = Literature()


def literature_beside(records: Sequence[Record], published: Iterable[Published]) -> Literature:
    """Splits the published results of an experiment's data set and metric into comparable ones and footnotes on the others.

    Raises:
        ReproError: A record says something of its protocol that cannot be.
    """
    judged = [record for record in records if _is_judged(record)]
    protocols = list(dict.fromkeys(_protocol(record) for record in judged))
    shown: list[Shown] = []
    others: dict[tuple[str, str], list[str]] = {}
    for entry in published:
        same_data = [ours for ours in protocols if ours.data == entry.protocol.data and entry.protocol.metric == METRIC]
        if not same_data:
            continue
        ours = min(same_data, key=lambda ours: len(differences(entry.protocol, ours)))
        differing = "; ".join(differences(entry.protocol, ours))
        if differing:
            others.setdefault((entry.source.cite, differing), []).append(f"{entry.label} {entry.fid:g}")
        else:
            shown.append(Shown(entry=entry, note=_note(entry, ours, judged)))
    footnotes = [_reading(shown[0].entry.protocol)] if shown else []
    footnotes += [f"Published by {cite}, not shown: {', '.join(figures)}: {differing}" for (cite, differing), figures in others.items()]
    return Literature(shown=tuple(shown), footnotes=tuple(footnotes))


def differences(published: Protocol, ours: Protocol) -> list[str]:
    """Names what differs between two protocols of one data set and metric; an unknown part counts as different."""
    differing = []
    for key, name in COMPARED.items():
        theirs, here = getattr(published, key), getattr(ours, key)
        means_something = key not in OF_SAMPLERS or published.sampler == ours.sampler == OF_SAMPLERS[key]
        if means_something and (theirs is None or theirs != here):
            differing.append(f"{name} {_said(theirs)} (here {_said(here)})")
    return differing


def _is_judged(record: Record) -> bool:
    """Says whether a record has the FID of a network's samples; trials and failures count for nothing, as everywhere."""
    quality = _part(record, "quality")
    return not record.get("trial") and record["status"] == "done" and quality.get("metric") == METRIC and bool(quality.get("sampler"))


def _protocol(record: Record) -> Protocol:
    try:
        return _protocol_of(record)
    except (TypeError, ReproError) as error:
        remedy = "delete it and run the cell again, or restore it from version control"
        raise ReproError(f"{record['experiment']}/{record['cell']['name']}.json: the record is malformed ({error}); {remedy}") from error


def _protocol_of(record: Record) -> Protocol:
    """Returns the protocol of a record; what it does not say is unknown."""
    quality, sampler, reference = (_part(record, *path) for path in (("quality",), ("quality", "sampler"), ("quality", "reference")))
    config = _part(record, "provenance", "config")
    data, known = _part(config, "data"), all(reference.get(key) for key in ("name", "n"))
    # The configuration names a hash where the images are not the official files; of a folder there are none.
    copy = "" if data.get("holds") else str(data.get("sha256") or "")
    return Protocol(
        data=known_as(str(data.get("name")), str(data.get("holds") or ""), data.get("downsampling", 1)),
        resolution=next((part["sample_size"] for part in config.values() if isinstance(part, dict) and "sample_size" in part), None),
        class_conditional=data.get("condition", "none") != "none",
        metric=METRIC,
        n_samples=quality.get("n_samples"),
        # The harness has no other reference than training images.
        reference=Reference(data=reference["name"], split="train", images=reference["n"], copy=copy) if known else None,
        sampler=sampler.get("name"),
        # DDIM's published NFE are steps, also where two of them fall on one timestep.
        nfe=sampler.get("steps") if sampler.get("name") == DDIM else sampler.get("nfe", sampler.get("steps")),
        spacing=sampler.get("spacing"),
        eta=sampler.get("eta"),
        clip_sample=sampler.get("clip_sample"),
        churn=sampler.get("churn", 0.0),
        tool=quality.get("tool"),
    )


def _part(record: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for key in path:
        inner = record.get(key)
        record = inner if isinstance(inner, dict) else {}
    return record


def _note(entry: Published, ours: Protocol, judged: Sequence[Record]) -> str:
    """Says where a figure comes from, what its training cost, and what differs without forbidding to show it."""
    source, theirs = entry.source, entry.protocol
    parts = [f"{source.cite}, {entry.where}, {source.url}"]
    if entry.train_steps:
        parts.append(f"trained {entry.train_steps:,} steps" + (f" x {entry.train_batch_size}" if entry.train_batch_size else ""))
    if entry.macs:
        parts.append(
            f"MACs by {entry.macs_counter}" if entry.macs_torch_pruning else f"{entry.macs / 1e9:g} G MACs by {entry.macs_counter}"
        )
    here = sorted({str(_part(record, "base").get("weights", "unknown")) for record in judged if record.get("base")})
    if entry.base_weights and here and here != [entry.base_weights]:
        parts.append(f"base: {WEIGHTS[entry.base_weights]} weights, here {' and '.join(WEIGHTS.get(name, name) for name in here)}")
    if theirs.clip_sample is not None and theirs.clip_sample != ours.clip_sample:
        parts.append(f"predicted images clipped while sampling: {_said(theirs.clip_sample)}, here {_said(ours.clip_sample)}")
    if theirs.tool is not None and theirs.tool != ours.tool:
        parts.append(f"FID by {theirs.tool}, here by {_said(ours.tool)}")
    if any(_part(record, "provenance", "config", "data").get("holds") for record in judged):
        parts.append("the images here are taken for the same by their number")
    return "; ".join([*parts, *([entry.note] if entry.note else [])])


def _reading(protocol: Protocol) -> str:
    settings = {DDIM: f", {protocol.spacing} spacing, eta {_said(protocol.eta)}", HEUN: f", churn {_said(protocol.churn)}"}
    how = f"{protocol.sampler}, NFE {protocol.nfe:,}{settings.get(str(protocol.sampler), '')}"
    return f"(published): not measured here, but by the same protocol ({protocol.n_samples:,} samples against {protocol.reference}; {how})"


def _said(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
