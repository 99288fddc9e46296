"""Where attention looks: record a model's maps, put them back onto the image, compare heads, draw.

    with record(model) as maps:
        model(images)
    maps[0].to_image()  # (b, heads, H·W, H·W)
    explorer(photo, maps)

Every model whose attention layers have a `layers.Probe` can be recorded; outputs stay bit-equal.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from refimpl.layers import Layout, Probe
from refimpl.viz.explorer import Explorer, pack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Explorer",
    "Map",
    "entropy",
    "explorer",
    "head_matrix",
    "head_similarity",
    "non_locality",
    "offsets",
    "overlay",
    "record",
]


@dataclass(eq=False)
class Map:
    """The attention of one layer in one forward pass.

    name: the layer's place in the model (`blocks.3.attn`); weights: (b · windows, heads, n, m), rows sum to 1; layout: where the tokens lie.
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
        """Rows and columns of the queries' map. Without a layout a square is assumed, or a `ValueError` raised."""
        if self.layout is not None:
            return self.layout.grid
        side = math.isqrt(self.weights.shape[-2])
        if side * side != self.weights.shape[-2]:
            raise ValueError(
                f"{self.name} was recorded without a layout, and its {self.weights.shape[-2]} tokens are no square"
            )
        return side, side

    def to_image(self) -> Tensor:
        """The map over the whole image: (b, heads, H·W, H·W), queries by keys, both row by row.

        Windows go back to their places (nothing is looked at outside a window; keys in the padding are cut off, so border rows may sum to
        less than 1); class and other prefix tokens are left out (rows sum to 1 minus what the patches give them); a pooled key's weight
        is spread evenly over the positions that it stands for.
        """
        layout = self.layout or Layout(self.grid)
        height, width = layout.grid
        if layout.window is not None:
            return self.stitch(layout)
        weights = self.weights[:, :, layout.prefix :]
        if weights.shape[-2] != height * width:
            raise ValueError(
                f"{self.name}: {weights.shape[-2]} queries after {layout.prefix} prefix tokens do not fill the grid {height}×{width}"
            )
        rows, columns = layout.key_grid or layout.grid
        extra = weights.shape[-1] - rows * columns
        if extra not in (0, layout.prefix):
            raise ValueError(
                f"{self.name}: {weights.shape[-1]} keys fit neither the grid {rows}×{columns} nor {layout.prefix} prefix tokens before it"
            )
        weights = weights[..., extra:]
        if (rows, columns) != (height, width):
            y = torch.arange(height, device=weights.device) * rows // height
            x = torch.arange(width, device=weights.device) * columns // width
            cell = (y[:, None] * columns + x).flatten()  # the key that stands for each position
            weights = (
                weights[..., cell]
                / torch.bincount(cell, minlength=rows * columns).clamp(min=1)[cell]
            )
        return weights

    def stitch(self, layout: Layout) -> Tensor:
        height, width = layout.grid
        r = layout.window
        rows, columns = math.ceil(height / r), math.ceil(width / r)
        windows, heads, n, m = self.weights.shape
        if (n, m) != (r * r, r * r) or windows % (rows * columns):
            raise ValueError(
                f"{self.name}: maps {tuple(self.weights.shape)} are no {rows}×{columns} windows of {r}×{r} tokens"
            )
        b = windows // (rows * columns)
        whole = self.weights.new_zeros(b, heads, rows, r, columns, r, rows, r, columns, r)
        local = rearrange(
            self.weights, "(b i j) heads (y x) (v u) -> b i j heads y x v u", b=b, i=rows, y=r, v=r
        )
        for i in range(rows):
            for j in range(columns):
                whole[:, :, i, :, j, :, i, :, j] = local[:, i, j]
        whole = rearrange(whole, "b heads i y j x k v l u -> b heads (i y) (j x) (k v) (l u)")
        return whole[:, :, :height, :width, :height, :width].flatten(2, 3).flatten(3, 4)


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
            place = path.rpartition(".")[0]
            owner = model.get_submodule(place)
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


def uncompiled() -> AbstractContextManager:
    """While active, compiled functions run as written: dynamo takes no notice of new hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        return nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        raise ValueError("record: a compiled model can be recorded from torch 2.6 on")
    return torch.compiler.set_stance("force_eager")


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

    Maps are non-negative, so even unrelated heads score well above 0 and two uniform maps score 1. `centred` subtracts the uniform
    map's 1/m first: then unrelated heads score 0.
    """
    flat = weights_of(maps).flatten(2)
    if centred:
        flat = flat - 1 / weights_of(maps).shape[-1]
    flat = F.normalize(flat.double(), dim=-1)
    return (flat @ flat.transpose(1, 2)).float()


def head_similarity(maps: Map | Tensor, centred: bool = False) -> Tensor:
    """s_i = mean over the other heads j of cos(A_i, A_j): (b, heads, n, m) -> (b, heads). See `head_matrix` for `centred`."""
    matrix = head_matrix(maps, centred)
    heads = matrix.shape[-1]
    if heads < 2:
        raise ValueError("head_similarity: one head has no other head to compare with")
    return (matrix.sum(-1) - matrix.diagonal(dim1=1, dim2=2)) / (heads - 1)


