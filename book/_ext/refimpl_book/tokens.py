"""The comparison across the part "Fewer tokens": what `book/bench/tokens.py` measured, judged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from refimpl_book import html, sources
from refimpl_book.pages import Page
from refimpl_book.speed import machine_line, milliseconds

MARGIN = 0.5  # points of accuracy, fixed before anything was measured
SAVING = 0.9  # of the rivals' time at equal accuracy, likewise
FULL = "full ViT"
SMALLEST = "16 patches, 1 layer"
RULE = (
    "The rule, fixed before the first number: the rivals are plain ViTs with fewer layers or fewer"
    " patches; their front joins those that no other rival beats in both accuracy and time. A"
    f" method <em>pays</em> where, on every start, it is more than {MARGIN} points above the front"
    f" at its own time, or takes less than {SAVING} of the front’s time at its own accuracy; it"
    " <em>loses</em> where the opposite holds on every start; else there is no difference."
)
SIGNS = {"pays": "supports", "loses": "contradicts", "no difference": "inconclusive"}
BATCHES = {"1": "one image at a time", "16": "batches of 16"}


def front(rivals: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Times and accuracies of the (time, accuracy) pairs that no other pair beats in both."""
    times, accuracies = [], []
    for seconds, accuracy in sorted(rivals, key=lambda pair: (pair[0], -pair[1])):
        if not accuracies or accuracy > accuracies[-1]:
            times.append(seconds)
            accuracies.append(accuracy)
    return times, accuracies


def against(point: tuple[float, float], rivals: Sequence[tuple[float, float]]) -> tuple:
    """Points of accuracy above the front at equal time, and share of its time at equal accuracy.

    Outside its range the front goes on level; the share is none where no rival is as accurate.
    """
    times, accuracies = front(rivals)
    seconds, accuracy = point
    points = accuracy - float(np.interp(seconds, times, accuracies))
    if accuracy > accuracies[-1]:
        return points, None
    return points, seconds / float(np.interp(accuracy, accuracies, times))


def judge(differences: Sequence[tuple]) -> str:
    """The rule's verdict over all starts."""
    if all(p > MARGIN or (share is not None and share < SAVING) for p, share in differences):
        return "pays"
    if all(p < -MARGIN or (share is not None and share > 1 / SAVING) for p, share in differences):
        return "loses"
    return "no difference"


class Comparison:
    """The record of a run: ratios of time to the full ViT, verdicts by the rule."""

    def __init__(self, record: dict):
        self.record = record
        self.points = {(point["name"], point["start"]): point for point in record["points"]}
        self.kinds = {point["name"]: point["kind"] for point in record["points"]}
        self.starts = record["starts"]

    def rivals(self, batch: str, start: int) -> list[tuple[float, float]]:
        names = [name for name, kind in self.kinds.items() if kind == "ViT"]
        return [self.place(name, batch, start) for name in names]

    def place(self, name: str, batch: str, start: int) -> tuple[float, float]:
        """Time as a multiple of the full ViT's, and accuracy in percent."""
        point = self.points[name, start]
        return point["ratio"][batch], point["accuracy"]

    def mean(self, name: str, batch: str) -> tuple[float, float]:
        places = np.array([self.place(name, batch, start) for start in self.starts])
        return tuple(places.mean(0).tolist())

    def verdict(self, name: str, batch: str) -> str:
        found = [
            against(self.place(name, batch, start), self.rivals(batch, start))
            for start in self.starts
        ]
        return judge(found)

    def verdicts(self, batch: str) -> dict[str, str]:
        methods = [name for name, kind in self.kinds.items() if kind != "ViT"]
        return {name: self.verdict(name, batch) for name in methods}

    def control(self) -> float:
        """By how many points the full ViT beats the smallest rival, the least over the starts."""
        gaps = [
            self.points[FULL, start]["accuracy"] - self.points[SMALLEST, start]["accuracy"]
            for start in self.starts
        ]
        return min(gaps)

    def spread(self) -> float:
        """The largest difference between two starts of a net, in points."""
        found = []
        for name in self.kinds:
            accuracies = [self.points[name, start]["accuracy"] for start in self.starts]
            found.append(max(accuracies) - min(accuracies))
        return max(found)


class FewerTokens(Page):
    """What was compared and by which rule, two drawings, what is seen, a table, the limits."""

    def make(self):
        record = sources.read_json(path) if (path := self.file()).exists() else None
        if record is None:
            command = "<code>python book/bench/tokens.py</code>"
            return f"<p>{RULE}</p>{html.note(f'Not measured yet: run {command}.')}"
        comparison = Comparison(record)
        pictures = "".join(figure(comparison, batch) for batch in BATCHES)
        return f"{setting(record)}<p>{RULE}</p>{seen(comparison)}{pictures}{table(comparison)}"

    def file(self):
        return sources.RESULTS / "cpu" / "tokens.json"


