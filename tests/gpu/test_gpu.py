"""The equalities that hold on the CPU, on a GPU at the CIFAR-10 network; and what a training step costs there.

    python -m pytest tests/gpu -s

prints throughput and peak memory of the base and of each size.
"""

import time
from dataclasses import replace

import pytest
import torch

from repro.config import Compute, Training, load_config
from repro.data.images import Images
from repro.diffusion.batches import NoisyBatches, image_noise
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import image_losses, predictor
from repro.diffusion.sampler import sample_pixels
from repro.diffusion.samplers import SAMPLERS
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import build_base
from repro.ofa.allocation import make_plan
from repro.ofa.importance import pipe_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Linear
from repro.ofa.supernet import Supernet
from repro.runtime.clock import Clock
from repro.runtime.precision import autocast, compiled, laid_out, set_arithmetic
from repro.training.loop import Run, train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, where it compiles
]
DEVICE = torch.device("cuda")
CONFIG = load_config("cifar10_short")
SIZES = CONFIG.sizes.trained
SHAPE = (3, 32, 32)
BATCH = 128
DENSE_BF16_PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989}  # NVIDIA's data sheets, SXM, without sparsity


class StoppedError(Exception):
    """Stands for a crash."""


def quiet(_step, _steps, _loss):
    """Shows nothing."""


def stop_at(last):
    def report(step, _steps, _loss):
        if step == last:
            raise StoppedError

    return report


@pytest.fixture(autouse=True)
def arithmetic():
    """What a run sets: here with TF32 off, so that equalities are tight."""
    set_arithmetic(Compute(tf32=False))
    yield
    torch.use_deterministic_algorithms(False)


def new_supernet(device="cpu"):
    base = build_base(CONFIG.network, seed=3).eval().to(device)
    pipes = pipes_of(base)
    stream = torch.Generator().manual_seed(5)
    importance = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
    plan = make_plan(pipes, importance, SIZES, params_base=count_params(base.parameters()), rule="gradual", floor=0.25)
    return Supernet(base, pipes, plan)


def images(count=512):
    stream = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=stream)
    return Images(name="noise", pixels=pixels, labels=torch.zeros(count, dtype=torch.int64), sha256="")


def batches(batch_size=BATCH, *, flip=False):
    return NoisyBatches(images(), DDPM(CONFIG.diffusion), batch_size=batch_size, seed=2, device=DEVICE, horizontal_flip=flip)


def loss_at(net, batch, step):
    (size,) = Linear(3.0).draw(SIZES, seed=1, step=step)
    return image_losses(predictor(net, size), batch).mean()


@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_the_subnet_of_size_1_is_the_base_bit_for_bit(channels_last):
    supernet = laid_out(new_supernet().eval(), Compute(channels_last=channels_last), DEVICE)
    batch = batches(8)(0)
    inside = predictor(supernet, 1.0)(batch.noisy, batch.timesteps)
    assert torch.equal(inside, predictor(supernet.base)(batch.noisy, batch.timesteps))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_extracted_subnet_is_the_subnet_in_the_supernet_bit_for_bit(size):
    supernet = laid_out(new_supernet().eval(), Compute(channels_last=False), DEVICE)
    batch = batches(8)(0)
    inside = predictor(supernet, size)(batch.noisy, batch.timesteps)
    assert torch.equal(inside, predictor(supernet.extract(size))(batch.noisy, batch.timesteps))


@torch.no_grad()
def test_a_supernet_is_made_where_its_base_lies():
    batch = batches(4)(0)
    on_gpu, moved = new_supernet(DEVICE), new_supernet().to(DEVICE)
    found, expected = (predictor(supernet, 0.5)(batch.noisy, batch.timesteps) for supernet in (on_gpu, moved))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_gpu_computes_what_the_cpu_computes():
    supernet = new_supernet().eval()
    batch = batches(4)(0)
    on_cpu = predictor(supernet, 0.5)(batch.noisy.cpu(), batch.timesteps.cpu())
    on_gpu = predictor(laid_out(supernet, Compute(), DEVICE), 0.5)(batch.noisy, batch.timesteps).cpu()
    assert (on_gpu - on_cpu).abs().max() < 1e-3 * on_cpu.abs().max()


