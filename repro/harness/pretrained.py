"""A base that was trained elsewhere: from the Hugging Face hub, at a pinned commit, or from a diffusers folder."""

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from repro.config import Base, Config
from repro.errors import ReproError
from repro.harness.denoiser import NETWORK, NETWORK_CONFIG, build_base
from repro.harness.diffusion import noise_schedule
from repro.harness.reading import read_json
from repro.harness.shipped import shipped_base_cost
from repro.harness.weights import WEIGHTS, load_weights, weight_files

SCHEDULE_KEYS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")


def load_pretrained(config: Config, cache: Path) -> UNet2DModel:
    """Loads the network that `base.source` names and makes sure that it is the one which the configuration describes.

    Args:
        config: The experiment.
        cache: Where a download goes.

    Raises:
        ReproError: It cannot be had or read, or its architecture or noise schedule is another than the configuration's.
    """
    settings = config.base
    assert not settings.one_for_each_seed, settings.source
    folder = _network_folder(_download(settings, cache) if settings.source == "hub" else Path(settings.folder), settings)
    _check_network(folder, config)
    _check_schedule(folder, config)
    with torch.device("meta"):
        model = build_base(config.denoiser, seed=0)
    try:
        load_weights(model, *weight_files(folder))
    except (OSError, ValueError) as error:
        raise ReproError(f"{_name(settings)}: {folder / WEIGHTS} is not readable ({error}); fetch it again") from error
    return model.eval()


def origin(config: Config, seed: int) -> dict[str, Any]:
    """Returns what a record says of where the base of a seed comes from."""
    settings = config.base
    known: dict[str, Any] = {"source": settings.source, "weights": settings.weights}
    if settings.source == "shipped":
        known["trained"] = shipped_base_cost(config, seed)
    if settings.source == "hub":
        known |= {"repository": settings.repository, "revision": settings.revision}
    if settings.source == "path":
        known["folder"] = settings.folder
    return known


def _download(settings: Base, cache: Path) -> Path:
    """Returns the folder of a repository at its pinned commit, from the cache where it lies there already."""
    try:
        folder = HfApi().snapshot_download(
            settings.repository, revision=settings.revision, cache_dir=cache / "hub", allow_patterns=["*.json", "*.safetensors"]
        )
        return Path(folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ReproError(
            f"base.repository {settings.repository} at {settings.revision}: cannot be downloaded ({reason}); fetch it on another machine "
            "and name its folder with --set base.source=path --set base.folder=DIR, or train the base: --set base.source=train "
            "--set base.weights=ema"
        ) from error


def _network_folder(folder: Path, settings: Base) -> Path:
    """Returns where the network lies: the folder itself, or the `unet` of a pipeline."""
    for candidate in (folder, folder / NETWORK):
        if (candidate / NETWORK_CONFIG).is_file():
            if not any(candidate.glob("diffusion_pytorch_model*.safetensors")):
                raise ReproError(
                    f"{_name(settings)}: {candidate} holds no {WEIGHTS}; weights are read as safetensors only, so save it once more with "
                    "diffusers' save_pretrained(safe_serialization=True)"
                )
            return candidate
    raise ReproError(f"{_name(settings)}: {folder} is no diffusers folder (no {NETWORK_CONFIG}); name one that save_pretrained wrote")


def _check_network(folder: Path, config: Config) -> None:
    """Compares every argument of the network with the configured ones."""
    theirs = _read_json(folder / NETWORK_CONFIG)
    with torch.device("meta"):
        ours = dict(build_base(config.denoiser, seed=0).config)
    defaults = {name: value.default for name, value in inspect.signature(UNet2DModel.__init__).parameters.items()}
    for key in sorted(defaults.keys() & ours.keys() - {"dropout", "sample_size"}):
        mine, other = _plain(ours[key]), _plain(theirs.get(key, defaults[key]))
        if mine != other:
            raise ReproError(
                f"{_name(config.base)}: its {key} is {other!r:.80}, the configuration's network has {mine!r}; change [network]"
            )
    if theirs.get("widths"):
        raise ReproError(f"{_name(config.base)}: {folder} is a pruned network; a base is whole")


def _check_schedule(folder: Path, config: Config) -> None:
    """Compares the noise schedule with the configured one, where one lies beside the network."""
    ours = noise_schedule(config.diffusion).config
    for path in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
        if not path.is_file():
            continue
        theirs = _read_json(path)
        for key in SCHEDULE_KEYS:
            if key in theirs and theirs[key] != ours[key]:
                raise ReproError(f"{path}: its {key} is {theirs[key]!r:.80}, the configuration says {ours[key]!r}; change diffusion.{key}")
        if theirs.get("prediction_type", "epsilon") != "epsilon":
            raise ReproError(
                f"{path}: the network predicts {theirs['prediction_type']!r:.80}; only one that predicts the noise can be used"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not readable ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ReproError(f"{path}: no JSON object; fetch it again")
    return content


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _name(settings: Base) -> str:
    return f"base.repository {settings.repository}" if settings.source == "hub" else f"base.folder {settings.folder}"
