"""As-ViT: Auto-scaling Vision Transformers without Training.

Chen, Huang, Du, Song, Wang, Zhou, ICLR 2022, arXiv 2202.11921. Official code: VITA-Group/AsViT,
commit e326ccaf63e05f241f8f48a0e045b63d221be62a (MIT). It searches and grows; the training code,
and with it progressive tokens, was not released. The network: `refimpl.bases.topology`.

The idea
    1. A good network is expressive and trainable, and both can be read off random weights.
    2. Expressive: a circle of inputs becomes a curve of features; the longer, the better.
    3. Trainable: the tangent kernel of a few images; the smaller its condition number, the better.
    4. A policy proposes topologies and is rewarded by the change of both: the seed topology.
    5. From the seed grow depth and width together, by the same two scores: a family of models.
    6. When training, begin with coarse tokens.

With z the pooled features, x(θ) = u cos θ + v sin θ for orthonormal u, v:
    length distortion   L = Σ_θ ‖dz/dθ‖                              norms taken out
    tangent kernel      Θ_ij = ⟨∇f(x_i), ∇f(x_j)⟩, f = Σ_c z_c       norms in, weights without bias
    condition           κ = λ_max(Θ) / λ_min(Θ)
    reward              (L_t − L_{t−1}) / range(L) − (κ_t − κ_{t−1}) / range(κ), of the last 20
Cost: L one forward-mode pass of ten inputs; Θ one backward pass of n images, n² P multiply-adds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from refimpl import checks
from refimpl.bases.topology import StagedTransformer, Topology
from refimpl.kernels.gradient_gram import gradient_gram

Curve = Callable[[Tensor], Tensor]
Choice = dict[str, int]

# ---------------------------------------------------------------- expressivity


def length_distortion(features: Curve, u: Tensor, v: Tensor, num_angles: int = 10) -> Tensor:
    """Speed ‖dz/dθ‖ along the curve that a circle of inputs becomes, at each angle: (num_angles,).

    features: inputs (b, …) -> pooled features (b, c), of each input alone; u, v: inputs (…),
    orthonormal. Their sum is the score L, without the step in θ, so that more angles give more.
    """
    theta = torch.linspace(0, 2 * torch.pi, num_angles, dtype=u.dtype)  # both ends: θ = 0 twice

    def curve(theta: Tensor) -> Tensor:
        cos = theta.cos().view(-1, *[1] * u.dim())  # (num_angles, 1, …)
        sin = theta.sin().view(-1, *[1] * u.dim())
        return features(cos * u + sin * v)  # z(θ): (num_angles, c)

    _, velocity = jvp(curve, (theta,), (torch.ones_like(theta),))  # dz/dθ: (num_angles, c)
    return velocity.norm(dim=1)


def derivatives(curve: Curve, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity and acceleration of z(θ): (n,) -> (n, c), at each θ: (n, c) both."""
    ones = torch.ones_like(theta)

    def velocity(theta: Tensor) -> Tensor:
        return jvp(curve, (theta,), (ones,))[1]

    return jvp(velocity, (theta,), (ones,))


def curve_measures(velocity: Tensor, acceleration: Tensor) -> dict[str, Tensor]:
    """The paper's three measures of a curve at each angle: (n, c), (n, c) -> name -> (n,).

    "length" ‖v‖; "gauss" ‖d(v/‖v‖)/dθ‖, the speed of the unit tangent; "curvature" gauss / ‖v‖.
    """
    speed = velocity.norm(dim=1)
    along = (velocity * acceleration).sum(1) / speed
    across = (acceleration.square().sum(1) - along.square()).clamp(min=0).sqrt()
    return {"length": speed, "gauss": across / speed, "curvature": across / speed.square()}


