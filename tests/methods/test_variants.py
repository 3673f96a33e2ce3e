"""The variants: what each changes, that it changes nothing else, and the parts of the method that only they use."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.commands import typed
from support.record_factory import rewrite
from torch import nn

from repro.cli import main
from repro.config import SHIPPED, changed, load_config
from repro.diffusion.formulation import NoisyBatch, distillation_losses, image_losses
from repro.errors import ReproError
from repro.experiment.cells import Experiment, plan_cells
from repro.grid import METHODS
from repro.methods.variants import TRAINED_ALONE, TRAINED_ONCE, chain, compute_ratio
from repro.models.cost import count_macs
from repro.models.denoiser import build_base
from repro.ofa.accounting import pipe_macs
from repro.ofa.allocation import kept_channels, make_plan, ranking, rankings
from repro.ofa.importance import other_scores
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import draw_widths, linear_law, named_law
from repro.ofa.supernet import Supernet

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
SIZES = (1.0, 0.75, 0.5, 0.25)
VARIANTS = {name: method for name, method in METHODS.items() if method.variant}


def importance_of(pipes, seed=0):
    stream = torch.Generator().manual_seed(seed)
    scores = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
    return {p.name: scores[p.name][: p.units].repeat(p.groups) if p.kind == "attention" else scores[p.name] for p in pipes}


def plan_for(base, **settings):
    pipes = pipes_of(base)
    count = sum(parameter.numel() for parameter in base.parameters())
    return pipes, make_plan(pipes, importance_of(pipes), SIZES, params_base=count, rule="gradual", floor=0.25, **settings)


def inputs(count=3):
    stream = torch.Generator().manual_seed(2)
    return torch.randn(count, 1, 8, 8, generator=stream), torch.randint(0, 1000, (count,), generator=stream)


# Ranking and GroupNorm


def test_regrouping_keeps_the_best_of_the_whole_layer(base):
    for pipe in pipes_of(base):
        score = importance_of((pipe,))[pipe.name]
        order = ranking(pipe, score, groupnorm="regroup")
        assert sorted(order.flatten().tolist()) == list(range(pipe.width))
        for units in range(1, pipe.units + 1):
            kept = kept_channels(order, units)
            if pipe.kind == "conv":
                assert set(kept) == set(score.argsort(descending=True)[: units * pipe.groups].tolist())
            else:
                assert kept == kept_channels(ranking(pipe, score), units)


def test_regrouped_plans_are_nested_and_as_large_and_keep_other_channels(base):
    _, keep = plan_for(base)
    _, regroup = plan_for(base, groupnorm="regroup")
    assert regroup.kept != keep.kept
    for larger, smaller in pairwise(SIZES):
        assert all(set(regroup.kept[smaller][name]) <= set(regroup.kept[larger][name]) for name in regroup.kept[larger])
    counts = [{size: {name: len(kept) for name, kept in plan.kept[size].items()} for size in SIZES} for plan in (keep, regroup)]
    # What a unit is worth differs, so the widths may: the size is met all the same.
    assert all(abs(regroup.params[size] / keep.params[size] - 1) < 0.03 for size in SIZES), counts


def test_scores_say_which_channels_are_kept_and_importances_how_many(base):
    _, plain = plan_for(base)
    _, prefix = plan_for(base, scores=other_scores(base, pipes_of(base), "prefix", 0))
    assert prefix.params == plain.params and prefix.kept != plain.kept
    for pipe in pipes_of(base):
        assert len(prefix.kept[0.5][pipe.name]) == len(plain.kept[0.5][pipe.name])
        units = len(prefix.kept[0.5][pipe.name]) // pipe.groups
        assert prefix.kept[0.5][pipe.name] == tuple(group * pipe.units + index for group in range(pipe.groups) for index in range(units))


def test_magnitude_agrees_with_a_sum_over_every_weight(base):
    pipes = pipes_of(base)
    found = other_scores(base, pipes, "magnitude", 0)
    for pipe in pipes:
        expected = []
        for channel in range(pipe.width):
            rows = sum(base.get_submodule(name).weight[channel].abs().sum().item() for name in pipe.producers)
            columns = sum(base.get_submodule(name).weight[:, channel].abs().sum().item() for name in pipe.consumers)
            expected.append(rows + columns)
        if pipe.kind == "attention":
            expected = [sum(expected[head * pipe.units + i % pipe.units] for head in range(pipe.groups)) for i in range(pipe.width)]
        assert found[pipe.name].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_random_ranking_depends_on_its_seed_alone_and_is_shared_by_heads(base):
    pipes = pipes_of(base)
    first, again, other = (other_scores(base, pipes, "random", seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    for pipe in pipes:
        if pipe.kind == "attention":
            heads = first[pipe.name].view(pipe.groups, pipe.units)
            assert torch.equal(heads, heads[:1].expand_as(heads))


def test_an_unknown_ranking_is_an_error(base):
    with pytest.raises(ReproError, match="unknown ranking 'best'"):
        other_scores(base, pipes_of(base), "best", 0)


@pytest.mark.parametrize("groupnorm", ["keep", "regroup"])
def test_a_subnet_computes_what_the_extracted_one_does_however_it_is_grouped(base, groupnorm):
    pipes, plan = plan_for(base, groupnorm=groupnorm)
    supernet = Supernet(base, pipes, plan).eval()
    for size in SIZES:
        assert torch.equal(supernet(size, *inputs(), return_dict=False)[0], supernet.extract(size)(*inputs(), return_dict=False)[0])


# The open candidate set


def test_kept_channels_may_be_given_in_place_of_a_size(base):
    pipes, plan = plan_for(base)
    supernet = Supernet(base, pipes, plan).eval()
    for size in SIZES:
        kept = {name: torch.tensor(channels) for name, channels in plan.kept[size].items()}
        assert torch.equal(supernet(kept, *inputs(), return_dict=False)[0], supernet(size, *inputs(), return_dict=False)[0])


def test_any_mixture_of_widths_is_a_subnet_and_gives_gradients_to_what_it_keeps_alone(base):
    pipes, plan = plan_for(base)
    supernet = Supernet(base, pipes, plan)
    order = rankings(pipes, importance_of(pipes))
    units = {pipe.name: pipe.units if index % 2 else 1 for index, pipe in enumerate(pipes)}
    kept = {name: torch.tensor(kept_channels(order[name], count)) for name, count in units.items()}
    supernet(kept, *inputs(), return_dict=False)[0].square().sum().backward()
    for pipe in pipes:
        if pipe.kind == "conv":
            touched = base.get_parameter(f"{pipe.name}.conv1.weight").grad.flatten(1).abs().sum(dim=1).nonzero().flatten().tolist()
            assert touched == kept[pipe.name].tolist()


def test_widths_are_drawn_for_every_pipe_on_its_own_between_floor_and_whole():
    units, floors = {"a": 4, "b": 8, "c": 1}, {"a": 1, "b": 2, "c": 1}
    drawn = [draw_widths(units, floors, seed=0, step=step) for step in range(4000)]
    assert drawn[:50] == [draw_widths(units, floors, seed=0, step=step) for step in range(50)]
    assert drawn[:50] != [draw_widths(units, floors, seed=1, step=step) for step in range(50)]
    for name, whole in units.items():
        counts = Counter(widths[name] for widths in drawn)
        choices = whole - floors[name] + 1
        assert set(counts) == set(range(floors[name], whole + 1))
        assert all(count / 4000 == pytest.approx(1 / choices, abs=0.04) for count in counts.values())
    pairs = Counter((widths["a"], widths["b"]) for widths in drawn)
    assert len(pairs) == 4 * 7  # independent of one another


def test_macs_of_any_widths_follow_from_those_of_the_pipes(tiny):
    with torch.device("meta"):
        base = build_base(tiny.network, seed=0)
    pipes, plan = plan_for(base)
    shares, whole = pipe_macs(base, pipes, (1, 8, 8)), count_macs(base, (1, 8, 8)).total
    for size in SIZES:
        expected = count_macs(Supernet(base, pipes, plan).extract(size), (1, 8, 8)).total
        assert whole - sum(shares[p.name] * (1 - len(plan.kept[size][p.name]) / p.width) for p in pipes) == pytest.approx(expected)


# Losses


def test_loss_weights_have_the_shape_of_the_law_and_a_mean_of_one():
    weights = [named_law("weighted", m=3.0, sandwich_random=2).weight(size, SIZES) for size in SIZES]
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert [weight / 4 for weight in weights] == pytest.approx(linear_law(SIZES, 3.0))
    assert weights[-1] / weights[0] == pytest.approx(3)
    assert {
        named_law(law, m=3.0, sandwich_random=2).weight(size, SIZES) for size in SIZES for law in ("linear", "uniform", "sandwich")
    } == {1.0}


def batch_of(count):
    noisy, timesteps = inputs(count)
    return NoisyBatch(noisy=noisy, target=noisy.flip(0), timesteps=timesteps)


def test_shares_of_a_batch_are_equal_and_make_up_the_batch():
    batch = batch_of(12)
    parts = batch.shares(4)
    assert [len(part.target) for part in parts] == [3] * 4
    assert torch.equal(torch.cat([part.noisy for part in parts]), batch.noisy)
    assert torch.equal(torch.cat([part.timesteps for part in parts]), batch.timesteps)


def test_distillation_moves_the_target_from_the_noise_to_the_teacher():
    batch, layer = batch_of(5), nn.Conv2d(1, 1, 1)
    teacher = nn.Conv2d(1, 1, 1)

    def of(module):
        return lambda images, _timesteps: module(images)

    plain = image_losses(of(layer), batch)
    assert torch.allclose(distillation_losses(of(layer), of(teacher), batch, 0.0), plain)
    to_teacher = (layer(batch.noisy) - teacher(batch.noisy)).square().flatten(1).mean(dim=1)
    assert torch.allclose(distillation_losses(of(layer), of(teacher), batch, 1.0), to_teacher)
    half = distillation_losses(of(layer), of(teacher), batch, 0.5)
    assert torch.allclose(half, (plain + to_teacher) / 2)
    half.sum().backward()
    assert teacher.weight.grad is None and layer.weight.grad is not None


# What a variant is


def leaves(config):
    return {
        f"{section}.{key}": value
        for section, values in config.as_dict().items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.toml")])
def test_a_variant_changes_the_keys_that_it_names_and_no_other_in_every_shipped_configuration(name):
    config = load_config(name)
    for method in VARIANTS.values():
        named = method.variant.changes(config)
        mine = leaves(method.config(config))
        differing = {key for key, value in leaves(config).items() if mine[key] != value}
        assert differing <= set(named), method.name
        assert all(json.loads(json.dumps(value)) == mine[key] for key, value in named.items()), method.name


def test_every_ablation_but_a_fine_tune_differs_from_its_default_on_digits():
    config = load_config("digits")
    for name, method in VARIANTS.items():
        assert (method.config(config) != config) == (name != "ofa_finetuned"), name
        assert method.sizes(config)


@pytest.mark.parametrize(("name", "share"), [("ofa_apart_25", 0.25), ("ofa_apart_50", 0.5), ("ofa_apart_75", 0.75)])
def test_a_joint_run_and_what_follows_it_apart_take_the_compute_of_one_joint_run(name, share):
    config = load_config("digits")
    mine = METHODS[name].config(config)
    _, _, planned = macs_by_hand(config)
    joint = sum(part * macs for part, macs in zip((1 / 8, 5 / 24, 7 / 24, 3 / 8), planned, strict=True))
    whole = config.ofa_training.steps * joint
    assert mine.ofa_training.steps == (1 - share) * config.ofa_training.steps
    assert mine.finetuning.steps * sum(planned) == pytest.approx(share * whole, rel=0.02)
    assert mine.ofa_training.steps * joint + mine.finetuning.steps * sum(planned) == pytest.approx(whole, rel=0.01)


def test_size_1_alone_leaves_nothing_below_it():
    config = load_config("digits", ["sizes.trained=[1.0]", "sizes.reported=[1.0]"])
    assert METHODS["ofa_below"].config(config) == config and not METHODS["ofa_below"].sizes(config)
    assert METHODS["ofa_below"].sizes(load_config("digits")) == (0.75, 0.5, 0.25)


@pytest.mark.parametrize("count", [5, 28])
def test_a_chain_holds_a_third_once(count):
    config = load_config("digits")
    third = dataclasses.replace(config.sizes, trained=(1.0, 1 / 3) if count == 5 else (1.0, 1 / 3, 0.1), reported=(1.0, 1 / 3))
    sizes = chain(dataclasses.replace(config, sizes=third), count)
    assert len(sizes) == count and 1 / 3 in sizes
    assert min(larger - smaller for larger, smaller in pairwise(sizes)) > 0.01


def root_of(config, folder=Path()):
    return Experiment(config=config, methods=METHODS, results=folder, runs=folder, source="")


def test_a_variant_that_changes_nothing_has_no_cells(tiny):
    with_m1 = changed(tiny, {"sampling_law.m": 1.0})
    assert not METHODS["ofa_m1"].sizes(with_m1) and not METHODS["ofa_m1_joint"].sizes(with_m1)
    assert plan_cells(root_of(with_m1), ["ofa_m1"], None, [0]) == []
    assert METHODS["ofa_m5"].sizes(with_m1) == with_m1.sizes.reported


def test_a_chain_is_even_and_holds_the_reported_sizes():
    digits, paper = load_config("digits"), load_config("cifar10")
    assert chain(digits, 7) == (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
    assert chain(digits, 31) == chain(paper, 31) == paper.sizes.trained
    assert not METHODS["ofa_n31"].sizes(paper)


def macs_by_hand(config):
    """MACs of one forward pass: of the base, of every size affine in P, and of every subnet, extracted where all channels are alike."""
    with torch.device("meta"):
        base = build_base(config.network, seed=0)
    whole, pipes = count_macs(base, (1, 8, 8)).total, pipes_of(base)
    inside = sum(pipe_macs(base, pipes, (1, 8, 8)).values())
    alike = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    params = sum(parameter.numel() for parameter in base.parameters())
    supernet = Supernet(base, pipes, make_plan(pipes, alike, SIZES, params_base=params, rule=config.allocation.rule, floor=0.25))
    return whole, [whole - (1 - size) * inside for size in SIZES], [count_macs(supernet.extract(size), (1, 8, 8)).total for size in SIZES]


@pytest.mark.parametrize(("timesteps", "counted"), [(0, 1000), (300, 300)])
def test_equal_compute_counts_training_and_what_scores_the_channels_on_both_sides(timesteps, counted):
    config = load_config("digits", [f"pruning.timesteps={timesteps}"])
    whole, affine, planned = macs_by_hand(config)
    assert planned[0] == affine[0] == whole and planned[2] > 1.05 * affine[2]  # the rule keeps more of the pipes at high resolution
    images = config.ofa_training.steps * config.ofa_training.batch_size
    assert images == config.baseline_training.steps * config.baseline_training.batch_size == 102_400
    shares = (1 / 8, 5 / 24, 7 / 24, 3 / 8)  # m = 3: 1, 5/3, 7/3, 3 over 8
    joint, alone = images * sum(share * cost for share, cost in zip(shares, planned, strict=True)), images * sum(affine)
    diff_pruning = config.pruning.images * counted * whole  # a forward and a backward pass, as a training image
    formula4 = config.importance.images * whole * 2 / 3  # the gradients of activations alone: two passes in place of three
    assert config.pruning.images == 32 and config.importance.images == 1024
    assert compute_ratio(config) == pytest.approx((alone + diff_pruning) / (joint + formula4))
    long, short = (METHODS[name].config(config) for name in ("ofa_long", "diff_pruning_short"))
    steps = long.ofa_training.steps
    assert (steps - 0.5) * joint / 800 <= alone + diff_pruning - formula4 <= (steps + 0.5) * joint / 800
    steps = short.baseline_training.steps
    assert (steps - 0.5) * alone / 800 <= joint + formula4 - diff_pruning <= (steps + 0.5) * alone / 800


def test_identities_follow_the_method_and_leave_the_base_shared(tiny, tmp_path):
    root = root_of(tiny, tmp_path)
    (base, joint), (_, varied) = (plan_cells(root, [name], None, [0])[:2] for name in ("ofa_joint", "ofa_m1_joint"))
    inside = root.of(varied)
    assert root.of(joint) is root
    assert inside.config.sampling_law.m == 1.0 and inside.of(base).config == tiny
    assert inside.identity(base) == root.identity(base)
    assert inside.identity(varied) == root.identity(varied) != root.identity(joint)
    assert inside.config.sha256() in root.identity(varied)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('allocation.ranking="best"', "allocation.ranking: unknown value 'best', use importance, magnitude, random, prefix"),
        ('allocation.groupnorm="mix"', "allocation.groupnorm: unknown value 'mix'"),
        ('sizes.candidates="all"', "sizes.candidates: unknown value 'all', use chain, open"),
        ("ofa_training.distillation=1.5", "ofa_training.distillation: must lie in"),
        ("base_training.distillation=0.5", "base_training.distillation: must be 0"),
        ("compute.threads=-1", "compute.threads: must lie in"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_key(setting, told):
    with pytest.raises(ReproError, match=told):
        load_config(str(TINY), [setting])


def test_an_open_set_has_nothing_to_compile():
    with pytest.raises(ReproError, match=r"sizes.candidates: an open set has no subnets to compile; set compute.compile = false"):
        load_config(str(TINY), ['sizes.candidates="open"', "compute.compile=true"])


# As a user runs them


def repro(*arguments, cwd):
    return typed(main, *arguments, cwd=cwd)


def process(*arguments, cwd):
    """Does as `repro` does in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "repro", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def words(methods):
    return "run", "--config", TINY, "--methods", methods, "--sizes", "0.5", "--results", "results", "--runs", "runs"


