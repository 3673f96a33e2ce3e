"""Precision, memory layout and compiling: what they change, and what they may not."""

import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support.ranks import network, quiet, run_of, settings, weights

from repro.config import Compute, Training
from repro.diffusion.batches import image_noise
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import image_losses, predictor
from repro.diffusion.sampler import sample_pixels
from repro.diffusion.samplers import SAMPLERS
from repro.errors import ReproError
from repro.runtime.clock import Clock
from repro.runtime.precision import autocast, checked_kernels, compiled, laid_out, listed, set_arithmetic
from repro.training.loop import Run, train

CPU = torch.device("cpu")


@pytest.fixture
def flags():
    """Puts back what a test sets for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def trained(config, kind, compute):
    module = network(config, kind)
    curve = train(module, replace(run_of(config, kind), compute=compute), settings(0), Clock(), quiet)
    return module, curve


def relative_gap(ours, theirs):
    """The largest difference of two sets of weights, as a share of how far the second lies from zero."""
    return max(((ours[name] - theirs[name]).norm() / theirs[name].norm()).item() for name in theirs)


@pytest.mark.parametrize("kind", ["base", "linear"])
def test_bf16_training_keeps_float32_weights_and_stays_close(tiny, kind):
    exact, exact_curve = trained(tiny, kind, Compute())
    rounded, rounded_curve = trained(tiny, kind, Compute(precision="bfloat16"))
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())
    assert [loss for _, loss in rounded_curve] == pytest.approx([loss for _, loss in exact_curve], rel=0.02)
    assert rounded_curve != exact_curve  # the rounding did take place
    moved = relative_gap(weights(exact), weights(network(tiny, kind)))
    assert 0 < relative_gap(weights(rounded), weights(exact)) < 2 * moved


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_engine_cannot_turn_the_precision_of_a_forward_pass_off(monkeypatch, precision):
    """On a GPU DeepSpeed sees the autocast that it is called in, and turns it off; here torch is made to answer as it does there."""
    seen = []

    class Layer(torch.nn.Linear):
        def forward(self, images):
            seen.append(super().forward(images).dtype)
            return super().forward(images)

    answers = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": answers(device))
    module = Layer(2, 1)
    what = Run(
        identity="x",
        seed=0,
        batches=lambda _step: torch.ones(4, 2),
        loss=lambda m, batch, _step: m(batch).square().mean(),
        compute=Compute(precision=precision),
    )
    train(module, what, Training(steps=2, batch_size=4, learning_rate=1e-3), Clock(), quiet)
    assert seen == [getattr(torch, precision)] * 2
    assert "forward" not in vars(module)


def test_autocast_rounds_matrix_products_only_where_asked():
    ones = torch.ones(2, 2)
    with autocast("bfloat16", CPU):
        assert (ones @ ones).dtype == torch.bfloat16
    with autocast("float32", CPU):
        assert (ones @ ones).dtype == torch.float32


def test_samples_in_bf16_differ_little_and_those_in_float32_not_at_all(tiny, base):
    noise, formulation = image_noise(range(4), (1, 8, 8), 0, 0), DDPM(tiny.diffusion)

    def pixels(precision):
        return sample_pixels(predictor(base), formulation, noise, replace(tiny.evaluation, precision=precision), SAMPLERS["ddim"]).int()

    assert torch.equal(pixels("float32"), pixels("float32"))
    assert 0 < (pixels("bfloat16") - pixels("float32")).abs().float().mean() < 8


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.usefixtures("flags")
def test_the_choice_of_tf32_reaches_torch(tf32):
    set_arithmetic(Compute(tf32=tf32))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert not torch.backends.cudnn.benchmark


def test_nhwc_is_for_gpus(base):
    assert laid_out(base, Compute(channels_last=True), CPU).conv_in.weight.is_contiguous()


# torch's own, about its own: it looks at the gradients of the gathered weights, and imports what it has deprecated.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
def test_compiled_subnets_compute_what_they_compute_uncompiled(tiny, monkeypatch):
    supernet = network(tiny, "linear")
    batch = run_of(tiny, "linear").batches(0)

    def loss_and_gradients(size):
        supernet.zero_grad()
        loss = image_losses(predictor(supernet, size), batch).mean()
        loss.backward()
        return loss.item(), {name: parameter.grad.clone() for name, parameter in supernet.named_parameters()}

    plain = {size: loss_and_gradients(size) for size in (1.0, 0.5)}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # without the minutes of a C++ compiler
    with compiled(supernet.skeletons):
        for size, (loss, gradients) in plain.items():
            compiled_loss, compiled_gradients = loss_and_gradients(size)
            assert compiled_loss == pytest.approx(loss, rel=1e-5)
            assert relative_gap(compiled_gradients, {name: value for name, value in gradients.items() if value.any()}) < 1e-3
    assert not any("forward" in vars(skeleton) for skeleton in supernet.skeletons)


def clock_phase(clock):
    """The phase that a clock is in: the one whose seconds grow."""
    before, after = clock.seconds(), clock.seconds()
    return max(after, key=lambda name: after[name] - before[name])


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_trains_to_the_same_weights_and_compiles_before_its_clock_runs():
    torch._dynamo.reset()  # of what the tests before have compiled

    def run(compile_it):
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        with torch.no_grad():
            for index, parameter in enumerate(module.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) * (index + 1) / 4)
        clock, data = Clock(), torch.linspace(-1, 1, 32).view(8, 4)

        def loss(net, batch, _step):
            value = net(batch).square().mean()
            programs.append((clock_phase(clock), torch._dynamo.utils.counters["stats"]["unique_graphs"]))
            return value

        what = Run(
            identity="x",
            seed=0,
            batches=lambda _step: data,
            loss=loss,
            compiled=(module,) if compile_it else (),
        )
        train(module, what, Training(steps=5, batch_size=8, learning_rate=1e-2, ema_decay=0.5), clock, quiet)
        return weights(module)

    programs = []
    plain = run(compile_it=False)
    torch._dynamo.utils.counters.clear()
    programs.clear()
    assert relative_gap(run(compile_it=True), plain) < 1e-4
    assert programs == [("prepare", 1), *[("train", 1)] * 5]


def test_a_listed_module_tells_the_parameters_that_it_has_without_walking():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    plain, within = dict(module.named_parameters()), dict(module[0].named_parameters("x"))
    with listed(module):
        module[0].register_parameter("late", torch.nn.Parameter(torch.zeros(1)))
        assert dict(module.named_parameters()).keys() == plain.keys()
        assert all(one is other for one, other in zip(module.parameters(), plain.values(), strict=True))
        assert {name.removeprefix("x.") for name in dict(module.named_parameters("x"))} >= {"0.late"}
    assert "0.late" in dict(module.named_parameters())
    assert within.keys() == {"x.weight", "x.bias"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists() or platform.libc_ver()[0] != "glibc", reason="counts the page faults of glibc")
def test_memory_that_is_freed_is_used_again():
    def faults_of(script):
        code = f"import resource, torch; {script}\nfor _ in range(3): torch.ones(2**24)\n"
        code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\nfor _ in range(10): torch.ones(2**24)\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    arithmetic = "from repro.config import Compute; from repro.runtime.precision import set_arithmetic; set_arithmetic(Compute(threads=1))"
    assert faults_of("pass") > 1000
    assert faults_of(arithmetic) < 100


def test_an_operation_without_a_deterministic_kernel_is_named():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as refused:
            torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)
    told = checked_kernels(refused.value)
    assert isinstance(told, ReproError)
    assert str(told).startswith("put_: this device has no kernel for it that gives the same result twice")
    other = RuntimeError("of another kind")
    assert checked_kernels(other) is other
