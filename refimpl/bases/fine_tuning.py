"""Fine-tuning at another resolution, for other classes, with smaller steps for earlier blocks.

As TinyViT does it: Wu and others, *TinyViT: Fast Pretraining Distillation for Small Vision
Transformers*, ECCV 2022, arXiv 2207.10666; microsoft/Cream @ 4a13c40, TinyViT/utils.py (bias
tables, classifier), models/remap_layer.py, models/tiny_vit.py (layer decay).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks


def resize_bias(biases: Tensor, window_size: int) -> Tensor:
    """Bias tables for windows of another size: (heads, w²) -> (heads, window_size²).

    A table is read as a w×w picture over |Δrow| and |Δcol|, and resized bicubically.
    """
    checks.integer(1, window_size=window_size)
    side = math.isqrt(biases.shape[-1])
    if biases.dim() != 2 or side**2 != biases.shape[-1]:
        raise ValueError(f"biases must be (heads, w²), got {tuple(biases.shape)}")
    if side == window_size:
        return biases
    pictures = biases.unflatten(1, (side, side))[None]
    resized = F.interpolate(pictures, (window_size, window_size), mode="bicubic")
    return resized[0].flatten(1)


def resize_biases(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict whose bias tables fit the model, which has other windows: 224 -> 384 -> 512.

    state: under our names, as `model.state_dict()` gives them.
    """
    own = model.state_dict()
    resized = dict(state)
    for name in own.keys() & state.keys():
        if name.endswith("attention_biases"):
            resized[name] = resize_bias(state[name], math.isqrt(own[name].shape[1]))
    return resized


def remap_logits(logits: Tensor, mapping: Sequence[int]) -> Tensor:
    """Logits (b, c) of one list of classes as those of another, (b, len(mapping)).

    mapping: per new class its place among the old ones, c where it has none: its logit is 0.
    """
    classes = logits.shape[1]
    if not all(0 <= place <= classes for place in mapping):
        raise ValueError(f"mapping must hold places from 0 to {classes}, {classes} for none")
    return F.pad(logits, (0, 1))[:, list(mapping)]


def remap_head(head: nn.Linear, mapping: Sequence[int]) -> nn.Linear:
    """A classifier for another list of classes, which starts from the rows of the old one.

    mapping: per new class its place among the old ones, −1 where it has none: it starts as the mean
    of the rows that were found.
    """
    classes = head.out_features
    places = torch.tensor(mapping, device=head.weight.device)
    found = places >= 0
    if not found.any() or not ((places >= -1) & (places < classes)).all():
        raise ValueError(
            f"mapping must hold places from 0 to {classes - 1}, −1 for none; not all −1"
        )
    new = nn.Linear(head.in_features, len(mapping), device=head.weight.device)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            rows = getattr(head, name)[places]  # −1 takes the last row, which is not kept
            parameter.copy_(rows)
            parameter[~found] = rows[found].mean(0)
    return new


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups for an optimizer: earlier blocks take smaller steps, and vectors are not decayed.

    model: with a `patch_embed` and `layers`, each of `blocks` and a `downsample`, as TinyViT.
    Block i of n learns with lr · layer_decay^(n − 1 − i), the stem as the first block, a patch
    merging as the block before it, the classifier with lr. Weights are decayed where they have two
    or more axes and are no bias table.
    """
    checks.positive(lr=lr, layer_decay=layer_decay)
    checks.at_least(0, weight_decay=weight_decay)
    depths = [len(stage.blocks) for stage in model.layers]
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** steps_behind(name, depths)
        decayed = parameter.dim() > 1 and not name.endswith("attention_biases")
        group = groups.setdefault(
            (scale, decayed),
            {"params": [], "lr": lr * scale, "weight_decay": weight_decay * decayed},
        )
        group["params"].append(parameter)
    return list(groups.values())


def steps_behind(name: str, depths: Sequence[int]) -> int:
    """How many blocks come after the one that this parameter belongs to (0 for the classifier)."""
    parts = name.split(".")
    last = sum(depths) - 1
    if parts[0] == "patch_embed":
        return last
    if parts[0] != "layers":
        return 0
    stage = int(parts[1])
    block = int(parts[3]) if parts[2] == "blocks" else depths[stage] - 1
    return last - sum(depths[:stage]) - block