RUN = "ofa,ofa_open,ofa_sandwich,ofa_weighted,ofa_regroup,ofa_distilled,ofa_finetuned,ofa_below,ofa_apart_50,slimmable,diff_pruning_short"


@pytest.fixture(scope="module")
def flow(trained, tmp_path_factory):
    """Variants of every kind, run once at half size, beside the cells that all tests share."""
    folder = trained.copied(tmp_path_factory.mktemp("variants"))
    done = repro(*words(RUN), cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "results" / "tiny").glob("*.json")}
    return SimpleNamespace(folder=folder, records=records)


@pytest.mark.slow
def test_records_say_what_was_varied_and_under_which_configuration(flow, tiny):
    for name, record in flow.records.items():
        method = METHODS[record["cell"]["method"]]
        assert record["status"] == "done", name
        assert record["provenance"]["config_sha256"] == method.config(tiny).sha256()
        if method.variant is None:
            assert record["variant"] is None
        else:
            assert (record["variant"]["of"], record["variant"]["factor"]) == (method.variant.of, method.variant.factor)
            assert record["variant"]["changes"] == json.loads(json.dumps(method.variant.changes(tiny)))
    assert flow.records["ofa_open-0.5-seed0"]["delivered_by"] == ["ofa_open_joint-seed0"]


