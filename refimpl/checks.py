"""The words of every `ValueError`, once.

Each function returns nothing when the value is right (`image_size` returns it as a pair), and
otherwise raises a `ValueError` that names the argument, the value that was given, and what is
accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import SupportsFloat


def choice(name: str, value: object, options: Iterable[str], what: str = "") -> None:
    """`value` must be one of the options; the message gives the nearest ones.

    name: the argument; what: a word for the kind of thing ("model"), where that says more.
    """
    options = list(options)
    if value in options:
        return
    near = get_close_matches(str(value), options, 3, 0.5)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif len(options) <= 12:
        hint = f"there are {', '.join(map(repr, options))}" if options else "there are none"
    else:
        hint = f"there are {len(options)}: {', '.join(map(repr, options[:8]))} …"
    subject = f"unknown {what} {value!r}" if what else f"{name}={value!r} is not known"
    raise ValueError(f"{subject}; {hint}")


def at_least(least: float, **values: float | Sequence[float]) -> None:
    """Every number, or every entry of a sequence, must be at least `least`.

    While a network is traced its sizes are tensors: whatever turns into a float is a number here.
    """
    for name, value in values.items():
        entries = value if isinstance(value, Sequence) else (value,)
        if any(not isinstance(entry, SupportsFloat) or entry < least for entry in entries):
            raise ValueError(f"{name}={value!r} must be at least {least}")


def integer(least: int, **values: object) -> None:
    """Every value must be a whole number (not a boolean) of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}")


def positive(**values: float) -> None:
    """Every number must be above 0."""
    for name, value in values.items():
        if not isinstance(value, SupportsFloat) or not value > 0:
            raise ValueError(f"{name}={value!r} must be above 0")


def fraction(**values: float) -> None:
    """Every number must be at least 0 and less than 1."""
    for name, value in values.items():
        if not isinstance(value, SupportsFloat) or not 0 <= value < 1:
            raise ValueError(f"{name}={value!r} must be at least 0 and less than 1")


def same_length(**sequences: tuple) -> None:
    """The sequences must have one entry per stage each, and not be empty."""
    lengths = {len(sequence) for sequence in sequences.values()}
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{name}={value}" for name, value in sequences.items())
        raise ValueError(f"{given} must be equally long: one entry for each stage")


def multiple(of: int, why: str = "", **values: int) -> None:
    """Every number must be a positive multiple of `of`; `why` follows the sentence."""
    for name, value in values.items():
        if value < of or value % of:
            reason = f", {why}" if why else ""
            raise ValueError(f"{name}={value} must be a positive multiple of {of}{reason}")


def image_size(
    img_size: int | tuple[int, int], of: int = 1, why: str = "", square: bool = False
) -> tuple[int, int]:
    """Height and width of `img_size`, a number or a pair: each a positive multiple of `of`."""
    pair = img_size if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise ValueError(
            f"img_size={img_size!r} must be a positive number of pixels or (height, width)"
        )
    height, width = pair
    if square and height != width:
        raise ValueError(
            f"img_size={tuple(pair)} must be square: this model is built for one resolution"
        )
    for side in {height, width}:
        multiple(of, why, img_size=side)
    return height, width


def pooling(sample_size: int, grid: tuple[int, int]) -> None:
    """A grid must have as many rows and columns of tokens as are to be pooled from it."""
    if not 1 <= sample_size <= min(grid):
        raise ValueError(
            f"sample_size={sample_size} must be at least 1 and at most {min(grid)}: there are"
            f" {grid[0]}×{grid[1]} tokens to pool"
        )


def heads(dim: int, num_heads: int) -> None:
    """The heads must divide the width."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads} must be at least 1 and divide dim={dim}")


def torch_tensor(**values: object) -> None:
    """Every value must be a tensor of PyTorch, not an array of NumPy, a picture or a list."""
    for name, value in values.items():
        if not hasattr(value, "is_floating_point"):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            hint = f"; torch.from_numpy({name}) makes one" if kind == "numpy.ndarray" else ""
            raise ValueError(f"{name} must be a torch.Tensor, got a {kind}{hint}")


def image(
    x, in_chans: int, size: tuple[int, int] | None = None, multiple: int | None = None
) -> None:
    """`x` must be images (b, in_chans, h, w) of this size, or with sides that are multiples."""
    torch_tensor(images=x)
    if x.dim() != 4:
        raise ValueError(
            f"images must be (batch, channels, height, width), got {x.dim()} dimensions:"
            f" {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"images are {x.dtype}, this model wants a floating type: convert and normalise first,"
            " for example images.float() / 255"
        )
    if x.shape[1] != in_chans:
        raise ValueError(
            f"images have {x.shape[1]} channels, this model was built with in_chans={in_chans}"
        )
    height, width = x.shape[2:]
    if size is not None and (height, width) != tuple(size):
        built_for = size[0] if size[0] == size[1] else tuple(size)
        raise ValueError(
            f"images are {height}×{width} pixels, this model was built for"
            f" img_size={built_for} ({size[0]}×{size[1]})"
        )
    if multiple is not None and (height % multiple or width % multiple):
        raise ValueError(
            f"images are {height}×{width} pixels, both sides must be multiples of {multiple}"
        )


def shapes(axes: dict[str, str], **tensors) -> dict[str, int]:
    """Every tensor must have the axes that its entry names, each name one size in all of them.

    axes: argument → names of its axes, alternatives after `|`: {"x": "batch heads width",
    "D": "heads | heads width"}; a number stands for itself. tensors: argument → tensor, in the
    order in which sizes are learned, or `None` where it is left out. Returns name → size.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        torch_tensor(**{name: tensor})
        accepted = [alternative.split() for alternative in axes[name].split("|")]
        found = [fitted(names, tensor.shape, sizes) for names in accepted]
        found = [more for more in found if more is not None]
        if not found:
            wanted = " or ".join(spelled(names, sizes) for names in accepted)
            raise ValueError(f"{name} must be {wanted}, got {tuple(tensor.shape)}")
        sizes |= found[0]
    return sizes


def fitted(names: list[str], shape, sizes: dict[str, int]) -> dict[str, int] | None:
    """The sizes that this shape gives to these axes, or `None` where they contradict."""
    if len(names) != len(shape):
        return None
    more: dict[str, int] = {}
    for name, size in zip(names, shape, strict=True):
        known = int(name) if name.isdigit() else (more | sizes).get(name, size)
        if known != size:
            return None
        if not name.isdigit():
            more[name] = size
    return more


def spelled(names: list[str], sizes: dict[str, int]) -> str:
    """`(batch, length) = (2, length)`: the axes, and what is known of their sizes."""
    axes = ", ".join(names) + "," * (len(names) == 1)
    known = ", ".join(str(sizes.get(name, name)) for name in names) + "," * (len(names) == 1)
    return f"({axes})" if axes == known else f"({axes}) = ({known})"


def floating(**tensors) -> None:
    """Every tensor must hold floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        torch_tensor(**{name: tensor})
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def same_device(**tensors) -> None:
    """All tensors must lie where the first one lies."""
    first, *others = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in others:
        if tensor.device != first[1].device:
            raise ValueError(
                f"{name} is on {tensor.device}, {first[0]} on {first[1].device}:"
                " all must be on one device"
            )
