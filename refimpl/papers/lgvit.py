"""LGViT: easy images leave a Vision Transformer early, through heads that fit their depth.

Xu, Hao, Shen, Hu, Luo, Lin, Shen, *LGViT: Dynamic Early Exiting for Accelerating Vision
Transformer*, ACM Multimedia 2023, arXiv 2308.00255. Official code: falcon-xu/LGViT, commit
3147fb803ad54eadf8de85d34f43b9fb5440f3a0 (MIT).

The idea
    1. Some images are clear after a few layers. So layers get *exits*, classifiers of their own,
       and an image leaves at the first exit that is sure of it.
    2. What a shallow layer lacks is a neighbourhood: its exit gets a *local perception head*, of
       convolutions, added to the tokens.
    3. What a deep layer lacks is the agreement of its tokens: its exit gets a *global aggregation
       head*, attention among a subsampled grid of tokens.
    4. Two stages of training: first all together, every other step for the last classifier alone;
       then the exits alone, taught by the last classifier, with the backbone frozen.

With tokens X (n, c) of block l, class token x₀, and p = softmax(logits):

    local    F = X + BN W₂ BN GELU(DW₃ₓ₃ BN GELU(W₁ X))     later exits: without DW₃ₓ₃
    global   F = MHSA(X[every s-th row and column]) W_o
    exit     logits_l = W_l (mean(F) + x₀)                  leave if max p > τ
    stage 1  L = Σ l CE_l / Σ l                             the last classifier counts as l = depth
    stage 2  L = Σ_l (1−α) CE_l + α KD_l + β (Σ L_het + Σ L_hom)

Multiply-adds of leaving after layer l: stem, l blocks, and all heads that were passed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import deit, swin
from refimpl.bases.distillation import distillation_loss
from refimpl.bases.early_exit import (
    BASELINES,
    HUGGING_FACE,
    Confidence,
    Exit,
    MapExit,
    Rule,
    WithExits,
    baseline_exit,
    check_exits,
    store_apart,
    through,
)
from refimpl.layers import Layout, Probe, attention, attention_map
from refimpl.weights import Rules


def leave_early(
    tokens: Tensor,
    blocks: Iterable[Callable[[Tensor], Tensor]],
    exits: Mapping[int, Callable[[Tensor], Tensor]],
    final: Callable[[Tensor], Tensor],
    leaves: Rule,
) -> tuple[Tensor, Tensor]:
    """Whoever is sure leaves: tokens (b, …) -> logits (b, k), and after which layer (b,) int64."""
    images = torch.arange(len(tokens), device=tokens.device)  # those that are still here
    seen = []  # logits of each exit so far, (images, k)
    left = []
    for layer, block in enumerate(blocks, start=1):
        tokens = block(tokens)
        if layer in exits:
            seen.append(exits[layer](tokens))
            sure = leaves(torch.stack(seen))  # each image for itself: (images,) bool
            left.append((images[sure], seen[-1][sure], layer))
            images, tokens = images[~sure], tokens[~sure]  # the batch closes ranks
            seen = [logits[~sure] for logits in seen]
            if len(images) == 0:
                break
    else:  # the last layer was reached
        left.append((images, final(tokens), layer))
    order = torch.cat([who for who, _, _ in left]).argsort()
    logits = torch.cat([answers for _, answers, _ in left])[order]
    layers = torch.cat([torch.full_like(who, layer) for who, _, layer in left])[order]
    return logits, layers


class LocalHead(nn.Module):
    """Local perception: a map (b, h, w, dim) -> its tokens and what is near (b, h·w, dim).

    grid: h and w; depthwise: False leaves out the 3×3 convolution, and with it the neighbourhood.
    """

    def __init__(self, dim: int, grid: tuple[int, int], depthwise: bool = True):
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if depthwise else None
        self.proj_bn = nn.BatchNorm2d(dim) if depthwise else None
        self.conv2 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x.permute(0, 3, 1, 2))  # each token alone
        if self.proj is not None:
            y = self.proj_bn(F.gelu(self.proj(y)))  # with its eight neighbours
        y = self.conv2(y)
        return x.flatten(1, 2) + rearrange(y, "b c h w -> b (h w) c")


class GlobalHead(nn.Module):
    """Global aggregation: a map (b, h, w, dim) -> (b, ⌈h/stride⌉·⌈w/stride⌉, dim).

    Attention among every `stride`-th row and column: the others are dropped, not averaged.
    """

    def __init__(self, dim: int, grid: tuple[int, int], stride: int, num_heads: int = 8):
        super().__init__()
        checks.heads(dim, num_heads)
        checks.integer(1, stride=stride)
        self.stride, self.num_heads = stride, num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(Layout((-(-grid[0] // stride), -(-grid[1] // stride))))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :: self.stride, :: self.stride].flatten(1, 2)
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        self.probe(lambda: attention_map(q, k))
        return self.proj(rearrange(attention(q, k, v), "b heads n d -> b n (heads d)"))


OF_VIT = ("conv1_1", "conv2_1", "attention_r2", "attention_r3")
OF_SIX = (*OF_VIT[:3], "attention_r2", "attention_r3", "attention_r3")  # not spread evenly
OF_SWIN = ("conv1_1", "conv2_1", "attention_r1", "attention_r2")


def head_body(kind: str, dim: int, grid: tuple[int, int]) -> nn.Module:
    """A head by its official name ("conv1_1", "attention_r2"), for maps (b, *grid, dim)."""
    checks.choice("kind", kind, ("conv1_1", *OF_SWIN, "attention_r3"))
    if kind.startswith("conv"):
        return LocalHead(dim, grid, depthwise=kind == "conv1_1")
    return GlobalHead(dim, grid, stride=int(kind[-1]))


def spread(kinds: tuple[str, ...], count: int) -> list[str]:
    """The kinds in their order, each for an equal part of `count` exits; six as released."""
    if kinds == OF_VIT and count == 6:
        return list(OF_SIX)
    return [kinds[len(kinds) * i // count] for i in range(count)]


class EarlyExits(WithExits):
    """What `ExitViT` and `ExitSwin` can do: not to compute what nobody needs."""

    @torch.no_grad()
    def early_exit(self, images: Tensor, rule: Rule | None = None) -> tuple[Tensor, Tensor]:
        """Logits (b, k), and the layer after which each image left (b,): each for itself.

        rule: the model's own unless given.
        """
        if self.training:
            raise ValueError("early_exit is for inference: call eval() first")
        ways = self.exits_at()
        return leave_early(self.embed(images), self.steps(), ways, self.final, rule or self.rule)


class ExitViT(EarlyExits, deit.VisionTransformer):
    """ViT, or DeiT where `distilled`, with exits; other arguments as `VisionTransformer` has them.

    exits: after which layers, from 1; by default all from a third of the depth on. heads: "lgvit",
    or a baseline for all exits ("conv_normal", "self_attention", "linear", "vit"). threshold: of
    `Confidence`. The pooler is in every official checkpoint, and read by nobody.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-12,
        exits: tuple[int, ...] | None = None,
        heads: str = "lgvit",
        threshold: float = 0.8,
    ):
        sizes = (embed_dim, depth, num_heads, mlp_ratio)
        options = dict(distilled=distilled, drop_path_rate=drop_path_rate, norm_eps=norm_eps)
        super().__init__(img_size, patch_size, in_chans, num_classes, *sizes, **options)
        checks.choice("heads", heads, ("lgvit", *BASELINES))
        self.rule = Confidence(threshold)
        self.places = tuple(range(-(-depth // 3), depth)) if exits is None else tuple(exits)
        check_exits(self.places, depth)
        self.exits = nn.ModuleList()
        shape = (embed_dim, num_classes, self.layout)
        for kind in spread(OF_VIT, len(self.places)) if num_classes else ():
            if heads == "lgvit":
                self.exits.append(Exit(head_body(kind, embed_dim, self.layout.grid), *shape))
            else:
                self.exits.append(baseline_exit(heads, *shape, num_heads, mlp_ratio))
        store_apart(self)
        self.pooler = nn.Linear(embed_dim, embed_dim).requires_grad_(False)
        self.apply(deit.init_weights)

    def embed(self, images: Tensor) -> Tensor:
        """Images -> tokens with positions, class tokens first: (b, prefix + n, embed_dim)."""
        x = self.patch_embed(images)
        special = [token for token in (self.cls_token, self.dist_token) if token is not None]
        special = [token.expand(x.shape[0], -1, -1) for token in special]
        return torch.cat([*special, x], dim=1) + self.pos_embed

    def steps(self) -> Iterable[Callable[[Tensor], Tensor]]:
        return self.blocks

    def exits_at(self) -> dict[int, Exit]:
        return dict(zip(self.places, self.exits, strict=False))

    def forward_classifiers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.head_dist is None:
            return super().forward_classifiers(images)  # which refuses
        x = self.norm(super().forward_features(images)[-1])
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


class ExitSwin(EarlyExits, swin.SwinTransformer):
    """Swin with exits; other arguments as `SwinTransformer` has them.

    exits: after which blocks, from 1 over all stages; by default every third from a sixth of the
    depth on, and the last but one. At the end of a stage they stand before its patches are merged.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        num_heads: tuple[int, ...] = (4, 8, 16, 32),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        exits: tuple[int, ...] | None = None,
        threshold: float = 0.8,
    ):
        sizes = (embed_dim, depths, num_heads, window_size, mlp_ratio, drop_path_rate)
        super().__init__(img_size, patch_size, in_chans, num_classes, *sizes)
        depth = sum(depths)
        self.rule = Confidence(threshold)
        every_third = {*range(max(depth // 6, 1), depth, 3), depth - 1}
        self.places = tuple(sorted(every_third) if exits is None else exits)
        check_exits(self.places, depth)
        kinds = dict(zip(self.places, spread(OF_SWIN, len(self.places)), strict=True))
        layer = 0
        for stage in self.layers:
            stage.exits = nn.ModuleList()
            for block in stage.blocks:
                layer += 1
                if layer in kinds and num_classes:
                    dim = block.attn.proj.in_features
                    layout = Layout(block.attn.grid)
                    body = head_body(kinds[layer], dim, layout.grid)
                    stage.exits.append(MapExit(body, dim, num_classes, layout))
        store_apart(self)
        self.apply(deit.init_weights)

    def embed(self, images: Tensor) -> Tensor:  # (b, h, w, embed_dim)
        return self.patch_embed(images)

    def steps(self) -> Iterable[Callable[[Tensor], Tensor]]:
        """The blocks; the first of a stage merges the patches of the stage before."""
        found = []
        before = nn.Identity()
        for stage in self.layers:
            first, *others = stage.blocks
            found += [partial(through, before, first), *others]
            before = stage.downsample
        return found

    def exits_at(self) -> dict[int, Exit]:
        ways = [way for stage in self.layers for way in stage.exits]
        return dict(zip(self.places, ways, strict=False))


def create(backbone: str, **kwargs) -> ExitViT | ExitSwin:
    """`ExitSwin` for "swin", else `ExitViT`: "deit" has a distillation token, "vit" has none."""
    checks.choice("backbone", backbone, ("vit", "deit", "swin"))
    if backbone == "swin":
        return ExitSwin(**kwargs)
    return ExitViT(**{"distilled": backbone == "deit"} | kwargs)


# ---- Two stages of training


def stage_one_loss(logits: Mapping[int, Tensor], labels: Tensor, step: int) -> Tensor:
    """Σ l CE_l / Σ l over exits and final classifier; every other step, from 0, the last CE alone.

    logits: layer -> (b, k), as `forward_exits` gives them; labels: (b,) int64.
    """
    checks.integer(0, step=step)
    *_, last = logits
    if step % 2 == 0:
        return F.cross_entropy(logits[last], labels)
    losses = [layer * F.cross_entropy(answer, labels) for layer, answer in logits.items()]
    return sum(losses) / sum(logits)


def freeze_backbone(model: EarlyExits) -> list[nn.Parameter]:
    """In place: only the exits' parameters want gradients from now on; they are returned."""
    model.requires_grad_(False)
    exits = nn.ModuleList(model.exits_at().values()).requires_grad_(True)
    return list(exits.parameters())


def stage_two_loss(
    model: EarlyExits,
    images: Tensor,
    labels: Tensor,
    alpha: float = 0.3,
    beta: float = 0.01,
    normed_teacher: bool = True,
) -> Tensor:
    """The exits' loss, taught by the final classifier; no gradient reaches the backbone.

    alpha: weight of the teacher's answers (at temperature 2) against the labels; beta: of features,
    0 leaves them out, as one must for Swin. normed_teacher: False leaves out the backbone's last
    norm before the teaching classifier, as the official code does.
    """
    if beta and not isinstance(model, deit.VisionTransformer):
        raise ValueError(f"beta={beta} must be 0 for Swin: the widths of its stages differ")
    with torch.no_grad():
        *inner, last = model.forward_features(images)
        teacher = model.final(last, normed_teacher)
    loss = 0.0
    found = []
    for way, x in zip(model.exits_at().values(), inner, strict=True):
        features = way.features(x)
        answers = (way.classify(features, x),) * 2
        loss = loss + distillation_loss(answers, labels, teacher, "soft", alpha, temperature=2.0)
        found.append((way, features))
    if beta:
        patches = last[:, model.layout.prefix :].unflatten(1, model.layout.grid)
        loss = loss + beta * feature_loss(found, patches)
    return loss


def feature_loss(found: list[tuple[Exit, Tensor]], patches: Tensor) -> Tensor:
    """L_het + L_hom. found: exits and their features (b, m, c); patches: (b, h, w, c), the last's.

    The first and the last exit of each kind learn from the last block's patches, on their own grid;
    of a kind, all learn from the last one: local ones its features, global ones its Gram matrix.
    """
    loss = patches.new_zeros(())
    for kind in (LocalHead, GlobalHead):
        alike = [(way.body, features) for way, features in found if isinstance(way.body, kind)]
        for body, features in alike[:1] + alike[1:][-1:]:
            stride = getattr(body, "stride", 1)
            wanted = patches[:, ::stride, ::stride].flatten(1, 2)
            loss = loss + heterogeneous_loss(features, wanted)
        for _, features in alike[:-1]:
            loss = loss + homogeneous_loss(features, alike[-1][1], gram=kind is GlobalHead)
    return loss


def heterogeneous_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ features) of softmaxes over channels, summed over tokens, per image."""
    student, wanted = features.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(student, wanted, reduction="batchmean", log_target=True)


def homogeneous_loss(features: Tensor, teacher: Tensor, gram: bool) -> Tensor:
    """Mean squared difference of features (b, n, c); gram: of FᵀF (b, c, c), whatever n is."""
    if gram:
        features, teacher = features.mT @ features, teacher.mT @ teacher
    return F.mse_loss(features, teacher)


NAMES: dict[str, Rules] = {
    "official": [
        (r"^(\w+\.)?encoder\.highway\.", "exits."),
        (r"^(\w+\.)?encoder\.layers\.(\d+)\.highway\.", r"layers.\2.exits."),
        (r"(exits\.\d+)\.mlp\.(?=attention|output)", r"\1.body.1."),
        (r"(exits\.\d+)\.(mlp|layer)\.", r"\1.body."),
        *HUGGING_FACE,
    ],
}
VARIANTS: dict[str, dict] = {
    "vit_base": dict(backbone="vit") | deit.SIZES["base"],
    "deit_base": dict(backbone="deit") | deit.SIZES["base"],
    "swin_base": dict(backbone="swin") | swin.VARIANTS["base"],
}
MODEL = create
