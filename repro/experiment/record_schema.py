"""The record's schema: what is read anywhere of a record, of which kind and within which bounds.

Kinds are msgspec's, which holds a record against them and writes them down as a JSON Schema (`docs/record.schema.json`). Keys that are not
listed here may stand beside. What one key says of another is `record_checks`'s.
"""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

MOST_LETTERS = 500  # of a text that is shown; a reason may be longer
# A record may come from anybody: no number that means something lies outside, and ratios and squares of those inside are finite.
LEAST, MOST = 1e-12, 1e18

Text = Annotated[str, Meta(max_length=MOST_LETTERS)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]+$", max_length=MOST_LETTERS, description="becomes part of a path")]
CellName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=MOST_LETTERS, description="becomes part of a path")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, in hexadecimal")]
Time = Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$", description="UTC, ISO 8601")]
Amount = Annotated[float, Meta(ge=0, le=MOST)]
Positive = Annotated[float, Meta(ge=LEAST, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=10**18)]
Fraction = Annotated[float, Meta(gt=0, le=1)]


class Cell(Struct):
    """One (method, size, seed) of the grid."""

    name: CellName
    method: Name
    seed: Count
    size: Fraction | None = None


class Variant(Struct):
    """What an ablation changes of another method."""

    of: Name
    factor: Text
    label: Text


class Size(Struct):
    """What the network is."""

    params: Count | None = None
    macs: Count | None = None
    macs_conv_linear: Count | None = None
    macs_torch_pruning: Amount | None = None
    realised: Amount | None = None
    widths: dict[str, list[Count]] | None = None


class Training(Struct):
    """What was trained, and what that took by count."""

    steps: Count | None = None
    batch_size: Count | None = None
    images: Count | None = None
    train_pflop: Amount | None = None
    scoring_pflop: Amount | None = None
    final_loss: Amount | None = None
    curve: list[tuple[Amount, Amount]] | None = None


class Sampler(Struct):
    """How samples were drawn."""

    name: Text | None = None
    steps: Count | None = None
    nfe: Count | None = None
    spacing: Text | None = None
    eta: Amount | None = None
    clip_sample: bool | None = None


class Reference(Struct):
    """What samples were held against."""

    name: Text | None = None
    n: Count | None = None
    sha256: Text | None = None


class Condition(Struct):
    """What the samples were conditioned on: each on what a random training image is."""

    name: Text
    num_classes: Annotated[int, Meta(ge=1)] | None = None


class Scale(Struct, kw_only=True):
    """What a quality is measured by: values of different scales are not compared."""

    metric: Name
    n_samples: Annotated[int, Meta(ge=1, le=10**12)]
    sampling_seeds: list[Count] | None = None
    tool: Text | None = None
    sampler: Sampler | None = None
    condition: Condition | None = None
    reference: Reference | None = None


class Opinion(Struct):
    """What another metric finds of the same samples."""

    metric: Name
    mean: Positive
    values: Annotated[list[Positive], Meta(min_length=1)]
    tool: Text | None = None


class Quality(Scale, kw_only=True):
    """The distance between samples and real images."""

    mean: Positive
    values: Annotated[list[Positive], Meta(min_length=1)]
    also: list[Opinion] | None = None


class Judged(Struct):
    """What was found of a size at a point: its loss on held-out images and, at some points, the metric of its samples."""

    validation_loss: Positive
    value: Positive | None = None


class Point(Struct):
    """A point on the way of a training, and what it had taken until there."""

    step: Annotated[int, Meta(ge=1, le=10**12)]
    images: Annotated[int, Meta(ge=1, le=10**18)]
    device_hours: Positive
    train_pflop: Positive
    sizes: dict[Text, Judged]


class Agreement(Struct):
    """How the sizes' gradients agree at a point: size -> norm, pair of sizes -> layer -> cosine; null where noise hides a gradient."""

    step: Count
    images: Count
    norms: dict[Text, Positive | None]
    cosines: dict[Text, dict[Text, Annotated[float, Meta(ge=-MOST, le=MOST)] | None]]


