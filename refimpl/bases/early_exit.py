"""Early exits, as they were before LGViT: who leaves, and the plain ways out of a ViT.

Rules: confidence, Teerapittayanon and others, *BranchyNet*, ICPR 2016, arXiv 1709.01686 (there by
entropy, as in DeeBERT, Xin and others, ACL 2020, arXiv 2004.12993); patience, Zhou and others,
*BERT Loses Patience*, NeurIPS 2020, arXiv 2006.04152; both, Zhang and others, PCEE-BERT, 2022.
Heads: a class token, a convolution, attention, or a block of its own, Bakhtiarnia and others,
*Multi-Exit Vision Transformer*, BMVC 2021, arXiv 2106.15183; in the form of falcon-xu/LGViT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Attention, Block
from refimpl.bases.swin import WindowAttention
from refimpl.deploy import linear_like
from refimpl.layers import Layout
from refimpl.weights import Rules

Rule = Callable[[Tensor], Tensor]  # logits of the exits so far (exits, b, k) -> who leaves (b,)


@dataclass(frozen=True)
class Confidence:
    """The largest probability is above the threshold (the paper's rule). A threshold in 0 … 1."""

    threshold: float = 0.8

    def __post_init__(self):
        checks.at_least(0, threshold=self.threshold)
        if self.threshold > 1:
            raise ValueError(f"threshold={self.threshold} must be at most 1: it is a probability")

    def __call__(self, seen: Tensor) -> Tensor:
        return seen[-1].softmax(-1).amax(-1) > self.threshold


@dataclass(frozen=True)
class Entropy:
    """The entropy of the probabilities, in nats, was below the threshold at `times` exits running.

    times=2: the official code's "patient_and_confident".
    """

    threshold: float = 0.6
    times: int = 1

    def __post_init__(self):
        checks.positive(threshold=self.threshold)
        checks.integer(1, times=self.times)

    def __call__(self, seen: Tensor) -> Tensor:
        log_p = seen[-self.times :].log_softmax(-1)
        entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1)  # 0 · log 0 = 0
        return (entropy < self.threshold).all(0) & (len(seen) >= self.times)


@dataclass(frozen=True)
class Patience:
    """`times` exits running gave the same answer."""

    times: int = 7

    def __post_init__(self):
        checks.integer(1, times=self.times)

    def __call__(self, seen: Tensor) -> Tensor:
        answers = seen[-self.times :].argmax(-1)
        return (answers == answers[-1]).all(0) & (len(seen) >= self.times)


def check_exits(exits: tuple[int, ...], depth: int) -> None:
    """Raise a `ValueError` unless layers rise between the first and the last but one."""
    checks.integer(1, **{f"exits[{i}]": layer for i, layer in enumerate(exits)})
    if not exits or list(exits) != sorted(set(exits)) or exits[-1] >= depth:
        raise ValueError(
            f"exits={exits} must be layers in rising order, at least one, from 1 to {depth - 1}"
        )


class Exit(nn.Module):
    """A way out of a ViT: tokens (b, prefix + n, dim) of a block, not normalised -> logits (b, k).

    body: a head, from the map of patches to tokens; special tokens are added after its mean.
    """

    def __init__(self, body: nn.Module, dim: int, num_classes: int, layout: Layout):
        super().__init__()
        self.body, self.layout = body, layout
        self.head = nn.Linear(dim, num_classes)
        self.head_dist = nn.Linear(dim, num_classes) if layout.prefix == 2 else None

    def features(self, x: Tensor) -> Tensor:
        """The head's tokens, which stage 2 compares: (b, m, dim)."""
        return self.body(x[:, self.layout.prefix :].unflatten(1, self.layout.grid))

    def classify(self, features: Tensor, x: Tensor) -> Tensor:
        pooled = features.mean(1)
        logits = self.head(pooled + x[:, 0])
        if self.head_dist is not None:
            logits = (logits + self.head_dist(pooled + x[:, 1])) / 2
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x), x)


class MapExit(Exit):
    """A way out of Swin: a map (b, h, w, dim) of a block -> logits (b, k)."""

    def __init__(self, body: nn.Module, dim: int, num_classes: int, layout: Layout):
        super().__init__(body, dim, num_classes, layout)
        self.norm = nn.LayerNorm(dim)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def classify(self, features: Tensor, x: Tensor) -> Tensor:
        return self.head(self.norm(features).mean(1))


