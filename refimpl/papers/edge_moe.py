"""Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level Sparsity
via Mixture-of-Experts.

Sarkar, Liang, Fan, Wang, Hao, ICCAD 2023, arXiv 2305.18691. Official code: sharc-lab/Edge-MoE,
commit 984b23bd7e733335213f3a33eac6a3947872973f (no licence stated), C++ for a chip that runs M³ViT
(Liang and others, NeurIPS 2022, arXiv 2210.14793; VITA-Group/M3ViT, commit
d448b6fcfba70a661c9f3c42d3d72dba92c5f1e6, MIT). The chip's arithmetic is `bases.fixed_point`.

The idea
    1. In every second block the MLP is a pool of e small ones, the *experts*. A *gate*, one linear
       layer, picks k of them for each token. All tasks share the experts; each has its own gates.
    2. *Expert by expert*: sort the tokens by expert first, so that each expert's weights are
       loaded once, and not once a visit.
    3. *One-pass softmax*: keep the largest score so far and the sum of exponentials relative to it,
       so that no row of scores is ever stored.
    4. *Rotated attention*: p queries in flight share one stream of keys. Each joins at another key
       and goes round, so one key and at most one query are fetched a step, for any p.
    5. GELU is ReLU minus a small even bump, read from a table.

With probabilities g = softmax(x W_gate), sums over the k largest g_e of a token:
    y = Σ_e g_e · E_e(x),   E_e(x) = W2_e GELU(W1_e x + b1_e) + b2_e
    one pass, score s:  b' = max(b, s),  S' = S e^(b − b') + e^(s − b')
    GELU(x) = max(x, 0) − δ(|x|),  δ(x) = x − x Φ(x)
Work of a layer: 4 n k d f FLOP for experts of f hidden channels, k/e of what all would take.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Attention, check_transformer
from refimpl.deploy import deploy
from refimpl.kernels import transformed
from refimpl.kernels.grouped_experts import with_torch as every_expert
from refimpl.layers import DropPath, Layout, Mlp, PatchEmbed, drop_path_rates
from refimpl.weights import Rules


def expert_by_expert(
    x: Tensor, chosen: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """Each expert's weights are loaded once: x (n, d), chosen and score (n, k) -> (n, d).

    w1 (e, f, d), b1 (e, f), w2 (e, d, f), b2 (e, d).
    """
    out = torch.zeros_like(x)
    weights = list(zip(w1.unbind(), b1.unbind(), w2.unbind(), b2.unbind(), strict=True))
    for expert in chosen.unique().tolist():  # only experts with work, in ascending order
        first, shift, second, offset = weights[expert]
        token, place = (chosen == expert).nonzero(as_tuple=True)  # its queue
        hidden = F.gelu(F.linear(x[token], first, shift))  # (queue, f): gathered
        made = F.linear(hidden, second, offset)  # (queue, d)
        weighted = score[token, place, None] * made  # g_e E_e(x)
        out = out.index_add(0, token, weighted.to(out.dtype))  # scattered
    return out


def top_k_gate(x: Tensor, weight: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest of all experts, and their probabilities: (n, d), (d, e) -> (n, k) each.

    The probabilities are of all experts; they are not divided by their sum over the chosen.
    """
    score, chosen = (x @ weight).softmax(-1).topk(top_k)
    return chosen, score


