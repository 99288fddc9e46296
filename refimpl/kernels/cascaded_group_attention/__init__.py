r"""The heads of cascaded group attention (EfficientViT, arXiv 2305.07027): each reads its own slice of the channels plus the head before.

For every window of n = side² tokens, x split into h slices x₁ … x_h of width c = C/h, with y₀ = 0:

    u_j = x_j + y_{j−1}
    [q | k | v] = W_j u_j + w_j                                 projection, norm already folded in
    q ← D_j ∗ q + d_j                                           depthwise K×K on the side×side map, zero padding
    y_j = softmax(q kᵀ/√d_k + b_j[|Δrow|·side + |Δcol|]) v      over keys
    out = [y₁ | … | y_h]                                        before ReLU and the output projection, which is one matrix product

Shapes: x, out (b, n, C), b the images times their windows; qkv_weight (h, 2·d_k + c, c), qkv_bias (h, 2·d_k + c); dw_weight (h, d_k, K, K)
with the largest K of the heads, smaller kernels centred in zeros, dw_bias (h, d_k); bias_table (h, n).

FLOPs a window: 2·n·C·(2·d_k + c) + 2·n·h·d_k·K² + 2·n²·h·(d_k + c) + 5·n²·h. Bytes: x and out once, the weights once for all windows.
Limit: composed of operators, q, k, v, the n×n logits and the attention of every head cross memory; kept on chip, only x and out do, which
leaves 41 FLOP a byte in M4's first stage in float32 (`cost(**example("large"))`): arithmetic is then the limit on most machines. Triton: one
program computes one window of one image, and the output of a head stays in registers for the next. The cascade makes a chain of the heads,
so windows and images are all the parallelism there is.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Cost, dispatch


def cascaded_group_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
    backend: str = "auto",
) -> Tensor:
    """The concatenated heads: (b, n, C) -> (b, n, C). Shapes and equation: see the module.

    The PyTorch form carries gradients (so `"auto"` takes it where a gradient is asked for); the Triton form is forward only.
    """
    tensors = (x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table)
    check(*tensors)
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if backend == "auto" and wants_gradient:
        backend = "torch"
    if backend == "triton" and wants_gradient:
        raise ValueError(
            "cascaded_group_attention: backend='triton' has no backward pass; use backend='torch', or torch.no_grad()"
        )
    return dispatch("cascaded_group_attention", FORMS, backend, *tensors)


def check(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> None:
    """Refuse what no form can compute, with the reason."""
    name = "cascaded_group_attention"
    if x.dim() != 3 or math.isqrt(x.shape[1]) ** 2 != x.shape[1] or x.shape[1] == 0:
        raise ValueError(f"{name}: x must be (windows, side², channels), got {tuple(x.shape)}")
    if (
        dw_weight.dim() != 4
        or dw_weight.shape[2] != dw_weight.shape[3]
        or dw_weight.shape[3] % 2 == 0
    ):
        raise ValueError(
            f"{name}: dw_weight must be (heads, key_dim, K, K) with K odd, got {tuple(dw_weight.shape)}"
        )
    (_, n, dim), (heads, key_dim) = x.shape, dw_weight.shape[:2]
    if heads == 0 or dim % heads:
        raise ValueError(
            f"{name}: {heads} heads (the first axis of dw_weight) don't divide the {dim} channels of x"
        )
    width, c = 2 * key_dim + dim // heads, dim // heads
    wanted = {
        "qkv_weight": (heads, width, c),
        "qkv_bias": (heads, width),
        "dw_bias": (heads, key_dim),
        "bias_table": (heads, n),
    }
    for key, tensor in {
        "qkv_weight": qkv_weight,
        "qkv_bias": qkv_bias,
        "dw_bias": dw_bias,
        "bias_table": bias_table,
    }.items():
        if tuple(tensor.shape) != wanted[key]:
            raise ValueError(
                f"{name}: {key} is {tuple(tensor.shape)}, wanted {wanted[key]} for {heads} heads of {c} channels, key_dim={key_dim}, {n} tokens"
            )
    for key, tensor in {
        "qkv_weight": qkv_weight,
        "qkv_bias": qkv_bias,
        "dw_weight": dw_weight,
        "dw_bias": dw_bias,
        "bias_table": bias_table,
    }.items():
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{name}: {key} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}"
            )
    if not x.is_floating_point():
        raise ValueError(f"{name}: x is {x.dtype}, wanted a floating type")


def naive(x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table):
    """The definition, one number after the other."""
    (windows, n, dim), (heads, key_dim, kernel, _) = x.shape, dw_weight.shape
    side, c, half = math.isqrt(n), dim // heads, kernel // 2
    out = np.zeros_like(x)
    for b in range(windows):
        y = np.zeros((n, c), x.dtype)
        for j in range(heads):
            u = x[b, :, j * c : (j + 1) * c] + y
            qkv = [
                [
                    sum(qkv_weight[j, o, i] * u[t, i] for i in range(c)) + qkv_bias[j, o]
                    for o in range(2 * key_dim + c)
                ]
                for t in range(n)
            ]
            q = np.zeros((n, key_dim), x.dtype)
            for t in range(n):
                for d in range(key_dim):
                    q[t, d] = dw_bias[j, d]
                    for dy in range(-half, half + 1):
                        for dx in range(-half, half + 1):
                            row, col = t // side + dy, t % side + dx
                            if 0 <= row < side and 0 <= col < side:
                                q[t, d] += (
                                    dw_weight[j, d, dy + half, dx + half] * qkv[row * side + col][d]
                                )
            for t in range(n):
                logits = []
                for s in range(n):
                    dot = sum(q[t, d] * qkv[s][key_dim + d] for d in range(key_dim))
                    offset = abs(t // side - s // side) * side + abs(t % side - s % side)
                    logits.append(dot / math.sqrt(key_dim) + bias_table[j, offset])
                weights = [math.exp(z - max(logits)) for z in logits]
                for e in range(c):
                    y[t, e] = sum(w * qkv[s][2 * key_dim + e] for s, w in enumerate(weights)) / sum(
                        weights
                    )
            out[b, :, j * c : (j + 1) * c] = y
    return out


def offsets(side: int) -> np.ndarray:
    """Entry of the bias table for two tokens: (n, n), |Δrow|·side + |Δcol|."""
    row, col = np.divmod(np.arange(side * side), side)
    return np.abs(row[:, None] - row) * side + np.abs(col[:, None] - col)


def with_numpy(x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table):
    """All windows at once; the depthwise convolution is a sum of K² shifted maps."""
    (windows, n, _), (heads, key_dim, kernel, _) = x.shape, dw_weight.shape
    side, half = math.isqrt(n), kernel // 2
    y, outputs = 0, []
    for j, x_j in enumerate(np.split(x, heads, 2)):
        q, k, v = np.split((x_j + y) @ qkv_weight[j].T + qkv_bias[j], (key_dim, 2 * key_dim), 2)
        padded = np.pad(
            q.reshape(windows, side, side, key_dim), ((0, 0), (half, half), (half, half), (0, 0))
        )
        q = (
            sum(
                padded[:, dy : dy + side, dx : dx + side] * dw_weight[j, :, dy, dx]
                for dy in range(kernel)
                for dx in range(kernel)
            )
            + dw_bias[j]
        )
        logits = (
            q.reshape(windows, n, key_dim) @ k.swapaxes(1, 2) * x.dtype.type(key_dim**-0.5)
            + bias_table[j][offsets(side)]
        )
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = weights @ v / weights.sum(-1, keepdims=True)
        outputs.append(y)
    return np.concatenate(outputs, 2)


def with_torch(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> Tensor:
    """Composed of PyTorch's operators, differentiable in every argument."""
    n, (heads, key_dim, kernel, _) = x.shape[1], dw_weight.shape
    side = math.isqrt(n)
    biases = bias_table[:, torch.from_numpy(offsets(side)).to(x.device)]
    outputs = []
    for j, x_j in enumerate(x.chunk(heads, 2)):
        u = x_j + outputs[-1] if outputs else x_j
        q, k, v = F.linear(u, qkv_weight[j], qkv_bias[j]).split((key_dim, key_dim, x_j.shape[2]), 2)
        q = F.conv2d(
            q.transpose(1, 2).unflatten(2, (side, side)),
            dw_weight[j][:, None],
            dw_bias[j],
            padding=kernel // 2,
            groups=key_dim,
        )
        logits = q.flatten(2).transpose(1, 2) @ k.transpose(1, 2) * key_dim**-0.5 + biases[j]
        outputs.append(logits.softmax(-1) @ v)
    return torch.cat(outputs, 2)


