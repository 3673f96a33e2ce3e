"""The distances, against their closed forms; features, none dropped and kept with a hash; and the classifier that gives them."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from support.four_pixels import FourPixels, colours, four_pixels

from repro.config import Classifier as Settings
from repro.config import load_config
from repro.data.images import Images, digits
from repro.errors import ReproError, RunError
from repro.metrics.classifier import classifier_for, load_classifier, train_classifier
from repro.metrics.fid import (
    TOOL,
    FeatureLayer,
    PixelSet,
    cached_features,
    classifier_layer,
    features_of,
    frechet_distance,
    kernel_distance,
)

pytestmark = pytest.mark.quick

SMALL = Settings(width=16, steps=40, least_accuracy=0.5)


class NotFinite(FourPixels):
    """What weights of another kind may give."""

    def forward(self, images):
        return (four_pixels(images) / 0,)


torch_fidelity.register_feature_extractor("four-pixels", FourPixels)
torch_fidelity.register_feature_extractor("not-finite", NotFinite)


def closed_form(features1, features2):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al., 2017, Eq. 6."""
    one, two = (features.double().numpy() for features in (features1, features2))
    s1, s2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(root)))


def no_report(step, steps, loss=0.0):
    """Shows nothing."""


def distance(samples, reference, extractor, *, batch_size=256):
    layer = replace(classifier_layer(extractor), batch_size=batch_size)
    return frechet_distance(*(features_of(pixels, layer, no_report) for pixels in (samples, reference)))


def pixel_layer(extractor="four-pixels", batch_size=64):
    return FeatureLayer(extractor=extractor, layer="pixels", weights=Path("none"), sha256="0" * 64, batch_size=batch_size)


def classifier_features(extractor, pixels):
    classifier, _ = load_classifier(extractor.path)
    with torch.no_grad():
        return classifier.features(pixels.float() / 127.5 - 1)


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture(scope="module")
def small(images, tmp_path_factory):
    """A classifier of seconds."""
    return classifier_for(images, SMALL, tmp_path_factory.mktemp("small"), no_report)


# --- the distance


