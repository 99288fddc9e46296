"""EfficientMod: Efficient Modulation for Vision Networks.

Ma, Dai, Yang, Xiao, Chen, Fu, Yuan, ICLR 2024, arXiv 2403.19963. Official code: ma-xu/EfficientMod,
models/EfficientMod.py, commit ec04df6da43b91414f3fd9ad0ea7a1161be6157c (Apache-2.0).

The idea
    1. Attention weighs values by what lies around them. *Modulation* does so by one multiplication:
       a value, from the pixel alone, times a context, from a convolution of its surroundings.
    2. Earlier modulation networks follow each modulation by an MLP with its own norm and residual.
    3. Here both are one block: the MLP's first layer is the value projection, its second the output
       projection, and the context multiplies the hidden layer between them.
    4. Narrow blocks (r = 1, a plain product, no activation on the value) and wide ones (r = 4 or 6)
       take turns.
    5. A few plain attention blocks end the last two stages, where few pixels are left.

One block on a map x of d channels, with r times as many hidden channels:

    n = LN(x)
    c = G GELU(DW(F n))              the context: d channels; DW is a depthwise k×k convolution
    v = φ(W₁ n)                      the value: r·d channels; φ is GELU, for r = 1 the identity
    y = x + γ ∘ W₂(v ⊙ tile_r(c))    hidden channel j meets context channel j mod d

All four linear layers and the convolution have biases. Multiply-adds per pixel:
2 r d² + 2 d² + k² d, which is 4 d² + 49 d for r = 1 and 14 d² + 49 d for r = 6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import DropPath, Mlp, Probe, attention, attention_map, drop_path_rates
from refimpl.weights import Rules

Layer = Callable[[Tensor], Tensor]


def context(x: Tensor, proj_in: Layer, conv: Layer, proj_out: Layer) -> Tensor:
    """What surrounds each pixel: x (b, h, w, d) -> c (b, h, w, d)."""
    y = proj_in(x).permute(0, 3, 1, 2)  # F n: (b, d, h, w)
    y = F.gelu(conv(y))  # each channel alone, over k×k pixels
    return proj_out(y.permute(0, 2, 3, 1))  # c: (b, h, w, d)


def modulation(x: Tensor, context_layer: Layer, fc1: Layer, fc2: Layer) -> Tensor:
    """Value times context, inside an MLP: x (b, h, w, d), normalised -> (b, h, w, d)."""
    c = context_layer(x)  # (b, h, w, d), from the surroundings
    v = fc1(x)  # W₁ n: (b, h, w, r·d), from the pixel alone
    ratio = v.shape[-1] // c.shape[-1]  # r
    if ratio > 1:
        v = F.gelu(v)  # φ; for r = 1 the identity
    v = v * c.repeat(1, 1, 1, ratio)  # v ⊙ tile_r(c): channel j meets j mod d
    return fc2(v)  # W₂: (b, h, w, d)


class ContextLayer(nn.Module):
    """Linear, depthwise convolution, GELU, linear: (b, h, w, dim) -> (b, h, w, dim).

    kernel_size: odd, of the convolution; the border is padded with zeros.
    """

    def __init__(self, dim: int, kernel_size: int = 7):
        super().__init__()
        checks.at_least(1, dim=dim, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: the context is centred")
        self.proj_in = nn.Linear(dim, dim)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return context(x, self.proj_in, self.conv, self.proj_out)


class Modulation(nn.Module):
    """The MLP whose hidden layer is multiplied by a context: (b, h, w, dim) -> (b, h, w, dim).

    mlp_ratio: r, hidden channels over `dim`, a whole number.
    """

    def __init__(self, dim: int, mlp_ratio: int, kernel_size: int = 7):
        super().__init__()
        checks.integer(1, mlp_ratio=mlp_ratio)
        self.context_layer = ContextLayer(dim, kernel_size)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return modulation(x, self.context_layer, self.fc1, self.fc2)


class ModulationBlock(nn.Module):
    """The unified block: (b, h, w, dim) -> (b, h, w, dim).

    One norm and one residual around `Modulation`, scaled per channel by `gamma` (initially 1e-4).
    """

    def __init__(self, dim: int, mlp_ratio: int, kernel_size: int = 7, drop_path_rate: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Modulation(dim, mlp_ratio, kernel_size)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-4))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.gamma * self.mlp(self.norm(x)))


class Attention(nn.Module):
    """Multi-head self-attention whose heads have at least 32 channels: (b, h, w, dim) -> the same.

    Heads have max(dim // num_heads, 32) channels, so together they may be wider than `dim`.
    """

    def __init__(self, dim: int, num_heads: int = 8):
        super().__init__()
        checks.at_least(1, dim=dim, num_heads=num_heads)
        self.num_heads = num_heads
        head_dim = max(dim // num_heads, 32)
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim)
        self.probe = Probe()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v = rearrange(
            self.qkv(x), "b h w (three heads d) -> three b heads (h w) d", three=3, d=self.head_dim
        )
        self.probe(lambda: attention_map(q, k), (height, width))
        y = attention(q, k, v)
        return self.proj(rearrange(y, "b heads (h w) d -> b h w (heads d)", h=height))

    @property
    def head_dim(self) -> int:
        return self.proj.in_features // self.num_heads


class AttentionBlock(nn.Module):
    """Pre-norm Transformer block without layer scale: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, dim: int, mlp_ratio: float, num_heads: int = 8, drop_path_rate: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embedding(nn.Module):
    """A convolution with overlap, then layer norm: (b, h, w, dim) -> (b, ⌈h/s⌉, ⌈w/s⌉, out_dim).

    Kernel 2s − 1, padding s − 1, for the stride s.
    """

    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2 * stride - 1, stride, stride - 1)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class EfficientMod(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    Any height and width; img_size (a number or a pair) records what the variants were trained with.
    embed_dims, depths (of modulation blocks), attention_depths (of attention blocks, which follow
    them), attention_mlp_ratios: one entry per stage. mlp_ratios: of successive modulation blocks,
    over and over, anew in each stage. drop_path_rate is reached linearly over all blocks.
    num_classes=0 leaves the head out and gives pooled features (b, embed_dims[-1]). Raises
    `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (32, 64, 128, 256),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        mlp_ratios: tuple[int, ...] = (1, 6),
        attention_depths: tuple[int, ...] = (0, 0, 1, 2),
        attention_mlp_ratios: tuple[float, ...] = (4, 4, 4, 4),
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(
            embed_dims=embed_dims,
            depths=depths,
            attention_depths=attention_depths,
            attention_mlp_ratios=attention_mlp_ratios,
        )
        checks.image_size(img_size)
        checks.at_least(1, in_chans=in_chans, embed_dims=embed_dims)
        checks.integer(0, num_classes=num_classes)
        checks.at_least(0, depths=depths, attention_depths=attention_depths)
        if not mlp_ratios:
            raise ValueError("mlp_ratios=() must have at least one entry")
        checks.fraction(drop_path_rate=drop_path_rate)
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes

        self.patch_embed = Embedding(in_chans, embed_dims[0], stride=4)
        self.stages = nn.Sequential()
        rates = drop_path_rates(drop_path_rate, sum(depths) + sum(attention_depths))
        for i, dim in enumerate(embed_dims):
            blocks = nn.Sequential()
            for j in range(depths[i]):
                ratio = mlp_ratios[j % len(mlp_ratios)]
                blocks.append(ModulationBlock(dim, ratio, drop_path_rate=rates.pop(0)))
            for _ in range(attention_depths[i]):
                ratio = attention_mlp_ratios[i]
                blocks.append(AttentionBlock(dim, ratio, drop_path_rate=rates.pop(0)))
            last = i + 1 == len(embed_dims)
            downsample = nn.Identity() if last else Embedding(dim, embed_dims[i + 1], stride=2)
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks, downsample=downsample)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # convolutions keep PyTorch's start, see difference d2
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, channels first, before its norm: (b, embed_dims[-1], h, w)."""
        checks.image(images, self.in_chans)
        x = self.patch_embed(images.permute(0, 2, 3, 1))
        return self.stages(x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        return self.head(x.mean((1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientMod:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


def effective_kernel(
    layer: Layer,
    x: Tensor,
    pixel: tuple[int, int],
    in_channel: int,
    out_channel: int,
    size: int = 9,
) -> Tensor:
    """The filter that acts at a pixel, for this input: ∂ layer(x)[out_channel, pixel] / ∂ x.

    layer: maps (b, h, w, d) -> (b, h, w, e), each image by itself; x: (b, h, w, d) float; pixel:
    row and column; size: side of the neighbourhood, odd. Returns (b, size, size), the derivative
    by x[in_channel] at the pixels around, 0 outside the map. For a convolution that is its kernel,
    the same for every input; for `modulation`, with n = x and channel j of c tiled,

        Σ_j W₂[o, j] (δ φ′(W₁ n)_j W₁[j, i] c_j + φ(W₁ n)_j ∂c_j/∂n_i)

    so the context scales what the pixel itself says (δ), and the pixel the context's own kernel.
    Raises `ValueError` for a pixel or channel outside x, or an even size.
    """
    checks.integer(1, size=size)
    if size % 2 == 0:
        raise ValueError(f"size={size} must be odd: the pixel stands in the middle")
    height, width, channels = x.shape[1:]
    row, column = pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"pixel={pixel} lies outside the map of {height}×{width}")
    if not 0 <= in_channel < channels:
        raise ValueError(f"in_channel={in_channel} must be at least 0 and below {channels}")
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = layer(x)
        if not 0 <= out_channel < y.shape[-1]:
            raise ValueError(
                f"out_channel={out_channel} must be at least 0 and below {y.shape[-1]}"
            )
        (slopes,) = torch.autograd.grad(y[:, row, column, out_channel].sum(), x)
    radius = size // 2
    padded = F.pad(slopes[..., in_channel], [radius] * 4)  # (b, h + 2·radius, w + 2·radius)
    return padded[:, row : row + size, column : column + size]


# Official names: the foreign tensor name's pieces, and what stands for them here.
NAMES: dict[str, Rules] = {
    "official": [
        (r"^layers\.", "stages."),
        (r"(^|\.)gamma_1$", r"\1gamma"),
        (r"(^|\.)f\.", r"\1proj_in."),
        (r"(^|\.)g\.", r"\1proj_out."),
        (r"(^|\.)context_list\.0\.", r"\1conv."),
    ]
}

# The released models (models/EfficientMod.py; its longer lists are cut at the depths).
COLUMNS = ("embed_dims", "depths", "mlp_ratios", "attention_depths", "attention_mlp_ratios")
NONE = (0, 0, 0, 0)
TABLE = {
    "xxs": ((32, 64, 128, 256), (2, 2, 6, 2), (1, 6), (0, 0, 1, 2), (4, 4, 4, 4)),
    "xs": ((32, 64, 144, 288), (3, 3, 4, 2), (1, 4), (0, 0, 3, 3), (4, 4, 4, 4)),
    "s": ((32, 64, 144, 312), (4, 4, 8, 4), (1, 6), (0, 0, 4, 4), (4, 4, 4, 5)),
    "s_conv": ((40, 80, 160, 344), (4, 4, 12, 8), (1, 6), NONE, (4, 4, 4, 4)),
}
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
for name in ("s", "s_conv"):
    VARIANTS[name]["drop_path_rate"] = 0.02
MODEL = EfficientMod
