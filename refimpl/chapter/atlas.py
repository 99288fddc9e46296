"""The same photographs through every model: rows for the book's two atlases, one per model.

    atlas.attention_row("convit", model, state="at initialisation, seed 0")
    atlas.artifact_row("dvt", lambda images: …, img_size=64, state="trained here for 300 steps")

Each shows a figure and leaves its numbers in the output's metadata, under `refimpl` and there under
`attention_atlas` or `artifact_atlas`; the book collects both from the stored notebooks. One row per
cell: the figure's alternative text is the cell's.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import catalogue, checks
from refimpl.chapter import show
from refimpl.lab import data
from refimpl.layers import Layout
from refimpl.viz import artifacts, attention, charts, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The photographs of both atlases, each with the place that asks, as fractions of height and width:
# the cat's eye, the spoon beside the cup.
PHOTOS: dict[str, tuple[float, float]] = {"chelsea": (0.38, 0.32), "coffee": (0.71, 0.66)}
HEADS = 6  # drawn of a layer, at most
OCTAVES = 3  # of the colours, below and above an even look
KEPT_HEADS = 4  # of a drawn layer, at most, whose maps the record keeps
KEPT_GRID = 14  # most rows and columns of a kept map; most places that ask: half as many
CROPS = 64  # of photographs, behind η² and R² of every model: η² is about 1/64 by chance alone


def photographs(img_size: int, in_chans: int = 3) -> Tensor:
    """The atlas's photographs in [0, 1]: (b, in_chans, img_size, img_size)."""
    return adapted(torch.stack([data.photo(name, img_size) for name in PHOTOS]), in_chans)


def adapted(images: Tensor, in_chans: int) -> Tensor:
    """Photographs in colour, or in grey for a model that takes one channel."""
    if in_chans not in (1, 3):
        raise ValueError(
            f"in_chans={in_chans} must be 3 (colour) or 1 (grey): the atlas shows photographs"
        )
    return images if in_chans == 3 else images.mean(1, keepdim=True)


# -- attention


