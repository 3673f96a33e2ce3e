"""What a rank takes at once: batches that are halved where a GPU runs out of memory, and images that stay on the host."""

import threading
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch_fidelity
from support.four_pixels import FourPixels, colours, four_pixels
from support.hostile import refused
from support.noise import batches_of, numbered_images, same

from repro.config import Classifier, Diffusion, Execution
from repro.data import step_pixels
from repro.data.images import to_pixels
from repro.diffusion.ddpm import DDPM
from repro.experiment import evaluate
from repro.experiment.cells import Cell, Experiment
from repro.grid import METHODS
from repro.metrics import fid, inception
from repro.metrics.fid import FeatureLayer, features_of
from repro.metrics.labelled_batches import LabelledBatches
from repro.models import cost, memory
from repro.models.memory import GIB, InferenceBatch, fitting
from repro.runtime.clock import Clock
from repro.runtime.progress import CellProgress

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
KNOWN = []  # the extractors that a test made


class Small:
    """A GPU that holds few images: a function of images, with what it was given."""

    def __init__(self, most, compute=lambda images: 2 * images, error=OUT_OF_MEMORY):
        self.most, self.compute, self.error = most, compute, error
        self.given = []

    def __call__(self, images, *rest):
        self.given.append(images.flatten(1)[:, 0].tolist() if images.dim() > 1 else images.tolist())
        if len(images) > self.most:
            raise self.error
        return self.compute(images, *rest)


@pytest.fixture
def gpu(monkeypatch):
    """Has the code take the CPU for a GPU; returns a function that sets its free bytes."""

    def with_free(free):
        for module in (memory, step_pixels):
            monkeypatch.setattr(module, "is_gpu", lambda _: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {CPU: (int(free), 10**12)}[device])

    return with_free


@pytest.fixture
def on_host(monkeypatch):
    """Leaves the images on the host; returns the threads that gathered, one for each batch."""
    threads = []
    monkeypatch.setattr(step_pixels, "resident", lambda *_: False)
    monkeypatch.setattr(step_pixels, "pinned", lambda tensor: threads.append(threading.current_thread()) or tensor)
    return threads


# --- a batch that does not fit


def test_a_batch_that_does_not_fit_is_halved_and_the_work_goes_on_with_the_same_images(capsys):
    images, gpu = torch.arange(11), Small(3)
    batch = InferenceBatch("sampling", 8)
    assert torch.equal(batch(gpu, images), 2 * images)
    assert gpu.given == [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert capsys.readouterr() == (
        "",
        "sampling: 8 images at once do not fit this GPU's memory; going on with 4\n"
        "sampling: 4 images at once do not fit this GPU's memory; going on with 2\n",
    )
    batch(gpu, images[:4])
    assert gpu.given[8:] == [[0, 1], [2, 3]]  # what did not fit is not tried again
    assert capsys.readouterr() == ("", "")


def test_what_was_computed_stays_where_a_later_part_fails(capsys):
    gpu = Small(4)
    batch = InferenceBatch("sampling", 4)

    def later(images):
        gpu.most = 4 if 0 in images else 1  # other processes took the rest
        return gpu(images)

    assert torch.equal(batch(later, torch.arange(7)), 2 * torch.arange(7))
    assert gpu.given == [[0, 1, 2, 3], [4, 5, 6], [4, 5], [4], [5], [6]]
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 3 images at once do not fit this GPU's memory; going on with 2",
        "sampling: 2 images at once do not fit this GPU's memory; going on with 1",
    ]


def test_what_fits_is_computed_at_once(capsys):
    gpu = Small(8)
    assert torch.equal(InferenceBatch("sampling", 8)(gpu, torch.arange(8)), 2 * torch.arange(8))
    assert gpu.given == [[*range(8)]]
    assert capsys.readouterr() == ("", "")


def test_a_single_image_that_does_not_fit_is_refused_with_a_remedy():
    line = refused(lambda: InferenceBatch("features", 2)(Small(0), torch.arange(2)))
    assert line == (
        "features: this GPU's memory does not hold even one image at a time; end what else runs on the GPU, or take one with more memory, "
        "and run the command again"
    )


