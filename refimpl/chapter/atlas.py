"""The same photographs through every model: one row a model for the book's *Attention atlas*, one for its *Artifact atlas*.

    atlas.attention_row("convit", model, state="at initialisation, seed 0")
    atlas.artifact_row("dvt", lambda images: …, img_size=64, state="trained here on 768 scenes, 300 steps")

Each shows a figure and leaves its numbers in the output's metadata, `{"refimpl": {"attention_atlas": {…}}}` or `{"refimpl": {"artifact_atlas": {…}}}`;
the book collects both from the stored notebooks. One row a cell: the figure's alternative text is the cell's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import catalogue
from refimpl.chapter import show
from refimpl.lab import data
from refimpl.layers import Layout
from refimpl.viz import artifacts, attention, charts, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The photographs of both atlases, each with the place that asks, as shares of height and width: the cat's eye, the spoon beside the cup.
PHOTOS: dict[str, tuple[float, float]] = {"chelsea": (0.38, 0.32), "coffee": (0.71, 0.66)}
HEADS = 6  # drawn of a layer, at most
CROPS = 64  # photo crops behind η² and R² of every model: η² is about 1/64 by chance alone


def photographs(img_size: int, in_chans: int = 3) -> Tensor:
    """The atlas's photographs in [0, 1]: (b, in_chans, img_size, img_size)."""
    return adapted(torch.stack([data.photo(name, img_size) for name in PHOTOS]), in_chans)


