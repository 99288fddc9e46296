"""StreamPETR's queries of past frames: where they were, how they move, and the memory of them.

Wang, Liu, Wang, Li, Zhang, *Exploring Object-Centric Temporal Modeling for Efficient Multi-View 3D
Object Detection*, ICCV 2023, arXiv 2303.11926; code: exiawsh/StreamPETR, as it stands in
DYZhang09/ToC3D @ 32ae96126ed6ed2d2dcba4af668846572b347d81 (Apache-2.0).

A detector's query is a vector that stands for one object it believes in, with the object's place (a
*reference point*). The best of a frame are pushed into a queue, in global coordinates, and read in
the next frame in the car's coordinates of then:

    point in the car's frame now = T⁻¹ · point,    pose of then, seen from now = T⁻¹ · T_then

T, the car's pose, is a homogeneous matrix: rotation and shift in one 4×4 product. How fast an
object moves, and how long ago it was seen, is not used to shift its point; it goes into a norm's
scale and shift (`MotionNorm`), so that the network learns how far to trust it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks

QUERY_DIM = 256  # width of a query
BANDS = 6  # frequencies of the motion's Fourier code
MOTION = 2 * BANDS * (2 + 1 + 12)  # code of velocity, time, the upper three rows of a pose
PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)  # metres: least x, y, z, then largest


class History(NamedTuple):
    """q queries of past frames for each of b samples, and the car's pose now.

    embedding (b, q, 256); reference_point (b, q, 3) in metres, global; velocity (b, q, 2) in m/s;
    timestamp (b, q, 1) in s; ego_pose (b, q, 4, 4), the car's when the query was made;
    inverse_pose (b, 4, 4): global coordinates -> the car's, now; exists (b,): 0 where a scene has
    just begun, and what stands here is not used.
    """

    embedding: Tensor
    reference_point: Tensor
    velocity: Tensor
    timestamp: Tensor
    ego_pose: Tensor
    inverse_pose: Tensor
    exists: Tensor | None = None


def moved(pose: Tensor, points: Tensor) -> Tensor:
    """Points (b, q, 3) in the coordinates that a homogeneous pose (b, 4, 4) leads to."""
    rotation, shift = pose[:, :3, :3], pose[:, :3, 3]
    return points @ rotation.mT + shift[:, None]


def sine_code(values: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines in turn: (…, n) -> (…, n · features), each number's features together.

    Pair i is of the angle 2π v / temperature^(2i/features).
    """
    speeds = temperature ** (-torch.arange(0, features, 2, device=values.device) / features)
    angles = 2 * math.pi * values[..., None] * speeds.to(values.dtype)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


def point_code(points: Tensor, features: int) -> Tensor:
    """`sine_code` of x, y, z in the order y, x, z: (…, 3) -> (…, 3 · features)."""
    return sine_code(points[..., [1, 0, 2]], features)


def fourier_code(values: Tensor, bands: int = BANDS) -> Tensor:
    """[sin v, cos v, sin 2v, cos 2v, sin 4v, …]: (…, n) -> (…, 2 · bands · n)."""
    speeds = 2.0 ** torch.arange(bands, device=values.device)
    angles = values[..., None, None, :] * speeds[:, None, None].to(values.dtype)
    both = torch.cat([angles.sin(), angles.cos()], -2)  # (…, bands, 2, n)
    return both.flatten(-3)


class MotionNorm(nn.Module):
    """Layer norm whose scale and shift are told by the motion: MLN(x; c) = γ(c) ∘ LN(x) + β(c).

    x (b, q, dim), code (b, q, code_dim) -> (b, q, dim)
    """

    def __init__(self, code_dim: int, dim: int):
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(code_dim, dim), nn.ReLU())
        self.gamma = nn.Linear(dim, dim)
        self.beta = nn.Linear(dim, dim)
        self.dim = dim
        for layer, bias in ((self.gamma, 1.0), (self.beta, 0.0)):  # starts as a plain norm
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        trunk = self.reduce(code)
        return self.gamma(trunk) * F.layer_norm(x, (self.dim,)) + self.beta(trunk)


