"""Weights in and out: official checkpoints through short name maps, our own as safetensors.

A paper's or base's file holds `NAMES: dict[str, Rules]` ("official", "timm", …), or no `NAMES`
where the official names are kept. Rules turn a foreign tensor name into ours: an ordered list of
`(pattern, replacement)` applied with `re.sub` (so a replacement may be a function, where indices
shift); the replacement `None` drops every name that the pattern matches (buffers that are
computed). Patterns are not anchored at the model's root unless they say so, so the same rules serve
a part of a model.

People get weights in containers: a file of any name that holds a training checkpoint, with averaged
weights, under a prefix that a wrapper left. All of these are looked into, and the state dict that
fits best is taken. Nothing that a file holds is ever run.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refimpl.weights.files import Array, Inert, read, save

__all__ = [
    "Rules",
    "compare",
    "first_difference",
    "load",
    "load_official",
    "names_of",
    "read",
    "rename",
    "save",
    "trace",
    "translate",
]

PICKLED = "a pickled object; if that is a model, save its state_dict() instead"

Rules = list[tuple[str, str | Callable[[re.Match], str] | None]]


def names_of(model: nn.Module) -> dict[str, Rules]:
    """The name maps of the file that defines the model, or a part of it.

    Empty where names are kept. A class derived in a notebook has the maps of the class that it is
    derived from.
    """
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


def translate(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The state dict under our names, without what the rules drop."""
    renamed = {}
    for name, tensor in state.items():
        ours = rename(name, rules)
        if ours is not None:
            renamed[ours] = tensor
    return renamed


@dataclass
class Reading:
    """One way to read a checkpoint.

    where: the keys that lead to the state dict; prefix: taken off its names; names: of the map that
    they went through; tensors: what came out, under our names.
    """

    where: str
    prefix: str
    names: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        said = [f"{self.names} names"]
        if self.where:
            said.append(f"under {self.where!r}")
        if self.prefix:
            said.append(f"without the prefix {self.prefix!r}")
        return ", ".join(said)


