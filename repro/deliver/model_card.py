"""Writes the model card of an exported subnet."""

import hashlib
import re
from typing import Any

from repro.config import Config
from repro.config.networks import ARCHITECTURES
from repro.config.sections import PARTS
from repro.deliver.candidates import spread
from repro.diffusion.ddim import sampling_timesteps
from repro.diffusion.sampler import about_sampler
from repro.errors import one_line
from repro.experiment.cells import Cell, Experiment, joint_cell
from repro.experiment.records import Record
from repro.models.narrowed import MODULE, module_source

CARD = """---
library_name: diffusers
{tag}---
# {name}: size {size:.4g}

{how} (OFA-Diffusion Compression, arXiv 2604.12668).

![Samples](samples.png)

| | |
|---|---|
| size P | {size:.4g}, realised {realised:.4f} |
| parameters | {params:,} of the base's {params_base:,} |
| MACs per image | {macs:,} (convolutions and linear layers: {macs_conv_linear:,}) |
| quality | {quality} |
| latency | {latency} |
| training | {training} |
| base | {base} |
| trained on | {data} |
{trained_as}| configuration | {config}, sha256 {config_sha256} |
| made with | {versions} |

The picture above: images 0 to {last} of seed {seed}, sampling seed {sampling_seed}, {drawn_by}
"""
BY_CODE = """
```python
from hashlib import sha256

import torch
from repro.models.denoiser import load_pipeline

pipeline = load_pipeline("{folder}")
network, alpha_bars = pipeline.unet.eval(), pipeline.scheduler.alphas_cumprod.tolist()
names = [repr(("sample", {seed}, {sampling_seed}, index)) for index in range({drawn})]
streams = [torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 1) for name in names]
images = torch.stack([torch.randn({shape}, generator=stream) for stream in streams]).to(network.device)
times = {times}
with torch.no_grad(){autocast}:
    for time, earlier in zip(times, [*times[1:], None]):
        now, then = alpha_bars[time], 1.0 if earlier is None else alpha_bars[earlier]
        noise = network(images, torch.full((len(images),), time, device=images.device)).sample
        clean = {clean}
        images = then**0.5 * clean + (1 - then) ** 0.5 * noise
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)  # [B, C, H, W]
```

`pipeline(num_inference_steps={steps})` is diffusers' own sampler, {plainly}.
`UNet2DModel.from_config` of `unet/` builds the whole network, not this one.
"""
ALONE = """
`load_pipeline` reads plain values and tensors, and runs no code of this folder. Where only torch and diffusers are installed, this makes
the same pipeline:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)
images = pipeline(batch_size=4, num_inference_steps={steps}{labels}).images
```

It runs `unet/{module}.py`, which holds the class of this network: read that file before you trust it. Its SHA-256 is
`{module_sha256}`.
"""
ONNX = """
`model.onnx` is the same network for devices without Python or torch: `sample` [B, {channels}, {height}, {width}] and `timestep` [B] (int64)
give `noise`. On this network onnxruntime and torch differ by at most {difference:.1g}. Sampling from it, by the same timesteps:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
alpha_bars = np.cumprod(1 - {betas})
images = np.random.default_rng(0).standard_normal((4, {channels}, {height}, {width})).astype(np.float32)
times = {times}
for time, earlier in zip(times, [*times[1:], None]):
    now, then = alpha_bars[time], 1.0 if earlier is None else alpha_bars[earlier]
    (noise,) = session.run(None, {{"sample": images, "timestep": np.full(len(images), time)}})
    clean = {clean}
    images = (then**0.5 * clean + (1 - then) ** 0.5 * noise).astype(np.float32)
pixels = ((images / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)  # [B, C, H, W]
```
"""
ONNX_ALONE = """
`model.onnx` is the same network for devices without Python or torch; its inputs have the names and kinds of the network's own, and its
output, `noise`, is what the network answers. On this network onnxruntime and torch differ by at most {difference:.1g}.
"""
TRAINED_AS = "| formulation, condition, space | {formulation}, {condition}, {space} |\n"
BY_DDIM = """{sampler}.
This draws them as the images were drawn whose quality was measured, to the bit on the same device:"""
BY_ANOTHER = """{sampler}.
The quality was measured by the sampler `{name}`, too. This draws other images from the same noise, in {steps} DDIM steps,
{spacing} spacing:"""
BY_PIPELINE = """{sampler}.
diffusers samples from the same network on the same noise levels, and draws other images:

```python
from repro.models.denoiser import load_pipeline

pipeline = load_pipeline("{folder}")
images = pipeline(batch_size=4, num_inference_steps={steps}{labels}).images{unguided}
```

That is diffusers' `ConsistencyModelPipeline`, which scales a network's input as its scheduler asks, here a `{scheduler}`; the network's
formulation is `{formulation}`."""
BY_SCRIPT = """{sampler}.
The network is of the formulation `{formulation}`, sees {space} and is conditioned on {condition}. `load_denoiser` of
`repro.models.denoiser` reads it, and runs no code of this folder; the script that trained it samples from it."""
PLAINLY = {
    "uniform": "which visits the same timesteps",
    "another": "which is not the sampler that the quality was measured with",
    "quadratic": "which knows no quadratic spacing and visits other timesteps than those that the quality was measured with",
}
CLEAN = "(images - (1 - now) ** 0.5 * noise) / now**0.5"
BETAS = {
    "linear": "np.linspace({start}, {end}, {count})",
    "scaled_linear": "np.linspace({start}**0.5, {end}**0.5, {count}) ** 2",
    "squaredcos_cap_v2": (
        "np.minimum(1 - np.divide(*[np.cos((np.arange({count}) / {count} + step / {count} + 0.008) / 1.008 * np.pi / 2) ** 2 "
        "for step in (1, 0)]), 0.999)"
    ),
}