def setting(record: dict) -> str:
    shape = record["shape"]
    side = shape["img_size"] // shape["patch_size"]
    return (
        f"<p>Fashion-MNIST ({record['train_images']:,} images to learn, {record['test_images']:,}"
        f" to test), a ViT of {side}×{side} patches, {shape['depth']} layers,"
        f" {shape['num_heads']} heads and width {shape['embed_dim']}; every net learns from"
        f" {len(record['starts'])} starts, {record['steps']} steps of {record['batch_size']}"
        " images, LGViT’s exits as many again. Time is processor time, not multiply-adds:"
        " all nets eager, in turns, LGViT with its real exits.</p>"
    )


def seen(comparison: Comparison) -> str:
    """Three or four sentences, and none that the record does not hold."""
    gap = comparison.control()
    if gap > 2:
        first = f"There is something to lose: the full ViT beats the smallest rival by {gap:.1f}"
        first += " points or more."
    else:
        first = (
            f"The control fails: the full ViT beats the smallest rival by {gap:.1f} points only on"
            " one start, so that little can be lost here and the verdicts say little."
        )
    sentences = [first]
    for batch, words in BATCHES.items():
        verdicts = comparison.verdicts(batch)
        parts = []
        for kind in SIGNS:
            names = [name for name, verdict in verdicts.items() if verdict == kind]
            if names:
                parts.append(f"<strong>{kind}</strong>: {listed(names, verdicts)}")
        sentences.append(f"With {words}, {'; '.join(parts)}.")
    count = comparison.record["test_images"]
    percent = np.mean([point["accuracy"] for point in comparison.record["points"]]) / 100
    error = 100 * (percent * (1 - percent) / count) ** 0.5
    sentences.append(
        f"Limits: one data set, {comparison.record['steps']} steps, one core, and an image of few"
        " patches, where a PyTorch call costs as much as its arithmetic; a test accuracy has a"
        f" standard error of {error:.1f} points and two starts differ by up to"
        f" {comparison.spread():.1f}, so half a point is a small margin."
    )
    return f"<p>{' '.join(sentences)}</p>"


def listed(names: Sequence[str], among: Iterable[str]) -> str:
    """`LGViT (threshold 0.5, threshold 0.7), STViT`: settings where others of the method are left.

    among: all points of all methods.
    """
    shown = []
    for method in dict.fromkeys(name.partition(", ")[0] for name in names):
        own = [name for name in names if name.startswith(method)]
        whole = len(own) == sum(name.startswith(method) for name in among)
        settings = ", ".join(name.partition(", ")[2] for name in own)
        shown.append(method if whole else f"{method} ({settings})")
    return html.escape(", ".join(shown))


def table(comparison: Comparison) -> str:
    record = comparison.record
    rows = []
    for name, kind in comparison.kinds.items():
        own = [comparison.points[name, start] for start in comparison.starts]
        row = [html.escape(name), " / ".join(f"{point['accuracy']:.1f}" for point in own)]
        for batch in BATCHES:
            seconds = float(np.mean([point["seconds"][batch] for point in own]))
            ratio = comparison.mean(name, batch)[0]
            row.append(html.Cell(f"{ratio:.2f} ({milliseconds(seconds)})", ratio))
            if kind == "ViT":
                row.append("a rival" if name != FULL else "the yardstick")
            else:
                verdict = comparison.verdict(name, batch)
                row.append(f"{html.sign(SIGNS[verdict])} {verdict}")
        rows.append(row)
    head = ("Net", "Accuracy of each start, %")
    head += ("Time, image by image", "By the rule", "Time, batches of 16", "By the rule then")
    caption = (
        "Time of an image: as a multiple of the full ViT’s (mean over the starts of medians of"
        f" ratios), and in ms. {html.escape(machine_line(record['machine']))};"
        f" <code>{html.escape(record['command'])}</code>"
    )
    return html.table(head, rows, caption, numeric=(1, 2, 4))


# -- the drawing

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 14, 42
COLOURS = {"STViT": "good", "LookupViT": "bad", "LGViT": "open"}


