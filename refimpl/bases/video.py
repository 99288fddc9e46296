"""A video transformer's parts: tubelets, encoders, and how they start from an image model.

As ViViT has them: Arnab and others, *ViViT: A Video Vision Transformer*, ICCV 2021, arXiv
2103.15691; google-research/scenic @ 4a38d47, scenic/projects/vivit (Apache-2.0, Flax).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import deit
from refimpl.layers import DropPath, Layout, Probe, attention, attention_map, drop_path_rates
from refimpl.weights import Rules


class TubeletEmbed(nn.Module):
    """Cut a clip into tubelets and project each: (b, frames, in_chans, H, W) -> (b, t, n, dim).

    A 3-D convolution whose stride is its kernel, here one matrix product on flat tubelets. The n
    tubelets of a slice come row by row. grid: slices, rows and columns of tubelets.
    """

    def __init__(
        self,
        num_frames: int,
        img_size: int | tuple[int, int],
        in_chans: int,
        tubelet_size: int,
        patch_size: int,
        dim: int,
    ):
        super().__init__()
        checks.integer(1, tubelet_size=tubelet_size, patch_size=patch_size, in_chans=in_chans)
        checks.integer(1, num_frames=num_frames)
        checks.multiple(tubelet_size, "the frames of a tubelet", num_frames=num_frames)
        self.img_size = height, width = checks.image_size(img_size, patch_size, "patch_size")
        self.num_frames = num_frames
        self.in_chans = in_chans
        self.grid = num_frames // tubelet_size, height // patch_size, width // patch_size
        self.tubelet_size = tubelet_size
        # the first axis is there since PyTorch lets channels-last memory have four axes alone, and
        # refuses to convert a model that has a parameter of five
        kernel = (in_chans, tubelet_size, patch_size, patch_size)
        self.weight = nn.Parameter(torch.empty(1, dim, *kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=math.prod(kernel) ** -0.5)

    def check(self, clips: Tensor) -> None:
        """Raise a `ValueError` for clips that the model was not built for."""
        checks.torch_tensor(clips=clips)
        if clips.dim() != 5:
            raise ValueError(
                "clips must be (batch, frames, channels, height, width), got"
                f" {clips.dim()} dimensions: {tuple(clips.shape)}"
            )
        if clips.shape[1] != self.num_frames:
            raise ValueError(
                f"clips have {clips.shape[1]} frames, this model was built for"
                f" num_frames={self.num_frames}; `with_frames` makes one for another number"
            )
        checks.image(clips[:, 0], self.in_chans, self.img_size)

    def forward(self, clips: Tensor) -> Tensor:
        self.check(clips)
        t, h, w = self.grid
        tubelets = rearrange(
            clips,
            "b (t i) channels (h j) (w k) -> b t (h w) (channels i j k)",
            t=t,
            h=h,
            w=w,
        )
        return F.linear(tubelets, self.weight[0].flatten(1), self.bias)


class Attention(nn.Module):
    """Multi-head self-attention: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, dim: int, num_heads: int, layout: Layout):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.probe = Probe(layout)
        self.out = nn.Linear(dim, dim)

    def split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        q = self.split_heads(self.query(x))
        k = self.split_heads(self.key(x))
        v = self.split_heads(self.value(x))
        self.probe(lambda: attention_map(q, k))
        y = attention(q, k, v)
        return self.out(rearrange(y, "b heads n d -> b n (heads d)"))


class LayerDrop(DropPath):
    """Leave a branch out with probability p, while training: (b, …) -> the same shape.

    As the official code does it: the branches that are kept are not scaled up.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        return x * x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)


class Block(deit.Block):
    """Pre-norm Transformer block, GELU approximated by tanh: (b, n, dim) -> (b, n, dim)."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path_rate: float, layout: Layout
    ):
        super().__init__(dim, num_heads, mlp_ratio, attn=Attention(dim, num_heads, layout))
        self.mlp.act = nn.GELU(approximate="tanh")
        self.drop_path = LayerDrop(drop_path_rate)


class Encoder(nn.Module):
    """Class token in front, positions, blocks, norm: tokens (b, n, dim) -> class token (b, dim).

    grid: rows and columns in which the n tokens lie.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        layout = Layout(grid, prefix=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(grid), dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, rate, layout)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        b = tokens.shape[0]
        x = torch.cat([self.cls_token.expand(b, -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def init_weights(module: nn.Module) -> None:
    """Linear layers as the official code starts them."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    if isinstance(module, deit.Mlp):
        for layer in (module.fc1, module.fc2):
            nn.init.normal_(layer.bias, std=1e-6)


