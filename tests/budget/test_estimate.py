"""What cells take: the work against hand counts, the machine's rates, the table."""

import dataclasses
import re
from collections import Counter

import pytest
import torch
from support.estimates import HERE, NAMES, cells_of, experiment
from support.networks import CIFAR10_NETWORK
from support.record_factory import make_record
from torch.utils.flop_counter import FlopCounterMode
from torch_fidelity import feature_extractor_inceptionv3

from repro.budget import estimate, throughput
from repro.budget.estimate import Estimate
from repro.budget.throughput import Rate, fit, measure
from repro.budget.work import stages, unfinished
from repro.config import SamplingLaw, changed, load_config
from repro.errors import ReproError
from repro.experiment.cells import Cell, plan_cells
from repro.experiment.records import write_record
from repro.experiment.stage import Stage, costs_of
from repro.methods.plan import plan_of
from repro.metrics.frechet import METRICS
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import build_base
from repro.ofa.importance import equal_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import named_law
from repro.ofa.supernet import Supernet
from repro.runtime.heartbeat import duration

BASE_PARAMS, BASE_MACS = 44969, 1042944


def stages_of(config, tmp_path, names=NAMES, seeds=(0,)):
    """Returns the stages by name."""
    return {stage.name: stage for stage in stages(experiment(config, tmp_path), cells_of(config, names, seeds))}


# What a size costs


@pytest.mark.parametrize("rule", ["gradual", "formula5", "uniform"])
def test_macs_and_parameters_are_those_of_the_extracted_subnets(tiny, tmp_path, rule):
    config = dataclasses.replace(tiny, allocation=dataclasses.replace(tiny.allocation, rule=rule))
    this = experiment(config, tmp_path)
    costs = costs_of(experiment(tiny, tmp_path).config, rule)
    base = build_base(tiny.network, seed=0)
    supernet = Supernet(base, pipes_of(base), plan_of(this, base, equal_importance(pipes_of(base))))
    for size in tiny.sizes.trained:
        subnet = supernet.extract(size)
        assert costs.macs[size] == count_macs(subnet, this.image_shape).total
        assert costs.params[size] == count_params(subnet.parameters())
    assert (costs.macs[1.0], costs.params[1.0]) == (BASE_MACS, BASE_PARAMS)


def test_macs_of_the_cifar10_network(tiny, tmp_path):
    network = dataclasses.replace(tiny.network, **CIFAR10_NETWORK, layers_per_block=2, norm_num_groups=32, attention_head_dim=0)
    config = dataclasses.replace(tiny, network=network)
    costs = costs_of(experiment(config, tmp_path).config, "uniform")
    assert costs.macs[1.0] == pytest.approx(6.222e9, rel=1e-3)  # 6.1 G without attention's products (Diff-Pruning, Table 1)
    assert costs.params[0.5] == pytest.approx(20.25e6, rel=1e-3)
    with torch.device("meta"):
        base = build_base(network, seed=0)
    uniform = dataclasses.replace(config, allocation=dataclasses.replace(config.allocation, rule="uniform"))
    plan = plan_of(experiment(uniform, tmp_path), base, equal_importance(pipes_of(base)))
    half = Supernet(base, pipes_of(base), plan).extract(0.5)
    assert costs.macs[0.5] == count_macs(half, (3, 32, 32)).total


LAWS = [
    SamplingLaw(),
    SamplingLaw(m=5),
    SamplingLaw(law="uniform"),
    SamplingLaw(law="weighted"),
    SamplingLaw(law="sandwich", sandwich_random=1),
]


def shares_of(sizes, law):
    return law_of(law).shares(sizes)


def law_of(settings):
    return named_law(**dataclasses.asdict(settings))


@pytest.mark.parametrize("law", LAWS)
def test_expected_shares_of_the_images_are_those_of_the_law(tiny, law):
    sizes, steps = tiny.sizes.trained, 20_000
    seen = Counter()
    for step in range(steps):
        drawn = law_of(law).draw(sizes, seed=0, step=step)
        for size in drawn:
            seen[size] += 1 / len(drawn)  # they share the batch out among them
    expected = shares_of(sizes, law)
    assert expected.keys() == set(sizes)
    assert sum(expected.values()) == pytest.approx(1)
    for size, share in expected.items():
        assert seen[size] / steps == pytest.approx(share, abs=0.015)  # 4 standard deviations


