"""From a trained supernet to a folder in somebody's hands: the answer of `python -m repro extract`."""

from pathlib import Path

from repro.errors import ReproError
from repro.harness.cells import Cell, Experiment
from repro.harness.cost import count_macs, count_params
from repro.harness.denoiser import save_denoiser
from repro.harness.diffusion import sampling_scheduler
from repro.harness.records import Record
from repro.joint import joint_cell, load_supernet

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# {name}: size {size:g}

A subnet of one jointly trained supernet (OFA-Diffusion Compression, arXiv 2604.12668), extracted without retraining.

| | |
|---|---|
| size P | {size:g} |
| parameters | {params:,} of the base's {params_base:,} |
| MACs per image | {macs:,} (convolutions and linear layers: {macs_conv_linear:,}) |
| quality | {quality} |
| training | {training} |
| trained on | {data} |

```python
import repro.harness.denoiser  # knows the class of this network
from diffusers import DDIMPipeline

images = DDIMPipeline.from_pretrained("{folder}")(batch_size=4, num_inference_steps={steps}).images
```
"""


def extract_subnet(experiment: Experiment, *, size: float, seed: int, out: Path) -> Path:
    """Saves the subnet of a size as a diffusers pipeline with a model card.

    Args:
        experiment: The configuration and its folders.
        size: One of the trained sizes.
        seed: The seed of the joint training run.
        out: The folder to make.

    Returns:
        The folder.

    Raises:
        ReproError: The size is not a trained one, nothing has been trained yet, or the folder is in the way.
    """
    if size not in experiment.config.sizes.trained:
        known = ", ".join(f"{known:g}" for known in experiment.config.sizes.trained)
        raise ReproError(f"--size {size:g}: not a trained size; use one of {known}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReproError(f"--out {out}: something is there already; name a new folder")
    cell = Cell(method="ofa", size=size, seed=seed)
    supernet = load_supernet(experiment, joint_cell(cell))
    subnet = supernet.extract(size)
    scheduler = sampling_scheduler(experiment.config.diffusion, clip_sample=experiment.config.evaluation.clip_sample)
    macs = count_macs(subnet, experiment.image_shape)
    card = CARD.format(
        name=experiment.config.name,
        size=size,
        params=count_params(subnet.parameters()),
        params_base=supernet.plan.params_base,
        macs=macs.total,
        macs_conv_linear=macs.conv_linear,
        quality=_quality(experiment.record(cell)),
        training=_training(experiment.record(joint_cell(cell))),
        data=f"{experiment.images.name}, {len(experiment.images):,} images, sha256 {experiment.images.sha256}",
        folder=out.name,
        steps=experiment.config.evaluation.sampler_steps,
    )
    save_denoiser(subnet, scheduler, out, card=card)
    return out


def _quality(record: Record | None) -> str:
    if not record or not record.get("quality"):
        return "not measured yet"
    quality = record["quality"]
    sampler = quality["sampler"]
    return (
        f"{quality['metric']} {quality['mean']:.2f} ({quality['n_samples']:,} samples, {sampler['steps']} {sampler['name'].upper()} steps, "
        f"{sampler['spacing']} spacing, {quality['tool']})"
    )


def _training(record: Record | None) -> str:
    if not record or not record.get("training"):
        return "no record"
    cost, training = record["cost"], record["training"]
    return (
        f"one joint run for all sizes: {training['images']:,} images, {training['train_pflop']:.4g} PFLOP, "
        f"{cost['device_hours']:.4g} device-hours on {cost['ranks']} x {cost['device_name']}"
    )
