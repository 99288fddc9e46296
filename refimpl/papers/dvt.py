"""Denoising Vision Transformers (DVT).

Yang, Luo, Li, Deng, Guibas, Krishnan, Weinberger, Tian, Wang, ECCV 2024, arXiv 2401.02957.
Official code: Jiawei-Yang/Denoising-ViT @ 82704df9ba253c9696dcf3a8239434e3cbacf19d (MIT). Grid
encoding: NVlabs/tiny-cuda-nn.

A ViT's feature map carries a pattern that belongs to the *position* in the input, not to what is
seen there; a blank image shows it. DVT takes it out after training. The feature y of patch position
p, in a view that maps p to the place t(p) of the whole image, is modelled as

    y(p) = F(t(p)) + G(p) + h(y(p))

F, the semantics, depends only on where the patch lies in the image; G, the shared artifact, only
on where it lies in the view; h is a small residual. Stage 1 fits them to many crops of *one* image:
the same place seen at different positions tells F from G. F on the whole image is what is kept.

    steps up to N/2:  ŷ = F + G            L = MSE(ŷ, y) + 1 − mean cos(ŷ, y)
    then:             ŷ = F + G + sg(h)    L = the same + 0.1 MSE(h, sg(y − F − G)) + 0.02 mean|h|

In the second half G is frozen; sg lets no gradient through. As h sees y, it could fit y alone and
leave F nothing to say: so it joins late, and never pulls at F. Stage 2 trains one Transformer block
to give F from y in one pass, for any image: MSE + 1 − mean cos. A step of stage 1 looks up n points
in L grids of f features, 8 n L f operations; stage 2 costs a layer, 12 N C² + 2 N² C multiply-adds.

F + c and G − c explain the data equally well: centre both over positions before comparing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.crops import Crop, sample_crop
from refimpl.bases.deit import Block, resample_positions
from refimpl.deploy import deploy
from refimpl.kernels.grid_encode import geometric_scales, grid_encode, table_rows
from refimpl.layers import Layout
from refimpl.weights import Rules

Listener = Callable[[int, dict[str, float]], None]  # step, losses


def stage1_loss(
    raw: Tensor, field: Tensor, artifact: Tensor, residual: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of stage 1's loss and their sum, `loss`; y, F, G and h of n patches: (n, c) each.

    residual: h(y), given in the second half of the steps. Its target, and h inside the prediction,
    are detached: no gradient passes between h and the other two.
    """
    if residual is None:
        return fitting_loss(field + artifact, raw)  # ŷ = F + G
    losses = fitting_loss(field + artifact + residual.detach(), raw)  # ŷ = F + G + sg(h)
    rest = (raw - field - artifact).detach()  # sg(y − F − G)
    losses["residual_loss"] = 0.1 * F.mse_loss(residual, rest)
    losses["residual_sparsity_loss"] = 0.02 * residual.abs().mean()
    losses["loss"] = losses["loss"] + losses["residual_loss"] + losses["residual_sparsity_loss"]
    return losses


