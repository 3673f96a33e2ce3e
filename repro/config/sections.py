"""The sections of a configuration: frozen dataclasses that check every value when they are made.

A section does not know its own name; who builds it puts the name before the message.
"""

import difflib
import math
import re
from dataclasses import dataclass, field
from typing import Any

from repro.config.known_sets import KNOWN_SETS, known_as
from repro.errors import ReproError

DATA_SETS = ("digits", "cifar10", "folder")
METRICS = ("fid", "fid768", "fid_classifier")
SAMPLERS = ("ddim", "heun", "dpmsolver", "dpmsolver++", "unipc")
# The package's parts, by the key that names one; a script may bring others.
PARTS: dict[str, tuple[str, ...]] = {
    "evaluation.metric": METRICS,
    "evaluation.sampler": SAMPLERS,
    "diffusion.formulation": ("ddpm", "edm", "vp"),
    "data.space": ("pixels",),
    "data.condition": ("none", "class_labels"),
}
PRECISIONS = ("float32", "bfloat16")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
EXAMPLE = "such as google/ddpm-cifar10-32"
# No network or run is larger. A configuration or an extracted folder may come from anybody: what it asks for must not fill the memory.
MOST_LEVELS, MOST_BLOCKS, MOST_CHANNELS = 16, 64, 2**16
MOST_STEPS, MOST_TIMESTEPS = 10**9, 10**6
MOST_IMAGES = 10**12
MOST_BATCH, MOST_SEED = 2**20, 2**32 - 1  # images at a time; numpy's largest seed
MOST_HOURS = 10**6
MOST_POINTS = 64  # of a curve
BUDGETS = ("base_training", "ofa_training", "baseline_training", "finetuning")  # the sections that hold a `Training`
MOST_THREADS = 1024
EMA_DECAY = 0.9999
ABSENT = "left out of the hash at its default"