def with_triton(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> Tensor:
    """One program a window: x is read once, out written once, everything between stays in registers. float16, bfloat16, float32, float64."""
    (windows, n, dim), (heads, key_dim, kernel, _) = x.shape, dw_weight.shape
    c = dim // heads
    if n > 256 or c > 128 or key_dim > 64:
        raise ValueError(
            f"cascaded_group_attention: backend='triton' keeps a window on chip: n={n} ≤ 256, head width {c} ≤ 128, key_dim={key_dim} ≤ 64 wanted"
        )
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        raise ValueError(
            "cascaded_group_attention: Triton's interpreter multiplies the bit patterns of bfloat16; use float32, or a GPU"
        )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = lambda size: max(16, 1 << (size - 1).bit_length())  # noqa: E731  (tl.dot wants at least 16)
    if windows:
        weights = [t.contiguous() for t in (qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table)]
        sizes = dict(
            N=n,
            SIDE=math.isqrt(n),
            D=key_dim,
            C=c,
            K=kernel,
            BLOCK_N=block(n),
            BLOCK_D=block(key_dim),
            BLOCK_C=block(c),
        )
        triton_kernel()[(windows,)](
            x.contiguous(), *weights, out, heads, key_dim**-0.5, **sizes, num_warps=4
        )
    return out


@functools.cache
def triton_kernel():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(
        x_ptr, w_ptr, wb_ptr, dw_ptr, dwb_ptr, table_ptr, out_ptr, heads, scale,
        N: tl.constexpr, SIDE: tl.constexpr, D: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    ):  # fmt: skip
        window = tl.program_id(0).to(tl.int64)
        t, d, c = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
        row, col = t // SIDE, t % SIDE
        token, slice_ = t[:, None] < N, c[None, :] < C
        offset = tl.abs(row[:, None] - row[None, :]) * SIDE + tl.abs(col[:, None] - col[None, :])
        pair = token & (t[None, :] < N)
        dtype: tl.constexpr = x_ptr.dtype.element_ty
        acc: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
        y = tl.zeros((BLOCK_N, BLOCK_C), acc)
        for j in range(heads):
            at = window * N * heads * C + t[:, None] * (heads * C) + j * C + c[None, :]
            u = (tl.load(x_ptr + at, mask=token & slice_, other=0.0).to(acc) + y).to(dtype)
            w = w_ptr + j * (2 * D + C) * C
            wb = wb_ptr + j * (2 * D + C)
            narrow = (c[:, None] < C) & (d[None, :] < D)
            w_q = tl.load(w + d[None, :] * C + c[:, None], mask=narrow, other=0.0)
            w_k = tl.load(w + (D + d[None, :]) * C + c[:, None], mask=narrow, other=0.0)
            w_v = tl.load(
                w + (2 * D + c[None, :]) * C + c[:, None], mask=(c[:, None] < C) & slice_, other=0.0
            )
            q = (
                tl.dot(u, w_q, input_precision="ieee", out_dtype=acc)
                + tl.load(wb + d, mask=d < D, other=0.0).to(acc)[None, :]
            )
            k = (
                tl.dot(u, w_k, input_precision="ieee", out_dtype=acc)
                + tl.load(wb + D + d, mask=d < D, other=0.0).to(acc)[None, :]
            )
            v = (
                tl.dot(u, w_v, input_precision="ieee", out_dtype=acc)
                + tl.load(wb + 2 * D + c, mask=c < C, other=0.0).to(acc)[None, :]
            )
            conv = (
                tl.zeros((BLOCK_N, BLOCK_D), acc)
                + tl.load(dwb_ptr + j * D + d, mask=d < D, other=0.0).to(acc)[None, :]
            )
            for tap in range(K * K):
                near_row, near_col = row + tap // K - K // 2, col + tap % K - K // 2
                inside = (
                    (near_row >= 0)
                    & (near_row < SIDE)
                    & (near_col >= 0)
                    & (near_col < SIDE)
                    & (t < N)
                )
                near = tl.where(inside, near_row * SIDE + near_col, 0)
                weight = tl.load(dw_ptr + (j * D + d) * K * K + tap, mask=d < D, other=0.0).to(acc)
                shifted = tl.gather(q, near[:, None] + tl.zeros((1, BLOCK_D), tl.int32), 0)
                conv += tl.where(inside[:, None], shifted * weight[None, :], 0.0)
            logits = (
                tl.dot(conv.to(dtype), tl.trans(k.to(dtype)), input_precision="ieee", out_dtype=acc)
                * scale
            )
            logits += tl.load(table_ptr + j * N + offset, mask=pair, other=0.0).to(acc)
            logits = tl.where(t[None, :] < N, logits, -float("inf"))
            weights = tl.exp(logits - tl.max(logits, 1)[:, None])
            weights = weights / tl.sum(weights, 1)[:, None]
            y = tl.dot(weights.to(dtype), v.to(dtype), input_precision="ieee", out_dtype=acc)
            tl.store(out_ptr + at, y.to(dtype), mask=token & slice_)

    return kernel


FORMS = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}


