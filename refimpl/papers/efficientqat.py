"""EfficientQAT: Efficient Quantization-Aware Training for Large Language Models.

Chen, Shao, Xu, Wang, Gao, Zhang, Luo, ACL 2025, arXiv 2407.11062. Official code:
OpenGVLab/EfficientQAT, commit 78fd3fb6b6a2e70cc29d9e5d5f4fc6c3ea250619 (no licence stated).

The idea
    1. At 2 bits rounding to the nearest level ruins a language model, and training with rounding
       in the loop repairs it. But training a whole 70B model takes 16 bytes per weight.
    2. So train one block at a time, with everything in it (weights, step sizes, zero points), until
       its outputs are those of the block it replaces: *Block-AP*.
    3. Then freeze the integers in their packed form and train the step sizes alone, end to end, by
       the loss that counts: *E2E-QP*. One number for each group of g weights.
    4. Plain integers, a scale and a zero point per group: any kernel for such weights runs them.

Per group of g neighbouring inputs of one output, N bits, q_max = 2^N − 1:

    s = (max W − min W) / q_max,  z = −round(min W / s)             where training starts
    q = clamp(⌊W / s⌉ + z, 0, q_max)                                the integer
    Ŵ = (q − z) · s                                                 what the product uses

⌊·⌉ has derivative 0 almost everywhere; the *straight-through estimator* pretends it is 1. Then, for
a gradient u of Ŵ,

    in range      ∂W = u    ∂s = u · (⌊W/s⌉ − W/s)      ∂z = 0
    clipped to c  ∂W = 0    ∂s = u · (c − z)            ∂z = −u · s

summed over the group for s and z. In E2E-QP q is fixed: ∂s = Σ u · (q − z).
Memory: N + (16 + N)/g bits per weight packed; Block-AP holds 16 bytes for each weight of one block,
E2E-QP the packed model and 16 bytes for each s.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.llama import Llama, causal_loss
from refimpl.kernels.packed_product import pack, packed_product, per_word, unpack

LEAST_SCALE, MOST_SCALE = 1e-4, 1e4  # what a step size is clamped to


def fake_quantise(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round weights to the levels of their group, with gradients straight through the rounding.

    weight: (out, in); scale, zero_point: (groups, 1), groups·g = out·in, a row after the other.
    """
    highest = 2**bits - 1  # q_max
    w = weight.reshape(len(scale), -1)  # (groups, g)
    s = straight_through(scale.clamp(LEAST_SCALE, MOST_SCALE), scale)
    z = straight_through(zero_point.round().clamp(0, highest), zero_point)
    steps = straight_through((w / s).round(), w / s)  # ⌊W / s⌉
    q = (steps + z).clamp(0, highest)  # the integers; no gradient where they are clipped
    return ((q - z) * s).view_as(weight)  # Ŵ


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value`, computed from x, with the gradient of x itself."""
    return x + (value - x).detach()


def group_size_of(in_features: int, group_size: int) -> int:
    """The group size, −1 being the whole row; a `ValueError` unless it divides the inputs."""
    size = in_features if group_size == -1 else group_size
    if not isinstance(size, int) or size < 1 or in_features % size:
        raise ValueError(
            f"group_size={group_size} must be -1 or divide the in_features={in_features} of the"
            " layer"
        )
    return size


def initial_grid(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point that span each group from its least to its greatest weight.

    weight: (out, in); both results: (groups, 1). The zero point is not clamped: it lies outside
    0 … 2^bits − 1 where all weights of a group have one sign, and the forward pass clamps it.
    """
    per_word(bits)
    if not weight.isfinite().all():
        raise ValueError("weight holds NaN or infinity: there is no range to divide into levels")
    groups = weight.reshape(-1, group_size_of(weight.shape[1], group_size))
    least = groups.amin(1, keepdim=True)
    most = groups.amax(1, keepdim=True)
    scale = ((most - least) / (2**bits - 1)).clamp(LEAST_SCALE, MOST_SCALE)
    zero_point = -(least / scale).clamp(-MOST_SCALE, MOST_SCALE).round()
    return scale, zero_point


class QuantLinear(nn.Module):
    """A linear layer in training: weights are rounded in every forward pass.

    (…, in) -> (…, out). weight, scale and zero_point learn; the bias is a buffer and stays.
    """

    def __init__(self, linear: nn.Linear, bits: int, group_size: int):
        super().__init__()
        scale, zero_point = initial_grid(linear.weight.detach(), bits, group_size)
        self.bits = bits
        self.group_size = group_size_of(linear.in_features, group_size)
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.scale = nn.Parameter(scale)
        self.zero_point = nn.Parameter(zero_point)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = fake_quantise(self.weight, self.scale, self.zero_point, self.bits)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (out, in) and zero points (out, in/g), integers, and scales (out, in/g)."""
        highest = 2**self.bits - 1
        s = self.scale.clamp(LEAST_SCALE, MOST_SCALE)
        z = self.zero_point.round().clamp(0, highest)
        w = self.weight.reshape(len(s), -1)
        q = ((w / s).round() + z).clamp(0, highest)
        rows = len(self.weight)
        return q.view_as(self.weight).long(), z.view(rows, -1).long(), s.view(rows, -1)


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed integers: (…, in) -> (…, out).

    The official format, see `kernels.packed_product`. Only the scales learn, which are stored in
    float16. A fresh layer holds zeros.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group_size: int,
        bias: bool = False,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        per = per_word(bits)
        groups = in_features // group_size_of(in_features, group_size)
        words = dict(dtype=torch.int32, device=device)
        self.in_features = in_features
        self.out_features = out_features
        self.bits = bits
        self.register_buffer("qweight", torch.zeros(-(-in_features // per), out_features, **words))
        self.register_buffer("qzeros", torch.zeros(groups, -(-out_features // per), **words))
        self.scales = nn.Parameter(torch.zeros(groups, out_features, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        scales = self.scales.to(x.dtype)
        y = packed_product(rows, self.qweight, self.qzeros, scales, self.bits)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    @classmethod
    def of(cls, layer: QuantLinear) -> PackedLinear:
        """The integers that training found, zero points clamped to where the codes are."""
        return cls.from_integers(*layer.integers(), layer.bits, layer.bias)

    @classmethod
    @torch.no_grad()
    def from_integers(
        cls, codes: Tensor, zeros: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None
    ) -> PackedLinear:
        """codes: (out, in); zeros, scales: (out, in/g). Scales are rounded to float16.

        Raises `ValueError` for codes without room and scales that are not finite and above 0.
        """
        shapes = {"codes": "out in", "zeros": "out groups", "scales": "out groups"}
        sizes = checks.shapes(shapes, codes=codes, zeros=zeros, scales=scales)
        if not (scales.isfinite().all() and (scales > 0).all()):
            raise ValueError(
                f"scales run from {scales.min():g} to {scales.max():g}, must be finite and above 0"
            )
        if sizes["in"] % sizes["groups"]:
            raise ValueError(
                f"scales has {sizes['groups']} groups, which must divide the {sizes['in']} inputs"
            )
        size = sizes["in"] // sizes["groups"]
        layer = cls(sizes["in"], sizes["out"], bits, size, bias is not None, scales.device)
        layer.qweight.copy_(pack(codes.T, bits))
        layer.qzeros.copy_(pack(zeros, bits).T)
        layer.scales.copy_(scales.T.half())
        if bias is not None:
            layer.bias.copy_(bias.half())
        return layer

    def integers(self) -> tuple[Tensor, Tensor]:
        """Codes (out, in) and zero points (out, in/g)."""
        codes = unpack(self.qweight, self.in_features, self.bits).T
        return codes, unpack(self.qzeros.T, self.out_features, self.bits)


def replace_layers(
    module: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """In place: every layer of this kind inside `module` becomes `make(layer)`; it is returned."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, kind):
                setattr(parent, name, make(layer))
    return module


def round_to_nearest(model: Llama, bits: int, group_size: int) -> Llama:
    """A copy whose blocks hold packed weights, rounded to the nearest level: no training."""
    model = copy.deepcopy(model)
    replace_layers(model.layers, nn.Linear, lambda layer: QuantLinear(layer, bits, group_size))
    replace_layers(model.layers, QuantLinear, PackedLinear.of)
    return model


def empty_packed(model: Llama, bits: int, group_size: int) -> Llama:
    """In place: blocks of packed zeros, to load an official checkpoint into; also on meta."""

    def empty(layer: nn.Linear) -> PackedLinear:
        sizes = (layer.in_features, layer.out_features, bits, group_size)
        return PackedLinear(*sizes, layer.bias is not None, layer.weight.device)

    replace_layers(model.layers, nn.Linear, empty)
    return model


def block_optimizer(block: nn.Module, quant_lr: float, weight_lr: float) -> torch.optim.AdamW:
    """AdamW without decay: scales and zero points at one rate, weights (norms' too) at another."""
    grids = [p for name, p in block.named_parameters() if name.endswith(("scale", "zero_point"))]
    weights = [p for name, p in block.named_parameters() if "weight" in name]
    groups = [{"params": grids, "lr": quant_lr}, {"params": weights, "lr": weight_lr}]
    return torch.optim.AdamW(groups, weight_decay=0.0)


@torch.enable_grad()
def reconstruct(
    block: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    quant_lr: float,
    weight_lr: float,
    seed: int = 0,
) -> list[float]:
    """Train a block in place until its outputs are the targets; returns the loss of every step.

    inputs, targets: (segments, n, dim). The loss is the mean squared error; learning rates fall by
    a cosine to a twentieth. weight_lr=0: scales and zero points alone.
    """
    checks.integer(1, epochs=epochs, batch_size=batch_size)
    checks.at_least(0, quant_lr=quant_lr, weight_lr=weight_lr)
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of a block hold NaN or infinity: no block can learn them")
    optimizer = block_optimizer(block, quant_lr, weight_lr)
    steps = epochs * math.ceil(len(inputs) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps))
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
            loss = F.mse_loss(block(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def cosine(step: int, steps: int, last: float = 1 / 20) -> float:
    """Multiple of the learning rate: from 1 down to `last`."""
    return last + (1 - last) * (1 + math.cos(math.pi * step / steps)) / 2


def train_blocks(
    model: Llama,
    ids: Tensor,
    bits: int,
    group_size: int,
    *,
    epochs: int = 2,
    batch_size: int = 2,
    quant_lr: float = 1e-4,
    weight_lr: float = 2e-5,
    seed: int = 0,
    listen: Callable[[int, nn.Module, list[float]], None] | None = None,
) -> Llama:
    """Block-AP: a copy of the model whose blocks were trained one after the other, and packed.

    ids: calibration segments (segments, n). The target of a block is what the full-precision block
    makes of full-precision inputs; the block in training gets what the quantised blocks before it
    really give, and so repairs their errors too. Embedding, last norm and classifier stay.
    listen: called with each block's number, the block before packing, and its losses.
    """
    model = copy.deepcopy(model).eval()
    training = dict(epochs=epochs, batch_size=batch_size, quant_lr=quant_lr, weight_lr=weight_lr)
    clean = every(model.embed, ids, batch_size)  # x_fp
    noisy = clean  # x_q
    for i, block in enumerate(model.layers):
        targets = every(block, clean, batch_size)
        learner = copy.deepcopy(block).requires_grad_()
        replace_layers(learner, nn.Linear, lambda layer: QuantLinear(layer, bits, group_size))
        losses = reconstruct(learner, noisy, targets, seed=seed + i, **training)
        if listen is not None:
            listen(i, learner, losses)
        model.layers[i] = replace_layers(learner, QuantLinear, PackedLinear.of)
        noisy = every(model.layers[i], noisy, batch_size)
        clean = targets
    return model


@torch.no_grad()
def every(function: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int) -> Tensor:
    """The function of all inputs, a batch at a time, without gradients."""
    return torch.cat([function(batch) for batch in inputs.split(batch_size)])


@torch.enable_grad()
def train_scales(
    model: Llama,
    ids: Tensor,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 2e-5,
    clip: float = 0.3,
    seed: int = 0,
) -> Llama:
    """E2E-QP: a copy whose scales were trained by the language model's own loss, nothing else.

    model: packed, as `train_blocks` or `round_to_nearest` gives it; ids: (segments, n); clip: the
    greatest norm of the gradient. Integers and zero points stay as they are, bit by bit; the scales
    are rounded to float16 at the end.
    """
    checks.integer(1, steps=steps, batch_size=batch_size)
    checks.positive(lr=lr, clip=clip)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    if not layers:
        raise ValueError("model has no packed layer: give what train_blocks or round_to_nearest do")
    scales = [layer.scales.requires_grad_() for layer in layers]
    optimizer = torch.optim.AdamW(scales, lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(ids), (batch_size,), generator=generator)
        loss = causal_loss(model, ids[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(scales, clip)
        optimizer.step()
    with torch.no_grad():
        for scale in scales:
            scale.copy_(scale.half())
    return model


# ---- How many bytes, by the shapes alone


def packed_bytes(model: Llama, bits: int = 16, group_size: int = -1) -> int:
    """Bytes of the model's file, by its shapes: linear layers of blocks packed, else float16."""
    size = 2 * sum(p.numel() for p in model.parameters())
    if bits == 16:
        return size
    per = per_word(bits)
    for layer in model.layers.modules():
        if isinstance(layer, nn.Linear):
            groups = layer.in_features // group_size_of(layer.in_features, group_size)
            words = -(-layer.in_features // per) * layer.out_features
            words += groups * -(-layer.out_features // per)
            size += 4 * words + 2 * groups * layer.out_features - 2 * layer.weight.numel()
    return size


def training_bytes(model: Llama, bits: int, group_size: int) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's two moments in float32, 16 for each number trained.

    "everything": all parameters at once; "block": Block-AP, one block with a scale and a zero point
    for each group; "scales": E2E-QP, beside the packed model. Activations, and the inputs of blocks
    that Block-AP keeps, come on top.
    """
    groups = 0
    for layer in model.layers[0].modules():  # every block has the same shapes
        if isinstance(layer, nn.Linear):
            groups += layer.weight.numel() // group_size_of(layer.in_features, group_size)
    block = sum(p.numel() for p in model.layers[0].parameters())
    scales = groups * len(model.layers)
    return {
        "everything": 16 * sum(p.numel() for p in model.parameters()),
        "block": 16 * (block + 2 * groups),
        "scales": 16 * scales + packed_bytes(model, bits, group_size),
    }
