"""The paper EfficientFormer.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientformer",
    name="EfficientFormer",
    title="EfficientFormer: Vision Transformers at MobileNet Speed",
    authors=(
        "Yanyu Li, Geng Yuan, Yang Wen, Eric Hu, Georgios Evangelidis, Sergey Tulyakov, Yanzhi "
        "Wang, Jian Ren"
    ),
    venue="NeurIPS",
    year=2022,
    idea=(
        "Pooling blocks on maps first, attention blocks on tokens last, one reshape between; a "
        "supernet slimmed step by step along a table of measured latencies."
    ),
    arxiv="2206.01191",
    code="https://github.com/snap-research/EfficientFormer",
    commit="d01da426243a38303d0a35d01fc928b0e37d38d3",
    licence="MIT-style (Snap), with LeViT's Apache-2.0 notice",
    variants=("l1", "l3", "l7"),
    top1=(("l1", 79.2), ("l3", 82.4), ("l7", 83.3)),
    kernels=("pool_mixer",),
    claims=(
        Claim(
            id="efficientformer.1",
            statement="L1 is as fast on a phone as MobileNetV2×1.4 and more accurate.",
            reported="79.2 % top-1 at 1.6 ms (iPhone 12, CoreML) against 74.7 % at 1.6 ms",
            kind="out_of_reach",
            needs="an iPhone 12 with Xcode and CoreML; ImageNet-1k",
            command=(
                "sh dist_test.sh efficientformer_l1 8 weights/efficientformer_l1_300d.pth  # "
                "official repository; latency: its CoreML models under coreml-performance"
            ),
        ),
        Claim(
            id="efficientformer.2",
            statement=(
                "L3 and L7 reach the accuracy of large networks at a few milliseconds on a phone."
            ),
            reported="82.4 % at 3.0 ms (L3), 83.3 % at 7.0 ms (L7)",
            kind="out_of_reach",
            needs="an iPhone 12 with Xcode and CoreML; ImageNet-1k",
            command=(
                "sh dist_test.sh efficientformer_l7 8 <checkpoint of L7>  # official repository; "
                "latency: its CoreML models under coreml-performance"
            ),
        ),
        Claim(
            id="efficientformer.3",
            statement=(
                "A patch embedding with a large kernel and stride is slower than a stack of 3×3 "
                "convolutions of stride 2."
            ),
            reported="a bottleneck in profiles on an iPhone 12",
            kind="miniature",
            # ratio: time of one 16×16 convolution of stride 16 over that of four 3×3 of stride 2,
            # to 192 channels, one image; spread: half the range of its quartiles.
            rule="supports if ratio > 1 + spread; contradicts if ratio < 1 - spread",
        ),
        Claim(
            id="efficientformer.4",
            statement=(
                "Attention itself is not the bottleneck as long as features keep one layout; "
                "changing the layout in each block is."
            ),
            reported="profiles of LeViT and DeiT on an iPhone 12",
            kind="miniature",
            # change: what going to a map and back in each block adds to four attention blocks, as
            # a share of their time; attention: what their attention layers take of it; spread:
            # half the range of the quartiles of `change`.
            rule="supports if change > attention; contradicts if change < attention - spread",
        ),
        Claim(
            id="efficientformer.5",
            statement=(
                "Convolution with foldable batch normalisation is faster than a linear layer with "
                "layer normalisation at equal FLOPs."
            ),
            reported="layer normalisation takes 10–20 % of the latency",
            kind="miniature",
            # ratio: time of LayerNorm, linear, GELU, linear over that of two folded 1×1
            # convolutions with GELU between; spread: half the range of its quartiles.
            rule="supports if ratio > 1 + spread; contradicts if ratio < 1 - spread",
        ),
        Claim(
            id="efficientformer.6",
            statement="The cost of an activation function depends on hardware and compiler.",
            reported="LeViT-256 on the phone: 44.5 ms with HardSwish, 11.9 ms with GELU",
            kind="miniature",
            # ratio: time of HardSwish over that of GELU here; on the phone it is above 1 by far.
            rule="supports if ratio < 1 - spread; contradicts if ratio > 3",
        ),
        Claim(
            id="efficientformer.7",
            statement=(
                "Slimming one supernet along a latency table finds better networks than chance "
                "within the same latency."
            ),
            reported="L1, L3 and L7 come from one supernet",
            kind="miniature",
            # least, most: accuracy of the network found, trained from scratch, less the median of
            # random ones within the same target of measured latency, in the worst and in the best
            # seed; differ: steps in which the choice by time is not the choice by multiply-adds.
            rule="supports if least > 0 and differ > 0; contradicts if most < 0",
        ),
        Claim(
            id="efficientformer.8",
            statement="The three models have the published sizes and multiply-adds.",
            reported="12.3, 31.3 and 82.1 M parameters; 1.3, 3.9 and 10.2 G",
            kind="identity",
            # deviation: the largest, relative to the published figures, by plain counting (the
            # published ones are the repository's own counter's).
            rule="supports if deviation < 0.01; contradicts if deviation >= 0.01",
        ),
        Claim(
            id="efficientformer.9",
            statement=(
                "Cheap mixers first and attention last lose nothing against attention in every "
                "block, at much less time."
            ),
            reported="the dimension-consistent design; no comparison at equal cost",
            kind="miniature",
            # lead: accuracy of attention in all three blocks less that of pool, pool, attention,
            # the largest over seeds; least: the same, the smallest; time: of the latter over the
            # former; chance: how far three pools are from guessing. On two far glyphs.
            rule=(
                "supports if lead < 0.03 and time < 0.7 and chance < 0.03; "
                "contradicts if least > 0.05"
            ),
        ),
        Claim(
            id="efficientformer.10",
            statement=(
                "The learned weights of the paths tell which blocks matter: removing the least "
                "important first costs less accuracy than removing blocks at random."
            ),
            reported="importance picks the block to remove and the stage to narrow",
            kind="miniature",
            # worst, best: accuracy, inside the supernet, after half of the blocks were removed by
            # importance alone, less the median of random orders, in the worst and the best seed.
            rule="supports if worst > 0; contradicts if best < 0",
        ),
    ),
    differences=(
        Difference(
            id="efficientformer.d1",
            paper_says="The token mixer is x + Pool(x).",
            code_does="The branch is Pool(x) − x, scaled by a learned vector.",
            effect=(
                "The branch vanishes for constant maps, where the paper's formula adds the map "
                "once more."
            ),
            test=(
                "tests/papers/test_efficientformer.py"
                "::test_the_mean_is_over_real_pixels_and_less_the_middle"
            ),
        ),
        Difference(
            id="efficientformer.d2",
            paper_says="Latency-driven slimming finds the models, and cuts widths in its supernet.",
            code_does=(
                "Supernet, search and latency table are not released; how a width that the "
                "supernet does not have is judged is not said."
            ),
            effect=(
                "The search here is built from the paper's text; a narrower stage keeps the "
                "channels with the largest norm scale, which is our choice."
            ),
            test=(
                "tests/papers/test_efficientformer.py"
                "::test_a_cut_stage_keeps_its_strongest_channels"
            ),
        ),
        Difference(
            id="efficientformer.d3",
            paper_says="Paths are chosen with Gumbel-softmax.",
            code_does="The text adds uniform noise U(0, 1), not Gumbel noise −log(−log u).",
            effect=(
                "Uniform noise never lets a path win whose logit is 1 behind; with Gumbel noise "
                "each wins as often as the softmax says. Both are offered and plotted."
            ),
            test=(
                "tests/papers/test_efficientformer.py::test_only_gumbel_noise_draws_from_the_softmax"
            ),
        ),
        Difference(
            id="efficientformer.d4",
            paper_says="L1 has 12.3 M parameters.",
            code_does="The models are built with two heads by default; the count includes both.",
            effect="With one head L1 has 11.8 M.",
            test=(
                "tests/papers/test_efficientformer.py::test_parameters_with_two_heads_and_with_one"
            ),
        ),
        Difference(
            id="efficientformer.d5",
            paper_says="Parameters and multiply-adds come from the repository's counter.",
            code_does=(
                "It counts a convolution's bias by its input channels, skips batch normalisation, "
                "and counts a GELU on maps once per channel and row, not per pixel."
            ),
            effect=(
                "12.25 M instead of 12.29 M parameters for L1; the GELUs of its 4D blocks count "
                "0.17 M instead of 3.7 M."
            ),
            test="tests/papers/test_efficientformer.py::test_official",
        ),
        Difference(
            id="efficientformer.d6",
            paper_says="Distillation as in DeiT; the soft form is a divergence with temperature.",
            code_does="The soft loss is divided by batch times classes, not by the batch.",
            effect="With 1000 classes it weighs a thousandth of the mean divergence per image.",
            test="tests/papers/test_efficientformer.py::test_official",
        ),
    ),
)
