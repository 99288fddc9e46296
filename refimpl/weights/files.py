"""Checkpoint files in and out.

The content decides what a file is, not its ending: safetensors, a zip archive or a bare pickle of
`torch.save`. Nothing that a file holds is run: where it holds objects besides tensors (arguments,
paths, numbers of NumPy), they are left out.
"""

from __future__ import annotations

import pickle
import re
import types
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn


def read(path: str | Path) -> Mapping:
    """What a checkpoint file holds. The content decides, not the ending; nothing in it is run.

    Reads safetensors and what `torch.save` writes. Objects other than tensors, arrays, numbers,
    texts and containers of these are left out, which a warning says. Raises `FileNotFoundError`,
    and `ValueError` for a text, a damaged file, or one that was made to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    with path.open("rb") as file:
        start = file.read(400)
    if start[8:9] == b"{":  # behind the header's length in eight bytes
        from safetensors.torch import load_file

        reader = load_file
    elif start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a bare pickle
        reader = unpickle
    else:
        raise ValueError(f"{path.name} is no checkpoint but {in_words(start)}")
    try:
        return reader(path)
    except RefusedError as error:
        raise ValueError(
            f"{path.name} holds pickled code, {error}, that would run when it is read; refused"
        ) from None
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path.name} is a TorchScript program, not weights: open it with torch.jit.load"
                " and save its state_dict()"
            ) from None
        raise ValueError(
            f"{path.name} can't be read as a checkpoint; it is truncated or damaged"
            f" ({type(error).__name__})"
        ) from error


def in_words(start: bytes) -> str:
    """What a file that is no checkpoint seems to be, from its first bytes."""
    if not start:
        return "an empty file"
    text = start.decode("utf-8", "ignore")
    if text.startswith("version https://git-lfs"):
        return "the pointer of a file in Git LFS; `git lfs pull` brings the file itself"
    if re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
        return "a web page, probably of an error; download the file again"
    if text.isprintable() or "\n" in text and b"\0" not in start:
        return f"a text that begins with {text.splitlines()[0][:60]!r}"
    return "a file of another format"


class RefusedError(Exception):
    """Names what a pickle wants to call."""


class Inert:
    """Stands for an object whose class is not loaded: takes anything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def take(self, *args) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = take


class Kind(Inert):
    """A NumPy type by its code, such as "f4"."""

    def __init__(self, code: str, *rest):
        self.code = code


class Array(Inert):
    """A pickled NumPy array, which `numpy.asarray` turns into one."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.kind, by_columns, self.content = state
        self.order = "F" if by_columns else "C"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        flat = np.frombuffer(self.content, np.dtype(self.kind.code))
        return flat.reshape(self.shape, order=self.order).copy()


HARMLESS = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": lambda text, *rest: text.encode("latin1"),
    "numpy.ndarray": Inert,
    "numpy.dtype": Kind,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *rest: (
        torch._utils._rebuild_tensor(storage, offset, size, stride)
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch.nn.parameter.Parameter": lambda tensor, *rest: tensor,
    "torch.Size": tuple,
}
HARMFUL = ("builtins", "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy")
PLAIN = ("set", "frozenset", "list", "dict", "tuple", "bytearray", "complex", "slice", "object")


def unpickle(path: Path) -> object:
    """What `torch.save` wrote, with inert objects where a class would have to be loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a newer pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # it holds more than tensors: read it with a reader that calls nothing
    left_out = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
            full_name = f"{module}.{name}"
            if full_name in HARMLESS:
                return HARMLESS[full_name]
            if module == "builtins" and name in PLAIN:
                return Inert
            if module.partition(".")[0] in HARMFUL:
                raise RefusedError(full_name)
            left_out.add(full_name)
            return Inert

    def load(file, **options) -> object:
        return Reader(file, **options).load()

    module = types.SimpleNamespace(__name__="inert", Unpickler=Reader, load=load)
    found = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    if left_out:
        names = ", ".join(sorted(left_out))
        warnings.warn(f"{path.name}: left out what is no tensor: {names}", stacklevel=4)
    return found


def save(model: nn.Module, path: str | Path) -> None:
    """Write the model's tensors: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.ckpt` by `torch.save`.

    Raises `ValueError` for another ending.
    """
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    ending = Path(path).suffix
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif ending in (".pth", ".pt", ".bin", ".ckpt"):
        torch.save(state, path)
    else:
        raise ValueError(
            f"path={Path(path).name!r} must end in .safetensors, or in .pth, .pt, .bin or .ckpt"
        )