@pytest.mark.parametrize("name", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_libraries_that_cannot_allocate_are_out_of_memory_too(name):
    gpu = Small(1, error=RuntimeError(f"CUDA error: {name} when calling `cublasCreate(handle)`"))
    assert torch.equal(InferenceBatch("sampling", 2)(gpu, torch.arange(3)), 2 * torch.arange(3))


def test_other_errors_are_passed_on():
    with pytest.raises(RuntimeError, match="shapes"):
        InferenceBatch("sampling", 2)(Small(1, error=RuntimeError("shapes")), torch.arange(2))


def test_nothing_that_failed_is_held_when_the_half_is_tried():
    held = []

    def compute(images):
        assert not [tensor for tensor in held if tensor() is not None]
        taken = torch.zeros(5)
        held.append(weakref.ref(taken))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    InferenceBatch("sampling", 4)(compute, torch.arange(2))
    assert len(held) == 3


# --- a batch chosen by free memory


@pytest.mark.parametrize(
    ("most", "limit", "fits"),
    [
        (256, 1 + 1.25 * 256, 256),  # the network takes 1 GiB, an image 1 GiB and a quarter more
        (256, 1 + 1.25 * 255.9, 128),
        (256, 1 + 1.25 * 100, 64),
        (256, 1000, 256),  # never more than what is configured
        (100, 1 + 1.25 * 26, 25),
        (100, 1 + 1.25 * 24, 13),  # 100, 50, 25, 13
        (256, 1 + 1.25, 1),
        (256, 0.5, 1),  # an estimate does not refuse: the GPU itself decides
    ],
)
def test_a_batch_is_halved_until_it_fits_by_hand(most, limit, fits):
    assert fitting(most, limit, weights=GIB, image_bytes=GIB) == fits


def test_the_limit_is_nine_tenths_of_what_is_free_on_this_rank_s_gpu_or_what_is_configured(gpu):
    assert memory.limit_gib(Execution()) == 0
    gpu(10 * GIB)
    assert memory.limit_gib(Execution()) == pytest.approx(9)
    assert memory.limit_gib(Execution(memory_gib=3)) == 3


def test_samples_are_drawn_as_configured_on_a_cpu_and_as_memory_allows_on_a_gpu(base, gpu, monkeypatch):
    weights = 4 * sum(parameter.numel() for parameter in base.parameters())
    image = cost.peak_bytes(base, (1, 8, 8)) - weights
    assert image > 1000
    with monkeypatch.context() as patched:
        patched.setattr(cost, "peak_bytes", None)
        for execution in (Execution(), Execution(memory_gib=1e-9)):  # which a CPU's samples do not depend on
            assert memory.sampling_batch(base, (1, 8, 8), 64, execution).size == 64
    for images, size in ((64.1, 64), (63.9, 32), (31.9, 16)):
        gpu((weights + 1.25 * images * image) / 0.9 + 2)
        assert memory.sampling_batch(base, (1, 8, 8), 64, Execution()).size == size
    assert memory.sampling_batch(base, (1, 8, 8), 64, Execution(memory_gib=(weights + 1.25 * 33 * image) / GIB)).size == 32


# --- samples


def drawn(experiment, base, digest="of the network"):
    cell = Cell(method="base", size=1.0, seed=0)
    report = CellProgress("base", Clock(), experiment.folder(cell), "base")
    samples = evaluate.draw_samples(experiment, base, cell, digest, report)
    report.close()
    files = sorted((experiment.folder(cell) / "samples").iterdir())
    return samples, {path.name: path.read_bytes() for path in files}


def experiment_in(folder, tiny):
    tiny = replace(tiny, evaluation=replace(tiny.evaluation, sampling_seeds=(0, 1)))
    return Experiment(config=tiny, methods=METHODS, results=folder / "r", runs=folder / "w", source="")


def test_samples_of_a_small_gpu_are_those_of_a_large_one_in_the_same_files(tmp_path, tiny, base, monkeypatch, capsys):
    # The sampler itself would round otherwise in other batches.
    found = []
    for most in (100, 5):
        sample = Small(most, compute=lambda noise: to_pixels(noise / 3))
        monkeypatch.setattr(evaluate, "sample_pixels", lambda _predict, _schedule, noise, *_, sample=sample: sample(noise))
        experiment = experiment_in(tmp_path / str(most), tiny)
        found.append(drawn(experiment, base))
        assert len(sample.given) == (6 if most == 100 else 2 + 4 * 4 + 2 * 2)  # 16, 16 and 8 images of each of two seeds
        sample.most = 0
        assert drawn(experiment, base)[1] == found[-1][1]  # nothing is drawn again
    (large, large_files), (small, small_files) = found
    assert all(torch.equal(*pair) for pair in zip(large, small, strict=True))
    assert not torch.equal(*large)
    assert list(large_files) == [f"seed{seed}-{start:06d}.safetensors" for seed in (0, 1) for start in (0, 16, 32)]
    assert small_files == large_files
    assert capsys.readouterr().err.count("sampling: ") == 2


def test_samples_are_drawn_in_the_batch_that_free_memory_allows(tmp_path, tiny, base, gpu, monkeypatch):
    sample = Small(16, compute=to_pixels)
    monkeypatch.setattr(evaluate, "sample_pixels", lambda _predict, _schedule, noise, *_: sample(noise))
    weights = 4 * sum(parameter.numel() for parameter in base.parameters())
    gpu((weights + 1.25 * 9 * (cost.peak_bytes(base, (1, 8, 8)) - weights)) / 0.9)
    drawn(experiment_in(tmp_path, tiny), base)
    assert [len(given) for given in sample.given] == [8] * 10


# --- features


def extractor_of(forward, images=4):
    """Registers an extractor and returns its layer."""
    name = f"pixels-{len(KNOWN)}"
    KNOWN.append(type("Extractor", (FourPixels,), {"forward": lambda _, images: (forward(images),)}))
    torch_fidelity.register_feature_extractor(name, KNOWN[-1])
    return FeatureLayer(extractor=name, layer="pixels", weights=Path("none"), sha256="0" * 64, batch_size=images, image_bytes=GIB)


def test_features_of_a_batch_that_does_not_fit_are_computed_in_halves(capsys):
    images, reports, network = colours(10), [], Small(3, compute=four_pixels)
    features = features_of(images, extractor_of(network), lambda *report: reports.append(report))
    assert torch.equal(features, four_pixels(images))
    assert [len(given) for given in network.given] == [4, 2, 2, 2, 2, 2]
    assert reports == [(4, 10), (8, 10), (10, 10)]
    assert capsys.readouterr().err == "features: 4 images at once do not fit this GPU's memory; going on with 2\n"


def test_features_are_computed_in_the_batch_that_memory_allows(gpu, monkeypatch):
    create, features = fid.create_feature_extractor, fid.get_featuresdict_from_dataset
    asked = []
    monkeypatch.setattr(fid, "is_gpu", lambda _: True)
    monkeypatch.setattr(
        fid, "create_feature_extractor", lambda *given, cuda, **more: asked.append(cuda) or create(*given, cuda=False, **more)
    )
    monkeypatch.setattr(
        fid, "get_featuresdict_from_dataset", lambda data, network, size, cuda, **more: features(data, network, size, False, **more)
    )
    gpu(1.25 * 4 * GIB / 0.9 + 2)
    for execution, sizes in ((Execution(), [4, 4, 2]), (Execution(memory_gib=3), [2] * 5)):
        network = Small(4, compute=four_pixels)
        layer = replace(extractor_of(network, images=8), execution=execution)
        assert torch.equal(features_of(colours(10), layer, lambda *_: None), four_pixels(colours(10)))
        assert [len(given) for given in network.given] == sizes
    assert asked == [True, True]


def test_a_feature_extractor_is_gone_once_its_features_are_there():
    networks = []
    layer = extractor_of(four_pixels)
    KNOWN[-1].__init__ = lambda self, *given, **more: networks.append(weakref.ref(self)) or FourPixels.__init__(self, *given, **more)
    features_of(colours(4), layer, lambda *_: None)
    assert [network() for network in networks] == [None]


def test_inception_s_activations_are_as_many_as_the_estimate_says(monkeypatch):
    network = inception.FeatureExtractorInceptionV3
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(network, "load_state_dict", lambda *_: None)
    peaks = []
    with torch.device("meta"), torch.no_grad():
        extractor = network("inception", ["2048"])
        for count in (1, 2):
            with cost._Alive() as alive:
                extractor(torch.empty(count, 3, 64, 64, dtype=torch.uint8))
            peaks.append(alive.most)
    one, two = peaks
    assert one <= two - one + 1000  # it grows with the images alone
    assert 0.9 * inception.IMAGE_BYTES < two - one < inception.IMAGE_BYTES


# --- images on the device or on the host


def test_images_stay_on_a_gpu_where_they_take_a_twentieth_of_its_free_memory(gpu):
    images = torch.zeros(100, 3, 4, 4, dtype=torch.uint8)  # 4,800 bytes
    assert step_pixels.resident(images, CPU)
    gpu(96_000)
    assert step_pixels.resident(images, CPU)
    gpu(95_999)
    assert not step_pixels.resident(images, CPU)


def test_memory_is_pinned_where_there_is_a_gpu(monkeypatch):
    tensor = torch.zeros(2)
    assert step_pixels.pinned(tensor) is tensor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    assert torch.equal(step_pixels.pinned(tensor), torch.ones(2))


def noisy(**settings):
    settings = {"batch_size": 32, "horizontal_flip": True, "antithetic": True} | settings
    return batches_of(numbered_images(100), DDPM(Diffusion()), **settings)


def labelled(**settings):
    images = colours(30)
    return LabelledBatches(images, torch.arange(30), Classifier(batch_size=8, horizontal_flip=True, crop_padding=1), device=CPU, **settings)


def equal(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True)) if isinstance(one, tuple) else same(one, other)


