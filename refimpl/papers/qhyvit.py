"""Q-HyViT: Post-Training Quantization of Hybrid Vision Transformers with Bridge Block
Reconstruction for IoT Systems.

Lee, Kwon, Park, Yu, Park, Song, IEEE Internet of Things Journal 2024, arXiv 2303.12557. Official
code: gitlab.com/ones-ai/q-hyvit, known to us by a third party's description only; the engine of the
search is PTQ4ViT's (hahnyuan/PTQ4ViT @ b42c790).

The idea
    1. A trained network is quantised without training: a few images are run through it, and every
       layer gets the step sizes (scales) of its weights and of its inputs.
    2. In a hybrid no single recipe fits all layers. So every layer tries several: one scale for all
       channels or one for each, with a zero point or without.
    3. What counts is not how far an output moves but how much the answer suffers: the square of the
       loss's gradient weighs each number's error.
    4. Where convolutions hand over to attention, at the *bridge*, the layers are searched in turn,
       each on what the quantised ones before it really give.

With O a layer's output in full precision, Ô when quantised, and L = KL(full answer ‖ answer),

    error = E[(O − Ô)ᵀ diag((∂L/∂O)²) (O − Ô)]            the Fisher form of the Hessian's
    s ∈ (0.01 + i (1.2 − 0.01)/100) · s_minmax,  i = 0 … 99  weights and inputs in turn, 3 rounds

L has no gradient at the full-precision network, its minimum; it is taken where every layer rounds
by its min–max scales. Cost: 100 forward passes of a layer for each of its two scales, round and
recipe. Biases stay in floating point, and so do attention's two products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from refimpl import checks
from refimpl.bases.mobilevit import MobileViTBlock, MobileViTv2Block
from refimpl.bases.quantisers import Grid, fold_norms, listening, minmax_grid
from refimpl.kernels.int8_product import int8_product


@torch.no_grad()
def reconstruct(
    net: nn.Module,
    block: Sequence[str],
    images: Tensor,
    outputs: dict[str, Tensor],
    gradients: dict[str, Tensor],
    by: Tensor,
    rounds: int = 3,
) -> None:
    """Calibrate the layers of a block in turn, each on what the quantised ones before it give.

    In place. block: names, in the order of computation; outputs: O in full precision; by: factors
    that are tried. No layer gets worse by its own weighted error.
    """
    for name in block:
        layer = net.get_submodule(name)
        x = entering(net, name, images)  # X̂: what the layers before it make of X
        known = x, outputs[name], gradients[name]  # X̂, O, ∂L/∂O
        tried = [layer.grids]
        for option in layer.options:  # granularity × scheme
            start = layer.minmax(x, option)
            if not start.inputs.overflows.any():
                tried.append(search(layer, start, *known, by, rounds))
        errors = [squares(layer, grids, *known).item() for grids in tried]
        layer.grids = tried[errors.index(min(errors))]
        layer.on = True  # the next layer meets the error that this one leaves
    for name in block:
        net.get_submodule(name).on = False


def factors(count: int = 100, least: float = 0.01, most: float = 1.2) -> Tensor:
    """What a min–max scale is multiplied by in the search: (count,). `most` itself is left out."""
    checks.integer(1, count=count)
    checks.positive(least=least)
    return least + torch.arange(count) * (most - least) / count


# ---- One layer: its recipes, its grids, its error


class Option(NamedTuple):
    """A recipe for the inputs of a layer: granularity and scheme."""

    per_channel: bool
    symmetric: bool


class Grids(NamedTuple):
    """The levels of a layer's weights and of its inputs; inputs without a grid stay as they are."""

    weight: Grid
    inputs: Grid | None


def options_of(layer: nn.Conv2d | nn.Linear, rule: str = "released") -> list[Option]:
    """The recipes that a layer tries.

    rule: "paper", convolutions both granularities and both schemes, linear layers both schemes;
    "released", as the official code is described: symmetric, per channel where a convolution is
    grouped.
    """
    checks.choice("rule", rule, ("released", "paper"))
    convolution = isinstance(layer, nn.Conv2d)
    if rule == "released":
        return [Option(convolution and layer.groups > 1, True)]
    kinds = [Option(False, True), Option(False, False)]
    if convolution:
        kinds += [Option(True, True), Option(True, False)]
    return kinds