def without_norms(model: StagedTransformer) -> StagedTransformer:
    """A copy in which every layer norm is the identity: a norm would set the curve on a sphere."""
    bare = copy.deepcopy(model)
    for module in list(bare.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    return bare


class PooledFeatures(nn.Module):
    """What both scores look at: images -> the mean of the last tokens before the last norm (b, c).

    Fused products of attention have no forward-mode derivative, so here they are written out.
    """

    def __init__(self, model: StagedTransformer):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return self.model.forward_features(images).mean((1, 2))


def orthonormal_inputs(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random orthonormal inputs of this shape, float64."""
    size = int(np.prod(shape))
    q, _ = torch.linalg.qr(torch.randn(size, 2, generator=generator, dtype=torch.float64))
    return q[:, 0].view(*shape), q[:, 1].view(*shape)


def expressivity(
    build: Callable[[], StagedTransformer], seeds: Sequence[int] = range(5), num_angles: int = 10
) -> list[float]:
    """L of one initialisation for each seed, which sets weights and circle."""
    found = []
    for seed in seeds:
        model = seeded(build, seed)
        g = torch.Generator().manual_seed(seed)
        u, v = orthonormal_inputs((model.in_chans, *model.size), g)
        features = PooledFeatures(without_norms(model))
        found.append(length_distortion(features, u.float(), v.float(), num_angles).sum().item())
    return found


def seeded(build: Callable[[], StagedTransformer], seed: int) -> StagedTransformer:
    """A model whose weights are drawn from this seed; PyTorch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


# ---------------------------------------------------------------- trainability


def tangent_kernel(model: StagedTransformer, images: Tensor) -> Tensor:
    """Θ (n, n) of n images, summed weight by weight: one weight's gradients are held at a time.

    One backward pass for all images together, each with a view of the weights as its own. Images
    and model must be of one type; the condition number wants float64.
    """
    n = len(images)
    total = images.new_zeros(1, n, n)
    views = {}

    def collect(weight: Tensor) -> None:
        nonlocal total
        total = gradient_gram(weight.grad.flatten(1)[None], total)  # (1, n, p) -> (1, n, n)
        weight.grad = None  # used and forgotten

    features = PooledFeatures(model)
    others = {name: parameter.detach() for name, parameter in features.named_parameters()}
    for name in [name for name in others if "weight" in name]:  # no biases, no positions
        weight = others.pop(name)
        views[name] = weight.expand(n, *weight.shape).requires_grad_()
        views[name].register_post_accumulate_grad_hook(collect)

    def f(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(features, weights | others, (image[None],)).sum()

    vmap(f)(views, images).sum().backward()
    return total[0]


def condition_number(kernel: Tensor) -> float:
    """λ_max / λ_min of a symmetric matrix; infinite where it is singular or holds no numbers."""
    if not kernel.isfinite().all():
        return float("inf")
    eigenvalues = torch.linalg.eigvalsh(kernel)  # ascending
    return (eigenvalues[-1] / eigenvalues[0]).item() if eigenvalues[0] > 0 else float("inf")


def trainability(
    build: Callable[[], StagedTransformer], batches: Sequence[Tensor], seed: int = 0
) -> list[float]:
    """κ of one initialisation for each batch of images, in float64; seeds are counted from `seed`.

    batches: (n, c, h, w) each. Labels play no part.
    """
    found = []
    for i, images in enumerate(batches):
        model = seeded(build, seed + i).double()
        found.append(condition_number(tangent_kernel(model, images.double())))
    return found


# ---------------------------------------------------------------- the search for a seed

SPACE: dict[str, tuple[int, ...]] = {
    **{"K1": (4, 5, 6, 7, 8), "K2": (2, 3, 4), "K3": (2, 3, 4), "K4": (2, 3, 4)},
    **{"S1": (2, 4, 8), "S2": (1, 2, 4), "S3": (1, 2), "S4": (1,)},
    **{f"E{i}": (2, 3, 4, 5, 6) for i in range(1, 5)},
    "H": (16, 32, 64),
}  # 4 556 250 topologies


def topology_of(choice: Mapping[str, int], embed_dim: int = 32) -> Topology:
    """The topology of one value for every decision, with a single block in each stage."""
    stages = range(1, sum(name.startswith("K") for name in choice) + 1)
    sizes = [tuple(choice[f"{letter}{i}"] for i in stages) for letter in "KSE"]
    return Topology(*sizes, depths=(1,) * len(stages), num_heads=choice["H"], embed_dim=embed_dim)


class RelativeGain:
    """The reward of a step: how far L rose and κ fell, each in units of its recent range.

    memory: scores that make the range, the newest included. A κ that is no number counts as the
    largest yet.
    """

    def __init__(self, memory: int = 20):
        checks.integer(2, memory=memory)
        self.memory = memory
        self.lengths: list[float] = []
        self.conditions: list[float] = []

    def __call__(self, length: float, condition: float) -> float:
        if not np.isfinite(condition):
            condition = max(self.conditions, default=0.0)
        return self.change(self.lengths, length) - self.change(self.conditions, condition)

    def change(self, seen: list[float], value: float) -> float:
        seen.append(value)
        del seen[: -self.memory]
        if len(seen) == 1:
            return 0.0
        return (value - seen[-2]) / (max(seen) - min(seen) + 1e-6)


class Reinforce:
    """A policy of independent decisions, taught by one sample a step (a `lab.search` method).

    decisions: name -> its values. The baseline is the average of rewards, the newest included.
    """

    def __init__(
        self,
        decisions: Mapping[str, Sequence[int]] = SPACE,
        lr: float = 0.08,
        momentum: float = 0.9,
        seed: int = 0,
    ):
        if empty := [name for name, values in decisions.items() if not values]:
            raise ValueError(f"decisions={empty} have no values to choose from")
        checks.positive(lr=lr)
        checks.fraction(momentum=momentum)
        self.decisions, self.momentum = decisions, momentum
        self.generator = torch.Generator().manual_seed(seed)
        self.logits = {
            name: (1e-3 * torch.randn(len(values), generator=self.generator)).requires_grad_()
            for name, values in decisions.items()
        }
        self.optimizer = torch.optim.Adam(self.logits.values(), lr)
        self.sum, self.steps = 0.0, 0

    @property
    def baseline(self) -> float:
        """Mean of past rewards, each weighing `momentum` times the next."""
        return self.sum / (1 - self.momentum**self.steps) if self.steps else 0.0

    def probabilities(self) -> dict[str, Tensor]:
        return {name: logits.detach().softmax(0) for name, logits in self.logits.items()}

    def entropy(self) -> float:
        """Of the whole policy, in nats: the sum over its decisions."""
        return sum(torch.special.entr(p).sum().item() for p in self.probabilities().values())

    def ask(self) -> Choice:
        choice = {}
        for name, p in self.probabilities().items():
            index = torch.multinomial(p, 1, generator=self.generator).item()
            choice[name] = self.decisions[name][index]
        return choice

    def tell(self, choice: Choice, reward: float) -> None:
        """One step of policy gradient: descend −log π(choice) · (reward − baseline)."""
        self.steps += 1
        self.sum = self.momentum * self.sum + (1 - self.momentum) * reward
        log_pi = 0
        for name, logits in self.logits.items():
            log_pi = log_pi + logits.log_softmax(0)[self.decisions[name].index(choice[name])]
        self.optimizer.zero_grad()
        (-log_pi * (reward - self.baseline)).backward()
        self.optimizer.step()

    def best(self) -> Choice:
        """The likeliest value of every decision."""
        likely = {name: p.argmax().item() for name, p in self.probabilities().items()}
        return {name: self.decisions[name][i] for name, i in likely.items()}


# ---------------------------------------------------------------- growing a family

RATIOS = (0.05, 0.10, 0.15, 0.20)  # of width, in one step
PROXY = 4  # scores are of a network of a quarter of the width


@dataclass(frozen=True)
class Step:
    """One step of growing. topology: of the real network; parameters: its number of them."""

    topology: Topology
    parameters: int
    condition: float
    length: float


def grown_widths(width: int) -> list[int]:
    """Next widths, one for each ratio; small ones repeat."""
    return [round(width * (1 + ratio)) for ratio in RATIOS]


def candidates(proxy: Topology) -> list[Topology]:
    """One layer more in one stage, and one of the next widths: all pairs."""
    widths = grown_widths(proxy.embed_dim)
    distinct = [w for i, w in enumerate(widths) if i == 0 or w != widths[i - 1]]
    found = []
    for stage, depth in enumerate(proxy.depths):
        depths = (*proxy.depths[:stage], depth + 1, *proxy.depths[stage + 1 :])
        found += [replace(proxy, depths=depths, embed_dim=width) for width in distinct]
    return found


def dense_ranks(values: Sequence[float], descending: bool = False) -> list[int]:
    """Places from 0; equal values share one."""
    order = sorted(set(values), reverse=descending)
    return [order.index(value) for value in values]


def pick(conditions: Sequence[float], lengths: Sequence[float]) -> int:
    """The candidate with the least sum of ranks: κ ascending, L descending.

    Of two that tie, the code takes the one whose score is smaller, in the score of larger relative
    range, also where that is L; a third is not looked at.
    """
    pairs = zip(dense_ranks(conditions), dense_ranks(lengths, descending=True), strict=True)
    sums = [a + b for a, b in pairs]
    order = sorted(range(len(sums)), key=sums.__getitem__)
    if len(order) == 1 or sums[order[0]] < sums[order[1]]:
        return order[0]
    ranges = [(max(s) - min(s)) / max(s) for s in (conditions, lengths)]
    decisive = conditions if ranges[0] >= ranges[1] else lengths
    return min(order[:2], key=decisive.__getitem__)


def grow(
    seed: Topology,
    score: Callable[[Topology], tuple[float, float]],
    width: int = 8,
    enough: float = 80e6,
    most: float = 110e6,
) -> list[Step]:
    """Grow depth and width from one layer a stage until there are `enough` parameters.

    score: of a proxy of a quarter of the real width, (κ, L). width: of the first proxy; most:
    parameters that no network may exceed. The steps are the family.
    """
    proxy = replace(seed, depths=(1,) * len(seed.depths), embed_dim=width)
    steps: list[Step] = []
    while not steps or steps[-1].parameters < enough:
        sizes = {
            c: replace(c, embed_dim=PROXY * c.embed_dim).parameters() for c in candidates(proxy)
        }
        allowed = [c for c, parameters in sizes.items() if parameters <= most]
        if not allowed:
            break
        conditions, lengths = zip(*map(score, allowed), strict=True)
        best = pick(conditions, lengths)
        proxy = allowed[best]
        real = replace(proxy, embed_dim=PROXY * proxy.embed_dim)
        steps.append(Step(real, sizes[proxy], conditions[best], lengths[best]))
    return steps


# ---------------------------------------------------------------- progressive tokens

# (share of the training at which it begins, coarseness): our reading of a drawing, 40 and 70 of 300
PHASES = ((0.0, 4), (40 / 300, 2), (70 / 300, 1))


def coarseness_at(progress: float, phases: Sequence[tuple[float, int]] = PHASES) -> int:
    """How coarse tokens are when this share of the training is over; see `topology.coarsen`."""
    checks.fraction(progress=progress)
    return [coarseness for start, coarseness in phases if start <= progress][-1]


# The repository prints the seed and the large one; the other two are known by their parameters.
PUBLISHED = {
    "small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "large": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
}
SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")
VARIANTS: dict[str, dict] = {"seed": SEED.arguments()} | {
    name: Topology.parse(text).arguments() | {"pos_embed": True} for name, text in PUBLISHED.items()
}
MODEL = StagedTransformer
