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
        ),
        Claim(
            id="efficientformer.4",
            statement=(
                "Attention itself is not the bottleneck as long as features keep one layout; "
                "changing the layout in each block is."
            ),
            reported="profiles of LeViT and DeiT on an iPhone 12",
            kind="miniature",
        ),
        Claim(
            id="efficientformer.5",
            statement=(
                "Convolution with foldable batch normalisation is faster than a linear layer with "
                "layer normalisation at equal FLOPs."
            ),
            reported="layer normalisation takes 10–20 % of the latency",
            kind="miniature",
        ),
        Claim(
            id="efficientformer.6",
            statement="The cost of an activation function depends on hardware and compiler.",
            reported="LeViT-256 on the phone: 44.5 ms with HardSwish, 11.9 ms with GELU",
            kind="miniature",
        ),
        Claim(
            id="efficientformer.7",
            statement=(
                "Slimming one supernet along a latency table gives a front of networks that beats "
                "removing blocks in random order."
            ),
            reported="L1, L3 and L7 come from one supernet",
            kind="miniature",
        ),
        Claim(
            id="efficientformer.8",
            statement="The three models have the published sizes and multiply-adds.",
            reported="12.3, 31.3 and 82.1 M parameters; 1.3, 3.9 and 10.2 G",
            kind="identity",
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
        ),
        Difference(
            id="efficientformer.d2",
            paper_says="Latency-driven slimming finds the models.",
            code_does="Supernet, search and latency table are not released.",
            effect=(
                "The search here is built from the paper's text; how the accuracy drop of a width "
                "cut is estimated is our choice."
            ),
        ),
        Difference(
            id="efficientformer.d3",
            paper_says="Paths are chosen with Gumbel-softmax.",
            code_does="The text adds uniform noise U(0, 1), not Gumbel noise −log(−log u).",
            effect="The noise has another shape and less spread; both are offered and plotted.",
        ),
        Difference(
            id="efficientformer.d4",
            paper_says="L1 has 12.3 M parameters.",
            code_does="The models are built with two heads by default; the count includes both.",
            effect="With one head L1 has 11.8 M.",
        ),
        Difference(
            id="efficientformer.d5",
            paper_says="Parameters and multiply-adds come from the repository's counter.",
            code_does=(
                "It counts a convolution's bias by its input channels and skips batch "
                "normalisation."
            ),
            effect="12.25 M instead of 12.29 M parameters for L1.",
        ),
        Difference(
            id="efficientformer.d6",
            paper_says="Warm-up starts at 1e-6 (help text).",
            code_does="The default is 1e-5.",
            effect="A run by the defaults starts ten times higher than its help says.",
        ),
    ),
)