def entropy(maps: Map | Tensor, relative: bool = True) -> Tensor:
    """Mean over queries of the entropy of a row: (b, heads, n, m) -> (b, heads), as a share of log m (1 = uniform) or in nats."""
    weights = weights_of(maps)
    value = -torch.xlogy(weights, weights).sum(-1).mean(-1)
    return value / math.log(weights.shape[-1]) if relative else value


def whole(maps: Map | Tensor) -> tuple[Tensor, tuple[int, int]]:
    maps = maps if isinstance(maps, Map) else Map("the map", weights_of(maps))
    return maps.to_image(), maps.grid


def non_locality(maps: Map | Tensor) -> Tensor:
    """How far a head looks: mean over queries of Σ_j A_ij ‖position_j − position_i‖, in patches, averaged over the batch -> (heads,).

    A tensor (b, heads, n, n) is taken for a square grid. Prefix tokens are left out. A layer's value is the mean over its heads.
    """
    weights, (height, width) = whole(maps)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float().reshape(-1, 2)
    return (weights.mean(0) * torch.cdist(place, place)).sum(-1).mean(-1)


def offsets(maps: Map | Tensor) -> Tensor:
    """Where a head looks on average, relative to the query: Σ_j A_ij (position_j − position_i), mean over queries and batch -> (heads, 2), rows and columns."""
    weights, (height, width) = whole(maps)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float().reshape(-1, 2)
    return ((weights @ place) - weights.sum(-1, keepdim=True) * place).mean((0, 2))


def chosen(maps: Map | Tensor, sample: int) -> tuple[Tensor, tuple[int, int]]:
    weights, grid = whole(maps)
    if not 0 <= sample < len(weights):
        raise ValueError(f"sample={sample} must be between 0 and {len(weights) - 1}")
    return weights[sample], grid


def overlay(
    image,
    maps: Map | Tensor,
    query: tuple[int, int],
    *,
    sample: int = 0,
    heads: Sequence[int] | None = None,
    columns: int | None = None,
) -> Figure:
    """The image with the query patch outlined, then for each head the same image, dark where the query does not look.

    image: (3, H, W) or (1, H, W) in [0, 1]; query: (row, column) in patches; every map is scaled to its own maximum;
    columns: pictures in a row, by default at most six.
    """
    from matplotlib.patches import Rectangle

    from refimpl.viz import charts

    weights, (height, width) = chosen(maps, sample)
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"query={query} lies outside the grid of {height}×{width} patches")
    picture = charts.as_picture(image)
    if picture.ndim == 2:
        picture = picture[..., None].repeat(3, -1)
    heads = list(range(len(weights))) if heads is None else list(heads)
    look = weights[heads, row * width + column].reshape(-1, 1, height, width)
    look = look / look.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    shade = F.interpolate(look, picture.shape[:2], mode="nearest")[:, 0].numpy()
    pictures = [picture] + [picture * (0.12 + 0.88 * s[..., None]) for s in shade]
    fig = charts.image_grid(
        pictures,
        ["query", *(f"head {h + 1}" for h in heads)],
        columns=columns or math.ceil(len(pictures) / math.ceil(len(pictures) / 6)),
    )
    patch_h, patch_w = picture.shape[0] / height, picture.shape[1] / width
    for ax in fig.axes[: len(pictures)]:
        for edge, thickness in (("#000000", 3.0), ("#ffffff", 1.4)):
            ax.add_patch(
                Rectangle(
                    (column * patch_w - 0.5, row * patch_h - 0.5),
                    patch_w,
                    patch_h,
                    fill=False,
                    ec=edge,
                    lw=thickness,
                )
            )
    return fig


def explorer(
    image,
    maps: Map | Sequence[Map],
    *,
    sample: int = 0,
    title: str = "",
    query: tuple[float, float] = (0.5, 0.5),
) -> Explorer:
    """A hoverable explorer: for the patch under pointer, finger or arrow keys, where each head looks. Self-contained HTML, at most 150 KB.

    image: (3, H, W) or (1, H, W) in [0, 1]; maps: one layer or several, chosen from a list; title: said to screen readers and shown above;
    query: where it starts, as shares of height and width. Weights are shown scaled to each head's strongest, and said in per cent.
    Raises `ValueError` when the maps are too large for one page: give fewer layers.
    """
    layers = [maps] if isinstance(maps, Map) else list(maps)
    if not layers:
        raise ValueError(
            "explorer: no maps; run the model inside `with record(model) as maps:` first"
        )
    prepared = []
    for layer in layers:
        weights, grid = chosen(layer, sample)
        prepared.append((layer.name, *coarse(weights, grid)))
    return pack(image, prepared, title or "Attention explorer", query)


def coarse(
    weights: Tensor, grid: tuple[int, int], most: int = 28
) -> tuple[Tensor, tuple[int, int]]:
    """Pool maps with more than `most` rows or columns to half, quarter …: queries are averaged, keys are summed."""
    height, width = grid
    while max(height, width) > most and height % 2 == width % 2 == 0:
        weights = (
            reduce(
                weights,
                "c (h i w j) (y v x u) -> c (h w) (y x)",
                "sum",
                h=height // 2,
                i=2,
                j=2,
                w=width // 2,
                y=height // 2,
                v=2,
                u=2,
                x=width // 2,
            )
            / 4
        )
        height, width = height // 2, width // 2
    return weights, (height, width)
