"""The estimate: cost of an experiment's cells on this machine, measured, and on data-centre GPUs, from their data sheets."""

from dataclasses import dataclass

from repro.budget.throughput import Rate, Throughput, measure
from repro.budget.work import stages
from repro.config import Config
from repro.experiment.cells import Cell, Experiment
from repro.experiment.stage import Stage
from repro.runtime.heartbeat import duration
from repro.text_table import text_table

# Dense peaks in TFLOP/s, from NVIDIA's data sheets (A100 and H100 SXM; H200's are H100's).
PEAKS = {
    "A100": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
    "H100/H200": {"bfloat16": 989.0, "tf32": 494.0, "float32": 67.0},
}
# What a GPU reaches of its peak. Published: DDPM's 35.7 M network trains at about 750 images a second on an RTX 4090; at 36.3 GFLOP
# for each (without attention's products) that is 27 TFLOP/s, 16 % of the card's 165 in bfloat16.
UTILISATION = 0.15
SHARED = ("training", "sampling", "features")  # by the ranks; the first does the rest alone


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The remaining work and the measured throughput of this machine.

    Attributes:
        config: The experiment.
        stages: The work.
        throughput: What was measured.
    """

    config: Config
    stages: list[Stage]
    throughput: Throughput

    def wall_hours(self, stage: Stage) -> float:
        """Returns the hours from begin to end of a stage on this machine."""
        ranks = self.throughput.ranks if stage.kind in SHARED else 1
        return _seconds(stage, self._measured()) / ranks / 3600 + stage.seconds / 3600

    def total_wall_hours(self) -> float:
        """Returns the hours from begin to end of everything on this machine."""
        return sum(self.wall_hours(stage) for stage in self.stages)

    def device_hours(self, stage: Stage) -> list[float]:
        """Returns the device-hours of a stage: here, and on each of the reference devices, of which there is one."""
        here = self.throughput.ranks * self.wall_hours(stage)
        return [here, *((_seconds(stage, self._stated(name)) + stage.seconds) / 3600 for name in PEAKS)]

    def text(self) -> str:
        """Returns the table and its assumptions."""
        here = "GPU-hours here" if self.throughput.on_gpu else "CPU-hours here"
        heading = ["stage", "images", "PFLOP", "disk GB", here, *(f"GPU-hours {name}" for name in PEAKS)]
        rows = [[stage.name, *_amounts(stage), *map(_hours, self.device_hours(stage))] for stage in self.stages]
        hours = [sum(column) for column in zip(*map(self.device_hours, self.stages), strict=True)]
        total = ["total", "", _number(sum(stage.pflop for stage in self.stages)), _number(disk_gb(self.stages)), *map(_hours, hours)]
        return "\n".join([*text_table([heading, *rows, total], "l" + "r" * len(total[1:])), "", *self._notes()])

    def _notes(self) -> list[str]:
        found = self.throughput
        memory = "" if found.peak_memory_gib is None else f", {found.peak_memory_gib:.1f} GiB"
        ranks = f"{found.ranks} rank{'s' * (found.ranks > 1)}"
        uncompiled = ", without torch.compile" if self.config.compute.compile else ""
        return [
            f"here: {found.device}, {ranks}: {duration(self.total_wall_hours())} from begin to end. Measured on each rank{uncompiled}: "
            f"training {_number(found.training_img_per_sec)} img/s at the largest size (batch {found.batch}{memory}), "
            f"sampling {_number(found.sampling_img_per_sec)} img/s with {self.config.evaluation.sampler_steps} steps.",
            f"A100, H100/H200: one device, at {UTILISATION:.0%} of the dense peak of NVIDIA's data sheet ({self._peaks()}), which is what "
            "the published 750 img/s of this kind of network on an RTX 4090 come to; not measured here. Small networks reach less.",
            "PFLOP: training 6 x MACs x images, sampling 2 x MACs x NFE x images. MACs by the plan of equal importances, those of pruned "
            "baselines by a uniform one: what is trained will differ a little.",
            "disk GB: what a stage leaves and what it needs while it runs; the total is what has to be free.",
        ]

    def _peaks(self) -> str:
        precisions = dict.fromkeys(precision_of(self.config, kind) for kind in SHARED[:2])
        return "; ".join(
            f"{name} {', '.join(f'{peaks[each]:g} TFLOP/s in {each}' for each in precisions)}" for name, peaks in PEAKS.items()
        )

    def _measured(self) -> dict[str, Rate]:
        return {kind: getattr(self.throughput, kind) for kind in SHARED}

    def _stated(self, device: str) -> dict[str, Rate]:
        peaks = {kind: PEAKS[device][precision_of(self.config, kind)] for kind in SHARED}
        return {kind: Rate(fixed_sec=0.0, sec_per_pflop=1e3 / (peak * UTILISATION)) for kind, peak in peaks.items()}


def precision_of(config: Config, kind: str) -> str:
    """Returns the precision of matrix products, by the kind of work; features are computed in full float32."""
    asked = {"training": config.compute.precision, "sampling": config.evaluation.precision}.get(kind, "float32")
    return "tf32" if asked == "float32" and config.compute.tf32 and kind != "features" else asked


def estimate(experiment: Experiment, cells: list[Cell]) -> Estimate:
    """Measures this machine and returns what cells that are still to be done take.

    Raises:
        ReproError: A batch does not fit the GPU's memory, or cannot be shared by the ranks.
    """
    return Estimate(config=experiment.config, stages=stages(experiment, cells), throughput=measure(experiment))


def disk_gb(parts: list[Stage]) -> float:
    """Returns the disk space to have free, in GB: all that stays, and the largest temporary amount of a stage."""
    return sum(stage.kept_gb for stage in parts) + max((stage.passing_gb for stage in parts), default=0.0)


def _seconds(stage: Stage, rates: dict[str, Rate]) -> float:
    return rates[stage.kind].seconds(stage.passes, stage.pflop) if stage.kind in rates else 0.0


def _amounts(stage: Stage) -> list[str]:
    images = f"{stage.images:,}" if stage.images else ""
    return [images, _number(stage.pflop), _number(stage.kept_gb + stage.passing_gb)]


def _number(value: float) -> str:
    """Returns a figure with about three digits; nothing for none."""
    if value == 0:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(value: float) -> str:
    return "<0.01" if 0 < value < 0.01 else _number(value)