def test_sandwich_of_one_or_two_sizes_shares_the_images_evenly():
    law = SamplingLaw(law="sandwich")
    for trained in ((1.0,), (1.0, 0.5)):
        assert shares_of(trained, law) == dict.fromkeys(trained, 1 / len(trained))
        assert Counter(law_of(law).draw(trained, seed=0, step=0)) == dict.fromkeys(trained, 1)


@pytest.mark.parametrize(("metric", "layer"), [("fid", "2048"), ("fid768", "768")])
def test_inception_is_counted_up_to_its_layer(monkeypatch, metric, layer):
    inception = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_args, **_kwargs: {})
    monkeypatch.setattr(inception, "load_state_dict", lambda *_args: None)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inception("count", [layer])(torch.empty(1, 3, 32, 32, dtype=torch.uint8))
    assert counter.get_total_flops() == METRICS[metric].flop((3, 32, 32), load_config("digits"))


# The work


def test_training_and_sampling_agree_with_a_count_by_hand(tiny, tmp_path):
    found = stages_of(tiny, tmp_path)
    own, uniform = (costs_of(experiment(tiny, tmp_path).config, rule).macs for rule in ("gradual", "uniform"))
    base, joint, pruned = (found[f"{name}: training"] for name in ("base", "ofa_joint", "diff_pruning"))
    assert (base.images, base.passes, base.budget) == (12 * 16, 12 * 16, "base_training")
    assert base.pflop == pytest.approx(6 * BASE_MACS * 12 * 16 / 1e15)
    # Eq. 6 with m = 3 over 1, 0.75, 0.5, 0.25: weights 1, 5/3, 7/3, 3 of 8
    expected = (own[1.0] + 5 / 3 * own[0.75] + 7 / 3 * own[0.5] + 3 * own[0.25]) / 8
    assert (joint.images, joint.passes, joint.budget) == (8 * 16, pytest.approx(8 * 16), "ofa_training")
    assert joint.pflop == pytest.approx(6 * expected * 8 * 16 / 1e15)
    assert (pruned.images, pruned.passes, pruned.budget) == (2 * 4 * 16, 2 * 4 * 16, "baseline_training")
    assert pruned.pflop == pytest.approx(6 * (uniform[1.0] + uniform[0.5]) * 4 * 16 / 1e15)
    assert found["random: training"].pflop == pytest.approx(6 * uniform[0.5] * 4 * 16 / 1e15)
    sampled = found["ofa: sampling"]
    assert (sampled.images, sampled.passes) == (2 * 40, 2 * 40 * 3)
    assert sampled.pflop == pytest.approx(2 * (own[1.0] + own[0.5]) * 3 * 40 / 1e15)
    assert not any(name.startswith(("floor", "noise")) for name in found)


def test_importance_features_and_classifier_agree_with_a_count_by_hand(tiny, tmp_path):
    found = stages_of(tiny, tmp_path)
    for name in ("ofa_joint: importance", "untrained: importance"):
        assert found[name].images == 64
        assert found[name].pflop == pytest.approx(4 * BASE_MACS * 64 / 1e15)  # forward and once backward: activations' gradients alone
    assert "diff_pruning: importance, at most" not in found
    scored = found["diff_pruning_scores: importance, at most"]  # once for all sizes
    assert scored.images == 8 * 1000
    assert scored.pflop == pytest.approx(6 * BASE_MACS * 8 * 1000 / 1e15)
    # the reference, the two halves of the floor, noise, and 40 of base, untrained, ofa twice, diff_pruning twice, random
    assert found["features for fid_classifier"].images == 1797 + 2 * 898 + 40 + 7 * 40
    assert found["classifier: training"].images == 40 * 128
    assert found["all else"].seconds == pytest.approx(11 * (2 + 28 * BASE_PARAMS / 35.7e6))


