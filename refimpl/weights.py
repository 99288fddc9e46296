"""Weights in and out: official checkpoints through short name maps, our own as safetensors.

A paper's or base's file holds `NAMES: dict[str, Rules]` ("official", "timm", …), or no `NAMES` where
the official names are kept. Rules turn a foreign tensor name into ours: an ordered list of `(pattern,
replacement)` applied with `re.sub` (so a replacement may be a function, where indices shift); the
replacement `None` drops every name that the pattern matches (buffers that are computed). Patterns are
not anchored at the model's root unless they say so, so the same rules serve a part of a model.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

Rules = list[tuple[str, str | Callable[[re.Match], str] | None]]
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def names_of(model: nn.Module) -> dict[str, Rules]:
    """The name maps of the file that defines the model, or a part of it; empty where names are kept.

    A class derived in a notebook has the maps of the class that it is derived from.
    """
    if hasattr(model, "name_maps"):  # until every paper's file has `NAMES`
        return model.name_maps
    for kind in type(model).__mro__:
        names = getattr(sys.modules.get(kind.__module__), "NAMES", None)
        if names is not None:
            return names
    return {}


def rename(name: str, rules: Rules) -> str | None:
    """Our name for a foreign tensor name, `None` when the rules drop it."""
    for pattern, replacement in rules:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file. Pickled code is never run."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix in (".pth", ".pt", ".bin"):
            return unwrap(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} holds pickled objects besides tensors, which could run code when read; refused. {first_line(error)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path.name} can't be read as a checkpoint (truncated, or another format?): {first_line(error)}"
        ) from error
    raise ValueError(f"path={path.name!r}: a checkpoint ends in .safetensors, .pth, .pt or .bin")


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def unwrap(checkpoint: Mapping) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint (`state_dict_ema` before `state_dict` before `model`)."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"a checkpoint is a dictionary of tensors, got {type(checkpoint).__name__}"
        )
    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            return unwrap(checkpoint[key])
    nested = [value for value in checkpoint.values() if isinstance(value, Mapping)]
    if len(nested) == 1 and not any(isinstance(value, Tensor) for value in checkpoint.values()):
        return unwrap(nested[0])
    return {k.removeprefix("module."): v for k, v in checkpoint.items() if isinstance(v, Tensor)}


def load_official(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], rules: Rules | None = None
) -> nn.Module:
    """Load the authors' (or timm's) weights into `model`, strictly, and return it.

    `source` is a path or a state dict under official names. `rules` default to the one of `names_of(model)` that fits
    best. Every tensor of the model must be given exactly once, with its shape (axes of length one aside, so that a linear
    weight fits a 1×1 kernel) and a floating type where it is one; else a `ValueError` names the tensors and `model` is as it was.
    """
    state = read(source) if isinstance(source, (str, Path)) else unwrap(source)
    maps = {"given": rules} if rules is not None else names_of(model) | {"own": []}
    own = model.state_dict()
    plans = {kind: translate(state, rule) for kind, rule in maps.items()}
    kind, mapped = min(plans.items(), key=lambda plan: len(own.keys() ^ plan[1].keys()))
    problems = compare(own, mapped)
    if problems:
        raise ValueError(
            f"{type(model).__name__}: these weights don't fit ({kind} names, {len(problems)} problems; the model is unchanged)\n  "
            + "\n  ".join(problems[:12])
        )
    # a fused model's state dict holds copies: only load_state_dict reaches the tensors themselves
    model.load_state_dict({name: mapped[name].reshape(t.shape) for name, t in own.items()})
    return model


def translate(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    pairs = ((rename(name, rules), tensor) for name, tensor in state.items())
    return {name: tensor for name, tensor in pairs if name is not None}


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps `given` from being loaded as `own`, one sentence a tensor."""
    squeeze = lambda t: [n for n in t.shape if n != 1]  # noqa: E731
    problems = []
    for name in own.keys() - given.keys():
        near = get_close_matches(name, given.keys() - own.keys(), 1)
        problems.append(
            f"missing: {name}, shape {tuple(own[name].shape)}"
            + (f" (is it {near[0]!r}?)" if near else "")
        )
    for name in given.keys() - own.keys():
        problems.append(f"left over: {name}, shape {tuple(given[name].shape)}")
    for name in own.keys() & given.keys():
        if squeeze(own[name]) != squeeze(given[name]):
            problems.append(
                f"shape: {name} is {tuple(given[name].shape)}, wanted {tuple(own[name].shape)}"
            )
        elif own[name].is_floating_point() != given[name].is_floating_point():
            problems.append(f"type: {name} is {given[name].dtype}, wanted {own[name].dtype}")
    return sorted(problems)


def first_difference(
    ours: nn.Module,
    theirs: nn.Module,
    images: Tensor,
    pairs: Mapping[str, str] | Callable[[str], str | None],
    rtol: float = 1e-4,
) -> str:
    """The first layer, in order of execution, at which two models part on the same input.

    `pairs` gives for a module name of `ours` the name in `theirs` (or `None`). For models whose weights loaded but whose outputs differ.
    """
    pairs = pairs if callable(pairs) else pairs.get
    wanted = {name: other for name, _ in ours.named_modules() if name and (other := pairs(name))}
    mine, other = trace(ours, images, wanted), trace(theirs, images, wanted.values())
    for name in mine:
        a, b = mine[name], other.get(wanted[name])
        if b is None:
            return f"{name}: {wanted[name]} was not run by the other model"
        if a.numel() != b.numel():
            return (
                f"{name}: shape {tuple(a.shape)}, the other's {wanted[name]} gives {tuple(b.shape)}"
            )
        error = ((a.reshape(-1) - b.reshape(-1)).norm() / b.norm().clamp_min(1e-12)).item()
        if not error <= rtol:
            return f"{name}: differs from {wanted[name]} by {error:.1e} of the norm (output mean {a.mean():.4g}, theirs {b.mean():.4g})"
    return "no difference"


def trace(model: nn.Module, images: Tensor, names) -> dict[str, Tensor]:
    """Outputs of the named modules in the order in which they finish."""
    names, outputs = set(names), {}

    def keep(name):
        def hook(module, args, result) -> None:
            if isinstance(result, Tensor) and name not in outputs:
                outputs[name] = result.detach().clone()  # a copy: the next layer may work in place

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def save(model: nn.Module, path: str | Path) -> None:
    """Write the model's tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what `save` wrote, strictly."""
    return load_official(model, path, rules=[])
