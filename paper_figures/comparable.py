"""Conditions under which numbers may be compared: the scale of a quality, and the machine of a cost."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.errors import ReproError, one_line
from repro.experiment.records import MOST_LETTERS

HARDWARE = ("device", "ranks", "threads")  # of a machine; its other facts are versions of packages
COUNTS = frozenset({"samples", "reference images"})  # a scale that differs in these alone is that of more or fewer images
HASH = re.compile(r"[0-9a-f]{16,}")
REFERENCE = re.compile(r"; reference (?!unknown)(\S+)")
# The metrics of this project in the words of axes and captions; one of a script's own keeps its name.
WORDS = {"fid": "FID", "fid768": "FID, 768 features", "fid_classifier": "Fréchet distance, {}classifier"}


class IncomparableError(ReproError):
    """Numbers of different scales or machines were about to be compared; says what differs and what to do."""


@dataclass(frozen=True)
class Conditions:
    """The facts, by name, that a number depends on beside the network; a fact that one side lacks is another fact."""

    facts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Returns every fact in a fixed order, hashes shortened."""
        return "; ".join(f"{name} {short(value)}" for name, value in self.facts)

    def get(self, name: str) -> str:
        """Returns a fact, `unknown` where it is not recorded."""
        return dict(self.facts).get(name, "unknown")

    def differing(self, other: "Conditions") -> list[str]:
        """Returns the names of the facts that differ; a sampler is not held against images that none has drawn."""
        ours, theirs = dict(self.facts), dict(other.facts)
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return [name for name in names if name != "sampler" or (name in ours and name in theirs)]


def scale_of(quality: Mapping[str, Any]) -> Conditions:
    """Returns the scale of a record's quality: values of different scales are neither averaged nor compared."""
    extractor, reference, sampler = (_part(quality, key) for key in ("extractor", "reference", "sampler"))
    facts = {
        "metric": quality["metric"],
        "tool": quality.get("tool") or "unknown",
        "extractor": _joined(extractor, "name", "sha256"),
        "reference": _joined(reference, "name", "sha256"),
        "reference images": reference.get("n", "unknown"),
        "samples": quality["n_samples"],
    }
    if sampler:
        others = ", ".join(f"{key} {value}" for key, value in sorted(sampler.items()) if key != "name")
        facts["sampler"] = f"{sampler.get('name', 'unknown')} ({others})"
    return Conditions(tuple((name, _text(value)) for name, value in facts.items()))


def machine_of(cost: Mapping[str, Any], provenance: Mapping[str, Any]) -> Conditions:
    """Returns the machine of a record's device-hours: those of different machines are neither averaged nor compared."""
    facts = {
        "device": cost.get("device_name", "unknown"),
        "ranks": cost.get("ranks", 1),
        "threads": cost.get("threads_per_rank", "unknown"),
    }
    facts |= {name: version for name, version in sorted(_part(provenance, "packages").items()) if name not in HARDWARE}
    return Conditions(tuple((_text(name), _text(value)) for name, value in facts.items()))


def telling(these: Conditions, all_of_them: Iterable[Conditions], leaving_out: Sequence[str] = ()) -> list[str]:
    """Returns those facts of a machine that tell it from others, such as `2 threads` and `torch 2.13.0`."""
    names = dict.fromkeys(name for other in all_of_them for name in these.differing(other) if name not in leaving_out)
    return [_worded(name, these.get(name)) for name in names]


def most_common(conditions: Iterable[Conditions | None]) -> Conditions | None:
    """Returns the conditions under which most numbers were made, the first of those that are equally common; None without any."""
    found = Counter(each for each in conditions if each is not None)
    return found.most_common(1)[0][0] if found else None


def said(conditions: Iterable[Conditions]) -> str:
    """Says in which facts several conditions differ, and how: `extractor classifier 87c229e2 or classifier 703f1bda`."""
    distinct = list(dict.fromkeys(conditions))
    names = dict.fromkeys(name for one in distinct for other in distinct for name in one.differing(other))
    return ", ".join(f"{name} {' or '.join(dict.fromkeys(short(each.get(name)) for each in distinct))}" for name in names)


def against_most(these: Conditions, most: Conditions) -> str:
    """Says in which facts conditions differ from those of most rows; empty where they do not."""
    return ", ".join(f"{name} {short(these.get(name))} (most rows: {short(most.get(name))})" for name in these.differing(most))


def check_comparable(conditions: Iterable[Conditions], what: str) -> None:
    """Refuses to compare numbers of different conditions.

    Raises:
        IncomparableError: Some differ.
    """
    differing = said(conditions)
    if differing:
        raise IncomparableError(
            f"{what} differ in {differing}, so that they cannot be compared; run the cells of one kind again like the others, "
            "or move their records to another folder"
        )


def in_words(metric: str, scale: Conditions | str | None) -> str:
    """Returns the name of a metric for axes and captions, such as `Fréchet distance, digits classifier`."""
    reference = REFERENCE.search(str(scale))
    return WORDS[metric].format(f"{reference[1]} " if reference else "") if metric in WORDS else metric


def short(value: str) -> str:
    """Shortens the hashes in a text to eight digits."""
    return HASH.sub(lambda found: found[0][:8], value)


def _worded(name: str, value: str) -> str:
    plural = "" if value == "1" else "s"
    return {"threads": f"{value} thread{plural}", "ranks": f"{value} rank{plural}"}.get(name, f"{name} {value}")


def _part(whole: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = whole.get(key)
    return part if isinstance(part, dict) else {}


def _joined(part: Mapping[str, Any], *keys: str) -> str:
    return " ".join(str(part[key]) for key in keys if part.get(key)) or "unknown"


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else one_line(str(value), MOST_LETTERS)
