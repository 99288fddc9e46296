"""Reference outputs: what the official code computes, and the proof that ours computes it too.

`tests/golden/<stem>/<case>.json` holds outputs of the official implementation for weights and
inputs that are filled by a rule, so neither needs to be stored. The files travel inside the wheel,
so a chapter can prove equality wherever it runs.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refimpl import weights

INSTALLED = Path(__file__).parent / "reference_outputs"
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parents[1] / "tests" / "golden"
RTOL = 1e-4


def values(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """The rule: what fills the tensor of that official name, float32, from these three alone."""
    g = np.random.default_rng(zlib.crc32((salt + name).encode()))
    if name.endswith("running_var"):
        x = g.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        x = g.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        x = g.uniform(0.5, 1.5, shape)
    else:
        x = 0.1 * g.standard_normal(shape)
    return np.asarray(x, np.float32)


def array(recorded: dict) -> np.ndarray:
    """A whole array as it stands in a file of a single function."""
    return np.array(recorded["values"], dtype=recorded["dtype"]).reshape(recorded["shape"])


@dataclass
class Case:
    """One file of reference outputs.

    data: the file's content; deviations: output -> deviation, filled while it is checked.
    """

    stem: str
    name: str
    data: dict
    deviations: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stem}/{self.name}"

    @property
    def kwargs(self) -> dict:
        """The official constructor's arguments."""
        return self.data.get("kwargs", {})

    @property
    def arguments(self) -> dict:
        """Plain arguments of a recorded function."""
        return self.data.get("arguments", {})

    @property
    def salt(self) -> str:
        return self.data.get("fill_salt", "")

    def inputs(self) -> list[Tensor]:
        """Inputs made by the rule (`input`, `input1`, …), or the recorded ones in their order."""
        recorded = self.data.get("inputs", [])
        if isinstance(recorded, Mapping):
            return [torch.from_numpy(array(v)) for v in recorded.values()]
        made = []
        for i, shape in enumerate(recorded):
            name = f"input{i}" if i else "input"
            g = np.random.default_rng(zlib.crc32((self.salt + name).encode()))
            made.append(torch.from_numpy(g.standard_normal(shape).astype(np.float32)))
        return made

    def recorded(self, name: str) -> np.ndarray:
        """A recorded input or output array of a single function, by name."""
        for part in ("inputs", "outputs"):
            if name in self.data[part]:
                return array(self.data[part][name])
        have = ", ".join([*self.data["inputs"], *self.data["outputs"]])
        raise ValueError(f"{self} records no {name!r}; it has {have}")

    def state(self, spec: Mapping[str, list[int]] | None = None) -> dict[str, Tensor]:
        """The official state dict filled by the rule, without what keeps its initial value.

        spec: official name -> shape, where the file leaves `state` out since another has it.
        """
        spec = spec or self.data.get("state") or {}
        kept = set(self.data.get("kept_at_init", []))
        state = {}
        for name, shape in spec.items():
            if name in kept or name.endswith("num_batches_tracked"):
                continue
            x = values(name, tuple(shape), self.salt)
            for rule in self.data.get("special_fill", []) or []:
                if re.search(rule["regex"], name):
                    x = x * np.float32(rule["multiply"])
            state[name] = torch.from_numpy(x)
        return state

    def fill(
        self,
        model: nn.Module,
        rules: weights.Rules | None = None,
        spec: Mapping[str, list[int]] | None = None,
    ) -> nn.Module:
        """Load the filled official state dict through the model's name map, strictly.

        What the rule leaves alone (integers, `kept_at_init`) stays as the fresh model has it.
        rules: by default the model's map of official names; spec: as for `state`.
        """
        if rules is None:
            rules = weights.names_of(model).get("official", [])
        spec = spec or self.data.get("state") or {}
        given = weights.translate(self.state(spec), rules)
        own = model.state_dict()
        for name in spec:
            ours = weights.rename(name, rules)
            if ours is not None and ours in own:
                given.setdefault(ours, own[ours])
        return weights.load_official(model, given, rules=[])

    def check_params(self, model: nn.Module) -> None:
        """Raise an `AssertionError` unless the file records a count and the model has it."""
        official = self.data.get("params")
        if official is None:
            raise AssertionError(f"{self} records no number of parameters")
        count = sum(p.numel() for p in model.parameters())
        if count != official:
            raise AssertionError(
                f"{self}: {count:,} parameters, the official code has {official:,}"
            )

    def check(
        self,
        outputs: Mapping[str, Tensor | np.ndarray] | Tensor | np.ndarray,
        rtol: float = RTOL,
    ) -> float:
        """The largest deviation from the recorded outputs; an `AssertionError` beyond `rtol`.

        outputs: name -> tensor for every recorded name; a single tensor where only one is recorded.
        Deviations are fractions of the output's norm.
        """
        wanted = self.data["outputs"]
        if not isinstance(outputs, Mapping):
            if len(wanted) != 1:
                raise AssertionError(f"{self} records {', '.join(wanted)}; got a single tensor")
            outputs = {next(iter(wanted)): outputs}
        if missing := wanted.keys() - outputs.keys():
            raise AssertionError(f"{self}: no output given for {', '.join(sorted(missing))}")
        for name, record in wanted.items():
            self.deviations[name] = deviation(outputs[name], record)
        worst = max(self.deviations, key=lambda name: self.deviations[name])
        if not self.deviations[worst] <= rtol:
            raise AssertionError(
                f"{self}: output {worst!r} deviates by {self.deviations[worst]:.2e} of its norm"
                f" (allowed {rtol:.0e})"
            )
        return self.deviations[worst]