def model_card(
    experiment: Experiment, cell: Cell, about: dict[str, Any], *, recorded: bool, folder: str, onnx_difference: float | None
) -> str:
    """Returns the text of a card.

    Args:
        experiment: The configuration and its folders.
        cell: The subnet.
        about: Its counts: `realised`, `params`, `params_base`, `macs`, `macs_conv_linear`.
        recorded: Whether the cell is one of the grid; an untrained in-between subnet is not.
        folder: Where it lies, as the code in the card names it.
        onnx_difference: How far the ONNX file beside it is from torch; None where there is none.
    """
    record, joint = experiment.record(cell) if recorded else None, experiment.record(joint_cell(cell, "ofa"))
    settings = experiment.config.evaluation
    sampler, ours = experiment.sampler, experiment.sampler.name == "ddim"
    config = experiment.config
    data, plain = config.data, is_plain(config)
    classes = experiment.condition.about(experiment.images).get("num_classes")
    labels = f", class_labels={[label % classes for label in range(4)]}" if classes else ""
    elsewhere = BY_PIPELINE if is_of_package(config) else BY_SCRIPT
    drawn_by = (elsewhere if not plain else BY_DDIM if ours else BY_ANOTHER).format(
        scheduler=type(experiment.formulation.scheduler(clip_sample=settings.clip_sample)).__name__,
        labels=labels,
        unguided="  # without guidance" if classes else "",
        formulation=config.diffusion.formulation,
        space=data.space,
        condition=data.condition,
        folder=folder,
        sampler=_plain(_sampler(about_sampler(sampler, settings, experiment.formulation))),
        name=sampler.name,
        steps=settings.sampler_steps,
        spacing=settings.spacing,
    )
    how = (
        "A subnet of one jointly trained supernet, extracted without retraining"
        if recorded
        else "A subnet **between two trained sizes** of one supernet: its own size was never trained"
    )
    text = (CARD + (BY_CODE if plain else "") + (ALONE if is_of_package(config) else "")).format(
        name=experiment.config.name,
        size=cell.size,
        how=how,
        **about,
        quality=_plain(_quality(record)),
        latency=_plain(_latency(record)),
        training=_plain(_training(joint)),
        base=_plain(_base(joint)),
        tag="" if data.condition != "none" else "pipeline_tag: unconditional-image-generation\n",
        trained_as="" if plain else _trained_as(experiment, classes),
        data=f"{experiment.images.name}, {len(experiment.images):,} images, sha256 {experiment.images.sha256}",
        config=experiment.config.name,
        config_sha256=experiment.config.sha256(),
        versions=_plain(_versions(joint)),
        folder=folder,
        steps=settings.sampler_steps,
        labels=labels,
        module=MODULE,
        module_sha256=hashlib.sha256(module_source()).hexdigest(),
        drawn_by=drawn_by,
        seed=cell.seed,
        sampling_seed=settings.sampling_seeds[0],
        last=about["drawn"] - 1,
        shape=experiment.network_shape,
        times=_times(experiment),
        autocast="" if settings.precision == "float32" else f", torch.autocast(network.device.type, torch.{settings.precision})",
        clean=f"({CLEAN}).clamp(-1, 1)" if settings.clip_sample else CLEAN,
        plainly=PLAINLY[settings.spacing if ours else "another"],
    )
    if onnx_difference is None:
        return text
    return text + (_onnx(experiment, folder, onnx_difference) if plain else ONNX_ALONE.format(difference=onnx_difference))


