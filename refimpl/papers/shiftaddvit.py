"""ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer.

You, Shi, Guo, Lin, NeurIPS 2023, arXiv 2306.06446. Official code: GATECH-EIC/ShiftAddViT, commit
47671cf011ad0211b9f6d476dd443157687b63c1 (Apache-2.0; no weights were published).

The idea
    1. A multiplication costs more energy than an addition or a shift of bits.
    2. Queries and keys become codes of zeros and ones, so attention's products are masked sums.
    3. A linear layer's weights become signed powers of two, so its products are shifts.
    4. Shifts are less exact, so a router sends each token to one of two experts: multiply or shift.
    5. A loss balances the two by their latency: the faster expert shall get more tokens.

With codes C in {0, 1} and values v of n tokens, per head:
    attention   o = v/2 + C_q (C_kᵀ v)/π;  o/‖o‖ + a filter of nine tokens over v
    shift       W = 2^round(e) · sign(round(s)),  e in [−14, 0]
    mixture     p = softmax(ℓ), i = argmax p,  y = p_i E_i(x);  ℓ = W_g x + b, + noise in training
    balance     λ (CV²(α ⊙ Σ p) + CV²(α ⊙ Σ r)), α_i = latency_i / Σ latency, r_i the probability
                that expert i stays chosen under fresh noise; CV² = variance / mean²
Cost per head: 2 n · bits · d additions where softmax has 2 n² d products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deepshift import ShiftLinear, straight_through
from refimpl.bases.pvt import PVTv2, ReducedAttention, SoftmaxAttention
from refimpl.layers import Probe
from refimpl.weights import Rules

NOISE = 0.5  # standard deviation of the router's noise: 1 / number of experts


def mixture(x: Tensor, logits: Tensor, experts: Sequence, weighted: bool = True) -> Tensor:
    """Each token by one of two experts: x (…, d), logits (…, 2) -> (…, out).

    weighted: times the chosen expert's probability, as in the paper; else as the released code.
    """
    probabilities = logits.softmax(-1)  # p (…, 2)
    gate, chosen = probabilities.max(-1, keepdim=True)  # p_i and i (…, 1)
    multiplied, shifted = (expert(x) for expert in experts)  # both, so that any batch is one graph
    y = torch.where(chosen == 0, multiplied, shifted)  # E_i(x) (…, out)
    return gate * y if weighted else y  # without the gate no gradient reaches the router


def add_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention over codes: two of (b, heads, n, bits) in {0, 1}, (b, heads, n, d) -> as values."""
    context = keys.mT @ values  # C_kᵀ v: row j is the sum of the values whose key has bit j
    read = values / 2 + queries @ context / math.pi  # again sums: of the rows at a query's bits
    return read / read.norm(dim=-1, keepdim=True)


def code_map(queries: Tensor, keys: Tensor) -> Tensor:
    """The map A of attention over codes: two of (b, heads, n, bits) -> (b, heads, n, n).

    ½ on the diagonal and the number of common bits over π, rows scaled to sum 1; `add_attention`
    gives A values, scaled to length 1.
    """
    common = queries @ keys.mT / math.pi
    weights = common + torch.eye(common.shape[-1]).to(common) / 2
    return weights / weights.sum(-1, keepdim=True)


def threshold_codes(x: Tensor) -> Tensor:
    """[x̂ > mean x̂] of unit vectors x̂: (b, heads, n, d) -> the same shape, 0 or 1.

    The mean is the whole tensor's, batch included, as in the released code. Gradient: of x̂ clamped
    to [0, 1].
    """
    unit = F.normalize(x, dim=-1, eps=0)
    return straight_through((unit > unit.mean()).to(x.dtype), unit.clamp(0, 1))


def kernels_to_anchors(unit: Tensor, anchors: Tensor) -> Tensor:
    """exp(−D/2σ), D the squared distances: (b, heads, n, d), (1, heads, m, d) -> (b, heads, n, m).

    σ is the mean of D over tokens and anchors, per image and head.
    """
    distances = (unit[..., :, None, :] - anchors[..., None, :, :]).square().sum(-1)
    return (-distances / (2 * distances.mean((-1, -2), keepdim=True))).exp()


