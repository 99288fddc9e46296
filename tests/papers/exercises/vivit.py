"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations


def inflated(formula):
    return f"""
def inflate_evenly(kernel, depth):
    return {formula}
"""


STRETCH = """
def stretch(positions, slices):
    row, moments = positions[:, :1], positions[:, 1:]
    {before}
    moments = nn.functional.interpolate(
        moments.mT, size=slices, mode="linear", align_corners={aligned}
    ).mT
    return {result}
"""


def stretched(before="pass", aligned=True, result="torch.cat([row, moments], dim=1)"):
    return STRETCH.format(before=before, aligned=aligned, result=result)


BY_HAND = """
def stretch(positions, slices):
    old = positions[0, 1:]
    found = [positions[0, 0]]
    for i in range(slices):
        at = i * (len(old) - 1) / (slices - 1)
        low = min(int(at), len(old) - 2)
        found.append(old[low] + (at - low) * (old[low + 1] - old[low]))
    return torch.stack(found)[None]
"""


def answers(embedding=False, spatial=True, temporal=True, head=True):
    return f"""
def remembered():
    return {dict(embedding=embedding, spatial=spatial, temporal=temporal, head=head)}
"""


test_exercise = mutations(
    "vivit",
    {
        1: Answers(
            right=[
                inflated("kernel[:, :, None].expand(-1, -1, depth, -1, -1) / depth"),
                inflated("kernel.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth"),
            ],
            wrong=[
                inflated("torch.stack([kernel] * depth, dim=2)"),  # a still clip is brighter
                inflated("torch.stack([kernel / depth] * depth, dim=0)"),
                inflated("torch.stack([kernel] + [0 * kernel] * (depth - 1), dim=2)"),
                inflated("torch.stack([kernel / 2] * depth, dim=2)"),
            ],
        ),
        2: Answers(
            right=[stretched(), BY_HAND],
            wrong=[
                stretched(aligned=False),
                stretched(result="moments"),  # no class row
                stretched(before="moments = positions"),  # it is stretched as well
                stretched(before="row = row * 0"),
                stretched(result="torch.cat([moments, row], dim=1)"),
            ],
        ),
        3: Answers(
            right=[answers(), answers(embedding=0, spatial=1)],
            wrong=[
                answers(spatial=False),  # frozen, but a gradient passes
                answers(embedding=True),
                answers(head=False),
                answers(temporal=False),
            ],
        ),
    },
)
