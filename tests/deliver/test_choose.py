"""From records to a model in someone's hands: choose, extract, ONNX, the hub."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from diffusers.utils import hub_utils
from PIL import Image
from support.commands import typed
from support.record_factory import rewrite
from support.without_us import without_us
from torch import nn

from repro.cli import main
from repro.cli.arguments import parser
from repro.config import load_config
from repro.deliver import device_costs, onnx_export
from repro.deliver.averages import cost_of
from repro.deliver.candidates import Quality, quality_of, spread, within_noise
from repro.deliver.extract import sample_images, save_subnet
from repro.deliver.model_card import _base
from repro.deliver.onnx_export import to_onnx
from repro.diffusion.batches import image_noise
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment
from repro.grid import METHODS
from repro.models.cost import Latency, count_macs, peak_bytes
from repro.models.denoiser import build_base, load_denoiser, load_pipeline, with_widths
from repro.ofa.allocation import Plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
SETTINGS = ("--set", "sizes.reported=[1.0, 0.75, 0.5, 0.25]", "--set", "evaluation.sampling_seeds=[0, 1]")


def python(*arguments, cwd, env=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (env or {})
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    return done


def words(verb, *arguments, runs="runs"):
    return verb, "--config", TINY, *SETTINGS, "--results", "results", "--runs", runs, *arguments


def repro(verb, *arguments, cwd, runs="runs"):
    return typed(main, *words(verb, *arguments, runs=runs), cwd=cwd)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A supernet trained for seconds, its four subnets, and a rival, recorded; qualities are set, so that a choice is known."""
    folder = tmp_path_factory.mktemp("choose")
    done = repro("run", "--methods", "ofa", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    done = repro("run", "--methods", "diff_pruning", "--sizes", "0.5", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    results = folder / "results" / "tiny"
    values = {"ofa-1": [3.0, 3.2], "ofa-0.75": [5.0, 5.4], "ofa-0.5": [5.2, 5.4], "ofa-0.25": [90.0, 91.0], "diff_pruning-0.5": [2.0, 2.1]}
    for name, measured in values.items():
        path = results / f"{name}-seed0.json"
        record = json.loads(path.read_text())
        rewrite(path, quality=record["quality"] | {"values": measured, "mean": statistics.fmean(measured)})
    records = {name: json.loads((results / f"{name}-seed0.json").read_text()) for name in values}
    return SimpleNamespace(folder=folder, results=results, runs=folder / "runs" / "tiny", records=records)


@pytest.fixture(scope="module")
def taken(flow):
    """What `choose --out` made of a budget that P = 0.5 meets, with ONNX."""
    params = flow.records["ofa-0.5"]["size"]["params"]
    done = repro("choose", "--max-params", params, "--out", "taken", "--onnx", cwd=flow.folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=flow.folder / "taken", said=done.stdout)


def table(text):
    """The rows of a printed choice: mark, size and the rest."""
    rows = re.findall(r"^(->|~ |  ) +([\d.]+) +(.*)$", text, flags=re.MULTILINE)
    return {float(size): (mark.strip(), rest) for mark, size, rest in rows}


# Choosing


def test_the_best_recorded_size_within_the_budget_is_taken_and_its_neighbours_shown(flow, taken):
    rows, half = table(taken.said), flow.records["ofa-0.5"]
    assert [size for size, (mark, _) in rows.items() if mark == "->"] == [0.5]
    assert f"{half['size']['params']:,}" in rows[0.5][1] and f"{half['size']['macs']:,}" in rows[0.5][1]
    assert "5.30 ± 0.10 (1 seed)" in rows[0.5][1] and rows[0.5][1].endswith("yes")
    assert rows[0.75][1].endswith("no: more than " + f"{half['size']['params']:,} parameters")
    assert rows[0.25][1].endswith("yes")
    assert "40 samples, 3 DDIM steps, quadratic spacing" in taken.said


@pytest.mark.slow
def test_several_budgets_hold_together_and_noise_is_told(flow):
    macs = flow.records["ofa-0.75"]["size"]["macs"]
    done = python("-m", "repro", *words("choose", "--max-params", "1M", "--max-macs", macs, "--max-memory-mb", "10"), cwd=flow.folder)
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert rows[0.75][0] == "->"
    assert rows[1.0][1].endswith(f"no: more than {macs:,} MACs")
    assert "P = 0.5 cannot be told from it" in done.stdout
    assert "P = 0.25 cannot" not in done.stdout
    rival = flow.records["diff_pruning-0.5"]
    assert rival["size"]["macs"] <= macs
    records = {path.stem: json.loads(path.read_text()) for path in flow.results.glob("*.json")}
    hours = cost_of([rival], records).device_hours  # with the scoring that its sizes share, as the tables have it
    cost = f"{hours:.3g} device-hours on {rival['cost']['device_name']}"
    assert f"diff_pruning at P = 0.5, {rival['size']['params']:,} parameters, 2.05 ± 0.05 (1 seed); {cost} each" in done.stdout


def test_a_better_network_that_does_not_fit_is_not_named(flow, monkeypatch, capsys):
    limit = flow.records["ofa-0.25"]["size"]["params"]
    assert limit < flow.records["diff_pruning-0.5"]["size"]["params"]
    monkeypatch.chdir(flow.folder)
    assert main([str(word) for word in words("choose", "--max-params", limit)]) == 0
    said = capsys.readouterr().out
    assert table(said)[0.25][0] == "->" and "diff_pruning" not in said


def test_memory_and_latency_are_those_of_this_machine(flow):
    done = repro("choose", "--max-latency-ms", "60000", "--max-memory-mb", "1000", cwd=flow.folder)
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert rows[1.0][0] == "->"
    assert "In between: no size lies in between: the largest recorded one, P = 1, fits" in done.stdout
    assert "ms: one image, the median of what was measured now on" in done.stdout and ", 1 thread" in done.stdout
    config = load_config(str(TINY))
    for size, (_, rest) in rows.items():
        widths = flow.records[f"ofa-{size:g}"]["size"]["widths"]
        memory = peak_bytes(with_widths(build_base(config.denoiser, seed=0), widths), (1, 8, 8)) / 1e6
        assert rest.split()[3] == f"{memory:,.3g}"


def test_a_network_of_recorded_widths_costs_what_the_record_says(flow):
    config = load_config(str(TINY))
    for record in flow.records.values():
        model = with_widths(build_base(config.denoiser, seed=0), record["size"]["widths"])
        assert sum(parameter.numel() for parameter in model.parameters()) == record["size"]["params"]
        assert count_macs(model, (1, 8, 8)).total == record["size"]["macs"]


def test_peak_memory_is_that_counted_by_hand():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.Conv2d(16, 1, 3, padding=1, bias=False)

        def forward(self, images, timesteps):
            return self.second(torch.relu(self.first(images)))

    weights, image, wide = 2 * 9 * 16, 64, 16 * 64
    assert peak_bytes(Two(), (1, 8, 8)) == 4 * (weights + image + 2 * wide)  # before and after the ReLU


def test_quality_is_the_mean_over_seeds_with_its_standard_error():
    assert quality_of([[1.0, 3.0], [4.0, 4.0]]) == Quality(mean=3.0, std_error=1.0, seeds=2)
    assert quality_of([[1.0, 3.0]]) == Quality(mean=2.0, std_error=1.0, seeds=1)
    assert quality_of([[1.0]]) == Quality(mean=1.0, std_error=None, seeds=1)
    near, far = Quality(mean=3.0, std_error=1.0, seeds=2), Quality(mean=5.9, std_error=1.0, seeds=2)
    assert not within_noise(near, far)
    assert within_noise(near, Quality(mean=5.8, std_error=1.0, seeds=2))


def timed(monkeypatch, **times):
    """Has every network of the flow take the given milliseconds, by its size; each round of measuring takes the next tuple."""
    asked = dict.fromkeys(times, 0)

    def measure_latency(model, _shape, _batch):
        name = names[sum(parameter.numel() for parameter in model.parameters())]
        asked[name] += 1
        return Latency(times=times[name][(asked[name] - 1) % len(times[name])], busy=True)

    config = load_config(str(TINY))

    def install(flow):
        for name in times:
            widths = flow.records[f"ofa-{name.replace('_', '.')}"]["size"]["widths"]
            names[sum(parameter.numel() for parameter in with_widths(build_base(config.denoiser, seed=0), widths).parameters())] = name
        monkeypatch.setattr(device_costs, "measure_latency", measure_latency)

    names = {}
    return install


def answer(flow, monkeypatch, capsys, *words):
    monkeypatch.chdir(flow.folder)
    code = main(["choose", "--config", str(TINY), *SETTINGS, "--results", "results", "--runs", "none", *words])
    return code, capsys.readouterr()


STEADY = {"1": ((20.0,) * 8,), "0_5": ((6.0,) * 8,), "0_25": ((3.0,) * 8,)}


@pytest.mark.parametrize(
    "rounds",
    [
        ((9.8, 9.8, 11.2, 11.2, 28.9, 28.9),),  # the limit lies between the quartiles
        ((11.0,) * 6, (13.0,) * 6),  # or between two measurements
    ],
)
def test_a_size_whose_latency_may_or_may_not_fit_is_undecided_and_what_surely_fits_is_taken(flow, monkeypatch, capsys, rounds):
    timed(monkeypatch, **{"0_75": rounds}, **STEADY)(flow)
    code, said = answer(flow, monkeypatch, capsys, "--max-latency-ms", "12")
    rows = table(said.out)
    assert code == 0, said.err
    assert [size for size, (mark, _) in rows.items() if mark == "->"] == [0.5]
    assert rows[0.75][1].endswith("undecided") and rows[0.5][1].endswith("yes") and rows[1.0][1].endswith("no: more than 12 ms")
    spread = "11.2 ms (9.8 to 28.9)" if len(rounds) == 1 else "12 ms (11 to 13)"
    assert f"P = 0.75 is undecided: latency {spread} against 12 ms on a busy machine; measure again when the machine is quiet." in said.out
    assert "while other processes took part of it" in said.out


def test_where_nothing_surely_fits_nothing_is_taken(flow, monkeypatch, capsys):
    timed(monkeypatch, **STEADY | {"0_75": ((12.0,) * 8,), "0_25": ((3.0, 3.0, 4.0, 9.0, 9.0),)})(flow)
    code, said = answer(flow, monkeypatch, capsys, "--max-latency-ms", "5")
    (line,) = said.err.splitlines()
    assert code == 2 and "P = 0.25, is undecided: latency 4 ms (3 to 9) against 5 ms on a busy machine; measure again" in line
    code, said = answer(flow, monkeypatch, capsys, "--max-latency-ms", "2")
    assert code == 2 and "--max-latency-ms: no recorded subnet fits; the smallest, P = 0.25, needs 4 ms" in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["give a budget: --max-params, --max-macs, --max-latency-ms, --max-memory-mb"]),
        (["--max-params", "10"], ["--max-params: no recorded subnet fits", "P = 0.25", "parameters", "allow more"]),
        (["--max-memory-mb", "0.001"], ["--max-memory-mb: no recorded subnet fits", " MB"]),
        (["--max-params", "-1"], ["--max-params -1: must be positive"]),
        (["--max-params", "1M", "--between"], ["--between: goes with --out"]),
        (["--max-params", "1M", "--onnx"], ["--onnx: goes with --out"]),
        (["--max-params", "1M", "--measure"], ["--between, --measure: no size lies in between"]),
        (["--max-params", "1M", "--seed", "7"], ["no measured subnet of ofa at seed 7", "python -m repro run", "--seeds 7"]),
        (["--max-params", "1M", "--out", "results"], ["--out results: something is there already"]),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(flow, arguments, says, monkeypatch, capsys):
    monkeypatch.chdir(flow.folder)
    assert main(["choose", "--config", str(TINY), *SETTINGS, "--results", "results", "--runs", "runs", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(said in line for said in says), line


@pytest.mark.parametrize("text", ["20X", "", "M", "much"])
def test_a_count_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["choose", "--max-params", text])
    assert stop.value.code == 2
    assert f"'{text}' is no count; write it as 20000000, 20M or 3.4G" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "count"), [("20M", 2e7), ("3.4G", 3.4e9), ("100k", 1e5), ("163985", 163985)])
