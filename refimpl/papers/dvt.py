"""Denoising Vision Transformers (DVT).

Yang, Luo, Li, Deng, Guibas, Krishnan, Weinberger, Tian, Wang, ECCV 2024, arXiv 2401.02957.
Official code: Jiawei-Yang/Denoising-ViT @ 82704df9ba253c9696dcf3a8239434e3cbacf19d (MIT). Grid encoding: NVlabs/tiny-cuda-nn.

A ViT's feature map carries a pattern that belongs to the *position* in the input, not to what is seen there; a blank image shows it. DVT takes
it out after training. The feature y of patch position p, in a view that maps p to the place t(p) of the whole image, is modelled as

    y(p) = F(t(p)) + G(p) + h(y(p))

F, the semantics, depends only on where the patch lies in the image; G, the shared artifact, only on where it lies in the view; h is a small residual.
Stage 1 fits them to many crops of *one* image: the same place seen at different positions tells F from G. F on the whole image is the clean feature map.

    steps up to N/2:  ŷ = F + G            L = MSE(ŷ, y) + 1 − mean cos(ŷ, y)
    then:             ŷ = F + G + sg(h)    L = the same + 0.1 MSE(h, sg(y − F − G)) + 0.02 mean|h|      G frozen, sg: no gradient

Stage 2 trains one Transformer block to give F from y in one pass, for any image: MSE + 1 − mean cos.

F + c and G − c explain the data equally well: centre both over positions before comparing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl.bases.deit import Block, resample_positions
from refimpl.kernels.grid_encode import geometric_scales, grid_encode, table_rows
from refimpl.layers import Layout
from refimpl.weights import Rules

Listener = Callable[[int, dict[str, float]], None]  # step, losses


# ---- Views of one image


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def sample_crop(
    height: int,
    width: int,
    g: torch.Generator,
    area: tuple[float, float] = (0.1, 0.5),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """A random crop: share of the image's area uniform, aspect ratio log-uniform, mirrored every other time."""
    uniform = lambda low, high: torch.empty(()).uniform_(low, high, generator=g).item()  # noqa: E731
    flip = uniform(0, 1) < 0.5
    for _ in range(10):
        pixels, ratio = height * width * uniform(*area), math.exp(uniform(*map(math.log, aspect)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                int(torch.randint(0, free + 1, (), generator=g)) for free in (height - h, width - w)
            )
            return Crop(top, left, h, w, flip)
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side, flip)


def patch_coords(crop: Crop, image_size: tuple[int, int], patches: tuple[int, int]) -> Tensor:
    """Where in the image, (x, y) in [0, 1], the patches of a view lie: (rows, cols, 2).

    As in the official code the first and last patches sit on the crop's *edges*, not half a patch inside.
    """
    (height, width), (rows, cols) = image_size, patches
    y = torch.linspace(crop.top, crop.top + crop.height, rows) / height
    x = torch.linspace(crop.left, crop.left + crop.width, cols) / width
    return torch.stack(torch.meshgrid(x.flip(0) if crop.flip else x, y, indexing="xy"), -1)


