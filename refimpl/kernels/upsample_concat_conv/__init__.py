"""Enlarge one map, set another beside it, convolve both: the way into a node of a U-Net's decoder.

Ronneberger and others, *U-Net*, arXiv 1505.04597 (2015), with nearest pixels for the enlargement,
as segmentation_models.pytorch @bd7f877 has it. The readable PyTorch form is
`refimpl.papers.building_unetpp.joined`, then a convolution.

    y = W * [U(x), s] + b            3×3, zero padding, U: every pixel of x becomes 2×2

    below     (b, c, h, w)           x
    beside    (b, d, 2h, 2w)         s; d may be 0
    weight    (o, c + d, 3, 3)       W, the first c channels are x's
    bias      (o)                    b
    y         (b, o, 2h, 2w)

Of the 3×3 pixels of U(x) around an output, several are one pixel of x: an output of an even row
sees the rows i − 1, i, i of x, one of an odd row i, i, i + 1, and so it is for columns. So the
weights of one pixel can be summed first, and a 3×3 convolution of the large map is four 2×2
convolutions of the small one, one per parity of row and column: 4 products for 9. Neither U(x) nor
the concatenation has to be written.

Work: 2·4·h·w·o·(4 c + 9 d) FLOP, where the enlarged map takes 2·4·h·w·o·9·(c + d). Traffic: x, s, W
and b read and y written once; the enlarged and the joined map would add 2·4·(2 c + d) bytes per
output pixel in float32. The limit is arithmetic wherever o is more than about 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.upsample_concat_conv.composed import by_parity, with_torch
from refimpl.kernels.upsample_concat_conv.reference import naive, with_numpy

__all__ = [
    "by_parity",
    "cost",
    "example",
    "naive",
    "upsample_concat_conv",
    "with_numpy",
    "with_torch",
]


def upsample_concat_conv(
    below: Tensor, beside: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto"
) -> Tensor:
    """W * [U(below), beside] + b: (b, o, 2h, 2w). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    check(below, beside, weight, bias)
    tensors = below, beside, weight, bias
    return dispatch("upsample_concat_conv", with_torch, backend, *tensors).to(below.dtype)


AXES = {
    "below": "batch channels height width",
    "beside": "batch more rows columns",
    "weight": "outputs inputs 3 3",
    "bias": "outputs",
}


def check(below: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    tensors = dict(below=below, beside=beside, weight=weight, bias=bias)
    sizes = checks.shapes(AXES, **tensors)
    checks.floating(**tensors)
    checks.at_least(1, **{name: sizes[name] for name in ("channels", "height", "width", "outputs")})
    twice = 2 * sizes["height"], 2 * sizes["width"]
    if (sizes["rows"], sizes["columns"]) != twice:
        raise ValueError(
            f"beside is {sizes['rows']}×{sizes['columns']} pixels, it must be twice as large as"
            f" below: {twice[0]}×{twice[1]}"
        )
    if sizes["inputs"] != sizes["channels"] + sizes["more"]:
        raise ValueError(
            f"weight takes {sizes['inputs']} channels, below and beside have"
            f" {sizes['channels']} + {sizes['more']}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != below.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, below is {below.dtype}: want one type")
    checks.same_device(**tensors)


def cost(below: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    """Work of one call, with the weights of equal pixels summed."""
    batch, channels, height, width = below.shape
    outputs = len(weight)
    pixels = 4 * batch * height * width
    products = pixels * outputs * (4 * channels + 9 * beside.shape[1])
    read = sum(tensor.numel() for tensor in (below, beside, weight, bias))
    return Cost(2 * products, (read + pixels * outputs) * below.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: node (1, 3) of U-Net++ on EfficientNet-B0 for an image of 256 pixels ("large"),
    or a toy."""
    shape = {"small": (2, 3, 2, 4, 3, 5), "large": (1, 128, 72, 64, 32, 32)}[size]
    batch, channels, more, outputs, height, width = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype)

    return {
        "below": normal(batch, channels, height, width),
        "beside": normal(batch, more, 2 * height, 2 * width),
        "weight": normal(outputs, channels + more, 3, 3) / (3 * (channels + more) ** 0.5),
        "bias": normal(outputs),
    }