class Swapped(Struct):
    """What a group of weights did to the largest size's loss: given back to the base's, and alone taken over into the base."""

    params: Count
    given_back: Positive
    taken_over: Positive


class Swaps(Struct):
    """The largest size's validation loss before and after a joint training, and with groups of weights exchanged."""

    before: Positive
    after: Positive
    groups: dict[Text, Swapped]


class Interference(Struct):
    """How the sizes of a joint training interfere, from the base on."""

    batches: Annotated[int, Meta(ge=2)]
    batch_size: Annotated[int, Meta(ge=1)]
    points: Annotated[list[Agreement], Meta(min_length=1)]
    swaps: Swaps


class Curves(Struct):
    """A training judged on its way."""

    points: Annotated[list[Point], Meta(min_length=1)]
    validation: Reference
    metric: Scale | None = None
    cooldown: Amount | None = None
    interference: Interference | None = None


class Samples(Struct):
    """The strip of sample images beside the records."""

    file: Text
    count: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    sha256: Hash | None = None


class Latency(Struct):
    """The median time of one forward pass."""

    batch: Annotated[int, Meta(ge=1, le=2**24)]
    ms: Positive
    device_name: Text
    ms_quartiles: Annotated[list[Positive], Meta(min_length=2, max_length=2)] | None = None
    busy: bool | None = None
    threads: Count | None = None
    precision: Text | None = None


class Busy(Struct):
    """Whether other work shared the machine."""

    marked: bool


class Cost(Struct):
    """Device-hours, by phase, and the device."""

    device_name: Text
    ranks: Annotated[int, Meta(ge=1, le=10**6)]
    device_hours: Amount | None = None
    gpu_hours: Amount | None = None
    device: Literal["cpu", "cuda"] | None = None
    phases_device_hours: dict[Text, Amount] | None = None
    threads_per_rank: Count | None = None
    peak_memory_gib: Amount | None = None
    kwh: Amount | None = None
    busy: Busy | None = None


class Trained(Struct):
    """What the training of a base that came trained once cost."""

    device_hours: Amount
    device_name: Text
    train_pflop: Amount


class Base(Struct):
    """The base that a network descends from."""

    source: Text | None = None
    weights: Text | None = None
    sha256: Hash | None = None
    trained: Trained | None = None


class Made(Struct):
    """The bytes of what was made: the digest of its manifest, and of what it was made from."""

    sha256: Hash
    inputs: dict[Text, Hash]


class Provenance(Struct):
    """Where the numbers come from."""

    config: dict[str, Any] | None = None
    config_sha256: Text | None = None
    git_commit: Text | None = None
    git_dirty: bool | None = None
    command: str | None = None
    packages: dict[Text, Text | None] | None = None
    python: Text | None = None
    lives: Count | None = None
    started_utc: Time | None = None
    ended_utc: Time | None = None
    changed: list[str] | None = None


class Record(Struct):
    """One cell that has ended."""

    schema_version: Literal[1, 2]
    experiment: Name
    cell: Cell
    status: Literal["done", "failed"]
    provenance: Provenance
    reason: str | None = None
    trial: bool | None = None
    variant: Variant | None = None
    delivered_by: list[CellName] | None = None
    starts_from: CellName | None = None
    base: Base | None = None
    made: Made | None = None
    size: Size | None = None
    training: Training | None = None
    quality: Quality | None = None
    curves: Curves | None = None
    samples: Samples | None = None
    latency: list[Latency] | None = None
    cost: Cost | None = None
    sha256: Hash | None = None


def malformation(record: object) -> str:
    """Says which part of a record is not of its kind or out of its bounds; empty where all of it is as it has to be."""
    try:
        msgspec.convert(record, Record)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        return f"'{place.rstrip('`').lstrip('.')}': {said}" if place else said
    return ""


def json_schema() -> str:
    """Returns the JSON Schema of a record, as `docs/record.schema.json` holds it."""
    return json.dumps(msgspec.json.schema(Record), indent=2, sort_keys=True) + "\n"
