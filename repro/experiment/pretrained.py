"""A base that was trained elsewhere: from the Hugging Face hub, at a pinned commit, from a diffusers folder, or from a file of weights."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from repro.config import Base, Config
from repro.errors import ReproError
from repro.experiment.base_checks import check_declared, check_network, check_pipeline, check_scheduler, formulation_of, read_object
from repro.experiment.shipped import shipped_base_cost
from repro.files.placeholders import refuse_placeholder
from repro.files.tensor_files import read_tensors
from repro.files.weights import WEIGHTS, load_weights, place_weights, weight_files
from repro.files.writing import sha256_of_file
from repro.models.denoiser import NETWORK, NETWORK_CONFIG, meta_base
from repro.models.published import is_published, renamed

AVERAGED, SCHEDULER = "unet_ema", "scheduler_config.json"


def load_pretrained(config: Config, cache: Path) -> Any:
    """Loads the network that `base.source` names and makes sure that it is the one which the configuration describes.

    Args:
        config: The experiment.
        cache: Where a download goes.

    Raises:
        ReproError: It cannot be had or read; its architecture, formulation or noise schedule is another than the configuration's; or its
            weights are others than `base.weights` says.
    """
    settings = config.base
    assert not settings.one_for_each_seed, settings.source
    if settings.file:
        return _from_file(config, Path(settings.file))
    folder = _network_folder(_download(settings, cache) if settings.source == "hub" else Path(settings.folder), settings)
    check_network(folder / NETWORK_CONFIG, config, _name(settings))
    check_pipeline(folder.parent / "model_index.json", _name(settings))
    schedulers = [path for path in (folder / SCHEDULER, folder.parent / "scheduler" / SCHEDULER) if path.is_file()]
    told = [check_scheduler(path, config) for path in schedulers]
    check_declared(config, _name(settings), told=told[0] if told else "")
    refuse_placeholder(*sorted(folder.glob("*.safetensors")))
    model = meta_base(config.denoiser)
    try:
        load_weights(model, *weight_files(folder))
    except (OSError, ValueError) as error:
        raise ReproError(f"{_name(settings)}: {folder / WEIGHTS} is not readable ({error}); fetch it again") from error
    return model.eval()


def _from_file(config: Config, path: Path) -> Any:
    """Loads the configured network's weights from a file that holds nothing else that is read."""
    name = _name(config.base)
    refuse_placeholder(path)
    try:
        sha256 = sha256_of_file(path)
        if (sha256,) != config.base.sha256:
            wrong = f"it is {config.base.sha256[0]}" if config.base.sha256 else "none is there"
            raise ReproError(f"base.sha256: must be the hash of base.file, and {wrong}; --set base.sha256='[\"{sha256}\"]' takes {path}")
        held = read_tensors(path)
        check_declared(config, name, told=formulation_of(held.about, name))
        model = meta_base(config.denoiser)
        place_weights(model, renamed(config.denoiser, model, held.tensors) if is_published(held.tensors) else held.tensors)
    except (OSError, ValueError) as error:
        raise ReproError(f"{name}: does not hold the weights of the configured network ({error}); name another file") from error
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
        known |= {"file": settings.file, "file_sha256": settings.sha256[0]} if settings.file else {"folder": settings.folder}
    if settings.formulation:
        known["formulation"] = settings.formulation
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
    """Returns where the declared weights of a network lie: in the folder itself, or in the `unet` or `unet_ema` of a pipeline.

    `unet_ema` is where diffusers' training scripts keep the average beside the raw weights. Where there is only one network, and nothing in
    the folder says which weights it has, `base.weights` is taken as the user's word.
    """
    raw, averaged = folder / NETWORK, folder / AVERAGED
    if (folder / NETWORK_CONFIG).is_file():
        found = folder
    elif _is_network(averaged) and (settings.weights == "ema" or not _is_network(raw)):
        found = averaged
    else:
        found = raw
    if not _is_network(found):
        raise ReproError(f"{_name(settings)}: {folder} is no diffusers folder (no {NETWORK_CONFIG}); name one that save_pretrained wrote")
    if found == raw and _is_network(averaged) and settings.weights == "unknown":
        raise ReproError(f"{_name(settings)}: {folder} holds {NETWORK} and {AVERAGED}; say which is meant: --set base.weights=raw, or ema")
    if not any(found.glob("diffusion_pytorch_model*.safetensors")):
        raise ReproError(
            f"{_name(settings)}: {found} holds no {WEIGHTS}; weights are read as safetensors only, so save it once more with "
            "diffusers' save_pretrained(safe_serialization=True)"
        )
    _check_declaration(found, settings)
    return found


def _is_network(folder: Path) -> bool:
    return (folder / NETWORK_CONFIG).is_file()


def _check_declaration(folder: Path, settings: Base) -> None:
    """Holds what `base.weights` says of a network against what its folder says."""
    evidence = {}
    written = read_object(folder / NETWORK_CONFIG)
    if folder.resolve().name == AVERAGED or written.get("optimization_step") is not None:  # which diffusers' EMAModel writes
        evidence["ema"] = f"{folder} holds an average of weights"
    elif folder.resolve().name == NETWORK and _is_network(folder.parent / AVERAGED):
        evidence["raw"] = f"the average lies beside it, in {folder.parent / AVERAGED}"
    plain = any((folder / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))  # taken before any variant
    for path in sorted(folder.glob("*.safetensors")):
        for mark, ours, other in (("non_ema", "raw", "ema"), ("ema", "ema", "raw")):
            if f".{mark}." in path.name:
                evidence[other if plain else ours] = f"{path.name} lies {'beside them' if plain else 'there'}"
    for says, reason in evidence.items():
        if settings.weights not in ("unknown", says):
            raise ReproError(f"base.weights: {settings.weights!r}, but {reason}; set base.weights={says}, or name another base")


def _name(settings: Base) -> str:
    if settings.file:
        return f"base.file {settings.file}"
    return f"base.repository {settings.repository}" if settings.source == "hub" else f"base.folder {settings.folder}"
