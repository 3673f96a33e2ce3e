"""What a folder says of the subnet in it: its model card."""

import re
from typing import Any

from repro.candidates import spread
from repro.errors import one_line
from repro.harness.cells import Cell, Experiment, joint_cell
from repro.harness.records import Record

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
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
| configuration | {config}, sha256 {config_sha256} |
| made with | {versions} |

```python
import repro.harness.denoiser  # knows the class of this network
from diffusers import DDIMPipeline

images = DDIMPipeline.from_pretrained("{folder}")(batch_size=4, num_inference_steps={steps}).images
```

The picture above: images 0 to {last} of seed {seed}, sampling seed {sampling_seed}, {steps} DDIM steps, {spacing} spacing.
"""
ONNX = """
`model.onnx` is the same network for devices without Python or torch: `sample` [B, {channels}, {height}, {width}] and `timestep` [B] (int64)
give `noise`. On this network onnxruntime and torch differ by at most {difference:.1g}. Sampling from it (DDIM, uniform spacing):

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
alpha_bars = np.cumprod(1 - {betas})
images = np.random.default_rng(0).standard_normal((4, {channels}, {height}, {width})).astype(np.float32)
stride = {timesteps} // {steps}
for t in reversed(range(0, {steps} * stride, stride)):
    (noise,) = session.run(None, {{"sample": images, "timestep": np.full(len(images), t)}})
    now, earlier = alpha_bars[t], alpha_bars[t - stride] if t else 1.0
    clean = {clean}
    images = (earlier**0.5 * clean + (1 - earlier) ** 0.5 * noise).astype(np.float32)
pixels = ((images / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)  # [B, C, H, W]
```
"""
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
    how = (
        "A subnet of one jointly trained supernet, extracted without retraining"
        if recorded
        else "A subnet **between two trained sizes** of one supernet: its own size was never trained"
    )
    text = CARD.format(
        name=experiment.config.name,
        size=cell.size,
        how=how,
        **about,
        quality=_plain(_quality(record)),
        latency=_plain(_latency(record)),
        training=_plain(_training(joint)),
        base=_plain(_base(joint)),
        data=f"{experiment.images.name}, {len(experiment.images):,} images, sha256 {experiment.images.sha256}",
        config=experiment.config.name,
        config_sha256=experiment.config.sha256(),
        versions=_plain(_versions(joint)),
        folder=folder,
        steps=settings.sampler_steps,
        spacing=settings.spacing,
        seed=cell.seed,
        sampling_seed=settings.sampling_seeds[0],
        last=about["drawn"] - 1,
    )
    return text if onnx_difference is None else text + _onnx(experiment, folder, onnx_difference)


def _onnx(experiment: Experiment, folder: str, difference: float) -> str:
    """Returns what a card says of the ONNX file."""
    (channels, height, width), diffusion = experiment.image_shape, experiment.config.diffusion
    clean = "(images - (1 - now) ** 0.5 * noise) / now**0.5"
    return ONNX.format(
        channels=channels,
        height=height,
        width=width,
        difference=difference,
        folder=folder,
        betas=BETAS[diffusion.beta_schedule].format(
            start=diffusion.beta_start, end=diffusion.beta_end, count=diffusion.num_train_timesteps
        ),
        timesteps=diffusion.num_train_timesteps,
        steps=experiment.config.evaluation.sampler_steps,
        clean=f"np.clip({clean}, -1, 1)" if experiment.config.evaluation.clip_sample else clean,
    )


def _plain(text: object) -> str:
    """Returns a text of a record, without what Markdown would take for a column, code, a link, an image or HTML."""
    return re.sub(r"[\\|`<\[\]]", r"\\\g<0>", one_line(str(text)))


def _quality(record: Record | None) -> str:
    if not record or not record.get("quality"):
        return "not measured yet"
    quality = record["quality"]
    sampler = quality["sampler"]
    return (
        f"{quality['metric']} {quality['mean']:.2f} ({quality['n_samples']:,} samples, {sampler['steps']} {sampler['name'].upper()} steps, "
        f"{sampler['spacing']} spacing, {len(quality['values'])} sampling seeds of one training seed, {quality['tool']})"
    )


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
    where = base.get("repository") or base.get("folder") or "trained here"
    return f"{where}, {base['weights']} weights, sha256 {base['sha256']}"


def _versions(record: Record | None) -> str:
    if not record:
        return "no record"
    provenance = record["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(provenance.get("packages", {}).items()))
    return f"commit {provenance.get('git_commit')}, {packages}"