def test_a_gradient_pass_is_counted_once_for_a_seed_and_by_the_timesteps_that_are_expected(tiny, tmp_path):
    config = changed(tiny, {"pruning.timesteps": 300})
    found = stages_of(config, tmp_path, seeds=(0, 1, 2))
    assert not any(name.endswith("at most") for name in found)
    assert found["diff_pruning_scores: importance"].images == 3 * 8 * 300
    assert found["diff_pruning_scores: importance"].pflop == pytest.approx(3 * 6 * BASE_MACS * 8 * 300 / 1e15)


def test_seeds_and_sampling_seeds_multiply_the_work(tiny, tmp_path):
    twice = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, sampling_seeds=(0, 1)))
    once, found = stages_of(tiny, tmp_path), stages_of(twice, tmp_path, seeds=(0, 1, 2))
    assert found["ofa_joint: training"].pflop == pytest.approx(3 * once["ofa_joint: training"].pflop)
    assert found["ofa: sampling"].pflop == pytest.approx(6 * once["ofa: sampling"].pflop)
    assert found["base: sampling"].pflop == pytest.approx(6 * once["base: sampling"].pflop)  # a base of its own for every seed
    assert found["base: training"].pflop == pytest.approx(3 * once["base: training"].pflop)
    assert found["base: training"].kept_gb == pytest.approx(3 * once["base: training"].kept_gb)


@pytest.mark.parametrize("source", ["path", "hub"])
def test_a_base_that_was_given_is_one_for_all_seeds(tiny, tmp_path, source):
    more = {"folder": "somewhere"} if source == "path" else {"repository": "google/ddpm-cifar10-32", "revision": "0" * 40}
    given = dataclasses.replace(tiny, base=dataclasses.replace(tiny.base, source=source, **more))
    once, found = stages_of(given, tmp_path), stages_of(given, tmp_path, seeds=(0, 1, 2))
    assert found["base: sampling"] == once["base: sampling"] and found["base: networks"] == once["base: networks"]
    assert found["ofa: sampling"].pflop == pytest.approx(3 * once["ofa: sampling"].pflop)


def test_sandwich_shares_the_images_of_a_step_among_several_sizes(tiny, tmp_path):
    config = dataclasses.replace(tiny, sampling_law=SamplingLaw(law="sandwich", sandwich_random=2))
    joint, own = stages_of(config, tmp_path)["ofa_joint: training"], costs_of(experiment(tiny, tmp_path).config, "gradual").macs
    assert (joint.images, joint.passes) == (8 * 16, 8 * 16)
    assert joint.pflop == pytest.approx(6 * sum(own[size] for size in (1.0, 0.75, 0.5, 0.25)) / 4 * 8 * 16 / 1e15)


def test_disk_holds_networks_checkpoints_samples_and_reference_features(tiny, tmp_path):
    found = stages_of(tiny, tmp_path)
    base, pruned = found["base: training"], found["diff_pruning: training"]
    half = costs_of(experiment(tiny, tmp_path).config, "uniform").params[0.5]
    assert base.kept_gb == pytest.approx(4 * BASE_PARAMS / 1e9)
    assert base.passing_gb == pytest.approx(3 * 4 * 4 * BASE_PARAMS / 1e9)  # two that are kept, and the next
    assert pruned.kept_gb == pytest.approx(4 * (BASE_PARAMS + half) / 1e9)
    assert found["diff_pruning_scores: gradients"].kept_gb == pytest.approx(4 * BASE_PARAMS / 1e9)
    assert found["ofa: sampling"].passing_gb == pytest.approx(40 * 64 / 1e9)
    assert found["features for fid_classifier"].kept_gb == 0
    inception = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, metric="fid", reference_images=100))
    assert stages_of(inception, tmp_path)["features for fid"].kept_gb == pytest.approx(4 * 100 * 2048 / 1e9)
    # all that stays, and the largest of what passes
    parts = [Stage(name="a", kind="other", kept_gb=1, passing_gb=5), Stage(name="b", kind="other", kept_gb=2, passing_gb=3)]
    assert estimate.disk_gb(parts) == 8