def deviation(output, record: dict) -> float:
    """Distance of an output to its record, as a fraction of the record's norm.

    The largest of ‖a − b‖/‖b‖ over the recorded values, and the errors of norm and mean.
    """
    x = output.detach().cpu().numpy() if isinstance(output, Tensor) else np.asarray(output)
    shape = tuple(record["shape"])
    if tuple(x.shape) != shape:
        raise AssertionError(f"shape {tuple(x.shape)}, recorded is {shape}")
    flat = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64).reshape(-1)
    if not np.isfinite(flat).all() and "norm" in record:
        return float("inf")
    picked = flat[:: record.get("stride", 1)][: len(record["values"])]
    wanted = np.array(record["values"], np.float64)
    if len(picked) != len(wanted):
        raise AssertionError(f"{len(picked)} values to compare, {len(wanted)} recorded")
    if len(wanted) == 0:
        return 0.0
    scale = max(np.linalg.norm(wanted), 1e-12)
    errors = [np.linalg.norm(picked - wanted) / scale]
    if "norm" in record:
        norm = max(record["norm"], 1e-12)
        errors.append(abs(np.linalg.norm(flat) - record["norm"]) / norm)
        errors.append(abs(flat.mean() - record["mean"]) * np.sqrt(flat.size) / norm)
    return float(max(errors))


def load(stem: str, name: str, folder: Path | str = FOLDER) -> Case:
    """Read one case."""
    path = Path(folder) / stem / f"{name}.json"
    if not path.exists():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise ValueError(f"no reference outputs {stem}/{name}; {stem} has: {have}")
    return Case(stem, name, json.loads(path.read_text(encoding="utf-8")))


def cases(stem: str, folder: Path | str = FOLDER) -> list[Case]:
    """Every case of a stem, by name."""
    return [load(stem, p.stem, folder) for p in sorted((Path(folder) / stem).glob("*.json"))]


def certify(model: nn.Module, case: Case, forward: Callable | None = None) -> float:
    """The proof: fill `model` by the rule, run it on the recorded inputs, compare.

    forward: called with the inputs in place of the model. Returns the deviation; raises an
    `AssertionError` when the model is not the real thing.
    """
    case.fill(model)
    case.check_params(model)
    model.eval()
    with torch.inference_mode():
        return case.check((forward or model)(*case.inputs()))