def test_torch_fidelity_computes_the_closed_form():
    stream = torch.Generator().manual_seed(0)
    one = torch.randint(0, 256, (300, 3, 2, 2), dtype=torch.uint8, generator=stream)
    two = (torch.randint(0, 256, (217, 3, 2, 2), generator=stream) // 2 + 40).to(torch.uint8)
    two[:, 1] = two[:, 0]  # correlated features
    metrics = torch_fidelity.calculate_metrics(
        input1=PixelSet(one),
        input2=PixelSet(two),
        fid=True,
        feature_extractor="four-pixels",
        feature_layer_fid="pixels",
        batch_size=64,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    expected = closed_form(four_pixels(one), four_pixels(two))
    assert expected > 100
    assert metrics["frechet_inception_distance"] == pytest.approx(expected, rel=1e-5)


def test_the_tool_and_its_version_are_named():
    assert TOOL == "torch-fidelity 0.4.0"


def test_the_distance_is_the_closed_form_of_the_classifier_s_features(images, small):
    # 901 and 896 images: neither is a multiple of the batch, and none may be dropped.
    one, two = images.pixels[:901], images.pixels[901:]
    expected = closed_form(classifier_features(small, one), classifier_features(small, two))
    found = distance(one, two, small, batch_size=256)
    assert found == pytest.approx(expected, rel=1e-3)
    # Dropping the last, incomplete batches would be seen.
    dropped = closed_form(classifier_features(small, one[:768]), classifier_features(small, two[:768]))
    assert abs(dropped - expected) > 0.02 * expected


def test_no_image_is_dropped_when_the_batch_does_not_divide_their_number(images, small):
    reference = images.pixels[:500]
    white = torch.full((30, 1, 8, 8), 255, dtype=torch.uint8)  # all in the last batch, of 30 images where others have 100
    judged = torch.cat([images.pixels[500:800], white])
    expected = closed_form(classifier_features(small, judged), classifier_features(small, reference))
    without = closed_form(classifier_features(small, judged[:300]), classifier_features(small, reference))
    assert abs(expected - without) > 0.1 * expected
    assert distance(judged, reference, small, batch_size=100) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch_size", [37, 256, 2000])
def test_the_distance_does_not_depend_on_the_batch_size(images, small, batch_size):
    halves = images.pixels[::2], images.pixels[1::2]
    expected = closed_form(*(classifier_features(small, half) for half in halves))
    assert distance(*halves, small, batch_size=batch_size) == pytest.approx(expected, rel=1e-3)


def test_a_batch_of_one_gives_the_same_distance(images, small):
    few, others = images.pixels[:80], images.pixels[80:200]
    expected = closed_form(*(classifier_features(small, pixels) for pixels in (few, others)))
    assert distance(few, others, small, batch_size=1) == pytest.approx(expected, rel=1e-3)


def test_a_set_has_no_distance_from_itself_and_noise_a_larger_one_than_another_half(images, small):
    halves = images.pixels[::2], images.pixels[1::2]
    noise = torch.randint(0, 256, halves[0].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    itself, other_half, from_noise = (distance(halves[0], other, small) for other in (halves[0], halves[1], noise))
    assert abs(itself) < 1e-3 * other_half
    assert from_noise > 10 * other_half


def test_grey_images_come_as_three_equal_channels_and_colour_as_it_is():
    grey = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert len(PixelSet(grey)) == 2
    assert torch.equal(PixelSet(grey)[1], grey[1].repeat(3, 1, 1))
    colour = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    assert torch.equal(PixelSet(colour)[0], colour[0])


def test_the_distances_are_those_of_calculate_metrics():
    one, two = colours(300), colours(217, seed=1) // 2 + 40
    metrics = torch_fidelity.calculate_metrics(
        input1=PixelSet(one),
        input2=PixelSet(two),
        fid=True,
        kid=True,
        kid_subset_size=217,
        feature_extractor="four-pixels",
        feature_layer_fid="pixels",
        feature_layer_kid="pixels",
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    features = [features_of(pixels, pixel_layer(), no_report) for pixels in (one, two)]
    assert frechet_distance(*features) == metrics["frechet_inception_distance"]
    mean, deviation, size = kernel_distance(*features)
    assert (mean, deviation) == (metrics["kernel_inception_distance_mean"], metrics["kernel_inception_distance_std"])
    assert size == 217


def test_the_kernel_distance_is_its_closed_form():
    # With as many features as a subset takes, every subset is all of them: (x.y / d + 1)^3, without the diagonals of the same set.
    one, two = (four_pixels(colours(60, seed)).double() / 255 for seed in (0, 1))
    inner = [((a @ b.T / 4 + 1) ** 3).numpy() for a, b in ((one, one), (two, two), (one, two))]
    same = sum((kernel.sum() - np.trace(kernel)) / (60 * 59) for kernel in inner[:2])
    expected = same - 2 * inner[2].mean()
    mean, deviation, size = kernel_distance(one, two)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation < 1e-9
    assert size == 60


def test_a_subset_of_the_kernel_distance_has_1000_features_at_most():
    one, two = (torch.rand(1200, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert kernel_distance(one, two)[2] == 1000
    assert kernel_distance(one[:99], two)[2] == 99
    assert kernel_distance(one, two[:5])[2] == 5


# --- features


def test_features_come_in_order_one_for_each_image_and_are_reported():
    reports = []
    pixels = colours(10)
    features = features_of(pixels, pixel_layer(batch_size=4), lambda *report: reports.append(report))
    assert features.dtype == torch.float32
    assert torch.equal(features, four_pixels(pixels))
    assert reports == [(4, 10), (8, 10), (10, 10)]


def test_features_are_computed_without_tf32_and_what_was_set_comes_back():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    seen = []
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        features_of(colours(2), pixel_layer(), lambda *_: seen.append((matmul.allow_tf32, cudnn.allow_tf32)))
        assert seen == [(False, False)]
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_features_that_are_not_finite_are_an_error_that_names_the_weights():
    with pytest.raises(RunError, match="none: these weights give features that are not finite"):
        features_of(colours(2), pixel_layer("not-finite"), no_report)


def test_kept_features_are_the_computed_ones_and_are_not_computed_again(tmp_path):
    reports = []
    pixels = colours(70)
    first, second = (cached_features(pixels, "colours", pixel_layer(), tmp_path, lambda *report: reports.append(report)) for _ in range(2))
    assert torch.equal(first, features_of(pixels, pixel_layer(), no_report))
    assert torch.equal(first, second)
    assert reports == [(64, 70), (70, 70)]


@pytest.mark.parametrize(
    ("count", "name", "changes"),
    [(69, "colours", {}), (70, "others", {}), (70, "colours", {"sha256": "1" * 64}), (70, "colours", {"extractor": "not-finite"})],
)
def test_other_images_or_weights_have_features_of_their_own(tmp_path, count, name, changes):
    cached_features(colours(70), "colours", pixel_layer(), tmp_path, no_report)
    reports = []
    layer = replace(pixel_layer(), **changes)
    with contextlib.suppress(RunError):
        cached_features(colours(count), name, layer, tmp_path, lambda *report: reports.append(report))
    assert reports[-1] == (count, count)


def test_the_batch_size_does_not_change_which_features_are_kept(tmp_path):
    reports = []
    for batch_size in (64, 7):
        cached_features(colours(9), "colours", pixel_layer(batch_size=batch_size), tmp_path, lambda *report: reports.append(report))
    assert reports == [(9, 9)]


@pytest.mark.parametrize("damage", ["emptied", "cut", "changed", "of others"])
def test_damaged_features_are_an_error_that_names_the_file(tmp_path, damage):
    pixels = colours(70)
    cached_features(pixels, "colours", pixel_layer(), tmp_path, no_report)
    [path] = (tmp_path / "features").glob("*.safetensors")
    content = path.read_bytes()
    if damage == "of others":
        cached_features(colours(70, seed=1), "others", pixel_layer(), tmp_path / "others", no_report)
        [others] = (tmp_path / "others" / "features").glob("*.safetensors")
        others.replace(path)
    else:
        path.write_bytes({"emptied": b"", "cut": content[:-8], "changed": content[:-2] + b"??"}[damage])
    with pytest.raises(ReproError, match="delete it and run the command again") as error:
        cached_features(pixels, "colours", pixel_layer(), tmp_path, no_report)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


# --- the classifier


def test_the_shipped_classifier_labels_97_percent_of_the_held_out_digits_right(images, tmp_path):
    settings = load_config("digits").classifier
    assert settings.least_accuracy >= 0.97
    assert classifier_for(images, settings, tmp_path, no_report).held_out_accuracy >= 0.97


def test_the_classifier_is_reproducible_from_its_seed(images, small, tmp_path):
    torch.manual_seed(99)
    again = classifier_for(images, SMALL, tmp_path / "again", no_report)
    other = classifier_for(images, replace(SMALL, seed=1), tmp_path / "other", no_report)
    assert again.path != small.path
    assert again.sha256 == small.sha256
    assert again.held_out_accuracy == small.held_out_accuracy
    assert other.sha256 != small.sha256


def test_a_cached_classifier_is_not_trained_again(images, small):
    reports = []
    before = small.path.stat().st_mtime_ns
    again = classifier_for(images, SMALL, small.path.parent, lambda *report: reports.append(report))
    assert again == small
    assert (reports, small.path.stat().st_mtime_ns) == ([], before)
    # Another setting, another file.
    classifier_for(images, replace(SMALL, steps=41), small.path.parent, lambda *report: reports.append(report))
    assert len(reports) == 41
    assert len(list(small.path.parent.glob("[!.]*"))) == 2


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_cache_file_is_an_error_that_names_it(images, small, tmp_path, content):
    damaged = tmp_path / small.path.name
    damaged.write_bytes(small.path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ReproError, match="not readable") as error:
        classifier_for(images, SMALL, tmp_path, no_report)
    assert str(damaged) in str(error.value)
    assert "delete it" in str(error.value)


def test_a_classifier_that_is_not_good_enough_is_refused_and_not_cached(images, tmp_path):
    with pytest.raises(RunError, match=r"classifier\.least_accuracy"):
        classifier_for(images, replace(SMALL, steps=1, least_accuracy=0.9), tmp_path, no_report)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_held_out_images_are_not_trained_on():
    # Labels drawn at random cannot be learnt, only remembered: all 120 images that were trained on come out right, and of the 40 held out
    # no more than chance has it, a tenth.
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (160, 1, 8, 8), dtype=torch.uint8, generator=stream)
    labels = torch.randint(0, 10, (160,), generator=stream)
    labels[0] = 9
    noise = Images(name="noise", pixels=pixels, labels=labels, sha256="noise")
    settings = Settings(width=16, steps=150, batch_size=64, held_out=0.25)
    model, accuracy = train_classifier(noise, settings, no_report)
    with torch.no_grad():
        right = int((model(pixels.float() / 127.5 - 1).argmax(dim=1) == labels).sum())
    assert accuracy < 0.35
    assert right == 120 + round(accuracy * 40)
