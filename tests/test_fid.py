"""The Frechet distance, against its closed form, and the classifier whose features it compares."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from repro.config import Classifier as Settings
from repro.config import load_config
from repro.errors import ReproError, RunError
from repro.harness.classifier import classifier_for, load_classifier, train_classifier
from repro.harness.data import Images, digits
from repro.harness.fid import TOOL, PixelSet, frechet_distance

SMALL = Settings(width=16, steps=40, least_accuracy=0.5)


class FourPixels(FeatureExtractorBase):
    """Features that need no network: four pixels, one of each channel and one more."""

    def __init__(self, name, features_list, **_kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (four_pixels(images),)


def four_pixels(images):
    return torch.stack([images[:, 0, 0, 0], images[:, 1, 1, 0], images[:, 2, 0, 1], images[:, 0, 1, 1]], dim=1).float()


def closed_form(features1, features2):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al., 2017, Eq. 6."""
    one, two = (features.double().numpy() for features in (features1, features2))
    s1, s2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(root)))


def no_report(step, steps, loss=0.0):
    """Shows nothing."""


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
    torch_fidelity.register_feature_extractor("four-pixels", FourPixels)
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
    found = frechet_distance(one, two, small, batch_size=256)
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
    assert frechet_distance(judged, reference, small, batch_size=100) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch_size", [37, 256, 2000])
def test_the_distance_does_not_depend_on_the_batch_size(images, small, batch_size):
    halves = images.pixels[::2], images.pixels[1::2]
    expected = closed_form(*(classifier_features(small, half) for half in halves))
    assert frechet_distance(*halves, small, batch_size=batch_size) == pytest.approx(expected, rel=1e-3)


def test_a_batch_of_one_gives_the_same_distance(images, small):
    few, others = images.pixels[:80], images.pixels[80:200]
    expected = closed_form(*(classifier_features(small, pixels) for pixels in (few, others)))
    assert frechet_distance(few, others, small, batch_size=1) == pytest.approx(expected, rel=1e-3)


def test_a_set_has_no_distance_from_itself_and_noise_a_larger_one_than_another_half(images, small):
    halves = images.pixels[::2], images.pixels[1::2]
    noise = torch.randint(0, 256, halves[0].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    itself, other_half, from_noise = (frechet_distance(halves[0], other, small) for other in (halves[0], halves[1], noise))
    assert abs(itself) < 1e-3 * other_half
    assert from_noise > 10 * other_half


def test_grey_images_come_as_three_equal_channels_and_colour_as_it_is():
    grey = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert len(PixelSet(grey)) == 2
    assert torch.equal(PixelSet(grey)[1], grey[1].repeat(3, 1, 1))
    colour = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    assert torch.equal(PixelSet(colour)[0], colour[0])


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
    assert len(list(small.path.parent.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_cache_file_is_an_error_that_names_it(images, small, tmp_path, content):
    damaged = tmp_path / small.path.name
    damaged.write_bytes(small.path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ReproError, match="not a readable classifier") as error:
        classifier_for(images, SMALL, tmp_path, no_report)
    assert str(damaged) in str(error.value)
    assert "delete it" in str(error.value)


def test_a_classifier_that_is_not_good_enough_is_refused_and_not_cached(images, tmp_path):
    with pytest.raises(RunError, match=r"classifier\.least_accuracy"):
        classifier_for(images, replace(SMALL, steps=1, least_accuracy=0.9), tmp_path, no_report)
    assert not list(tmp_path.iterdir())


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