def fitting_loss(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Squared error and cosine distance of features (…, c), each averaged over patches."""
    squared = F.mse_loss(predicted, target)
    cosine = 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
    return dict(patch_l2_loss=squared, cosine_similarity_loss=cosine, loss=squared + cosine)


# ---- Views of one image


def patch_coords(crop: Crop, image_size: tuple[int, int], patches: tuple[int, int]) -> Tensor:
    """Where in the image, (x, y) in [0, 1], the patches of a view lie: (rows, cols, 2).

    As in the official code the first and last patches sit on the crop's *edges*, not half a patch
    inside.
    """
    height, width = image_size
    rows, cols = patches
    y = torch.linspace(crop.top, crop.top + crop.height, rows) / height
    x = torch.linspace(crop.left, crop.left + crop.width, cols) / width
    if crop.flip:
        x = x.flip(0)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def make_views(
    image: Tensor, num_views: int, patches: tuple[int, int], g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random views of an image (c, H, W), each resized to its size, and the whole image last.

    Returns images (num_views + 1, c, H, W) and patch coordinates (num_views + 1, rows, cols, 2).
    """
    if image.dim() != 3:
        raise ValueError(f"image must be (channels, height, width), got {tuple(image.shape)}")
    checks.at_least(1, num_views=num_views)
    size = tuple(image.shape[1:])
    views, coords = [], []
    for _ in range(num_views):
        crop = sample_crop(*size, g)
        rows = slice(crop.top, crop.top + crop.height)
        cols = slice(crop.left, crop.left + crop.width)
        view = F.interpolate(image[None, :, rows, cols], size, mode="bicubic", antialias=True)[0]
        views.append(view.flip(-1) if crop.flip else view)
        coords.append(patch_coords(crop, size, patches))
    views.append(image)
    coords.append(patch_coords(Crop(0, 0, *size), size, patches))
    return torch.stack(views), torch.stack(coords)


# ---- Stage 1: one image at a time


class NeuralField(nn.Module):
    """F: a place (x, y) of the image in [0, 1]² -> its features, (…, 2) -> (…, feat_dim).

    Grids of `num_levels` resolutions, from base to max_resolution, then two linear layers.
    max_entries: rows of a level's table at most; a finer grid shares them.
    """

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
        self.scales = geometric_scales(num_levels, base_resolution, max_resolution)
        self.max_entries = max_entries
        table = torch.empty(table_rows(self.scales, max_entries), features_per_level)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4))
        self.mlp = nn.Sequential(
            nn.Linear(num_levels * features_per_level, feat_dim // 2),
            nn.ReLU(),
            nn.Linear(feat_dim // 2, feat_dim),
        )

    def forward(self, coords: Tensor) -> Tensor:
        encoded = grid_encode(coords.reshape(-1, 2), self.table, self.scales, self.max_entries)
        return self.mlp(encoded).view(*coords.shape[:-1], -1)


class ArtifactModel(nn.Module):
    """G and h: what a feature owes to its position in the view, and what to itself alone.

    shared_artifacts: G, (1, feat_dim, noise_map_height, noise_map_width); residual_predictor: h,
    (…, feat_dim) -> (…, feat_dim).
    """

    def __init__(self, feat_dim: int, noise_map_height: int, noise_map_width: int):
        super().__init__()
        checks.at_least(4, feat_dim=feat_dim)
        checks.at_least(1, noise_map_height=noise_map_height, noise_map_width=noise_map_width)
        g = torch.randn(1, feat_dim, noise_map_height, noise_map_width)
        self.shared_artifacts = nn.Parameter(0.02 * g)
        quarter = feat_dim // 4
        self.residual_predictor = nn.Sequential(
            nn.Linear(feat_dim, quarter),
            nn.ReLU(),
            nn.Linear(quarter, quarter),
            nn.ReLU(),
            nn.Linear(quarter, feat_dim),
        )

    def artifact(self, coords: Tensor) -> Tensor:
        """G at (x, y) in [−1, 1]², −1 and 1 being the outer patches: (n, 2) -> (n, c)."""
        sampled = F.grid_sample(self.shared_artifacts, coords[None, None], align_corners=True)
        return rearrange(sampled, "1 c 1 n -> n c")

    def artifact_map(self) -> Tensor:
        """G as a feature map: (1, h, w, c)."""
        return rearrange(self.shared_artifacts, "1 c h w -> 1 h w c")

    def decompose(self, raw: Tensor, field: Tensor) -> dict[str, Tensor]:
        """Every part on the full grid, for raw features y and F of shape (1, h, w, c).

        The official code gives both maps: `field` is what DVT keeps, not `subtracted`.
        """
        artifact = self.artifact_map()
        residual = self.residual_predictor(raw)
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
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


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

    raw: features (views, h, w, c); coords: (views, h, w, 2) from `make_views`; points: patches
    drawn per step; lr: peak of the learning rate; artifacts: `False` holds G at zero, which shows
    what several views alone achieve (officially `disable_pe`); field: arguments of `NeuralField`.
    The official code scales the loss by 2^10, which Adam undoes but for a weaker weight decay.
    """
    if raw.shape[:-1] != coords.shape[:-1] or coords.shape[-1] != 2:
        raise ValueError(
            f"raw {tuple(raw.shape)} and coords {tuple(coords.shape)}: wanted (views, h, w, c) and"
            " (views, h, w, 2)"
        )
    checks.at_least(2, num_steps=num_steps)
    checks.at_least(1, points=points)
    views, rows, cols, dim = raw.shape
    semantics = NeuralField(dim, **(field or {})).to(raw.device)  # F
    noise = ArtifactModel(dim, rows, cols).to(raw.device)  # G and h
    noise.shared_artifacts.requires_grad_(artifacts)
    if not artifacts:
        nn.init.zeros_(noise.shared_artifacts)
    targets = raw.reshape(-1, dim)  # of every patch of every view: (n, c)
    coords = coords.reshape(-1, 2).to(raw)
    positions = artifact_coords((rows, cols)).to(raw).reshape(-1, 2).repeat(views, 1)
    parameters = [*semantics.parameters(), *noise.parameters()]
    optimizer = torch.optim.Adam(
        parameters, betas=(0.9, 0.99), eps=1e-15, weight_decay=1e-5, fused=True
    )
    for step in range(num_steps):
        second_half = step > num_steps // 2
        if second_half:
            noise.shared_artifacts.requires_grad_(False).grad = None
        pick = torch.randint(len(targets), (points,), generator=g).to(raw.device)
        residual = noise.residual_predictor(targets[pick]) if second_half else None
        artifact = noise.artifact(positions[pick])
        losses = stage1_loss(targets[pick], semantics(coords[pick]), artifact, residual)
        rate = stage1_lr(step, num_steps, max(num_steps // 10, 1), lr, lr / 10)
        update(optimizer, losses["loss"], rate)
        if on_step:
            on_step(step, {name: value.item() for name, value in losses.items()})
    return semantics.eval(), noise.eval()


# ---- Stage 2: one block for every image


class Denoiser(nn.Module):
    """Raw features -> clean features: (b, h, w, feat_dim) -> the same shape.

    A position embedding (if enable_pe) and Transformer blocks, no final norm; patch tokens only.
    The embedding belongs to noise_map_height × noise_map_width and is resampled to other grids.
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
        checks.multiple(64, "the width of a head", feat_dim=feat_dim)
        checks.at_least(1, noise_map_height=noise_map_height, noise_map_width=noise_map_width)
        checks.at_least(1, num_blocks=num_blocks)
        self.feat_dim = feat_dim
        self.grid = noise_map_height, noise_map_width
        table = 0.02 * torch.randn(1, noise_map_height * noise_map_width, feat_dim)
        self.pos_embed = nn.Parameter(table) if enable_pe else None
        self.blocks = nn.ModuleList(
            Block(feat_dim, feat_dim // 64, layout=Layout(self.grid)) for _ in range(num_blocks)
        )

    def forward_features(self, features: Tensor) -> Tensor:
        """Clean features: (b, h, w, feat_dim) -> (b, h, w, feat_dim)."""
        checks.shapes({"features": f"b h w {self.feat_dim}"}, features=features)
        checks.floating(features=features)
        rows, cols = features.shape[1:3]
        x = rearrange(features, "b h w c -> b (h w) c")
        if self.pos_embed is not None:
            x = x + resample_positions(self.pos_embed, self.grid, (rows, cols))
        for block in self.blocks:
            x = block(x)
        return rearrange(x, "b (h w) c -> b h w c", h=rows)

    def forward_head(self, features: Tensor) -> Tensor:
        """The features themselves: a denoiser has no classifier."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(features))

    def fuse(self) -> Denoiser:
        """A copy for inference: nothing to fold, but weights column-major."""
        return deploy(self)


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
    """Stage 2: train the denoiser on pairs of raw features and F, (n, h, w, c) each.

    lr: peak of the learning rate, by default the official 2e-4 √(batch_size / 256).
    """
    if raw.shape != clean.shape:
        raise ValueError(
            f"raw {tuple(raw.shape)} and clean {tuple(clean.shape)} must have one shape"
        )
    lr = 2e-4 * math.sqrt(batch_size / 256) if lr is None else lr
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), betas=(0.9, 0.999), weight_decay=1e-5, fused=True
    )
    denoiser.train()
    epoch = math.ceil(len(raw) / batch_size)  # in steps
    for step in range(num_steps):
        if step % epoch == 0:
            batches = torch.randperm(len(raw), generator=g).split(batch_size)
        pick = batches[step % epoch]
        losses = fitting_loss(denoiser(raw[pick]), clean[pick])
        update(optimizer, losses["loss"], stage2_lr(step, lr, num_steps=num_steps))
        if on_step:
            on_step(step, {name: value.item() for name, value in losses.items()})
    return denoiser.eval()


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """One step of the optimizer at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def stage1_lr(
    step: int, num_steps: int = 25000, warmup: int = 2500, lr: float = 0.01, min_lr: float = 0.001
) -> float:
    """Linear warm-up from 0 to `lr` over `warmup` steps, then a half cosine down to `min_lr`."""
    if step < warmup:
        return lr * step / warmup
    return half_cosine((step - warmup) / (num_steps - warmup), lr, min_lr)


def stage2_lr(
    step: int, base: float, final: float = 1e-6, num_steps: int = 50000, warmup: int | None = None
) -> float:
    """Linear warm-up from 0 to `base`, then a half cosine that would reach `final` at `num_steps`.

    warmup: in steps, by default 15 % of all.
    """
    warmup = int(0.15 * num_steps) if warmup is None else warmup
    if step >= num_steps:
        return final
    if step < warmup:
        return base * step / max(warmup - 1, 1)
    return half_cosine((step - warmup) / (num_steps - warmup), base, final)


def half_cosine(progress: float, high: float, low: float) -> float:
    """From `high` at 0 to `low` at 1."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))


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
