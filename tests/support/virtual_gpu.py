"""A virtual GPU: the product's own command line as it runs on a GPU, on a machine that has none.

    PYTHONPATH=.:tests python -m support.virtual_gpu COUNTS.json run --config tests/tiny.toml ...

runs `python -m repro run ...` and writes what the device was asked for into COUNTS.json, by the phase of the clock. Where
VIRTUAL_GPU_KILLED_AT holds a cell and a step of its training, the process kills itself there.
"""

import contextlib
import functools
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from support import device_rules, virtual_device
from support.tally import counts

FREE_GIB, TOTAL_GIB = 70, 80
memory = SimpleNamespace(free=FREE_GIB << 30, total=TOTAL_GIB << 30)


class Event:
    """An event of a stream."""

    def __init__(self, **_kwargs: Any) -> None:
        self._time = 0.0

    def record(self, *_args: Any) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        counts.add("wait", "Event.synchronize")

    def wait(self, *_args: Any) -> None:
        """Makes a stream wait, not the host."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "Event") -> float:
        return 1000 * (later._time - self._time)


class Stream:
    """A stream, of which there is only one in truth."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Takes what CUDA's takes."""

    def synchronize(self) -> None:
        counts.add("wait", "Stream.synchronize")

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def wait_event(self, _event: Event) -> None:
        """Makes a stream wait, not the host."""

    wait_stream = wait_event

    def query(self) -> bool:
        return True


def install() -> torch.device:
    """Makes torch, DeepSpeed and the product take the virtual device for a GPU; before either of the two is imported.

    Returns:
        The device.
    """
    assert not {"deepspeed", "repro.runtime.gpu"} & sys.modules.keys(), "the virtual GPU is installed first"
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ["DS_ACCELERATOR"] = "cpu"
    device = virtual_device.register()
    _patch_torch(device)
    _patch_cuda()
    _patch_attention()
    virtual_device.Mode().__enter__()
    _patch_deepspeed(device)
    from repro.runtime import gpu

    gpu.GPU = device_rules.NAME
    return device


def _patch_torch(device: torch.device) -> None:
    """Gives torch's own functions that ask for a device by name, or that no operator stands for, the virtual one."""
    make, pin, initialize = torch.tensor, device_rules.pinned, torch.distributed.init_process_group

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = make(data, device=None if virtual_device.is_ours(device) else device, **kwargs)
        made = pin(made) if pin_memory else made
        return (made.to(device) if virtual_device.is_ours(device) else made).requires_grad_(requires_grad)

    def pin_memory(self: Tensor, *_args: Any) -> Tensor:
        return self if device_rules.is_pinned(self) else pin(self)

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        initialize("gloo" if backend == "nccl" else backend, *args, **kwargs)

    torch.tensor = tensor
    torch.Generator = virtual_device.Generator
    Tensor.pin_memory, Tensor.is_pinned = pin_memory, lambda self, *_args: device_rules.is_pinned(self)
    Tensor.cuda = lambda self, _device=None, non_blocking=False, **_kwargs: self.to(device, non_blocking=non_blocking)
    nn.Module.cuda = lambda self, _device=None: self.to(device)
    torch.distributed.init_process_group = init_process_group


def _patch_cuda() -> None:
    """Gives `torch.cuda` one GPU."""
    for name, value in {"is_available": True, "device_count": 1, "current_device": 0, "is_current_stream_capturing": False}.items():
        setattr(torch.cuda, name, lambda *_args, value=value: value)
    for name in ("init", "set_device", "empty_cache", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda *_args: None)
    for name in ("max_memory_allocated", "memory_allocated"):
        setattr(torch.cuda, name, lambda *_args: memory.total - memory.free)
    torch.cuda.mem_get_info = lambda *_args: (memory.free, memory.total)
    torch.cuda.get_device_name = lambda *_args: "Virtual GPU"
    torch.cuda.get_device_properties = lambda *_args: SimpleNamespace(uuid="0", name="Virtual GPU", total_memory=memory.total)
    torch.cuda.synchronize = lambda *_args: counts.add("wait", "synchronize")
    torch.cuda.Event, torch.cuda.Stream = Event, Stream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_args: Stream()
    torch.cuda.stream = lambda _stream: contextlib.nullcontext()


