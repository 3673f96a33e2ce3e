"""What CUDA would refuse, and what makes a host wait for it, operator by operator."""

import functools
import os
import weakref
from typing import Any

import torch
from torch import Tensor

from support.tally import counts

NAME = "vgpu"
CUBLAS = (":4096:8", ":16:8")
GENERATORS: set[int] = set()  # those of the device, by their address in torch
_PINNED: set[int] = set()

# What the host cannot go on without: values, or shapes that depend on them.
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
READS |= {"allclose", "bincount", "histc", "repeat_interleave"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
COPIES = {"copy_", "_foreach_copy_"}
SCALARS_ALLOWED = {"fill_", "fill", "masked_fill", "masked_fill_", "where", "index_fill", "index_fill_"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot"}

# torch.use_deterministic_algorithms, its documentation: kernels that add up in any order unless they are told not to ...
IN_ORDER_WHEN_ASKED = {"convolution_backward", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_copy", "index_copy_"}
IN_ORDER_WHEN_ASKED |= {"scatter_reduce", "scatter_reduce_", "put", "put_", "embedding_dense_backward", "replication_pad2d_backward"}
# ... and those that have no other way: refused where determinism is asked for, run with a warning under `warn_only`.
NEVER_IN_ORDER = {
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward"),
    *("_upsample_bilinear2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "grid_sampler_2d_backward"),
    *("adaptive_max_pool2d_backward", "_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "max_pool3d_with_indices_backward"),
    *("nll_loss2d_forward", "_ctc_loss_backward", "histc", "kthvalue"),
}
# Attention's backward pass is in order where determinism is asked for, but not under `warn_only`.
ATTENTION_BACKWARD = {"_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_efficient_attention_backward"}


def _is_virtual(value: Any) -> bool:
    """Says whether a value is a tensor of the virtual device."""
    return isinstance(value, Tensor) and value.device.type == NAME


def pinned(tensor: Tensor) -> Tensor:
    """Returns a copy of a CPU tensor in memory that counts as pinned."""
    copy = tensor.clone()
    storage = copy.untyped_storage()
    _PINNED.add(storage.data_ptr())
    weakref.finalize(storage, _PINNED.discard, storage.data_ptr())
    copy._pinned_storage = storage  # its finalizer runs once nothing refers to it
    return copy


def is_pinned(tensor: Tensor) -> bool:
    """Says whether a CPU tensor lies in pinned memory."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _PINNED


@functools.cache
def name_of(operator: Any) -> str:
    """Returns an operator's name without its namespace and overload."""
    schema = getattr(operator, "_schema", None)
    return schema.name.partition("::")[2] if schema else str(operator)


@functools.cache
def _is_pointwise(operator: Any) -> bool:
    name = name_of(operator)
    return torch.Tag.pointwise in operator.tags or name.startswith("_foreach") or name in SCALARS_ALLOWED


def apply(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, others: list[Tensor], on_device: bool) -> None:
    """Refuses or counts an operator.

    Args:
        operator: Of torch.
        args: Its arguments.
        kwargs: Likewise.
        others: Those that are tensors of another device, beside some of this one.
        on_device: Whether its result is on the device.
    """
    name = name_of(operator)
    count_copies(name, args, kwargs, on_device=on_device)
    if others:
        check_devices(operator, name, args, others)
    count_reads(name, args)
    check_order(name)


def check_generator(generator: Any, on_device: bool) -> None:
    if (generator._cdata in GENERATORS) != on_device:
        wanted, found = ("cuda", "cpu") if on_device else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def count_copies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, on_device: bool) -> None:
    """Counts the copies between the two memories."""
    if name == "_to_copy":
        source, before = args[0], _is_virtual(args[0])
        if before != on_device and not (torch.device(kwargs["device"]).type == "meta" or source.device.type == "meta"):
            _count_copy(source if not before else None, bool(kwargs.get("non_blocking")))
    elif name in COPIES:
        non_blocking = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        pairs = zip(args[0], args[1], strict=True) if name.startswith("_foreach") else [(args[0], args[1])]
        for target, source in pairs:
            if _is_virtual(target) != _is_virtual(source):
                # To the host a copy is not waited for only where its target is pinned.
                to_device = _is_virtual(target)
                _count_copy(source if to_device else None, non_blocking and (to_device or is_pinned(target)))


def _count_copy(source: Tensor | None, non_blocking: bool) -> None:
    """Counts a copy to the device from a source, or one to the host, which torch makes into pinned memory where it may not wait."""
    if source is None:
        counts.add("d2h_async" if non_blocking else "d2h", "copy")
    else:
        memory = "pinned" if is_pinned(source) else "pageable"
        what = f"copy from {memory} memory, {'non_blocking' if non_blocking else 'blocking'}"
        counts.add("h2d_async" if non_blocking and memory == "pinned" else "h2d", what)


def check_devices(operator: Any, name: str, args: tuple[Any, ...], others: list[Tensor]) -> None:
    """Refuses what CUDA refuses: tensors of two devices, but for copies, indices, and numbers in pointwise operators."""
    if name in COPIES or (name == "_to_copy"):
        return
    if name in INDEXED and _is_virtual(args[0]):
        values = args[2] if len(args) > 2 else None
        if not isinstance(values, Tensor) or _is_virtual(values) or values.dim() == 0:
            for _ in others:
                counts.add("h2d", "index by a CPU tensor")
            return
    changed = name.endswith("_") and isinstance(args[0], Tensor) and not _is_virtual(args[0])
    if _is_pointwise(operator) and not changed and all(tensor.dim() == 0 and tensor.device.type == "cpu" for tensor in others):
        return
    found = others[0].device
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and {found}! ({operator})")


def count_reads(name: str, args: tuple[Any, ...]) -> None:
    """Counts what the host cannot go on without."""
    if name in READS and not (name == "repeat_interleave" and len(args) > 1 and args[1] is None):
        counts.add("read", name.strip("_"))
    elif name in INDEXED and any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in args[1]):
        # A number that is put where a mask is set is filled in by a kernel.
        filled = len(args) > 2 and not _is_virtual(args[2]) and args[2].numel() == 1
        if not filled:
            counts.add("read", "index by a mask")


def check_order(name: str) -> None:
    """Counts the kernels that add up in any order, and refuses those that torch would refuse."""
    asked, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if name in ATTENTION_BACKWARD:
        if warns or not asked:
            counts.add("unrepeatable", "attention's backward pass")
    elif name in IN_ORDER_WHEN_ASKED:
        if not asked and not (name.startswith("convolution") and torch.backends.cudnn.deterministic):
            counts.add("unrepeatable", name)
    elif name in NEVER_IN_ORDER:
        if asked and not warns:
            raise RuntimeError(f"{name} does not have a deterministic implementation, but you set torch.use_deterministic_algorithms(True)")
        counts.add("unrepeatable", name)
    elif name in PRODUCTS and asked and not warns and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS:
        raise RuntimeError("Deterministic behavior was enabled, but cuBLAS is not deterministic: set CUBLAS_WORKSPACE_CONFIG=:4096:8")
