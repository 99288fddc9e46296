"""Reference outputs of the selective scan (Mamba) and of state space duality (Mamba-2), for every
form of ours."""

import numpy as np
import pytest
import torch

from refimpl.kernels import BACKENDS
from refimpl.kernels.selective_scan import composed, selective_scan, selective_step
from refimpl.kernels.ssd import segsum, ssd, ssd_combined
from shared.kernels import normal

STEM = "ssm_kernels"
FORMS = (*BACKENDS, "short blocks", "doubling")


def scan(form: str, arguments: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the last state by one of the forms."""
    if form == "doubling":
        return composed.with_torch(**arguments, scan=composed.doubling)
    with pytest.MonkeyPatch.context() as patch:
        if form == "short blocks":
            patch.setattr(composed, "block_length", lambda states: 5)
        backend = form if form in BACKENDS else "torch"
        y, last = selective_scan(**arguments, return_last_state=True, backend=backend)
        return y, last


def scan_case(case):
    """A recorded selective scan: its arguments, and the cotangent where there are gradients."""
    given = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    cotangent = given.pop("dout", given.pop("cotangent", None))
    if "A_real" in given:
        given["A"] = torch.complex(given.pop("A_real"), given.pop("A_imag"))
        given |= {name: given.pop(f"{name}_interleaved") for name in ("B", "C")}
    return given, cotangent


def check_scan(case):
    given, cotangent = scan_case(case)
    softplus = case.arguments.get("delta_softplus", False)
    worst = 0.0
    for form in FORMS:
        if form == "triton" and given["A"].is_complex():
            continue
        differentiable = cotangent is not None and form not in ("naive", "numpy")
        leaves = {name: t.clone().requires_grad_(differentiable) for name, t in given.items()}
        y, last = scan(form, leaves | {"delta_softplus": softplus})
        outputs = {"out": y, "y": y, "last_state": last}
        if differentiable:
            (y * cotangent).sum().backward()
            outputs |= {
                prefix + name: t.grad for name, t in leaves.items() for prefix in ("d", "grad_")
            }
        checked = type(case)(
            case.stem,
            case.name,
            case.data
            | {
                "outputs": {
                    k: v for k, v in case.data["outputs"].items() if k in outputs or differentiable
                }
            },
        )
        worst = max(worst, checked.check(outputs, rtol=1e-5))
    case.deviations["worst form"] = worst


def check_segsum(case):
    x = torch.from_numpy(case.recorded("x"))
    ours = segsum(x)
    if "segsum" in case.data["outputs"]:
        wanted = torch.from_numpy(case.recorded("segsum"))
        assert torch.equal(ours == -torch.inf, wanted == -1e30)
        torch.testing.assert_close(ours.clamp(min=-1e30), wanted, rtol=1e-5, atol=1e-5)
        return
    truth = case.recorded("exp_segsum_float64")
    counted = truth > 1e-20

    def error(m: torch.Tensor) -> np.ndarray:
        found = m.double().exp().tril().numpy()
        return np.abs(found - truth)[counted] / truth[counted]

    sums = x.cumsum(0)
    assert error(ours).max() <= 2 * case.recorded("max_relative_error_stable") + 1e-6
    assert error(sums[:, None] - sums).max() > 100 * error(ours).max(), (
        "differences of cumulative sums lose digits"
    )


def check_minimal(case):
    x, a, B, C = (torch.from_numpy(case.recorded(name)) for name in ("X", "A", "B", "C"))
    for backend in ("naive", "numpy", "torch", "triton"):
        outputs = {}
        for name in case.data["outputs"]:
            if name.startswith("Y") and name != "Y_block4_with_initial_state":
                chunk = (
                    int(name.removeprefix("Y_block") or case.arguments["block_len"])
                    if name != "Y"
                    else case.arguments["block_len"]
                )
                outputs[name], outputs["final_state"] = ssd(
                    x, a, B, C, chunk=chunk, return_last_state=True, backend=backend
                )
        if "initial_states" in case.data["inputs"]:
            start = torch.from_numpy(case.recorded("initial_states"))[:, 0]
            y, last = ssd(x, a, B, C, start, chunk=4, return_last_state=True, backend=backend)
            outputs |= {"Y_block4_with_initial_state": y, "final_state_with_initial_state": last}
        case.check(outputs, rtol=1e-5)


def check_combined(case):
    given = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    chunk = case.arguments["chunk_size"]
    softplus = case.arguments["dt_softplus"]
    dt = given["dt"] + given["dt_bias"]
    dt = torch.nn.functional.softplus(dt) if softplus else dt
    by_chunk = dt.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2)
    x = given["x"] * dt[..., None]
    a = dt * given["A"]
    pieces = [slice(s, s + chunk) for s in range(0, x.shape[1], chunk)]

    def alone(part: slice) -> torch.Tensor:
        tensors = [m[:, part] for m in (x, a, given["B"], given["C"])]
        return ssd(*tensors, return_last_state=True)[1]

    entering = [torch.zeros_like(alone(pieces[0]))] + [
        alone(slice(0, part.stop)) for part in pieces[:-1]
    ]
    stages = {
        "dt_after_softplus": by_chunk,
        "dA_cumsum": (by_chunk * given["A"][:, None, None]).cumsum(-1),
        "chunk_states": torch.stack([alone(part) for part in pieces], 1),  # from zero, each alone
        "states_entering_chunk": torch.stack(entering, 1),
    }
    for backend in ("naive", "numpy", "torch", "triton"):
        y, last = ssd_combined(
            **given, dt_softplus=softplus, chunk=chunk, return_last_state=True, backend=backend
        )
        case.check(stages | {"out": y, "final_state": last}, rtol=1e-5)


def check_step(case):
    given = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    renamed = {"x": "u", "dt": "delta", "dt_bias": "delta_bias"}
    given = {renamed.get(name, name): t for name, t in given.items()}
    y, state = selective_step(**given, delta_softplus=case.arguments["dt_softplus"])
    case.check({"y": y, "new_state": state}, rtol=1e-5)


def test_official(official_case):
    names = set(official_case.data["inputs"])
    kinds = [
        ({"u"}, check_scan),
        ({"X"}, check_minimal),
        ({"state", "x"}, check_step),
        ({"x", "dt", "B"}, check_combined),
        ({"x"}, check_segsum),
    ]
    next(check for wanted, check in kinds if wanted <= names)(official_case)


@pytest.mark.parametrize("length", [1, 13, 37])
def test_both_scans_are_one_where_the_decay_is_one_number_a_head(length):
    """Mamba-2 is Mamba with A, Δ and D shared by the channels of a head."""
    g = torch.Generator().manual_seed(length)
    b, h, p, n, groups = 2, 4, 3, 5, 2
    x = normal(g, b, length, h, p)
    dt = normal(g, b, length, h)
    z = normal(g, b, length, h, p)
    A = -normal(g, h).exp()
    D = normal(g, h)
    bias = normal(g, h)
    B = normal(g, b, length, groups, n)
    C = normal(g, b, length, groups, n)

    def by_channel(m: torch.Tensor) -> torch.Tensor:
        return m.flatten(2).transpose(1, 2)

    wanted = selective_scan(
        by_channel(x),
        by_channel(dt.repeat_interleave(p, 2)),
        A.repeat_interleave(p)[:, None].expand(-1, n),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        D.repeat_interleave(p),
        by_channel(z),
        bias.repeat_interleave(p),
        delta_softplus=True,
    )
    found = ssd_combined(x, dt, A, B, C, D, z, bias, dt_softplus=True, chunk=8)
    torch.testing.assert_close(by_channel(found), wanted)
