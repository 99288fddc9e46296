"""Corruptions of images in five severities, and errors measured against a baseline's.

MedMNIST-C: Di Salvo, Doerrich, Ledig, arXiv 2406.17536 (2024), library medmnistc 0.1.0. An image is
(h, w, 3) in 8 bits; a result is clipped to 0 … 255 and *cut off* to an integer, not rounded.

    BE  = mean over corruptions of  mean_s err_{c,s} / err^baseline_c
    rBE = mean over corruptions of (mean_s err_{c,s} − err_clean) / (err^baseline_c − err^baseline)

err is 1 − balanced accuracy: every class counts alike. BE below 1: fewer errors than the baseline;
rBE below 1: it *loses* less by corruption. A model can have one without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from refimpl import checks

Image = np.ndarray


def cut(x: np.ndarray) -> Image:
    """Clip to 0 … 255 and cut off what stands behind the point."""
    return np.clip(x, 0, 255).astype(np.uint8)


def box_weights(length: int, new_length: int) -> np.ndarray:
    """(new_length, length): what share of each old pixel a new one holds; rows sum to 1.

    An old pixel counts where its centre lies in the new one, and half where it lies on the edge.
    """
    scale = length / new_length
    support = max(scale, 1.0) / 2
    centre = (np.arange(new_length)[:, None] + 0.5) * scale
    apart = (np.arange(length) + 0.5 - centre) / max(scale, 1.0)
    inside = (apart > -0.5) & (apart <= 0.5)
    first = np.floor(centre - support + 0.5)
    last = np.floor(centre + support + 0.5)
    index = np.arange(length)
    weights = (inside & (index >= first) & (index < last)).astype(float)
    return weights / weights.sum(1, keepdims=True)


def resized(image: Image, height: int, width: int) -> Image:
    """By box filters, columns first, rounded to grey levels after each axis."""
    x = np.einsum("wv,hvc->hwc", box_weights(image.shape[1], width), image.astype(float))
    x = np.floor(x + 0.5)
    x = np.einsum("hg,gwc->hwc", box_weights(image.shape[0], height), x)
    return cut(np.floor(x + 0.5))


def pixelate(image: Image, share: float) -> Image:
    """Shrink to this share of both sides, and back."""
    height, width = image.shape[:2]
    return resized(resized(image, int(height * share), int(width * share)), height, width)


def gaussian_noise(image: Image, sigma: float, g) -> Image:
    x = image / 255.0
    return cut(np.clip(x + g.normal(size=x.shape, scale=sigma), 0, 1) * 255)


def speckle_noise(image: Image, sigma: float, g) -> Image:
    """Noise in proportion to the grey level."""
    x = image / 255.0
    return cut(np.clip(x + x * g.normal(size=x.shape, scale=sigma), 0, 1) * 255)


def shot_noise(image: Image, photons: float, g) -> Image:
    """As if white were so many photons."""
    x = image / 255.0
    return cut(np.clip(g.poisson(x * photons) / photons, 0, 1) * 255)


def impulse_noise(image: Image, share: float, g) -> Image:
    """Salt and pepper, half of each, on this share of the numbers."""
    chance = g.uniform(size=image.shape)
    kinds = np.where(chance < share / 2, 0, 255)
    return np.where(chance < share, kinds, image).astype(np.uint8)


def luma(image: Image) -> np.ndarray:
    """Grey levels of 8 bits, in fixed-point arithmetic: (h, w)."""
    x = image.astype(np.int64)
    return (x[..., 0] * 19595 + x[..., 1] * 38470 + x[..., 2] * 7471 + 0x8000) >> 16


def brightness(image: Image, factor: float) -> Image:
    return cut(image * factor)


def contrast(image: Image, factor: float) -> Image:
    """Away from the mean grey level, or towards it."""
    mean = int(luma(image).mean() + 0.5)
    return cut(mean + factor * (image - float(mean)))


def gamma(image: Image, exponent: float) -> Image:
    return cut(255.999 * (np.arange(256) / 255.0) ** exponent)[image]


def saturate(image: Image, shift: float) -> Image:
    """Add to the saturation; hue and value stay."""
    x = image / 255.0
    high = x.max(-1, keepdims=True)
    spread = high - x.min(-1, keepdims=True)
    saturation = spread / np.where(high > 0, high, 1)
    wanted = np.clip(saturation + shift, 0, 1)
    stretch = np.where(spread > 0, wanted * high / np.where(spread > 0, spread, 1), 0)
    grey = np.where(spread > 0, 0, wanted * high)  # hue 0: red stays, the others fall
    fall = np.concatenate([np.zeros_like(grey), grey, grey], -1)
    return cut((high - (high - x) * stretch - fall) * 255)


def disk(radius: float, blur: float) -> np.ndarray:
    """A round spot (17, 17) of sum 1, its edge softened by a 3 × 3 Gaussian of this deviation."""
    span = np.arange(-8, 9)
    spot = (span[:, None] ** 2 + span**2 <= radius**2).astype(np.float64)
    spot /= spot.sum()
    line = np.exp(-0.5 * (np.arange(-1, 2) / blur) ** 2)
    return correlated(spot, np.outer(line, line) / line.sum() ** 2).astype(np.float32)


def correlated(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation of the first two axes, borders mirrored without repeating the edge."""
    margin = [(side // 2, side // 2) for side in kernel.shape]
    padded = np.pad(x, margin + [(0, 0)] * (x.ndim - 2), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, (0, 1))
    return np.einsum("...ij,ij->...", windows, kernel)


def defocus(image: Image, radius: float, blur: float) -> Image:
    return cut(np.clip(correlated(image / 255.0, disk(radius, blur)), 0, 1) * 255)


def enlarged(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle, linearly enlarged to the size that it had: (h, w, c) -> the same."""
    height, width = x.shape[:2]
    for axis, length in enumerate((height, width)):
        part = int(np.ceil(length / factor))
        first = (length - part) // 2
        piece = np.take(x, np.arange(first, first + part), axis)
        new_length = int(round(part * factor))
        place = np.arange(new_length) * (part - 1) / max(new_length - 1, 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, part - 1)
        share = (place - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
        piece = np.take(piece, low, axis) * (1 - share) + np.take(piece, high, axis) * share
        trim = (new_length - length) // 2
        x = np.take(piece, np.arange(trim, trim + length), axis)
    return x


def black_corner(image: Image, share: float) -> Image:
    """Black outside a disk around the middle, of this share of the largest radius that fits."""
    height, width = image.shape[:2]
    middle = height // 2, width // 2
    radius = int(min(*middle, width - middle[1], height - middle[0]) * share)
    down = np.arange(height)[:, None] - middle[0]
    right = np.arange(width) - middle[1]
    inside = down**2 + right**2 <= radius**2
    return np.where(inside[..., None], image, 0).astype(np.uint8)


# Steps of the five severities of zoom, by their ends (DermaMNIST-C).
ZOOM_STEPS = {1.11: 0.01, 1.16: 0.01, 1.21: 0.02, 1.26: 0.02, 1.31: 0.03}


def zoom(image: Image, end: float, step: float | None = None) -> Image:
    """The mean of the image and of its middles, enlarged 1, 1 + step, … times, up to below `end`.

    step: by default the library's for this end, 0.01 for others.
    """
    factors = np.arange(1, end, ZOOM_STEPS.get(end, 0.01) if step is None else step)
    x = image / 255.0
    total = x + sum(enlarged(x, factor) for factor in factors)
    return cut(np.clip(total / (len(factors) + 1), 0, 1) * 255)


KINDS: dict[str, Callable[..., Image]] = {
    "pixelate": pixelate,
    "gaussian_noise": gaussian_noise,
    "speckle_noise": speckle_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "brightness": brightness,
    "contrast": contrast,
    "gamma": gamma,
    "saturate": saturate,
    "defocus": defocus,
    "black_corner": black_corner,
    "zoom": zoom,
}


def corrupt(image: Image, kind: str, *parameters: float, g=None) -> Image:
    """One corruption of an image (h, w, 3) of 8 bits; g: NumPy's generator, for kinds of noise."""
    checks.choice("kind", kind, KINDS)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be (h, w, 3) of 8 bits, got {tuple(image.shape)} of {image.dtype}"
        )
    if not kind.endswith("noise"):
        return KINDS[kind](image, *parameters)
    if g is None:
        raise ValueError(f"kind={kind!r} draws numbers: give g, a generator of NumPy")
    return KINDS[kind](image, *parameters, g)


def balanced_error(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """1 − the mean over the classes of `truth` of the share that was recognised."""
    predicted = np.asarray(predicted)
    truth = np.asarray(truth)
    if predicted.shape != truth.shape or truth.size == 0:
        raise ValueError(
            f"predicted has shape {predicted.shape}, truth {truth.shape}:"
            " they must be equal, with one class for each image"
        )
    recalls = [np.mean(predicted[truth == label] == label) for label in np.unique(truth)]
    return 1.0 - float(np.mean(recalls))


def relative_errors(
    errors: Mapping[str, tuple[Sequence[float], float]], clean: float, baseline_clean: float
) -> dict[str, float]:
    """BE and rBE: "be", "rbe" and "be.<corruption>", "rbe.<corruption>".

    errors: corruption -> the model's balanced errors at its severities, and the baseline's mean
    error. clean, baseline_clean: both on clean images. Raises `ValueError` where the baseline makes
    no error, or loses nothing by a corruption: there is nothing to divide by.
    """
    found = {}
    for kind, (levels, baseline) in errors.items():
        if not baseline > 0 or baseline == baseline_clean:
            raise ValueError(
                f"the baseline's error is {baseline} under {kind!r} and {baseline_clean} on clean"
                " images: it must be above 0 and differ, for ratios to be formed"
            )
        mean = float(np.mean(levels))
        found[f"be.{kind}"] = mean / baseline
        found[f"rbe.{kind}"] = (mean - clean) / (baseline - baseline_clean)
    for measure in ("be", "rbe"):
        of_kinds = [v for name, v in found.items() if name.startswith(f"{measure}.")]
        found[measure] = float(np.mean(of_kinds))
    return found
