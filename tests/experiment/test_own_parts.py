"""A formulation, condition, space and architecture from outside are honoured by methods, estimate and the folder that is handed over."""

import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from support.blocks import ROOT, blocks_of
from support.gaussian import Gaussian

from repro.api import METHODS, Cell, Experiment, Method, ReproError, load_config, main, parts_of
from repro.budget.throughput import measure
from repro.budget.work import stages
from repro.config.sections import PARTS
from repro.data.images import digits
from repro.deliver.extract import extract_subnet
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import image_losses
from repro.diffusion.heun import heun, sigma_grid
from repro.diffusion.sampler import Denoise
from repro.diffusion.samplers import SAMPLERS
from repro.experiment.evaluate import Drawing
from repro.experiment.parts import KINDS
from repro.experiment.run import load_model
from repro.models.denoiser import load_denoiser, save_denoiser

TINY = ROOT / "tests" / "tiny.toml"
SCRIPTS = {block.file: block.text for block in blocks_of(ROOT / "docs" / "extend.md") if block.file}
CPU = torch.device("cpu")
PLAIN = "[plain]\nsample_size = 8\nchannels = 1\n\n"
CELLS = ["--methods", "base,ofa,diff_pruning,magnitude,ofa_distilled", "--sizes", "0.5"]


def of_script(file, name):
    """An object of a class of a script."""
    names = {"__name__": file}
    exec(SCRIPTS[file], names)  # noqa: S102
    return names[name] if name == "Plain" else names[name]()


OWN = {
    "flow": (of_script("flow.py", "RectifiedFlow"), ["diffusion.formulation=rectified_flow", "evaluation.sampler=heun"]),
    "parity": (
        of_script("parity.py", "Parity"),
        ["data.condition=parity", "network.num_class_embeds=3", "data.condition_dropout=0.25", "evaluation.guidance=2.0"],
    ),
    "plain": (of_script("plain_net.py", "Plain"), ["plain.width=64"]),
    "folded": (of_script("folded.py", "Folded"), ["data.space=folded", "network.sample_size=4", "network.channels=4"]),
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in OWN])
def ran(request, tmp_path_factory):
    """A folder where every kind of method has run with a part of a script."""
    part, overrides = OWN[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    written = TINY
    if part is OWN["plain"][0]:
        written = folder / "tiny.toml"
        written.write_text(re.sub(r"\[network\]\n.*?\n\n", PLAIN, TINY.read_text(), flags=re.DOTALL))
    places = ["--config", str(written), "--results", str(folder / "results"), "--runs", str(folder / "runs")]
    sets = [word for value in overrides for word in ("--set", value)]
    assert main(part, arguments=["run", *places, *sets, *CELLS]) == 0
    config = load_config(str(written), overrides, parts_of([part]).names, parts_of([part]).architectures)
    folders = {"results": folder / "results" / "tiny", "runs": folder / "runs" / "tiny"}
    own = Experiment(config=config, parts=parts_of([part]), methods=METHODS, source="", **folders)
    return SimpleNamespace(own=own, folder=folder, words=[*places, *sets], part=part, kind=request.param)


def record_of(ran, name):
    return json.loads((ran.folder / "results" / "tiny" / f"{name}.json").read_text())


def test_every_method_has_a_record_whose_nfe_is_what_was_asked(ran, monkeypatch):
    record = record_of(ran, "ofa-0.5-seed0")
    assert all(record_of(ran, f"{name}-0.5-seed0")["quality"]["mean"] > 0 for name in ("diff_pruning", "magnitude", "ofa_distilled"))
    asked = {"flow": 5, "parity": 2 * 3, "folded": 3, "plain": 3}[ran.kind]
    assert record["quality"]["sampler"]["nfe"] == ran.own.nfe == asked
    cell, calls = Cell(method="ofa", size=0.5, seed=0), []
    model = load_model(ran.own, cell)
    monkeypatch.setattr(model, "forward", lambda *given, _real=model.forward, **more: calls.append(more) or _real(*given, **more))
    pixels = Drawing(ran.own, model, cell, 16)(range(4), 0)
    assert len(calls) == asked
    assert pixels.shape == (4, 1, 8, 8) and pixels.dtype == torch.uint8
    if ran.kind == "parity":
        assert calls[0]["class_labels"].tolist() == [2] * 4  # without, then with
        assert set(calls[1]["class_labels"].tolist()) <= {0, 1}


def test_the_estimate_counts_it(ran, capsys):
    assert main(ran.part, arguments=["estimate", *ran.words, *CELLS]) == 0
    found = measure(ran.own)
    assert found.sampling_img_per_sec > 0 and found.training_img_per_sec > 0


def test_a_folder_is_handed_over(ran, tmp_path):
    extract_subnet(ran.own, size=0.5, seed=0, out=tmp_path / "out")
    model, trained = load_denoiser(tmp_path / "out", ran.own.config.denoiser), load_model(ran.own, Cell(method="ofa", size=0.5, seed=0))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.state_dict().values(), trained.state_dict().values(), strict=True))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the script that trained it samples from it" in card and "pipeline" not in card.split("---", 2)[2]


