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
    kernels=("int8_product",),
    claims=(
        Claim(
            id="qhyvit.1",
            statement=(
                "Quantisation methods made for plain vision transformers collapse on hybrid ones."
            ),
            reported=(
                "MobileViT-xxs, 8 bits: 69.0 → 37.75 (PTQ4ViT), 1.85 (RepQ-ViT), 68.20 % "
                "(Q-HyViT); other authors measured FQ-ViT at 66.46 and Q-HyViT at 67.20 %"
            ),
            kind="out_of_reach",
            needs="ImageNet-1k and pretrained weights of hybrid networks",
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
            # gap: agreement of EfficientNet-Lite0 with itself, 8-bit weights by channel minus by
            # tensor. least, most: over the trained hybrids, largest over median input range of a
            # layer's channels, bridges over all other layers (medians over layers).
            rule=(
                "supports if gap > 0.2 and least > 1; contradicts if gap < 0.05 or most < 1; where "
                "gap is what weights by channel save a real network, and least and most are how "
                "much wider ranges are apart at the bridges of the trained hybrids"
            ),
        ),
        Claim(
            id="qhyvit.3",
            statement=(
                "A range without zero pushes the zero point out of its range, and clamping it "
                "destroys the values."
            ),
            reported="named zero-point overflow",
            kind="miniature",
            # lost: agreement of EfficientNet-Lite0 with itself at 8 bits, inputs by channel: ranges
            # that contain zero minus clamped zero points. cured: what is regained where only the
            # overflowing channels are cured.
            rule=(
                "supports if lost > 0.3 and cured > lost / 2; contradicts if lost < 0.05; where "
                "lost is agreement lost by clamping, and cured what curing the overflowing "
                "channels alone brings back"
            ),
        ),
        Claim(
            id="qhyvit.4",
            statement=(
                "Batch normalisation folds away before quantisation; layer and group normalisation "
                "stay."
            ),
            reported="mixed normalisation in hybrid networks",
            kind="identity",
            # apart: largest difference of a folded MobileViT's answers, as a share of their norm;
            # left, stay: batch norms, and layer or group norms, in the folded networks.
            rule="supports if apart < 1e-4 and left == 0 and stay > 0; contradicts otherwise",
        ),
        Claim(
            id="qhyvit.5",
            statement="Small networks lose more accuracy at the same number of bits.",
            reported="networks under 5 M parameters suffer most",
            kind="out_of_reach",
            needs="ImageNet-1k, pretrained weights of one family at several sizes",
            command=(
                "calibrate timm's mobilevitv2_050 to mobilevitv2_200 at 6 bits with "
                "refimpl.papers.qhyvit.calibrate and evaluate them on ImageNet"
            ),
        ),
        Claim(
            id="qhyvit.6",
            statement=(
                "Choosing scales by a gradient-weighted error is better than taking them from "
                "min–max ranges."
            ),
            reported="+17.73 (8 bits) and +29.75 points (6 bits) over four methods, on average",
            kind="miniature",
            # gain, loss: accuracy in points over min–max; at each bit width the least and the most
            # over starts; gain: the best least, loss: the worst most. So for claims 7 and 8.
            rule=(
                "supports if gain > 0 and loss > 0; contradicts if gain < 0 and loss < 0; where "
                "gain is what the worst start gains at the best bit width, and loss what the best "
                "start gains at the worst"
            ),
        ),
        Claim(
            id="qhyvit.7",
            statement=(
                "The weights by the gradient make the search better than the plain squared error."
            ),
            reported="Hessian-weighted objective, as in PTQ4ViT",
            kind="miniature",
            rule=(
                "supports if gain > 0 and loss > 0; contradicts if gain < 0 and loss < 0; where "
                "gain is what the worst start gains at the best bit width, and loss what the best "
                "start gains at the worst"
            ),
        ),
        Claim(
            id="qhyvit.8",
            statement=(
                "Choosing granularity and scheme for each layer is better than one rule for all."
            ),
            reported="part of the hybrid reconstruction",
            kind="miniature",
            rule=(
                "supports if gain > 0 and loss > 0; contradicts if gain < 0 and loss < 0; where "
                "gain is what the worst start gains at the best bit width, and loss what the best "
                "start gains at the worst"
            ),
        ),
        Claim(
            id="qhyvit.9",
            statement=(
                "Calibrating a bridge as a block is better than calibrating its layers one by one, "
                "and it is the bridge where that matters."
            ),
            reported="bridge block reconstruction, an ablation in the paper",
            kind="miniature",
            # least, most: of accuracy gained by the bridges as blocks, in standard errors paired
            # over images, over starts, at 4 bits; elsewhere: the least lead, in points, over the
            # same treatment of two blocks of equal size that are no bridges.
            rule=(
                "supports if least > 2 and elsewhere > 0; contradicts if most < -2; where least "
                "and most are the gain of bridges as blocks over the starts in standard errors, "
                "and elsewhere the least lead over blocks of equal size that are no bridges"
            ),
        ),
        Claim(
            id="qhyvit.10",
            statement="The average gains hold over the benchmark of hybrid networks.",
            reported=(
                "+17.73 points at 8 bits, +29.75 at 6 bits; an earlier version, without RepQ-ViT "
                "among the baselines, says +8.32 and +26.02"
            ),
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
            test="tests/papers/test_qhyvit.py::test_recipes_of_the_paper_and_of_the_released_code",
        ),
        Difference(
            id="qhyvit.d2",
            paper_says=(
                "The Hessian weights come from the gradient of a KL divergence to the "
                "full-precision output."
            ),
            code_does="At the unquantised network this gradient is zero.",
            effect=(
                "The search is blind unless some quantisers are on; here all are, with min–max "
                "scales."
            ),
            test=(
                "tests/papers/test_qhyvit.py::"
                "test_the_divergence_has_no_gradient_where_nothing_is_rounded"
            ),
        ),
        Difference(
            id="qhyvit.d3",
            paper_says=(
                "The search tries a hundred factors between 0.01 and 1.2 (PTQ4ViT's engine)."
            ),
            code_does="The list has 101 entries and the last is never tried.",
            effect="Factor 1.2 can't be chosen.",
            test="tests/papers/test_qhyvit.py::test_a_hundred_factors_and_the_last_is_left_out",
        ),
        Difference(
            id="qhyvit.d4",
            paper_says="RepQ-ViT moves channel-wise scales into the layer norm (baseline).",
            code_does="Its averaged zero point is not rounded.",
            effect="Codes lie off the grid by a fraction after the change.",
            test="tests/papers/test_qhyvit.py::test_the_mean_zero_point_of_moved_scales_is_not_rounded",
        ),
        Difference(
            id="qhyvit.d5",
            paper_says="Every candidate scale of a layer is judged by that layer's output.",
            code_does=(
                "PTQ4ViT's engine lays the candidates of a grouped convolution one after another, "
                "and the convolution deals them out in blocks: most meet the input of another "
                "channel."
            ),
            effect=(
                "In a depthwise convolution of c channels only a c-th of the factors is judged "
                "rightly for each channel; here all are."
            ),
            test=(
                "tests/papers/test_qhyvit.py::"
                "test_candidates_of_grouped_convolutions_meet_other_channels"
            ),
        ),
        Difference(
            id="qhyvit.d6",
            paper_says=(
                "PTQ4ViT's twin quantiser has one half for small and one for large attention "
                "(baseline, switched off in Q-HyViT)."
            ),
            code_does="The upper half is never below the split, and both halves are added.",
            effect="Every attention weight comes out too large by about the split.",
            test="tests/papers/test_qhyvit.py::test_twin_halves_after_softmax_add_up_to_too_much",
        ),
    ),
)
