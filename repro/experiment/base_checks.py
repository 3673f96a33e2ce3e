"""Checks the files of a base that was trained elsewhere against the configuration.

Every setting of a network or scheduler is honoured, known not to matter, or refused by name; one that nothing is known of is refused. The
files may come from a stranger: what they name is compared with what is known here, and nothing else is looked up or allocated.
"""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers

from repro.config import Config
from repro.config.networks import Network
from repro.diffusion.ddpm import noise_schedule
from repro.diffusion.edm import SIGMA_DATA
from repro.diffusion.vp import BETA_MAX, BETA_MIN, TIMESTEPS
from repro.errors import ReproError
from repro.files.placeholders import refuse_placeholder
from repro.files.reading import read_json
from repro.models.architecture import OF_AVERAGE, unet_arguments, unet_section

NETWORK_CLASSES = ("UNet2DModel", "PrunedUNet2DModel")
PIPELINE_CLASSES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ConsistencyModelPipeline")
# Every training run here sets its own dropout; a number of timesteps is of learned time embeddings, and none is taken.
WITHOUT_EFFECT = ("dropout", "num_train_timesteps")
# The key of [network] that stands for a setting of diffusers.
KEYS = {"in_channels": "channels"} | {key: key for key in Network.__dataclass_fields__}
# What the noise schedule follows from; compared by the schedule itself, since several settings can mean the same one.
SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
# Settings of a scheduler that say what the network was trained to do: the only values under which it can be used here.
NEEDED: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon",),
    "predict_epsilon": (True,),  # as it was called before
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # the others are of a learned variance
    "thresholding": (False,),
    "timestep_values": (None,),
    "use_flow_sigmas": (False,),
}
# Those that only a sampler looks at; a base is sampled as [evaluation] says.
OF_SAMPLING = (
    *("clip_sample", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "set_alpha_to_one", "steps_offset"),
    *("timestep_spacing", "skip_prk_steps", "tensor_format", "solver_order", "solver_type", "algorithm_type", "lower_order_final"),
    *("euler_at_final", "final_sigmas_type", "lambda_min_clipped", "predict_x0", "disable_corrector", "solver_p", "interpolation_type"),
    *("timestep_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "noise_sampler_seed"),
)
# Schedulers for a network that predicts the noise of a discrete schedule, as DDPM's: diffusers' own list of those that stand in for it.
SCHEDULER_CLASSES = {scheduler.name for scheduler in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}


# EDM's schedulers, whose other settings are of sampling; and, in EDM's code, what preconditions a network: `D(x; sigma)`.
OF_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
PRECONDITIONED: dict[str, tuple[str, dict[str, float]]] = {
    "EDMPrecond": ("edm", {"sigma_data": SIGMA_DATA}),
    "VPPrecond": ("vp", {"beta_min": BETA_MIN, "beta_d": BETA_MAX - BETA_MIN, "M": TIMESTEPS}),
}
# What a network is fed as a noise level, which a declaration is about.
FED = {
    "ddpm": "it predicts the noise and is fed the timestep",
    "edm": "it is fed ln(sigma) / 4 (OpenAI's networks and the consistency models made from them are fed 1,000 times that)",
    "vp": "it predicts the noise and is fed 999 t",
}


def check_network(path: Path, config: Config, name: str) -> None:
    """Holds every setting of a network against the configured one.

    Args:
        path: Its `config.json`.
        config: The experiment; its base is a UNet.
        name: What a message begins with: the key that names the base.

    Raises:
        ReproError: It is another network, or the file cannot be read.
    """
    theirs = read_object(path)
    assert config.network is not None
    defaults = {key: value.default for key, value in inspect.signature(UNet2DModel.__init__).parameters.items() if key != "self"}
    ours = defaults | unet_arguments(config.network)
    class_name = str(theirs.get("_class_name", NETWORK_CLASSES[0]))
    if class_name not in NETWORK_CLASSES:
        raise ReproError(f"{name}: its network is a {class_name:.80}, and a base is a UNet2DModel; name another base")
    if theirs.get("widths"):
        raise ReproError(f"{name}: {path.parent} is a pruned network; a base is whole")
    known = {*ours, *OF_AVERAGE, "widths"}
    for key in theirs:
        if key not in known and not key.startswith("_") and theirs[key] is not None:
            raise ReproError(f"{name}: its {key} is {theirs[key]!r:.80}, a setting that is not known here; name another base")
    channels, made = theirs.get("in_channels", defaults["in_channels"]), theirs.get("out_channels", defaults["out_channels"])
    if channels == config.network.channels and made == 2 * channels:
        raise ReproError(
            f"{name}: its out_channels is {made} for {channels} channels: it predicts a variance beside the noise (a learned variance), "
            "which is not supported; name a base that predicts the noise alone"
        )
    if channels not in (made, config.network.channels):
        raise ReproError(
            f"{name}: its in_channels is {channels!r:.80} and its out_channels is {made!r:.80}; a base answers with as many channels as it "
            "is given: name another base"
        )
    side = ours["sample_size"]
    if theirs.get("sample_size") in (None, [side, side]):  # None: the network leaves it open
        theirs["sample_size"] = side
    if theirs.get("class_embed_type") == "timestep" and theirs.get("num_class_embeds") is None:  # any label is embedded alike
        theirs["num_class_embeds"] = ours["num_class_embeds"]
    for key in sorted(ours.keys() - {*WITHOUT_EFFECT}):
        mine, other = _plain(ours[key]), _plain(theirs.get(key, defaults[key]))
        if mine != other:
            remedy = _remedy(key, defaults | theirs)
            raise ReproError(f"{name}: its {key} is {other!r:.80}, the configuration's network has {mine!r}; {remedy}")


def _remedy(key: str, theirs: dict[str, Any]) -> str:
    """Returns what helps where a setting of a network is another than the configured one: a key of [network], if that can say it."""
    if key not in KEYS:
        return "which no key of [network] changes: name another base"
    try:
        unet_section(theirs)
    except ReproError as error:
        of_key, _, reason = str(error).partition(": ")
        if of_key == KEYS[key]:
            return f"which [network] cannot have ({reason}): name another base"
    return f"change [network] ({KEYS[key]})"


def check_pipeline(path: Path, name: str) -> None:
    """Makes sure that the pipeline which a network is part of denoises images and nothing else.

    Args:
        path: Its `model_index.json`; nothing is checked where there is none.
        name: What a message begins with.

    Raises:
        ReproError: It is another pipeline, such as one whose network denoises latents.
    """
    if path.is_file():
        theirs = read_object(path)
        if theirs.get("_class_name") not in PIPELINE_CLASSES:
            raise ReproError(
                f"{name}: its pipeline is a {theirs.get('_class_name')!s:.80}, and only the network of a {', '.join(PIPELINE_CLASSES)} "
                "denoises images by noise alone; name another base"
            )


def check_declared(config: Config, name: str, *, told: str) -> None:
    """Makes sure that the formulation which weights were trained in is known, and is the configured one.

    Args:
        config: The experiment.
        name: What a message begins with.
        told: The formulation that the files say; empty where they do not.

    Raises:
        ReproError: It is another, or nothing says which it is. A folder without a scheduler is DDPM's where that is configured.
    """
    formulation, declared = config.diffusion.formulation, config.base.formulation
    if told and told != formulation:
        raise ReproError(f"{name}: was trained in the formulation {told}; set diffusion.formulation={told}, or name another base")
    if not (told or declared or (formulation == "ddpm" and not config.base.file)):
        fed = FED.get(formulation, "the network is fed what that formulation feeds it")
        raise ReproError(
            f"base.formulation: nothing in {name} says how its weights were trained; set base.formulation={formulation} if {fed}, or name "
            "another base"
        )


def formulation_of(about: dict[str, Any], name: str) -> str:
    """Returns the formulation of a network of EDM's code, by the class that preconditions it; empty where the file names none.

    Raises:
        ReproError: It is none of those here.
    """
    if not about:
        return ""
    formulation, settings = PRECONDITIONED.get(str(about["class"]), ("", {}))
    if not formulation:
        raise ReproError(f"{name}: its network is a {about['class']!s:.80}, and only a {' or '.join(PRECONDITIONED)} is read; name another")
    for key, value in settings.items():
        if about.get(key) != value:
            raise ReproError(
                f"{name}: its {key} is {about.get(key)!r:.80}, and the formulation {formulation} has {value}; name another base"
            )
    return formulation


def check_scheduler(path: Path, config: Config) -> str:
    """Holds a scheduler against the configured formulation: that of EDM by its settings, those of a discrete schedule by its alphas too.

    Args:
        path: Its `scheduler_config.json`.
        config: The experiment.

    Returns:
        The formulation, which is the configured one.

    Raises:
        ReproError: A network that was trained under it is not one for this configuration, or the file cannot be read.
    """
    theirs, formulation = read_object(path), config.diffusion.formulation
    class_name = str(theirs.get("_class_name", "DDPMScheduler"))
    if formulation == "edm":
        _check_edm(path, class_name, theirs)
    elif formulation == "ddpm":
        _check_ddpm(path, class_name, theirs, config)
    else:
        raise ReproError(
            f"{path}: a {class_name:.80} tells nothing of the formulation {formulation}; name a folder of the network alone, with "
            f"base.formulation={formulation} if that is how it was trained"
        )
    return formulation


def _check_edm(path: Path, class_name: str, theirs: dict[str, Any]) -> None:
    if class_name not in OF_EDM:
        raise ReproError(f"{path}: its _class_name is {class_name:.80}, none of EDM's, {' or '.join(OF_EDM)}; name another base")
    usual = {key: value.default for key, value in inspect.signature(getattr(diffusers, class_name).__init__).parameters.items()}
    needed = {"sigma_data": SIGMA_DATA, "prediction_type": "epsilon"}
    for key, value in theirs.items():
        if key in needed and value != needed[key]:
            raise ReproError(f"{path}: its {key} is {value!r:.80}, and a base of EDM's formulation has {needed[key]!r}; name another base")
        if key not in usual and not key.startswith("_"):
            raise ReproError(f"{path}: its {key} is {value!r:.80}, a setting that is not known here; name another base")


def _check_ddpm(path: Path, class_name: str, theirs: dict[str, Any], config: Config) -> None:
    if class_name not in SCHEDULER_CLASSES:
        raise ReproError(f"{path}: its _class_name is {class_name:.80}, no scheduler of DDPM's discrete noise schedule; name another base")
    for key, value in theirs.items():
        if key == "prediction_type" and value != "epsilon":
            raise ReproError(f"{path}: the network predicts {value!r:.80}; only one that predicts the noise can be used")
        if key in NEEDED and value not in NEEDED[key]:
            raise ReproError(f"{path}: its {key} is {value!r:.80}, which is not supported here; name another base")
        if key not in (*NEEDED, *OF_SAMPLING, *SCHEDULE) and not key.startswith("_") and value is not None:
            raise ReproError(f"{path}: its {key} is {value!r:.80}, a setting that is not known here; name another base")
    ours, given = noise_schedule(config.diffusion), _schedule(path, class_name, theirs, config)
    if given is not None and torch.allclose(given, ours.alphas_cumprod, rtol=1e-5, atol=1e-8):
        return
    for key in SCHEDULE:
        mine, other = _plain(ours.config[key]), theirs.get(key, ours.config[key])
        if mine != other:
            remedy = f"change diffusion.{key}" if key in vars(config.diffusion) else "no key of [diffusion] changes it: name another base"
            raise ReproError(f"{path}: its {key} is {other!r:.80}, the configuration says {mine!r}; {remedy}")
    raise ReproError(f"{path}: its noise schedule is another than the configuration's; change [diffusion], or name another base")


def _schedule(path: Path, class_name: str, theirs: dict[str, Any], config: Config) -> torch.Tensor | None:
    """Returns a scheduler's cumulative products of alphas, [T], float32; None where it has another number of timesteps."""
    usual = {key: value.default for key, value in inspect.signature(getattr(diffusers, class_name).__init__).parameters.items()}
    settings = {key: theirs.get(key, usual.get(key)) for key in SCHEDULE if key in theirs or key in usual}
    betas = settings.get("trained_betas")
    # Nothing is allocated before it is known to be as long as ours.
    if settings.get("num_train_timesteps") != config.diffusion.num_train_timesteps:
        return None
    if betas is not None and not (isinstance(betas, list) and len(betas) == config.diffusion.num_train_timesteps):
        return None
    try:
        given: torch.Tensor = DDPMScheduler(**settings).alphas_cumprod
    except Exception as error:  # of many kinds, for one reason: a value that is none of a schedule
        raise ReproError(f"{path}: describes no noise schedule ({str(error).splitlines()[0]:.200}); fetch it again") from error
    return given


def read_object(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file that holds an object.

    Raises:
        ReproError: It cannot be read, or holds something else.
    """
    refuse_placeholder(path)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not readable ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ReproError(f"{path}: no JSON object; fetch it again")
    return content


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