def attention_row(
    stem: str,
    model: nn.Module,
    *,
    state: str,
    name: str = "",
    layers: tuple[int, int] = (0, -1),
    img_size: int | None = None,
    in_chans: int | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Show where a model's heads look on the atlas's photographs, and measure it.

    stem: the chapter; state: what the weights are, honestly ("at initialisation, seed 0"); name: of
    the model, the paper's by default; layers: which two are drawn, an early and a late one, among
    those that `measured` lists and whose maps lie on the image; img_size, in_chans: of the model's
    input, by default the model's own attributes; prepare: from images in [0, 1] to what the model
    was trained on (`lab.data.normalised` for ImageNet's weights).

    Leaves the record `attention_atlas` in the output's metadata. The model is run in evaluation
    mode and left as it was.
    """
    name = checked(stem, state, name)
    size = given_or_own(model, "img_size", img_size)
    photos = photographs(size, given_or_own(model, "in_chans", in_chans))
    maps = recorded(model, prepare(photos) if prepare else photos)
    found = measured(maps)
    drawable = [i for i, layer in enumerate(found) if layer["on_image"]]
    if not drawable:
        raise ValueError(
            f"attention_row: no attention map of {name} lies on the image; give the probes of the"
            " model a layout (layers.Layout)"
        )
    try:
        first, last = (drawable[i] for i in layers)
    except (IndexError, ValueError, TypeError):
        count = len(drawable)
        raise ValueError(
            f"layers={layers!r} must be two numbers from {-count} to {count - 1}: {name} has"
            f" {count} maps on the image"
        ) from None
    record = {
        "stem": stem,
        "model": name,
        "state": state.strip(),
        "img_size": size,
        "photos": list(PHOTOS),
        "layers": found,
        "drawn": [first, last],
    }
    drawn = sorted({first, last})  # a model of one layer shows it once
    record["maps"] = [kept(maps[i], i) for i in drawn]
    titles = [f"layer {i + 1}" for i in drawn]
    fig = draw_attention(photos, [maps[i] for i in drawn], titles)
    publish(fig, f"{name}, {record['state']}: {in_words(found)}", {"attention_atlas": record})


def recorded(model: nn.Module, images: Tensor) -> list[attention.Map]:
    """Maps of one forward pass in evaluation mode, of layers with at least two keys to choose from.

    The model runs on its own device.
    """
    training = {module: module.training for module in model.modules()}
    where = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), attention.record(model.eval()) as maps:
            model(images.to(where.device, where.dtype))
    finally:
        for module, mode in training.items():
            module.training = mode
    return [m for m in maps if m.weights.shape[-1] > 1]


def measured(maps: Sequence[attention.Map]) -> list[dict]:
    """What the atlas says of every layer, averaged over heads and images:

    similarity, centred: mean cosine between maps of two heads, plain and with the uniform map taken
    off (`None` for a single head); entropy: as a fraction of a uniform map's; distance: how far
    attention to patches travels, as a fraction of what uniform attention over the whole image
    travels (`None` where the map does not lie on the image). Weight on class tokens and padding
    does not count for distance.
    """
    return [measures(m) for m in maps]


def measures(m: attention.Map) -> dict:
    """What the atlas says of one layer."""
    found = {"name": m.name, "heads": m.heads, "grid": None}
    found["window"] = m.layout.window if m.layout else None
    values = {"similarity": None, "centred": None}
    if m.heads > 1:
        values["similarity"] = attention.head_similarity(m).mean().item()
        values["centred"] = attention.head_similarity(m, centred=True).mean().item()
    values["entropy"] = attention.entropy(m).mean().item()
    try:
        values["distance"] = distance(m.to_image(), m.grid)
    except ValueError:  # tokens that were merged or dropped have no place any more
        found["on_image"] = False
        values["distance"] = None
    else:
        found["on_image"] = True
        found["grid"] = list(m.grid)
    return found | rounded(values)


def rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    """To four decimals."""
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def distance(weights: Tensor, grid: tuple[int, int]) -> float | None:
    """Non-locality of maps (b, heads, h·w, h·w) as a fraction of the uniform map's.

    `None` where no query looks at any patch, or the grid is one patch.
    """
    total = weights.sum(-1, keepdim=True)
    if grid[0] * grid[1] < 2 or not (total > 0).all():
        return None
    uniform = torch.full((1, 1, *weights.shape[-2:]), 1 / weights.shape[-1])
    layout = Layout(tuple(grid))
    found = attention.non_locality(attention.Map("", weights / total, layout)).mean()
    most = attention.non_locality(attention.Map("", uniform, layout)).mean()
    return found.item() / most.item()


def in_words(layers: Sequence[dict]) -> str:
    """`12 layers; distance 0.31 in the first, 0.97 in the last (1: uniform attention)`."""
    distances = [layer["distance"] for layer in layers if layer["distance"] is not None]
    text = f"{len(layers)} layer{'s' if len(layers) != 1 else ''} of attention"
    if distances:
        text += f"; distance travelled {distances[0]:.2f} in the first,"
        text += f" {distances[-1]:.2f} in the last (1 is uniform attention)"
    return text


def kept(m: attention.Map, layer: int) -> dict:
    """A layer's maps of the first photograph, small enough for the atlas to compare two models.

    Pooled to at most `KEPT_GRID` rows and columns, and the places that ask to half as many. Each
    weight is one byte, its octaves above an even look in sixteenths of the scale; compressed.
    """
    weights = m.to_image()[0, :KEPT_HEADS]  # (heads, h·w, h·w)
    times = weights * weights.shape[-1]  # an even look
    keys = list(m.grid)
    while max(keys) > KEPT_GRID:
        times = attention.pooled(times, keys)
        times = attention.pooled(times.transpose(1, 2), keys).transpose(1, 2)
        keys = [-(-n // 2) for n in keys]
    asks = list(keys)
    while max(asks) > KEPT_GRID // 2:
        times = attention.pooled(times.transpose(1, 2), asks).transpose(1, 2)
        asks = [-(-n // 2) for n in asks]
    octaves = octaves_of(times)
    codes = (8 + 8 * octaves / OCTAVES).round().clamp(0, 15).byte()
    text = base64.b64encode(zlib.compress(codes.contiguous().numpy().tobytes(), 9)).decode()
    return {"layer": layer, "heads": len(weights), "keys": keys, "asks": asks, "codes": text}


def octaves_of(times: Tensor) -> Tensor:
    """Doublings above an even look, which is 1, within the scale."""
    return times.clamp(min=1e-6).log2().clamp(-OCTAVES, OCTAVES)


def draw_attention(images: Tensor, maps: Sequence[attention.Map], titles: Sequence[str]) -> Figure:
    """Every photograph with the asking patch outlined, and where the heads look from that patch.

    images: (b, c, H, W) in [0, 1]; maps: one row of heads each, at most `HEADS` of them, beside the
    photograph. Colours tell a weight's octaves above an even look at all patches: an even look is
    pale, and the scale is the same in all rows of the atlas.
    """
    import matplotlib.pyplot as plt

    heads = min(HEADS, max(m.heads for m in maps))
    columns = len(maps) + heads  # the photograph is as high as its maps together
    cell = min(charts.WIDTH / (columns + 0.3), 1.1)
    rows = len(images) * len(maps)
    fig = plt.figure(figsize=((columns + 0.3) * cell, rows * cell + 0.9))
    grid = fig.add_gridspec(rows + 1, columns, height_ratios=[*[1] * rows, 0.18])
    drawn = {"cmap": charts.DIVERGING, "vmin": -OCTAVES, "vmax": OCTAVES}
    for i, (image, place) in enumerate(zip(images, PHOTOS.values(), strict=True)):
        top = i * len(maps)
        photo = charts.bare(fig.add_subplot(grid[top : top + len(maps), : len(maps)]))
        photo.imshow(charts.as_picture(image), cmap="gray", vmin=0, vmax=1)
        first_patch = patch_at(place, maps[0].grid)
        attention.outline(photo, first_patch, maps[0].grid, image.shape[1:])
        for j, (m, title) in enumerate(zip(maps, titles, strict=True)):
            row, column = patch_at(place, m.grid)
            looks = m.to_image()[i, :heads, row * m.grid[1] + column].unflatten(-1, m.grid)
            for h, look in enumerate(looks):
                ax = charts.bare(fig.add_subplot(grid[top + j, len(maps) + h]))
                ax.spines[:].set(visible=True, color=charts.SOFT, linewidth=0.6)  # pale on pale
                shown = ax.imshow(octaves_of(look * look.numel()).numpy(), **drawn)
                attention.outline(ax, (row, column), m.grid, m.grid, 0.5)
                ax.set_ylabel(title if h == 0 else "", fontsize=11)
                if i == 0 and all(other.heads <= h for other in maps[:j]):
                    style = {"fontsize": 11, "fontweight": "normal", "loc": "center", "pad": 4}
                    ax.set_title(f"head {h + 1}", **style)
    bar = fig.colorbar(shown, cax=fig.add_subplot(grid[rows, :]), orientation="horizontal")
    bar.set_ticks([-OCTAVES, 0, OCTAVES], labels=["an eighth", "even look", "8 times"])
    bar.ax.tick_params(labelsize=11)
    return fig


def patch_at(place: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    """The patch (row, column) that covers a place given as fractions of height and width."""
    row, column = int(place[0] * grid[0]), int(place[1] * grid[1])
    return min(row, grid[0] - 1), min(column, grid[1] - 1)


# -- position artifacts


def artifact_row(
    stem: str,
    features: Callable[[Tensor], Tensor],
    *,
    state: str,
    img_size: int,
    name: str = "",
    in_chans: int = 3,
) -> None:
    """Show and measure how much of a model's features belongs to position.

    features: images (b, in_chans, img_size, img_size) in [0, 1] -> feature maps (b, h, w, c),
    without class tokens; stem, state, name: as for `attention_row`.

    The measures are taken on `CROPS` random crops of photographs, the same for every model, and
    beside them on the pixels of those crops alone; the blank image is of one grey, 0.5. Leaves the
    record `artifact_atlas` in the output's metadata.
    """
    name = checked(stem, state, name)
    crops = adapted(data.photo_crops(size=img_size, n=CROPS).images, in_chans)
    photos = photographs(img_size, in_chans)
    with torch.no_grad():
        on_crops = torch.cat([mapped(features, part) for part in crops.split(16)])
        on_photos = mapped(features, photos)
        on_blank = mapped(features, torch.full_like(crops[:1], 0.5))[0]
    height, width = on_crops.shape[1:3]
    pixels = F.interpolate(crops, (4 * height, 4 * width), mode="bilinear", antialias=True)
    pixels = rearrange(pixels, "b c (h y) (w x) -> b h w (c y x)", h=height, w=width)
    mean = centred(on_crops.mean(0))
    blank = centred(on_blank)
    plain = flat(blank, on_blank)
    scatter = (on_crops - on_crops.mean((0, 1, 2))).square().mean().clamp(min=1e-12)
    values = {
        "share": artifacts.position_share(on_crops),
        "readout": artifacts.position_readout(on_crops),
        "pixels_share": artifacts.position_share(pixels),
        "pixels_readout": artifacts.position_readout(pixels),
        "blank_spread": (blank.square().mean() / scatter).sqrt().item(),
        "blank_agreement": None,
    }
    if not plain:
        agreement = F.cosine_similarity(blank.flatten(), mean.flatten(), dim=0)
        values["blank_agreement"] = agreement.item()
    record = {
        "stem": stem,
        "model": name,
        "state": state.strip(),
        "img_size": img_size,
        "photos": list(PHOTOS),
        "crops": CROPS,
        "grid": [height, width],
    }
    record |= rounded(values)
    fig = draw_artifacts(photos, on_photos, mean, None if plain else blank)
    line = f"position explains {record['share']:.1%} of the features' variance"
    line += f" and can be read from them with R² = {record['readout']:.2f}"
    publish(fig, f"{name}, {record['state']}: {line}", {"artifact_atlas": record})


def mapped(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Feature maps on the CPU; a `ValueError` where they are no maps."""
    maps = features(images)
    if maps.dim() != 4 or len(maps) != len(images) or maps.shape[-1] < 3:
        raise ValueError(
            f"features(images) must be (b, h, w, c) with b = {len(images)} and at least 3 channels,"
            f" got {tuple(maps.shape)}"
        )
    return maps.detach().float().cpu()


def centred(features: Tensor) -> Tensor:
    """A map (h, w, c) less its mean over positions, which says nothing about position."""
    return features - features.mean((0, 1))


def flat(centred_map: Tensor, features: Tensor) -> bool:
    """Whether a map is the same everywhere, to float32's accuracy."""
    return centred_map.norm().item() <= 1e-5 * features.norm().item()


def draw_artifacts(images: Tensor, on_photos: Tensor, mean: Tensor, blank: Tensor | None) -> Figure:
    """Each photograph and its features, the mean map of all crops and the blank image's.

    Features are drawn as principal colours. The photographs share directions and scale; so do the
    two maps of position. blank: `None` is drawn plain.
    """
    photos = [image.expand(3, -1, -1) for image in images]
    seen = list(artifacts.pca_colours(on_photos).numpy())
    blank = torch.zeros_like(mean) if blank is None else blank
    position = artifacts.pca_colours(torch.stack([mean, blank])).numpy()
    pictures = []
    for photo, colours in zip(photos, seen, strict=True):
        pictures += [photo, colours]
    pictures += list(position)
    titles = ["photo", "features"] * len(photos) + ["mean of\ncrops", "blank\nimage"]
    return charts.image_grid(pictures, titles, columns=len(pictures))


# -- both


def checked(stem: str, state: str, name: str) -> str:
    """The model's name; a `ValueError` for an unknown chapter or an empty `state`."""
    checks.choice("stem", stem, catalogue.PAPERS, "paper")
    if not state.strip():
        raise ValueError(
            "state is empty; say what the weights are, for example 'at initialisation, seed 0'"
        )
    return name.strip() or catalogue.PAPERS[stem].name


def given_or_own(model: nn.Module, key: str, value: int | None) -> int:
    """The value, or the model's attribute of that name."""
    value = getattr(model, key, None) if value is None else value
    if not isinstance(value, int):
        raise ValueError(
            f"{key}={value!r} must be a whole number; {type(model).__name__} has no attribute of"
            " that name that is one, so give it"
        )
    return value


def publish(fig: Figure, text: str, record: dict) -> None:
    """Show a figure as an output of its own, with the record in its metadata."""
    import matplotlib.pyplot as plt

    picture, about = drawing.stored(fig)
    file = base64.b64encode(picture).decode()
    plt.close(fig)  # else the notebook would show it a second time
    show.publish({"image/png": file, "text/plain": text}, {"refimpl": record, "image/png": about})