class QuantLayer(nn.Module):
    """A convolution or linear layer that rounds its weights and inputs while it is `on`.

    Weights are symmetric, with one scale for each of `row_groups` equal parts of the outputs;
    inputs as an `Option` says. Maps have their channels at axis 1, tokens at the last.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        bits: int,
        row_groups: int = 1,
        options: Sequence[Option] = (Option(False, True),),
    ):
        super().__init__()
        checks.integer(1, row_groups=row_groups)
        checks.multiple(row_groups, f"as row_groups={row_groups}", outputs=len(layer.weight))
        self.layer = layer
        self.bits = bits
        self.row_groups = row_groups
        self.options = list(options)
        self.on = False
        self.grids = Grids(self.weight_grid(), None)

    def weight_grid(self) -> Grid:
        """The min–max grid of the weights."""
        rows = self.layer.weight.detach().reshape(self.row_groups, -1)
        grid = minmax_grid(rows, self.bits, symmetric=True, axis=0)
        scale = self.per_row(grid.scale)
        return Grid(scale, torch.zeros_like(scale), grid.lowest, grid.highest)

    def per_row(self, groups: Tensor) -> Tensor:
        """A number for each row group, laid out beside the weight: (groups,) -> (out, 1, …)."""
        weight = self.layer.weight
        rows = groups.flatten().repeat_interleave(len(weight) // self.row_groups)
        return rows.view(-1, *[1] * (weight.dim() - 1))

    def minmax(self, x: Tensor, option: Option | None, zero: str = "free") -> Grids:
        """Min–max grids for these inputs; zero: as in `bases.quantisers.grid_between`."""
        if option is None:
            return Grids(self.weight_grid(), None)
        axis = self.channel_axis if option.per_channel else None
        inputs = minmax_grid(x.detach(), self.bits, option.symmetric, axis, zero)
        return Grids(self.weight_grid(), inputs)

    @property
    def channel_axis(self) -> int:
        return 1 if isinstance(self.layer, nn.Conv2d) else -1

    def input_groups(self, grid: Grid) -> int:
        """How many input scales reach outputs of their own: all of a depthwise convolution."""
        layer = self.layer
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels
        return layer.in_channels if depthwise and grid.scale.numel() > 1 else 1

    def quantised(self, x: Tensor, grids: Grids) -> Tensor:
        """The output with these grids: what integers would give, in floats."""
        x = x if grids.inputs is None else grids.inputs(x)
        return functional_call(self.layer, {"weight": grids.weight(self.layer.weight)}, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantised(x, self.grids) if self.on else self.layer(x)

    @torch.no_grad()
    def in_integers(self, x: Tensor) -> Tensor:
        """The same output by sums of 8-bit integers: (…, in) -> (…, out).

        For linear layers and 1×1 convolutions at 8 bits or fewer whose inputs share one scale:
        scales per channel can't be taken out of the sum. Else `ValueError`.
        """
        layer, (weight, inputs) = self.layer, self.grids
        pointwise = layer.weight[0].numel() == layer.weight.shape[1]
        if not pointwise or getattr(layer, "groups", 1) > 1:
            raise ValueError("in_integers: only linear layers and dense 1×1 convolutions")
        if inputs is None or inputs.scale.numel() > 1 or self.bits > 8:
            raise ValueError(
                f"in_integers: bits={self.bits} must be at most 8, and inputs must share one scale"
            )
        offset = inputs.lowest + 2 ** (self.bits - 1)  # moves codes into those of signed integers
        codes = (inputs.codes(x) - offset).to(torch.int8)
        rows = codes.movedim(self.channel_axis, -1)
        y = int8_product(
            rows.flatten(0, -2),
            weight.codes(layer.weight).flatten(1).to(torch.int8),
            inputs.scale,
            weight.scale.flatten(),
            layer.bias,
            int(inputs.zero_point - offset),
        )
        return y.view(*rows.shape[:-1], -1).movedim(-1, self.channel_axis)


def squares(
    layer: QuantLayer, grids: Grids, inputs: Tensor, target: Tensor, gradient: Tensor, groups=1
) -> Tensor:
    """E[(O − Ô)ᵀ diag((∂L/∂O)²) (O − Ô)] of `groups` equal parts of the outputs: (groups,).

    A mean over images, places and the channels of a part.
    """
    apart = gradient * (target - layer.quantised(inputs, grids))
    channels = apart.square().movedim(layer.channel_axis, 0)  # (out, …)
    return channels.reshape(groups, -1).mean(1)


@torch.no_grad()
def search(
    layer: QuantLayer,
    start: Grids,
    inputs: Tensor,
    target: Tensor,
    gradient: Tensor,
    by: Tensor,
    rounds: int = 3,
) -> Grids:
    """The scales with the least weighted error, weights and inputs in turn while the other is held.

    Every scale is that of `start` times one of the factors `by` (n,). inputs: X̂; target: O;
    gradient: ∂L/∂O, in the shape of the output. Scales that reach outputs of their own are
    searched apart; other scales per channel share their factor.
    """
    checks.integer(1, rounds=rounds)
    grids = start
    for _ in range(rounds):
        for side in ("weight", "inputs"):
            first = getattr(start, side)
            if first is None:
                continue
            groups = layer.row_groups if side == "weight" else layer.input_groups(first)
            errors = []
            for factor in by:
                trial = grids._replace(**{side: first.times(factor)})
                errors.append(squares(layer, trial, inputs, target, gradient, groups))
            best = by[torch.stack(errors).argmin(0)]  # (groups,)
            if side == "weight":
                best = layer.per_row(best)
            elif groups > 1:
                best = best.view(1, -1, 1, 1)
            grids = grids._replace(**{side: first.times(best)})
    return grids


# ---- The network: folded, with layers that round


def quantise(
    model: nn.Module, bits: int, rule: str = "released", weights: str = "released"
) -> nn.Module:
    """A copy whose batch norms are folded and whose layers are `QuantLayer`s, all still off.

    weights: one scale per output "channel", or per "tensor"; "released", per channel of
    convolutions, one of linear layers, three of `qkv` (queries, keys, values).
    """
    checks.choice("weights", weights, ("released", "channel", "tensor"))
    net = copy.deepcopy(model).eval()
    fold_norms(net)
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                groups = row_groups(name, layer, weights)
                made = QuantLayer(layer, bits, groups, options_of(layer, rule))
                setattr(parent, name, made)
    return net


def row_groups(name: str, layer: nn.Conv2d | nn.Linear, weights: str) -> int:
    if weights == "tensor":
        return 1
    if weights == "channel" or isinstance(layer, nn.Conv2d):
        return len(layer.weight)
    return 3 if name == "qkv" else 1


def layers_of(net: nn.Module) -> dict[str, QuantLayer]:
    """Name -> quantised layer, in the order in which they were built."""
    return {name: part for name, part in net.named_modules() if isinstance(part, QuantLayer)}


def switch(net: nn.Module, on: bool) -> nn.Module:
    """In place: all layers round, or none; the network is returned."""
    for layer in layers_of(net).values():
        layer.on = on
    return net


def bridge_layers(model: nn.Module) -> list[list[str]]:
    """For each bridge of a MobileViT the names of its layers, in the order of computation.

    The 1×1 convolution into a Transformer's width, and the first product behind it: `attn.qkv` of
    version 1, `attn.qkv_proj` of version 2.
    """
    bridges = []
    for name, part in model.named_modules():
        if isinstance(part, (MobileViTBlock, MobileViTv2Block)):
            last = "qkv" if isinstance(part, MobileViTBlock) else "qkv_proj"
            bridges.append([f"{name}.conv_1x1", f"{name}.transformer.0.attn.{last}"])
    return bridges


@torch.no_grad()
def entering(net: nn.Module, name: str, images: Tensor) -> Tensor:
    """What the layer gets as the network stands."""
    kept = []
    with listening(layers_of(net), lambda other, x, _: kept.append(x) if other == name else None):
        net(images)
    return kept[0]


@torch.no_grad()
def minmax(
    net: nn.Module, images: Tensor, option: Option | None = None, zero: str = "clamped"
) -> nn.Module:
    """In place: min–max grids for all layers from full-precision inputs, all on; returns the net.

    option: for all inputs alike; by default each layer takes the first of its own.
    """
    layers = layers_of(switch(net, False))

    def begin(name, x, _):
        layers[name].grids = layers[name].minmax(x, option or layers[name].options[0], zero)

    with listening(layers, begin):
        net(images)
    return switch(net, True)


def full_outputs(net: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """O of every layer in full precision, and the network's answer."""
    kept = {}
    switch(net, False)
    with (
        torch.no_grad(),
        listening(layers_of(net), lambda name, _, output: kept.update({name: output})),
    ):
        answer = net(images)
    return kept, answer