def test_downloads_count_until_they_are_there(tmp_path):
    config = load_config("cifar10", ["sizes.trained=[1.0, 0.5]", "sizes.reported=[1.0, 0.5]"])
    gb = stages_of(config, tmp_path)["data and weights"].kept_gb
    assert gb == pytest.approx(0.171 + 0.096 + 4 * 35.746e6 / 1e9, rel=1e-3)  # archive, Inception, base
    for path in ("data/cifar-10-python.tar.gz", "weights-inception-2015-12-05-6726825d.pth", "hub/models"):
        (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / path).touch()
    assert "data and weights" not in stages_of(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "images", "params"),
    [  # published numbers of images and parameters; EDM's network for FFHQ has 9 x 128 more, for the label of its augmentation
        ("ffhq64_edm", 70_000, 61_805_571),
        ("imagenet64_edm", 1_281_167, 295_899_267),
        ("celeba64_uvit", 162_770, 44_292_228),
    ],
)
def test_a_known_data_set_is_estimated_without_its_images(name, images, params, tmp_path):
    config = load_config(name, ["sizes.trained=[1.0, 0.25]", "sizes.reported=[1.0, 0.25]"])
    this = experiment(config, tmp_path)
    cells = plan_cells(this, ["base", "ofa"], None, [0])
    found = {stage.name: stage for stage in stages(this, cells)}
    assert found["base: training"].kept_gb == pytest.approx(4 * params / 1e9, rel=1e-9)
    assert found["features for fid"].images == images + 3 * 50_000
    decoded = 3 * 64 * 64 * images
    assert found["data and weights"].kept_gb == pytest.approx((decoded + 96_000_000) / 1e9)
    (tmp_path / "cache" / "data").mkdir(parents=True)
    with (tmp_path / "cache" / "data" / "folder-of-this-size.npy").open("wb") as file:
        file.truncate(decoded + 128)
    assert {stage.name: stage for stage in stages(this, cells)}["data and weights"].kept_gb == pytest.approx(0.096)


def test_what_is_done_or_made_is_left_out(tiny, tmp_path):
    this = experiment(tiny, tmp_path)
    cells = cells_of(tiny)
    noise = Cell(method="noise", size=None, seed=0)
    write_record(this.results, make_record("noise", None, experiment="tiny") | {"provenance": {"config_sha256": tiny.sha256()}})
    assert [cell for cell in cells if cell not in unfinished(this, cells)] == [noise]
    folder = this.folder(Cell(method="base", size=1.0, seed=0))
    folder.mkdir(parents=True)
    (folder / "made.json").touch()
    found = {stage.name for stage in stages(this, cells)}
    assert "base: training" not in found
    assert "base: sampling" in found
    assert "base: training" in {stage.name for stage in stages(this, cells, afresh=True)}


def test_base_that_was_trained_elsewhere_costs_no_training(tiny, tmp_path):
    config = dataclasses.replace(tiny, base=dataclasses.replace(tiny.base, source="path", folder="somewhere"))
    found = stages_of(config, tmp_path)
    assert "base: training" not in found
    assert found["base: networks"].kept_gb == pytest.approx(4 * BASE_PARAMS / 1e9)
    assert found["base: sampling"].images == 40


# The machine


def test_fit_finds_what_does_not_shrink_with_the_width():
    rate = fit((4e15, 1e15), [0.1 + 4 * 0.5, 0.1 + 0.5])
    assert (rate.fixed_sec, rate.sec_per_pflop) == (pytest.approx(0.1), pytest.approx(0.5))
    assert rate.seconds(10, 3) == pytest.approx(1 + 1.5)


@pytest.mark.parametrize("small", [0.1, 0.5, 2.0, 3.0])
def test_fit_never_goes_below_zero_and_holds_at_full_size(small):
    rate = fit((4e15, 1e15), [2.0, small])
    assert rate.fixed_sec >= 0 and rate.sec_per_pflop >= 0
    assert rate.seconds(1, 4) == pytest.approx(2.0)


def test_fit_to_one_size_is_proportional():
    assert fit((2e15, 2e15), [1.0, 1.1]) == Rate(fixed_sec=0.0, sec_per_pflop=0.5)


