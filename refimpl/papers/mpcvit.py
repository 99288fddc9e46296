"""MPCViT: Searching for Accurate and Efficient MPC-Friendly Vision Transformer with Heterogeneous
Attention.

Zeng, Li, Xiong, Tong, Lu, Tan, Wang, Huang, ICCV 2023, arXiv 2211.13955. Official code:
PKU-SEC-Lab/mpcvit, commit 27db5c4576299e8d23edc59c4833225ccf661896 (no licence stated).
The code holds no secure computation; here it stands on `refimpl.bases.secret_sharing`.

The idea
    1. Two parties compute on data that neither may see (*MPC*). Sums are free there, a product
       costs one message, a comparison nine: softmax, which begins with a maximum, is dear.
    2. Two cheaper maps take its place: ReLU-softmax (no maximum) and scaling (only products).
    3. Each head of each layer gets the one or the other. A number α per head says how much of the
       first is mixed in; it is learned under an L1 penalty, then the largest are set to 1, the
       rest to 0, and the network is trained again from fresh weights.
    4. MPCViT+ also leaves out the GELU of some tokens (β = 0), whose two linear layers become one.

With scores S = q kᵀ/√d of n tokens:
    ReLU-softmax  relu(S)_ij / (Σ_j relu(S)_ij + ε)        ε = 1e-5
    scaling       S_ij / n, so that the product with v may be taken as q (kᵀ v) / (n √d)
    layer         A = α · ReLU-softmax + (1 − α) · scaling,  y = A v
    search        loss + λ Σ |α|
Rounds of messages for rows of n: softmax 9⌈log₂ n⌉ + 37, ReLU-softmax 38, scaling 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import check_transformer
from refimpl.bases.secret_sharing import Traffic, map_cost
from refimpl.deploy import deploy
from refimpl.layers import DropPath, Layout, Mlp, PatchEmbed, Probe, attention, drop_path_rates
from refimpl.weights import Rules

EPSILON = 1e-5  # a row without a positive score gets no weight at all


def relu_softmax(scores: Tensor) -> Tensor:
    """Positive scores, divided by their sum: (…, n, m) -> (…, n, m)."""
    positive = scores.relu()
    return positive / (positive.sum(-1, keepdim=True) + EPSILON)


def scaling(scores: Tensor) -> Tensor:
    """Scores divided by their number, signs and all: (…, n, m) -> (…, n, m)."""
    return scores / scores.shape[-1]


def two_quad(scores: Tensor) -> Tensor:
    """Squares divided by their sum, as in MPCFormer (arXiv 2211.01452): (…, n, m) -> (…, n, m)."""
    squares = scores.square()
    return squares / (squares.sum(-1, keepdim=True) + EPSILON)


def softmax(scores: Tensor) -> Tensor:
    """exp(s − max s) divided by its sum: (…, n, m) -> (…, n, m)."""
    return scores.softmax(-1)


ATTENTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": softmax,
    "relu_softmax": relu_softmax,
    "two_quad": two_quad,
    "scaling": scaling,
}


def heterogeneous_attention(
    queries: Tensor, keys: Tensor, values: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Each head's own mixture: three of (b, heads, n, d), alpha (1, heads, 1, 1).

    Returns what the heads read (b, heads, n, d), and their maps A (b, heads, n, n).
    """
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5  # S = q kᵀ/√d: (b, heads, n, n)
    average = relu_softmax(scores)  # rows sum to 1 (to 0 where no score is positive)
    linear = scaling(scores)  # signed; rows sum to whatever they do
    weights = alpha * average + (1 - alpha) * linear  # A; α = 1: only the first, 0: the second
    return weights @ values, weights


