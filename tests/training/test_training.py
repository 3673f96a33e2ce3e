"""The training loop: against a plain loop, over ranks, and through crashes."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from support.commands import typed
from support.ranks import BATCH, KINDS, SIZES, STEPS, StoppedError, network, quiet, run_of, scored, settings, sizes_of, stop_at, weights

from repro.cli import main
from repro.config import Execution, Training, load_config
from repro.errors import ReproError, RunError
from repro.files.sealed import read_sealed, write_sealed
from repro.methods.plan import score_base
from repro.runtime.clock import Clock
from repro.training.checkpoint import saved_steps
from repro.training.loop import Run, ema_decay, train

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
OVERHEAD = ("prepare", "importance", "train", "checkpoint", "lost")
# Its own deprecated decorator, when DeepSpeed's ZeRO (through torch.compile) first imports torch.utils.mkldnn.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment(**more):
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return inherited | {"OMP_NUM_THREADS": "1"} | more


def command(folder, *overrides, methods="base"):
    sets = [part for override in overrides for part in ("--set", override)]
    folders = ["--results", str(folder / "results"), "--runs", str(folder / "runs")]
    return ["run", "--config", str(TINY), "--methods", methods, *folders, *sets]


def start(folder, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "repro", *command(folder, *overrides)], cwd=ROOT, env=environment(), stdout=output, stderr=output
        )


def finish(folder, *overrides):
    """Runs to the end in this process, so that nothing is imported anew."""
    done = typed(main, *command(folder, *overrides), cwd=ROOT)
    assert done.returncode == 0, done.stderr


def finish_in_a_process(folder, *overrides):
    """Runs to the end in a process of its own, whose phases hold all its time, and returns how long that took."""
    begun = time.monotonic()
    process = start(folder, *overrides)
    try:
        code = process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert code == 0, (folder / "output.txt").read_text()
    return time.monotonic() - begun


def kill_once(folder, ready, *overrides):
    """Starts a run, kills it with SIGKILL as soon as `ready()`, and returns how long it lived."""
    begun = time.monotonic()
    process = start(folder, *overrides)
    try:
        while not ready():
            assert process.poll() is None, f"ended before it could be killed: {(folder / 'output.txt').read_text()}"
            assert time.monotonic() - begun < 90, "never came to the point where it should be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        code = process.wait()
    assert code == -signal.SIGKILL
    return time.monotonic() - begun


def cell_folder(folder):
    return folder / "runs" / "tiny" / "base-1-seed0"


def record_of(folder):
    return json.loads((folder / "results" / "tiny" / "base-1-seed0.json").read_text())


def model_bytes(folder):
    return (cell_folder(folder) / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def heartbeat(folder):
    path = cell_folder(folder) / "heartbeat.json"
    return json.loads(path.read_text()) if path.exists() else None


def newest(folder):
    """The newest checkpoint in the folder of a run's checkpoints; None where there is none."""
    return max(folder.glob("step-*.safetensors"), default=None)


def checkpoint_progress(folder):
    path = newest(cell_folder(folder) / "checkpoints")
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["about"])["progress"]


def overhead_sec(seconds):
    return sum(seconds[name] for name in OVERHEAD)