@pytest.mark.slow
def test_every_joint_run_costs_as_many_images(flow):
    joint = {name: record["training"] for name, record in flow.records.items() if "_joint" in name}
    assert len(joint) == 10 - 1  # a fine-tune has none of its own
    assert joint.pop("ofa_apart_50_joint-seed0")["images"] == 4 * 16  # the rest of its compute is spent apart
    assert {training["images"] for training in joint.values()} == {8 * 16}
    assert len({training["final_loss"] for training in joint.values()}) == len(joint)  # each of them trains otherwise
    assert joint["ofa_distilled_joint-seed0"]["train_pflop"] > joint["ofa_joint-seed0"]["train_pflop"]


@pytest.mark.slow
def test_a_fine_tuned_size_pays_for_the_joint_run_and_for_itself(flow):
    record = flow.records["ofa_finetuned-0.5-seed0"]
    assert record["delivered_by"] == ["ofa_joint-seed0"]
    assert record["training"]["steps"] == 2
    assert record["size"]["params"] == flow.records["ofa-0.5-seed0"]["size"]["params"]
    assert record["quality"]["values"] != flow.records["ofa-0.5-seed0"]["quality"]["values"]


@pytest.mark.slow
def test_a_run_that_is_joint_then_apart_pays_for_both_and_starts_its_sizes_from_its_own_joint_run(flow, tiny):
    record, joint = flow.records["ofa_apart_50-0.5-seed0"], flow.records["ofa_apart_50_joint-seed0"]
    config = METHODS["ofa_apart_50"].config(tiny)
    assert record["delivered_by"] == ["ofa_apart_50_joint-seed0"]
    assert (joint["training"]["steps"], record["training"]["steps"]) == (config.ofa_training.steps, config.finetuning.steps)
    assert record["made"]["inputs"].keys() == {"ofa_apart_50_joint-seed0", "images", "labels"}
    assert record["size"]["params"] == flow.records["ofa-0.5-seed0"]["size"]["params"]