def added(absent: Any) -> Any:
    """Returns the field of a key that came later: at this value it means what its absence meant, and it is left out of the hash."""
    return field(default=absent, metadata={ABSENT: True})


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images: `digits` (scikit-learn's handwritten digits), `cifar10`, or `folder` (any folder or zip file of images).

    Attributes:
        name: The data set.
        folder: Of `folder`: where the images lie; each direct sub-folder is one label, unless a `dataset.json` tells the labels.
        sha256: The hash that the training pixels must have as they are read, uint8 [N, H, W, C]; empty takes the official set and no other.
        space: What the network sees of an image: `pixels`, or a script's own.
        condition: What else it is given: `none`, `class_labels`, or a script's own.
        condition_dropout: How often training leaves that out, for classifier-free guidance.
        crop: Of `folder`: the part of every image that is taken, [left, top, width, height] in pixels of the upright image, before it is
            resized; empty takes all of it.
        holds: Of `folder`: the published data set that lies there, `celeba`, `ffhq` or `imagenet`. Its number of images is then checked,
            its training images are taken, and its published figures stand beside the results. Empty takes any images.
        held_out: How many images of a set without a test split are kept apart: never trained on, nor part of the reference.
        downsampling: Of `digits` and `cifar10`: so many pixels along each side become one, their mean; 1 leaves the images as they are. A
            folder's are resized to the network's size as it is.
    """

    name: str = "digits"
    folder: str = ""
    sha256: str = ""
    space: str = added("pixels")
    condition: str = added("none")
    condition_dropout: float = added(0.0)
    crop: tuple[int, ...] = added(())
    holds: str = added("")
    held_out: int = added(0)
    downsampling: int = added(1)

    def __post_init__(self) -> None:
        one_of("name", self.name, DATA_SETS)
        is_folder, only = self.name == "folder", "goes with data.name = 'folder', and only with that"
        check("folder", bool(self.folder) == is_folder, only)
        for key in ("crop", "holds"):
            check(key, is_folder or not getattr(self, key), only)
        measured = len(self.crop) == 4 and min(self.crop) >= 0 and min(self.crop[2:]) >= 1
        check("crop", measured or not self.crop, "must be [left, top, width, height] in pixels, or empty")
        if self.holds:
            one_of("holds", self.holds, tuple(KNOWN_SETS))
        check("sha256", not self.sha256 or is_sha256(self.sha256), "must be 64 hexadecimal digits")
        check("condition_dropout", 0 <= self.condition_dropout < 1, "must lie in [0, 1)")
        not_negative("held_out", self.held_out, MOST_STEPS)
        check("downsampling", self.downsampling in (1, 2, 4), "must be 1, 2 or 4")
        check("downsampling", self.downsampling == 1 or not is_folder, "a folder's images are resized to the network's size; leave it out")

    @property
    def known_as(self) -> str:
        """The name of the images in records and among published figures."""
        return known_as(self.name, self.holds, self.downsampling)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The formulation that the base was or is trained with, and its noise schedule.

    Attributes:
        formulation: `ddpm`, `edm`, `vp` (U-ViT's), or a script's own.
        num_train_timesteps: Timesteps of the schedule; of a formulation without any, the noise levels that Diff-Pruning visits.
        beta_schedule: Of `ddpm`.
        beta_start: Of `ddpm`: the first beta.
        beta_end: Of `ddpm`: the last.
    """

    formulation: str = added("ddpm")
    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        within("num_train_timesteps", self.num_train_timesteps, MOST_TIMESTEPS)
        one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        check("beta_start", 0 < self.beta_start <= self.beta_end < 1, "needs 0 < beta_start <= beta_end < 1")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes P that the supernet is trained on, and those that are evaluated.

    Attributes:
        trained: The chain of nested subnets.
        reported: Those of them that are evaluated.
        candidates: What a training step draws from: `chain` (the trained sizes, the paper's restricted set), or `open` (a random width
            for every pipe, as in Once-for-All).
    """

    trained: tuple[float, ...]
    reported: tuple[float, ...]
    candidates: str = "chain"

    def __post_init__(self) -> None:
        for key, sizes in (("trained", self.trained), ("reported", self.reported)):
            check(key, bool(sizes), "needs at least one size")
            check(key, all(0 < size <= 1 for size in sizes), "every size must lie in (0, 1]")
            check(key, len(set(sizes)) == len(sizes), "names a size twice")
        one_of("candidates", self.candidates, ("chain", "open"))
        extra = sorted(set(self.reported) - set(self.trained))
        check("reported", not extra, f"{extra} are not among sizes.trained; add them there or leave them out here")


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """How channels are scored (paper, Formula 4)."""

    images: int = 1024
    batch_size: int = 128

    def __post_init__(self) -> None:
        within("images", self.images, MOST_STEPS)
        within("batch_size", self.batch_size, MOST_BATCH)
        whole = self.images % self.batch_size == 0
        check("images", whole, f"must be a multiple of importance.batch_size, {self.batch_size}: whole batches are scored")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How the channels of a size are shared among the pipes (paper, Formula 5), and which ones a pipe keeps.

    Attributes:
        rule: How many: `gradual`, `formula5` or `uniform`.
        floor: The least fraction of a pipe that any size keeps.
        ranking: Which ones: the best by `importance`, by `magnitude`, at `random`, or simply the first (`prefix`).
        groupnorm: `keep` keeps every channel in the normalisation group that it was trained in; `regroup` ranks a layer as a whole.
        resampling_units: Residual units that halve or double the resolution, as EDM's networks have them, are `pruned` too, or stay `whole`
            in the supernet (the paper's authors' choice); a size P then names more parameters. Independent baselines choose freely, among
            all channels, to the same parameters.
    """

    rule: str = "gradual"
    floor: float = 0.25
    ranking: str = "importance"
    groupnorm: str = "keep"
    resampling_units: str = added("pruned")

    def __post_init__(self) -> None:
        one_of("rule", self.rule, ("gradual", "formula5", "uniform"))
        one_of("ranking", self.ranking, ("importance", "magnitude", "random", "prefix"))
        one_of("groupnorm", self.groupnorm, ("keep", "regroup"))
        one_of("resampling_units", self.resampling_units, ("pruned", "whole"))
        check("floor", 0 < self.floor <= 1, "must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class SamplingLaw:
    """Which sizes a step trains (paper, Eq. 6).

    Attributes:
        law: `linear` (the paper's), `uniform`, `weighted` (uniform, with the linear law's shape on the losses) or `sandwich`.
        m: How much more often than the largest size the smallest is drawn, or how much more its loss weighs.
        sandwich_random: Of `sandwich`: how many random sizes lie between the largest and the smallest.
    """

    law: str = "linear"
    m: float = 3.0
    sandwich_random: int = 2

    def __post_init__(self) -> None:
        one_of("law", self.law, ("linear", "uniform", "weighted", "sandwich"))
        check("m", self.m > 0, "must be positive")
        not_negative("sandwich_random", self.sandwich_random, MOST_BATCH)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The budget and optimiser of one training run: Adam, or AdamW where there is a weight decay, warm-up, EMA.

    Attributes:
        steps: Optimisation steps.
        batch_size: Images of a step, over all ranks.
        learning_rate: Its peak.
        warmup_steps: Steps in which it rises to that.
        warmup_images: The same in images, in place of steps.
        schedule: What follows: `constant`, or a `cosine` down to 0.
        gradient_clipping: The largest norm of the gradient; 0 clips nothing.
        ema_decay: Of the average of the weights, at every step; the average starts from the weights after the first one.
        ema_half_life_images: In place of a decay: after how many images half of the average is newer (Karras et al., 2022).
        ema_ramp: The half-life is at most this share of the images so far; 0 has no such bound. EDM: 0.05 for a network from scratch.
        betas: Of Adam.
        cooldown: Of a `constant` schedule: the share of all steps, the last ones, in which the rate falls linearly to 0.
        weight_decay: Of AdamW; parameters that the network's `no_weight_decay()` names have none.
        dropout: In the residual (and feed-forward) units.
        horizontal_flip: Whether every image is mirrored with probability 1/2.
        augment_probability: Of each of EDM's augmentations, which the network is told of; half of the images are mirrored, too. 0 has none.
        zero_stage: Of DeepSpeed.
        checkpoint_every_steps: How often the state is kept.
        distillation: The share of the loss that asks for the base's prediction in place of the noise; 0 has no teacher.
        loss_reduction: Whether an image's loss is the `mean` or the `sum` of its pixels'. Adam hardly tells the two apart, clipping does.
        timesteps: Of a batch: `independent`, or `antithetic`, where half of them are T - 1 - t of the other half (DDIM's code).
        loss_weighting: Of the timesteps: `uniform`, or `min_snr`, min(SNR, 5) / SNR on the error of the noise (Hang et al., 2023).
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    schedule: str = "constant"
    gradient_clipping: float = 1.0
    ema_decay: float = EMA_DECAY
    dropout: float = 0.0
    horizontal_flip: bool = False
    zero_stage: int = 0
    checkpoint_every_steps: int = 1000
    distillation: float = 0.0
    loss_reduction: str = added("mean")
    timesteps: str = added("independent")
    loss_weighting: str = added("uniform")
    augment_probability: float = added(0.0)
    warmup_images: int = added(0)
    ema_half_life_images: int = added(0)
    ema_ramp: float = added(0.0)
    betas: tuple[float, ...] = added((0.9, 0.999))
    weight_decay: float = added(0.0)
    cooldown: float = added(0.0)

    def __post_init__(self) -> None:
        for key in ("steps", "checkpoint_every_steps"):
            within(key, getattr(self, key), MOST_STEPS)
        within("batch_size", self.batch_size, MOST_BATCH)
        check("learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite")
        not_negative("warmup_steps", self.warmup_steps, MOST_STEPS)
        check("augment_probability", 0 <= self.augment_probability <= 1, "must lie in [0, 1]; 0 has none")
        twice = self.augment_probability > 0 and self.horizontal_flip
        check("horizontal_flip", not twice, "is part of the augmentation (augment_probability); keep one of them")
        not_negative("warmup_images", self.warmup_images, MOST_IMAGES)
        check("warmup_images", not (self.warmup_images and self.warmup_steps), "goes without warmup_steps; keep one of them")
        not_negative("ema_half_life_images", self.ema_half_life_images, MOST_IMAGES)
        kept = self.ema_decay == EMA_DECAY or not self.ema_half_life_images
        check("ema_half_life_images", kept, "goes without ema_decay; keep one of them")
        check("ema_ramp", 0 <= self.ema_ramp < math.inf, "must not be negative; 0 bounds no half-life")
        check("ema_ramp", self.ema_ramp == 0 or self.ema_half_life_images > 0, "bounds ema_half_life_images; set that, too")
        check("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "needs two numbers in [0, 1)")
        check("weight_decay", 0 <= self.weight_decay < math.inf, "must not be negative; 0 decays nothing")
        check("gradient_clipping", self.gradient_clipping >= 0, "must not be negative; 0 clips nothing")
        check("ema_decay", 0 <= self.ema_decay < 1, "must lie in [0, 1)")
        check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")
        check("distillation", 0 <= self.distillation <= 1, "must lie in [0, 1]")
        one_of("schedule", self.schedule, ("constant", "cosine"))
        check("cooldown", 0 <= self.cooldown < 1, "must lie in [0, 1); 0 has none")
        check("cooldown", self.schedule == "constant" or not self.cooldown, "goes with schedule = 'constant', and only with that")
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))
        one_of("timesteps", self.timesteps, ("independent", "antithetic"))
        one_of("loss_weighting", self.loss_weighting, ("uniform", "min_snr"))
        check(
            "zero_stage",
            self.zero_stage in (0, 1, 2),
            "must be 0, 1 or 2; stage 3 partitions the parameters, and a supernet gathers slices of whole ones",
        )


@dataclass(frozen=True, kw_only=True)
class Base:
    """The pretrained network that both approaches start from.

    Attributes:
        source: `train` (the harness trains one for each seed, at a cost of its own), `shipped` (one for each seed came with this package,
            trained by it), `hub` (a repository of the Hugging Face hub) or `path` (a folder or file): one for all seeds.
        sha256: Of `shipped`: the hashes of the files, for seeds 0, 1, 2, ...; of a `file`: its hash.
        repository: Of `hub`.
        revision: Of `hub`: the commit, so that the weights are the same tomorrow.
        folder: Of `path`: a diffusers folder, a pipeline's or a network's.
        file: Of `path`, in place of a folder: weights alone, as safetensors, a dictionary of `torch.save`, or a pickle of EDM's code.
        formulation: The one that the weights were trained in, where neither a scheduler in the folder nor the file says it: `edm` says that
            the network is fed ln(sigma) / 4, `vp` 999 t.
        weights: Which weights of a training run these are: `ema`, `raw` or `unknown`. Where a folder holds both, it says which are loaded;
            where it holds one network and nothing that tells, it is the user's declaration.
    """

    source: str = "train"
    sha256: tuple[str, ...] = added(())
    repository: str = ""
    revision: str = ""
    folder: str = ""
    file: str = added("")
    formulation: str = added("")
    weights: str = "ema"

    def __post_init__(self) -> None:
        one_of("source", self.source, ("train", "shipped", "hub", "path"))
        check("sha256", bool(self.sha256) or self.source != "shipped", "is needed by base.source = 'shipped', one hash for each seed")
        check("sha256", all(map(is_sha256, self.sha256)), "must be 64 hexadecimal digits each")
        one_of("weights", self.weights, ("ema", "raw", "unknown"))
        named = REPOSITORY.fullmatch(self.repository) is not None and ".." not in self.repository
        check("repository", bool(self.repository) or self.source != "hub", f"is needed by base.source = 'hub', {EXAMPLE}")
        check("repository", named or not self.repository, f"must be an owner and a name, {EXAMPLE}")
        pinned = len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
        check("revision", pinned or self.source != "hub", "must be the 40 digits of a commit: a branch's weights may change")
        check("folder", bool(self.folder) != bool(self.file) or self.source != "path", "is needed by base.source = 'path', or base.file is")
        check("file", not self.file or self.source == "path", "goes with base.source = 'path', and only with that")
        check("sha256", not self.file or len(self.sha256) <= 1, "must be the one hash of base.file; set base.sha256=[] to be told it")
        given = self.source in ("hub", "path")
        check("formulation", not self.formulation or given, "is of weights from elsewhere, base.source = 'path' or 'hub'")
        check("weights", self.weights == "ema" or given, "must be 'ema' when base.source = 'train' or 'shipped'")

    @property
    def one_for_each_seed(self) -> bool:
        """Whether every seed has a base of its own."""
        return self.source in ("train", "shipped")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How the independent baselines are pruned (Diff-Pruning, Fang et al., 2023).

    Attributes:
        images: Of the one batch that Diff-Pruning takes its gradients on.
        threshold: The share of the largest loss below which a timestep, and all after it, are left out.
        channels: `in_groups` ranks channels inside each normalisation group and head, norms scored too, as Diff-Pruning does; `averaged`
            is what torch-pruning 1.6.1 does by itself: scores averaged over the groups, norms not looked at.
        timesteps: How many timesteps the threshold is expected to leave; budgets of equal compute count the gradient pass by it.
    """

    images: int = 128
    threshold: float = 0.05
    channels: str = added("in_groups")
    timesteps: int = added(0)

    def __post_init__(self) -> None:
        within("images", self.images, MOST_BATCH)
        not_negative("timesteps", self.timesteps, MOST_TIMESTEPS, "0 counts all of them")
        one_of("channels", self.channels, ("in_groups", "averaged"))
        check("threshold", 0 <= self.threshold < 1, "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network is sampled and judged.

    Attributes:
        metric: `fid` (Inception's 2,048 features), `fid768` (its 768), `fid_classifier`, or a script's own; never compared with each other.
        sampler: `ddim`, `heun` (EDM's), `unipc`, DPM-Solver++ as `dpmsolver` (third order, singlestep) or `dpmsolver++` (second order,
            multistep), or a script's own.
        samples: Images that are drawn from each network.
        sampling_seeds: One set of samples for each.
        batch_size: Images of a sampling step; the samples do not depend on it.
        sampler_steps: Denoiser evaluations for each image (NFE); of `ddim` fewer where some of the quadratic ones fall on one timestep. N
            steps of `heun` are 2 N - 1 evaluations.
        spacing: Of the timesteps of `ddim`: `uniform` or `quadratic`.
        clip_sample: Whether the predicted clean image is clipped to [-1, 1] at every step.
        reference_images: How many training images stand against the samples, from the first; 0 takes all.
        precision: Of sampling.
        latency_batches: The batch sizes at which one forward pass is timed.
        churn: Of `heun`: S_churn, how much fresh noise all steps together add on their way (Karras et al., 2022, algorithm 2); 0 adds none.
        churn_range: S_min and S_max, the noise levels at which that is done.
        churn_noise: S_noise, the standard deviation of that noise.
        guidance: The scale of classifier-free guidance; 1 has none, and any other evaluates the network twice as often.
        also: Other metrics, of the same samples: a second opinion.
    """

    metric: str = "fid_classifier"
    sampler: str = added("ddim")
    samples: int = 50_000
    sampling_seeds: tuple[int, ...] = (0,)
    batch_size: int = 256
    sampler_steps: int = 100
    spacing: str = "quadratic"
    clip_sample: bool = True
    reference_images: int = 0
    precision: str = "float32"
    latency_batches: tuple[int, ...] = (1, 64)
    guidance: float = added(1.0)
    churn: float = added(0.0)
    churn_range: tuple[float, ...] = added((0.0, 1000.0))
    churn_noise: float = added(1.0)
    also: tuple[str, ...] = added(())

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        check("churn", 0 <= self.churn < math.inf, "must not be negative; 0 adds no noise")
        ordered = len(self.churn_range) == 2 and 0 <= self.churn_range[0] <= self.churn_range[1]
        check("churn_range", ordered, "needs two noise levels, the lower one first")
        check("churn_noise", 0 < self.churn_noise < math.inf, "must be positive")
        check("guidance", 0 <= self.guidance < math.inf, "must not be negative; 1 has no guidance")
        check("reference_images", self.reference_images == 0 or self.reference_images >= 2, "must be 0 (all) or at least 2")
        one_of("spacing", self.spacing, ("uniform", "quadratic"))
        check("samples", self.samples >= 2, "must be at least 2: a covariance needs two samples")
        within("samples", self.samples, MOST_STEPS)
        not_negative("reference_images", self.reference_images, MOST_STEPS)
        within("sampler_steps", self.sampler_steps, MOST_TIMESTEPS)
        spaced = self.sampler == "ddim" and self.spacing == "quadratic"
        check("sampler_steps", self.sampler_steps >= 2 or not spaced, "quadratic spacing needs at least 2")
        within("batch_size", self.batch_size, MOST_BATCH)
        for batch in self.latency_batches:
            within("latency_batches", batch, MOST_BATCH)
        check("sampling_seeds", bool(self.sampling_seeds), "needs at least one seed")
        for seed in self.sampling_seeds:
            not_negative("sampling_seeds", seed, MOST_SEED)
        check("also", self.metric not in self.also, f"names {self.metric}, which is evaluation.metric; leave it out")
        for key in ("sampling_seeds", "latency_batches", "also"):
            check(key, len(set(getattr(self, key))) == len(getattr(self, key)), "names a value twice")


@dataclass(frozen=True, kw_only=True)
class Curves:
    """At which points on its way a training is judged, and how: quality over images, hours and work.

    Attributes:
        points: How many, the end included, evenly spaced on a logarithmic scale.
        span: The images at the last point over those at the first.
        metric_points: How many of them, the last ones, are judged by the metric too, and not only by the validation loss.
        samples: Images that are drawn for that from each network, by the first of the sampling seeds.
        triples: How many fixed (image, noise, noise level) the validation loss is the mean over; the images are held-out ones.
        interference: How many batches the gradients of the sizes of a joint training are compared on, at each point and at the base; 0
            compares none.
        cooldown: A point is the end of a short branch in which the rate falls to 0, this share of the images so far; 0 has no branches.
    """

    points: int = 8
    span: float = 64.0
    metric_points: int = 4
    samples: int = 10_000
    triples: int = 4096
    cooldown: float = 0.0
    interference: int = added(0)

    def __post_init__(self) -> None:
        even = 0 <= self.interference <= MOST_STEPS and self.interference % 2 == 0
        check("interference", even, "must be an even number of batches, half of them for each of two gradients, or 0")
        check("points", 2 <= self.points <= MOST_POINTS, f"must lie in [2, {MOST_POINTS}]")
        check("span", 1 < self.span < math.inf, "must be more than 1")
        check("metric_points", 0 <= self.metric_points <= self.points, f"must lie in [0, {self.points}], of all points")
        check("samples", 2 <= self.samples <= MOST_STEPS, "must be at least 2: a covariance needs two samples")
        within("triples", self.triples, MOST_STEPS)
        check("cooldown", 0 <= self.cooldown <= 1, "must lie in [0, 1]; 0 has no branches")

    def steps(self, last: int) -> tuple[int, ...]:
        """Returns the steps of a training of `last` steps after which it is judged, ascending."""
        places = (last * self.span ** (-index / (self.points - 1)) for index in range(self.points))
        return tuple(sorted({max(1, round(place)) for place in places}))


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the arithmetic is done.

    Attributes:
        precision: Of training: `bfloat16` is autocast over float32 weights.
        tf32: Whether float32 matrix products and convolutions on a GPU may round their inputs to TF32.
        channels_last: Whether a GPU keeps images and weights in NHWC order.
        compile: Whether the networks that are trained go through `torch.compile`, each subnet on its own.
        threads: Of each process on a CPU. Another number rounds otherwise, and training carries that on: a fixed one makes a machine with
            more cores give the same numbers. 0 leaves it to torch.
    """

    precision: str = "float32"
    tf32: bool = True
    channels_last: bool = True
    compile: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        check("threads", 0 <= self.threads <= MOST_THREADS, f"must lie in [0, {MOST_THREADS}]; 0 leaves it to torch")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The feature extractor of `fid_classifier`, trained on the labelled images themselves.

    Attributes:
        width: Channels of the first level; each level has twice as many as the one before.
        levels: Resolutions; the features are the average over positions of the last.
        blocks: Residual units of a level.
        horizontal_flip: Whether training images are mirrored with probability 1/2.
        crop_padding: By how many pixels training images are shifted at most.
        steps: Optimisation steps.
        batch_size: Images of a step.
        learning_rate: Its peak.
        warmup_steps: Steps in which it rises to that.
        label_smoothing: Share of a label that is spread over all labels.
        precision: Of its training.
        held_out: Share of the training images that the accuracy is measured on, where the data set has no test images of its own.
        least_accuracy: What it must reach.
        seed: Of its weights and batches.
        sha256: Of the file that came with this package and is used as it is; empty trains one, whose distances are on another scale.
    """

    width: int = 32
    levels: int = 2
    blocks: int = 1
    horizontal_flip: bool = False
    crop_padding: int = 0
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    precision: str = "float32"
    held_out: float = 0.2
    least_accuracy: float = 0.97
    seed: int = 0
    sha256: str = added("")

    def __post_init__(self) -> None:
        limits = {"width": MOST_CHANNELS, "levels": MOST_LEVELS, "blocks": MOST_BLOCKS, "steps": MOST_STEPS, "batch_size": MOST_BATCH}
        for key, most in limits.items():
            within(key, getattr(self, key), most)
        for key, most in {"crop_padding": MOST_CHANNELS, "warmup_steps": MOST_STEPS, "seed": MOST_SEED}.items():
            not_negative(key, getattr(self, key), most)
        widest = self.width * 2 ** (self.levels - 1)
        check(
            "levels", widest <= MOST_CHANNELS, f"make {widest:,} channels of width {self.width}, doubled at each; at most {MOST_CHANNELS:,}"
        )
        check("label_smoothing", 0 <= self.label_smoothing < 1, "must lie in [0, 1)")
        one_of("precision", self.precision, PRECISIONS)
        check("width", self.width % 8 == 0, "must be a multiple of 8: its normalisation has 8 groups")
        check("learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite")
        check("held_out", 0 < self.held_out < 1, "must lie in (0, 1)")
        check("sha256", not self.sha256 or is_sha256(self.sha256), "must be 64 hexadecimal digits")
        check("least_accuracy", 0 <= self.least_accuracy <= 1, "must lie in [0, 1]")


def check(key: str, holds: bool, what: str) -> None:
    """Raises a `ReproError` that names the key and says what it must be, unless it is so."""
    if not holds:
        raise ReproError(f"{key}: {what}")


def within(key: str, value: int, most: int) -> None:
    """Raises a `ReproError` that names the key, unless the value is at least 1 and not more than there ever is."""
    check(key, 1 <= value <= most, f"must be at least 1 and at most {most:,}, not {value:,}")


def not_negative(key: str, value: float, most: int, zero: str = "") -> None:
    """Raises a `ReproError` that names the key, unless the value is at least 0 and not more than there ever is.

    Args:
        key: The key.
        value: Its value.
        most: The most that it may be.
        zero: What 0 means, for the message; empty where 0 is a value like any other.
    """
    check(key, 0 <= value <= most, f"must not be negative, and at most {most:,}, not {value:,}" + (f"; {zero}" if zero else ""))


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a `ReproError` that names the key and the nearest known value, unless the value is known."""
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
    hint = f"; did you mean '{near[0]}'?" if len(known) > 1 else ""
    check(key, value in known, f"unknown value '{value}', use {', '.join(known)}{hint}")


def is_sha256(text: str) -> bool:
    """Says whether a text is a SHA-256 in hexadecimal."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