# ---- From images to clips


def inflate(kernel: Tensor, tubelet_size: int, how: str = "central") -> Tensor:
    """A kernel for tubelets from one for images: (out, in, h, w) -> (out, in, tubelet_size, h, w).

    how: "central" (the frame at tubelet_size // 2 alone), "average" (each frame its share), "arp"
    (approximate rank pooling, Bilen and others 2016: later frames count more, their sum is 0).
    """
    checks.choice("how", how, ("central", "average", "arp"))
    checks.integer(1, tubelet_size=tubelet_size)
    size = tubelet_size
    if how == "central":
        shares = [float(i == size // 2) for i in range(size)]
    elif how == "average":
        shares = [1 / size] * size
    else:
        rest = [sum(1 / j for j in range(i, size + 1)) for i in range(1, size + 1)]
        shares = [(2 * (size - i) - (size + 1) * rest[i]) / size for i in range(size)]
    return torch.stack([share * kernel for share in shares], dim=2)


def resize_grid(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Spatial positions for another grid, bilinear with aligned corners: (1, 1 + n, c).

    The first row belongs to the class token, which lies nowhere, and is kept.
    """
    if positions.shape[1] != 1 + math.prod(grid):
        raise ValueError(f"grid={grid} does not fit the {positions.shape[1] - 1} positions")
    table = rearrange(positions[:, 1:], "1 (h w) c -> 1 c h w", h=grid[0])
    table = F.interpolate(table, new_grid, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :1], rearrange(table, "1 c h w -> 1 (h w) c")], dim=1)


def resize_time(positions: Tensor, num_slices: int) -> Tensor:
    """Temporal positions for another number of slices, linear with aligned ends: (1, 1 + t, c).

    The first row belongs to the class token, which is no moment, and is kept.
    """
    checks.integer(1, num_slices=num_slices)
    table = positions[:, 1:].transpose(1, 2)  # (1, c, t)
    table = F.interpolate(table, num_slices, mode="linear", align_corners=True)
    return torch.cat([positions[:, :1], table.transpose(1, 2)], dim=1)


# ---- Official weights


def from_scenic(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Flax parameters of scenic as tensors in PyTorch's layouts, under their official names.

    arrays: by path ("SpatialTransformer/encoderblock_0/LayerNorm_0/scale" …). What comes out goes
    to `weights.load_official`.
    """
    state = {}
    for path, values in arrays.items():
        name = path.strip("/").replace("/", ".")
        tensor = torch.from_numpy(np.array(values, np.float32))
        if name == "embedding.kernel":
            tensor = tensor.permute(4, 3, 0, 1, 2)  # (t, h, w, in, out)
        elif name.endswith(("query.kernel", "key.kernel", "value.kernel")):
            tensor = tensor.flatten(1).t()  # (in, heads, d)
        elif name.endswith("out.kernel"):
            tensor = tensor.flatten(0, 1).t()  # (heads, d, out)
        elif name.endswith("kernel"):
            tensor = tensor.t()  # (in, out)
        elif name.endswith(("query.bias", "key.bias", "value.bias")):
            tensor = tensor.flatten()
        name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
        state[name] = tensor.contiguous()
    return state


NAMES: dict[str, Rules] = {
    "official": [
        (r"^cls_TemporalTransformer$", "temporal.cls_token"),
        (r"^cls(_SpatialTransformer)?$", "spatial.cls_token"),
        (r"^embedding\.", "embed."),
        (r"^TemporalTransformer\.", "temporal."),
        (r"^(Spatial)?Transformer\.", "spatial."),
        (r"posembed_input\.pos_embedding$", "pos_embed"),
        (r"encoderblock_", "blocks."),
        (r"LayerNorm_0\.", "norm1."),
        (r"LayerNorm_1\.", "norm2."),
        (r"MultiHeadDotProductAttention_0\.", "attn."),
        (r"MlpBlock_0\.Dense_0\.", "mlp.fc1."),
        (r"MlpBlock_0\.Dense_1\.", "mlp.fc2."),
        (r"encoder_norm\.", "norm."),
        (r"^output_projection\.", "head."),
    ]
}
