"""Inception's weights, had and checked; its features, which are torch-fidelity's; and the metric on real images."""

import json
import os
import pickle
from dataclasses import replace
from functools import partial
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3

from repro.config import load_config
from repro.errors import ReproError
from repro.experiment import evaluate
from repro.experiment.cells import Experiment
from repro.files.places import Places
from repro.files.writing import sha256_of_file
from repro.metrics import inception
from repro.metrics.fid import PixelSet, features_of, frechet_distance, kernel_distance
from repro.metrics.inception import SHA256, CheckedInception, inception_layer
from repro.runtime.clock import Clock
from repro.runtime.progress import CellProgress

TINY = str(Path(__file__).parents[1] / "tiny.toml")
REAL_IMAGES, REAL_WEIGHTS = (os.environ.get(name) for name in ("OFA_TEST_CIFAR10", "OFA_TEST_INCEPTION"))


def no_report(done, total):
    """Shows nothing."""


def places(tmp_path, weights=None):
    return Places(cache=tmp_path / "cache", inception_weights=weights)


def pictures(count, seed=0):
    """Smooth random images of 32x32 pixels."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the shapes of Inception's, scaled so that signals neither fade nor grow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("random", ["768"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def spoilt(weights, tmp_path, spoil):
    """A copy of the weights, changed."""
    state = torch.load(weights, weights_only=True)
    path = tmp_path / "spoilt.pth"
    torch.save(spoil(state) or state, path)
    return path


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# --- the features and the distances


@pytest.mark.slow
@pytest.mark.parametrize("layer", [pytest.param("768", marks=pytest.mark.slow), "2048"])
def test_distances_are_those_that_torch_fidelity_computes_by_itself(weights, layer, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # its own loader asks torch to unpickle
    one, two = pictures(6), pictures(5, seed=1) // 2
    metrics = torch_fidelity.calculate_metrics(
        input1=PixelSet(one),
        input2=PixelSet(two),
        fid=True,
        kid=True,
        kid_subset_size=5,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        feature_layer_fid=layer,
        feature_layer_kid=layer,
        batch_size=64,
        cuda=torch.cuda.is_available(),
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    settings = replace(inception_layer("fid768", Places(inception_weights=weights)), layer=layer)
    features = [features_of(pixels, settings, no_report) for pixels in (one, two)]
    assert [each.shape for each in features] == [(6, int(layer)), (5, int(layer))]
    found = frechet_distance(*features)
    assert found > 0.1
    assert found == pytest.approx(metrics["frechet_inception_distance"], rel=1e-6)
    mean, deviation, _ = kernel_distance(*features)
    assert mean == pytest.approx(metrics["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(metrics["kernel_inception_distance_std"], rel=1e-3, abs=1e-9)


def test_features_do_not_depend_on_the_batch_and_none_is_dropped(weights):
    layer = inception_layer("fid768", Places(inception_weights=weights))
    pixels = pictures(5)
    whole, parts = (features_of(pixels, replace(layer, batch_size=size), no_report) for size in (5, 2))
    assert whole.shape == (5, 768)
    assert whole.std(dim=0).mean() > 0.01
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_nothing_of_torch_fidelity_stays_changed(weights):
    before = feature_extractor_inceptionv3.load_state_dict_from_url
    CheckedInception("random", ["768"], str(weights))
    assert feature_extractor_inceptionv3.load_state_dict_from_url is before is torch.hub.load_state_dict_from_url


# --- weights that are named


def test_fid768_takes_other_weights_and_says_so(weights, tmp_path):
    layer = inception_layer("fid768", places(tmp_path, weights))
    assert layer.about == {"name": "inception-v3-compat", "layer": "768", "sha256": sha256_of_file(weights), "official": False}
    assert (layer.layer, layer.sha256) == ("768", sha256_of_file(weights))


def test_fid_takes_the_official_weights_only(weights, tmp_path, monkeypatch):
    with pytest.raises(ReproError, match="not the official Inception weights") as error:
        inception_layer("fid", places(tmp_path, weights))
    line = one_line(error)
    assert line.startswith(f"{weights}: ") and sha256_of_file(weights) in line
    assert "--inception-weights" in line and "evaluation.metric=fid768" in line
    monkeypatch.setattr(inception, "SHA256", sha256_of_file(weights))  # as if these were the official ones
    layer = inception_layer("fid", places(tmp_path, weights))
    assert layer.about == {"name": "inception-v3-compat", "layer": "2048", "sha256": sha256_of_file(weights), "official": True}


def test_the_official_hash_is_the_one_in_the_file_s_name():
    assert inception.URL.endswith(f"-{SHA256[:8]}.pth") and len(SHA256) == 64


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_file_that_is_not_there_is_an_error(tmp_path, name):
    with pytest.raises(ReproError, match="--inception-weights") as error:
        inception_layer("fid768", places(tmp_path, tmp_path / name))
    assert one_line(error).startswith(f"{tmp_path / name}: not readable")


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "a pickle", "a pickle in torch's file"])
def test_a_file_that_holds_no_weights_is_an_error_and_runs_nothing(weights, tmp_path, kind):
    path, witness = tmp_path / "weights.pth", tmp_path / "witness"
    match kind:
        case "a pickle":
            path.write_bytes(pickle.dumps(Payload(witness), protocol=2))
        case "a pickle in torch's file":
            torch.save(Payload(witness), path)
        case _:
            path.write_bytes({"empty": b"", "text": b"no weights", "cut": weights.read_bytes()[:100_000]}[kind])
    with pytest.raises(ReproError, match="not a file of weights") as error:
        inception_layer("fid768", places(tmp_path, path))
    assert one_line(error).startswith(f"{path}: ")
    assert not witness.exists()


def without_a_key(state):
    del state["Mixed_6e.branch1x1.conv.weight"]


def of_another_shape(state):
    state["Mixed_6e.branch1x1.conv.weight"] = torch.zeros(3)


def a_list(state):
    return list(state.values())[:3]


@pytest.mark.parametrize(("spoil", "says"), [(without_a_key, "Missing key"), (of_another_shape, "size mismatch"), (a_list, "dict")])
def test_weights_of_another_network_are_an_error(weights, tmp_path, spoil, says):
    path = spoilt(weights, tmp_path, spoil)
    with pytest.raises(ReproError, match="not the weights of torch-fidelity's Inception") as error:
        inception_layer("fid768", places(tmp_path, path))
    line = one_line(error)
    assert line.startswith(f"{path}: ") and says in line


# --- weights that are downloaded


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file that stands for the official one, where the official one would be."""
    path = tmp_path / "server" / "weights-inception.pth"
    path.parent.mkdir()
    path.write_bytes(b"stands for the official weights")
    monkeypatch.setattr(inception, "URL", path.as_uri())
    monkeypatch.setattr(inception, "SHA256", sha256_of_file(path))
    return path


