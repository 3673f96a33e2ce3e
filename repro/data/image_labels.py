"""The labels of a set of images: those of its `dataset.json`, else one for each direct sub-folder."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.config.sections import MOST_CHANNELS
from repro.data.image_source import LABELS, Source
from repro.errors import ReproError

Labels = npt.NDArray[np.int64]

FORM = '{"labels": [["name", 0], ...]}, or null in place of the list'
REMEDY = "mend it, or take it out of data.folder to have a label for each sub-folder"


def labels_of(source: Source) -> Labels:
    """Returns the labels of the images, in their order, [N].

    Those of a `dataset.json`, as EDM's dataset_tool.py writes it, where there is one; all are 0 where it says that there are none. Else
    each direct sub-folder is a label, and images in none come before them.

    Raises:
        ReproError: `dataset.json` is malformed, or does not tell the label of each image and of no others.
    """
    content = source.labels()
    if content is None:
        return _by_folder(source.names)
    place = source.placed(LABELS)
    told = _told(place, content)
    if told is None:
        return np.zeros(len(source.names), dtype=np.int64)
    for without, what in (
        ([name for name in source.names if name not in told], "has no label for"),
        (sorted(told.keys() - set(source.names)), "labels images that are not there,"),
    ):
        if without:
            raise ReproError(f"{place}: {what} {without[0]} ({len(without):,} such); fetch the images anew, or {REMEDY}")
    return np.array([told[name] for name in source.names], dtype=np.int64)


def _by_folder(names: list[str]) -> Labels:
    """Numbers the images by the first folder in their name."""
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    numbers = {top: number for number, top in enumerate(sorted(set(tops)))}
    return np.array([numbers[top] for top in tops], dtype=np.int64)


def _told(place: str, content: bytes) -> dict[str, int] | None:
    """Returns name -> label; None where the file says that there are no labels."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ReproError(f"{place}: not readable JSON ({error}); {REMEDY}") from error
    if not isinstance(found, dict) or not isinstance(listed := found.get("labels", ""), list | None):
        raise ReproError(f"{place}: must be {FORM}; {REMEDY}")
    if listed is None:
        return None
    told: dict[str, int] = {}
    for entry in listed:
        if not _is_entry(entry):
            raise ReproError(f"{place}: {entry!r:.80} is no image's name with its class, from 0 to {MOST_CHANNELS - 1:,}; {REMEDY}")
        if entry[0] in told:
            raise ReproError(f"{place}: {entry[0]} is there twice; {REMEDY}")
        told[entry[0]] = entry[1]
    return told


def _is_entry(entry: Any) -> bool:
    named = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    return named and type(entry[1]) is int and 0 <= entry[1] < MOST_CHANNELS
