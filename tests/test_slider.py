"""The slider: frames that fit, texts that tell, a page in which each slider minds its own."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
import pytest

from refimpl import viz
from refimpl.lab import data
from refimpl.viz import charts

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def styled():
    charts.style()


def chart(k: int, **options):
    """A chart of its own for each k, small enough for a phone."""
    fig, ax = charts.figure(width=options.pop("width", 4.6), height=2.4)
    ax.plot([0, 1], [0, k], **options)
    ax.set(title=f"slope {k}", xlabel="time in s", ylim=(0, 12))
    return fig


def squares(count: int) -> list[np.ndarray]:
    return [np.full((3, 16, 16), i / count) for i in range(count)]


def made(frames, **changes) -> viz.Slider:
    given = {
        "labels": [f"step {i}" for i in range(len(frames))],
        "title": "A line that <turns>",
        "alts": [f'A line of slope "{i}" over one second.' for i in range(len(frames))],
    }
    return viz.slider(frames, **(given | changes))


def frames_of(shown: viz.Slider) -> dict:
    return json.loads(html.unescape(re.search(r'data-frames="([^"]*)"', shown.html)[1]))


def pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_twelve_charts_fit_and_are_closed():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    shown = made([chart(k) for k in range(12)], first=3)
    assert len(shown.html.encode()) <= 150_000
    assert plt.get_fignums() == before
    found = frames_of(shown)
    assert len(found["pictures"]) == len(found["labels"]) == len(found["alts"]) == 12
    assert found["pictures"][3] == "", "the frame that stands in the page is not sent twice"
    pictures = [pixels(base64.b64decode(p)) for p in found["pictures"] if p]
    assert len({picture.tobytes() for picture in pictures}) == 11
    assert len({picture.shape for picture in pictures}) == 1


def test_nothing_comes_from_elsewhere():
    addresses = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', made(squares(3)).html)
    assert [a for pair in addresses for a in pair if a and not a.startswith("data:")] == []


def test_texts_are_escaped_and_the_chosen_frame_stands_still():
    shown = made(squares(4), first=2)
    assert "A line that &lt;turns&gt;" in shown.html
    assert 'alt="A line of slope &quot;2&quot; over one second."' in shown.html
    bundle = shown._repr_mimebundle_()
    assert bundle.keys() == {"text/html", "image/png", "text/plain"}
    assert "slider" in bundle["text/plain"]
    still = pixels(base64.b64decode(bundle["image/png"]))
    assert abs(still - 255 * 2 / 4).max() <= 1


def test_photographs_are_compressed_until_they_fit():
    rng = np.random.default_rng(0)
    cat = data.photo("chelsea", 320).numpy()
    shown = made([(cat + rng.normal(0, 0.02, cat.shape)).clip(0, 1) for _ in range(12)])
    assert len(shown.html.encode()) <= 150_000
    with pytest.raises(ValueError, match="12 frames do not fit into 150 KB"):
        made([rng.random((3, 700, 700)) for _ in range(12)])


def test_small_images_keep_their_cells_square():
    picture = pixels(base64.b64decode(frames_of(made(squares(2)))["pictures"][1]))
    assert picture.shape == (352, 352, 3)
    assert (picture == picture[0, 0]).all()


@pytest.mark.parametrize(
    ("frames", "change", "message"),
    [
        (1, {}, "1 frames; wanted 2 to 12"),
        (13, {}, "13 frames; wanted 2 to 12"),
        (3, {"labels": ["a", "b"]}, "labels=.* must be 3 texts"),
        (3, {"labels": "abc"}, "labels='abc' must be 3 texts"),
        (3, {"labels": ["a", "b", " "]}, "labels holds ' '"),
        (3, {"labels": ["a", "b", "c" * 61]}, "1 to 60 characters"),
        (3, {"alts": ["a", "b", "a"]}, "alts holds a text twice"),
        (3, {"alts": ["a", "b", None]}, "alts holds None"),
        (3, {"title": ""}, "title='' is empty"),
        (3, {"first": 3}, "first=3 must be a frame's index, 0 to 2"),
        (3, {"first": -1}, "first=-1"),
    ],
)
def test_slider_refuses(frames, change, message):
    with pytest.raises(ValueError, match=message):
        made(squares(frames), **change)


def test_frames_have_one_size():
    with pytest.raises(ValueError, match="the frames have 2 sizes"):
        made([np.zeros((3, 400, 400)), np.zeros((3, 400, 401))])
    with pytest.raises(ValueError, match=r"a picture is \(3, h, w\)"):
        made([np.zeros(4), np.zeros(4)])


def test_text_can_be_read_on_a_phone():
    with pytest.raises(ValueError, match=r"frame 0 is 6.4 in wide with text of 11 points, which"):
        made([chart(k, width=6.4) for k in range(2)])
    small = chart(1)
    small.axes[0].text(0, 1, "tiny", fontsize=8)
    with pytest.raises(ValueError, match=r"frame 1 .* text of 8 points"):
        made([chart(0), small])


def open_page(window, tmp_path, *sliders: viz.Slider, script: bool = True) -> None:
    pieces = "".join(shown.html for shown in sliders)
    if not script:
        pieces = re.sub(r"<script>.*?</script>", "", pieces, flags=re.DOTALL)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><html lang="en"><head>{head}<title>Test</title></head>'
        '<body style="margin:16px;background:#14181d;color:#dfe3e8"><main><h1>Test</h1>'
        f"{pieces}</main></body></html>",
        encoding="utf-8",
    )
    window.set_window_size(1280, 1200)
    window.get(page.as_uri())


def found(window, selector: str) -> list:
    return window.find_elements("css selector", f".frame-slider {selector}")


@pytest.mark.browser
def test_moving_changes_picture_label_and_alt_text(window, tmp_path):
    from selenium.webdriver import Keys

    one = made([chart(k) for k in range(5)])
    other = made(squares(3), title="Greys", first=1)
    open_page(window, tmp_path, one, other)
    inputs, images = found(window, "input"), found(window, "img")
    before = [image.get_attribute("src") for image in images]
    assert [i.get_attribute("value") for i in inputs] == ["0", "1"]
    assert found(window, ".fs-note") == []

    inputs[0].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert images[0].get_attribute("src") != before[0]
    assert images[0].get_attribute("alt") == 'A line of slope "2" over one second.'
    assert found(window, ".fs-label")[0].text == "step 2"
    assert found(window, ".fs-count")[0].text == "3 of 5"
    assert inputs[0].get_attribute("aria-valuetext") == "step 2"
    assert inputs[0].get_attribute("aria-label") == "A line that <turns>"
    told = found(window, ".fs-told")
    assert told[0].get_attribute("textContent") == 'A line of slope "2" over one second.'
    shown = window.execute_script("return arguments[0].naturalWidth > 0", images[0])
    assert shown, "the picture can be decoded"

    assert images[1].get_attribute("src") == before[1], "the other slider did not move"
    inputs[1].send_keys(Keys.HOME)
    assert found(window, ".fs-label")[1].text == "step 0"
    assert found(window, ".fs-label")[0].text == "step 2"
    inputs[1].send_keys(Keys.ARROW_RIGHT)
    assert images[1].get_attribute("src") == before[1], "and back"
    assert [entry for entry in window.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_focus_can_be_seen_and_a_phone_shows_it_whole(window, tmp_path):
    from selenium.webdriver import Keys

    open_page(window, tmp_path, made([chart(k) for k in range(5)]), made(squares(3)))
    window.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 1200, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        assert window.execute_script("return document.documentElement.scrollWidth") <= 390
        widths = [image.size["width"] for image in found(window, "img")]
        assert widths[0] == 358
        assert widths == [image.size["width"] for image in found(window, "img")]
        window.execute_script("document.body.tabIndex = -1; document.body.focus()")
        styles = "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, s.outlineWidth]"
        slider = found(window, "input")[0]
        assert window.execute_script(styles, slider)[0] == "none"
        slider.send_keys(Keys.ARROW_RIGHT)
        assert window.execute_script(styles, slider) == ["solid", "3px"]
        sizes = """return [...document.querySelectorAll('.frame-slider p')]
            .map(p => parseFloat(getComputedStyle(p).fontSize))"""
        assert min(window.execute_script(sizes)) >= 11
    finally:
        window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_accessible_to_axe(window, tmp_path):
    axe = pytest.importorskip("selenium_axe_python")
    open_page(window, tmp_path, made([chart(k) for k in range(3)]), made(squares(3), title="Two"))
    checked = axe.Axe(window)
    checked.inject()
    assert [problem["id"] for problem in checked.run()["violations"]] == []


@pytest.mark.browser
def test_without_a_script_one_frame_stays(window, tmp_path):
    open_page(window, tmp_path, made(squares(3), first=1), script=False)
    assert found(window, "img")[0].get_attribute("alt").startswith('A line of slope "1"')
    assert found(window, ".fs-label")[0].text == "step 1"
    assert not found(window, "input")[0].is_displayed()
    assert "in JupyterLab and in Colab" in found(window, ".fs-note")[0].text
