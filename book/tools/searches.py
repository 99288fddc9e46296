"""Four ways to search one small space, and luck: the picture on the part's page.

    python book/tools/searches.py

Writes `book/results/searches/clothes.json`, the picture `book/_static/searches.png` and the text
`book/results/searches/clothes.txt` that the page includes. Every design within the limits was
trained twice (`refimpl/checkpoints/turbovit`): searches hear the first training, and what they
deliver is judged by the second. Of each paper only the rule by which it proposes is taken; all hear
the same accuracies, where the papers hear a supernet's, a score without training, or gradients. A
design that is proposed again is told from memory and costs nothing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl import weights
from refimpl.bases import elastic_space
from refimpl.papers import asvit, turbovit
from refimpl.viz import charts

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "book" / "results" / "searches" / "clothes.json"
PICTURE = ROOT / "book" / "_static" / "searches.png"
TEXT = RESULT.with_suffix(".txt")

SPACE = turbovit.Space(
    embed_dims=(8, 12, 16, 24),
    depths=((1, 2), (1, 2), (1, 2)),
    mlp_ratios=(1.0, 2.0, 4.0),
    mask_unit_attn=((True, True, False),),
)
SETTING = dict(img_size=32, in_chans=1, num_classes=10, q_pool=2, mask_unit_size=4)
LIMITS = turbovit.Requirements(parameters=70_000, multiply_adds=1_000_000)
DESIGNS = SPACE.all()
COUNTS = {picks: turbovit.counts(**SPACE.design(picks), **SETTING) for picks in DESIGNS}
WITHIN = [picks for picks in DESIGNS if LIMITS.met(COUNTS[picks])]
EVALUATIONS = 20
SEEDS = 200
ERRORS = 3  # standard errors that a lead must have to be called one; fixed before the numbers


def met(picks: turbovit.Picks) -> bool:
    return LIMITS.met(COUNTS[tuple(picks)])


class Luck:
    """Designs within the limits, drawn one by one."""

    def __init__(self, seed: int):
        self.order = random.Random(seed).sample(WITHIN, len(WITHIN))

    def ask(self) -> turbovit.Picks:
        return self.order.pop()

    def tell(self, picks: turbovit.Picks, score: float) -> None:
        """Luck learns nothing."""


class Genes(NamedTuple):
    """A design as `elastic_space.Evolution` reads it: the number of an option of each choice."""

    width: int
    first: int
    second: int
    third: int
    ratio: int
    pattern: int


class GeneSpace:
    """What `elastic_space.Evolution` asks of a space."""

    def made(self, pick) -> Genes:
        sizes = zip(Genes._fields, SPACE.sizes, strict=True)
        return Genes(*(pick(gene, 0, range(size)) for gene, size in sizes))

    def draw(self, rng: random.Random) -> Genes:
        return self.made(lambda gene, place, options: rng.choice(options))


class Evolution(elastic_space.Evolution):
    """ElasticViT's rule: of the three best, two children mutated and two crossed."""

    def __init__(self, seed: int):
        super().__init__(GeneSpace(), met, initial=6, parents=3, children=4, seed=seed)

    def new(self, propose) -> Genes:
        """In so small a space crossing soon makes nothing new: then a design is drawn."""
        for attempt in range(10_000):
            child = propose() if attempt < 100 else self.space.draw(self.rng)
            if child not in self.seen and met(child):
                self.seen.add(child)
                return child
        raise ValueError("every design within the limits has been proposed")


class Policy:
    """As-ViT's rule: a policy that REINFORCE teaches. What misses the limits is drawn again."""

    def __init__(self, seed: int):
        decisions = {g: tuple(range(n)) for g, n in zip(Genes._fields, SPACE.sizes, strict=True)}
        self.policy = asvit.Reinforce(decisions, seed=seed)

    def ask(self) -> turbovit.Picks:
        while True:
            picks = tuple(self.policy.ask().values())
            if met(picks):
                return picks

    def tell(self, picks: turbovit.Picks, score: float) -> None:
        self.policy.tell(dict(zip(Genes._fields, picks, strict=True)), score)


class Pruning:
    """NViT's rule: from the largest design within the limits, again and again to the one a notch
    smaller that loses least for the multiply-adds it saves."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.told: dict[turbovit.Picks, float] = {}
        self.at = max(WITHIN, key=lambda picks: COUNTS[picks].multiply_adds)
        self.queue = [self.at]

    def ask(self) -> turbovit.Picks:
        if not self.queue:
            smaller = self.smaller()
            if self.told.keys() >= set(smaller) and smaller:
                self.at = min(smaller, key=self.price)
                smaller = self.smaller()
            self.queue = [picks for picks in smaller if picks not in self.told]
            self.queue = self.queue or [picks for picks in WITHIN if picks not in self.told]
            self.rng.shuffle(self.queue)
        return self.queue.pop()

    def smaller(self) -> list[turbovit.Picks]:
        at = self.at
        return [(*at[:i], n - 1, *at[i + 1 :]) for i, n in enumerate(at) if n]

    def price(self, picks: turbovit.Picks) -> float:
        """Points lost for each multiply-add saved."""
        saved = COUNTS[self.at].multiply_adds - COUNTS[picks].multiply_adds
        return (self.told[self.at] - self.told[picks]) / saved

    def tell(self, picks: turbovit.Picks, score: float) -> None:
        self.told[picks] = score


def generator(seed: int) -> turbovit.Generator:
    """TurboViT's rule, as far as it is known; begins without any preference."""
    return turbovit.Generator(SPACE.sizes, met, (0,) * len(SPACE.sizes), trust=0.0, seed=seed)


