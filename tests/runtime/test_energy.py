"""The energy that a GPU draws: a stand-in for NVML where there is no such hardware, and what this machine itself says."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from repro.runtime import distributed
from repro.runtime.energy import EnergyMeter

pytestmark = pytest.mark.quick

# As NVML numbers the machine's GPUs. Only the second and the first are visible to the process, in this order.
UUIDS = ("aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-1111-1111-1111-111111111111", "cccccccc-2222-2222-2222-222222222222")
VISIBLE = (UUIDS[1], UUIDS[0])


class NVMLError(Exception):
    """As NVML's library has it: the base of all its errors."""


class Unsupported(NVMLError):  # noqa: N818  (as NVML's library has it)
    """A GPU from before Volta."""


class Nvml(ModuleType):
    """A stand-in for the module `pynvml`: three GPUs whose counters a test sets, in millijoules."""

    NVMLError = NVMLError

    def __init__(self):
        super().__init__("pynvml")
        self.counters = {f"GPU-{uuid}": 10**12 * (index + 1) for index, uuid in enumerate(UUIDS)}
        self.fails_at = ""
        self.started = False

    def _fail(self, name):
        if self.fails_at == name:
            raise Unsupported

    def nvmlInit(self):  # noqa: N802  (NVML's name)
        self._fail("nvmlInit")
        self.started = True

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802  (NVML's name)
        self._fail("nvmlDeviceGetHandleByUUID")
        assert self.started
        if uuid not in self.counters:
            raise NVMLError("not found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802  (NVML's name)
        self._fail("nvmlDeviceGetTotalEnergyConsumption")
        return self.counters[handle]


@pytest.fixture
def nvml(monkeypatch):
    """NVML's stand-in, on a machine whose first visible GPU is this rank's."""
    module = Nvml()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=VISIBLE[index]))
    return module


def test_a_kilowatt_hour_is_3600000_joules_counted_from_when_the_meter_was_made(nvml):
    meter = EnergyMeter()
    assert meter.kwh() == 0.0
    nvml.counters[f"GPU-{VISIBLE[0]}"] += 3_600_000_000
    assert meter.kwh() == 1.0
    nvml.counters[f"GPU-{VISIBLE[0]}"] += 900_000_000
    assert meter.kwh() == 1.25
    assert EnergyMeter().kwh() == 0.0


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_gpu_is_the_one_that_the_rank_computes_on_whatever_is_visible(nvml, monkeypatch, local_rank):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", local_rank))
    meter = EnergyMeter()
    for index, uuid in enumerate(UUIDS):
        nvml.counters[f"GPU-{uuid}"] += 3_600_000_000 * (index + 1)
    assert meter.kwh() == UUIDS.index(VISIBLE[local_rank]) + 1


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_that_cannot_be_read_has_no_energy(nvml, call):
    nvml.fails_at = call
    meter = EnergyMeter()
    assert meter.kwh() is None
    nvml.fails_at = ""
    assert meter.kwh() is None  # what it drew before is not known


@pytest.mark.parametrize("uuid", ["dddddddd-3333", UUIDS[0]])  # torch may give that of the slice, or of its GPU
def test_a_slice_of_a_gpu_has_no_energy(nvml, monkeypatch, uuid):
    nvml.counters["MIG-dddddddd-3333"] = 5  # NVML knows a slice by its name, too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-dddddddd-3333")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: SimpleNamespace(uuid=uuid))
    assert EnergyMeter().kwh() is None


@pytest.mark.parametrize(("visible", "local_rank", "counted"), [("2,0", 0, 2), ("2,0", 1, 0), ("1", 2, 1)])
def test_the_counter_is_that_of_the_gpu_which_a_rank_was_shown(nvml, monkeypatch, visible, local_rank, counted):
    shown = [UUIDS[int(name)] for name in visible.split(",")]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(shown))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=shown[index]))
    meter = EnergyMeter()
    for index, uuid in enumerate(UUIDS):
        nvml.counters[f"GPU-{uuid}"] += 3_600_000_000 * (index + 1)
    assert meter.kwh() == counted + 1


def test_a_failure_between_two_readings_is_unknown_and_passes(nvml):
    meter = EnergyMeter()
    nvml.fails_at = "nvmlDeviceGetTotalEnergyConsumption"
    assert meter.kwh() is None
    nvml.fails_at = ""
    nvml.counters[f"GPU-{VISIBLE[0]}"] += 3_600_000_000
    assert meter.kwh() == 1.0


def test_a_counter_that_began_anew_is_unknown(nvml):
    meter = EnergyMeter()
    nvml.counters[f"GPU-{VISIBLE[0]}"] = 5
    assert meter.kwh() is None


def test_a_gpu_without_nvidia_ml_py_has_no_energy(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # makes the import fail
    assert EnergyMeter().kwh() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_has_no_energy(monkeypatch):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert EnergyMeter().kwh() is None
    assert not nvml.started


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_that_computes_draws_energy():
    pytest.importorskip("pynvml")
    meter = EnergyMeter()
    if meter.kwh() is None:
        pytest.skip("this GPU has no counter")
    numbers = torch.randn(4096, 4096, device=distributed.device())
    for _ in range(300):
        numbers = torch.nn.functional.normalize(numbers @ numbers)
    torch.cuda.synchronize()
    assert 0 < meter.kwh() < 0.1