@pytest.mark.parametrize("of", [noisy, labelled])
@pytest.mark.parametrize("slices", [{}, {"rank": 1, "ranks": 2}])
def test_images_on_the_host_give_the_batches_of_images_on_the_device(of, slices, monkeypatch):
    direct = [of(**slices)(step) for step in range(8)]  # the noisy ones pass the ends of two epochs, of 100 images, within a batch
    assert not any(equal(one, other) for one, other in pairwise(direct))
    monkeypatch.setattr(step_pixels, "resident", lambda *_: False)
    ahead = of(**slices)
    assert all(equal(ahead(step), batch) for step, batch in enumerate(direct))
    assert all(equal(of(**slices)(step), batch) for step, batch in enumerate(direct))  # a run that goes on from a checkpoint
    warm = of(**slices)
    assert all(equal(warm(step), direct[step]) for step in (3, 0, 1, 2, 2, 7))  # `torch.compile` is warmed up with steps of its own


@pytest.mark.parametrize("of", [noisy, labelled])
def test_the_images_of_the_next_step_are_gathered_ahead_once_by_a_thread(of, on_host):
    batches = of()
    for step in range(5):
        batches(step)
        rows = batches._pixels
        assert rows._ahead[0] == step + 1
        rows._ahead[1].result(timeout=60)
        assert sum(thread in rows._gatherer._threads for thread in on_host) == step + 2  # one of an earlier test may end late
    assert {thread.name.partition("_")[0] for thread in on_host} == {"pixels"}


@pytest.mark.parametrize("of", [noisy, labelled])
def test_a_set_that_stays_needs_no_thread(of, monkeypatch):
    monkeypatch.setattr(step_pixels, "pinned", None)
    batches = of()
    batches(0)
    assert batches._pixels._gatherer is None


def test_an_error_of_the_thread_is_raised_by_the_step_that_needs_it(monkeypatch):
    def fails(_tensor):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(step_pixels, "resident", lambda *_: False)
    monkeypatch.setattr(step_pixels, "pinned", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        noisy()(0)


@pytest.mark.parametrize("of", [noisy, labelled])
def test_the_images_are_gone_with_their_batches(of):
    batches = of()
    batches(0)
    gone = weakref.ref(batches._pixels)
    del batches
    assert gone() is None  # at once: the images of the next run of this process take their place
