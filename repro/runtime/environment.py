"""Environment variables that libraries read: set where a run starts, never by an import."""

import os


def set_for_cublas() -> None:
    """Gives cuBLAS a workspace of fixed size, without which it does not give the same bits twice; it reads this at its first use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_for_deepspeed(*, on_cpu: bool) -> None:
    """Tells DeepSpeed, which reads these at its import, its device and, for a process that no launcher started, its rank."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")


def set_for_profiler() -> None:
    """Silences the line that torch's profiler prints at each start and stop; it reads this at its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
