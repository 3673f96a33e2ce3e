"""A metric from outside is honoured from the configuration to the record: the script of docs/extend.md, on the tiny configuration."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.blocks import ROOT, blocks_of

from repro.api import METHODS, Experiment, Metric, Parts, ReproError, load_config, main, parts_of, plan_cells
from repro.budget.preflight import preflight
from repro.budget.work import stages
from repro.data.images import load_images
from repro.metrics.frechet import METRICS as PACKAGE

TINY = ROOT / "tests" / "tiny.toml"
(SCRIPT,) = (block.text for block in blocks_of(ROOT / "docs" / "extend.md") if block.file == "moments.py")
JUDGED = ["--set", "evaluation.metric=moments", "--set", "evaluation.samples=16"]  # as many as the record's strip shows


def of_script():
    """The classes of the script."""
    names = {"__name__": "moments"}
    exec(SCRIPT, names)  # noqa: S102
    return names


Moments = of_script()["Moments"]


def places(folder):
    return ["--config", str(TINY), "--results", str(folder / "results"), "--runs", str(folder / "runs")]


def experiment(folder, metric, /, **evaluation):
    parts = parts_of([metric])
    config = load_config(str(TINY), [f"evaluation.metric={metric.name}", "evaluation.samples=16"], parts.names)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **evaluation))
    return Experiment(config=config, parts=parts, methods=METHODS, results=folder / "results", runs=folder / "runs", source="")


@pytest.fixture(scope="module", params=["here", pytest.param("side by side", marks=pytest.mark.slow)])
def ran(request, tmp_path_factory):
    """A folder where two cells have been judged: in this process, or by the script, side by side in processes of their own."""
    folder = tmp_path_factory.mktemp("metric")
    if request.param == "here":
        assert main(Moments(), arguments=["run", *places(folder), *JUDGED, "--methods", "base,floor"]) == 0
        return folder
    (folder / "moments.py").write_text(SCRIPT)
    command = [sys.executable, "moments.py", "run", *places(folder), *JUDGED, "--methods", "base,floor", "--parallel-cells", "2"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_record_holds_the_value_and_what_the_metric_says_of_itself(ran):
    record, floor = (json.loads((ran / "results" / "tiny" / f"{name}-seed0.json").read_text()) for name in ("base-1", "floor"))
    quality = record["quality"]
    assert (quality["metric"], quality["tool"], quality["extractor"]) == ("moments", "a script", {"name": "pixels"})
    assert "kid" not in quality and floor["quality"]["metric"] == "moments"
    assert record["provenance"]["config"]["evaluation"]["metric"] == "moments"
    strip = np.asarray(Image.open(ran / "results" / "tiny" / "samples" / "base-1-seed0.png"))
    drawn = strip.reshape(8, 16, 8).transpose(1, 0, 2).reshape(16, 64) / 255
    config = load_config(str(TINY))
    real = load_images(config.data, (1, 8, 8), experiment(ran, Moments()).places).pixels.numpy().reshape(-1, 64) / 255
    expected = ((drawn.mean(0) - real.mean(0)) ** 2).sum() + ((np.cov(drawn.T) - np.cov(real.T)) ** 2).sum()
    assert quality["mean"] == pytest.approx(expected, rel=1e-4)


def test_the_estimate_charges_its_flop_and_no_classifier(tmp_path):
    this = experiment(tmp_path, Moments())
    found = {stage.name: stage for stage in stages(this, plan_cells(this, ["base", "floor"], None, [0]))}
    assert "classifier: training" not in found and not any(name.endswith("fid_classifier") for name in found)
    assert found["features for moments"].images == 1797 + 16 + 2 * 898
    assert found["features for moments"].pflop == pytest.approx(64 * (1797 + 16 + 2 * 898) / 1e15)


def test_a_further_metric_judges_the_same_samples(tmp_path):
    """Each finds what it would find alone, and the record says so of both."""
    words = ["--set", 'evaluation.also=["moments"]', "--set", "evaluation.samples=16"]
    assert main(Moments(), arguments=["run", *places(tmp_path), *words, "--methods", "base"]) == 0
    assert main(Moments(), arguments=["run", *places(tmp_path / "alone"), *JUDGED, "--methods", "base"]) == 0
    both, alone = (json.loads((place / "results" / "tiny" / "base-1-seed0.json").read_text()) for place in (tmp_path, tmp_path / "alone"))
    assert both["quality"]["metric"] == "fid_classifier"
    (other,) = both["quality"]["also"]
    assert other == {key: alone["quality"][key] for key in ("metric", "tool", "extractor", "mean", "values")}
    assert both["samples"] == alone["samples"] and "also" not in alone["quality"]
    this = experiment(tmp_path, Moments(), metric="fid_classifier", also=("moments",))
    found = {stage.name: stage for stage in stages(this, plan_cells(this, ["base", "floor"], None, [0]))}
    assert found["features for moments"].images == found["features for fid_classifier"].images == 1797 + 16 + 2 * 898


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ('["fid_clasifier"]', "evaluation.also: unknown value 'fid_clasifier', use fid, fid768, fid_classifier; did you mean"),
        ('["fid_classifier"]', "evaluation.also: names fid_classifier, which is evaluation.metric; leave it out"),
        ('["fid768", "fid768"]', "evaluation.also: names a value twice"),
    ],
)
def test_a_further_metric_that_is_none_is_refused(value, line, tmp_path, capsys):
    assert main(arguments=["status", *places(tmp_path), "--set", f"evaluation.also={value}"]) == 2
    assert line in capsys.readouterr().err


class Learned(Moments):
    """Says more than it must: an extractor that is fetched and trained."""

    name, kernel, section, cached_width = "learned", "kid_pixels", "classifier", 64

    def training(self, image_shape, config):
        return 30, 2e14

    def download_bytes(self, places):
        return 5 * 10**8

    def check_images(self, images, config):
        if config.evaluation.reference_images == 7:
            raise ReproError(f"evaluation.metric: learned suits no set such as {images.name}")

    def check_weights(self, places):
        return "pixels, as they are"


def test_the_estimate_charges_what_an_extractor_takes(tmp_path):
    this = experiment(tmp_path, Learned())
    found = {stage.name: stage for stage in stages(this, plan_cells(this, ["floor"], None, [0]))}
    trained = found["classifier: training"]
    assert (trained.images, trained.pflop, trained.kind) == (30, 0.2, "features")
    assert found["data and weights"].kept_gb == pytest.approx(0.5)
    assert found["features for learned"].kept_gb == pytest.approx(4 * 64 * 1797 / 1e9)


def test_what_it_needs_is_checked_before_a_run(tmp_path, capsys, monkeypatch):
    this = experiment(tmp_path, Learned())
    cells = plan_cells(this, ["floor"], None, [0])
    preflight(this, cells, yes=True)
    assert "features: pixels, as they are" in capsys.readouterr().out
    with pytest.raises(ReproError, match="learned suits no set such as digits"):
        preflight(experiment(tmp_path, Learned(), reference_images=7), cells, yes=True)
    monkeypatch.setattr("repro.runtime.distributed.ranks", lambda: 3)
    with pytest.raises(ReproError, match=r"classifier\.batch_size: 128 images cannot be shared by 3 ranks"):
        preflight(this, cells, yes=True)


class Wrong(Moments):
    name, found = "wrong", math.nan

    def distance(self, features, reference):
        return self.found


@pytest.mark.parametrize("found", [math.nan, 0.0])
def test_a_distance_that_is_none_fails_the_cell_and_not_the_machinery(tmp_path, found, capsys, monkeypatch):
    monkeypatch.setattr(Wrong, "found", found)
    assert main(Wrong(), arguments=["run", *places(tmp_path), "--set", "evaluation.metric=wrong", "--methods", "floor"]) == 1
    record = json.loads((tmp_path / "results" / "tiny" / "floor-seed0.json").read_text())
    assert record["status"] == "failed" and f"wrong found a distance of {found}; it must be a positive" in record["reason"]


@pytest.mark.parametrize(
    ("own", "words", "named"),
    [
        ([], JUDGED, "evaluation.metric: unknown value 'moments', use fid, fid768, fid_classifier; did you mean 'fid_classifier'?"),
        (
            [Moments()],
            ["--set", "evaluation.metric=moment"],
            "evaluation.metric: unknown value 'moment', use fid, fid768, fid_classifier, moments; did you mean 'moments'?",
        ),
        ([Moments(), Moments()], JUDGED, "metric 'moments': there is one of this name already"),
        ([type("Fid", (Moments,), {"name": "fid"})()], [], "metric 'fid': there is one of this name already"),
        ([type("Slash", (Moments,), {"name": "a/b"})()], [], "metric 'a/b': records name it"),
        ([Moments], JUDGED, "no method, metric, sampler, formulation, space or condition; give an object of a class"),
        ([print], [], "no method, metric, sampler, formulation, space or condition; give an object of a class"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, own, words, named):
    assert main(*own, arguments=["status", *places(tmp_path), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


def test_the_names_of_the_package_are_those_that_a_configuration_takes():
    assert Parts().names["evaluation.metric"] == tuple(PACKAGE)
    assert [Parts().metric(name) for name in PACKAGE] == list(PACKAGE.values())
    with pytest.raises(ReproError, match="unknown value 'moments'"):
        Parts().metric("moments")


def test_what_a_metric_must_say_is_asked_for_when_its_object_is_made():
    with pytest.raises(TypeError, match="distance"):
        type("Half", (Metric,), {"name": "half", "layer": Moments.layer, "flop": Moments.flop})()