class Attention(nn.Module):
    """Multi-head attention: (b, n, dim) -> (b, n, dim), qkv without bias.

    heterogeneous: a number `alpha` per head, which starts as 1; else softmax, as the teacher.
    """

    def __init__(
        self, dim: int, num_heads: int, heterogeneous: bool = True, layout: Layout | None = None
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.alpha = nn.Parameter(torch.ones(1, num_heads, 1, 1)) if heterogeneous else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.probe = Probe(layout)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        if self.alpha is None:
            self.probe(lambda: softmax(q @ k.mT * q.shape[-1] ** -0.5))
            y = attention(q, k, v)
        else:
            y, weights = heterogeneous_attention(q, k, v, self.alpha)
            self.probe(lambda: weights)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class LinearisedMlp(Mlp):
    """The MLP of MPCViT+, with a number β per token: (b, n, dim) -> (b, n, dim).

    β = 1 keeps GELU; β = 0 leaves it out, and a ReLU stands behind the second layer instead.
    """

    def __init__(self, dim: int, hidden_dim: int, num_tokens: int):
        super().__init__(dim, hidden_dim)
        self.beta = nn.Parameter(torch.ones(1, num_tokens, 1))

    def forward(self, x: Tensor) -> Tensor:
        u = self.fc1(x)
        u = self.beta * self.act(u) + (1 - self.beta) * u
        y = self.fc2(u)
        return self.beta * y + (1 - self.beta) * y.relu()


@torch.no_grad()
def merge(mlp: Mlp) -> nn.Linear:
    """The one layer dim → dim that both are without GELU: W = W₂ W₁, b = W₂ b₁ + b₂."""
    merged = nn.Linear(mlp.fc1.in_features, mlp.fc2.out_features).to(mlp.fc1.weight)
    merged.weight.copy_(mlp.fc2.weight @ mlp.fc1.weight)
    merged.bias.copy_(mlp.fc2(mlp.fc1.bias))
    return merged.requires_grad_(mlp.fc1.weight.requires_grad)


class Block(nn.Module):
    """(b, n, dim) -> (b, n, dim). `norm1` acts on the stream itself, not on a branch.

    mlp: (b, n, dim) -> (b, n, dim), where it is not the plain one.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, dim: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim)
        self.attn = attn
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.pre_norm(x)))
        x = self.norm1(x)
        return x + self.drop_path(self.mlp(x))


class MPCViT(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    num_classes=0 leaves the classifier out and gives the class token (b, embed_dim).
    heterogeneous: α per head (see `Attention`); else softmax everywhere, the teacher.
    linear_gelu: β per token (see `LinearisedMlp`), MPCViT+.
    drop_path_rate: of the last block; it rises linearly from 0 in the first. (The official recipe
    also drops a tenth of attention weights and outputs, which is left out here.)
    Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        heterogeneous: bool = True,
        linear_gelu: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rows, columns = self.patch_embed.grid
        num_tokens = 1 + rows * columns
        layout = Layout((rows, columns), prefix=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, embed_dim))
        self.blocks = nn.ModuleList()
        for rate in drop_path_rates(drop_path_rate, depth):
            attn = Attention(embed_dim, num_heads, heterogeneous, layout)
            hidden_dim = int(embed_dim * mlp_ratio)
            if linear_gelu:
                mlp = LinearisedMlp(embed_dim, hidden_dim, num_tokens)
            else:
                mlp = Mlp(embed_dim, hidden_dim)
            self.blocks.append(Block(attn, mlp, embed_dim, rate))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.2)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the last norm, the class token first: (b, 1 + n, embed_dim)."""
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from the class token: (b, n, embed_dim) -> (b, num_classes)."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> MPCViT:
        """A copy for inference, equal but for rounding, whose last block computes the class token.

        Its `forward_features` therefore gives (b, 1, embed_dim). See `refimpl.deploy.mpcvit`.
        """
        return deploy(self)


def initialise(module: nn.Module) -> None:
    """In place: linear weights from N(0, 0.02²), cut at ±2, convolutions Kaiming's; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def alphas(model: nn.Module) -> Tensor:
    """α of every head, attached to the graph: (depth, heads).

    Raises `ValueError` for a model without (a teacher).
    """
    found = [part.alpha.flatten() for part in attentions(model)]
    return torch.stack(found)


def attentions(model: nn.Module) -> list[Attention]:
    """The layers that hold an α, in their order, or a `ValueError` where there are none."""
    found = [
        part for part in model.modules() if isinstance(part, Attention) and part.alpha is not None
    ]
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no heads with an alpha: build it with"
            " heterogeneous=True"
        )
    return found


def betas(model: nn.Module) -> Tensor:
    """β of every token, attached to the graph: (depth, tokens); (0, 0) without MPCViT+."""
    found = [part.beta.flatten() for part in model.modules() if isinstance(part, LinearisedMlp)]
    return torch.stack(found) if found else torch.empty(0, 0)


def search_loss(model: nn.Module, images: Tensor, labels: Tensor, penalty: float = 1e-5) -> Tensor:
    """Cross-entropy + λ Σ |α| + λ Σ |β|, the loss of the search, for one optimiser for all.

    labels: classes (b,) or probabilities (b, classes), as mixed-up labels are; penalty: λ. α and β
    are not kept between 0 and 1. (How β is searched, the released code does not show.)
    """
    checks.at_least(0, penalty=penalty)
    size = alphas(model).abs().sum() + betas(model).abs().sum()
    return F.cross_entropy(model(images), labels) + penalty * size


def binarise(alpha: Tensor, ratio: float) -> Tensor:
    """1 for the largest of all numbers, 0 for the rest: any shape -> the same shape, float.

    ratio: μ, the share of ones; count − int((1 − μ) · count) of them, the product in double
    precision and cut off, as the official code does. Raises `ValueError` for a μ outside [0, 1]
    and for numbers that are not finite.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} must be between 0 and 1")
    if not alpha.isfinite().all():
        raise ValueError("alpha must be finite: the search has diverged")
    order = alpha.detach().flatten().argsort()
    flags = torch.zeros(alpha.numel(), device=alpha.device)
    flags[order[int((1 - ratio) * alpha.numel()) :]] = 1
    return flags.view(alpha.shape)


