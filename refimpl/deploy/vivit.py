"""ViViT for inference: one product for queries, keys and values; last blocks for class tokens only.

Each encoder is read at its class token alone, so in its last block the other tokens need only be
keys and values.
"""

from __future__ import annotations

import torch

from refimpl.bases import deit
from refimpl.bases.video import Attention
from refimpl.deploy import linear_like
from refimpl.deploy.deit import keep_class_token
from refimpl.papers.vivit import ViViT


def finish(model: ViViT) -> None:
    """In place: projections joined, and the last block of each encoder for its class token."""
    for encoder in (model.spatial, model.temporal):
        if encoder is None:
            continue
        for block in encoder.blocks:
            block.attn = joined(block.attn)
        keep_class_token(encoder)


@torch.no_grad()
def joined(layer: Attention) -> deit.Attention:
    """The same attention with the three projections in one."""
    parts = (layer.query, layer.key, layer.value)
    with torch.device("meta"):
        one = deit.Attention(layer.out.in_features, layer.num_heads)
    weight = torch.cat([part.weight for part in parts])
    one.qkv = linear_like(weight, torch.cat([part.bias for part in parts]))
    one.qkv.requires_grad_(layer.query.weight.requires_grad)
    one.probe = layer.probe
    one.proj = layer.out
    return one