def is_of_package(config: Config) -> bool:
    """Says whether diffusers' pipelines sample from a network: one of the package's own parts, on pixels."""
    if config.transformer and config.diffusion.formulation != "ddpm":  # the pipelines of the others ask for a number of classes
        return False
    own = config.own is not None and type(config.own) not in ARCHITECTURES.values()
    named = {"diffusion.formulation": config.diffusion.formulation, "data.condition": config.data.condition}
    return not own and config.data.space == "pixels" and all(value in PARTS[key] for key, value in named.items())


def _trained_as(experiment: Experiment, classes: int | None) -> str:
    condition = experiment.condition.name + (f" ({classes} classes)" if classes else "")
    return TRAINED_AS.format(formulation=experiment.formulation.name, condition=condition, space=experiment.space.name)


def is_plain(config: Config) -> bool:
    """Says whether a network is an unconditional DDPM on pixels, which diffusers' own pipelines sample from."""
    return not config.own and config.diffusion.formulation == "ddpm" and config.data.space == "pixels" and config.data.condition == "none"


def _onnx(experiment: Experiment, folder: str, difference: float) -> str:
    """Returns what a card says of the ONNX file."""
    (channels, height, width), diffusion = experiment.network_shape, experiment.config.diffusion
    return ONNX.format(
        channels=channels,
        height=height,
        width=width,
        difference=difference,
        folder=folder,
        betas=BETAS[diffusion.beta_schedule].format(
            start=diffusion.beta_start, end=diffusion.beta_end, count=diffusion.num_train_timesteps
        ),
        times=_times(experiment),
        clean=f"np.clip({CLEAN}, -1, 1)" if experiment.config.evaluation.clip_sample else CLEAN,
    )


def _times(experiment: Experiment) -> list[int]:
    """Returns the timesteps that a sampler visits, in their order."""
    settings = experiment.config.evaluation
    return sampling_timesteps(experiment.config.diffusion.num_train_timesteps, settings.sampler_steps, settings.spacing)[::-1]


def _plain(text: object) -> str:
    """Returns a text of a record, without what Markdown would take for a column, code, a link, an image or HTML."""
    return re.sub(r"[\\|`<\[\]]", r"\\\g<0>", one_line(str(text)))


def _quality(record: Record | None) -> str:
    if not record or not record.get("quality"):
        return "not measured yet"
    quality = record["quality"]
    return (
        f"{quality['metric']} {quality['mean']:.2f} ({quality['n_samples']:,} samples, {_sampler(quality['sampler'])}, "
        f"{len(quality['values'])} sampling seeds of one training seed, {quality['tool']})"
    )


def _sampler(about: dict[str, Any]) -> str:
    """Returns what a record says of a sampler; others than DDIM have settings of their own."""
    if about["name"] == "ddim":
        return f"{about['steps']} {about['name'].upper()} steps, {about['spacing']} spacing"
    return ", ".join([f"sampler {about['name']}", *(f"{key} {value}" for key, value in about.items() if key != "name")])


def _latency(record: Record | None) -> str:
    if not record or not record.get("latency"):
        return "not measured yet"
    return "; ".join(
        f"{_milliseconds(entry)} for a batch of {entry['batch']} on {entry['device_name']} ({entry['threads']} CPU threads)"
        for entry in record["latency"]
    )


def _milliseconds(entry: dict[str, Any]) -> str:
    """Returns the median of a latency with its quartiles, which older records lack, and says where the machine was busy."""
    text = spread(entry["ms"], entry["ms_quartiles"]) if entry.get("ms_quartiles") else f"{entry['ms']:.3g} ms"
    return f"{text} on a busy machine," if entry.get("busy") else text


def _training(record: Record | None) -> str:
    if not record or not record.get("training"):
        return "no record"
    cost, training = record["cost"], record["training"]
    return (
        f"one joint run for all sizes: {training['images']:,} images, {training['train_pflop']:.4g} PFLOP, "
        f"{cost['device_hours']:.4g} device-hours on {cost['ranks']} x {cost['device_name']}"
    )


def _base(record: Record | None) -> str:
    if not record or not record.get("base"):
        return "no record"
    base = record["base"]
    made_here = "shipped with ofa-diffusion" if base["source"] == "shipped" else "trained here"
    where = base.get("repository") or base.get("folder") or base.get("file") or made_here
    return f"{where}, {base['weights']} weights, sha256 {base['sha256']}"


def _versions(record: Record | None) -> str:
    if not record:
        return "no record"
    provenance = record["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(provenance.get("packages", {}).items()))
    return f"commit {provenance.get('git_commit')}, {packages}"
