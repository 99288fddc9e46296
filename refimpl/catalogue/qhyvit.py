"""The paper Q-HyViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="qhyvit",
    name="Q-HyViT",
    title=(
        "Q-HyViT: Post-Training Quantization of Hybrid Vision Transformers with Bridge Block "
        "Reconstruction for IoT Systems"
    ),
    authors="Jemin Lee, Yongin Kwon, Sihyeong Park, Misun Yu, Jeman Park, Hwanjun Song",
    venue="IEEE Internet of Things Journal",
    year=2024,
    idea=(
        "Where convolutions hand over to attention, ranges leave out zero and the zero point "
        "overflows: choose scheme and granularity layer by layer, and calibrate the bridge as one."
    ),
    arxiv="2303.12557",
    code="https://gitlab.com/ones-ai/q-hyvit",
    claims=(
        Claim(
            id="qhyvit.1",
            statement=(
                "Quantisation methods made for plain vision transformers collapse on hybrid ones."
            ),
            reported=(
                "MobileViT-xxs, 8 bits: 69.0 → 37.75 (PTQ4ViT), 1.85 (RepQ-ViT), 68.20 % (Q-HyViT)"
            ),
            kind="out_of_reach",
            needs="ImageNet-1k and pretrained weights",
            command=(
                "evaluate timm's mobilevit_xxs.cvnets_in1k on ImageNet after calibration on 32 "
                "images with PTQ4ViT, RepQ-ViT and the schemes of this chapter"
            ),
        ),
        Claim(
            id="qhyvit.2",
            statement=(
                "Ranges differ widely between the channels of one layer, most of all at the "
                "bridges."
            ),
            reported="figures in the paper",
            kind="miniature",
        ),
        Claim(
            id="qhyvit.3",
            statement=(
                "A range without zero pushes the zero point out of its range, and clamping it "
                "destroys the values."
            ),
            reported="named zero-point overflow",
            kind="identity",
        ),
        Claim(
            id="qhyvit.4",
            statement=(
                "Batch normalisation folds away before quantisation; layer and group normalisation "
                "stay."
            ),
            reported="mixed normalisation in hybrid networks",
            kind="identity",
        ),
        Claim(
            id="qhyvit.5",
            statement="Small networks lose more accuracy at the same number of bits.",
            reported="networks under 5 M parameters suffer most",
            kind="miniature",
        ),
        Claim(
            id="qhyvit.6",
            statement=(
                "Choosing granularity and scheme by a gradient-weighted error, then calibrating "
                "bridges as blocks, is better step by step than min–max ranges."
            ),
            reported=(
                "on average +17.73 (8 bits) and +29.75 points (6 bits) over four earlier methods"
            ),
            kind="miniature",
        ),
        Claim(
            id="qhyvit.7",
            statement="The average gains hold over the benchmark of hybrid networks.",
            reported="+17.73 points at 8 bits, +29.75 at 6 bits",
            kind="out_of_reach",
            needs="ImageNet-1k, pretrained weights of 23 networks",
            command=(
                "run the authors' code from gitlab.com/ones-ai/q-hyvit on each network and compare "
                "with the four baselines"
            ),
        ),
    ),
    differences=(
        Difference(
            id="qhyvit.d1",
            paper_says=(
                "Each layer chooses among channel-wise and layer-wise, symmetric and asymmetric."
            ),
            code_does=(
                "As described by a third party, the released code is symmetric throughout and "
                "takes channel-wise activations for grouped convolutions only."
            ),
            effect=(
                "The paper's choice and the released rule are both offered; the code itself was "
                "not available to us."
            ),
        ),
        Difference(
            id="qhyvit.d2",
            paper_says="+17.73 and +29.75 points on average.",
            code_does=(
                "An earlier version says +8.32 and +26.02; the last one adds RepQ-ViT, whose "
                "collapses enter the average."
            ),
            effect="The average depends on which baselines are counted.",
        ),
        Difference(
            id="qhyvit.d3",
            paper_says="FQ-ViT and others fail on MobileViT.",
            code_does="Other authors measured FQ-ViT at 66.46 % on MobileViT-xxs with 8 bits.",
            effect="Part of the collapse depends on how a baseline is applied.",
        ),
        Difference(
            id="qhyvit.d4",
            paper_says=(
                "The Hessian weights come from the gradient of a KL divergence to the "
                "full-precision output."
            ),
            code_does="At the unquantised network this gradient is zero.",
            effect="The search is blind unless some quantisers are on; shown as a figure.",
        ),
        Difference(
            id="qhyvit.d5",
            paper_says=(
                "The search tries a hundred factors between 0.01 and 1.2 (PTQ4ViT's engine)."
            ),
            code_does="The list has 101 entries and the last is never tried.",
            effect="Factor 1.2 can't be chosen.",
        ),
        Difference(
            id="qhyvit.d6",
            paper_says="RepQ-ViT moves channel-wise scales into the layer norm (baseline).",
            code_does="Its averaged zero point is not rounded.",
            effect="Codes lie off the grid by a fraction after the change.",
        ),
    ),
)
