"""The blocks that everybody already knows, written once.

Shapes are given in einops letters: `b` batch, `c` channels, `h w` rows and columns of a map,
`n` tokens, `heads`, `d` width of one head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refimpl import checks


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation: (b, c, h, w) -> (b, out_chans, h', w').

    padding: half the kernel unless given, which keeps the size at stride 1; norm_weight: the
    initial γ of the norm.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        norm_weight: float = 1.0,
    ):
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_chans, out_chans, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_chans)
        nn.init.constant_(self.norm.weight, norm_weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Conv2d:
        """The one convolution that computes the same in evaluation mode."""
        return fold_norm(self.conv, self.norm)


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The one convolution that computes `norm(conv(x))` in evaluation mode; frozen if `conv` is."""
    pair = copy.deepcopy(nn.Sequential(conv, norm)).eval()
    folded = fuse_conv_bn_eval(*pair)
    folded.bias.requires_grad_(conv.weight.requires_grad)
    return folded


class ConvFeedForward(nn.Module):
    """1×1 convolutions dim → hidden_dim → dim with ReLU between: (b, dim, h, w) -> (b, dim, h, w).

    norm_weight: the initial γ of the second norm.
    """

    def __init__(self, dim: int, hidden_dim: int, norm_weight: float = 1.0):
        super().__init__()
        self.pw1 = ConvNorm(dim, hidden_dim)
        self.pw2 = ConvNorm(hidden_dim, dim, norm_weight=norm_weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(F.relu(self.pw1(x)))


def conv_stem(in_chans: int, dim: int) -> nn.Sequential:
    """Four 3×3 convolutions of stride 2: (b, in_chans, h, w) -> (b, dim, ⌈h/16⌉, ⌈w/16⌉).

    Widths dim/8, dim/4, dim/2, dim; ReLU after the first three.
    """
    checks.multiple(8, "the stem starts at an eighth of it", **{"embed_dims[0]": dim})
    widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
    layers = []
    for width, next_width in pairwise(widths):
        layers += [ConvNorm(width, next_width, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DropPath(nn.Module):
    """Stochastic depth: (b, …) -> the same shape.

    While training, the branch of a sample is dropped with probability `p`, else scaled by 1/(1−p).
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """One rate for each of `depth` blocks, rising linearly from 0 to `rate`."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class Mlp(nn.Module):
    """Two linear layers with a GELU between: (…, dim) -> (…, dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each: (b, c, H, W) -> (b, n, embed_dim), row by row.

    grid: rows and columns of patches.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int
    ):
        super().__init__()
        checks.at_least(1, patch_size=patch_size)
        self.img_size = height, width = checks.image_size(img_size)
        if height % patch_size or width % patch_size:
            raise ValueError(f"img_size={img_size} is not divisible by patch_size={patch_size}")
        self.patch_size = patch_size
        self.grid = height // patch_size, width // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        checks.image(x, self.proj.in_channels, self.img_size)
        return rearrange(self.proj(x), "b c h w -> b (h w) c")


class SqueezeExcite(nn.Module):
    """Reweight channels by their global mean: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)  # (b, c, 1, 1)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(squeezed))))


@dataclass(frozen=True)
class Layout:
    """Where the tokens of an attention map lie in the image, so that maps can be drawn.

    grid: rows and columns of the whole (query) map; window: side of a square window, or rows and
    columns of one, `None` for global attention (the batch then is (b · windows), windows row by
    row, the map zero-padded right and bottom to full windows); prefix: leading tokens that are no
    patches (class, distillation); key_grid: the keys' map where it differs (pooled keys); shift:
    rows and columns by which the map was rolled up and left before it was padded and cut. Windowed
    maps: n = m = tokens of a window.
    """

    grid: tuple[int, int]
    window: int | tuple[int, int] | None = None
    prefix: int = 0
    key_grid: tuple[int, int] | None = None
    shift: tuple[int, int] = (0, 0)


class Probe(nn.Module):
    """Where a layer shows its attention map. Does nothing until `viz.attention.record` listens.

    layout: where the tokens lie, given when the model is built. A layer calls its probe with a
    function that makes the map (b, heads, n, m), which is called only while somebody listens;
    a layer that takes maps of any size also says the rows and columns of this one (`grid`).
    """

    def __init__(self, layout: Layout | None = None):
        super().__init__()
        self.layout = layout

    def forward(self, make_map: Callable[[], Tensor], grid: tuple[int, int] | None = None) -> None:
        return None


def attention_map(q: Tensor, k: Tensor, bias: Tensor | None = None, scale: float | None = None):
    """A = softmax(q kᵀ · scale + bias) over the keys: q (b, heads, n, d), k (b, heads, m, d).

    bias: (heads, n, m) or (b, heads, n, m); scale: 1/√d unless given. Returns (b, heads, n, m).
    """
    scale = scale or q.shape[-1] ** -0.5
    logits = q @ k.transpose(-2, -1) * scale
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """A v with the map A of `attention_map`: v (b, heads, m, e) -> (b, heads, n, e).

    PyTorch's `scaled_dot_product_attention` does the work; where it has no fused path on a CPU
    (e ≠ d), and for ONNX, whose exporter takes it apart into another order of memory, the product
    is written out. A gradient of its gradient exists only under
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    if bias is not None and bias.dim() == 3:
        bias = bias[None]  # a 3-D mask would lose the fused CPU kernel
    fusible = q.shape[-1] == v.shape[-1] or q.is_cuda
    if not fusible or torch.onnx.is_in_onnx_export():
        return attention_map(q, k, bias, scale) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


class CrossAttention(nn.Module):
    """Attention of one set of tokens to another: (b, n, dim), (b, m, dim) -> (b, n, dim)."""

    def __init__(self, dim: int, num_heads: int, layout: Layout | None = None):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(layout)

    def forward(self, queries: Tensor, others: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias: added to the logits, (heads, n, m) or (b, 1, n, m)."""
        q = rearrange(self.q(queries), "b n (heads d) -> b heads n d", heads=self.num_heads)
        k, v = rearrange(
            self.kv(others), "b m (two heads d) -> two b heads m d", two=2, heads=self.num_heads
        )
        self.probe(lambda: attention_map(q, k, bias))
        y = attention(q, k, v, bias)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))