def test_measurement_runs_the_real_loop_and_sampler(tiny, tmp_path, monkeypatch):
    steps = []
    train = throughput.train
    monkeypatch.setattr(
        throughput, "train", lambda module, run, settings, *rest: steps.append(settings) or train(module, run, settings, *rest)
    )
    found = measure(experiment(tiny, tmp_path))
    assert (found.ranks, found.on_gpu) == (1, torch.cuda.is_available())
    assert found.batch == 16  # the configuration's: this network is small enough for it
    assert found.peak_memory_gib > 0.05
    assert {settings.batch_size for settings in steps} == {16}
    assert [settings.steps for settings in steps] == ([30] if found.on_gpu else [1, 6])  # on a CPU one step says first how long it takes
    forward = 2 * BASE_MACS / 1e15
    assert found.training.seconds(1, 3 * forward) == pytest.approx(1 / found.training_img_per_sec)
    assert found.sampling.seconds(3, 3 * forward) == pytest.approx(1 / found.sampling_img_per_sec)
    assert 1 < found.training_img_per_sec < 1e6
    assert found.sampling_img_per_sec > found.training_img_per_sec / 10
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no such steps")
def test_steps_of_many_seconds_are_taken_once_at_each_size(tiny, tmp_path, monkeypatch):
    steps = []
    train = throughput.train
    monkeypatch.setattr(
        throughput, "train", lambda module, run, settings, *rest: steps.append(settings.steps) or train(module, run, settings, *rest)
    )
    monkeypatch.setattr(throughput, "SLOW_STEP_SEC", 0.0)
    assert 1 < measure(experiment(tiny, tmp_path)).training_img_per_sec < 1e6
    assert steps == [1, 1]


def test_batch_that_does_not_fit_the_gpu_is_named(tiny, tmp_path, monkeypatch):
    def full(*_arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "train", full)
    with pytest.raises(ReproError, match=r"ofa_training.batch_size: 16 images do not fit this GPU.s memory even in parts; end what else"):
        measure(experiment(tiny, tmp_path))


def test_large_network_is_measured_in_small_batches_on_a_cpu(tiny):
    if torch.cuda.is_available():
        pytest.skip("a GPU is measured at the configured batch")
    assert throughput._batch(load_config("cifar10"), 2 * 6.2e9) == 2
    assert throughput._batch(tiny, 2 * BASE_MACS) == 16


# The table


def shown(config, parts, found=HERE):
    return Estimate(config=config, stages=parts, throughput=found)


def test_hours_are_those_of_the_rates_and_add_up(tiny):
    parts = [
        Stage(name="a: training", kind="training", images=3600, passes=3600, pflop=36),
        Stage(name="a: sampling", kind="sampling", images=10, passes=100, pflop=72),
        Stage(name="features", kind="features", images=10, pflop=18),
        Stage(name="all else", kind="other", seconds=1800),
    ]
    found = shown(tiny, parts)
    assert [found.wall_hours(stage) for stage in parts] == pytest.approx([0.001 + 1, 1, 1, 0.5])
    assert found.total_wall_hours() == pytest.approx(3.501)
    tf32 = 36e15 / (156e12 * 0.15) / 3600
    assert found.device_hours(parts[0]) == pytest.approx([1.001, tf32, 36e15 / (494e12 * 0.15) / 3600])
    assert found.device_hours(parts[2])[1] == pytest.approx(18e15 / (19.5e12 * 0.15) / 3600)  # features: never TF32
    assert found.device_hours(parts[3]) == [0.5, 0.5, 0.5]


def test_ranks_share_passes_of_networks_and_pay_for_the_time_of_all(tiny):
    parts = [
        Stage(name="a: training", kind="training", pflop=36),
        Stage(name="features", kind="features", pflop=18),
        Stage(name="all else", kind="other", seconds=3600),
    ]
    found = shown(tiny, parts, dataclasses.replace(HERE, ranks=4))
    assert [found.wall_hours(stage) for stage in parts] == pytest.approx([0.25, 0.25, 1])
    assert [found.device_hours(stage)[0] for stage in parts] == pytest.approx([1, 1, 4])
    assert "a device, 4 ranks: 90 min from begin to end" in found.text()


