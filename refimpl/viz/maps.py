"""Attention maps: recorded from a model, put back onto the image, measured."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from refimpl.layers import Layout, Probe


@dataclass(eq=False)
class Map:
    """The attention of one layer in one forward pass.

    name: the layer's place in the model (`blocks.3.attn`); weights: (b · windows, heads, n, m),
    rows sum to 1; layout: where the tokens lie.
    """

    name: str
    weights: Tensor
    layout: Layout | None = None

    def __repr__(self) -> str:
        return f"Map({self.name!r}, weights {tuple(self.weights.shape)}, {self.layout})"

    @property
    def heads(self) -> int:
        return self.weights.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the queries' map: without a layout a square, or a `ValueError`."""
        if self.layout is not None:
            return self.layout.grid
        n = self.weights.shape[-2]
        side = math.isqrt(n)
        if side * side != n:
            raise ValueError(
                f"{self.name} was recorded without a layout, and its {n} tokens are no square"
            )
        return side, side

    def to_image(self) -> Tensor:
        """The map over the whole image: (b, heads, H·W, H·W), queries by keys, both row by row.

        Windows go back to their places, shifted ones too: nothing is looked at outside a window,
        and keys in the padding are cut off, so border rows may sum to less than 1. Class and other
        prefix tokens are left out: rows sum to 1 minus what the patches give them. A pooled key's
        weight is spread evenly over the positions that it stands for.
        """
        layout = self.layout or Layout(self.grid)
        height, width = layout.grid
        if layout.window is not None:
            return self.stitch(layout)
        weights = self.weights[:, :, layout.prefix :]
        if weights.shape[-2] != height * width:
            raise ValueError(
                f"{self.name}: {weights.shape[-2]} queries after {layout.prefix} prefix tokens do"
                f" not fill the grid {height}×{width}"
            )
        rows, columns = layout.key_grid or layout.grid
        extra = weights.shape[-1] - rows * columns
        if extra not in (0, layout.prefix):
            raise ValueError(
                f"{self.name}: {weights.shape[-1]} keys fit neither the grid {rows}×{columns} nor"
                f" {layout.prefix} prefix tokens before it"
            )
        weights = weights[..., extra:]
        if (rows, columns) == (height, width):
            return weights
        y = torch.arange(height) * rows // height
        x = torch.arange(width) * columns // width
        key = (y[:, None] * columns + x).flatten()  # that stands for each position: (H·W,)
        positions = torch.bincount(key, minlength=rows * columns)  # that each key stands for
        return weights[..., key] / positions[key]

    def stitch(self, layout: Layout) -> Tensor:
        """`to_image` for maps of windows."""
        height, width = layout.grid
        window = layout.window
        high, wide = window if isinstance(window, tuple) else (window, window)
        rows, columns = math.ceil(height / high), math.ceil(width / wide)
        windows, heads, n, m = self.weights.shape
        if (n, m) != (high * wide, high * wide) or windows % (rows * columns):
            raise ValueError(
                f"{self.name}: maps {tuple(self.weights.shape)} are no {rows}×{columns} windows of"
                f" {high}×{wide} tokens"
            )
        b = windows // (rows * columns)
        whole = self.weights.new_zeros(
            b, heads, rows, high, columns, wide, rows, high, columns, wide
        )
        local = rearrange(
            self.weights,
            "(b i j) heads (y x) (v u) -> b i j heads y x v u",
            b=b,
            i=rows,
            y=high,
            v=high,
        )
        for i in range(rows):
            for j in range(columns):
                whole[:, :, i, :, j, :, i, :, j] = local[:, i, j]
        whole = rearrange(whole, "b heads i y j x k v l u -> b heads (i y) (j x) (k v) (l u)")
        whole = whole[:, :, :height, :width, :height, :width]
        down, right = layout.shift
        whole = whole.roll((down, right, down, right), (2, 3, 4, 5))
        return whole.flatten(2, 3).flatten(3, 4)


@contextmanager
def record(model: nn.Module) -> Iterator[list[Map]]:
    """While active, each forward pass appends a `Map` per attention layer, in order of execution.

    Calls of one `Probe` within one pass of the layer that owns it (head after head, say) become
    the heads of one map. Maps are float32 on the CPU. Only this model is listened to, no copy of
    it; what `torch.compile` made of it runs uncompiled meanwhile. Raises `ValueError` when the
    model has no `Probe`.
    """
    probes: dict[nn.Module, str] = {}  # probe -> the layer's place in the model
    owners: dict[nn.Module, list[nn.Module]] = {}  # layer -> its probes
    for path, module in model.named_modules():
        if isinstance(module, Probe):
            place, owner = owner_of(model, path)
            owners.setdefault(owner, []).append(module)
            probes[module] = place.replace("_orig_mod.", "") or type(owner).__name__
    if not probes:
        raise ValueError(f"record: {type(model).__name__} has no attention with a layers.Probe")
    maps: list[Map] = []
    unfinished: dict[nn.Module, Map] = {}  # the map that further heads of this pass join

    def listen(module: nn.Module, args: tuple) -> None:
        for probe in owners.get(module, ()):  # a new pass of this layer begins
            unfinished.pop(probe, None)
        if module not in probes:
            return
        seen = shown(module, probes[module], *args)
        last = unfinished.get(module)
        if last is not None and mergeable(last, seen):
            last.weights = torch.cat([last.weights, seen.weights], dim=1)
        else:
            unfinished[module] = seen
            maps.append(seen)

    # A hook for all modules, not one for each of this model's: a copy would inherit that.
    with uncompiled(), register_module_forward_pre_hook(listen):
        yield maps


