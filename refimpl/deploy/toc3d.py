"""ToC3D for inference: the range of the scene is a constant, no parameter."""

from __future__ import annotations

from torch import nn

from refimpl.papers.toc3d import Selector


def finish(model: nn.Module) -> None:
    """In place: selectors hold their range, which is never learned, as a buffer."""
    for part in model.modules():
        if isinstance(part, Selector):
            pc_range = part.pc_range.detach()
            del part.pc_range
            part.register_buffer("pc_range", pc_range)