@torch.enable_grad()
def output_gradients(net: nn.Module, images: Tensor, answer: Tensor) -> dict[str, Tensor]:
    """∂L/∂O of every layer as the network stands, L = KL(answer ‖ net(images)).

    All zeros where no layer is on: the divergence is then at its minimum.
    """
    kept = {}
    with listening(layers_of(net), lambda name, _, output: kept.update({name: output})):
        found = net(images.clone().requires_grad_())
    loss = F.kl_div(found.log_softmax(-1), answer.softmax(-1), reduction="batchmean")
    return dict(zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True))


def calibrate(
    model: nn.Module,
    images: Tensor,
    bits: int,
    *,
    rule: str = "released",
    weighting: str = "gradient",
    bridges: Sequence[Sequence[str]] | None = None,
    count: int = 100,
    rounds: int = 3,
) -> nn.Module:
    """The method: a quantised copy of the model, every layer on.

    First each layer by itself, then each bridge as one. bits: of weights and inputs; images:
    calibration (b, c, h, w), 32 in the paper; rule: see `options_of`; weighting: "none" counts all
    numbers of an output alike; bridges: names of layers, by default `bridge_layers(model)`; []
    leaves every layer by itself; count: factors tried, rounds: of the search. Outputs of all layers
    are held in memory.
    """
    checks.choice("weighting", weighting, ("gradient", "none"))
    by = factors(count)
    net = quantise(model, bits, rule)
    bridges = bridge_layers(model) if bridges is None else bridges
    for block in bridges:
        for name in block:
            checks.choice("bridges", name, layers_of(net), "layer")
    outputs, answer = full_outputs(net, images)
    gradients = output_gradients(minmax(net, images), images, answer)
    if weighting == "none":
        gradients = {name: torch.ones_like(g) for name, g in gradients.items()}
    switch(net, False)
    for block in [[name] for name in outputs] + [list(block) for block in bridges]:
        reconstruct(net, block, images, outputs, gradients, by, rounds)
    return switch(net, True)