def test_weights_that_are_not_named_are_downloaded_once(server, tmp_path, capsys):
    content = server.read_bytes()
    layer = inception_layer("fid", places(tmp_path))
    assert layer.weights == tmp_path / "cache" / server.name
    assert layer.weights.read_bytes() == content
    assert layer.about["official"] is True
    assert "downloading Inception's weights" in capsys.readouterr().out
    server.unlink()
    assert inception_layer("fid768", places(tmp_path)).weights == layer.weights
    assert capsys.readouterr() == ("", "")


def test_a_download_of_other_content_is_refused_and_not_kept(server, tmp_path):
    server.write_bytes(b"something else")
    with pytest.raises(ReproError, match="what came is not the official file") as error:
        inception_layer("fid768", places(tmp_path))
    assert one_line(error).startswith(server.as_uri())
    assert not list((tmp_path / "cache").glob("weights*"))


def fail(error, *_args, **_kwargs):
    raise error


@pytest.mark.parametrize("reason", [None, ConnectionResetError("reset"), TimeoutError("timed out"), IncompleteRead(b"")])
def test_a_download_that_fails_says_what_to_do(server, tmp_path, monkeypatch, reason):
    server.unlink()  # urllib's error, as where there is no network
    if reason:
        monkeypatch.setattr(torch.hub, "urlopen", partial(fail, reason))
    with pytest.raises(ReproError, match="cannot be downloaded") as error:
        inception_layer("fid", places(tmp_path))
    line = one_line(error)
    assert line.startswith(server.as_uri())
    assert "--inception-weights" in line and "evaluation.metric=fid_classifier" in line
    assert not list((tmp_path / "cache").glob("weights*"))


def test_a_cache_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ReproError, match="cannot be written") as error:
        inception_layer("fid", places(tmp_path))
    assert str(tmp_path / "cache") in one_line(error)


def test_damaged_weights_in_the_cache_are_an_error(server, tmp_path):
    path = inception_layer("fid", places(tmp_path)).weights
    path.write_bytes(b"damaged")
    with pytest.raises(ReproError, match="damaged") as error:
        inception_layer("fid768", places(tmp_path))
    assert one_line(error).startswith(f"{path}: ") and "delete it" in one_line(error)


# --- what a record says


