"""Non-causal SSD, the layer of VSSD (YuHengsss/VSSD @ 87b753b) from which EfficientViM starts.

S = Σ_s w_s b_s x_sᵀ,   y_t = Sᵀ c_t + D x_t          one state for all tokens: nothing decays

x, y: (b, l, h, p)   dt: (b, l, h)   A, D: (h,)   B, C: (b, l, g·n), head i reads group i mod g
"""

from __future__ import annotations

from torch import Tensor


def nc_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    positive: bool = False,
    groups: int = 1,
) -> Tensor:
    """y (b, l, h, p). A token's weight is w = dt·A, with `positive` −dt·A."""
    heads = x.shape[2]
    sign = -1 if positive else 1
    x = x.transpose(1, 2)  # (b, h, l, p)
    weight = sign * (dt * A).transpose(1, 2)[..., None]  # (b, h, l, 1)
    B = per_head(B, heads, groups)
    C = per_head(C, heads, groups)
    state = B.transpose(2, 3) @ (x * weight)  # (b, h, n, p)
    y = C @ state + x * D[:, None, None]
    return y.transpose(1, 2)


def per_head(m: Tensor, heads: int, groups: int) -> Tensor:
    """(b, l, g·n) -> (b, h, l, n), the groups in turn."""
    m = m.unflatten(2, (groups, -1)).transpose(1, 2)  # (b, g, l, n)
    return m.repeat(1, heads // groups, 1, 1)