def test_a_resumed_run_ends_in_the_same_weights(ran, tmp_path):
    """A batch is a function of the seed and the step alone, whatever part makes it."""
    one, two = (batches_of(ran, ranks=1), [batches_of(ran, ranks=2, rank=rank) for rank in range(2)])
    for step in (0, 130):  # of another epoch
        whole, halves = one(step), [batches(step) for batches in two]
        for name in ("noisy", "target", "timesteps"):
            joined = torch.stack([getattr(half, name) for half in halves], dim=1).flatten(0, 1)
            assert torch.equal(joined, getattr(whole, name))
        for name, rows in whole.condition.items():
            assert torch.equal(torch.stack([half.condition[name] for half in halves], dim=1).flatten(), rows)


def batches_of(ran, **ranks):
    return NoisyBatches(
        digits(),
        ran.own.formulation,
        batch_size=16,
        seed=0,
        device=CPU,
        space=ran.own.space,
        condition=ran.own.condition,
        condition_dropout=ran.own.config.data.condition_dropout,
        **ranks,
    )


# --- what the parts compute


def test_the_formulation_s_denoiser_is_that_of_its_noising():
    """A network that answers rightly for one image makes the denoiser find it, at every noise level."""
    flow, clean, noise = OWN["flow"][0], torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    for sigma in (0.01, 1.0, 50.0):
        denoise = Denoise(predict=lambda _images, _timesteps: noise - clean, formulation=flow)
        torch.testing.assert_close(denoise(clean + sigma * noise, sigma), clean, rtol=1e-4, atol=1e-4)


def test_ddpm_s_denoiser_is_that_of_its_noising(tiny):
    ddpm, clean, noise, asked = DDPM(tiny.diffusion), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), []
    for timestep in (0, 1, 500, 998, 999):
        alpha_bar = float(ddpm.schedule.alphas_cumprod[timestep])
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
        batch = ddpm.noised(clean, noise, torch.full((3,), timestep))

        def predict(images, timesteps, batch=batch):
            torch.testing.assert_close(images, batch.noisy, rtol=1e-4, atol=1e-4)
            asked.append(timesteps[0].item())
            return noise

        torch.testing.assert_close(ddpm.denoise(predict, clean + sigma * noise, sigma), clean, rtol=1e-3, atol=1e-3)
    assert asked == pytest.approx([0, 1, 500, 998, 999], abs=1e-3)
    assert ddpm.sigmas == pytest.approx((0.01, 157.4), rel=1e-2)


def test_an_unweighted_loss_is_the_squared_error(ran):
    batch = batches_of(ran, ranks=1)(0)
    losses = image_losses(lambda images, _timesteps, **_condition: torch.zeros_like(images), batch)
    torch.testing.assert_close(losses, batch.target.square().flatten(1).mean(dim=1))


