"""The classifier behind `fid_classifier`: its shapes, what it is trained on, and that a killed training goes on."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.ranks import StoppedError, stop_at
from torch import nn

import repro.metrics.classifier as module
from repro.config import Classifier as Settings
from repro.data.images import Images, digits, to_unit_range
from repro.errors import ReproError, RunError
from repro.metrics.classifier import ClassifierFeatures, classifier_for, load_classifier, train_classifier
from repro.metrics.classifier_network import Classifier, Residual
from repro.metrics.labelled_batches import LabelledBatches, moved

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Settings(width=8, levels=3, steps=12, batch_size=16, crop_padding=1, horizontal_flip=True, least_accuracy=0.0)


def no_report(step, steps, loss=0.0):
    """Shows nothing."""


def colours(count, classes=5, size=8, seed=0):
    """Images of noise with labels drawn at random, each label in use."""
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=stream)
    labels = torch.cat([torch.arange(classes), torch.randint(0, classes, (count - classes,), generator=stream)])
    return Images(name="colours", pixels=pixels, labels=labels, sha256=f"colours-{count}-{seed}")


def differing(one, two):
    """Names the tensors in which two classifiers differ."""
    theirs = two.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    return [name for name, tensor in one.state_dict().items() if not torch.equal(tensor, theirs[name])]


# --- the network


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_each_level_halves_the_resolution_and_doubles_the_width(levels, blocks):
    network = Classifier(3, 10, width=8, levels=levels, blocks=blocks)
    seen = []
    for unit in network.levels:
        if isinstance(unit, Residual):
            unit.register_forward_hook(lambda _unit, _inputs, output: seen.append(tuple(output.shape)))
    features = network.features(torch.zeros(2, 3, 16, 16))
    assert seen == [(2, 8 * 2**level, 16 // 2**level, 16 // 2**level) for level in range(levels) for _ in range(blocks)]
    assert features.shape == (2, 8 * 2 ** (levels - 1))
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_the_features_are_the_average_over_positions_before_the_head():
    network = Classifier(3, 10, width=8, levels=3)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trunk = network.levels(network.stem(images))
    assert trunk.shape == (4, 32, 4, 4)
    expected = nn.functional.silu(trunk).flatten(2).mean(dim=2)
    assert torch.allclose(network.features(images), expected, atol=1e-6)
    assert torch.equal(network(images), network.head(network.features(images)))


def test_torch_fidelity_gets_the_features_of_every_level_count(tmp_path):
    images = colours(40)
    extractor = classifier_for(images, TINY, tmp_path, no_report)
    found = ClassifierFeatures("classifier", ["features"], str(extractor.path))(images.pixels)[0]
    network, _ = load_classifier(extractor.path)
    assert found.shape == (40, 8 * 2**2)
    assert torch.equal(found, network.features(to_unit_range(images.pixels)))


# --- what it is trained on


def by_hand(image, mirrored, down, right):
    """One image [C, H, W] mirrored, then shifted, pixel by pixel, out of a copy that is padded by reflection."""
    image = image[:, :, ::-1] if mirrored else image
    pad = max(abs(down), abs(right))
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    out = np.empty_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            out[:, row, column] = padded[:, pad + row - down, pad + column - right]
    return out


def test_images_are_mirrored_and_shifted_as_by_hand():
    stream = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8, generator=stream)
    chosen = torch.randint(9, (60,), generator=stream)
    mirrored = torch.rand(60, generator=stream) < 0.5
    down, right = torch.randint(-4, 5, (2, 60), generator=stream)
    found = moved(pixels[chosen], mirrored, down, right)
    expected = [
        by_hand(pixels[index].numpy(), *move) for index, *move in zip(*(t.tolist() for t in (chosen, mirrored, down, right)), strict=True)
    ]
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.stack(expected))
    assert (down.min(), right.max()) == (-4, 4) and len(set(mirrored.tolist())) == 2  # the extremes were among them


def test_without_mirroring_and_shifting_a_batch_holds_images_as_they_are():
    images = colours(50)
    batch, labels = LabelledBatches(images.pixels, images.labels, Settings(batch_size=40), device=CPU)(3)
    index = {tuple(pixels.flatten().tolist()): at for at, pixels in enumerate(images.pixels)}
    found = [index[tuple(pixels.flatten().tolist())] for pixels in ((batch + 1) * 127.5).round().to(torch.uint8)]
    assert torch.equal(labels, images.labels[found])
    assert len(set(found)) > 20


def test_half_of_the_images_are_mirrored_and_every_shift_occurs():
    # One image whose grey level tells the row and the column: what a batch shows of it tells how it was moved.
    pixels = (torch.arange(8)[:, None] * 16 + torch.arange(8)).to(torch.uint8).expand(1, 1, 8, 8)
    settings = Settings(batch_size=2000, horizontal_flip=True, crop_padding=2)
    batch, _ = LabelledBatches(pixels, torch.zeros(1, dtype=torch.int64), settings, device=CPU)(0)
    levels = ((batch[:, 0] + 1) * 127.5).round().to(torch.int64)
    rows, columns = levels // 16, levels % 16
    mirrored = columns[:, 4, 4] < columns[:, 4, 3]
    assert 900 < int(mirrored.sum()) < 1100
    down = 4 - rows[:, 4, 4]
    right = 4 - torch.where(mirrored, 7 - columns[:, 4, 4], columns[:, 4, 4])
    counts = torch.zeros(5, 5, dtype=torch.int64).index_put_((down + 2, right + 2), torch.ones(2000, dtype=torch.int64), accumulate=True)
    assert counts.sum() == 2000 and counts.min() > 40  # 80 on average for each of the 25


def test_a_batch_depends_on_seed_and_step_alone_and_ranks_take_slices():
    images = colours(30)
    first = LabelledBatches(images.pixels, images.labels, TINY, device=CPU)
    first(0)
    whole = first(7)
    fresh = LabelledBatches(images.pixels, images.labels, TINY, device=CPU)
    assert all(torch.equal(one, two) for one, two in zip(whole, fresh(7), strict=True))
    assert not torch.equal(whole[0], fresh(8)[0])
    other = LabelledBatches(images.pixels, images.labels, replace(TINY, seed=1), device=CPU)
    assert not torch.equal(whole[0], other(7)[0])
    parts = [LabelledBatches(images.pixels, images.labels, TINY, device=CPU, rank=rank, ranks=4)(7) for rank in range(4)]
    assert all(torch.equal(one, torch.stack(two, dim=1).flatten(0, 1)) for one, two in zip(whole, zip(*parts, strict=True), strict=True))


def test_a_set_with_test_images_is_trained_on_as_a_whole_and_judged_on_those():
    # Labels drawn at random cannot be learnt, only remembered.
    images = colours(60)
    settings = Settings(width=16, steps=150, batch_size=60, held_out=0.5)
    same = replace(images, name="test")
    network, accuracy = train_classifier(replace(images, test=same), settings, no_report)
    assert accuracy == 1.0  # all 60 were trained on: of images held out no more than a fifth would come out right
    half = replace(same, labels=torch.where(torch.arange(60) < 30, images.labels, (images.labels + 1) % 5))
    again, accuracy = train_classifier(replace(images, test=half), settings, no_report)
    assert accuracy == 0.5
    assert not differing(network, again)


def test_the_accuracy_is_that_of_all_images_whatever_the_batch():
    images = colours(1203)
    network = Classifier(3, 5, width=8).eval()
    with torch.no_grad():
        expected = (network(to_unit_range(images.pixels)).argmax(dim=1) == images.labels).float().mean().item()
    for batch_size in (1203, 500, 401):
        assert module._accuracy(network, images.pixels, images.labels, batch_size) == pytest.approx(expected, abs=1e-6)


# --- errors


def test_test_images_that_come_out_wrong_are_an_error_and_leave_nothing(tmp_path):
    images = colours(60)
    wrong = replace(images, name="test", labels=(images.labels + 1) % 5)
    with pytest.raises(RunError, match=r"labels \d+\.\d% .*classifier\.least_accuracy asks for 90\.0%"):
        classifier_for(replace(images, test=wrong), replace(TINY, least_accuracy=0.9), tmp_path, no_report)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_images_with_one_label_have_no_classifier(tmp_path):
    unlabelled = replace(colours(20), labels=torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ReproError, match=r"needs labelled images.*colours.*use fid"):
        classifier_for(unlabelled, TINY, tmp_path, no_report)


def test_images_cannot_be_shifted_out_of_themselves(tmp_path):
    train_classifier(colours(20), replace(TINY, crop_padding=7, steps=1), no_report)
    with pytest.raises(ReproError, match=r"classifier\.crop_padding: 8 .*smaller"):
        classifier_for(colours(20), replace(TINY, crop_padding=8), tmp_path, no_report)


# --- its file


def test_a_classifier_of_other_settings_under_the_name_of_these_is_refused(tmp_path):
    images = colours(60)
    paths = [classifier_for(images, replace(TINY, steps=steps), tmp_path, no_report).path for steps in (2, 3)]
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(ReproError, match="a classifier of other images or settings, under the name of these; delete it"):
        classifier_for(images, replace(TINY, steps=3), tmp_path, no_report)
    paths[1].unlink()  # the remedy
    classifier_for(images, replace(TINY, steps=3), tmp_path, no_report)


def test_the_file_says_what_it_takes_to_build_the_network_again(tmp_path):
    images = colours(40)
    extractor = classifier_for(images, replace(TINY, blocks=2), tmp_path, no_report)
    with safe_open(extractor.path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert len(about.pop("sha256")) == 64  # of all else and the weights
    assert about.pop("key") == extractor.path.stem.rpartition("-")[2]
    size = {"channels": 3, "classes": 5, "width": 8, "levels": 3, "blocks": 2}
    assert about == size | {"accuracy": extractor.held_out_accuracy}
    network, accuracy = load_classifier(extractor.path)
    trained, expected = train_classifier(images, replace(TINY, blocks=2), no_report)
    assert accuracy == expected
    assert not differing(network, trained)


def test_labels_settings_and_test_images_are_of_one_file_alone(tmp_path):
    images = colours(40)
    sets = [images, replace(images, labels=images.labels.flip(0)), replace(images, test=colours(10)), replace(images, test=colours(11))]
    paths = {classifier_for(chosen, TINY, tmp_path, no_report).path for chosen in sets}
    paths |= {classifier_for(images, replace(TINY, **{key: 2}), tmp_path, no_report).path for key in ("levels", "blocks", "crop_padding")}
    assert len(paths) == 7


# --- a killed training


def test_a_killed_training_goes_on_and_ends_in_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_STEPS", 5)
    images = colours(40)
    whole = classifier_for(images, TINY, tmp_path / "whole", no_report)
    with pytest.raises(StoppedError):
        classifier_for(images, TINY, tmp_path / "killed", stop_at(8))
    assert [path.name for path in (tmp_path / "killed").rglob("*.safetensors")] == ["step-000000005.safetensors"]
    steps = []
    resumed = classifier_for(images, TINY, tmp_path / "killed", lambda step, *_rest: steps.append(step))
    assert steps == list(range(6, 13))
    assert resumed.sha256 == whole.sha256
    assert [path for path in (tmp_path / "killed").iterdir() if path.suffix != ".lock"] == [resumed.path]


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"label_smoothing": 0.1}, {"warmup_steps": 6}])
def test_what_is_set_of_the_training_changes_the_weights_which_stay_float32(tmp_path, change):
    images = colours(40)
    plain, _ = load_classifier(classifier_for(images, TINY, tmp_path, no_report).path)
    other, _ = load_classifier(classifier_for(images, replace(TINY, **change), tmp_path, no_report).path)
    gaps = [(one - two).abs().max().item() for one, two in zip(plain.parameters(), other.parameters(), strict=True)]
    assert 1e-4 < max(gaps) < 0.1
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


# --- several ranks


@pytest.mark.slow
def test_two_ranks_train_one_classifier_together(tmp_path):
    """The `noise` cell, run by two gloo ranks: both train, the first one judges."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "repro", "run", "--config", str(ROOT / "tests" / "tiny.toml"), "--methods", "noise"]
    command += ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in range(2):
            with (tmp_path / f"output-{rank}.txt").open("wb") as output:
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(command, cwd=ROOT, env=shared | own, stdout=output, stderr=output))
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join((tmp_path / f"output-{rank}.txt").read_text()[-3000:] for rank in range(2))
    (path,) = (tmp_path / "runs").rglob("classifier-digits-*.safetensors")
    network, _ = load_classifier(path)
    alone, _ = train_classifier(digits(), Settings(width=16, steps=40, least_accuracy=0.5), no_report)  # as tiny.toml says
    gaps = [(one - two).abs().max().item() for one, two in zip(network.parameters(), alone.parameters(), strict=True)]
    assert max(gaps) < 0.02  # a mean over slices rounds otherwise; another seed's weights are apart by more than 0.1
    other, _ = train_classifier(digits(), Settings(width=16, steps=40, seed=1), no_report)
    assert max((one - two).abs().max().item() for one, two in zip(network.parameters(), other.parameters(), strict=True)) > 0.1
