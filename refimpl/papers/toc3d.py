"""ToC3D: the objects that a car saw a moment ago choose the tokens that its backbone computes.

Zhang, Liang, Tan, Ye, Zhang, Wang, Bai, *Make Your ViT-based Multi-view 3D Detectors Faster via
Token Compression*, ECCV 2024, arXiv 2409.00633. Official code: DYZhang09/ToC3D @
32ae96126ed6ed2d2dcba4af668846572b347d81 (Apache-2.0), on exiawsh/StreamPETR. Here: the backbone
(EVA-02 blocks, selectors, router), the memory of queries, the loss; no neck and no detection head.

The idea
    1. Of the thousands of tokens of six cameras few lie on an object, and nearly all the time of
       such a detector goes into its backbone.
    2. The last frame's detections are kept as *history queries*: a vector, a point, a velocity, a
       time, a pose. Moved with the car's and the object's motion, they say where to look now.
    3. Before some blocks a *selector* scores every token against these queries.
    4. From there on a *router* sends, in each window, the share ρ of highest scores through the
       block, together with one *bridge token*, a weighted mean of all others.
    5. The others take the *free path*: they are given what the block added to their bridge.

With tokens x_j, scores s_j = log p(token j matters), k = ⌊ρ n⌋ salient of a window's n tokens:

    p = MLP(sine(T⁻¹ r))                  r: reference point, T: the car's pose now
    MLN(x; c) = γ(c) ∘ LN(x) + β(c)       c: Fourier code of velocity, time, pose
    s = log softmax(W [X q₁ … X q_N]/√d)  q = MLN(q; c) + MLN(p; c) + LN(W t)
    b = Σ_redundant (s_j / Σ s) x_j,      [x'; b'] = Block([x_salient; b]),      x_j ← x_j + b' − b

A block computes k + 1 instead of n tokens; a selector takes 1.6 C² a token, with a history 256 C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import init_weights
from refimpl.bases.eva import (
    EvaBlock,
    Rotation,
    by_score,
    padded_windows,
    resized_positions,
    rotation_table,
    rows,
    whole_map,
)
from refimpl.bases.streampetr import (
    MOTION,
    PC_RANGE,
    QUERY_DIM,
    History,
    MotionNorm,
    blank_history,
    check_history,
    fourier_code,
    moved,
    point_code,
    sine_code,
)
from refimpl.deploy import deploy
from refimpl.layers import drop_path_rates
from refimpl.weights import Rules

PADDING_SCORE = -1e6  # of tokens that only fill a window


def route(
    tokens: Tensor, scores: Tensor, keep: int, update: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Salient tokens and a bridge through a block, the rest beside it: x (b, n, c), s (b, n).

    keep: k, of 1 … n − 1; update(packed, places): what a block adds to tokens (b, k + 1, c) that
    stand at these places (b, k + 1) of the window.
    """
    order = by_score(scores)  # indices, the most salient first: (b, n)
    salient, redundant = order[:, :keep], order[:, keep:]
    weights = scores.gather(1, redundant)
    weights = weights / weights.sum(1, keepdim=True)  # s_j / Σ s: (b, n − k)
    bridge = weights[:, None].to(tokens.dtype) @ rows(tokens, redundant)  # b: (b, 1, c)
    packed = torch.cat([rows(tokens, salient), bridge], 1)  # (b, k + 1, c)
    places = F.pad(salient, (0, 1), value=keep)  # the bridge is given place k
    change = update(packed, places)  # Block(x) − x: (b, k + 1, c)
    representative = order.argsort(-1).clamp(max=keep)  # a salient token's is itself: (b, n)
    return tokens + rows(change, representative)


