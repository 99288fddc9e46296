"""What can be counted: parameters, multiply-adds, bytes held and bytes moved."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters; only those that receive a gradient if `trainable`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


FUSED_ATTENTION = [
    getattr(torch.ops.aten, name)
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(torch.ops.aten, name)
]


def count_fused(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of a fused attention, from the shapes that PyTorch's counter hands over."""
    return sdpa_flop_count(query, key, value)


def count_nothing(*args, out_shape=None, **kwargs) -> int:
    return 0


def macs(model: nn.Module | Callable, *inputs: torch.Tensor, attention: bool = True) -> int:
    """Multiply-adds of `model(*inputs)` for the whole batch, by PyTorch's counter (FLOPs / 2).

    Convolutions and matrix products are counted; modules in evaluation mode.

    attention: False leaves out the two products inside a fused attention, as PyTorch's counter
        does on a CPU (and as the reference outputs were recorded). Products that a model writes
        out are always counted.
    """
    count = count_fused if attention else count_nothing
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(FUSED_ATTENTION, count))
    with evaluating(model), torch.no_grad(), counter:
        model(*inputs)
    return counter.get_total_flops() // 2


@contextmanager
def evaluating(model: nn.Module | Callable) -> Iterator[None]:
    """Evaluation mode, and every submodule's own mode again afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators return, and takes them off when they are freed.

    It tells storages apart by `_cdata`, a private attribute of PyTorch (the address of the storage
    in C++): nothing public is the same for two Python objects of one storage.
    """

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def storages(tree: object) -> list[torch.UntypedStorage]:
    """The storages of all tensors in a nest of tuples, lists and dictionaries."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors]


def peak_memory(function: Callable[[], object]) -> int:
    """Most bytes that `function()` holds at one moment in tensors it made, with saved gradients'.

    On a GPU the allocator's own count; on a CPU the sum of living tensor storages, without scratch
    memory inside an operator.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated() - before
        if used > 0:
            return used
    with LiveBytes() as meter:
        function()
    return meter.peak


def saved_for_backward(function: Callable[[], object], without: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of what `function()` gives.

    without: tensors that are there anyway, such as parameters and inputs. A storage counts once.
    """
    known = {storage._cdata for storage in storages(list(without))}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in kept.values())


class Traffic(TorchDispatchMode):
    """Adds up the bytes of every operator's tensors: what goes in, and what comes out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            tensors = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return result


def traffic(function: Callable[[], object]) -> int:
    """Bytes that the operators of `function()` read and write when each touches its tensors once.

    Views move nothing. A fused operator counts what enters and leaves it, an expanded tensor its
    full size; what a cache saves is not taken off. Gradients are off.
    """
    with torch.no_grad(), Traffic() as counter:
        function()
    return counter.bytes