def top_k_then_softmax(x: Tensor, weight: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """M³ViT's other gate: the same choice, probabilities among the chosen alone."""
    logits, chosen = (x @ weight).topk(top_k)
    return chosen, logits.softmax(-1)


class Gates(nn.Module):
    """A gate for each task: (n, dim) -> experts (n, k) int64, and their probabilities (n, k).

    Every task's gate gets a gradient, zero for the tasks that were not asked, as in an embedding.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int, num_tasks: int):
        super().__init__()
        self.top_k = top_k
        made = [nn.Parameter(torch.empty(dim, num_experts)) for _ in range(num_tasks)]
        self.w_gate = nn.ParameterList(made)
        for weight in self.w_gate:
            nn.init.kaiming_uniform_(weight, a=5**0.5)

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
        return top_k_gate(x, torch.stack(list(self.w_gate))[task], self.top_k)


class ExpertLinear(nn.Module):
    """The weights of one linear layer of every expert: (e, out, in) and (e, out)."""

    def __init__(self, num_experts: int, in_features: int, out_features: int):
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class MoE(nn.Module):
    """Experts in place of an MLP: (b, n, dim) -> (b, n, dim), for one task."""

    def __init__(self, dim: int, hidden_dim: int, num_experts: int, top_k: int, num_tasks: int):
        super().__init__()
        checks.at_least(1, top_k=top_k, num_tasks=num_tasks, hidden_dim=hidden_dim)
        if top_k > num_experts:
            raise ValueError(f"top_k={top_k} must be at most num_experts={num_experts}")
        self.gate = Gates(dim, num_experts, top_k, num_tasks)
        parts = {"htoh4": ExpertLinear(num_experts, dim, hidden_dim)}
        parts["h4toh"] = ExpertLinear(num_experts, hidden_dim, dim)
        self.experts = nn.ModuleDict(parts)

    def forward(self, x: Tensor, task: int = 0) -> Tensor:
        tokens = x.flatten(0, 1)
        chosen, score = self.gate(tokens, task)
        first, second = self.experts["htoh4"], self.experts["h4toh"]
        # A graph that is recorded can't depend on what was chosen: there, all experts and a mask.
        compute = every_expert if transformed() or x.is_meta else expert_by_expert
        weights = (first.weight, first.bias, second.weight, second.bias)
        return compute(tokens, chosen, score, *weights).view_as(x)


class Block(nn.Module):
    """Pre-norm: (b, n, dim) -> (b, n, dim). moe: takes the place of the MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        moe: MoE | None = None,
        drop_path_rate: float = 0.0,
        layout: Layout | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, layout=layout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = moe or Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, task: int = 0) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        normed = self.norm2(x)
        y = self.mlp(normed, task) if isinstance(self.mlp, MoE) else self.mlp(normed)
        return x + self.drop_path(y)


class M3ViT(nn.Module):
    """Images (b, in_chans, *img_size) and a task 0 … num_tasks − 1 -> logits (b, num_classes).

    Blocks 0, 2, … have a dense MLP, blocks 1, 3, … experts of `moe_mlp_ratio · embed_dim` hidden
    channels. There is no norm behind the last block. The paper's network ends here, and each task's
    decoder reads `forward_features`; the classifier of the class token is ours, and num_classes=0
    leaves it out: the class token (b, embed_dim).
    num_tasks=1: one gate for everything. Raises `ValueError` for arguments that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = (128, 256),
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        moe_mlp_ratio: float = 2.0,
        num_experts: int = 16,
        top_k: int = 2,
        num_tasks: int = 2,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.num_tasks = num_tasks
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rows, columns = self.patch_embed.grid
        layout = Layout((rows, columns), prefix=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, embed_dim))
        hidden_dim = int(moe_mlp_ratio * embed_dim)
        self.blocks = nn.ModuleList()
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            moe = MoE(embed_dim, hidden_dim, num_experts, top_k, num_tasks) if i % 2 else None
            self.blocks.append(Block(embed_dim, num_heads, mlp_ratio, moe, rate, layout))
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor, task: int = 0) -> Tensor:
        """Tokens of the last block, the class token first: (b, 1 + n, embed_dim)."""
        if task not in range(self.num_tasks):
            raise ValueError(f"task={task} must be one of 0 to {self.num_tasks - 1}")
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, task)
        return x

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from the class token: (b, n, embed_dim) -> (b, num_classes)."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor, task: int = 0) -> Tensor:
        return self.forward_head(self.forward_features(images, task))

    def fuse(self) -> M3ViT:
        """A copy for inference, equal but for rounding: there are no norms to fold."""
        return deploy(self)


# ---------------------------------------------------------------- balance of the experts


def cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation, unbiased variance / (mean² + 1e-10): (e) -> scalar."""
    if x.numel() == 1:
        return x.new_zeros(())
    return x.var() / (x.mean().square() + 1e-10)


def balance_loss(chosen: Tensor, score: Tensor, num_experts: int) -> Tensor:
    """CV² of importance + CV² of load: two of (n, k) -> scalar, 0 where all experts work alike.

    Importance is an expert's sum of scores, load the number of tokens that chose it; only the
    former has a gradient.
    """
    importance = score.new_zeros(num_experts).index_add(0, chosen.flatten(), score.flatten())
    load = torch.bincount(chosen.flatten(), minlength=num_experts).to(score.dtype)
    return cv_squared(importance) + cv_squared(load)


def with_balance_loss(model: nn.Module, images: Tensor, task: int = 0) -> tuple[Tensor, Tensor]:
    """The model's outputs, and the balance loss summed over its gates, for training."""
    losses = []

    def keep(gate, given, made):
        losses.append(balance_loss(*made, gate.w_gate[0].shape[1]))

    gates = [module for module in model.modules() if isinstance(module, Gates)]
    hooks = [gate.register_forward_hook(keep) for gate in gates]
    try:
        outputs = model(images, task)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, sum(losses, torch.zeros(()))