def make_views(
    image: Tensor, num_views: int, patches: tuple[int, int], g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random views of an image (c, H, W), each resized to its size, and the whole image last.

    Returns images (num_views + 1, c, H, W) and patch coordinates (num_views + 1, rows, cols, 2).
    """
    if image.dim() != 3:
        raise ValueError(f"image must be (channels, height, width), got {tuple(image.shape)}")
    if num_views < 1:
        raise ValueError(f"num_views={num_views} must be at least 1")
    size = tuple(image.shape[1:])
    crops = [sample_crop(*size, g) for _ in range(num_views)]
    views = []
    for crop in crops:
        view = image[None, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        view = F.interpolate(view, size, mode="bicubic", antialias=True, align_corners=False)[0]
        views.append(view.flip(-1) if crop.flip else view)
    whole = Crop(0, 0, *size)
    return torch.stack([*views, image]), torch.stack(
        [patch_coords(crop, size, patches) for crop in [*crops, whole]]
    )


# ---- Stage 1: one image at a time


class NeuralField(nn.Module):
    """F: a place (x, y) of the image in [0, 1]² -> features, (…, 2) -> (…, feat_dim). Multi-resolution grids, then two linear layers."""

    def __init__(
        self,
        feat_dim: int,
        num_levels: int = 16,
        features_per_level: int = 8,
        base_resolution: int = 16,
        max_resolution: int = 1024,
        max_entries: int = 2**20,
    ):
        super().__init__()
        self.scales, self.max_entries = (
            geometric_scales(num_levels, base_resolution, max_resolution),
            max_entries,
        )
        self.table = nn.Parameter(
            torch.empty(table_rows(self.scales, max_entries), features_per_level).uniform_(
                -1e-4, 1e-4
            )
        )
        self.mlp = nn.Sequential(
            nn.Linear(num_levels * features_per_level, feat_dim // 2),
            nn.ReLU(),
            nn.Linear(feat_dim // 2, feat_dim),
        )

    def forward(self, coords: Tensor) -> Tensor:
        encoded = grid_encode(coords.reshape(-1, 2), self.table, self.scales, self.max_entries)
        return self.mlp(encoded).view(*coords.shape[:-1], -1)


class ArtifactModel(nn.Module):
    """G and h: what a feature owes to its position in the view, and the small rest that depends on the feature itself."""

    def __init__(self, feat_dim: int, noise_map_height: int, noise_map_width: int):
        super().__init__()
        if min(noise_map_height, noise_map_width) < 1 or feat_dim < 4:
            raise ValueError(
                f"noise map {noise_map_height}×{noise_map_width} and feat_dim={feat_dim}: wanted at least 1×1 and 4"
            )
        self.shared_artifacts = nn.Parameter(
            0.02 * torch.randn(1, feat_dim, noise_map_height, noise_map_width)
        )  # G
        quarter = feat_dim // 4
        layers = (
            nn.Linear(feat_dim, quarter),
            nn.ReLU(),
            nn.Linear(quarter, quarter),
            nn.ReLU(),
            nn.Linear(quarter, feat_dim),
        )
        self.residual_predictor = nn.Sequential(*layers)  # h

    def artifact(self, coords: Tensor) -> Tensor:
        """G at (x, y) in [−1, 1]², −1 and 1 being the outer patches: (n, 2) -> (n, c)."""
        sampled = F.grid_sample(
            self.shared_artifacts, coords[None, None], mode="bilinear", align_corners=True
        )
        return rearrange(sampled, "1 c 1 n -> n c")

    def artifact_map(self) -> Tensor:
        """G as a feature map: (1, h, w, c)."""
        return rearrange(self.shared_artifacts, "1 c h w -> 1 h w c")

    def decompose(self, raw: Tensor, field: Tensor) -> dict[str, Tensor]:
        """Every part on the full grid, for raw features and F of shape (1, h, w, c). `field` itself is what DVT keeps, not raw − G − h."""
        artifact, residual = self.artifact_map(), self.residual_predictor(raw)
        return dict(
            field=field,
            artifact=artifact,
            residual=residual,
            predicted=field + artifact + residual,
            subtracted=raw - artifact - residual,
        )


def artifact_coords(patches: tuple[int, int]) -> Tensor:
    """Where in the view, (x, y) in [−1, 1], its patches lie: (rows, cols, 2)."""
    y, x = (torch.linspace(-1, 1, n) for n in patches)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def fitting_loss(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Squared error and cosine distance of features (…, c), each averaged over patches."""
    l2, cosine = (
        F.mse_loss(predicted, target),
        1 - F.cosine_similarity(predicted, target, dim=-1).mean(),
    )
    return dict(patch_l2_loss=l2, cosine_similarity_loss=cosine, loss=l2 + cosine)


def stage1_loss(
    raw: Tensor, field: Tensor, artifact: Tensor, residual: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms and their sum, all (n, c). `residual` = h(raw) is given in the second phase.

    The target of h and h inside the prediction are detached: no gradient passes between h and the other two.
    """
    if residual is None:
        return fitting_loss(field + artifact, raw)
    losses = fitting_loss(field + artifact + residual.detach(), raw)
    losses["residual_loss"] = 0.1 * F.mse_loss(residual, (raw - field - artifact).detach())
    losses["residual_sparsity_loss"] = 0.02 * residual.abs().mean()
    return losses | dict(
        loss=losses["loss"] + losses["residual_loss"] + losses["residual_sparsity_loss"]
    )


def stage1_lr(
    step: int, num_steps: int = 25000, warmup: int = 2500, lr: float = 0.01, min_lr: float = 0.001
) -> float:
    """Linear warm-up from 0, then a half cosine down to `min_lr`."""
    if step < warmup:
        return lr * step / warmup
    return min_lr + (lr - min_lr) * 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))
    )


def fit_image(
    raw: Tensor,
    coords: Tensor,
    num_steps: int = 25000,
    points: int = 2048,
    g: torch.Generator | None = None,
    lr: float = 0.01,
    artifacts: bool = True,
    field: dict | None = None,
    on_step: Listener | None = None,
) -> tuple[NeuralField, ArtifactModel]:
    """Stage 1: fit F, G and h to the features of many views of one image.

    raw: (views, h, w, c) features, coords: (views, h, w, 2) from `make_views`. `artifacts=False` holds G at zero: what several views alone
    achieve (`disable_pe` in the official code). `field`: sizes of the grids; `lr`: peak of the learning rate.
    The official code scales the loss by 2^10 without scaling back, which Adam undoes but for a weaker weight decay; left out here.
    """
    if raw.shape[:-1] != coords.shape[:-1] or coords.shape[-1] != 2:
        raise ValueError(
            f"raw {tuple(raw.shape)} and coords {tuple(coords.shape)}: wanted (views, h, w, c) and (views, h, w, 2)"
        )
    if num_steps < 2 or points < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 2 and points={points} at least 1")
    _, rows, cols, dim = raw.shape
    f, noise = (
        NeuralField(dim, **field or {}).to(raw.device),
        ArtifactModel(dim, rows, cols).to(raw.device),
    )
    noise.shared_artifacts.requires_grad_(artifacts)
    if not artifacts:
        nn.init.zeros_(noise.shared_artifacts)
    places = artifact_coords((rows, cols)).to(raw).expand(len(raw), -1, -1, -1).reshape(-1, 2)
    flat, coords = raw.reshape(-1, dim), coords.reshape(-1, 2).to(raw)
    optimizer = torch.optim.Adam(
        [*f.parameters(), *noise.parameters()],
        betas=(0.9, 0.99),
        eps=1e-15,
        weight_decay=1e-5,
        fused=True,
    )
    for step in range(num_steps):
        second = step > num_steps // 2
        if second:
            noise.shared_artifacts.requires_grad_(False).grad = None
        pick = torch.randint(len(flat), (points,), generator=g).to(raw.device)
        residual = noise.residual_predictor(flat[pick]) if second else None
        losses = stage1_loss(flat[pick], f(coords[pick]), noise.artifact(places[pick]), residual)
        update(
            optimizer,
            losses["loss"],
            stage1_lr(step, num_steps, max(num_steps // 10, 1), lr, lr / 10),
        )
        if on_step:
            on_step(step, {name: value.item() for name, value in losses.items()})
    return f.eval(), noise.eval()


# ---- Stage 2: one block for every image


class Denoiser(nn.Module):
    """Raw features -> clean features, (b, h, w, feat_dim) -> the same shape: a position embedding and a Transformer block, no final norm.

    Patch tokens only. The embedding belongs to a grid of noise_map_height × noise_map_width and is resampled to other grids.
    """

    def __init__(
        self,
        feat_dim: int = 768,
        noise_map_height: int = 37,
        noise_map_width: int = 37,
        num_blocks: int = 1,
        enable_pe: bool = True,
    ):
        super().__init__()
        if feat_dim < 64 or feat_dim % 64:
            raise ValueError(f"feat_dim={feat_dim} must be a multiple of 64, the width of a head")
        if min(noise_map_height, noise_map_width, num_blocks) < 1:
            raise ValueError(
                f"noise map {noise_map_height}×{noise_map_width} and num_blocks={num_blocks}: all must be at least 1"
            )
        self.grid = noise_map_height, noise_map_width
        self.pos_embed = (
            nn.Parameter(0.02 * torch.randn(1, noise_map_height * noise_map_width, feat_dim))
            if enable_pe
            else None
        )
        self.blocks = nn.ModuleList(
            Block(feat_dim, feat_dim // 64, layout=Layout(self.grid)) for _ in range(num_blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.forward_features(features)

    def forward_features(self, features: Tensor) -> Tensor:
        dim = self.blocks[0].norm1.normalized_shape[0]
        if features.dim() != 4 or features.shape[-1] != dim:
            raise ValueError(f"features must be (b, h, w, {dim}), got {tuple(features.shape)}")
        grid = tuple(features.shape[1:3])
        x = rearrange(features, "b h w c -> b (h w) c")
        if self.pos_embed is not None:
            x = x + resample_positions(self.pos_embed, self.grid, grid)
        for block in self.blocks:
            x = block(x)
        return rearrange(x, "b (h w) c -> b h w c", h=grid[0])


def stage2_lr(
    step: int, base: float, final: float = 1e-6, num_steps: int = 50000, warmup: int | None = None
) -> float:
    """Linear warm-up from 0 to `base` over `warmup` steps (15 % of all by default), then a half cosine that would reach `final` at `num_steps`."""
    warmup = int(0.15 * num_steps) if warmup is None else warmup
    if step >= num_steps:
        return final
    if step < warmup:
        return base * step / max(warmup - 1, 1)
    return final + (base - final) * 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))
    )


def fit_denoiser(
    denoiser: Denoiser,
    raw: Tensor,
    clean: Tensor,
    num_steps: int = 50000,
    batch_size: int = 128,
    lr: float | None = None,
    g: torch.Generator | None = None,
    on_step: Listener | None = None,
) -> Denoiser:
    """Stage 2: train the denoiser on pairs (n, h, w, c) of raw features and F. `lr` defaults to the official 2e-4 √(batch_size/256)."""
    if raw.shape != clean.shape:
        raise ValueError(
            f"raw {tuple(raw.shape)} and clean {tuple(clean.shape)} must have one shape"
        )
    lr = 2e-4 * math.sqrt(batch_size / 256) if lr is None else lr
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), betas=(0.9, 0.999), weight_decay=1e-5, fused=True
    )
    denoiser.train()
    for step, pick in zip(range(num_steps), batches(len(raw), batch_size, g), strict=False):
        losses = fitting_loss(denoiser(raw[pick]), clean[pick])
        update(optimizer, losses["loss"], stage2_lr(step, lr, num_steps=num_steps))
        if on_step:
            on_step(step, {name: value.item() for name, value in losses.items()})
    return denoiser.eval()


def batches(n: int, batch_size: int, g: torch.Generator | None) -> Iterator[Tensor]:
    """Shuffled indices without end; every epoch visits each item once."""
    while True:
        yield from torch.randperm(n, generator=g).split(min(batch_size, n))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# Width of the ViT whose features are cleaned, at 518 pixels and patch 14 (37 × 37 patches).
VARIANTS: dict[str, dict] = {
    "denoiser_small": dict(feat_dim=384),
    "denoiser_base": dict(feat_dim=768),
    "denoiser_large": dict(feat_dim=1024),
    "denoiser_giant": dict(feat_dim=1536),
}
MODEL = Denoiser
NAMES: dict[str, Rules] = {
    "official": [
        (r"^vit\.", None),
        (r"^denoiser\.(?!\d)", "blocks.0."),  # a single block has no number
        (r"^denoiser\.", "blocks."),
    ]
}
