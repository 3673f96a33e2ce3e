"""Few images, or images of one label, end in one line that says how many are needed, before anything is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.hostile import refused

from repro.budget.preflight import preflight
from repro.config import Classifier, Evaluation
from repro.data import cifar10
from repro.data.images import Images
from repro.experiment.cells import Experiment, plan_cells
from repro.experiment.evaluate import check_images
from repro.files.places import Places
from repro.grid import METHODS
from repro.metrics.classifier import check_images as check_labelled
from repro.metrics.classifier import classifier_for
from repro.metrics.fid import frechet_distance, kernel_distance

pytestmark = pytest.mark.quick


def images(count, labels=2, test=None, files=None):
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    numbers = torch.arange(count) % labels
    return Images(name="folder", pixels=pixels, labels=numbers, sha256="0" * 64, test=test, files_sha256=files)


@pytest.mark.parametrize("metric", ["fid", "fid768", "fid_classifier"])
@pytest.mark.parametrize("method", ["floor", "noise", "base", "ofa"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_refused_by_the_checks_before_a_run(count, method, metric, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "images", property(lambda _: images(count)))
    monkeypatch.setattr("repro.budget.preflight._check_weights", lambda *_: None)
    config = replace(tiny, evaluation=replace(tiny.evaluation, metric=metric))
    experiment = Experiment(config=config, methods=METHODS, results=tmp_path / "r", runs=tmp_path / "w", source="")
    cells = plan_cells(experiment, [method], [0.5], [0])
    needed = 4 if method == "floor" else 2
    if count < needed:
        line = refused(lambda: preflight(experiment, cells, yes=True))
        assert line.startswith(f"data.name: folder: {count} images are too few, at least {needed} are needed: ")
    elif metric == "fid_classifier" and count < 3:
        line = refused(lambda: preflight(experiment, cells, yes=True))
        assert line.startswith("evaluation.metric: the classifier of fid_classifier needs at least 3 images, for 2 labels")
    else:
        preflight(experiment, cells, yes=True)
    assert not (tmp_path / "r").exists() and not (tmp_path / "w").exists()


@pytest.mark.parametrize("metric", ["fid", "fid768", "fid_classifier"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_as_many_as_are_asked_for_are_enough(count, metric):
    """The distances themselves, of features as wide as Inception's, from two images on."""
    stream = torch.Generator().manual_seed(0)
    width = {"fid": 2048, "fid768": 768, "fid_classifier": 64}[metric]
    one, other = (torch.randn(count, width, generator=stream) for _ in range(2))
    if metric == "fid":  # the root of a matrix of 2,048 is slow
        one, other = one[:, :256], other[:, :256]
    assert np.isfinite(frechet_distance(one, other))
    assert all(np.isfinite(kernel_distance(one, other)[:2]))


def test_a_reference_is_no_larger_than_the_set():
    settings = Evaluation(reference_images=3)
    assert refused(lambda: check_images(settings, images(2), halved=False)) == (
        "evaluation.reference_images: 3, and folder has 2; ask for fewer, or 0 for all"
    )
    assert refused(lambda: check_images(settings, images(9), halved=True)).startswith(
        "evaluation.reference_images: 3 images are too few, at least 4 are needed: the method floor"
    )
    check_images(settings, images(9), halved=False)


@pytest.mark.parametrize(
    ("count", "labels", "held_out", "needed"),
    [(2, 2, 0.2, 3), (1, 1, 0.2, None), (4, 2, 0.01, 51), (10, 10, 0.5, 20), (3, 3, 0.9, 25), (5, 1, 0.2, None), (2, 2, 0.5, 4)],
)
def test_a_classifier_says_how_many_images_it_needs(count, labels, held_out, needed, tmp_path):
    settings = Classifier(held_out=held_out, steps=1, width=8)
    line = refused(lambda: classifier_for(images(count, labels), settings, tmp_path, lambda *_: None))
    if needed is None:
        assert "fid_classifier needs labelled images, and those of folder have one label; use fid or fid768" in line
    else:
        assert f"needs at least {needed} images, for {labels} labels and classifier.held_out = {held_out:g}; folder has {count}" in line
        check_labelled(images(needed, labels), settings)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_one_number_are_one_label():
    flat = replace(images(40), labels=torch.full((40,), 5), files_sha256="0" * 64)
    line = refused(lambda: check_labelled(flat, Classifier()))
    assert "have one label; put those of each label into a folder of its own in data.folder, or use fid or fid768" in line


@pytest.mark.parametrize("labels", [[-1, 0], [0, 10], [0, 10**9]])
def test_a_copy_of_cifar10_has_ten_labels(labels, tmp_path):
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.array(labels))
    line = refused(cifar10.read_cifar10, Places(data_root=tmp_path))
    assert line == f"{tmp_path / 'train.npz'}: labels lie in [{min(labels)}, {max(labels)}]; they must lie in [0, 9]"


@pytest.mark.parametrize("name", ["train.npz", "cifar-10-python.tar.gz", "data_batch_1", "cifar-10-batches-py/data_batch_1"])
def test_a_pointer_in_place_of_cifar10_is_named(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refused(cifar10.read_cifar10, Places(data_root=tmp_path)).startswith(f"{path}: a pointer of Git LFS and not the file itself")