class PlainExit(Exit):
    """Baselines "linear" and "vit" (ViT-EE): the class token, here or after a block of its own.

    body: the block; the class token passes a linear layer and tanh, two special tokens a norm.
    """

    def __init__(self, body: nn.Module, dim: int, num_classes: int, layout: Layout):
        super().__init__(body, dim, num_classes, layout)
        single = layout.prefix == 1
        self.pooler = nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) if single else None
        self.norm = None if single else nn.LayerNorm(dim, eps=1e-12)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def classify(self, features: Tensor, x: Tensor) -> Tensor:
        if self.norm is None:
            return self.head(self.pooler(features[:, 0]))
        special = self.norm(features[:, :2])
        return (self.head(special[:, 0]) + self.head_dist(special[:, 1])) / 2


class ConvHead(nn.Module):
    """A baseline of the paper, "conv_normal": one full 3×3 convolution, nothing added."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv(x.permute(0, 3, 1, 2)), "b c h w -> b (h w) c")


BASELINES = ("conv_normal", "self_attention", "linear", "vit")


def baseline_exit(
    kind: str, dim: int, num_classes: int, layout: Layout, num_heads: int, mlp_ratio: float
) -> Exit:
    """An exit of one of the `BASELINES`, for the tokens of a ViT."""
    if kind == "linear":
        return PlainExit(nn.Identity(), dim, num_classes, layout)
    if kind == "vit":
        block = Block(dim, num_heads, mlp_ratio, norm_eps=1e-12, layout=layout)
        return PlainExit(block, dim, num_classes, layout)
    if kind == "conv_normal":
        return Exit(ConvHead(dim), dim, num_classes, layout)
    attn = Attention(dim, num_heads, layout=Layout(layout.grid))
    return Exit(nn.Sequential(nn.Flatten(1, 2), attn), dim, num_classes, layout)


class WithExits:
    """What ViT and Swin with exits share. `rule`: who leaves; another may be put in its place.

    In evaluation mode the model gives each image's answer at the exit where it leaves, but computes
    all layers; `early_exit` computes what is needed. In training mode it gives the logits of every
    exit and, last, of the final classifier. Without classes there are no exits.
    """

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """What blocks with an exit give, and the last block, not normalised."""
        x = self.embed(images)
        kept = []
        for layer, block in enumerate(self.steps(), start=1):
            x = block(x)
            if layer in self.exits_at():
                kept.append(x)
        return [*kept, x]

    def forward_head(self, features: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        *logits, answer = self.forward_exits(features).values()
        if self.training and self.num_classes:
            return *logits, answer
        for i in range(len(logits), 0, -1):
            leaves = self.rule(torch.stack(logits[:i]))
            answer = torch.where(leaves[:, None], logits[i - 1], answer)
        return answer

    def forward_exits(self, features: list[Tensor] | Tensor) -> dict[int, Tensor]:
        """Layer -> logits (b, k) of its exit, the final classifier last. Takes images, too."""
        if isinstance(features, Tensor):
            features = self.forward_features(features)
        *inner, last = features
        exits = self.exits_at().items()
        found = {layer: way(x) for (layer, way), x in zip(exits, inner, strict=True)}
        return found | {len(self.steps()): self.final(last)}

    def final(self, x: Tensor, normed: bool = True) -> Tensor:
        """The backbone's own classifier: tokens of the last block -> logits (b, k).

        normed: False leaves out the norm before it.
        """
        return super().forward_head(self.norm(x) if normed else x)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.forward_head(self.forward_features(images))


def through(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    return second(first(x))


class QueryKeyValue(nn.Module):
    """Three linear layers side by side, as the official checkpoints store them: dim -> 3 dim."""

    def __init__(self, dim: int):
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)

    def fuse(self) -> nn.Linear:
        """The one layer that computes the same."""
        layers = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight for layer in layers])
        return linear_like(weight, torch.cat([layer.bias for layer in layers]))


def store_apart(model: nn.Module) -> None:
    """In place: queries, keys and values of the backbone's kind of attention in three layers."""
    for part in model.modules():
        if isinstance(part, (Attention, WindowAttention)):
            part.qkv = QueryKeyValue(part.proj.in_features)


# Names of the Hugging Face library for a ViT, a DeiT or a Swin, on which the official code stands.
HUGGING_FACE: Rules = [
    (r"relative_position_index$", None),
    (r"^(deit|vit|swin)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers?\.(\d+)\.(?=blocks|downsample)", r"layers.\1."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^pooler\.dense\.", "pooler."),
    (r"\.classifier\.(?=pooler|layernorm|classifier|cls_|distillation_)", "."),
    (r"(^|\.)pooler\.dense\.", r"\1pooler.0."),
    (r"(^|\.)(cls_)?classifier\.", r"\1head."),
    (r"(^|\.)distillation_classifier\.", r"\1head_dist."),
    (r"\.attention\.(attention|self)\.(?=query|key|value)", ".attn.qkv."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.body\.1\.attention\.", ".body.1.qkv."),
    (r"\.body\.1\.output\.dense\.", ".body.1.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"(^|\.)layernorm\.", r"\1norm."),
]
