"""The exercises of the chapter on DVT, each check under mutation."""

from shared.exercises import Answers, mutations

ETA = """
def eta_squared(features):
    {}
"""
CENTRES = """
def centre_coords(left, width, image_width, patches, flip=False):
    {}
"""
SEPARATE = """
def separate(y, place, cells):
    {}
"""
TURNS = (
    "G = torch.zeros_like(y[0]); m = F.one_hot(place.flatten(), cells).to(y); n = "
    "m.sum(0).clamp(min=1)[:, None]\n    "
)

ANSWERS = {
    1: Answers(
        right=[
            ETA.format(
                "d = features - features.mean((0, 1, 2)); return "
                "float(d.mean(0).square().sum() * len(d) / d.square().sum())"
            ),
            ETA.format(
                "v = features.var(0, unbiased=False).mean((0, 1)).sum(); return 1 - v / "
                "features.flatten(0, 2).var(0, unbiased=False).sum()"
            ),
        ],
        wrong=[
            ETA.format(
                "return features.mean(0).flatten(0, 1).var() / features.var()"
            ),  # channels thrown together
            ETA.format(
                "return features.mean((1, 2)).var(0, unbiased=False).sum() / "
                "features.flatten(0, 2).var(0, unbiased=False).sum()"
            ),  # of the images
            ETA.format(
                "d = features.mean(0).flatten(0, 1); return (d.var(0) / "
                "features.flatten(0, 2).var(0)).mean()"
            ),  # mean of shares
            ETA.format(
                "return features.mean(0).square().sum() / features.square().sum()"
            ),  # not centred
        ],
    ),
    2: Answers(
        right=[
            CENTRES.format(
                "x = torch.linspace(left + width / patches / 2, left + width - width / "
                "patches / 2, patches) / image_width; return x.flip(0) if flip else x"
            ),
            CENTRES.format(
                "x = [(left + (i + 0.5) * width / patches) / image_width for i in "
                "range(patches)]; return x[::-1] if flip else x"
            ),
        ],
        wrong=[
            CENTRES.format(
                "x = torch.linspace(left, left + width, patches) / image_width; return "
                "x.flip(0) if flip else x"
            ),  # edges
            CENTRES.format(
                "return (left + (torch.arange(patches) + 0.5) * width / patches) / image_width"
            ),  # the mirror forgotten
            CENTRES.format(
                "x = (left + torch.arange(patches) * width / patches) / image_width; "
                "return x.flip(0) if flip else x"
            ),  # left edges
            CENTRES.format(
                "x = (left + (torch.arange(patches) + 0.5) * width / patches) / "
                "image_width; return 1 - x if flip else x"
            ),  # the image mirrored
        ],
    ),
    3: Answers(
        right=[
            SEPARATE.format(
                "v, p, c = y.shape; a = torch.cat([F.one_hot(place.flatten(), cells), "
                "F.one_hot(torch.arange(p).repeat(v), p)], 1).to(y)\n"
                "    s = torch.linalg.pinv(a) @ y.flatten(0, 1); return s[:cells], s[cells:]"
            ),
        ],
        wrong=[
            SEPARATE.format(
                TURNS + "G = y.mean(0); return m.T @ (y - G).flatten(0, 1) / n, G"
            ),  # the mean over positions alone
            SEPARATE.format(
                TURNS + "return m.T @ y.flatten(0, 1) / n, G"
            ),  # averaging views, no pattern
            SEPARATE.format(
                TURNS
                + (
                    "for _ in range(500): C = m.T @ (y - G).flatten(0, 1) / n; G = (y - "
                    "C[place]).mean(0)\n    return C, G + torch.arange(len(G))[:, None]"
                )
            ),  # a drift added
            SEPARATE.format(
                TURNS
                + (
                    "for _ in range(500): C = m.T @ (y - G).flatten(0, 1) / n; G = (y - "
                    "C[place]).mean(0)\n    return C + 1, G"
                )
            ),  # F too large
        ],
    ),
}

test_exercise = mutations("dvt", ANSWERS)