def load_official(
    model: nn.Module,
    source: str | Path | Mapping,
    rules: Rules | None = None,
    leave_out: tuple[str, ...] = (),
) -> nn.Module:
    """Load the authors' (or timm's) weights into `model`, strictly, and return it.

    source: a path, or what such a file holds; a state dict may hold NumPy arrays.
    rules: by default the one of `names_of(model)` that fits best.
    leave_out: beginnings of our names, such as "head.", that are not loaded but stay as they are.

    Every other tensor of the model must be given exactly once, with its shape (axes of length one
    aside, so that a linear weight fits a 1×1 kernel) and a floating type where it is one; else a
    `ValueError` names the tensors and what would help, and the model is as it was. Only the counts
    of batches that batch norms keep may be missing. A model on the meta device is filled too.
    """
    checkpoint = read(source) if isinstance(source, (str, Path)) else source
    if not isinstance(checkpoint, Mapping):
        what = PICKLED if isinstance(checkpoint, Inert) else type(checkpoint).__name__
        raise ValueError(f"a checkpoint is a dictionary of tensors, got {what}")
    maps = {"given": rules} if rules is not None else names_of(model) | {"own": []}
    own = without(model.state_dict(), leave_out)
    best, fewest = None, math.inf
    for reading in readings(checkpoint, maps):
        reading.tensors = without(reading.tensors, leave_out)
        odd = len(missing(own, reading.tensors)) + len(reading.tensors.keys() - own.keys())
        if odd < fewest:
            best, fewest = reading, odd
        if not odd:
            break
    if best is None:
        keys = ", ".join(repr(key) for key in list(checkpoint)[:12]) or "none"
        pickled = any(isinstance(value, Inert) for value in checkpoint.values())
        raise ValueError(
            f"this checkpoint holds no tensors under names; its keys are {keys}"
            f"{f', among them {PICKLED}' if pickled else ''}"
        )
    problems = compare(own, best.tensors)
    if problems:
        raise ValueError(refusal(model, own, best, problems))
    fill(model, {name: best.tensors[name] for name in own.keys() & best.tensors.keys()})
    return model


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what `save` wrote, strictly."""
    return load_official(model, path, rules=[])


def without(state: Mapping[str, Tensor], beginnings: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names have none of these beginnings."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def readings(checkpoint: Mapping, maps: Mapping[str, Rules]) -> Iterator[Reading]:
    """Every way to read a checkpoint, the likelier ones first."""
    for where, state in state_dicts(checkpoint).items():
        for prefix in prefixes(state):
            inside, outside = {}, {}
            for name, tensor in state.items():
                if name.startswith(prefix):
                    inside[name.removeprefix(prefix)] = tensor
                elif name != "n_averaged":  # of torch.optim.swa_utils.AveragedModel
                    outside[name] = tensor
            for names, rules in maps.items():
                yield Reading(where, prefix, names, translate(inside, rules) | outside)


def state_dicts(checkpoint: Mapping, depth: int = 4) -> dict[str, dict[str, Tensor]]:
    """The mappings of tensors inside a checkpoint, by the keys that lead there.

    Averaged weights come first, then what stands nearer to the top.
    """
    found = {"": {}}
    for key, value in checkpoint.items():
        if not isinstance(key, str):
            continue  # the state of an optimizer
        if isinstance(value, Tensor):
            found[""][key] = value
        elif isinstance(value, (np.ndarray, Array)):
            array = np.asarray(value)
            if array.dtype.kind in "fiub":  # floating or whole numbers, or truth values
                found[""][key] = torch.tensor(array)
        elif isinstance(value, Mapping) and depth:
            for inner, state in state_dicts(value, depth - 1).items():
                found[f"{key}.{inner}".strip(".")] = state
    found = {where: state for where, state in found.items() if state}
    averaged = re.compile("ema|averag|swa|teacher", re.IGNORECASE)
    return dict(sorted(found.items(), key=lambda item: not averaged.search(item[0])))


def prefixes(names: Iterable[str]) -> list[str]:
    """The beginnings that most of the names share: "", then "module.", "module.model.", …"""
    found = [""]
    names = list(names)
    while len(found) <= 3:
        parts = Counter(name.partition(".")[0] for name in names if "." in name)
        part, count = parts.most_common(1)[0] if parts else ("", 0)
        if 2 * count < len(names) or not count:
            break
        found.append(f"{found[-1]}{part}.")
        names = [name.partition(".")[2] for name in names if name.startswith(f"{part}.")]
    return found


def fill(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into the model, which may lie on the meta device."""
    own = model.state_dict()
    state = dict(own)
    for name, tensor in given.items():
        state[name] = tensor.reshape(own[name].shape)
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:
        hidden = [n for n, b in model.named_buffers() if b.is_meta and n not in own]
        left = [n for n, t in state.items() if t.is_meta and not n.endswith(COUNTS)]
        if hidden or left:
            raise ValueError(
                f"the model lies on the meta device, and the weights don't hold all that it needs:"
                f" {', '.join([*hidden, *left][:6])}; build it on the CPU instead"
            )
        state = {
            name: torch.zeros_like(own[name], device="cpu").copy_(tensor)
            if not tensor.is_meta
            else torch.zeros_like(tensor, device="cpu")
            for name, tensor in state.items()
        }
    # a fused model's state dict holds copies: only load_state_dict reaches the tensors themselves
    model.load_state_dict(state, assign=on_meta)


# ---- What is wrong


COUNTS = "num_batches_tracked"  # no output depends on them


