"""Optimizing ViViT Training: Time and Memory Reduction for Action Recognition.

Gowda, Arnab, Huang, arXiv 2306.04822; at ECCV 2024 as *Optimizing Factorized Encoder Models*. No
code of the method was published. Its baseline, ViViT (Arnab and others, ICCV 2021, arXiv
2103.15691), is official in google-research/scenic, folder scenic/projects/vivit, commit
4a38d475ee89cb821078c0e2bf2065ee030e1535 (Apache-2.0, Flax).

The idea
    1. The factorised encoder runs an image transformer on every slice of a clip, and a small one
       over the slices' class tokens. Nearly all multiply-adds are in the first.
    2. Train everything on few frames: the spatial encoder meets moving pictures cheaply.
    3. Then freeze the spatial encoder: no gradient, no stored activations, evaluation mode. Its
       backward pass, two thirds of a step, is gone.
    4. Start the temporal encoder from the first stage, its positions stretched to many frames, and
       put a small adapter behind the frozen part that can make up for what it lacks.

With tubelets of τ×p×p pixels, t = frames/τ slices and n tubelets in each:

    x_i = E(slice i) + class token, positions          n + 1 tokens, the same weights for each i
    z_i = spatial(x_i)[class]                          (c,)
    z_i ← z_i + W₂ GELU(W₁ z_i)                        adapter, W₂ = 0 at the start
    logits = head(temporal(z_1 … z_t + class token, positions)[class])

A block:  x ← x + MHSA(LN(x)),   x ← x + MLP(LN(x)),   GELU by tanh.

Cost of a step, where a backward pass costs two forward ones (F multiply-adds in all, F_e of the
embedding, F_s of the spatial encoder, F_r of the rest): 3 F in full, F_e + F_s + 3 F_r when frozen.

The form and the width of the adapter, and that the classifier trains with it, are our choice: the
paper's abstract does not give them.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import deit, video
from refimpl.bases.video import (
    Encoder,
    TubeletEmbed,
    inflate,
    init_weights,
    resize_grid,
    resize_time,
)
from refimpl.deploy import deploy
from refimpl.layers import Layout


def space_then_time(
    clips: Tensor,
    embed: nn.Module,
    spatial: nn.Module,
    temporal: nn.Module,
    adapter: nn.Module | None = None,
    frozen: bool = False,
) -> Tensor:
    """The class token of time: (b, frames, channels, H, W) -> (b, c).

    frozen: embedding and spatial encoder store nothing for a backward pass, and get none.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        tokens = embed(clips)  # (b, t, n, c): t slices of n tubelets
        b, t, _, c = tokens.shape
        slices = spatial(tokens.flatten(0, 1))  # z, one class token a slice: (b·t, c)
    slices = slices.reshape(b, t, c)
    if adapter is not None:
        slices = slices + adapter(slices)  # z + W₂ GELU(W₁ z)
    return temporal(slices)


