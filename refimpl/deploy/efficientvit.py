"""EfficientViT for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from refimpl.papers.efficientvit import NormLinear


def fold_norm_first(head: NormLinear) -> nn.Linear:
    """The linear layer that computes `linear(norm(x))`: W' = W·diag(γ/√(σ²+ε)), b' = W(β − μγ/√(σ²+ε)) + b."""
    folded, norm = copy.deepcopy(head.linear), head.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        folded.bias += folded.weight @ (norm.bias - norm.running_mean * scale)
        folded.weight *= scale
    return folded


FUSED = {NormLinear: fold_norm_first}