@pytest.mark.slow
def test_a_joint_run_below_size_1_trains_the_others_alone(flow, tiny):
    joint = flow.records["ofa_below_joint-seed0"]["training"]
    assert joint["train_pflop"] < flow.records["ofa_joint-seed0"]["training"]["train_pflop"]
    assert flow.records["ofa_below-0.5-seed0"]["size"] == flow.records["ofa-0.5-seed0"]["size"]
    assert METHODS["ofa_below"].sizes(tiny) == (0.5,) and METHODS["ofa_below"].config(tiny).sizes.trained == (0.75, 0.5, 0.25)


@pytest.mark.slow
def test_a_variant_that_scores_as_its_method_does_shares_the_gradient_pass(flow):
    assert [name for name in flow.records if "scores" in name] == ["diff_pruning_scores-seed0"]
    assert flow.records["diff_pruning_short-0.5-seed0"]["delivered_by"] == ["diff_pruning_scores-seed0"]


@pytest.mark.slow
def test_running_again_skips_every_variant(flow):
    done = repro(*words(RUN), cwd=flow.folder)
    assert done.returncode == 0
    assert "22 of 22 cells are done already and skipped" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ofa_open-0.5-seed0", pytest.param("ofa_sandwich-0.5-seed0", marks=pytest.mark.slow)])
