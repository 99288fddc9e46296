"""Deployment: one walk that turns a model into its inference-only form, for every family alike.

`deploy(model)` copies the model, sets it to evaluation, and replaces its parts from the root down:

    what its family's table names    `FUSED` in `refimpl/deploy/<stem>.py`: type -> its fused form
    what can fuse itself             `part.fuse()`, as `layers.ConvNorm` has it
    convolution, then batch norm     one convolution (`layers.fold_norm`), in a sequence
    1×1 convolution                  a matrix product on pixels (`Conv1x1AsLinear`)
    patch embedding                  a matrix product on patches (`PatchProduct`)

Then a family may change the whole copy (`finish` in `refimpl/deploy/<stem>.py`), linear weights are
stored column-major, and maps channels last. Results are equal but for rounding.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.layers import ConvNorm, PatchEmbed, fold_norm

Fuse = Callable[[nn.Module], nn.Module]
IN_PLACE = (nn.ReLU, nn.ReLU6, nn.SiLU)  # activations that can overwrite their input


def deploy(model: nn.Module) -> nn.Module:
    """A fused copy of `model` for inference, equal within 1e-4; the model itself is left alone.

    Parameters that were frozen stay frozen. The state dict holds contiguous tensors, so that every
    format takes it. In training mode the copy raises a `ValueError`: it has no norms to train.
    """
    fused = copy.deepcopy(model).eval()
    if is_fused(model):
        return fused
    replace_parts(fused)
    own = family(type(model).__module__)
    if hasattr(own, "finish"):
        own.finish(fused)
    column_major(fused)
    fused.to(memory_format=torch.channels_last)
    fused.register_forward_pre_hook(refuse_training)
    fused._register_state_dict_hook(contiguous_state)  # public from torch 2.5 on, as a post hook
    return fused


def is_fused(model: nn.Module) -> bool:
    """Whether `deploy` made this model."""
    return refuse_training in model._forward_pre_hooks.values()


def refuse_training(model: nn.Module, images: tuple) -> None:
    """Forward pre-hook: a fused model has no batch norm left that could be trained."""
    if model.training:
        raise ValueError(
            f"this {type(model).__name__} is fused, for inference only: call eval(), and train the"
            " model that it was made from"
        )


def contiguous_state(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """State dict hook: safetensors stores contiguous tensors only; these are copies then."""
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            state[name] = tensor.contiguous()


@cache
def family(module: str) -> ModuleType | None:
    """`refimpl.deploy.<stem>` for the papers' or bases' module of that stem, if there is one."""
    room, _, stem = module.rpartition(".")
    name = f"refimpl.deploy.{stem}"
    if room not in ("refimpl.papers", "refimpl.bases") or not importlib.util.find_spec(name):
        return None
    return importlib.import_module(name)


def fused_part(part: nn.Module) -> nn.Module:
    """What takes a part's place (by default the part itself), its own parts replaced in turn."""
    table = getattr(family(type(part).__module__), "FUSED", {})
    if type(part) in table:
        part = table[type(part)](part)
    elif type(part) is PatchEmbed:
        part = PatchProduct(part)
    elif hasattr(part, "fuse"):
        part = part.fuse()
    replace_parts(part)
    return Conv1x1AsLinear.of(part) if Conv1x1AsLinear.can_be(part) else part


def replace_parts(module: nn.Module) -> None:
    """Replace all parts of a module, in place."""
    if isinstance(module, nn.Sequential):
        fold_neighbours(module)
    for name, part in module.named_children():
        setattr(module, name, fused_part(part))


def fold_neighbours(sequence: nn.Sequential) -> None:
    """In place: convolutions fold the norm behind them (an identity keeps its place).

    An activation right behind a convolution or its norm works in place, as nobody else reads its
    input.
    """
    for i, (first, second) in enumerate(pairwise(sequence)):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            sequence[i] = fold_norm(first, second)
            sequence[i + 1] = nn.Identity()
        elif isinstance(first, (nn.Conv2d, ConvNorm, nn.BatchNorm2d)) and type(second) in IN_PLACE:
            sequence[i + 1] = type(second)(inplace=True)


@torch.no_grad()
def with_identity(conv: nn.Conv2d, scale: float | Tensor = 1.0) -> nn.Conv2d:
    """In place: the depthwise convolution that computes `scale·x + conv(x)`; returns it.

    scale: a number, or one per channel (c,).
    """
    height, width = conv.kernel_size
    conv.weight[:, 0, height // 2, width // 2] += scale
    return conv


@torch.no_grad()
def scaled(layer: nn.Conv2d | nn.Linear, scale: Tensor) -> nn.Conv2d | nn.Linear:
    """In place: the layer whose outputs are multiplied by `scale` (c,), per channel; returns it."""
    layer.weight *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias *= scale
    return layer


class Conv1x1AsLinear(nn.Linear):
    """A 1×1 convolution as a matrix product on pixels: (b, c, h, w) -> (b, out, h, w).

    Expects channels-last memory, otherwise it copies; returns channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Conv1x1AsLinear:
        """The layer with the weights of this convolution."""
        return linear_like(conv.weight.flatten(1), conv.bias, cls)

    @staticmethod
    def can_be(layer: nn.Module) -> bool:
        """Whether `layer` is a convolution that looks at each pixel alone, all channels at once."""
        return (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == layer.stride == (1, 1)
            and layer.padding == (0, 0)
            and layer.groups == 1
        )


class PatchProduct(nn.Module):
    """`PatchEmbed` as one matrix product on flat patches: (b, c, H, W) -> (b, n, embed_dim)."""

    def __init__(self, embed: PatchEmbed):
        super().__init__()
        self.img_size = embed.img_size
        self.patch_size = embed.patch_size
        self.in_chans = embed.proj.in_channels
        self.proj = linear_like(embed.proj.weight.flatten(1), embed.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        checks.image(x, self.in_chans, self.img_size)
        patches = rearrange(
            x, "b c (h y) (w x) -> b (h w) (c y x)", y=self.patch_size, x=self.patch_size
        )
        return self.proj(patches)


def linear_like(
    weight: Tensor, bias: Tensor | None, kind: type[nn.Linear] = nn.Linear
) -> nn.Linear:
    """A linear layer that holds a copy of these weights (out, in) and this bias (out,).

    It is frozen if `weight` wants no gradient.
    """
    layer = kind(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), weight.requires_grad)
    return layer


def column_major(model: nn.Module) -> None:
    """In place: store linear weights transposed in memory (same shape, same values).

    Products of few rows are bound by reading the weights, and then read them in sequence.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
