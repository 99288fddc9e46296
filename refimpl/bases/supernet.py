"""Supernets: networks whose every place holds all candidate blocks, and what choosing takes.

A place mixes its candidates by weights that are learned with the network; noise on them keeps all
candidates in training (Liu, Simonyan, Yang, *DARTS*, ICLR 2019, arXiv 1806.09055; with Gumbel
noise: Wu and others, *FBNet*, CVPR 2019, arXiv 1812.03443):

    x_{i+1} = Σ_n softmax_n((α_n + ε_n) / τ) · P_n(x_i)

One network is then cut out of it; its batch norms must see data again before it is judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from refimpl import checks


def uniform_noise(logits: Tensor) -> Tensor:
    """ε ~ U(0, 1) in the shape of `logits`: standard deviation 0.29."""
    return torch.rand_like(logits)


def gumbel_noise(logits: Tensor) -> Tensor:
    """ε = −log(−log u) in the shape of `logits`: standard deviation 1.28.

    The arg max of logits plus this noise is a draw from softmax(logits).
    """
    return -torch.empty_like(logits).exponential_().log()


NOISES = {"uniform": uniform_noise, "gumbel": gumbel_noise}


def path_weights(logits: Tensor, noise: Tensor | float = 0.0, temperature: float = 1.0) -> Tensor:
    """softmax((α + ε) / τ) over the paths of a place: (…, paths) -> (…, paths)."""
    checks.positive(temperature=temperature)
    return ((logits + noise) / temperature).softmax(-1)


def block_importance(strengths: Tensor) -> Tensor:
    """What its blocks weigh against identity, Σ strengths / identity: (…, paths) -> (…).

    EfficientFormer's measure, (α_4D + α_3D) / α_I. strengths: positive, identity first; the paper
    leaves open how a logit becomes one, here it is exp.
    """
    return strengths[..., 1:].sum(-1) / strengths[..., 0]


class MetaPath(nn.Module):
    """A place of a supernet, its candidates mixed: x -> the same shape.

    blocks: name → candidate, each of which keeps the shape. noise: "uniform" or "gumbel", in
    training alone. `temperature` is τ, and may be changed at any time.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], noise: str = "uniform"):
        super().__init__()
        checks.choice("noise", noise, NOISES)
        self.blocks = nn.ModuleDict(blocks)
        self.logits = nn.Parameter(torch.zeros(len(blocks)))  # α, in the order of the blocks
        self.noise = noise
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        noise = NOISES[self.noise](self.logits) if self.training else 0.0
        weights = path_weights(self.logits, noise, self.temperature)
        mixed = 0
        for weight, block in zip(weights, self.blocks.values(), strict=True):
            mixed = mixed + weight * block(x)
        return mixed


def places(model: nn.Module) -> list[MetaPath]:
    """Every place of a supernet, in order."""
    return [module for module in model.modules() if isinstance(module, MetaPath)]


def train_supernet(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    logits_lr: float = 3e-2,
    temperatures: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
) -> list[list[list[float]]]:
    """Train weights and logits of a supernet together, in place; it is left in evaluation mode.

    images: (n, c, h, w); labels: (n,) classes. lr, logits_lr: peaks of one-cycle schedules of
    AdamW, without decay on the logits. temperatures: τ at the first and the last step, geometric
    between. Returns the weights without noise after every step, [step][place][path].
    """
    checks.integer(1, steps=steps, batch_size=batch_size)
    checks.positive(lr=lr, logits_lr=logits_lr, first=temperatures[0], last=temperatures[1])
    found = places(model)
    logits = [place.logits for place in found]
    others = [p for name, p in model.named_parameters() if not name.endswith(".logits")]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.05}, {"params": logits, "weight_decay": 0.0}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [lr, logits_lr], total_steps=steps, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    history = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        for step in range(steps):
            for place in found:
                first, last = temperatures
                place.temperature = first * (last / first) ** (step / max(steps - 1, 1))
            batch = torch.randint(len(images), (batch_size,), generator=generator)
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            optimizer.step()
            schedule.step()
            history.append([path_weights(alpha.detach()).tolist() for alpha in logits])
    model.eval()
    return history


def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 256) -> nn.Module:
    """Take the statistics of all batch norms anew from these images, in place; returns the model.

    It is left in evaluation mode.
    """
    update_bn(images.split(batch_size), model)  # the plain mean over all batches
    return model.eval()


def strongest(scale: Tensor, count: int) -> Tensor:
    """Which `count` channels have the largest |scale|, in their order: (c,) -> (count,) int64."""
    return scale.detach().abs().topk(count).indices.sort().values


@torch.no_grad()
def copy_channels(
    target: nn.Module, source: Mapping[str, Tensor], chosen: Sequence[Tensor]
) -> None:
    """Fill a narrower copy of a part from the wide one's state dict, in place.

    chosen: which channels stay, one tensor of indices (count,) for each kind of axis that is cut;
    an axis is known by how many channels are left of it.
    """
    state = target.state_dict()
    by_count = {len(indices): indices for indices in chosen}
    for name, tensor in state.items():
        values = source[name]
        for axis, size in enumerate(tensor.shape):
            if values.shape[axis] != size:
                values = values.index_select(axis, by_count[size])
        tensor.copy_(values)


@torch.no_grad()
def milliseconds(layer: nn.Module, x: Tensor, rounds: int = 15, min_time: float = 0.002) -> float:
    """What one call takes on this machine: the least processor time of several rounds, in ms.

    Processor time of all threads, so set one; min_time: seconds that a round lasts at least.
    """
    checks.integer(1, rounds=rounds)
    layer(x)  # the first call allocates and picks kernels
    start = time.process_time()
    layer(x)
    calls = max(1, round(min_time / max(time.process_time() - start, 1e-6)))
    least = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            layer(x)
        least = min(least, (time.process_time() - start) / calls)
    return 1e3 * least


class LatencyTable:
    """What the parts of networks cost on this machine; a network costs the sum of its parts.

    clock: (layer, input) → cost, by default `milliseconds`; with a counter of multiply-adds the
    same table counts. entries: key of a part → cost; what is missing is measured when it is first
    asked for. A search space derives from it and says what `build` makes of a key: the layer, in
    the form that will run, and its input.
    """

    def __init__(
        self,
        clock: Callable[[nn.Module, Tensor], float] = milliseconds,
        entries: Mapping[tuple, float] | None = None,
    ):
        self.clock = clock
        self.entries = dict(entries or {})

    def build(self, key: tuple) -> tuple[nn.Module, Tensor]:
        raise NotImplementedError

    def __getitem__(self, key: tuple) -> float:
        if key not in self.entries:
            self.entries[key] = self.clock(*self.build(key))
        return self.entries[key]

    def total(self, keys: Sequence[tuple]) -> float:
        """The sum over these parts."""
        return sum(self[key] for key in keys)