@torch.no_grad()
def assign(model: nn.Module, flags: Tensor) -> nn.Module:
    """In place: α takes these values (depth, heads) and is trained no more. Returns the model."""
    layers = attentions(model)
    if flags.shape != (len(layers), layers[0].num_heads):
        raise ValueError(
            f"flags must be (depth, heads) = ({len(layers)}, {layers[0].num_heads}), got"
            f" {tuple(flags.shape)}"
        )
    for layer, row in zip(layers, flags, strict=True):
        layer.alpha.copy_(row.view_as(layer.alpha))
        layer.alpha.requires_grad_(False)
    return model


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ p_t log p_s over classes, the mean over images: two of (b, classes) -> scalar.

    Both are softened by the temperature, and the result is multiplied by its square.
    """
    checks.positive(temperature=temperature)
    teacher = (teacher_logits / temperature).softmax(-1)
    return F.cross_entropy(logits / temperature, teacher) * temperature**2


def distillation_loss(
    logits: Tensor,
    tokens: Tensor,
    teacher_logits: Tensor,
    teacher_tokens: Tensor,
    labels: Tensor | None = None,
    token_weight: float = 1.0,
) -> Tensor:
    """Soft cross-entropy + κ · mean squared error of tokens, + cross-entropy with labels if any.

    logits: (b, classes); tokens: (b, n, dim) after the last norm; labels: (b,) or (b, classes);
    token_weight: κ.
    """
    loss = soft_cross_entropy(logits, teacher_logits)
    loss = loss + token_weight * F.mse_loss(tokens, teacher_tokens)
    return loss if labels is None else loss + F.cross_entropy(logits, labels)


def network_cost(flags: Tensor, n: int, attention: str = "relu_softmax") -> Traffic:
    """The maps of a whole network of n tokens, online; flags (depth, heads): 1 for `attention`.

    The other heads scale. Heads of a layer share their rounds, layers wait for one another.
    """
    rows = [n * int(layer.sum()) for layer in flags]
    return sum((map_cost(attention, n, count) for count in rows), Traffic())


def block_weights(block: Block) -> list[np.ndarray]:
    """What `secret_sharing.secure_block` takes of a block: real numbers, matrices (in, out)."""
    norms = (block.pre_norm, block.norm1)
    found = [array for norm in norms for array in (norm.weight, norm.bias)]
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    for layer in layers:
        found += [layer.weight.T] + ([] if layer.bias is None else [layer.bias])
    return [array.detach().double().numpy() for array in found]


UNUSED = r"(_expand\.|\.dw_conv\.|\.kernel_[so]$|\.self_attn\.W$)"  # of the official teachers
NAMES: dict[str, Rules] = {
    "official": [
        (UNUSED, None),
        (r"^tokenizer\.conv_layers\.0\.0", "patch_embed.proj"),
        (r"^classifier\.", ""),
        (r"^class_emb$", "cls_token"),
        (r"^positional_emb$", "pos_embed"),
        (r"^fc\.", "head."),
        (r"(^|\.)self_attn\.", r"\1attn."),
        (r"(^|\.)linear([12])\.", r"\1mlp.fc\2."),
        (r"(^|\.)beta$", r"\1mlp.beta"),
    ],
}

COLUMNS = ("depth", "num_heads", "embed_dim", "mlp_ratio", "patch_size", "img_size", "num_classes")
TABLE = {
    "2_4_32": (2, 2, 128, 1.0, 4, 32, 10),
    "4_4_32": (4, 2, 128, 1.0, 4, 32, 10),
    "6_4_32": (6, 4, 256, 2.0, 4, 32, 10),
    "7_4_32": (7, 4, 256, 2.0, 4, 32, 10),
    "7_4_32_wider": (7, 4, 384, 2.0, 4, 32, 10),
    "9_12_64": (9, 12, 192, 2.0, 4, 64, 200),
    "12_12_224": (12, 12, 192, 4.0, 16, 224, 1000),
}
SIZES = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()}
VARIANTS: dict[str, dict] = (
    SIZES
    | {f"{name}_teacher": size | dict(heterogeneous=False) for name, size in SIZES.items()}
    | {f"{name}_plus": SIZES[name] | dict(linear_gelu=True) for name in ("7_4_32", "9_12_64")}
)
MODEL = MPCViT