def test_labels_are_left_out_as_often_as_is_said_and_are_those_of_the_images():
    images = digits()
    ddpm, parity = DDPM(load_config("digits").diffusion), OWN["parity"][0]
    given = {"batch_size": 1797, "seed": 0, "device": CPU, "condition": parity}
    plain, dropped = (NoisyBatches(images, ddpm, **given, condition_dropout=share)(0) for share in (0.0, 0.25))
    labels = plain.condition["class_labels"]
    assert labels.bincount().tolist() == (images.labels % 2).bincount().tolist()  # a whole epoch
    left_out = dropped.condition["class_labels"] == 2
    assert left_out.double().mean().item() == pytest.approx(0.25, abs=0.04)  # four standard errors
    assert torch.equal(dropped.condition["class_labels"][~left_out], labels[~left_out])
    assert torch.equal(dropped.noisy, plain.noisy)


def test_what_a_sample_is_conditioned_on_depends_on_its_index_and_the_seeds_and_has_the_training_s_mix():
    parity, images = OWN["parity"][0], digits()
    whole = parity.of_samples(images, range(2000), 0, 1)["class_labels"]
    assert torch.equal(parity.of_samples(images, range(700, 800), 0, 1)["class_labels"], whole[700:800])
    assert not torch.equal(parity.of_samples(images, range(2000), 1, 1)["class_labels"], whole)
    assert whole.double().mean().item() == pytest.approx((images.labels % 2).double().mean().item(), abs=0.045)


def test_the_estimate_charges_what_decoding_takes(tmp_path):
    found = []
    for flop in (0.0, 3e9):
        own = type("Costly", (type(OWN["folded"][0]),), {"flop": lambda _self, shape, flop=flop: flop * (shape == (4, 4, 4))})()
        config = load_config(str(TINY), OWN["folded"][1], parts_of([own]).names)
        this = Experiment(config=config, parts=parts_of([own]), methods=METHODS, source="", results=tmp_path, runs=tmp_path)
        cells = [Cell(method="base", size=1.0, seed=0)]
        found.append(next(stage.pflop for stage in stages(this, cells) if stage.name == "base: sampling"))
    drawn = config.evaluation.samples * len(config.evaluation.sampling_seeds)
    assert found[1] - found[0] == pytest.approx(3e9 * drawn / 1e15)


def test_the_space_gives_back_what_it_was_given():
    folded, pixels = OWN["folded"][0], digits().pixels
    assert torch.equal(folded.decode(folded.encode(pixels)), pixels)
    assert folded.image_shape((4, 4, 4)) == (1, 8, 8)


# --- scripts that bring methods or data


@pytest.mark.parametrize(
    ("file", "words", "named"),
    [
        ("spread.py", ["--sizes", "0.5"], "spread: training"),
        ("cubic_law.py", [], "cubic_joint: training"),
        ("cut_alone.py", [], "cut_alone: importance"),
        ("moments.py", ["--methods", "base", "--set", "evaluation.metric=moments"], "features for moments"),
        ("midpoint.py", ["--methods", "base", "--set", "evaluation.sampler=midpoint"], "base: sampling"),
    ],
)
def test_the_estimate_of_a_script_counts_what_it_brings(file, words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [file, "estimate", "--config", str(TINY), *words])
    with pytest.raises(SystemExit) as ended:
        exec(SCRIPTS[file], {"__name__": "__main__"})  # noqa: S102
    assert ended.value.code == 0
    assert named in capsys.readouterr().out