def _patch_attention() -> None:
    """Has attention on the virtual GPU take the CPU's fused kernel where the CPU would, as a GPU takes its own."""
    functional, flash = nn.functional.scaled_dot_product_attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    @functools.wraps(functional)
    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **kwargs: Any
    ) -> Tensor:
        if isinstance(query, virtual_device.VirtualTensor):
            held = [virtual_device._held(part) for part in (query, key, value, attn_mask)]
            scale, causal = kwargs.get("scale"), kwargs.get("is_causal", False)
            if torch._fused_sdp_choice(*held, dropout_p, causal, scale=scale) == 1:
                return flash(query, key, value, dropout_p, causal, attn_mask=attn_mask, scale=scale)[0]
        return functional(query, key, value, attn_mask, dropout_p, **kwargs)

    nn.functional.scaled_dot_product_attention = attention


def _patch_deepspeed(device: torch.device) -> None:
    """Gives DeepSpeed's accelerator what CUDA's says."""
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no operator is to be compiled for it
    kind = type(get_accelerator())
    kind.device_name = lambda _self, index=None: device_rules.NAME if index is None else f"{device_rules.NAME}:{index}"
    kind.current_device_name = lambda _self: str(device)
    kind.current_device, kind.device_count = lambda _self: 0, lambda _self: 1
    kind.device = lambda _self, _index=None: device
    kind.set_device = lambda _self, _index: None
    kind.synchronize = lambda _self, *_args: counts.add("wait", "synchronize")
    kind.is_synchronized_device = lambda _self: False
    kind.on_accelerator = lambda _self, tensor: tensor.device.type == device_rules.NAME
    kind.Event, kind.Stream = property(lambda _self: Event), property(lambda _self: Stream)
    kind.current_stream = kind.default_stream = lambda _self, _index=None: Stream()
    kind.stream = lambda _self, _stream: contextlib.nullcontext()
    kind.memory_allocated = kind.max_memory_allocated = lambda _self, _index=None: torch.cuda.memory_allocated()
    kind.total_memory, kind.available_memory = lambda _self, _index=None: memory.total, lambda _self, _index=None: memory.free
    for name in ("Double", "Float", "Half", "BFloat16", "Int", "Long", "Byte"):
        dtype = getattr(torch, {"Byte": "uint8"}.get(name, name.lower()))
        made = functools.partial(torch.tensor, dtype=dtype, device=device)
        setattr(kind, f"{name}Tensor", property(lambda _self, made=made: made))


def label_by_phase() -> None:
    """Counts what happens under its cell and the phase of that cell's clock."""
    from repro.experiment import run as cells
    from repro.runtime.clock import Clock

    run, switch = cells._run_cell, Clock._switch

    def labelled_run(own: Any, method: Any, cell: Any, *rest: Any) -> Any:
        counts.label = f"{cell.name} prepare"
        return run(own, method, cell, *rest)

    def labelled_switch(self: Clock, name: str) -> str:
        if self._seconds["start"]:  # a classifier's training has a clock of its own, which began with no process
            counts.label = f"{counts.label.partition(' ')[0]} {name}"
        return switch(self, name)

    cells._run_cell, Clock._switch = labelled_run, labelled_switch


def killed_at(cell: str, step: int) -> None:
    """Has the process killed once a cell has trained so many steps."""
    from repro.experiment import run as cells

    train_cell = cells.train

    def train(module: Any, run: Any, settings: Any, clock: Any, report: Any) -> Any:
        def watched(done: int, *rest: Any) -> None:
            if run.folder is not None and run.folder.name == cell and done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            report(done, *rest)

        return train_cell(module, run, settings, clock, watched)

    cells.train = train


def main(path: Path, arguments: list[str]) -> int:
    """Runs the product's command line on the virtual GPU, and writes what was counted."""
    install()
    label_by_phase()
    if place := os.environ.get("VIRTUAL_GPU_KILLED_AT"):
        cell, step = place.split()
        killed_at(cell, int(step))
    from repro.cli import main as command_line

    try:
        return command_line(arguments)
    finally:
        counts.write(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