class Adapter(nn.Module):
    """W₂ GELU(W₁ z) through a bottleneck: (…, dim) -> (…, dim); zero until W₂ is trained.

    reduction: how many times narrower than dim the bottleneck is.
    """

    def __init__(self, dim: int, reduction: int = 4):
        super().__init__()
        checks.multiple(reduction, "the reduction of the adapter", dim=dim)
        self.down = nn.Linear(dim, dim // reduction)
        self.up = nn.Linear(dim // reduction, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(z)))


# ---- The factorised encoder


class ViViT(nn.Module):
    """Clips (b, num_frames, in_chans, *img_size) -> logits (b, num_classes).

    img_size: pixels, one number for a square or (height, width). num_classes: 0 leaves the
    classifier out; the output then is the class token (b, embed_dim). depth: blocks of the spatial
    encoder; temporal_depth: of the temporal one, 0 for a single encoder over all tubelets of a clip
    (the unfactorised model). drop_path_rate: of the spatial encoder's last block; it rises linearly
    from 0 in the first. Raises `ValueError` for arguments and clips that do not fit.
    """

    def __init__(
        self,
        num_frames: int = 32,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 400,
        tubelet_size: int = 2,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        temporal_depth: int = 4,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.integer(0, num_classes=num_classes, temporal_depth=temporal_depth)
        deit.check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.frozen = False
        self.embed = TubeletEmbed(
            num_frames, img_size, in_chans, tubelet_size, patch_size, embed_dim
        )
        t, h, w = self.embed.grid
        grid = (h, w) if temporal_depth else (t * h, w)
        self.spatial = Encoder(grid, embed_dim, depth, num_heads, mlp_ratio, drop_path_rate)
        self.temporal = None
        if temporal_depth:
            self.temporal = Encoder((1, t), embed_dim, temporal_depth, num_heads, mlp_ratio)
        self.adapter = None
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        if num_classes:
            nn.init.zeros_(self.head.weight)

    def forward_spatial(self, clips: Tensor) -> Tensor:
        """The class token of every slice, as the temporal encoder gets it: (b, t, embed_dim)."""
        if self.temporal is None:
            raise ValueError(
                "forward_spatial wants a factorised model; temporal_depth=0 has no slices"
            )
        return space_then_time(
            clips, self.embed, self.spatial, nn.Identity(), self.adapter, self.frozen
        )

    def forward_features(self, clips: Tensor) -> Tensor:
        """The class token after the last norm: (b, embed_dim)."""
        if self.temporal is None:
            return self.spatial(self.embed(clips).flatten(1, 2))
        return space_then_time(
            clips, self.embed, self.spatial, self.temporal, self.adapter, self.frozen
        )

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from the class token: (b, embed_dim) -> (b, num_classes)."""
        return self.head(x)

    def forward(self, clips: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(clips))

    def train(self, mode: bool = True) -> ViViT:
        """Training mode, but for what is frozen, which stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.embed.eval()
            self.spatial.eval()
        return self

    def fuse(self) -> ViViT:
        """A copy for inference, equal but for rounding (see `refimpl.deploy.vivit`)."""
        return deploy(self)


# ---- The first stage starts from an image model


@torch.no_grad()
def start_from_image(
    model: ViViT, image_model: deit.VisionTransformer, how: str = "central"
) -> ViViT:
    """In place: embedding and spatial encoder take the weights of a plain image ViT.

    how: of inflating the patch kernel. Positions are resized where the grid differs. The temporal
    encoder and the classifier are left alone. Returns the model.
    """
    ours = model.spatial
    theirs = image_model
    sizes = [("depth", len(ours.blocks), len(theirs.blocks))]
    sizes += [("embed_dim", ours.cls_token.shape[-1], theirs.cls_token.shape[-1])]
    for name, own, other in sizes:
        if own != other:
            raise ValueError(f"image_model has {name}={other}, the spatial encoder has {own}")
    if theirs.layout.prefix != 1 or not isinstance(theirs.pos_embed, nn.Parameter):
        raise ValueError("image_model must have learned positions and no distillation token")
    kernel = theirs.patch_embed.proj.weight
    model.embed.weight.copy_(inflate(kernel, model.embed.tubelet_size, how))
    model.embed.bias.copy_(theirs.patch_embed.proj.bias)
    state = {"cls_token": theirs.cls_token}
    state["pos_embed"] = resize_grid(theirs.pos_embed, theirs.layout.grid, model.embed.grid[1:])
    for name, tensor in theirs.state_dict().items():
        if ".qkv." in name:
            thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            state |= {name.replace("qkv", part): third for part, third in thirds}
        elif name.startswith(("blocks.", "norm.")):
            state[name.replace("attn.proj", "attn.out")] = tensor
    ours.load_state_dict(state)
    return model


# ---- The second stage


def with_frames(model: ViViT, num_frames: int) -> ViViT:
    """A copy for clips of another length: the same weights, temporal positions stretched."""
    checks.multiple(model.embed.tubelet_size, "the frames of a tubelet", num_frames=num_frames)
    if model.temporal is None:
        raise ValueError("with_frames wants a factorised model; temporal_depth=0 has no slices")
    longer = copy.deepcopy(model)
    slices = num_frames // model.embed.tubelet_size
    longer.embed.num_frames = num_frames
    longer.embed.grid = slices, *model.embed.grid[1:]
    longer.temporal.pos_embed = nn.Parameter(
        resize_time(model.temporal.pos_embed.detach(), slices),
        model.temporal.pos_embed.requires_grad,
    )
    for block in longer.temporal.blocks:
        block.attn.probe.layout = Layout((1, slices), prefix=1)
    return longer


def freeze_space(model: ViViT) -> ViViT:
    """In place: embedding and spatial encoder train no longer and store nothing; returns it."""
    if model.temporal is None:
        raise ValueError("freeze_space wants a factorised model; temporal_depth=0 has no time")
    model.frozen = True
    model.embed.requires_grad_(False)
    model.spatial.requires_grad_(False)
    return model.train(model.training)


def second_stage(
    model: ViViT, num_frames: int, adapter: bool = True, keep_time: bool = True
) -> ViViT:
    """The model that the second stage trains: a frozen copy for more frames.

    adapter: put one behind the spatial encoder; until it is trained it changes nothing. keep_time:
    start time and classifier from the first stage; without, as the constructor does.
    """
    longer = freeze_space(with_frames(model, num_frames))
    if adapter:
        longer.adapter = Adapter(model.spatial.cls_token.shape[-1])
    if not keep_time:
        restart(longer.temporal)
        restart(longer.head)
    return longer


@torch.no_grad()
def restart(part: nn.Module) -> None:
    """In place: an encoder or a classifier as the constructor starts them."""
    for module in part.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    part.apply(init_weights)
    if isinstance(part, Encoder):
        part.cls_token.zero_()
        part.pos_embed.normal_(std=0.02)
    elif isinstance(part, nn.Linear):
        part.weight.zero_()


def forward_macs(model: ViViT) -> dict[str, int]:
    """Multiply-adds of one clip's forward pass by part.

    Parts: "embedding", "spatial", "temporal", "adapter", "head".
    """
    t, h, w = model.embed.grid
    slices, tokens = (t, h * w) if model.temporal is not None else (1, t * h * w)
    return {
        "embedding": t * h * w * model.embed.weight.numel(),
        "spatial": slices * encoder_macs(model.spatial, tokens),
        "temporal": encoder_macs(model.temporal, t) if model.temporal is not None else 0,
        "adapter": t * linear_weights(model.adapter) if model.adapter is not None else 0,
        "head": linear_weights(model.head),
    }


def encoder_macs(encoder: Encoder, tokens: int) -> int:
    """Multiply-adds of an encoder for one sequence of so many tokens and a class token."""
    n = tokens + 1
    products = 2 * n**2 * encoder.cls_token.shape[-1]  # q kᵀ and A v
    return n * linear_weights(encoder) + len(encoder.blocks) * products


def linear_weights(part: nn.Module) -> int:
    """Entries of the matrices of linear layers."""
    layers = [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.weight.numel() for layer in layers)


def step_macs(model: ViViT) -> int:
    """Multiply-adds of one clip's training step, a backward pass counted as two forward ones."""
    macs = forward_macs(model)
    passes = dict.fromkeys(macs, 3)
    if model.frozen:
        passes |= {"embedding": 1, "spatial": 1}
    return sum(passes[part] * count for part, count in macs.items())


NAMES = video.NAMES  # official weights; `video.from_scenic` reads Flax's

LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
VARIANTS: dict[str, dict] = {
    "fe_b16x2_k400": {},
    "fe_l16x2_k400": LARGE | dict(temporal_depth=24),
    "fe_l16x2_k600": LARGE | dict(temporal_depth=24, num_classes=600),
    "fe_l16x2_ek100": LARGE | dict(num_classes=397),  # 300 nouns, then 97 verbs
    "fe_l16x2_ssv2": LARGE | dict(num_classes=174, img_size=256),
    "spacetime_b16x2_k400": dict(temporal_depth=0),
}
MODEL = ViViT