def test_batched_importance_is_that_of_one_image_at_a_time():
    base = build_base(CONFIG.network, seed=3).eval().to(DEVICE)
    pipes = pipes_of(base)
    whole = batches(8)(0)
    cuts = [
        replace(whole, noisy=n[None], noise=e[None], timesteps=t[None])
        for n, e, t in zip(whole.noisy, whole.target, whole.timesteps, strict=True)
    ]
    together, alone = (
        pipe_importance(base, pipes, parts, lambda model, batch: image_losses(predictor(model), batch)) for parts in ([whole], cuts)
    )
    for name, score in alone.items():
        assert (together[name] - score).abs().max() <= 1e-3 * score.abs().max(), name


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_killed_bf16_run_ends_in_the_same_weights(tmp_path, zero_stage):
    def run(folder):
        return Run(identity="x", seed=0, batches=batches(32, flip=True), loss=loss_at, folder=folder, compute=CONFIG.compute)

    budget = Training(
        steps=6, batch_size=32, learning_rate=1e-4, ema_decay=0.5, dropout=0.1, zero_stage=zero_stage, checkpoint_every_steps=2
    )
    whole, broken, resumed = new_supernet(), new_supernet(), new_supernet()
    curve = train(whole, run(tmp_path / "whole"), budget, Clock(), quiet)
    with pytest.raises(StoppedError):
        train(broken, run(tmp_path / "broken"), budget, Clock(), stop_at(5))
    assert train(resumed, run(tmp_path / "broken"), budget, Clock(), quiet) == curve
    theirs = dict(whole.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.is_contiguous()
        assert torch.equal(parameter, theirs[name]), name


def test_bf16_losses_are_those_of_float32_within_a_percent():
    supernet = laid_out(new_supernet(), Compute(), DEVICE)
    batch = batches()(0)
    with torch.no_grad():
        exact = loss_at(supernet, batch, 0)
        with autocast("bfloat16", DEVICE):
            rounded = loss_at(supernet, batch, 0)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)


def test_compiled_subnets_compute_what_they_compute_uncompiled():
    supernet = laid_out(new_supernet().eval(), Compute(), DEVICE)
    batch = batches(8)(0)
    with torch.no_grad():
        plain = {size: predictor(supernet, size)(batch.noisy, batch.timesteps) for size in (1.0, 0.5)}
        with compiled(supernet.skeletons):
            for size, expected in plain.items():
                found = predictor(supernet, size)(batch.noisy, batch.timesteps)
                assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_samples_do_not_depend_on_the_batch():
    base = laid_out(build_base(CONFIG.network, seed=3).eval(), Compute(), DEVICE)
    settings = replace(CONFIG.evaluation, sampler_steps=5)
    formulation, sampler = DDPM(CONFIG.diffusion), SAMPLERS["ddim"]
    noise = image_noise(range(12), SHAPE, 0, 0).to(DEVICE)
    whole = sample_pixels(predictor(base), formulation, noise, settings, sampler)
    parts = torch.cat([sample_pixels(predictor(base), formulation, part, settings, sampler) for part in noise.split(5)])
    assert (whole.int() - parts.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [None, *SIZES], ids=lambda size: "base" if size is None else f"P={size:g}")
@pytest.mark.parametrize("batch_size", [128, 512])
def test_throughput_of_a_training_step(size, batch_size, capsys):
    """Prints img/s, TFLOP/s, share of peak and peak memory; asserts only that they are numbers that can be."""
    set_arithmetic(CONFIG.compute)
    supernet = laid_out(new_supernet().train(), CONFIG.compute, DEVICE)
    net = predictor(supernet.base) if size is None else predictor(supernet, size)
    optimizer = torch.optim.Adam(supernet.parameters(), lr=1e-4, fused=True)
    source = batches(batch_size, flip=True)
    macs = count_macs(supernet.base if size is None else supernet.extract(size), SHAPE).total
    torch.cuda.reset_peak_memory_stats()
    warm_up, steps = 3, 10
    for step in range(warm_up + steps):
        if step == warm_up:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        with autocast(CONFIG.compute.precision, DEVICE):
            loss = image_losses(net, source(step)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    images_per_sec = steps * batch_size / (time.perf_counter() - begun)
    tflops = 6 * macs * images_per_sec / 1e12
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in DENSE_BF16_PEAK_TFLOPS.items() if key in name), None)
    share = f"{tflops / peak:.1%} of the dense bf16 peak" if peak else "peak unknown"
    memory_gib = torch.cuda.max_memory_allocated() / 2**30
    label = "base" if size is None else f"P = {size:g}"
    with capsys.disabled():
        print(f"\n{name}: {label}, batch {batch_size}: {images_per_sec:,.0f} img/s, {tflops:.1f} TFLOP/s, {share}, {memory_gib:.1f} GiB")
    assert images_per_sec > 0 and (peak is None or tflops < peak)