def adapted(images: Tensor, in_chans: int) -> Tensor:
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
    """Show where a model's heads look on the atlas's photographs, and measure it. Leaves the record `attention_atlas` in the output's metadata.

    stem: the chapter; state: what the weights are, honestly ("at initialisation, seed 0"); name: of the model, the paper's by default;
    layers: which two are drawn, an early and a late one, among those that `measured` lists and whose maps lie on the image;
    img_size, in_chans: of the model's input, by default the model's own attributes; prepare: from images in [0, 1] to what the model was trained on
    (`lab.data.normalised` for ImageNet's weights). The model is run in evaluation mode and left as it was.
    """
    name = checked(stem, state, name)
    size, chans = (
        given_or_own(model, key, value)
        for key, value in (("img_size", img_size), ("in_chans", in_chans))
    )
    maps = recorded(
        model, prepare(photographs(size, chans)) if prepare else photographs(size, chans)
    )
    found = measured(maps)
    drawable = [i for i, layer in enumerate(found) if layer["on_image"]]
    if not drawable:
        raise ValueError(
            f"attention_row: no attention map of {name} lies on the image; give the layers of the model a layout (layers.Layout)"
        )
    try:
        first, last = (drawable[i] for i in layers)
    except (IndexError, ValueError, TypeError):
        raise ValueError(
            f"layers={layers!r} must be two numbers from {-len(drawable)} to {len(drawable) - 1}: {name} has {len(drawable)} maps on the image"
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
    fig = draw_attention(
        photographs(size, chans),
        [maps[i] for i in (first, last)],
        [f"layer {i + 1}" for i in (first, last)],
    )
    publish(fig, f"{name}, {record['state']}: {in_words(found)}", {"attention_atlas": record})


def recorded(model: nn.Module, images: Tensor) -> list[attention.Map]:
    """One forward pass in evaluation mode on the model's device; maps of layers that have at least two keys to choose from."""
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
    """For every layer, averaged over heads and images:

    similarity, centred: mean cosine between maps of two heads, plain and with the uniform map taken off (`None` for a single head);
    entropy: as a share of a uniform map's; distance: how far attention to patches travels, as a share of what uniform attention over the
    whole image travels (`None` where the map does not lie on the image). Weight on class tokens and padding does not count for distance.
    """
    found = []
    for m in maps:
        try:
            on_image = m.to_image()
            grid = list(m.grid)
        except ValueError:  # tokens that were merged or dropped have no place any more
            on_image, grid = None, None
        alike = {
            key: attention.head_similarity(m, centred).mean().item() if m.heads > 1 else None
            for key, centred in (("similarity", False), ("centred", True))
        }
        values = alike | {
            "entropy": attention.entropy(m).mean().item(),
            "distance": None if on_image is None else distance(on_image, m.grid),
        }
        place = {
            "name": m.name,
            "heads": m.heads,
            "grid": grid,
            "window": m.layout.window if m.layout else None,
            "on_image": on_image is not None,
        }
        found.append(
            place
            | {key: None if value is None else round(value, 4) for key, value in values.items()}
        )
    return found


def distance(weights: Tensor, grid: tuple[int, int]) -> float | None:
    """Non-locality of maps (b, heads, h·w, h·w) as a share of the uniform map's; `None` where no query looks at any patch or the grid is one patch."""
    total = weights.sum(-1, keepdim=True)
    if grid[0] * grid[1] < 2 or not (total > 0).all():
        return None
    uniform = torch.full((1, 1, *weights.shape[-2:]), 1 / weights.shape[-1])
    far, most = (
        attention.non_locality(attention.Map("", w, Layout(tuple(grid)))).mean().item()
        for w in (weights / total, uniform)
    )
    return far / most


def in_words(layers: Sequence[dict]) -> str:
    """`12 layers; distance 0.31 in the first, 0.97 in the last (1: uniform attention)`."""
    far = [layer["distance"] for layer in layers if layer["distance"] is not None]
    text = f"{len(layers)} layer{'s' if len(layers) != 1 else ''} of attention"
    return text + (
        f"; distance travelled {far[0]:.2f} in the first, {far[-1]:.2f} in the last (1 is uniform attention)"
        if far
        else ""
    )


def draw_attention(images: Tensor, maps: Sequence[attention.Map], titles: Sequence[str]) -> Figure:
    """For every image the photograph with the asking patch outlined; beside it, for each of the maps, where the heads look from that patch.

    Every head's colours reach from 0 to its own strongest weight. images: (b, c, H, W) in [0, 1]; at most `HEADS` heads are drawn.
    """
    import matplotlib.pyplot as plt

    heads = min(HEADS, max(m.heads for m in maps))
    columns = len(maps) + heads  # the photograph is as high as its maps together
    cell = min(charts.WIDTH / (columns + 0.3), 1.1)
    fig = plt.figure(figsize=((columns + 0.3) * cell, len(images) * len(maps) * cell + 0.3))
    grid = fig.add_gridspec(len(images) * len(maps), columns)
    for i, (image, place) in enumerate(zip(images, PHOTOS.values(), strict=True)):
        top = i * len(maps)
        photo = charts.bare(fig.add_subplot(grid[top : top + len(maps), : len(maps)]))
        photo.imshow(charts.as_picture(image), cmap="gray", vmin=0, vmax=1)
        outline(photo, place, maps[0].grid, image.shape[1:])
        for j, (m, title) in enumerate(zip(maps, titles, strict=True)):
            row, column = patch_at(place, m.grid)
            for h, look in enumerate(
                m.to_image()[i, :heads, row * m.grid[1] + column].unflatten(-1, m.grid)
            ):
                ax = charts.bare(fig.add_subplot(grid[top + j, len(maps) + h]))
                ax.imshow(look.numpy(), vmin=0, vmax=max(look.max().item(), 1e-12))
                outline(ax, place, m.grid, m.grid, 0.5)
                ax.set_ylabel(title if h == 0 else "", fontsize=11)
                if i == 0 and all(other.heads <= h for other in maps[:j]):
                    ax.set_title(
                        f"head {h + 1}", fontsize=11, fontweight="normal", loc="center", pad=4
                    )
    return fig


def patch_at(place: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    """The patch (row, column) that covers a place given as shares of height and width."""
    return min(int(place[0] * grid[0]), grid[0] - 1), min(int(place[1] * grid[1]), grid[1] - 1)


def outline(
    ax: Axes,
    place: tuple[float, float],
    grid: tuple[int, int],
    shape: tuple[int, int],
    thickness: float = 1.4,
) -> None:
    """Outline the patch at a place on a picture of `shape` (H, W) pixels."""
    from matplotlib.patches import Rectangle

    row, column = patch_at(place, grid)
    height, width = shape[0] / grid[0], shape[1] / grid[1]
    for edge, line in (("#000000", 2.2 * thickness), ("#ffffff", thickness)):
        ax.add_patch(
            Rectangle(
                (column * width - 0.5, row * height - 0.5),
                width,
                height,
                fill=False,
                ec=edge,
                lw=line,
            )
        )


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
    """Show and measure how much of a model's features belongs to position. Leaves the record `artifact_atlas` in the output's metadata.

    features: images (b, in_chans, img_size, img_size) in [0, 1] -> feature maps (b, h, w, c), without class tokens; stem, state, name: as for
    `attention_row`. The blank image is of one grey, 0.5.
    The measures are taken on `CROPS` random crops of photographs, the same for every model, and beside them on the pixels of those crops alone.
    """
    name = checked(stem, state, name)
    crops = adapted(data.photo_crops(size=img_size, n=CROPS).images, in_chans)
    with torch.no_grad():
        on_crops = torch.cat([mapped(features, part) for part in crops.split(16)])
        on_photos = mapped(features, photographs(img_size, in_chans))
        on_blank = mapped(features, torch.full_like(crops[:1], 0.5))[0]
    height, width = on_crops.shape[1:3]
    pixels = F.interpolate(
        crops, (4 * height, 4 * width), mode="bilinear", antialias=True, align_corners=False
    )
    pixels = rearrange(pixels, "b c (h y) (w x) -> b h w (c y x)", h=height, w=width)
    mean = centred(on_crops.mean(0))
    blank = centred(on_blank)
    values = {
        "share": artifacts.position_share(on_crops),
        "readout": artifacts.position_readout(on_crops),
        "pixels_share": artifacts.position_share(pixels),
        "pixels_readout": artifacts.position_readout(pixels),
        "blank_spread": (
            blank.square().mean()
            / (on_crops - on_crops.mean((0, 1, 2))).square().mean().clamp(min=1e-12)
        )
        .sqrt()
        .item(),
        "blank_agreement": F.cosine_similarity(blank.flatten(), mean.flatten(), 0).item()
        if not flat(blank, on_blank)
        else None,
    }
    record = {
        "stem": stem,
        "model": name,
        "state": state.strip(),
        "img_size": img_size,
        "photos": list(PHOTOS),
        "crops": CROPS,
    }
    record |= {"grid": [height, width]} | {
        key: None if value is None else round(value, 4) for key, value in values.items()
    }
    fig = draw_artifacts(
        photographs(img_size, in_chans), on_photos, mean, None if flat(blank, on_blank) else blank
    )
    line = f"position explains {record['share']:.1%} of the features' variance and can be read from them with R² = {record['readout']:.2f}"
    publish(fig, f"{name}, {record['state']}: {line}", {"artifact_atlas": record})


def mapped(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    maps = features(images)
    if maps.dim() != 4 or len(maps) != len(images) or maps.shape[-1] < 3:
        raise ValueError(
            f"features(images) must be (b, h, w, c) with b = {len(images)} and at least 3 channels, got {tuple(maps.shape)}"
        )
    return maps.detach().float().cpu()


def centred(features: Tensor) -> Tensor:
    """A map (h, w, c) less its mean over positions: what is the same everywhere says nothing about position."""
    return features - features.mean((0, 1))


def flat(centred_map: Tensor, features: Tensor) -> bool:
    """Whether a map is the same everywhere, to float32's accuracy."""
    return centred_map.norm().item() <= 1e-5 * features.norm().item()


def draw_artifacts(images: Tensor, on_photos: Tensor, mean: Tensor, blank: Tensor | None) -> Figure:
    """Each photograph and its features, the mean map of all crops and the blank image's, as principal colours; `blank=None` is drawn plain.

    The photographs share directions and scale; so do the two maps of position.
    """
    photos = [image.expand(3, -1, -1) for image in images]
    seen = list(artifacts.pca_colours(on_photos).numpy())
    position = artifacts.pca_colours(
        torch.stack([mean, torch.zeros_like(mean) if blank is None else blank])
    ).numpy()
    pictures = [p for pair in zip(photos, seen, strict=True) for p in pair] + list(position)
    titles = ["photo", "features"] * len(photos) + ["mean of\ncrops", "blank\nimage"]
    return charts.image_grid(pictures, titles, columns=len(pictures))


# -- both


def checked(stem: str, state: str, name: str) -> str:
    """The model's name; a `ValueError` for an unknown chapter or an empty `state`."""
    if stem not in catalogue.PAPERS:
        raise ValueError(f"unknown paper {stem!r}; there are {', '.join(catalogue.PAPERS)}")
    if not state.strip():
        raise ValueError(
            "state is empty; say what the weights are, for example 'at initialisation, seed 0'"
        )
    return name.strip() or catalogue.PAPERS[stem].name


def given_or_own(model: nn.Module, key: str, value: int | None) -> int:
    value = getattr(model, key, None) if value is None else value
    if not isinstance(value, int):
        raise ValueError(
            f"{key}={value!r} must be a whole number; {type(model).__name__} has no attribute of that name that is one, so give it"
        )
    return value


def publish(fig: Figure, text: str, record: dict) -> None:
    """Show a figure as an output of its own, with the record in its metadata."""
    import matplotlib.pyplot as plt

    picture, about = drawing.stored(fig)
    file = base64.b64encode(picture).decode()
    plt.close(fig)  # else the notebook would show it a second time
    show.publish(
        {"image/png": file, "text/plain": text}, {"refimpl": record, "image/png": about}
    )