def hash_codes(unit: Tensor, anchors: Tensor, centre: Tensor, projection: Tensor) -> Tensor:
    """Kernelised hashing: unit (b, heads, n, d) -> codes (b, heads, n, bits), 0 or 1.

    anchors: (1, heads, m, d); centre: (1, heads, 1, m), taken off the kernels; projection: A
    (heads, bits, m). Gradient: where 0 < y < 1 for the projected y.
    """
    y = (kernels_to_anchors(unit, anchors) - centre) @ projection.mT
    return straight_through((y > 0).to(y.dtype), y.clamp(0, 1))


def fit_projection(kernels: Tensor, similar: Tensor, bits: int = 16, seed: int = 0) -> Tensor:
    """A of one head, bit by bit, so that codes of similar tokens agree: -> (bits, m).

    kernels: (n, m), centred; similar: S (n, n), +1 for alike pairs, −1 for unlike ones, else 0.
    Each bit maximises yᵀ S y with y = 2 sigmoid(κ a) − 1 (100 steps of SGD) from random signs, is
    kept where its signs did better than at the start, and its yᵀ y is taken off the rest of S.
    """
    generator = torch.Generator().manual_seed(seed)
    residue = bits * similar
    rows = []
    for _ in range(bits):
        start = torch.randn(kernels.shape[1], generator=generator).to(kernels)
        row = start.clone().requires_grad_()
        optimiser = torch.optim.SGD([row], 5e-4, momentum=0.9, nesterov=True)
        for _ in range(100):
            soft = 2 * torch.sigmoid(kernels @ row) - 1
            loss = -(soft @ residue @ soft) / (len(kernels) * bits)
            (row.grad,) = torch.autograd.grad(loss, row)
            optimiser.step()
        signs = [torch.where(kernels @ a.detach() > 0, 1.0, -1.0) for a in (start, row)]
        better = int(signs[1] @ residue @ signs[1] > signs[0] @ residue @ signs[0])
        rows.append((start, row.detach())[better])
        residue = residue - torch.outer(signs[better], signs[better])
    return torch.stack(rows)


