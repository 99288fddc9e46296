"""The Vision Transformer with a shape of its own in every block, and the form that one can prune.

What NViT cuts out of DeiT (Yang and others, CVPR 2023, arXiv 2110.04869; official code
NVlabs/NViT). Five axes are free: the width EMB of the whole network, and in each block the heads H,
the widths QK and V of queries and values per head, and the hidden width MLP.

The prunable form stores attention's weights head by head, so that what dies together lies in one
slice: unit q of QK is row q of the queries and keys of every head, head h is a slab. Its zeros are
then cut out (`densify`). EMB alone doesn't commute with this: a norm runs over all channels, zeros
included.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Block, VisionTransformer, init_weights
from refimpl.deploy import deploy
from refimpl.layers import Layout, Mlp, Probe, attention, attention_map, drop_path_rates
from refimpl.weights import Rules

Units = dict[str, Tensor]  # "EMB", "b0.H", "b0.QK", "b0.V", "b0.MLP", "b1.H" … -> (units,)


@dataclass(frozen=True)
class Shape:
    """Widths of a network: one number for the residual stream, one entry a block for the rest.

    qk_dims, value_dims: per head. As keyword arguments of `UnevenTransformer`: `shape.arguments()`.
    """

    embed_dim: int
    num_heads: tuple[int, ...]
    qk_dims: tuple[int, ...]
    value_dims: tuple[int, ...]
    hidden_dims: tuple[int, ...]

    def __post_init__(self):
        tuples = {name: value for name, value in asdict(self).items() if name != "embed_dim"}
        checks.same_length(**tuples)
        checks.at_least(1, embed_dim=self.embed_dim, **tuples)

    def arguments(self) -> dict:
        return asdict(self)

    @property
    def blocks(self) -> list[tuple[int, int, int, int]]:
        """Heads, query-key width, value width and hidden width of each block."""
        axes = (self.num_heads, self.qk_dims, self.value_dims, self.hidden_dims)
        return list(zip(*axes, strict=True))

    def macs(self, tokens: int) -> int:
        """Multiply-adds of the blocks for one image, attention's products included."""
        total = 0
        for heads, qk, v, hidden in self.blocks:
            linear = heads * (2 * qk + 2 * v) + 2 * hidden
            total += tokens * self.embed_dim * linear + tokens**2 * heads * (qk + v)
        return total