def missing(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> set[str]:
    """Names that must be given and are not."""
    return {name for name in own.keys() - given.keys() if not name.endswith(COUNTS)}


def shape(tensor: Tensor) -> list[int]:
    """Without axes of length one."""
    return [n for n in tensor.shape if n != 1]


def near(name: str, tensor: Tensor, given: Mapping[str, Tensor], unknown: list[str]) -> str:
    """A hint at the unknown name that is most like a missing one and has its shape."""
    alike = [other for other in unknown if shape(given[other]) == shape(tensor)]
    found = get_close_matches(name, alike[:50], 1)  # fifty: it takes a tenth of a millisecond each
    return f" (is it {found[0]!r}?)" if found else ""


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps `given` from being loaded as `own`, one sentence per tensor."""
    problems = []
    unknown = sorted(given.keys() - own.keys())
    for i, name in enumerate(sorted(missing(own, given))):
        hint = near(name, own[name], given, unknown) if i < SHOWN else ""
        problems.append(f"missing: {name}, shape {tuple(own[name].shape)}{hint}")
    for name in unknown:
        problems.append(f"left over: {name}, shape {tuple(given[name].shape)}")
    for name in sorted(own.keys() & given.keys()):
        ours, theirs = own[name], given[name]
        if shape(ours) != shape(theirs):
            problems.append(f"shape: {name} is {tuple(theirs.shape)}, wanted {tuple(ours.shape)}")
        elif ours.is_floating_point() != theirs.is_floating_point():
            problems.append(f"type: {name} is {theirs.dtype}, wanted {ours.dtype}")
    return problems


SHOWN = 6  # problems of a kind


def refusal(
    model: nn.Module, own: Mapping[str, Tensor], reading: Reading, problems: list[str]
) -> str:
    """The message: what would help, and the first problems of each kind."""
    lines = [
        f"{type(model).__name__}: these weights don't fit ({reading}; {len(problems)} problem"
        f"{'s' * (len(problems) > 1)}). The model is unchanged."
    ]
    lines += remedies(model, own, reading)
    kinds = Counter(problem.partition(":")[0] for problem in problems)
    for kind, count in kinds.items():
        of_kind = [problem for problem in problems if problem.startswith(f"{kind}:")]
        lines += of_kind[:SHOWN]
        if count > SHOWN:
            lines.append(f"{kind}: {count - SHOWN} more")
    return "\n  ".join(lines)


def remedies(model: nn.Module, own: Mapping[str, Tensor], reading: Reading) -> list[str]:
    """What a user may have meant."""
    said = []
    given = reading.tensors
    if any(hook.__name__ == "refuse_training" for hook in model._forward_pre_hooks.values()):
        said.append("The model is fused: load the weights first, then fuse().")
    inside = [name for name in given if name in own]
    if reading.prefix and inside and missing(own, given) == set():
        said.append(f"Under the prefix {reading.prefix!r} every tensor is there; give those alone.")
    other = [name for name in inside if shape(own[name]) != shape(given[name])]
    classes = getattr(model, "num_classes", None)
    heads = [n for n in other if own[n].shape[:1] == (classes,)]
    if heads:
        first = sorted({name.partition(".")[0] + "." for name in heads})
        said.append(
            f"They are for {len(given[heads[0]])} classes, the model for num_classes={classes}:"
            f" build it with theirs, or keep its own classifier with leave_out={tuple(first)!r}."
        )
    elif classes == 0 and any(name.startswith("head") for name in given.keys() - own.keys()):
        said.append("The model has num_classes=0: leave_out=('head',) leaves the classifier out.")
    sized = set(other) - set(heads)
    if sized and not missing(own, given) and all(re.search("pos|bias", name) for name in sized):
        said.append(
            "Tables of positions have another size: build the model with the img_size of these"
            " weights, or bring the tables to its grid (refimpl.bases.deit.resample_positions)."
        )
    return said


# ---- Outputs that differ, though weights were loaded


def first_difference(
    ours: nn.Module,
    theirs: nn.Module,
    images: Tensor,
    pairs: Mapping[str, str] | Callable[[str], str | None],
    rtol: float = 1e-4,
) -> str:
    """The first layer, in order of execution, at which two models part on the same input.

    pairs: for a module's name in `ours` the name in `theirs` (or `None`). For whoever ports a
    model: weights loaded, outputs differ.
    """
    pairs = pairs if callable(pairs) else pairs.get
    wanted = {name: other for name, _ in ours.named_modules() if name and (other := pairs(name))}
    mine, other = trace(ours, images, wanted), trace(theirs, images, wanted.values())
    for name, a in mine.items():
        b = other.get(wanted[name])
        if b is None:
            return f"{name}: {wanted[name]} was not run by the other model"
        if a.numel() != b.numel():
            return (
                f"{name}: shape {tuple(a.shape)}, the other's {wanted[name]} gives {tuple(b.shape)}"
            )
        error = ((a.reshape(-1) - b.reshape(-1)).norm() / b.norm().clamp_min(1e-12)).item()
        if not error <= rtol:
            return (
                f"{name}: differs from {wanted[name]} by {error:.1e} of the norm (output mean"
                f" {a.mean():.4g}, theirs {b.mean():.4g})"
            )
    return "no difference"


def trace(model: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of the named modules in the order in which they finish."""
    outputs = {}

    def keep(name: str) -> Callable:
        def hook(module, args, result) -> None:
            if isinstance(result, Tensor) and name not in outputs:
                outputs[name] = result.detach().clone()  # a copy: the next layer may work in place

        return hook

    wanted = set(names)
    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in wanted
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