def cost(x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table) -> Cost:
    """FLOPs (softmax counted as five a cell) and compulsory bytes: x and out, and the weights once for all windows."""
    (windows, n, dim), (heads, key_dim, kernel, _) = x.shape, dw_weight.shape
    c = dim // heads
    flops = (
        2 * n * dim * (2 * key_dim + c)
        + 2 * n * heads * key_dim * kernel**2
        + 2 * n * n * heads * (key_dim + c)
        + 5 * n * n * heads
    )
    weights = sum(t.numel() for t in (qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table))
    return Cost(windows * flops, (2 * x.numel() + weights) * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Tensor]:
    """Arguments of one call. `"small"`: two windows of 3×3 (loops can follow); `"large"`: stage 1 of M4, 4 windows of 7×7 for 64 images."""
    if size not in ("small", "large"):
        raise ValueError(f"size={size!r} is not one of 'small', 'large'")
    windows, side, heads, key_dim, c, kernel = (
        (2, 3, 2, 4, 6, 3) if size == "small" else (256, 7, 4, 16, 32, 7)
    )
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    arguments = dict(
        x=draw(windows, side * side, heads * c),
        qkv_weight=draw(heads, 2 * key_dim + c, c) / math.sqrt(c),
        qkv_bias=0.1 * draw(heads, 2 * key_dim + c),
        dw_weight=draw(heads, key_dim, kernel, kernel) / kernel,
        dw_bias=0.1 * draw(heads, key_dim),
        bias_table=draw(heads, side * side),
    )
    return {name: tensor.to(device, dtype) for name, tensor in arguments.items()}
