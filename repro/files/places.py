"""Paths of caches, offline data and extractor weights."""

import os
from dataclasses import dataclass, field
from pathlib import Path


def default_cache() -> Path:
    """Returns the user's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofa-diffusion"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths of caches, offline data and extractor weights; none changes a result, so none is in the configuration.

    Attributes:
        cache: Folder of downloads, and of decoded images and features, which are computed once for many cells.
        data_root: An offline copy of the data set; None downloads it into the cache.
        inception_weights: The file of Inception's weights; None downloads the official one into the cache.
    """

    cache: Path = field(default_factory=default_cache)
    data_root: Path | None = None
    inception_weights: Path | None = None