def figure(comparison: Comparison, batch: str) -> str:
    """Accuracy against time, mean over starts: rivals as a line, each method as its own shape."""
    places = {name: comparison.mean(name, batch) for name in comparison.kinds}
    longest = 1.08 * max(seconds for seconds, _ in places.values())
    low = np.floor(min(accuracy for _, accuracy in places.values()) - 1)
    high = np.ceil(max(accuracy for _, accuracy in places.values()) + 1)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / longest

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (accuracy - low) / (high - low)

    pieces = axes(x, y, longest, low, high)
    rivals = {name: place for name, place in places.items() if comparison.kinds[name] == "ViT"}
    corners = [(x(t), y(a)) for t, a in zip(*front(list(rivals.values())), strict=True)]
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in corners)
    pieces.append(
        f'<polyline points="{line}" fill="none" stroke="currentColor"'
        ' stroke-width="1.5" stroke-dasharray="4 3"/>'
    )
    for name, (seconds, accuracy) in places.items():
        colour = COLOURS.get(comparison.kinds[name])
        shade = f"var(--book-{colour})" if colour else "currentColor"
        pieces.append(marker(comparison.kinds[name], x(seconds), y(accuracy), shade))
    pieces += labels(places, comparison, corners, x, y)
    words = [
        f"{name}: {accuracy:.1f} % at {seconds:.2f}" for name, (seconds, accuracy) in places.items()
    ]
    alt = (
        f"Accuracy against processor time with {BATCHES[batch]}, as a multiple of the full ViT’s."
        f" {'; '.join(words)}."
    )
    return (
        f'<figure class="strips"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{html.escape(alt)}" style="width:100%;max-width:34rem;font-size:11px"'
        f' fill="currentColor">{"".join(pieces)}</svg><figcaption>Accuracy against processor time'
        f" with {BATCHES[batch]}, mean of the starts. Circles and dashes: plain ViTs and their"
        " front; above and left of it a method pays. Diamond: STViT; squares: LookupViT; triangles:"
        " LGViT.</figcaption></figure>"
    )


def axes(x, y, longest: float, low: float, high: float) -> list[str]:
    bottom = HEIGHT - BOTTOM
    pieces = [
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="currentColor"/>'
    ]
    for value in np.arange(0, longest, 0.25 if longest < 1.6 else 0.5):
        pieces.append(text(x(value), bottom + 15, f"{value:g}", "middle"))
    step = max(1, round((high - low) / 5))
    for value in np.arange(low, high + 0.1, step):
        pieces.append(text(LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    pieces.append(text((LEFT + WIDTH) / 2, HEIGHT - 8, "time, full ViT = 1", "middle"))
    pieces.append(text(2, TOP - 3, "accuracy, %", "start"))
    return pieces


def text(x: float, y: float, words: str, anchor: str, shade: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{shade}">'
        f"{html.escape(words)}</text>"
    )


def marker(kind: str, x: float, y: float, shade: str) -> str:
    """A shape for each kind, so that colour is never alone."""
    shapes = {
        "STViT": f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z",
        "LookupViT": f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z",
        "LGViT": f"M{x:.1f} {y - 5.5:.1f}l5 9.5h-10z",
    }
    if kind in shapes:
        return f'<path d="{shapes[kind]}" fill="{shade}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{shade}"/>'


def labels(places: dict, comparison: Comparison, corners: list[tuple], x, y) -> list[str]:
    """Names beside their points, each where no name, point, line or border is in the way."""
    taken = [(x(t) - 6, x(t) + 6, y(a) - 6, y(a) + 6) for t, a in places.values()]
    for (left, low), (right, high) in itertools.pairwise(corners):
        for part in np.linspace(0, 1, 30):
            across, down = left + part * (right - left), low + part * (high - low)
            taken.append((across - 1, across + 1, down - 1, down + 1))
    found = []
    for name, (seconds, accuracy) in places.items():
        words = name.removeprefix("LGViT, threshold ").removeprefix("LookupViT, ")
        width = 5.8 * len(words)
        across, down = x(seconds), y(accuracy)
        sides = [(across + 9, down + 4), (across - 9 - width, down + 4)]
        sides += [(across - width / 2, down + shift) for shift in (18, -10, 30, -22, 42, -34)]
        for left, base in sides:
            box = (left, left + width, base - 9, base + 2)
            inside = box[0] > LEFT and box[1] < WIDTH and box[2] > TOP and box[3] < HEIGHT - BOTTOM
            if inside and not any(meet(box, other) for other in taken):
                taken.append(box)
                colour = COLOURS.get(comparison.kinds[name])
                shade = f"var(--book-{colour})" if colour else "currentColor"
                found.append(text(left, base, words, "start", shade))
                break
    return found


def meet(a: tuple, b: tuple) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def setup(app):
    app.add_directive("fewer-tokens", FewerTokens)