def test_the_command_of_a_record_repeats_its_quality_from_nothing(flow, name, tmp_path):
    command = shlex.split(flow.records[name]["provenance"]["command"])
    assert command[:4] == ["OMP_NUM_THREADS=1", "python", "-m", "repro"]
    done = process(*command[4:], "--results", "results", "--runs", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    again = json.loads((tmp_path / "results" / "tiny" / f"{name}.json").read_text())
    assert again["quality"] == flow.records[name]["quality"]


@pytest.mark.slow
def test_a_record_under_other_changes_is_refused(flow, tmp_path):
    results = tmp_path / "results" / "tiny"
    shutil.copytree(flow.folder / "results" / "tiny", results)
    record = flow.records["ofa_weighted-0.5-seed0"]
    assert record["variant"]
    rewrite(results / "ofa_weighted-0.5-seed0.json", config=load_config(str(TINY)).as_dict())
    done = repro(*words("ofa_weighted"), cwd=tmp_path)
    assert done.returncode == 2
    assert "made by another configuration (sampling_law.law was 'linear', is 'weighted')" in done.stderr


def test_a_sandwich_whose_subnets_cannot_share_the_batch_is_refused(tmp_path):
    done = repro(*words("ofa_sandwich"), "--set", "ofa_training.batch_size=18", cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "runs").exists()  # told before anything was trained
    assert "ofa_training.batch_size: the 4 subnets of a sandwich step cannot share 18 images among 1 rank(s) evenly" in done.stderr


def test_tables_list_every_variant_once():
    assert not set(TRAINED_ONCE) & set(TRAINED_ALONE)
    assert {f"{name}_joint" for name in TRAINED_ONCE} <= set(METHODS)