METHODS = {
    "ElasticViT: evolution": Evolution,
    "As-ViT: policy": Policy,
    "TurboViT: generator": generator,
    "NViT: pruning": Pruning,
    "luck": Luck,
}


def table(start: int) -> dict[turbovit.Picks, float]:
    """Percent right of every design, trained from this start."""
    path = ROOT / "refimpl" / "checkpoints" / "turbovit" / f"table-{start}.safetensors"
    right = weights.read(path)["right"].float() / 20
    return dict(zip(WITHIN, right.tolist(), strict=True))


def race(method, heard: dict, judged: dict, evaluations: int = EVALUATIONS) -> list[float]:
    """After each training, what the best design so far is worth by the other start."""
    paid: list[turbovit.Picks] = []
    worth = []
    best = None
    for _ in range(100 * evaluations):
        picks = tuple(method.ask())
        asked = Genes(*picks) if isinstance(method, Evolution) else picks
        method.tell(asked, heard[picks])
        if picks in paid:
            continue
        paid.append(picks)
        if best is None or heard[picks] > heard[best]:
            best = picks
        worth.append(judged[best])
        if len(paid) == evaluations:
            break
    return worth + [worth[-1]] * (evaluations - len(worth))  # a policy that repeats itself for ever


def measured(seeds: int = SEEDS) -> dict:
    """The record: of every method its mean, its middle 80 % and its lead over luck."""
    heard, judged = table(0), table(1)
    runs = {}
    for name, make in METHODS.items():
        runs[name] = np.array([race(make(seed), heard, judged) for seed in range(seeds)])
    rows = {}
    for name, run in runs.items():
        lead = run[:, -1] - runs["luck"][:, -1]
        rows[name] = {
            "mean": np.round(run.mean(0), 3).tolist(),
            "low": round(float(np.percentile(run[:, -1], 10)), 2),
            "high": round(float(np.percentile(run[:, -1], 90)), 2),
            "lead": round(float(lead.mean()), 3),
            "error": round(float(lead.std() / len(lead) ** 0.5), 3),
        }
    known = {"best": max(judged[p] for p in WITHIN), "mean": np.mean([judged[p] for p in WITHIN])}
    known = {name: round(float(value), 2) for name, value in known.items()}
    sizes = {"designs": len(DESIGNS), "within": len(WITHIN), "seeds": seeds}
    return {"evaluations": EVALUATIONS, **sizes, "known": known, "methods": rows}


def verdict(row: dict) -> str:
    """By the rule that stood before the numbers."""
    if abs(row["lead"]) <= ERRORS * row["error"]:
        return "no better and no worse"
    return "better" if row["lead"] > 0 else "worse"


def text(record: dict) -> str:
    """The page's words, in MyST."""
    told = []
    for name, row in record["methods"].items():
        if name != "luck":
            told.append(f"{name} {verdict(row)} ({row['lead']:+.2f} ± {row['error']:.2f})")
    alt = (
        "Lines of the accuracy of the delivered design against the number of trainings, one for"
        " each of four searches and luck, with the middle 80 percent of runs at the end."
    )
    return f"""```{{figure}} /book/_static/searches.png
:alt: {alt}
:figclass: chapter-figure still
```

{record["within"]} of {record["designs"]} small designs meet the limits, and were trained twice, on
pictures of clothes. Each search hears the first training of {record["evaluations"]} designs that it
asks for, and the design that it would deliver is judged by the second. Of each paper only the rule
by which it proposes designs plays here, and all four hear the same accuracies; what the papers put
in the place of training is not in this picture. Means of {record["seeds"]} runs, bars are the
middle 80 %.

Against luck, after {record["evaluations"]} trainings, in points with the standard error (a lead
below {ERRORS} of these is called none, a rule that stood before the numbers):
{"; ".join(told)}.
"""


def draw(record: dict) -> bytes:
    """The picture, as the chapters store theirs: the book makes its dark twin."""
    charts.style()
    fig, ax = charts.figure(height=3.6)
    steps = range(1, record["evaluations"] + 1)
    ends = []
    for i, (name, row) in enumerate(record["methods"].items()):
        tone = charts.INK if name == "luck" else charts.PALETTE[i]
        line = "--" if name == "luck" else "-"
        ax.plot(steps, row["mean"], line, color=tone, lw=2)
        x = record["evaluations"] + 0.6 + 0.5 * i
        ax.plot([x, x], [row["low"], row["high"]], "-", color=tone, lw=3, alpha=0.5)
        ends.append((row["mean"][-1], name, i))
    span = [row["low"] for row in record["methods"].values()]
    ax.axhline(record["known"]["best"], color=charts.SOFT, ls=":")
    ax.text(1, record["known"]["best"], "best of all", va="bottom", fontsize=10)
    for place, (_, name, i) in enumerate(sorted(ends, reverse=True)):
        tone = charts.INK if name == "luck" else charts.PALETTE[i]
        height = max(end for end, _, _ in ends) - place * 0.42
        x = record["evaluations"] + 3.6
        ax.text(x, height, name, color=tone, fontsize=10, va="center")
    ax.set(xlim=(0.5, record["evaluations"] + 3.2), xlabel="designs trained")
    ax.set(ylabel="delivered design right, %", ylim=(min(span) - 0.5, None))
    return charts.png(fig)


if __name__ == "__main__":
    found = measured()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    TEXT.write_text(text(found), encoding="utf-8")
    PICTURE.write_bytes(draw(found))
    print(text(found))
