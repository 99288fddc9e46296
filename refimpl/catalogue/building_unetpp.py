"""The paper Buildings with U-Net++.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="building_unetpp",
    name="Buildings with U-Net++",
    title=(
        "Performance Analysis of Various EfficientNet Based U-Net++ Architecture for Automatic "
        "Building Extraction from High Resolution Satellite Images"
    ),
    authors=(
        "Tareque Bashar Ovi, Nomaiya Bashree, Protik Mukherjee, Shakil Mosharrof, Masuma Anjum "
        "Parthima"
    ),
    venue="arXiv",
    year=2023,
    idea=(
        "Find roofs from above with a nested decoder on an EfficientNet, and learn how much a "
        "score depends on its definition."
    ),
    arxiv="2310.06847",
    claims=(
        Claim(
            id="building_unetpp.1",
            statement="The published mean accuracy, mean IoU and precision can hold together.",
            reported="92.23, 88.32 and 93.2 % (EfficientNet-B4)",
            kind="identity",
        ),
        Claim(
            id="building_unetpp.2",
            statement=(
                "A nested decoder is better than a plain one on the same encoder at equal "
                "parameters."
            ),
            reported="significantly better than earlier methods",
            kind="miniature",
        ),
        Claim(
            id="building_unetpp.3",
            statement=(
                "Deep supervision does not harm the final output and makes the shallow ones usable."
            ),
            reported="deep supervision and redesigned skips raise sensitivity",
            kind="miniature",
        ),
        Claim(
            id="building_unetpp.4",
            statement="Wider encoders extract more.",
            reported="best of B0–B4 is B4",
            kind="miniature",
        ),
        Claim(
            id="building_unetpp.5",
            statement=(
                "The network can be pruned at test time: an earlier head is faster at a small loss."
            ),
            reported="U-Net++",
            kind="miniature",
        ),
        Claim(
            id="building_unetpp.6",
            statement="The scores hold on Massachusetts Buildings.",
            reported="92.23 % mean accuracy, 88.32 % mean IoU, 93.2 % precision",
            kind="out_of_reach",
            needs="Massachusetts Buildings (151 tiles) and a GPU",
            command=(
                "none exists: no official code was found; train segmentation_models.pytorch's "
                "UnetPlusPlus('efficientnet-b4') on the tiles at 256 pixels"
            ),
        ),
    ),
    differences=(
        Difference(
            id="building_unetpp.d1",
            paper_says="Mean accuracy 92.23 % and mean IoU 88.32 %.",
            code_does="With two classes and accuracy by pixel, mean IoU is at most 85.6 %.",
            effect=(
                "Accuracy must be the mean of class recalls: then all three figures fit. An "
                "inference of ours, not the authors' statement."
            ),
        ),
        Difference(
            id="building_unetpp.d2",
            paper_says="U-Net++ with deep supervision.",
            code_does=(
                "The common library has one head, on an extra full-resolution block that the "
                "U-Net++ paper does not have."
            ),
            effect="Heads for the four depths are added here.",
        ),
        Difference(
            id="building_unetpp.d3",
            paper_says="The encoder pads as TensorFlow does.",
            code_does="The padding is fixed when the network is built, for its nominal image size.",
            effect="At 256 pixels the maps of B1–B4 are misaligned; reproduced.",
        ),
        Difference(
            id="building_unetpp.d4",
            paper_says="Nodes X(i, j) of the U-Net++ paper.",
            code_does="The library numbers them the other way round.",
            effect="A figure read with the library's names shows another node.",
        ),
        Difference(
            id="building_unetpp.d5",
            paper_says="Dice loss of an image.",
            code_does=(
                "Sums run over the whole batch, and a batch without positive pixels has loss 0."
            ),
            effect="Not the mean of the images' losses.",
        ),
    ),
)