def test_bfloat16_counts_with_its_own_peak(tiny):
    config = dataclasses.replace(tiny, compute=dataclasses.replace(tiny.compute, precision="bfloat16"))
    part = Stage(name="a: training", kind="training", pflop=36)
    assert shown(config, [part]).device_hours(part)[1:] == pytest.approx([36e3 / (312 * 0.15) / 3600, 36e3 / (989 * 0.15) / 3600])
    untouched = dataclasses.replace(tiny, compute=dataclasses.replace(tiny.compute, tf32=False))
    assert shown(untouched, [part]).device_hours(part)[1] == pytest.approx(36e3 / (19.5 * 0.15) / 3600)


def test_table_has_a_row_for_each_stage_and_totals(tiny, tmp_path):
    parts = stages(experiment(tiny, tmp_path), cells_of(tiny))
    lines = shown(tiny, parts).text().splitlines()
    assert [line.split("  ")[0] for line in lines[1 : 1 + len(parts)]] == [part.name for part in parts]
    total = lines[1 + len(parts)]
    assert total.startswith("total")
    assert f"{sum(part.pflop for part in parts):.3g}" in total.split()
    heading, *ends = ([cell.end() for cell in re.finditer(r"\S+(?: \S+)*", line)][1:] for line in lines[: 2 + len(parts)])
    assert ends[-1] and all(set(row) <= set(heading) for row in ends)  # all numbers stand under their headings
    assert "assumed" not in total


def test_hours_of_a_cpu_are_never_called_gpu_hours(tiny):
    part = [Stage(name="a: training", kind="training", pflop=36)]
    assert "CPU-hours here" in shown(tiny, part).text()
    assert "GPU-hours here" not in shown(tiny, part).text()
    assert "GPU-hours here" in shown(tiny, part, dataclasses.replace(HERE, on_gpu=True)).text()


def test_table_says_what_it_rests_on(tiny):
    compiled = dataclasses.replace(tiny, compute=dataclasses.replace(tiny.compute, compile=True))
    text = shown(compiled, [Stage(name="a: training", kind="training", pflop=36)]).text()
    for words in (
        "a device, 1 rank",
        "10 img/s",
        "batch 2",
        "without torch.compile",
        "15%",
        "A100 156 TFLOP/s in tf32",
        "RTX 4090",
        "6 x MACs",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("hours", "text"), [(0.01, "36 s"), (0.5, "30 min"), (3, "3 h"), (50, "2.08 days"), (24 * 365.25 * 9, "9 years"), (2e8, "22,815 years")]
)
def test_duration_has_a_unit_that_suits_it(hours, text):
    assert duration(hours) == text


CURVES = ("data.held_out=97", "curves.points=3", "curves.span=4", "curves.metric_points=2", "curves.samples=20", "curves.triples=64")


def test_judging_trainings_on_their_way_is_counted(tiny, tmp_path):
    def rows(*settings):
        return stages_of(load_config("tests/tiny.toml", list(settings)), tmp_path, names=["ofa"])

    plain, curved, branched = rows(), rows(*CURVES), rows(*CURVES, "curves.cooldown=0.5")
    added = curved["ofa_joint: curves"]
    assert curved.keys() - plain.keys() == {"ofa_joint: curves"} and added.kind == "sampling"
    assert added.images == 2 * 2 * 20  # two sizes at two points
    nfe = plain["ofa: sampling"].passes / plain["ofa: sampling"].images
    assert added.passes == added.images * nfe + 2 * 3 * 64  # and the validation loss of both at three points
    assert curved["features for fid_classifier"].images == plain["features for fid_classifier"].images - 97 + 80
    extra = branched["ofa_joint: cool-downs"]
    assert extra.images == round(0.5 * (2 + 4 + 8)) * 16 and extra.kind == "training"
    assert extra.pflop == pytest.approx(branched["ofa_joint: training"].pflop * 7 / 8)
    measured = rows(*CURVES, "curves.interference=8")
    settings, macs = tiny.ofa_training, costs_of(tiny, "gradual").macs
    gradients = 4 * 8 * settings.batch_size  # at three points and at the base
    assert measured["ofa_joint: curves"].pflop - added.pflop == pytest.approx(
        6 * gradients * sum(macs[size] for size in tiny.sizes.trained) / 1e15
    )
    assert measured["ofa_joint: training"] == curved["ofa_joint: training"]