class RoutedBlock(EvaBlock):
    """`EvaBlock` that computes the salient tokens of each window: (b, h, w, dim) -> the same.

    keep_ratio: ρ, their share of a window; bridge: without it the redundant tokens stay as they
    are. Padding comes *before* the norm and competes like a token; no path is dropped.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        keep_ratio: float,
        mlp_ratio: float = 8 / 3,
        bridge: bool = True,
    ):
        super().__init__(dim, num_heads, window_size, mlp_ratio)
        self.keep = kept_tokens(keep_ratio, window_size**2)
        self.bridge = bridge

    def forward(self, x: Tensor, rotation: Rotation, scores: Tensor) -> Tensor:
        """scores: log p of each token, (b, h, w); of the salient ones only the order counts."""
        side, grid = self.window_size, x.shape[1:3]
        tokens = padded_windows(x, side)  # (b · windows, n, dim)
        scores = padded_windows(scores[..., None], side, PADDING_SCORE)[..., 0]

        def update(packed: Tensor, places: Tensor) -> Tensor:
            turned = tuple(table[places][:, None] for table in rotation)  # (b, 1, k + 1, d)
            attended = self.attn(self.norm1(packed), turned)
            return attended + self.mlp(self.norm2(packed + attended))

        def update_salient(packed: Tensor, places: Tensor) -> Tensor:
            changed = update(packed[:, :-1], places[:, :-1])
            return F.pad(changed, (0, 0, 0, 1))  # nothing for the bridge

        if self.keep == side**2:
            places = torch.arange(side**2, device=x.device).expand(tokens.shape[0], -1)
            routed = tokens + update(tokens, places)
        else:
            routed = route(tokens, scores, self.keep, update if self.bridge else update_salient)
        return whole_map(routed, grid, side)


def kept_tokens(keep_ratio: float, tokens: int) -> int:
    """⌊ρ n⌋ of n tokens. Raises `ValueError` for a ratio that keeps none, or more than all."""
    keep = int(keep_ratio * tokens) if 0 < keep_ratio <= 1 else 0
    if keep < 1:
        raise ValueError(
            f"keep_ratio={keep_ratio!r} keeps none of {tokens} tokens: it must be at least"
            f" 1/{tokens} and at most 1"
        )
    return keep


# ---- Selectors


class Selection(NamedTuple):
    """What a selector says: scores (b, h, w), log p; mask (b, h, w, 1) in 0 … 1 for the next one;
    kept (b, k): indices of the highest scores of the whole view, the highest first."""

    scores: Tensor
    mask: Tensor
    kept: Tensor


class Selector(nn.Module):
    """Score every token by the history, or, where there is none, by the image alone.

    x (b · views, h, w, dim), mask (b · views, h, w, 1), `History` of b samples -> `Selection`.
    In training the mask is drawn (Gumbel noise); the official code draws it always.
    """

    def __init__(
        self,
        dim: int,
        keep_ratio: float,
        num_queries: int = 64,
        pc_range: tuple[float, ...] = PC_RANGE,
    ):
        super().__init__()
        checks.multiple(4, "the first frame's MLP halves it twice", embed_dim=dim)
        checks.integer(1, num_queries=num_queries)
        kept_tokens(keep_ratio, 10**6)
        self.keep_ratio, self.num_queries = keep_ratio, num_queries
        self.pc_range = nn.Parameter(torch.tensor(pc_range), requires_grad=False)
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        narrower = [nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU()]
        self.out_conv = nn.Sequential(*narrower, nn.Linear(dim // 4, 2))
        self.input_proj = nn.Sequential(nn.Linear(dim, QUERY_DIM))
        self.aggregate = nn.Sequential(nn.Linear(num_queries, 2))
        self.query_embedding = nn.Sequential(
            nn.Linear(3 * QUERY_DIM // 2, QUERY_DIM), nn.ReLU(), nn.Linear(QUERY_DIM, QUERY_DIM)
        )
        self.ego_pose_pe = MotionNorm(MOTION, QUERY_DIM)
        self.ego_pose_queries = MotionNorm(MOTION, QUERY_DIM)
        self.time_embedding = nn.Sequential(
            nn.Linear(QUERY_DIM, QUERY_DIM), nn.LayerNorm(QUERY_DIM)
        )

    def queries(self, history: History) -> Tensor:
        """Motion-aware queries (b, q, 256) in the car's present coordinates."""
        points = moved(history.inverse_pose, history.reference_point)
        low, high = self.pc_range[:3], self.pc_range[3:]
        p = self.query_embedding(point_code((points - low) / (high - low), QUERY_DIM // 2))
        pose = history.ego_pose[:, :, :3].flatten(2)
        code = fourier_code(torch.cat([history.velocity, history.timestamp, pose], -1))
        time = self.time_embedding(sine_code(history.timestamp, QUERY_DIM))
        p = self.ego_pose_pe(p, code) + time
        return self.ego_pose_queries(history.embedding, code) + p

    def by_history(self, x: Tensor, history: History) -> Tensor:
        """Two log-probabilities for each token: (b · views, h, w, 2)."""
        queries = self.queries(history)
        tokens = self.input_proj(x).reshape(queries.shape[0], -1, QUERY_DIM)  # of all its views
        likeness = tokens @ queries.mT.to(tokens.dtype) / QUERY_DIM**0.5  # (b, views · h · w, q)
        return log_probabilities(self.aggregate(likeness).view(*x.shape[:3], 2))

    def by_image(self, x: Tensor) -> Tensor:
        """The same without a history, from each token and the mean of all in its view."""
        own, shared = self.in_conv(x).chunk(2, -1)
        shared = shared.mean((1, 2), keepdim=True).expand_as(own)
        return log_probabilities(self.out_conv(torch.cat([own, shared], -1)))

    def forward(self, x: Tensor, mask: Tensor, history: History | None) -> Selection:
        x = x * mask.to(x.dtype)
        if history is None and torch.is_grad_enabled():  # so that every parameter has a gradient
            history = blank_history(x, self.num_queries)
        if history is None:
            log_p = self.by_image(x)
        elif history.exists is None:
            log_p = self.by_history(x, history)
        else:
            exists = history.exists.repeat_interleave(x.shape[0] // history.exists.shape[0])
            exists = exists[:, None, None, None]
            log_p = self.by_image(x) * (1 - exists) + self.by_history(x, history) * exists
        if self.training:
            mask = F.gumbel_softmax(log_p, dim=-1)[..., :1]
        else:
            mask = log_p.softmax(-1)[..., :1]
        scores = log_p[..., 0]
        order = by_score(scores.flatten(1))
        return Selection(scores, mask, order[:, : int(self.keep_ratio * order.shape[1])])


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last axis, in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


# ---- The backbone


class ToC3D(nn.Module):
    """Images of all cameras (b · views, in_chans, h, w) -> features (b · views, embed_dim, h', w').

    h and w: any multiples of the patch. The released configuration has keep_ratios (0.7, 0.5, 0.5)
    ("Fast") or (0.5, 0.4, 0.3) ("Faster"); with () it is the dense backbone.

    selector_blocks: the blocks that have a selector before them, by default evenly spread;
    global_blocks: those of the wider windows, by default every third; bridge: see `RoutedBlock`.
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 8 / 3,
        window_size: int = 16,
        global_window_size: int = 20,
        keep_ratios: tuple[float, ...] = (0.7, 0.5, 0.5),
        selector_blocks: tuple[int, ...] | None = None,
        global_blocks: tuple[int, ...] | None = None,
        num_queries: int = 64,
        pretrain_img_size: int = 224,
        pc_range: tuple[float, ...] = PC_RANGE,
        drop_path_rate: float = 0.0,
        bridge: bool = True,
    ):
        super().__init__()
        checks.integer(1, patch_size=patch_size, in_chans=in_chans, depth=depth)
        checks.positive(mlp_ratio=mlp_ratio)
        checks.fraction(drop_path_rate=drop_path_rate)
        checks.heads(embed_dim, num_heads)
        checks.multiple(4, "half of the pairs tell rows", head_dim=embed_dim // num_heads)
        checks.at_least(patch_size, pretrain_img_size=pretrain_img_size)
        count = len(keep_ratios)
        if selector_blocks is None:
            selector_blocks = tuple((i + 1) * depth // (count + 1) for i in range(count))
        if global_blocks is None:
            global_blocks = tuple(range(2, depth, 3))
        check_blocks(depth, keep_ratios, selector_blocks, global_blocks)
        self.in_chans, self.patch_size, self.embed_dim = in_chans, patch_size, embed_dim
        self.head_dim = embed_dim // num_heads
        self.selector_blocks = selector_blocks
        self.num_queries = num_queries
        pretrained = (pretrain_img_size // patch_size) ** 2 + 1  # a class token's slot comes first
        self.pos_embed = nn.Parameter(torch.zeros(1, pretrained, embed_dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.score_predictor = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for ratio in keep_ratios:
            self.score_predictor.append(Selector(embed_dim, ratio, num_queries, pc_range))
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            side = global_window_size if i in global_blocks else window_size
            begun = sum(i >= first for first in selector_blocks)  # selectors so far
            if begun:
                ratio = keep_ratios[begun - 1]
                block = RoutedBlock(embed_dim, num_heads, side, ratio, mlp_ratio, bridge)
            else:
                block = EvaBlock(embed_dim, num_heads, side, mlp_ratio, rate)
            self.blocks.append(block)
        self.blocks.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def select(self, images: Tensor, history: History | None = None):
        """Features (b · views, embed_dim, h', w'), and a `Selection` for each selector.

        history: of the b samples that the views belong to, in order; `None`: a scene's first frame.
        """
        checks.image(images, self.in_chans, multiple=self.patch_size)
        if history is not None:
            check_history(history, images.shape[0], self.num_queries)
        x = rearrange(self.patch_embed.proj(images), "b c h w -> b h w c")
        x = x + resized_positions(self.pos_embed, x.shape[1:3])
        sides = {block.window_size for block in self.blocks}
        rotations = {side: rotation_table(side, self.head_dim, x.device) for side in sides}
        mask = x.new_ones(*x.shape[:3], 1)
        selections: list[Selection] = []
        for i, block in enumerate(self.blocks):
            if i in self.selector_blocks:
                selector = self.score_predictor[len(selections)]
                selections.append(selector(x, mask, history))
                mask = selections[-1].mask
            scores = [selections[-1].scores] if selections else []
            x = block(x, rotations[block.window_size], *scores)
        return rearrange(x, "b h w c -> b c h w"), selections

    def forward_features(self, images: Tensor, history: History | None = None) -> Tensor:
        """The map that a detector's neck reads: (b · views, embed_dim, h', w')."""
        return self.select(images, history)[0]

    def forward_head(self, features: Tensor) -> Tensor:
        """The features themselves: the detection head is not part of the paper."""
        return features

    def forward(self, images: Tensor, history: History | None = None) -> Tensor:
        return self.forward_head(self.forward_features(images, history))

    def fuse(self) -> ToC3D:
        """A copy for inference: products with one input joined, a norm's scale folded."""
        return deploy(self)


def check_blocks(depth: int, ratios: tuple, selector_blocks: tuple, global_blocks: tuple) -> None:
    """Raise a `ValueError` where selectors, ratios and blocks don't fit each other."""
    if len(selector_blocks) != len(ratios):
        raise ValueError(f"{selector_blocks=} and keep_ratios={ratios} must be equally long")
    for name, blocks in (("selector_blocks", selector_blocks), ("global_blocks", global_blocks)):
        if any(not a < b for a, b in pairwise((-1, *blocks, depth))):
            raise ValueError(f"{name}={blocks} must rise and lie in 0 … {depth - 1}")


# ---- The loss


def foreground_labels(boxes: list[Tensor], grid: tuple[int, int], patch_size: int = 16) -> Tensor:
    """1 for tokens that a projected box covers: (views, h, w) float.

    boxes: for each view (n, 4), x₁ y₁ x₂ y₂ in pixels, n may be 0. As released, the last row and
    column of tokens that a box reaches are cut off at the edge of the map, and stay 0.
    """
    labels = torch.zeros(len(boxes), *grid)
    for i, view in enumerate(boxes):
        checks.shapes({f"boxes[{i}]": "n 4"}, **{f"boxes[{i}]": view})
    for view, label in zip(boxes, labels, strict=True):
        for left, top, right, bottom in (view / patch_size).tolist():
            rows = slice(max(math.floor(top), 0), min(math.ceil(bottom), grid[0] - 1))
            columns = slice(max(math.floor(left), 0), min(math.ceil(right), grid[1] - 1))
            label[rows, columns] = 1
    return labels


def saliency_loss(masks: Tensor, labels: Tensor, weight: float = 5.0) -> Tensor:
    """Focal loss of soft masks: (selectors, …) in 0 … 1 against labels (…) of 0 and 1; a scalar.

    Sure tokens count little: −(1 − m)² log m where the label is 1, −m² log(1 − m) where it is 0.
    """
    if masks.shape[1:] != labels.shape:
        raise ValueError(f"labels must be {tuple(masks.shape[1:])}, got {tuple(labels.shape)}")
    right = torch.where(labels.expand_as(masks) == 1, masks, 1 - masks)
    return weight * (-(1 - right).square() * (right + 1e-12).log()).mean()


SIZES = {
    "base": dict(embed_dim=768, depth=12, num_heads=12),  # its ToC3D form by analogy
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
}
RATIOS = {"fast": (0.7, 0.5, 0.5), "faster": (0.5, 0.4, 0.3)}
VARIANTS: dict[str, dict] = {
    f"{size}_{name}": SIZES[size] | dict(keep_ratios=RATIOS[name])
    for size, name in product(SIZES, RATIOS)
}
MODEL = ToC3D
NAMES: dict[str, Rules] = {"official": [(r"(^|\.)rope\w*\.freqs_(cos|sin)$", None)]}