def chance_in_top_k(clean: Tensor, noisy: Tensor, noisy_top: Tensor, std: float) -> Tensor:
    """How likely each expert is among the k best if its noise is drawn anew: (n, e) -> (n, e).

    noisy_top: the k + 1 largest of `noisy`, descending (n, k + 1); std: of the noise. M³ViT's code
    compares logits with thresholds from softmaxed values here; give both in the same unit.
    """
    checks.positive(std=std)
    inside, outside = noisy_top[:, -1:], noisy_top[:, -2:-1]
    threshold = torch.where(noisy > inside, inside, outside)
    return torch.special.ndtr((clean - threshold) / std)


# ---------------------------------------------------------------- memory traffic


def weight_loads(chosen: Tensor, on_chip: int | None = None) -> int:
    """How often an expert's weights are loaded for the choices (n, k) of a layer.

    on_chip: experts that fit on the chip, where the least recently used makes room, and tokens come
    in their own order; None: expert by expert, each used one once.
    """
    if on_chip is None:
        return len(chosen.unique())
    checks.at_least(1, on_chip=on_chip)
    held: OrderedDict[int, None] = OrderedDict()
    loads = 0
    for expert in chosen.flatten().tolist():
        if expert not in held:
            loads += 1
            if len(held) == on_chip:
                held.popitem(last=False)
        held[expert] = None
        held.move_to_end(expert)
    return loads


SCHEDULES = ("plain", "prefetch", "rotated")


def schedule(kind: str, tokens: int, parallel: int) -> tuple[np.ndarray, np.ndarray]:
    """Who reads what when, for `parallel` query slots and one key a step.

    Returns the key that each slot reads (steps, parallel), −1 for none, and the blocks fetched
    (steps). "plain": a group's queries come in its first step, all read the same keys; "prefetch":
    the next group's come one a step before, into registers of their own; "rotated": slot i starts
    at key i and goes round.
    """
    checks.choice("kind", kind, SCHEDULES)
    checks.at_least(1, parallel=parallel)
    checks.at_least(parallel, tokens=tokens)
    groups = -(-tokens // parallel)
    lead = parallel if kind == "prefetch" else 0  # the first group's queries
    last = (tokens - 1) % parallel if kind == "rotated" else 0
    steps = lead + groups * tokens + last
    keys = np.full((steps, parallel), -1)
    fetched = np.zeros(steps, int)
    fetched[lead:] += 1  # the key
    for query in range(tokens):
        group, slot = divmod(query, parallel)
        start = lead + group * tokens + (slot if kind == "rotated" else 0)
        keys[start : start + tokens, slot] = np.arange(start - lead, start - lead + tokens) % tokens
        if kind == "prefetch":
            fetched[max(start - tokens, 0) + slot] += 1
        else:
            fetched[start] += 1
    return keys, fetched


def rotated_attention(q: Tensor, k: Tensor, v: Tensor, parallel: int = 4) -> Tensor:
    """softmax(q kᵀ/√d) v by `schedule("rotated")`: three of (n, d) -> (n, d).

    One pass over the keys for sum and maximum, a second for the values; no row is ever stored.
    """
    n, d = q.shape
    start = torch.arange(n) % parallel
    highest = torch.full((n,), -torch.inf, dtype=q.dtype)  # b
    total = torch.zeros(n, dtype=q.dtype)  # S
    for step in range(n):
        key = (start + step) % n
        score = (q * k[key]).sum(-1) * d**-0.5
        total, highest = one_step(total, highest, score)
    out = torch.zeros_like(v)
    for step in range(n):
        key = (start + step) % n
        score = (q * k[key]).sum(-1) * d**-0.5
        out = out + ((score - highest).exp() / total)[:, None] * v[key]
    return out


def one_step(total: Tensor, highest: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """One score more: the sum S of exponentials and the maximum b that it is relative to."""
    factor = (-(highest - score).abs()).exp()  # the one exponential; never above 1
    total = torch.where(score > highest, total * factor + 1, total + factor)
    return total, torch.maximum(highest, score)


NAMES: dict[str, Rules] = {
    "official": [
        (r"\.gate\.(\d+)\.w_gate$", r".gate.w_gate.\1"),
        (r"\.gate\.w_gate$", ".gate.w_gate.0"),
    ],
}

VARIANTS: dict[str, dict] = {
    "tiny": {},
    "small": dict(img_size=(480, 640), embed_dim=384, num_heads=12),
    "small_k4": dict(img_size=(480, 640), embed_dim=384, num_heads=12, moe_mlp_ratio=1.0, top_k=4),
    "base_k4": dict(img_size=(480, 640), embed_dim=768, num_heads=12, moe_mlp_ratio=1.0, top_k=4),
}
MODEL = M3ViT
