"""EVA-02 for inference: products of one input are one product, and the inner norm is folded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.bases.eva import RotaryAttention, SwiGLU
from refimpl.deploy import linear_like
from refimpl.deploy.norms import bare, behind_norm


class FusedRotaryAttention(RotaryAttention):
    """`RotaryAttention` with queries, keys and values from one product."""

    def __init__(self, layer: RotaryAttention):
        nn.Module.__init__(self)
        self.num_heads = layer.num_heads
        self.proj = layer.proj
        self.probe = layer.probe
        weights = [part.weight for part in (layer.q_proj, layer.k_proj, layer.v_proj)]
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
        self.qkv = linear_like(torch.cat(weights), bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv(x).chunk(3, -1)


class FusedSwiGLU(SwiGLU):
    """`SwiGLU` with gate and value from one product, its norm's scale and shift in the last."""

    def __init__(self, mlp: SwiGLU):
        nn.Module.__init__(self)
        weight = torch.cat([mlp.w1.weight, mlp.w2.weight])
        self.w12 = linear_like(weight, torch.cat([mlp.w1.bias, mlp.w2.bias]))
        self.ffn_ln = bare(mlp.ffn_ln)
        self.w3 = behind_norm(mlp.ffn_ln, mlp.w3)

    def gated(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return F.silu(gate) * value


FUSED = {RotaryAttention: FusedRotaryAttention, SwiGLU: FusedSwiGLU}