def test_the_estimate_of_a_data_set_counts_its_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(SCRIPTS["shapes.py"], {"__name__": "__main__"})  # noqa: S102
    (tmp_path / "shapes.toml").write_text(SCRIPTS["shapes.toml"])
    assert main(arguments=["estimate", "--config", "shapes.toml", "--methods", "floor"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "features for" in line]
    assert rows and all("400" in row for row in rows)  # 200 for reference, and two halves


# --- what does not go together


@pytest.mark.parametrize(
    ("part", "overrides", "named"),
    [
        ("flow", ["evaluation.sampler=ddim"], "evaluation.sampler: ddim visits DDPM's timesteps, and rectified_flow has none"),
        ("flow", ["evaluation.sampler=heun", "ofa_training.loss_weighting=min_snr"], "ofa_training.loss_weighting: min_snr has no meaning"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_run(part, overrides, named):
    own = parts_of([OWN[part][0]])
    config = load_config(str(TINY), [OWN[part][1][0], *overrides], own.names)
    with pytest.raises(ReproError, match=named):
        Experiment(config=config, parts=own, methods=METHODS, source="", results=ROOT, runs=ROOT).check_parts()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.condition=class_labels"], "num_class_embeds: the network has 0 classes, and digits has labels of 10; set 10"),
        (
            ["data.condition=class_labels", "network.num_class_embeds=10", "data.condition_dropout=0.1"],
            "num_class_embeds: the network has 10 classes, and digits has labels of 10 and one for no label; set 11",
        ),
        (["network.num_class_embeds=10"], "data.condition: the network has classes"),
        (["data.condition_dropout=0.1"], "data.condition_dropout: nothing is conditioned on"),
        (["evaluation.guidance=2.0"], "evaluation.guidance: asks a network that was trained without its condition"),
        (["diffusion.formulation=ddim"], "diffusion.formulation: unknown value 'ddim', use ddpm"),
    ],
)
def test_a_condition_that_the_network_does_not_take_is_one_line(tmp_path, capsys, overrides, named):
    sets = [word for value in overrides for word in ("--set", value)]
    places = ["--config", str(TINY), "--results", str(tmp_path), "--runs", str(tmp_path)]
    assert main(arguments=["run", *places, *sets, "--methods", "base"]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_heun_s_grid_is_edm_s_and_its_nfe_is_counted():
    grid = sigma_grid(18, 0.002, 80.0)
    by_hand = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert grid == pytest.approx([*by_hand, 0.0])
    denoise, noise = Gaussian(mean=0.2, deviation=0.5, sigmas=(0.002, 80.0)), torch.randn(100, 1, 1, 1, dtype=torch.float64)
    settings = replace(load_config("digits").evaluation, sampler_steps=18)
    drawn = SAMPLERS["heun"].sample(denoise, noise, settings)
    assert len(denoise.asked) == SAMPLERS["heun"].nfe(settings, denoise.formulation) == 35
    torch.testing.assert_close(drawn, heun(denoise, noise, grid))
    errors = [(heun(denoise, noise, sigma_grid(steps, 0.002, 80.0)) - denoise.exact(noise)).abs().max().item() for steps in (36, 72, 144)]
    assert errors[1] < errors[0] / 3.8 and errors[2] < errors[1] / 3.8 and errors[2] < 2e-3  # of second order, to the exact flow


def test_the_names_that_a_configuration_takes_are_those_of_the_package_s_parts():
    for key, names in PARTS.items():
        (contract, kind), (module, mapping) = KINDS[key]
        package = getattr(import_module(module), mapping)
        assert tuple(package) == names
        made = [part(load_config("digits").diffusion) if isinstance(part, type) else part for part in package.values()]
        assert all(
            isinstance(part, getattr(import_module(contract), kind)) and part.name == name for name, part in zip(names, made, strict=True)
        )


def test_a_part_that_is_no_part_is_one_line():
    with pytest.raises(ReproError, match="no method, metric, sampler, formulation, space or condition"):
        parts_of([Method])


@pytest.mark.slow
@pytest.mark.parametrize("ran", ["plain"], indirect=True)
def test_a_network_of_another_architecture_is_refused_where_one_s_own_is_configured(ran, tmp_path, base):
    save_denoiser(base, ran.own.formulation.scheduler(clip_sample=True), tmp_path / "unet")
    with pytest.raises(ReproError, match="describes no PrunedPlainNet"):
        load_denoiser(tmp_path / "unet", ran.own.config.denoiser)
    with pytest.raises(ReproError, match="describes no PrunedUNet2DModel or PrunedDiT2DModel"):
        load_denoiser(ran.own.folder(Cell(method="ofa", size=0.5, seed=0)) / "model")
    other = replace(ran.own.config.denoiser, width=32)
    with pytest.raises(ReproError, match="its width is 64"):
        load_denoiser(ran.own.folder(Cell(method="ofa", size=0.5, seed=0)) / "model", other)
    assert record_of(ran, "ofa-0.5-seed0")["provenance"]["config"]["plain"] == {"sample_size": 8, "channels": 1, "width": 64}


def test_a_section_that_is_there_already_is_one_line():
    with pytest.raises(ReproError, match="section 'network': there is one of this name already"):
        parts_of([type("Again", (OWN["plain"][0],), {"section": "network"})])