def blank_history(x: Tensor, num_queries: int) -> History:
    """A history that does not exist, for every entry of a batch."""
    b = x.shape[0]
    pose = torch.eye(4, dtype=x.dtype, device=x.device)
    return History(
        x.new_zeros(b, num_queries, QUERY_DIM),
        *(x.new_zeros(b, num_queries, size) for size in (3, 2, 1)),
        pose.expand(b, num_queries, 4, 4),
        pose.expand(b, 4, 4),
        x.new_zeros(b),
    )


def check_history(history: History, views: int, num_queries: int) -> None:
    """Raise a `ValueError` where queries are missing, or cameras do not belong to the samples."""
    q = history.embedding.shape[1] if history.embedding.dim() == 3 else 0
    if q != num_queries:
        raise ValueError(
            f"history holds {q} queries, these selectors read {num_queries}; pass history=None for"
            " the first frame of a scene, whose memory is empty"
        )
    axes = {
        "embedding": f"b q {QUERY_DIM}",
        "reference_point": "b q 3",
        "velocity": "b q 2",
        "timestamp": "b q 1",
        "ego_pose": "b q 4 4",
        "inverse_pose": "b 4 4",
        "exists": "b",
    }
    b = checks.shapes(axes, **history._asdict())["b"]
    if b < 1 or views % b:
        raise ValueError(
            f"images are {views} views, history is of {b} samples: every sample needs the same"
            " number of cameras"
        )