class PixelPatches(nn.Module):
    """Patches as vectors of pixels, each projected: (b, c, H, W) -> (b, n, embed_dim).

    The order of a vector is row, column, channel of the pixel.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int
    ):
        super().__init__()
        self.img_size = checks.image_size(img_size)
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Linear(in_chans * patch_size**2, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        checks.image(x, self.in_chans, self.img_size)
        side = self.patch_size
        return self.proj(rearrange(x, "b c (h y) (w x) -> b (h w) (y x c)", y=side, x=side))


class HeadsOut(nn.Module):
    """A linear map to all heads, (b, n, e) -> (b, n, heads · width), stored so that a unit of every
    head lies in one row: weight (width, e, heads), bias (width, heads)."""

    def __init__(self, dim: int, width: int, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dim, num_heads))
        self.bias = nn.Parameter(torch.zeros(width, num_heads))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        weight = rearrange(self.weight, "w e h -> (h w) e")
        return F.linear(x, weight, rearrange(self.bias, "w h -> (h w)"))


class HeadsIn(nn.Module):
    """The linear map back, (b, n, heads · width) -> (b, n, e): weight (e, width, heads)."""

    def __init__(self, dim: int, width: int, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, width, num_heads))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, rearrange(self.weight, "e w h -> e (h w)"), self.bias)


class UnevenAttention(nn.Module):
    """Attention whose queries and values may differ in width: (b, n, dim) -> (b, n, dim).

    What a token asks, offers and gives is multiplied by its number in `token_mask` (n, 1), and in
    the prunable form by that of the head in `head_mask` (heads, 1); both are learned. scale: of the
    logits; that of the unpruned network, as the surviving products were trained with it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_dim: int,
        value_dim: int,
        layout: Layout,
        scale: float,
        prunable: bool,
    ):
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        tokens = layout.prefix + layout.grid[0] * layout.grid[1]
        self.token_mask = nn.Parameter(torch.ones(tokens, 1))
        if prunable:
            self.head_mask = nn.Parameter(torch.ones(num_heads, 1))
            self.query = HeadsOut(dim, qk_dim, num_heads)
            self.key = HeadsOut(dim, qk_dim, num_heads)
            self.value = HeadsOut(dim, value_dim, num_heads)
            self.proj = HeadsIn(dim, value_dim, num_heads)
        else:
            self.register_parameter("head_mask", None)
            self.query = nn.Linear(dim, num_heads * qk_dim)
            self.key = nn.Linear(dim, num_heads * qk_dim)
            self.value = nn.Linear(dim, num_heads * value_dim)
            self.proj = nn.Linear(num_heads * value_dim, dim)
        self.probe = Probe(layout)

    def heads(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(b, n, dim) -> (b, heads, n, width), masked."""
        y = layer(x) * self.token_mask
        y = rearrange(y, "b n (heads d) -> b heads n d", heads=self.num_heads)
        return y if self.head_mask is None else y * self.head_mask[:, None]

    def flat(self, kind: str) -> tuple[Tensor, Tensor]:
        """Weight (heads · width, dim) and bias of "query", "key" or "value", masks of heads in."""
        layer = getattr(self, kind)
        if self.head_mask is None:
            return layer.weight, layer.bias
        mask = self.head_mask.flatten()
        weight = rearrange(layer.weight * mask, "w e h -> (h w) e")
        return weight, rearrange(layer.bias * mask, "w h -> (h w)")

    def flat_projection(self) -> Tensor:
        """Weight (dim, heads · width) of the map back."""
        weight = self.proj.weight
        return weight if weight.dim() == 2 else rearrange(weight, "e w h -> e (h w)")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer, x) for layer in (self.query, self.key, self.value))
        self.probe(lambda: attention_map(q, k, scale=self.scale))
        y = attention(q, k, v, scale=self.scale)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class UnevenTransformer(VisionTransformer):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes), the mean of two classifiers.

    A plain distilled transformer in which every block may have a shape of its own.

    num_heads, qk_dims, value_dims (per head), hidden_dims: an entry for each block.
    head_dim: width per head of the unpruned network; it sets the scale of attention's logits.
    prunable: the form for pruning, whose weights are stored head by head, with gates for heads.
    drop_path_rate: of the last block. Raises `ValueError` for sizes that don't fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        num_heads: tuple[int, ...] = (12,) * 12,
        qk_dims: tuple[int, ...] = (64,) * 12,
        value_dims: tuple[int, ...] = (64,) * 12,
        hidden_dims: tuple[int, ...] = (3072,) * 12,
        head_dim: int = 64,
        prunable: bool = False,
        drop_path_rate: float = 0.0,
    ):
        shape = Shape(embed_dim, num_heads, qk_dims, value_dims, hidden_dims)
        checks.integer(1, head_dim=head_dim)
        checks.fraction(drop_path_rate=drop_path_rate)
        common = (img_size, patch_size, in_chans)
        super().__init__(*common, num_classes, embed_dim, 1, 1, 1.0, distilled=True)
        self.shape, self.head_dim, self.prunable = shape, head_dim, prunable
        self.patch_embed = PixelPatches(*common, embed_dim)
        rates = drop_path_rates(drop_path_rate, len(num_heads))
        blocks = []
        for rate, (*widths, hidden) in zip(rates, shape.blocks, strict=True):
            attn = UnevenAttention(embed_dim, *widths, self.layout, head_dim**-0.5, prunable)
            block = Block(embed_dim, 1, 1.0, drop_path_rate=rate, attn=attn)
            block.mlp = Mlp(embed_dim, hidden)
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.blocks.apply(init_weights)

    def fuse(self) -> UnevenTransformer:
        """A copy for inference: masks of heads folded, the last block for the two tokens read."""
        return deploy(self)


def axis_of(name: str) -> str:
    """ "b3.QK" -> "QK"."""
    return name.rpartition(".")[2]


@torch.no_grad()
def from_deit(source: VisionTransformer) -> UnevenTransformer:
    """The prunable form of a distilled DeiT: same function, other layout of the weights."""
    if source.head_dist is None or not isinstance(source.pos_embed, nn.Parameter):
        raise ValueError("source must be a distilled transformer with learned positions")
    heads, e, depth = (
        source.blocks[0].attn.num_heads,
        source.norm.weight.numel(),
        len(source.blocks),
    )
    width, hidden = e // heads, source.blocks[0].mlp.fc1.out_features
    model = UnevenTransformer(
        source.img_size,
        source.patch_embed.patch_size,
        source.in_chans,
        source.num_classes,
        *(e, (heads,) * depth, (width,) * depth, (width,) * depth, (hidden,) * depth),
        head_dim=width,
        prunable=True,
    )
    state = {}
    for name, x in source.state_dict().items():
        if name == "patch_embed.proj.weight":
            state[name] = rearrange(x, "e c y x -> e (y x c)")
        elif ".qkv." in name:
            pattern = "(three h w) ... -> three w ... h"
            parts = rearrange(x, pattern, three=3, h=heads)
            for kind, part in zip(("query", "key", "value"), parts, strict=True):
                state[name.replace("qkv", kind)] = part
        elif name.endswith("attn.proj.weight"):
            state[name] = rearrange(x, "e (h w) -> e w h", h=heads)
        else:
            state[name] = x
    model.load_state_dict(model.state_dict() | state)
    return model.train(source.training)


def holders(model: UnevenTransformer) -> dict[str, list[tuple[nn.Parameter, int]]]:
    """Where each unit lives: name -> (parameter, dimension along which its units lie).

    Raises `ValueError` for a model that is not prunable.
    """
    if not model.prunable:
        raise ValueError("this transformer is dense: build it with prunable=True, or use from_deit")
    places = {"EMB": [(model.patch_embed.proj.weight, 0), (model.patch_embed.proj.bias, 0)]}
    places["EMB"] += [(p, 2) for p in (model.cls_token, model.dist_token, model.pos_embed)]
    places["EMB"] += [(p, 0) for p in model.norm.parameters()]
    if model.num_classes:
        places["EMB"] += [(model.head.weight, 1), (model.head_dist.weight, 1)]
    for i, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        norms = [*block.norm1.parameters(), *block.norm2.parameters()]
        writers = [attn.proj.weight, attn.proj.bias, mlp.fc2.weight, mlp.fc2.bias]
        outs = (attn.query, attn.key, attn.value)
        places["EMB"] += [(p, 0) for p in norms + writers]
        places["EMB"] += [(layer.weight, 1) for layer in (*outs, mlp.fc1)]
        places[f"b{i}.H"] = [(attn.head_mask, 0), (attn.proj.weight, 2)]
        for layer in outs:
            places[f"b{i}.H"] += [(layer.weight, 2), (layer.bias, 1)]
        both = [attn.query.weight, attn.query.bias, attn.key.weight, attn.key.bias]
        places[f"b{i}.QK"] = [(p, 0) for p in both]
        places[f"b{i}.V"] = [(attn.value.weight, 0), (attn.value.bias, 0), (attn.proj.weight, 1)]
        places[f"b{i}.MLP"] = [(mlp.fc1.weight, 0), (mlp.fc1.bias, 0), (mlp.fc2.weight, 1)]
    return places


@torch.no_grad()
def zero_dead(model: UnevenTransformer, gates: Units) -> None:
    """In place: everything that belongs to a unit whose gate is 0 becomes 0."""
    for name, places in holders(model).items():
        for parameter, dim in places:
            shape = [1] * parameter.dim()
            shape[dim] = -1
            parameter *= gates[name].view(shape)


def survivors(model: UnevenTransformer) -> Units:
    """Gates, 0 or 1, read from the zeros that `zero_dead` left: name -> (units,)."""
    gates = {}
    for name, places in holders(model).items():
        parameter, dim = places[2] if axis_of(name) == "H" else places[0]  # H: queries
        alive = parameter.detach().transpose(0, dim).flatten(1).any(1)
        gates[name] = alive.to(parameter.dtype)
    return gates


def shape_of(gates: Units) -> Shape:
    """Widths that are left."""
    counts = {name: int(gate.sum()) for name, gate in gates.items()}
    depth = len(gates) // 4

    def per_block(axis: str) -> tuple[int, ...]:
        return tuple(counts[f"b{i}.{axis}"] for i in range(depth))

    return Shape(counts["EMB"], *(per_block(axis) for axis in ("H", "QK", "V", "MLP")))


@torch.no_grad()
def densify(model: UnevenTransformer) -> UnevenTransformer:
    """The dense network without the zeros; equal, unless EMB lost units: then its norms run over
    fewer channels. Raises `ValueError` where an axis has no unit left."""
    gates = survivors(model)
    dense = UnevenTransformer(
        model.img_size,
        model.patch_embed.patch_size,
        model.in_chans,
        model.num_classes,
        **shape_of(gates).arguments(),
        head_dim=model.head_dim,
    )
    kept = {id(p): p.detach() for p in model.parameters()}
    for name, places in holders(model).items():
        units = gates[name].nonzero().flatten()
        for parameter, dim in places:
            kept[id(parameter)] = kept[id(parameter)].index_select(dim, units)
    cut = copy.deepcopy(model)
    for own, source in zip(cut.parameters(), model.parameters(), strict=True):
        own.data = kept[id(source)]
    state = {name: x for name, x in cut.state_dict().items() if not name.endswith("head_mask")}
    for i, block in enumerate(cut.blocks):
        path = f"blocks.{i}.attn"
        for kind in ("query", "key", "value"):
            state[f"{path}.{kind}.weight"], state[f"{path}.{kind}.bias"] = block.attn.flat(kind)
        state[f"{path}.proj.weight"] = block.attn.flat_projection()
    dense.load_state_dict(state)
    return dense.train(model.training)


NAMES: dict[str, Rules] = {
    "official": [
        (r"\.attn\.proj\.proj\.", ".attn.proj."),
        (r"\.attn\.qkv\.Q\.", ".attn.query."),
        (r"\.attn\.qkv\.K\.", ".attn.key."),
        (r"\.attn\.qkv\.V\.", ".attn.value."),
        (r"\.attn\.qkv\.token_mask$", ".attn.token_mask"),
        (r"\.attn\.qkv\.head_mask\.weight$", ".attn.head_mask"),
    ]
}
