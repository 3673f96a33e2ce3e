"""Inception, whose features `fid` and `fid768` compare: torch-fidelity's own network and weights, checked before use."""

import pickle
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch_fidelity import feature_extractor_inceptionv3, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from repro.errors import ReproError, storage_error
from repro.files.locks import one_at_a_time
from repro.files.placeholders import refuse_placeholder
from repro.files.places import Places
from repro.files.writing import sha256_of_file
from repro.metrics.fid import FeatureLayer
from repro.runtime.progress import say

EXTRACTOR = "inception-v3-compat-checked"
LAYERS = {"fid": "2048", "fid768": "768"}
URL = URL_INCEPTION_V3
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BATCH_SIZE = 64
IMAGE_BYTES = 14 * 2**20  # of activations at 299 x 299, counted as `cost.peak_bytes` counts them: 13.2 MiB, and the image itself
OFFICIAL = f"fetch {URL} and pass it with --inception-weights"


class CheckedInception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception, its weights read without unpickling anything.

    Raises:
        ReproError: The file does not hold the weights of this network.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any) -> None:
        path = Path(feature_extractor_weights_path)
        with _in_place_of_the_download(_read_weights(path)):
            try:
                super().__init__(name, features_list, **kwargs)
            except (RuntimeError, TypeError) as error:
                raise ReproError(f"{path}: not the weights of torch-fidelity's Inception ({_brief(error)}); {OFFICIAL}") from error


register_feature_extractor(EXTRACTOR, CheckedInception)


def inception_layer(metric: str, places: Places) -> FeatureLayer:
    """Returns the layer of Inception that a metric compares, its weights at hand and checked.

    `fid` takes the official weights and no others. `fid768` is a metric of our own and takes any; a record names their hash.

    Args:
        metric: `fid` or `fid768`.
        places: Names the file, or the cache that the official one is downloaded into.

    Raises:
        ReproError: The file cannot be had, is not the official one, or holds other weights than this network's.
    """
    path = places.inception_weights or places.cache / Path(URL).name
    if places.inception_weights is None and not path.exists():
        with one_at_a_time(path):
            if not path.exists():
                _download(path)
    refuse_placeholder(path)
    try:
        sha256 = sha256_of_file(path)
    except OSError as error:
        raise ReproError(
            f"{path}: not readable ({error.strerror}); name the file of Inception's weights with --inception-weights"
        ) from error
    official = sha256 == SHA256
    if not official and places.inception_weights is None:
        raise ReproError(f"{path}: damaged (sha256 {sha256}); delete it and run the command again")
    if not official and metric == "fid":
        raise ReproError(
            f"{path}: not the official Inception weights (sha256 {sha256}), and evaluation.metric=fid takes no others; {OFFICIAL}, "
            "or use evaluation.metric=fid768"
        )
    about = {"name": "inception-v3-compat", "layer": LAYERS[metric], "sha256": sha256, "official": official}
    if not official:
        CheckedInception(EXTRACTOR, [LAYERS[metric]], str(path))
    return FeatureLayer(
        extractor=EXTRACTOR,
        layer=LAYERS[metric],
        weights=path,
        sha256=sha256,
        about=about,
        batch_size=BATCH_SIZE,
        image_bytes=IMAGE_BYTES,
        channels_last=True,  # 1.6 times as fast on a CPU with AVX-512; features differ by 4e-7 of the largest
    )


def _download(path: Path) -> None:
    """Downloads the official weights, verified before the file gets its name."""
    say(f"downloading Inception's weights (91 MiB) to {path}")
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=sys.stderr.isatty())
    except RuntimeError as error:
        raise ReproError(f"{URL}: what came is not the official file ({error}); run the command again, or {OFFICIAL}") from error
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ReproError(
            f"{URL}: cannot be downloaded ({_brief(error)}); fetch it on another machine and pass it with --inception-weights, "
            "or use evaluation.metric=fid_classifier"
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error


def _read_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, pickle.UnpicklingError) as error:
        raise ReproError(f"{path}: not a file of weights ({_brief(error)}); {OFFICIAL}") from error


@contextmanager
def _in_place_of_the_download(state: Any) -> Iterator[None]:
    """Patches torch-fidelity's download, so that its constructor takes these weights."""
    download = feature_extractor_inceptionv3.load_state_dict_from_url
    feature_extractor_inceptionv3.load_state_dict_from_url = lambda *_args, **_kwargs: state
    try:
        yield
    finally:
        feature_extractor_inceptionv3.load_state_dict_from_url = download


def _brief(error: Exception) -> str:
    """Returns an error's text in one short line."""
    return textwrap.shorten(str(error) or type(error).__name__, 160)