def test_a_count_may_have_a_suffix(text, count):
    assert parser({"choose": (lambda _: 0, "summary")}).parse_args(["choose", "--max-params", text]).max_params == pytest.approx(count)


def test_without_the_weights_a_choice_is_still_made_and_nothing_is_extracted(flow, tmp_path):
    shutil.copytree(flow.folder / "results", tmp_path / "results")
    done = repro("choose", "--max-params", "30k", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a size in between needs the trained weights" in done.stdout
    done = repro("choose", "--max-params", "30k", "--out", "taken", cwd=tmp_path)
    assert done.returncode == 2 and "run `python -m repro run" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_a_record_of_another_seed_and_configuration_is_refused(flow, tmp_path):
    shutil.copytree(flow.folder / "results", tmp_path / "results")
    record = flow.records["ofa-0.5"]
    record = record | {"cell": record["cell"] | {"name": "ofa-0.5-seed1", "seed": 1}}
    path = tmp_path / "results" / "tiny" / "ofa-0.5-seed1.json"
    path.write_text(json.dumps(record))
    rewrite(path, config={"hours": 1.0}, delivered_by=["ofa_joint-seed1"], samples=None)
    done = repro("choose", "--max-params", "1M", cwd=tmp_path)
    assert done.returncode == 2 and "ofa-0.5-seed1.json: the record was made under another configuration" in done.stderr


def test_damaged_weights_bar_no_choice_among_the_records(flow, tmp_path):
    shutil.copytree(flow.folder / "results", tmp_path / "results")
    made = flow.runs / "ofa_joint-seed0" / "made.json"
    assert made.is_file(), sorted(path.name for path in made.parent.iterdir())
    shutil.copytree(flow.runs, tmp_path / "runs" / "tiny", ignore=shutil.ignore_patterns("samples"))
    (tmp_path / "runs" / "tiny" / "ofa_joint-seed0" / "made.json").write_text(
        made.read_text().replace("ofa_joint-seed0 of", "ofa_joint-seed0 of another")
    )
    limit = flow.records["ofa-0.5"]["size"]["params"]
    done = repro("choose", "--max-params", limit, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "take P = 0.5 of seed 0" in done.stdout
    assert "In between: a size in between needs the trained weights: " in done.stdout
    assert "damaged, its checksum is not that of its content" in done.stdout


# In between


def test_a_trained_size_that_was_not_measured_is_offered_before_an_untrained_one(flow, tmp_path):
    shutil.copytree(flow.folder / "results", tmp_path / "results")
    (tmp_path / "results" / "tiny" / "ofa-0.75-seed0.json").unlink()
    limit = flow.records["ofa-0.75"]["size"]["params"] + 1
    done = repro("choose", "--max-params", limit, "--out", "taken", "--between", cwd=tmp_path, runs=flow.folder / "runs")
    assert done.returncode == 0, done.stderr
    assert table(done.stdout)[0.75][0] == "~"
    assert "~ P = 0.75: in between, trained, but not measured" in done.stdout
    assert sum(parameter.numel() for parameter in load_denoiser(tmp_path / "taken").parameters()) == limit - 1
    assert "extracted without retraining" in (tmp_path / "taken" / "README.md").read_text()


def test_a_size_in_between_is_the_largest_that_fits_marked_measured_and_nested(flow):
    smaller, larger = (flow.records[f"ofa-{size}"]["size"]["params"] for size in ("0.5", "0.75"))
    limit = (smaller + larger) // 2
    done = repro("choose", "--max-params", limit, "--measure", "--out", "between", "--between", cwd=flow.folder)
    assert done.returncode == 0, done.stderr
    (size, (_, rest)) = next(row for row in table(done.stdout).items() if row[1][0] == "~")
    assert 0.5 < size < 0.75 and rest.endswith("yes") and "(1 seed)" in rest
    assert "never trained at this size" in done.stdout and "measured just now" in done.stdout
    model = load_denoiser(flow.folder / "between")
    params = sum(parameter.numel() for parameter in model.parameters())
    assert smaller < params <= limit
    dearest = max(pipe.params_per_unit for pipe in pipes_of(build_base(load_config(str(TINY)).denoiser, seed=0)))
    assert limit - params < 2 * dearest  # nothing larger fits
    card = (flow.folder / "between" / "README.md").read_text()
    assert "**between two trained sizes**" in card and "| quality | not measured yet |" in card
    # Its weights are rows and columns of the trained supernet's, among those of the larger size and with all of the smaller one's.
    plan = json.loads((flow.runs / "ofa_joint-seed0" / "plan.json").read_text())["kept"]
    weights = "unet/diffusion_pytorch_model.safetensors"
    joint = safetensors.torch.load_file(flow.runs / "ofa_joint-seed0" / "model" / weights)
    own = safetensors.torch.load_file(flow.folder / "between" / weights)
    for pipe in (name for name in plan["0.5"] if "resnets" in name):
        rows = joint[f"{pipe}.norm2.weight"].tolist()
        kept = {rows.index(value) for value in own[f"{pipe}.norm2.weight"].tolist() if rows.count(value) == 1}
        assert kept <= set(plan["0.75"][pipe])
        assert {row for row in plan["0.5"][pipe] if rows.count(rows[row]) == 1} <= kept


# In somebody's hands


def test_what_was_taken_is_the_subnet_of_the_supernet_bit_for_bit_in_a_fresh_process(flow, taken):
    """Sampled there with diffusers and this package alone, here from inside the supernet."""
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    safetensors.torch.save_file({"noise": noise}, flow.folder / "noise.safetensors")
    code = (
        "import sys, torch, safetensors.torch as st, repro.models.denoiser\n"
        "from diffusers import DDIMPipeline\n"
        "from diffusers.pipelines.ddim import pipeline_ddim\n"
        "torch.set_num_threads(1)\n"
        "pipeline = DDIMPipeline.from_pretrained(sys.argv[1])\n"
        "pipeline_ddim.randn_tensor = lambda *a, **k: st.load_file(sys.argv[2])['noise']\n"
        "images = pipeline(batch_size=3, num_inference_steps=3, output_type='np').images\n"
        "st.save_file({'images': torch.from_numpy(images).contiguous()}, sys.argv[3])\n"
    )
    done = python("-c", code, taken.folder, flow.folder / "noise.safetensors", flow.folder / "images.safetensors", cwd=flow.folder)
    assert done.returncode == 0, done.stderr[-2000:]
    joint = flow.runs / "ofa_joint-seed0"
    base = load_denoiser(joint / "model")
    supernet = Supernet(base, pipes_of(base), Plan.from_json((joint / "plan.json").read_text())).eval()
    scheduler = load_pipeline(taken.folder).scheduler
    scheduler.set_timesteps(3)
    images = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = supernet(0.5, images, timestep).sample
            images = scheduler.step(predicted, timestep, images, eta=0.0, use_clipped_model_output=None).prev_sample
    expected = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert torch.equal(safetensors.torch.load_file(flow.folder / "images.safetensors")["images"], expected)


def test_the_card_tells_what_the_records_say(flow, taken):
    card, record = (taken.folder / "README.md").read_text(), flow.records["ofa-0.5"]
    joint = json.loads((flow.results / "ofa_joint-seed0.json").read_text())
    latency = record["latency"][0]
    busy = " on a busy machine," if latency["busy"] else ""
    for said in (
        f"| parameters | {record['size']['params']:,} of the base's ",
        f"| MACs per image | {record['size']['macs']:,} ",
        "| quality | fid_classifier 5.30 (40 samples, 3 DDIM steps",
        f"{spread(latency['ms'], latency['ms_quartiles'])}{busy} for a batch of 1 on {latency['device_name']}",
        f"{joint['training']['images']:,} images",
        f"{joint['cost']['device_hours']:.4g} device-hours",
        f"sha256 {joint['base']['sha256']}",
        f"sha256 {record['provenance']['config_sha256']}",
        f"torch {joint['provenance']['packages']['torch']}",
    ):
        assert said in card
    with Image.open(taken.folder / "samples.png") as grid:
        assert grid.size == (272, 272)  # 4 x 4 images of 8 x 8, enlarged to 64 x 64, with an edge of 2
        drawn = np.asarray(grid).reshape(4, 68, 4, 68)[0, 2:66:8, :, 2:66:8].reshape(8, 32)
    with Image.open(flow.results / record["samples"]["file"]) as strip:
        assert np.array_equal(drawn, np.asarray(strip)[:, :32])  # the first four of the record's


@pytest.mark.quick
@pytest.mark.parametrize(("source", "said"), [("shipped", "shipped with ofa-diffusion"), ("train", "trained here"), ("path", "given/here")])
def test_the_card_says_where_the_base_came_from(source, said):
    folder = {"folder": said} if source == "path" else {}
    record = {"base": {"source": source, "weights": "ema", "sha256": "a" * 64} | folder}
    assert _base(record) == f"{said}, ema weights, sha256 {'a' * 64}"


def test_onnx_is_torch_s_network_at_every_batch(taken):
    session = onnxruntime.InferenceSession(taken.folder / "model.onnx", providers=["CPUExecutionProvider"])
    model = load_denoiser(taken.folder)
    for count in (1, 3, 7):
        images, timesteps = torch.randn(count, 1, 8, 8), torch.randint(0, 1000, (count,))
        (found,) = session.run(None, {"sample": images.numpy(), "timestep": timesteps.numpy()})
        with torch.no_grad():
            expected = model(images, timesteps).sample
        assert expected.abs().max() > 0.1
        assert np.abs(found - expected.numpy()).max() < 1e-4


def code_of(folder):
    """The blocks of code on a card: for this package, for torch and diffusers alone, and for the ONNX file."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def first_samples(flow, cell):
    """What the quality of a cell was measured with: its first samples, as many as a card draws, [16, 1, 8, 8]."""
    with Image.open(flow.results / flow.records[cell]["samples"]["file"]) as strip:
        return np.asarray(strip).reshape(8, 16, 8).transpose(1, 0, 2)[:, None]


def test_the_card_s_code_draws_the_images_that_were_measured_to_the_bit(flow, taken):
    code = code_of(taken.folder)[0] + "\nimport numpy as np\nnp.save('card.npy', pixels.numpy())\n"
    done = python("-c", code, cwd=flow.folder)
    assert done.returncode == 0, done.stderr[-2000:]
    drawn = np.load(flow.folder / "card.npy")
    assert len(drawn) == 16 and np.array_equal(drawn, first_samples(flow, "ofa-0.5"))
    with Image.open(taken.folder / "samples.png") as grid:
        assert np.array_equal(
            np.asarray(grid).reshape(4, 68, 4, 68)[:, 2:66:8, :, 2:66:8].transpose(0, 2, 1, 3).reshape(16, 1, 8, 8), drawn
        )


def test_the_card_says_what_loads_the_folder_and_what_needs_trust(taken):
    card = (taken.folder / "README.md").read_text()
    assert "runs no code of this folder" in card and "`unet/repro.harness.denoiser.py`" in card
    assert f"`{sha256((taken.folder / 'unet' / 'repro.harness.denoiser.py').read_bytes()).hexdigest()}`" in card
    assert "visits other timesteps than those that the quality was measured with" in card  # the spacing is quadratic
    assert "`UNet2DModel.from_config` of `unet/` builds the whole network, not this one" in card


def test_the_card_s_three_lines_load_and_sample_where_this_package_is_not_installed(flow, taken, tmp_path):
    code = code_of(taken.folder)[1]
    assert 'DiffusionPipeline.from_pretrained("taken", trust_remote_code=True)' in code and "repro" not in code
    shutil.copytree(taken.folder, tmp_path / "taken")
    without_us(code + "\nassert len(images) == 4 and images[0].size == (8, 8)\n", home=tmp_path)


def test_the_card_s_code_draws_what_was_measured_without_torch(flow, taken):
    code = code_of(taken.folder)[-1]
    assert "torch" not in code and "repro" not in code
    noise = np.stack([image.numpy() for image in image_noise(range(16), (1, 8, 8), 0, 0)])
    np.save(flow.folder / "noise.npy", noise)
    code = re.sub(r"np\.random\.default_rng\(0\)\.standard_normal\(.*?\)\)", "np.load('noise.npy')", code)
    assert "np.load('noise.npy')" in code
    code += "\nimport sys\nassert 'torch' not in sys.modules\nnp.save('drawn.npy', pixels)\n"
    done = python("-c", code, cwd=flow.folder, env={"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    measured = first_samples(flow, "ofa-0.5").astype(float)
    assert np.abs(np.load(flow.folder / "drawn.npy") - measured).max() <= 1  # grey level: the two runtimes differ by 1e-6


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_card_samples_as_its_configuration_does(flow, taken, monkeypatch, clip_sample, spacing, precision):
    settings = [f"evaluation.spacing={spacing}", f"evaluation.clip_sample={str(clip_sample).lower()}", f"evaluation.precision={precision}"]
    config = load_config(str(TINY), [*settings, "evaluation.sampler_steps=5"])
    experiment = Experiment(config=config, methods=METHODS, results=flow.folder / "none", runs=flow.folder / "none", source="")
    cell, network = Cell(method="ofa", size=0.5, seed=3), load_denoiser(taken.folder)
    out = flow.folder / f"{spacing}-{clip_sample}-{precision}"
    save_subnet(experiment, cell, network, build_base(config.denoiser, seed=0), out=out, onnx=False, recorded=False)
    monkeypatch.chdir(flow.folder)
    names = {}
    exec(code_of(out)[0], names)  # noqa: S102
    assert torch.equal(names["pixels"], sample_images(experiment, network, cell))
    assert ("visits the same timesteps" in (out / "README.md").read_text()) is (spacing == "uniform")


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_betas_of_a_card_are_diffusers(schedule):
    from repro.config import Diffusion
    from repro.deliver.model_card import BETAS
    from repro.diffusion.ddpm import noise_schedule

    settings = Diffusion(beta_schedule=schedule, num_train_timesteps=100)
    found = eval(BETAS[schedule].format(start=settings.beta_start, end=settings.beta_end, count=100), {"np": np})  # noqa: S307
    np.testing.assert_allclose(found, noise_schedule(settings).betas.numpy(), rtol=2e-5, atol=1e-8)


@pytest.mark.slow
def test_an_onnx_file_that_differs_is_refused(monkeypatch):
    model = build_base(load_config(str(TINY)).denoiser, seed=0).eval()
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(ReproError, match=r"differs from torch by .*nothing was written"):
        to_onnx(model, (1, 8, 8), torch.arange(1000))


@pytest.mark.slow
def test_a_transformer_is_exported_too():
    model = build_base(load_config("digits_transformer").denoiser, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    content, difference = to_onnx(model, (1, 8, 8), torch.arange(1000))
    assert content[:1] and difference < 1e-4


def test_push_to_hub_sends_what_loads_again(taken, tmp_path, monkeypatch):
    """Everything but the network: diffusers' own method writes the folder that the hub would hold."""
    sent = tmp_path / "hub"

    def create_repo(repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(*, folder_path, repo_id, **_):
        assert repo_id == "someone/subnet"
        shutil.copytree(folder_path, sent)

    monkeypatch.setattr(hub_utils, "create_repo", create_repo)
    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr(
        hub_utils, "load_or_create_model_card", lambda *_, **__: SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    )
    monkeypatch.setattr(hub_utils, "populate_model_card", lambda card: card)
    load_pipeline(taken.folder).push_to_hub("someone/subnet")
    images, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        expected = load_denoiser(taken.folder)(images, timesteps).sample
        assert torch.equal(load_denoiser(sent)(images, timesteps).sample, expected)
