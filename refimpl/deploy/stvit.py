"""STViT for inference: layer scales fold into the linear layers before them."""

from __future__ import annotations

from torch import Tensor, nn

from refimpl.deploy import scaled
from refimpl.papers.stvit import CrossBlock


class FusedCrossBlock(CrossBlock):
    """`CrossBlock` without layer scales: (b, k, dim), (b, m, dim) -> (b, k, dim)."""

    def __init__(self, block: CrossBlock):
        nn.Module.__init__(self)
        self.shortcut = block.shortcut
        self.norm1 = block.norm1
        self.attn = block.attn
        self.attn.proj = scaled(block.attn.proj, block.layer_scale_1)
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.mlp.fc2 = scaled(block.mlp.fc2, block.layer_scale_2)

    def ask(self, queries: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        answers = self.attn(self.norm1(queries), self.norm1(others), mask)
        return queries + answers if self.shortcut else answers

    def think(self, tokens: Tensor) -> Tensor:
        return tokens + self.mlp(self.norm2(tokens))


FUSED = {CrossBlock: FusedCrossBlock}