class Router(nn.Linear):
    """Logits of the two experts: (…, d) -> clean and, in training, noisy: (2, …, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        clean = super().forward(x)
        noisy = clean + NOISE * torch.randn_like(clean) if self.training else clean
        return torch.stack([clean, noisy])


class MixtureLinear(nn.Module):
    """A linear layer twice, by products and by shifts, and a router: (…, in) -> (…, out)."""

    def __init__(self, in_features: int, out_features: int, weighted: bool = False):
        super().__init__()
        self.weighted = weighted
        self.router = Router(in_features, 2)
        dense = nn.Linear(in_features, out_features)
        self.experts = nn.ModuleList([dense, ShiftLinear(in_features, out_features)])

    def forward(self, x: Tensor) -> Tensor:
        _, logits = self.router(x)
        return mixture(x, logits, self.experts, self.weighted)


def stay_probability(clean: Tensor, noisy: Tensor, noise: float = NOISE) -> Tensor:
    """r_i: that expert i would be chosen with fresh noise of its own: two of (…, 2) -> (…, 2).

    It must beat the other one's noisy logit. (The released code compares with probabilities.)
    """
    return torch.special.ndtr((clean - noisy.flip(-1)) / noise)


def variation(x: Tensor) -> Tensor:
    """CV²: unbiased variance over squared mean, 0 where all are equal: (k,) -> scalar."""
    return x.var() / (x.mean().square() + 1e-10)


def balance_loss(clean: Tensor, noisy: Tensor, latencies: Sequence[float] = (6, 4)) -> Tensor:
    """CV²(α Σ p) + CV²(α Σ r), to be multiplied by λ: logits of tokens, two of (…, 2) -> scalar.

    latencies: of the multiplying and the shifting expert, in any unit.
    """
    checks.positive(multiplying=latencies[0], shifting=latencies[1])
    alpha = torch.tensor(latencies, dtype=clean.dtype, device=clean.device)
    importance = alpha * clean.softmax(-1).flatten(0, -2).sum(0)
    load = alpha * stay_probability(clean, noisy).flatten(0, -2).sum(0)
    return variation(importance) + variation(load)


@contextmanager
def routes(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list of what every router says while the context lasts: (2, b, n, 2), clean and noisy.

    model: any module that holds routers, in order of their calls; without one the list stays empty.
    """
    found: list[Tensor] = []
    handles = [
        part.register_forward_hook(lambda module, args, logits: found.append(logits))
        for part in model.modules()
        if isinstance(part, Router)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mixture_loss(model: nn.Module, images: Tensor, labels: Tensor, balance: float = 0.01) -> Tensor:
    """Cross-entropy + λ · the mean balance loss of all routers: -> scalar.

    model: images (b, …) -> logits (b, classes), with routers in it (`moe=True` or `with_experts`);
    labels: (b,); balance: λ. Raises `ValueError` where there is no router.
    """
    checks.at_least(0, balance=balance)
    with routes(model) as found:
        loss = F.cross_entropy(model(images), labels)
    if not found:
        raise ValueError(f"this {type(model).__name__} has no routers: build it with moe=True")
    return loss + balance * torch.stack([balance_loss(*logits) for logits in found]).mean()


def with_experts(model: nn.Module) -> nn.Module:
    """A copy whose blocks' linear layers are mixtures; both experts start from the dense weights.

    model: a trained `ShiftAddViT` with attention "hash" or another and without experts. The last
    stage's attention stays dense, as in the paper.
    """
    mixed = copy.deepcopy(model)
    for name, layer in list(mixed.named_modules()):
        parent = mixed.get_submodule(name.rpartition(".")[0])
        inside = name.startswith("stages") and not isinstance(parent, SoftmaxAttention)
        if inside and isinstance(layer, nn.Linear):
            made = MixtureLinear(layer.in_features, layer.out_features, weighted=True)
            made.experts[0] = layer
            made.experts[1].copy_dense(layer)
            setattr(parent, name.rpartition(".")[2], made.to(layer.weight))
    return mixed


class TokenFilter(nn.Conv2d):
    """A filter of nine neighbouring tokens per head: (b, heads, n, d) -> the same shape."""

    def __init__(self, num_heads: int):
        super().__init__(num_heads, num_heads, (9, 1), padding=(4, 0), groups=num_heads, bias=False)


class ThresholdAttention(nn.Module):
    """Attention over codes by a threshold, as many bits as channels: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.probe = Probe()
        self.dconv = TokenFilter(num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        queries, keys = threshold_codes(q), threshold_codes(k)
        self.probe(lambda: code_map(queries, keys), grid)
        y = add_attention(queries, keys, v) + self.dconv(v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class HashAttention(nn.Module):
    """Attention over hashed codes that queries and keys share: (b, n, dim) -> (b, n, dim).

    linear: makes the linear layers, dense or mixtures. `fit` makes anchors and projection.
    """

    def __init__(self, dim: int, num_heads: int, linear, bits: int = 16, anchors: int = 25):
        super().__init__()
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.register_buffer("projection", torch.randn(num_heads, bits, anchors))
        self.register_buffer("centre", torch.full((1, num_heads, 1, anchors), 0.6))
        unit = F.normalize(torch.randn(1, num_heads, anchors, head_dim), dim=-1)
        self.register_buffer("anchors", unit)
        self.to_qk = linear(dim, dim)
        self.to_v = linear(dim, dim)
        self.probe = Probe()
        self.dconv = TokenFilter(num_heads)
        self.proj = linear(dim, dim)

    def unit_tokens(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> (b, heads, n, d), each of length 1."""
        x = rearrange(self.to_qk(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        return F.normalize(x, dim=-1, eps=0)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> None:
        """In place, once, on a first batch x (b, n, dim): anchors, centre and projection.

        Anchors are tokens of the first image; its 10 nearest and 10 farthest tokens count as alike
        and unlike. (The released code does this unasked in the first forward pass.)
        """
        unit = self.unit_tokens(x)
        generator = torch.Generator().manual_seed(seed)
        count = self.anchors.shape[2]
        order = torch.randperm(x.shape[1], generator=generator)[torch.arange(count) % x.shape[1]]
        self.anchors.copy_(unit[:1, :, order])
        kernels = kernels_to_anchors(unit, self.anchors)
        self.centre.copy_(kernels.mean((0, 2))[None, :, None])
        for head in range(self.num_heads):
            cosine = unit[0, head] @ unit[0, head].mT
            near = min(10, cosine.shape[0])
            similar = torch.zeros_like(cosine)
            similar.scatter_(1, cosine.topk(near).indices, 1.0)
            similar.scatter_(1, (-cosine).topk(near).indices, -1.0)
            centred = kernels[0, head] - self.centre[0, head]
            with torch.enable_grad():
                found = fit_projection(centred, similar, self.projection.shape[1], seed + head)
            self.projection[head] = found

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        codes = hash_codes(self.unit_tokens(x), self.anchors, self.centre, self.projection)
        v = rearrange(self.to_v(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        self.probe(lambda: code_map(codes, codes), grid)
        y = add_attention(codes, codes, v) + self.dconv(v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class ShiftAddViT(PVTv2):
    """PVTv2 with additions and shifts: images (b, in_chans, *img_size) -> logits (b, num_classes).

    attention: of the first three stages, "sra" (PVT's own), "li" (its cheaper form), "msa"
    (softmax), "threshold" or "hash" (codes); the last stage has softmax unless "sra" or "li".
    moe: linear layers are mixtures (not the last stage's attention).
    weighted: their outputs are multiplied by the gate, as in the paper.
    Other arguments, errors: `PVTv2`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (32, 64, 160, 256),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        attention: str = "hash",
        moe: bool = False,
        weighted: bool = True,
        drop_path_rate: float = 0.0,
    ):
        checks.choice("attention", attention, ("sra", "li", "msa", "threshold", "hash"))
        linear = partial(MixtureLinear, weighted=weighted) if moe else nn.Linear

        def make(dim: int, heads: int, reduction: int, stage: int) -> nn.Module:
            if attention in ("sra", "li"):
                return ReducedAttention(dim, heads, reduction, attention == "li")
            if attention == "msa" or stage == len(depths) - 1:
                return SoftmaxAttention(dim, heads)
            if attention == "threshold":
                return ThresholdAttention(dim, heads)
            return HashAttention(dim, heads, linear)

        super().__init__(
            make,
            linear,
            attention == "li",
            *(img_size, in_chans, num_classes, embed_dims, depths, num_heads, mlp_ratios),
            drop_path_rate=drop_path_rate,
        )
        for part in self.modules():
            if isinstance(part, MixtureLinear):
                part.experts[1].copy_dense(part.experts[0])


PARTS = (("patch_embed", "patch_embed"), ("block", "blocks"), ("norm", "norm"))
NAMES: dict[str, Rules] = {
    "official": [
        (r"projection_matrix$", None),
        *((rf"^{part}{i + 1}\.", f"stages.{i}.{ours}.") for part, ours in PARTS for i in range(4)),
        (r"dwconv\.dwconv\.", "dwconv."),
        (r"\.qk_quant\.ksh\.A$", ".projection"),
        (r"\.qk_quant\.ksh\.mvec$", ".centre"),
        (r"\.qk_quant\.ksh\.anchor$", ".anchors"),
        (r"\.gate\.gate\.", ".router."),
    ],
    "timm": [
        (r"^patch_embed\.", "stages.0.patch_embed."),
        (r"\.downsample\.", ".patch_embed."),
    ],
}

SMALL = dict(mlp_ratios=(8, 8, 4, 4))
WIDE = dict(embed_dims=(64, 128, 320, 512)) | SMALL
SIZES = {
    "b0": dict(embed_dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)) | SMALL,
    "b1": WIDE | dict(depths=(2, 2, 2, 2)),
    "b2": WIDE | dict(depths=(3, 4, 6, 3)),
    "b3": WIDE | dict(depths=(3, 4, 18, 3)),
    "b4": WIDE | dict(depths=(3, 8, 27, 3)),
    "b5": WIDE | dict(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
VARIANTS: dict[str, dict] = (
    {name: size | dict(attention="hash") for name, size in SIZES.items()}
    | {f"{name}_sra": size | dict(attention="sra") for name, size in SIZES.items()}
    | {f"{name}_msa": size | dict(attention="msa") for name, size in SIZES.items()}
    | {
        "b2_li": SIZES["b2"] | dict(attention="li"),
        "b0_threshold": SIZES["b0"] | dict(attention="threshold"),
        "b0_moe": SIZES["b0"] | dict(attention="hash", moe=True),
    }
)
MODEL = ShiftAddViT