def judged(tmp_path, weights, metric, sets, reference_images):
    """What a record says of sets of images, and how often an image went through the network."""
    overrides = [f"evaluation.metric={metric}", f"evaluation.reference_images={reference_images}"]
    config = load_config(TINY, overrides)
    experiment = Experiment(
        config=config,
        methods={},
        results=tmp_path / "results",
        runs=tmp_path / "runs",
        source="",
        places=places(tmp_path, weights),
    )
    progress = CellProgress("cell", Clock(), tmp_path / "runs", "cell")
    computed = {}

    class Counted:
        def stage(self, name, images=0):
            progress.stage(name, images)
            computed.setdefault(name, 0)
            self.now = name

        def __call__(self, done, total, loss=0.0):
            computed[self.now] += done == total and total

    quality = evaluate.judge(experiment, sets, experiment.images.pixels, Counted(), sampled=True)
    progress.close()
    return json.loads(json.dumps(quality)), computed


def test_a_record_of_fid768_names_all_that_it_depends_on(weights, tmp_path):
    sets = [torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    quality, computed = judged(tmp_path, weights, "fid768", sets, reference_images=6)
    assert computed == {"weights": 0, "reference features": 6, "features": 8, "distance": 0}
    assert quality["metric"] == "fid768"
    assert quality["tool"] == "torch-fidelity 0.4.0"
    assert quality["extractor"] == {"name": "inception-v3-compat", "layer": "768", "sha256": sha256_of_file(weights), "official": False}
    assert quality["n_samples"] == 4
    assert {"name": "digits", "n": 6}.items() <= quality["reference"].items()
    assert quality["sampler"]["precision"] == "float32"
    assert quality["mean"] == pytest.approx(sum(quality["values"]) / 2)
    assert quality["values"][0] != quality["values"][1]
    kid = quality["kid"]
    assert (kid["metric"], kid["subsets"], kid["subset_size"]) == ("kid768", 100, 4)
    assert len(kid["values"]) == len(kid["std_over_subsets"]) == 2
    assert kid["mean"] == pytest.approx(sum(kid["values"]) / 2)
    # The next cell takes the reference's features from the cache, and comes to the same numbers.
    again, computed = judged(tmp_path, weights, "fid768", sets, reference_images=6)
    assert computed == {"weights": 0, "reference features": 0, "features": 8, "distance": 0}
    assert again == quality


def test_a_record_of_fid_classifier_has_no_kernel_distance_and_writes_to_no_cache(tmp_path):
    sets = [torch.zeros(10, 1, 8, 8, dtype=torch.uint8)]
    quality, computed = judged(tmp_path, None, "fid_classifier", sets, reference_images=0)
    assert quality["extractor"]["name"] == "classifier"
    assert quality["reference"]["n"] == computed["reference features"] == 1797
    assert "kid" not in quality
    assert not (tmp_path / "cache").exists()


# --- real images


@pytest.fixture(scope="module")
def real():
    """Features of 64 training images of CIFAR-10, and of 32 test images and as much noise."""
    for name, value in (("OFA_TEST_CIFAR10", REAL_IMAGES), ("OFA_TEST_INCEPTION", REAL_WEIGHTS)):
        if not value:
            pytest.skip(f"{name} is not set")
    layer = inception_layer("fid768", Places(inception_weights=Path(REAL_WEIGHTS)))
    with np.load(Path(REAL_IMAGES) / "train.npz", allow_pickle=False) as file:
        train = torch.from_numpy(file["images"][:64]).permute(0, 3, 1, 2)
    with np.load(Path(REAL_IMAGES) / "test.npz", allow_pickle=False) as file:
        test = torch.from_numpy(file["images"][:32]).permute(0, 3, 1, 2)
    noise = torch.randint(0, 256, test.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {name: features_of(pixels, layer, no_report) for name, pixels in (("train", train), ("test", test), ("noise", noise))}


def closed_form(one, two):
    """The Frechet distance without a covariance, which is singular here: the trace of (S1 S2)^(1/2) is a sum of singular values."""
    one, two = one.double(), two.double()
    a, b = ((each - each.mean(dim=0)) / (len(each) - 1) ** 0.5 for each in (one, two))
    means = (one.mean(dim=0) - two.mean(dim=0)).square().sum()
    return float(means + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum())


def test_real_images_are_far_nearer_to_real_images_than_noise_is(real):
    test, noise = (frechet_distance(real[name], real["train"]) for name in ("test", "noise"))
    assert 0 < 2 * test < noise  # of so few images most of the distance is chance
    test, noise = (kernel_distance(real[name], real["train"])[0] for name in ("test", "noise"))
    assert 20 * abs(test) < noise


def test_the_distance_of_real_images_falls_with_their_number(real):
    distances = [frechet_distance(real["test"][:count], real["train"]) for count in (4, 8, 16, 32)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


def test_the_distance_of_real_images_is_a_second_implementation_s(real):
    for name in ("test", "noise"):
        assert frechet_distance(real[name], real["train"]) == pytest.approx(closed_form(real[name], real["train"]), rel=1e-3)
