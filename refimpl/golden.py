"""What the official code computes: the recorded figures, the rule that fills weights and inputs, and the comparison.

`tests/golden/<stem>/<case>.json` travels inside the wheel, so a chapter can prove equality wherever it runs.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refimpl import weights

INSTALLED = Path(__file__).parent / "reference_outputs"
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parents[1] / "tests" / "golden"
RTOL = 1e-4


def values(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """The float32 filling of the tensor with that official name: a function of name, shape and salt alone."""
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
    """One recorded case. `data` is the file's content; `deviations` fills while it is checked."""

    stem: str
    name: str
    data: dict

    def __post_init__(self):
        self.deviations: dict[str, float] = {}

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
        names = ["input" if i == 0 else f"input{i}" for i in range(len(recorded))]
        rng = [np.random.default_rng(zlib.crc32((self.salt + n).encode())) for n in names]
        return [
            torch.from_numpy(g.standard_normal(shape).astype(np.float32))
            for g, shape in zip(rng, recorded, strict=True)
        ]

    def recorded(self, name: str) -> np.ndarray:
        """A recorded input or output array of a single function, by name."""
        for part in ("inputs", "outputs"):
            if name in self.data[part]:
                return array(self.data[part][name])
        raise ValueError(
            f"{self.stem}/{self.name} records no {name!r}; it has {', '.join([*self.data['inputs'], *self.data['outputs']])}"
        )

    def state(self, spec: Mapping[str, list[int]] | None = None) -> dict[str, Tensor]:
        """The official state dict filled by the rule, without what keeps its initial value.

        `spec` (official name → shape) is given where the file leaves `state` out because another case records it.
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
        """Load the filled official state dict through the model's name map, strictly; what the rule keeps, the model keeps.

        Tensors that the rule leaves alone (integers, `kept_at_init`) are taken from the freshly built model.
        """
        rules = rules if rules is not None else weights.names_of(model).get("official", [])
        spec = spec or self.data.get("state") or {}
        given = weights.translate(self.state(spec), rules)
        own = model.state_dict()
        for name in spec:
            ours = weights.rename(name, rules)
            if ours is not None and ours in own:
                given.setdefault(ours, own[ours])
        return weights.load_official(model, given, rules=[])

    def check_params(self, model: nn.Module) -> None:
        count = sum(p.numel() for p in model.parameters())
        if self.data.get("params") is not None and count != self.data["params"]:
            raise AssertionError(
                f"{self.stem}/{self.name}: {count:,} parameters, the official code has {self.data['params']:,}"
            )

    def check(
        self,
        outputs: Mapping[str, Tensor | np.ndarray] | Tensor | np.ndarray,
        rtol: float = RTOL,
        atol: float = 0.0,
    ) -> float:
        """Compare with the recorded outputs; the largest deviation as a share of the output's norm, or an `AssertionError`.

        `outputs`: name → tensor for every recorded name; a single tensor where only one is recorded.
        """
        wanted = self.data["outputs"]
        if not isinstance(outputs, Mapping):
            if len(wanted) != 1:
                raise AssertionError(
                    f"{self.stem}/{self.name} records {', '.join(wanted)}; got a single tensor"
                )
            outputs = {next(iter(wanted)): outputs}
        if missing := wanted.keys() - outputs.keys():
            raise AssertionError(
                f"{self.stem}/{self.name}: no output given for {', '.join(sorted(missing))}"
            )
        for name, record in wanted.items():
            self.deviations[name] = deviation(outputs[name], record)
        worst = max(self.deviations, key=lambda name: self.deviations[name])
        limit = max(rtol, atol)
        if not self.deviations[worst] <= limit:
            raise AssertionError(
                f"{self.stem}/{self.name}: output {worst!r} deviates by {self.deviations[worst]:.2e} of its norm (allowed {limit:.0e})"
            )
        return self.deviations[worst]


def deviation(output, record: dict) -> float:
    """Norm-relative distance of an output to its record: ‖a − b‖/‖b‖ over the recorded values, and of norm and mean."""
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
        errors.append(abs(np.linalg.norm(flat) - record["norm"]) / max(record["norm"], 1e-12))
        errors.append(
            abs(flat.mean() - record["mean"]) * np.sqrt(flat.size) / max(record["norm"], 1e-12)
        )
    return float(max(errors))


def load(stem: str, name: str, folder: Path | str = FOLDER) -> Case:
    """Read one case."""
    path = Path(folder) / stem / f"{name}.json"
    if not path.exists():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise ValueError(f"no recorded case {stem}/{name}; {stem} has: {have}")
    return Case(stem, name, json.loads(path.read_text()))


def cases(stem: str, folder: Path | str = FOLDER) -> list[Case]:
    """Every recorded case of a stem, by name."""
    return [load(stem, p.stem, folder) for p in sorted((Path(folder) / stem).glob("*.json"))]


def certify(model: nn.Module, case: Case, forward: Callable | None = None) -> float:
    """Fill `model` by the rule, run it on the recorded inputs, compare. Returns the deviation; raises when it is not the real thing."""
    case.fill(model)
    case.check_params(model)
    model.eval()
    with torch.inference_mode():
        return case.check((forward or model)(*case.inputs()))