@dataclass(frozen=True)
class QueryMemory:
    """A queue of n queries for each of b samples, the newest first, in global coordinates.

    embedding (b, n, d); reference_point (b, n, 3); timestamp (b, n, 1) float64, *minus* the second
    in which the query was made; ego_pose (b, n, 4, 4); velocity (b, n, 2); length: how many are
    kept when the queue is read; pseudo_points: (p, 3) in 0 … 1 of the range, which stand in the
    first places when a scene begins; pc_range: metres.

    The code's order: `aligned` at a frame's start, `pushed` at its end, both give a new memory.
    """

    embedding: Tensor
    reference_point: Tensor
    timestamp: Tensor
    ego_pose: Tensor
    velocity: Tensor
    length: int
    pseudo_points: Tensor
    pc_range: tuple[float, ...] = PC_RANGE

    @classmethod
    def empty(
        cls,
        batch: int,
        pseudo_points: Tensor,
        length: int = 1024,
        dim: int = QUERY_DIM,
        pc_range: tuple[float, ...] = PC_RANGE,
    ) -> QueryMemory:
        """All zero: what `aligned` with `exists` 0 makes a scene's beginning of."""
        checks.integer(1, batch=batch, length=length)
        checks.shapes({"pseudo_points": "points 3"}, pseudo_points=pseudo_points)
        if len(pseudo_points) > length:
            raise ValueError(
                f"pseudo_points are {len(pseudo_points)}, more than length={length} of the memory"
            )
        zeros = pseudo_points.new_zeros
        return cls(
            embedding=zeros(batch, length, dim),
            reference_point=zeros(batch, length, 3),
            timestamp=zeros(batch, length, 1, dtype=torch.float64),
            ego_pose=zeros(batch, length, 4, 4),
            velocity=zeros(batch, length, 2),
            length=length,
            pseudo_points=pseudo_points,
            pc_range=pc_range,
        )

    def aligned(self, ego_pose: Tensor, timestamp: Tensor, exists: Tensor) -> QueryMemory:
        """The memory as the car sees it now: points and poses in its frame, times as seconds ago.

        ego_pose (b, 4, 4): car -> global, now; timestamp (b,) float64, seconds; exists (b,): 0
        where a sample's scene begins, whose queries are then the pseudo points.
        """
        self.check(ego_pose, timestamp)
        inverse = ego_pose.inverse()
        first = slice(None, self.length)
        keep = exists.to(self.embedding.dtype)[:, None, None]
        begun = (1 - keep) * self.starts()  # (b, length, 1): 1 for pseudo points
        low, high = torch.tensor(self.pc_range, dtype=keep.dtype).view(2, 3)
        pseudo = F.pad(self.pseudo_points, (0, 0, 0, self.length - len(self.pseudo_points)))
        points = moved(inverse, self.reference_point[:, first]) * keep
        poses = inverse[:, None] @ self.ego_pose[:, first] * keep[..., None]
        ago = self.timestamp[:, first] + timestamp[:, None, None]
        return self.replaced(
            self.embedding[:, first] * keep,
            points + begun * (low + pseudo * (high - low)),
            ago * keep.double(),
            poses + begun[..., None] * torch.eye(4, dtype=keep.dtype),
            self.velocity[:, first] * keep,
        )

    def pushed(
        self,
        embedding: Tensor,
        boxes: Tensor,
        class_logits: Tensor,
        ego_pose: Tensor,
        timestamp: Tensor,
        count: int = 256,
    ) -> QueryMemory:
        """This frame's best queries put in front of an `aligned` memory, all in global coordinates.

        embedding (b, q, d), boxes (b, q, 10): the centre first, the velocity last; class_logits
        (b, q, classes); ego_pose, timestamp: as for `aligned`. The queue is not cut.
        """
        self.check(ego_pose, timestamp)
        axes = {"embedding": "b q d", "boxes": "b q box", "class_logits": "b q classes"}
        sizes = checks.shapes(axes, embedding=embedding, boxes=boxes, class_logits=class_logits)
        if not 1 <= count <= sizes["q"]:
            raise ValueError(f"count={count} must be at least 1 and at most {sizes['q']} queries")
        best = class_logits.amax(-1).topk(count, 1).indices[..., None]  # (b, count, 1)
        embedding = embedding.gather(1, best.expand(-1, -1, embedding.shape[-1]))
        boxes = boxes.gather(1, best.expand(-1, -1, boxes.shape[-1]))
        here = torch.eye(4, dtype=embedding.dtype).expand(len(best), count, 4, 4)
        points = torch.cat([boxes[..., :3], self.reference_point], 1)
        now = self.timestamp.new_zeros(len(best), count, 1)
        return self.replaced(
            torch.cat([embedding, self.embedding], 1),
            moved(ego_pose, points),
            torch.cat([now, self.timestamp], 1) - timestamp[:, None, None],
            ego_pose[:, None] @ torch.cat([here, self.ego_pose], 1),
            torch.cat([boxes[..., -2:], self.velocity], 1),
        )

    def history(self, num_queries: int, ego_pose: Tensor, timestamp: Tensor, released=False):
        """What selectors read: the first queries of a memory that `pushed` gave, as a `History`.

        As the idea asks, times are seconds ago and poses relative to the car. released: as the
        code hands them over, seconds of the clock and global poses, which float32 cannot hold.
        """
        self.check(ego_pose, timestamp)
        if not 1 <= num_queries <= self.embedding.shape[1]:
            raise ValueError(
                f"num_queries={num_queries} must be at least 1 and at most the"
                f" {self.embedding.shape[1]} queries of the memory"
            )
        first = slice(None, num_queries)
        inverse = ego_pose.inverse()
        times, poses = self.timestamp[:, first], self.ego_pose[:, first]
        if not released:
            times = times + timestamp[:, None, None]
            poses = inverse[:, None] @ poses
        return History(
            self.embedding[:, first],
            self.reference_point[:, first],
            self.velocity[:, first],
            times.to(self.embedding.dtype),
            poses,
            inverse,
        )

    def starts(self) -> Tensor:
        """1 in the places of pseudo points: (length, 1)."""
        return (torch.arange(self.length)[:, None] < len(self.pseudo_points)).float()

    def check(self, ego_pose: Tensor, timestamp: Tensor) -> None:
        axes = {"ego_pose": "b 4 4", "timestamp": "b"}
        b = checks.shapes(axes, ego_pose=ego_pose, timestamp=timestamp)["b"]
        if b != len(self.embedding):
            raise ValueError(f"ego_pose is of {b} samples, the memory of {len(self.embedding)}")

    def replaced(self, *tensors: Tensor) -> QueryMemory:
        return QueryMemory(*tensors, self.length, self.pseudo_points, self.pc_range)
