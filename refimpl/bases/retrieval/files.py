"""An index as one file of named arrays, and the checks of what comes in from outside."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refimpl.bases.retrieval.lvq import Floats, Lvq


def checked(vectors, name: str, dim: int | None = None, least: int = 1) -> np.ndarray:
    """`vectors` as contiguous float32 (n, D), or a `ValueError` that says what is wrong."""
    try:
        x = np.ascontiguousarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        kind = type(vectors).__name__
        raise ValueError(f"{name} must be numbers of shape (n, D), got {kind}: {error}") from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, D), got {x.shape}")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name} have dimension {x.shape[1]}, the index's is {dim}")
    if len(x) < least:
        raise ValueError(f"{name} holds no vectors")
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise ValueError(f"{name}[{int(np.argmin(finite))}] holds NaN or infinity (as float32)")
    if len(x) and np.abs(x).max() > 1e17:
        raise ValueError(f"{name} holds numbers above 1e17, whose squares float32 can't add up")
    return x


def write(path: str | Path, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write one file, whole or not at all. header: JSON data."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: str | Path, form: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What `write` wrote with this `format` in its header. Nothing in the file is run."""
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        if header["format"] != form:
            raise ValueError(f"its format is {header['format']!r}, this reads {form!r}")
        return header, {name: file[name] for name in file.files if name != "header"}


# What reading a truncated, changed or foreign file raises.
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside with a file that is there becomes one `ValueError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{Path(path).name} can't be read as an index (truncated, or another format?): {error}"
        ) from error


def tensors_of(store: Lvq | Floats) -> dict[str, Tensor]:
    """The tensors of a store, by the names of its fields."""
    values = {field.name: getattr(store, field.name) for field in fields(store)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def with_tensors(store: Lvq | Floats, prefix: str, arrays: dict[str, np.ndarray]) -> Lvq | Floats:
    """A store of the same kind that holds the arrays named `prefix.field`."""
    given = {name: torch.from_numpy(arrays[f"{prefix}.{name}"]) for name in tensors_of(store)}
    return replace(store, **given)


def per_vector(name: str) -> bool:
    """Whether the array of that name has a row for each vector."""
    return not name.startswith("projection.") and not name.endswith(".mean")


def match(arrays: dict[str, np.ndarray], template: dict[str, np.ndarray]) -> int:
    """`arrays` must have the template's types and shapes, and finite numbers: how many vectors.

    template: the arrays of an index of one vector.
    """
    counts = {len(arrays[name]) for name in template if per_vector(name)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"its arrays hold {sorted(counts)} vectors, wanted one number above 0")
    count = counts.pop()
    for name, wanted in template.items():
        array = arrays[name]
        shape = (count, *wanted.shape[1:]) if per_vector(name) else wanted.shape
        if array.dtype != wanted.dtype or array.shape != shape:
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}, wanted {wanted.dtype} {shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
    return count