def owner_of(model: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The layer that calls the probe at `path`, and its place in the model."""
    while True:
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
        if not isinstance(owner, nn.ModuleList | nn.ModuleDict):  # these are never called
            return path, owner


def shown(
    probe: Probe,
    name: str,
    make_map: Callable[[], Tensor],
    grid: tuple[int, int] | None = None,
) -> Map:
    """The map that a layer shows to its probe, with the layout that holds for this pass."""
    with torch.no_grad():
        weights = make_map().detach().float().cpu()
    layout = probe.layout
    if grid is not None:
        layout = replace(layout, grid=grid) if layout else Layout(grid)
    return Map(name, weights, layout)


@contextmanager
def uncompiled() -> Iterator[None]:
    """While active, compiled functions run as written: dynamo takes no notice of new hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        yield
        return
    if not hasattr(torch.compiler, "set_stance"):
        raise ValueError("record: a compiled model can be recorded from torch 2.6 on")
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile")  # of hooks for all modules
        yield


def mergeable(first: Map, second: Map) -> bool:
    """Whether two maps of a layer differ in their heads alone."""
    return (
        first.layout == second.layout
        and first.weights.shape[0] == second.weights.shape[0]
        and first.weights.shape[2:] == second.weights.shape[2:]
    )


def weights_of(maps: Map | Tensor) -> Tensor:
    weights = maps.weights if isinstance(maps, Map) else maps
    if weights.dim() != 4:
        raise ValueError(f"attention maps are (b, heads, n, m), got {tuple(weights.shape)}")
    return weights


def head_matrix(maps: Map | Tensor, centred: bool = False) -> Tensor:
    """Cosine between the flattened maps of every two heads: (b, heads, n, m) -> (b, heads, heads).

    Maps are non-negative, so even unrelated heads score well above 0 and two uniform maps score 1.
    centred: subtracts the uniform map's 1/m first; then unrelated heads score 0.
    """
    flat = weights_of(maps).flatten(2)
    if centred:
        flat = flat - 1 / weights_of(maps).shape[-1]
    flat = F.normalize(flat.double(), dim=-1)
    return (flat @ flat.transpose(1, 2)).float()


def head_similarity(maps: Map | Tensor, centred: bool = False) -> Tensor:
    """How alike each head is to the others: (b, heads, n, m) -> (b, heads).

    s_i = mean over the other heads j of cos(A_i, A_j); centred: see `head_matrix`.
    """
    matrix = head_matrix(maps, centred)
    heads = matrix.shape[-1]
    if heads < 2:
        raise ValueError("head_similarity: one head has no other head to compare with")
    return (matrix.sum(-1) - matrix.diagonal(dim1=1, dim2=2)) / (heads - 1)


def entropy(maps: Map | Tensor, relative: bool = True) -> Tensor:
    """Mean over queries of the entropy of a row: (b, heads, n, m) -> (b, heads).

    relative: as a fraction of log m, so that 1 is uniform; else in nats.
    """
    weights = weights_of(maps)
    value = -torch.xlogy(weights, weights).sum(-1).mean(-1)
    return value / math.log(weights.shape[-1]) if relative else value


def whole(maps: Map | Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Maps over the whole image, and rows and columns of it."""
    maps = maps if isinstance(maps, Map) else Map("the map", weights_of(maps))
    return maps.to_image(), maps.grid


def non_locality(maps: Map | Tensor) -> Tensor:
    """How far each head looks, in patches: (heads,).

    Mean over queries of Σ_j A_ij ‖position_j − position_i‖, averaged over the batch. A tensor
    (b, heads, n, n) is taken for a square grid. Prefix tokens are left out. A layer's value is the
    mean over its heads.
    """
    weights, grid = whole(maps)
    place = positions(grid)
    return (weights.mean(0) * torch.cdist(place, place)).sum(-1).mean(-1)


def offsets(maps: Map | Tensor) -> Tensor:
    """Where each head looks on average, relative to the query: (heads, 2), in rows and columns.

    Σ_j A_ij (position_j − position_i), averaged over queries and batch.
    """
    weights, grid = whole(maps)
    place = positions(grid)
    return ((weights @ place) - weights.sum(-1, keepdim=True) * place).mean((0, 2))


def positions(grid: tuple[int, int]) -> Tensor:
    """(row, column) of every token, row by row: (n, 2)."""
    rows, columns = (torch.arange(size, dtype=torch.float32) for size in grid)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def chosen(maps: Map | Tensor, sample: int) -> tuple[Tensor, tuple[int, int]]:
    """One image's maps (heads, H·W, H·W), and rows and columns of it."""
    weights, grid = whole(maps)
    if not 0 <= sample < len(weights):
        raise ValueError(f"sample={sample} must be between 0 and {len(weights) - 1}")
    return weights[sample], grid