def phases_sec(record):
    return {name: 3600 * hours for name, hours in record["cost"]["phases_device_hours"].items()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Two threads on a shared machine wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gap(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def settled(weights):
    """Leaves out the bias of keys: softmax takes it away, so its gradient is rounding error and Adam makes a whole step of that."""
    return {name: value for name, value in weights.items() if not name.endswith("to_k.bias")}


# Against a plain loop


def plain_loop(module, loss_of, *, steps, learning_rate, warmup, cosine, clip, decay):
    """Adam, warm-up, cosine, clipping and EMA, each as its textbook has it; returns the EMA and the losses."""
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=learning_rate)
    shadow = {name: value.detach().clone() for name, value in parameters.items()}
    losses, bites = [], 0
    module.train()
    for step in range(steps):
        factor = min(1.0, step / warmup) if warmup else 1.0
        if cosine and step >= warmup:
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        optimizer.param_groups[0]["lr"] = learning_rate * factor
        optimizer.zero_grad()
        loss = loss_of(module, step)
        loss.backward()
        losses.append(loss.item())
        if clip:
            norm = math.sqrt(sum(float(value.grad.double().square().sum()) for value in parameters.values()))
            bites += norm > clip
            for value in parameters.values():
                value.grad *= min(1.0, clip / (norm + 1e-6))
        optimizer.step()
        keep = decay if step else 0.0  # the average starts from the weights after the first step
        for name, value in parameters.items():
            shadow[name] = keep * shadow[name] + (1 - keep) * value.detach()
    return shadow, losses, bites


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize(("warmup", "decay"), [(3, 0.25), (3, 0.9), (0, 0.25), (0, 0.9)])  # (1 + n) / (10 + n) never comes near 0.9 here
def test_loop_equals_a_plain_torch_loop(tiny, schedule, clip, warmup, decay):
    run, budget = run_of(tiny, "base"), {"steps": 8, "learning_rate": 3e-3}

    def loss_of(module, step):
        batch = run.batches(step)
        return (module(batch.noisy, batch.timesteps).sample - batch.target).square().mean()

    def reference(clip):
        module = network(tiny, "base")
        return plain_loop(module, loss_of, **budget, warmup=warmup, cosine=schedule == "cosine", clip=clip, decay=decay)

    expected, losses, bites = reference(clip)
    module = network(tiny, "base")
    trained = train(
        module,
        run,
        Training(**budget, batch_size=8, warmup_steps=warmup, schedule=schedule, gradient_clipping=clip, ema_decay=decay),
        Clock(),
        quiet,
    )
    assert gap(settled(weights(module)), settled(expected)) < 1e-5
    assert [step for step, _ in trained] == list(range(1, 9))
    np.testing.assert_allclose([loss for _, loss in trained], losses, atol=1e-5)
    if clip:
        assert bites == 8
        assert gap(settled(expected), settled(reference(0.0)[0])) > 1e-4  # clipping matters here, so that the comparison means something


class Placed(torch.nn.Module):
    """A network that names what does not decay, as U-ViT names its positions."""

    def __init__(self):
        super().__init__()
        self.positions = torch.nn.Parameter(torch.full((3,), 2.0))
        self.linear = torch.nn.Linear(3, 3)

    def no_weight_decay(self):
        return {"positions"}

    def forward(self):
        return self.linear(self.positions)


def adamw_by_hand(weight, gradients, *, decay, learning_rate=0.01, betas=(0.8, 0.95)):
    """Loshchilov and Hutter's algorithm 2; the first moments' sums are small enough for float64."""
    weight, first, second = weight.double(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        weight = weight * (1 - learning_rate * decay)
        weight = weight - learning_rate * (first / (1 - betas[0] ** step)) / ((second / (1 - betas[1] ** step)).sqrt() + 1e-8)
    return weight


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weight_decay_is_adamw_s_and_spares_what_a_network_names(stage):
    inner = Placed()
    start = {name: value.detach().clone() for name, value in inner.named_parameters()}

    def loss(module, _batch, step):
        return sum(((step + 1) * value).sum() for value in inner.parameters()) + 0 * module.base().sum()

    wrapped = torch.nn.ModuleDict({"base": inner})
    wrapped.forward = inner.forward
    budget = Training(
        steps=4, batch_size=1, learning_rate=0.01, gradient_clipping=0, ema_decay=0, betas=(0.8, 0.95), weight_decay=3.0, zero_stage=stage
    )
    train(wrapped, Run(identity="x", seed=0, batches=lambda step: step, loss=loss), budget, Clock(), quiet)
    for name, value in inner.named_parameters():
        gradients = [torch.full(value.shape, step + 1.0, dtype=torch.float64) for step in range(4)]
        expected = adamw_by_hand(start[name], gradients, decay=0.0 if name == "positions" else 3.0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_average_by_half_life_and_a_warm_up_in_images():
    """Karras et al., 2022: the decay is 0.5^(batch / min(half-life, ramp * images so far)), the rate rises with the images."""
    module = torch.nn.Linear(1, 1, bias=False)
    start = module.weight.item()
    budget = Training(
        steps=12, batch_size=8, learning_rate=0.01, gradient_clipping=0, warmup_images=32, ema_half_life_images=40, ema_ramp=0.5
    )

    def loss(module, _batch, _step):
        return 10 + module.weight.sum()  # Adam then moves by the rate at each step

    train(module, Run(identity="x", seed=0, batches=lambda step: step, loss=loss), budget, Clock(), quiet)
    weight = average = start
    for step in range(12):
        weight -= 0.01 * min(1.0, 8 * step / 32)
        half_life = min(40, 0.5 * 8 * step)
        keep = 0.5 ** (8 / half_life) if half_life else 0.0
        average = keep * average + (1 - keep) * weight
    assert module.weight.item() == pytest.approx(average, abs=1e-6)
    flat = Training(steps=1, batch_size=8, learning_rate=1, ema_half_life_images=40)
    assert math.prod(ema_decay(flat, step) for step in range(1, 6)) == pytest.approx(0.5)  # after 40 images


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warmup_images": 10, "warmup_steps": 1}, "warmup_images: goes without warmup_steps"),
        ({"ema_half_life_images": 10, "ema_decay": 0.9}, "ema_half_life_images: goes without ema_decay"),
        ({"ema_ramp": 0.05}, "ema_ramp: bounds ema_half_life_images"),
        ({"betas": (0.9,)}, "betas: needs two numbers"),
        ({"weight_decay": -1.0}, "weight_decay: must not be negative"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, named):
    with pytest.raises(ReproError, match=named):
        Training(steps=1, batch_size=1, learning_rate=1, **changes)


def test_curve_points_are_mean_losses_and_at_most_about_fifty(tiny):
    losses = []

    def loss(module, _batch, step):
        losses.append((step % 7) + module.weight.sum() * 0)
        return losses[-1]

    budget = Training(steps=120, batch_size=1, learning_rate=1e-3)
    trained = train(torch.nn.Linear(1, 1), Run(identity="x", seed=0, batches=lambda step: step, loss=loss), budget, Clock(), quiet)
    expected = [[step, ((step - 2) % 7 + (step - 1) % 7) / 2] for step in range(2, 121, 2)]
    assert trained == expected


def test_dropout_depends_on_the_step_alone(tiny):
    def trained(noise):
        torch.manual_seed(noise)
        module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.1)
        run = Run(identity="x", seed=4, batches=lambda _step: torch.ones(4, 8), loss=lambda m, batch, _step: (m(batch) - 3).square().mean())
        train(module, run, Training(steps=5, batch_size=4, learning_rate=0.1, dropout=0.5), Clock(), quiet)
        return weights(module)

    assert gap(trained(0), trained(1)) == 0


# Over ranks


def over_ranks(folder, ranks):
    """Lets gloo ranks train what `ranks.py` says and returns the folder that they left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    try:
        for rank in range(ranks):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            with (folder / f"output-{rank}.txt").open("wb") as output:
                script = [sys.executable, str(ROOT / "tests" / "support" / "ranks.py"), str(folder)]
                variables["PYTHONPATH"] = str(ROOT)
                processes.append(subprocess.Popen(script, cwd=folder, env=environment(**variables), stdout=output, stderr=output))
        codes = [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * ranks, "\n".join((folder / f"output-{rank}.txt").read_text()[-3000:] for rank in range(ranks))
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder that two gloo ranks left."""
    return over_ranks(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several_ranks(request, two_ranks, tmp_path_factory):
    """The folder that two or four gloo ranks left."""
    return two_ranks if request.param == 2 else over_ranks(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def one_rank():
    """EMA weights and curve of one rank on the same global batches, for each kind."""
    config = load_config(str(TINY))
    outcome = {}
    for kind in KINDS:
        module = network(config, kind)
        trained = train(module, run_of(config, kind, BATCH), settings(0, BATCH), Clock(), quiet)
        outcome[kind] = weights(module), trained
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_several_ranks_equal_one_on_the_same_global_batch(several_ranks, one_rank, tiny, kind, stage):
    expected, curve = one_rank[kind]
    ours = safetensors.torch.load_file(several_ranks / f"{kind}-{stage}.safetensors")
    assert gap(settled(ours), settled(expected)) < 1e-4
    assert gap(settled(expected), settled(weights(network(tiny, kind)))) > 1e-3  # the run moves the weights by more than the tolerance
    their_curve = json.loads((several_ranks / f"{kind}-{stage}.json").read_text())
    np.testing.assert_allclose(their_curve, curve, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_ranks_that_accumulate_equal_one_that_does_not(several_ranks, one_rank, stage):
    expected, curve = one_rank["linear"]
    ours = safetensors.torch.load_file(several_ranks / f"accumulated-{stage}.safetensors")
    assert gap(settled(ours), settled(expected)) < 1e-4
    np.testing.assert_allclose(json.loads((several_ranks / f"accumulated-{stage}.json").read_text()), curve, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "sandwich"])
@pytest.mark.parametrize("parts", [2, 8])
def test_an_accumulated_batch_trains_as_a_whole_one(one_rank, tiny, kind, parts):
    module = network(tiny, kind)
    curve = train(module, run_of(tiny, kind, BATCH, accumulation=parts), settings(0, BATCH), Clock(), quiet)
    assert gap(settled(weights(module)), settled(one_rank[kind][0])) < 1e-4
    np.testing.assert_allclose(curve, one_rank[kind][1], atol=1e-4)


@pytest.mark.slow
def test_importance_is_the_same_to_the_bit_whatever_the_number_of_ranks(several_ranks, tiny):
    expected = score_base(scored(tiny), network(tiny, "base"), seed=1)
    ours = safetensors.torch.load_file(several_ranks / "importance.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_sizes_change_from_step_to_step_in_the_runs_over_ranks():
    assert len({sizes_of("linear", step) for step in range(STEPS)}) > 1
    sandwiches = [sizes_of("sandwich", step) for step in range(STEPS)]
    assert all(len(sizes) == 3 and sizes[0] == max(SIZES) and sizes[-1] == min(SIZES) for sizes in sandwiches)
    assert len(set(sandwiches)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_ranks_resume_into_the_weights_of_an_uninterrupted_run(two_ranks, stage):
    resumed = (two_ranks / f"resumed-{stage}.safetensors").read_bytes()
    assert resumed == (two_ranks / f"linear-{stage}.safetensors").read_bytes()


@pytest.mark.slow
def test_batch_that_ranks_cannot_share_is_refused_on_every_rank(two_ranks):
    for rank in range(2):
        reason = (two_ranks / f"uneven-{rank}.txt").read_text()
        assert "batch_size" in reason
        assert "7" in reason
        assert "2 ranks" in reason


def test_zero_stage_3_is_refused_when_the_configuration_is_loaded():
    with pytest.raises(ReproError, match="stage 3 partitions the parameters"):
        load_config(str(TINY), ["ofa_training.zero_stage=3"])


# Resume, in this process


@pytest.mark.parametrize(("kind", "stage"), [("base", 0), ("base", 1), ("base", 2), ("linear", 0), ("linear", 1), ("sandwich", 0)])
def test_resumed_run_has_the_weights_ema_and_moments_of_an_uninterrupted_one(tiny, tmp_path, kind, stage):
    budget = settings(stage, BATCH, checkpoint_every_steps=2)
    whole = network(tiny, kind)
    straight = train(whole, run_of(tiny, kind, BATCH, folder=tmp_path / "whole"), budget, Clock(), quiet)
    run = run_of(tiny, kind, BATCH, folder=tmp_path / "broken")
    with pytest.raises(StoppedError):
        train(network(tiny, kind), run, budget, Clock(), stop_at(3))
    fresh = network(tiny, kind)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()  # nothing of the start may matter any more
    resumed = train(fresh, run, budget, Clock(), quiet)
    assert gap(weights(fresh), weights(whole)) == 0
    assert resumed == straight
    ours, theirs = (safetensors.torch.load_file(newest(tmp_path / name / "checkpoints")) for name in ("broken", "whole"))
    assert {name.partition("/")[0] for name in ours} == {"param", "ema", "exp_avg", "exp_avg_sq"}
    assert gap(ours, theirs) == 0


def test_resumed_curve_equals_an_uninterrupted_one_where_checkpoints_fall_between_its_points(tmp_path):
    def run(folder):
        return Run(
            identity="x", seed=0, batches=lambda step: step, loss=lambda m, _batch, step: m.weight.sum() * 0 + step % 7, folder=folder
        )

    budget = Training(steps=100, batch_size=1, learning_rate=1e-3, checkpoint_every_steps=51)
    straight = train(torch.nn.Linear(1, 1), run(tmp_path / "whole"), budget, Clock(), quiet)
    with pytest.raises(StoppedError):
        train(torch.nn.Linear(1, 1), run(tmp_path / "broken"), budget, Clock(), stop_at(60))
    resumed = train(torch.nn.Linear(1, 1), run(tmp_path / "broken"), budget, Clock(), quiet)
    assert resumed == straight


def test_resume_takes_over_the_clock_of_the_checkpoint(tiny, tmp_path):
    budget = settings(0, checkpoint_every_steps=4)
    with pytest.raises(StoppedError):
        train(network(tiny, "base"), run_of(tiny, "base", folder=tmp_path), budget, Clock(), stop_at(5))
    with safe_open(newest(tmp_path / "checkpoints"), framework="pt") as file:
        saved = json.loads(file.metadata()["about"])["progress"]["device_seconds"]
    last_seen = saved | {"train": saved["train"] + 7.0, "evaluate": saved["evaluate"] + 2.0}
    run = run_of(tiny, "base", folder=tmp_path)
    clock = Clock()
    train(network(tiny, "base"), Run(**{**vars(run), "last_seen": last_seen}), budget, clock, quiet)
    seconds = clock.seconds()
    assert seconds["lost"] == pytest.approx(7.0, abs=1e-6)
    assert seconds["evaluate"] == pytest.approx(saved["evaluate"] + 2.0, abs=1e-6)
    assert seconds["train"] > saved["train"]


# Resume, after SIGKILL

LONG = ("base_training.steps=300", "base_training.checkpoint_every_steps=100")


@pytest.fixture(scope="module")
def killed_while_training(tmp_path_factory):
    """A run that was killed in the middle of training and run again: its folder, what the kill left, and the seconds of both lives."""
    folder = tmp_path_factory.mktemp("killed")

    def ready():
        saved, beat = checkpoint_progress(folder), heartbeat(folder)
        return saved and beat and beat["stage"] == "training" and beat["done"] > saved["step"]

    first = kill_once(folder, ready, *LONG)
    left = {"progress": checkpoint_progress(folder), "beat": heartbeat(folder)}
    shutil.copytree(cell_folder(folder) / "checkpoints", folder / "copies")
    second = finish_in_a_process(folder, *LONG)
    return folder, left, first, second


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The same run, never killed: its folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(folder, *LONG)
    return folder


def test_killed_run_ends_in_the_same_bytes_as_an_uninterrupted_one(killed_while_training, uninterrupted):
    folder, left, *_ = killed_while_training
    assert 100 <= left["progress"]["step"] < 300
    assert model_bytes(folder) == model_bytes(uninterrupted)
    ours, theirs = record_of(folder), record_of(uninterrupted)
    assert ours["quality"] == theirs["quality"]
    assert ours["size"] == theirs["size"]


def test_killed_run_records_the_curve_of_an_uninterrupted_one(killed_while_training, uninterrupted):
    ours, theirs = (np.array(record_of(folder)["training"]["curve"]) for folder in (killed_while_training[0], uninterrupted))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_killed_run_counts_its_lives_and_leaves_no_checkpoint(killed_while_training, uninterrupted):
    folder, *_ = killed_while_training
    assert record_of(folder)["provenance"]["lives"] == 2
    assert record_of(uninterrupted)["provenance"]["lives"] == 1
    assert sorted(path.name for path in cell_folder(folder).iterdir()) == ["made.json", "model"]


def test_killed_run_pays_for_the_work_that_was_repeated(killed_while_training, uninterrupted):
    folder, left, first, second = killed_while_training
    phases, saved = phases_sec(record_of(folder)), left["progress"]["device_seconds"]
    assert phases["lost"] == pytest.approx(overhead_sec(left["beat"]["device_seconds"]) - overhead_sec(saved), abs=1e-3)
    assert phases["lost"] > 0
    for name in ("prepare", "importance", "train", "checkpoint", "evaluate"):
        assert phases[name] >= saved[name]
    assert phases["train"] > saved["train"]
    assert overhead_sec(phases) >= overhead_sec(left["beat"]["device_seconds"])
    assert 0.7 * second < sum(phases.values()) <= first + second
    straight = phases_sec(record_of(uninterrupted))
    assert straight["lost"] == 0
    assert straight["checkpoint"] > 0


@pytest.mark.slow
def test_run_killed_before_its_first_checkpoint_pays_for_what_was_lost(tmp_path):
    overrides = ("base_training.steps=150", "base_training.checkpoint_every_steps=1000")
    kill_once(tmp_path, lambda: (heartbeat(tmp_path) or {"done": 0})["done"] > 20, *overrides)
    beat = heartbeat(tmp_path)
    assert beat["device_seconds"]["train"] > 0
    finish(tmp_path, *overrides)
    record = record_of(tmp_path)
    assert phases_sec(record)["lost"] >= overhead_sec(beat["device_seconds"]) - 1e-3
    assert record["provenance"]["lives"] == 2


SAMPLING = ("base_training.steps=4", "evaluation.samples=400", "evaluation.batch_size=4", "evaluation.sampler_steps=4")


@pytest.fixture(scope="module")
def killed_while_sampling(tmp_path_factory):
    """A run that was killed twice while it sampled; between its lives the first 16 samples are painted grey."""
    folder = tmp_path_factory.mktemp("sampling")
    samples = cell_folder(folder) / "samples"
    made = cell_folder(folder) / "made.json"
    kill_once(folder, lambda: len(list(samples.glob("*.safetensors"))) >= 6, *SAMPLING)
    times = [made.stat().st_mtime_ns]
    seen = len(list(samples.glob("*.safetensors")))
    for start_index in range(0, 16, 4):
        path = samples / f"seed0-{start_index:06d}.safetensors"
        tensors, said = read_sealed(path)
        assert tensors["pixels"].shape == (4, 1, 8, 8)
        write_sealed(path, {"pixels": torch.full((4, 1, 8, 8), 77, dtype=torch.uint8)}, said)
    kill_once(folder, lambda: len(list(samples.glob("*.safetensors"))) >= seen + 3, *SAMPLING)
    seconds = heartbeat(folder)["device_seconds"]
    finish(folder, *SAMPLING)
    times.append(made.stat().st_mtime_ns)
    return folder, times, seconds


@pytest.mark.slow
def test_run_killed_while_sampling_is_not_trained_again(killed_while_sampling):
    folder, times, seconds = killed_while_sampling
    assert times[0] == times[1]
    phases = phases_sec(record_of(folder))
    made = json.loads((cell_folder(folder) / "made.json").read_text())["device_seconds"]
    assert phases["train"] == pytest.approx(made["train"], abs=1e-6)
    assert phases["evaluate"] > seconds["evaluate"] > made["evaluate"]


@pytest.mark.slow
def test_run_killed_while_sampling_takes_up_the_samples_that_it_has(killed_while_sampling):
    folder, *_ = killed_while_sampling
    strip = np.asarray(Image.open(folder / "results" / "tiny" / "samples" / "base-1-seed0.png"))
    assert strip.shape == (8, 16 * 8)
    assert (strip == 77).all()
    assert record_of(folder)["quality"]["n_samples"] == 400


@pytest.mark.slow
def test_every_life_of_a_run_that_was_killed_twice_while_sampling_is_counted(killed_while_sampling):
    folder, *_ = killed_while_sampling
    assert record_of(folder)["provenance"]["lives"] == 3


# What is refused


def error_lines(capsys):
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    return [line for line in output.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def test_nan_loss_ends_in_one_line_and_a_record_that_says_why(tmp_path):
    done = typed(main, *command(tmp_path, "base_training.learning_rate=1e30"), cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith("error: base-1-seed0: the loss became ")
    assert "learning_rate" in lines[0]
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert record["reason"].startswith("the loss became ")
    assert record["quality"] is None
    assert not (cell_folder(tmp_path) / "made.json").exists()


@pytest.fixture
def resumable(killed_while_training, tmp_path):
    """A folder that a run was killed in, with a checkpoint at step 100 and another copy of it that stands for one at step 200."""
    folder = cell_folder(tmp_path) / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(killed_while_training[0] / "copies" / "step-000000100.safetensors", folder)
    return folder


def toy(folder, losses, **execution):
    """A run of one weight whose loss at every step is given; its gradient is nothing."""
    settled_at = Execution(**execution)
    return Run(
        identity="x", seed=0, batches=lambda step: step, loss=lambda m, _batch, step: m.weight.sum() * 0 + losses[step], folder=folder,
        execution=settled_at,
    )  # fmt: skip


def test_an_exploding_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    losses = [1.0] * 10 + [0.1] * 20 + [20.0] * 70
    budget = Training(steps=100, batch_size=1, learning_rate=1e-3, checkpoint_every_steps=7)
    with pytest.raises(RunError, match=r"the loss exploded to 20 by step 3\d.*learning_rate.*the last good checkpoint is kept"):
        train(torch.nn.Linear(1, 1), toy(tmp_path, losses), budget, Clock(), quiet)
    assert saved_steps(tmp_path / "checkpoints") == [28, 21]


@pytest.mark.parametrize("height", [9.0, 0.9])
def test_a_loss_that_is_merely_high_goes_on(tmp_path, height):
    losses = [1.0] * 10 + [0.05 if height > 1 else 0.001] * 40 + [height] * 50
    budget = Training(steps=100, batch_size=1, learning_rate=1e-3)
    assert len(train(torch.nn.Linear(1, 1), toy(tmp_path, losses), budget, Clock(), quiet)) == 50


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    def loss(module, _batch, step):
        nothing = module.weight.sum() * 0
        return 1.0 + (nothing.sqrt() if step == 5 else nothing)  # a loss of 1 whose gradient is no number

    run = Run(identity="x", seed=0, batches=lambda step: step, loss=loss, folder=tmp_path)
    budget = Training(steps=100, batch_size=1, learning_rate=1e-3, gradient_clipping=0.0, checkpoint_every_steps=2)
    with pytest.raises(RunError, match="weights became NaN or infinite by step 6"):
        train(torch.nn.Linear(1, 1), run, budget, Clock(), quiet)
    assert saved_steps(tmp_path / "checkpoints") == [4, 2]


def test_checkpoints_come_by_time_as_well_and_the_newest_are_kept(tmp_path):
    steps = []
    run = toy(tmp_path, [1.0] * 100, checkpoint_minutes=1e-9, checkpoints_kept=3)
    budget = Training(steps=100, batch_size=1, learning_rate=1e-3, checkpoint_every_steps=10**6)
    train(torch.nn.Linear(1, 1), run, budget, Clock(), lambda step, *_: steps.append((step, saved_steps(tmp_path / "checkpoints"))))
    assert steps[50] == (51, [50, 49, 48])
    assert saved_steps(tmp_path / "checkpoints") == [99, 98, 97]


@pytest.mark.parametrize(
    "damage",
    ["middle", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cut", "stranger", "head", "tail", "empty", "garbage"))],
)
def test_a_damaged_newest_checkpoint_is_removed_and_the_one_before_it_used(resumable, uninterrupted, tmp_path, capsys, damage):
    content = (resumable / "step-000000100.safetensors").read_bytes()

    def flipped(position):
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    torn = resumable / "step-000000200.safetensors"
    torn.write_bytes(
        {
            "head": flipped(20),
            "middle": flipped(len(content) // 2),
            "tail": flipped(len(content) - 1),
            "cut": content[: len(content) // 2],
            "empty": b"",
            "garbage": b"\x07" * 1000,
            "stranger": safetensors.torch.save({"param/x": torch.zeros(1)}),
        }[damage]
    )
    (resumable / ".step-000000300.safetensors.1.tmp").write_bytes(content[:100])  # left by a writer that was killed
    assert main(command(tmp_path, *LONG)) == 0
    output = capsys.readouterr()
    assert str(torn) in output.err and "checkpoint" in output.err and "Traceback" not in output.err
    assert model_bytes(tmp_path) == model_bytes(uninterrupted)
    assert record_of(tmp_path)["training"]["curve"] == record_of(uninterrupted)["training"]["curve"]


@pytest.mark.slow
def test_a_run_without_any_checkpoint_that_is_whole_starts_from_the_beginning(resumable, uninterrupted, tmp_path, capsys):
    path = resumable / "step-000000100.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(command(tmp_path, *LONG)) == 0
    assert str(path) in capsys.readouterr().err
    assert model_bytes(tmp_path) == model_bytes(uninterrupted)


def test_checkpoint_of_another_configuration_is_refused_by_name(resumable, tmp_path, capsys):
    assert main(command(tmp_path, "base_training.steps=299", "base_training.checkpoint_every_steps=100")) == 2
    (line,) = error_lines(capsys)
    assert str(resumable / "step-000000100.safetensors") in line
    assert "another configuration" in line
