"""Energy of a GPU, by NVML's counter (nvidia-ml-py, an optional dependency)."""

from collections.abc import Callable

import torch

from repro.runtime import distributed, gpu

MILLIJOULES_PER_KWH = 3.6e9

Counter = Callable[[], int | None]


class EnergyMeter:
    """Counts what this rank's GPU has drawn since it was made, by NVML's energy counter.

    It never makes a run fail: what cannot be read is None.
    """

    def __init__(self) -> None:
        self._read = _counter(distributed.device())
        self._begun = self._read()

    def kwh(self) -> float | None:
        """Returns kWh; None where there is no GPU, no nvidia-ml-py, no counter, or the counter began anew meanwhile."""
        now = self._read()
        if self._begun is None or now is None or now < self._begun:
            return None
        return (now - self._begun) / MILLIJOULES_PER_KWH


def _counter(device: torch.device) -> Counter:
    """Returns a function that reads a device's counter: millijoules since its driver was loaded, None where there is none.

    The device is found by its UUID: NVML numbers all GPUs of the machine, CUDA those that `CUDA_VISIBLE_DEVICES` leaves, in another order.
    A slice of a GPU (MIG) has no counter of its own, and that of its GPU counts other slices too.
    """
    if not gpu.is_gpu(device) or gpu.mig_slice(device.index):
        return _no_counter
    try:
        import pynvml
    except ImportError:
        return _no_counter
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.identity(device.index))
    except pynvml.NVMLError:
        return _no_counter

    def read() -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except pynvml.NVMLError:
            return None

    return read


def _no_counter() -> None:
    return None
