"""The paper EfficientViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientvit",
    name="EfficientViT",
    title="EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
    authors="Xinyu Liu, Houwen Peng, Ningxin Zheng, Yuqing Yang, Han Hu, Yixuan Yuan",
    venue="CVPR",
    year=2023,
    idea=(
        "One attention layer between feed-forward layers, its heads fed different channels in a "
        "cascade: fewer bytes moved, fewer multiplications, heads that differ."
    ),
    arxiv="2305.07027",
    code="https://github.com/microsoft/Cream/tree/main/EfficientViT",
    commit="4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9",
    licence="MIT",
    variants=("m0", "m1", "m2", "m3", "m4", "m5"),
    top1=(("m0", 63.2), ("m1", 68.4), ("m2", 70.8), ("m3", 73.4), ("m4", 74.3), ("m5", 77.1)),
    kernels=("cascaded_group_attention",),
    claims=(
        Claim(
            id="efficientvit.1",
            statement=(
                "Memory-inefficient operations, above all the reshapes and element-wise functions "
                "of attention, dominate the run time of vision transformers."
            ),
            reported="profiles of Swin-T and DeiT-T on a V100: memory-bound operations dominate",
            kind="miniature",
            # moved: the share of the time of DeiT-Tiny's attention layer, written out, that goes
            # into copies, reshapes and element-wise functions, at batch 64; touched: the same
            # with softmax. Both on one CPU core. To dominate is to take more than half of the time;
            # under a quarter is clearly not to. Between them a single core does not decide.
            rule="supports if moved > 0.5; contradicts if touched < 0.25",
        ),
        Claim(
            id="efficientvit.2",
            statement=(
                "The sandwich layout, one attention layer between feed-forward layers, uses time "
                "better: at equal speed, a share of 20–40 % attention layers is at least as "
                "accurate as the usual 50 %."
            ),
            reported="the best share of down-scaled Swin-T and DeiT-T on ImageNet lies at 20–40 %",
            kind="miniature",
            rule=(
                "Nets of equal measured latency with 20–40 % and with 50 % attention layers, on "
                "pictures that need attention: a net without it scores less by more than 2 points. "
                "On pictures that do not: not tested here."
            ),
        ),
        Claim(
            id="efficientvit.3",
            statement=(
                "The attention maps of a layer's heads are highly similar, so that heads are "
                "redundant."
            ),
            reported="high average cosine similarity between heads, Swin-T and DeiT-T",
            kind="miniature",
            # excess: (cosine − chance) / (1 − chance) of heads that read all channels, the mean
            # over seeds. 0: as alike as the same rows in random order; 1: identical. One identical
            # pair of the six makes 1/6, so below 0.1 not even one pair of heads is redundant.
            # lead: by how much attention raises the share of right answers on the same pictures.
            # Heads that a task does not need say nothing of heads that it needs: two points.
            rule=(
                "supports if excess > 0.5 and lead > 0.02; "
                "contradicts if excess < 0.1 and lead > 0.02"
            ),
        ),
        Claim(
            id="efficientvit.4",
            statement=(
                "Feeding each head a different split of the channels, in a cascade, improves the "
                "diversity of the attention maps."
            ),
            reported="lower similarity and higher accuracy than without the cascade, on M4",
            kind="miniature",
            # gain: excess of heads with slices side by side less that of the same slices in
            # cascade, the mean over seeds; 0.1 and lead as in the claim before.
            rule=(
                "supports if gain > 0.1 and lead > 0.02; contradicts if gain < -0.1 and lead > 0.02"
            ),
        ),
        Claim(
            id="efficientvit.5",
            statement=(
                "M5 is 1.9 points more accurate on ImageNet than MobileNetV3-Large, with more "
                "throughput on a GPU and on a CPU."
            ),
            reported="77.1 % top-1; +40.4 % throughput on a V100, +45.2 % on a Xeon",
            kind="out_of_reach",
            needs="ImageNet-1k, a V100 and a Xeon server",
            command=(
                "python main.py --eval --model EfficientViT_M5 --resume ./efficientvit_m5.pth "
                "--data-path $PATH_TO_IMAGENET && python speed_test.py  # official repository, "
                "EfficientViT/classification"
            ),
        ),
        Claim(
            id="efficientvit.6",
            statement=(
                "M2 is 1.8 points more accurate on ImageNet than MobileViT-XXS and several times "
                "faster."
            ),
            reported="70.8 % top-1; 5.8× (GPU), 3.7× (CPU), 7.4× (ONNX) the speed",
            kind="out_of_reach",
            needs="ImageNet-1k, a V100, a Xeon server, ONNX Runtime",
            command=(
                "python main.py --eval --model EfficientViT_M2 --resume ./efficientvit_m2.pth "
                "--data-path $PATH_TO_IMAGENET && python speed_test.py  # official repository, "
                "EfficientViT/classification"
            ),
        ),
        Claim(
            id="efficientvit.7",
            statement=(
                "The cascade makes the network deeper without a parameter more: later heads "
                "build on what earlier ones found."
            ),
            reported="stated as the cascade's second advantage; no figure of its own",
            kind="miniature",
            # deep: the least accuracy of the cascade over seeds and questions, when asked where a
            # walk stands after three to five steps, each read at the place of the one before;
            # flat: the greatest of parallel heads (slices, or all channels), trained for as many
            # steps. Chance among the places that single looks leave open: 1/12.
            rule="supports if deep > 0.9 and flat < 0.5; contradicts if deep <= flat",
        ),
        Claim(
            id="efficientvit.8",
            statement="The cascade costs only a minor latency overhead.",
            reported="stated with the definition; no figure of its own",
            kind="miniature",
            # one, many: time of cascaded heads over that of the same slices in parallel, at
            # batch 1 and at batch 64, four heads, M4's first map, one CPU core.
            rule="supports if one < 1.1 and many < 1.1; contradicts if one > 1.25 and many > 1.25",
        ),
        Claim(
            id="efficientvit.9",
            statement=(
                "Feeding each of h heads its own split of the channels divides the work of the "
                "query, key and value projections by h and leaves the rest as it was."
            ),
            reported="fewer parameters and FLOPs, from the layer's definition",
            kind="identity",
            # full, sliced: weights of these projections of M4's first layer, both ways; rest_full,
            # rest_sliced: all other weights of the layer.
            rule=(
                "supports if full == heads * sliced and rest_full == rest_sliced; "
                "contradicts if full != heads * sliced or rest_full != rest_sliced"
            ),
        ),
    ),
    differences=(
        Difference(
            id="efficientvit.d1",
            paper_says="The relative position bias is a parameter of the attention layer.",
            code_does=(
                "In evaluation mode a gathered copy of the bias is cached when `eval()` is called."
            ),
            effect=(
                "Weights loaded into a model that is already in evaluation mode keep the old bias "
                "until `eval()` is called again."
            ),
            test="tests/papers/test_efficientvit.py::test_no_stale_bias_after_loading",
        ),
        Difference(
            id="efficientvit.d2",
            paper_says="A model lists the query kernels of four heads (7, 5, 3, 3).",
            code_does=(
                "Kernels are taken by head: stages with two or three heads use the first entries "
                "only."
            ),
            effect="Such stages have fewer kernel sizes, and parameters, than the list suggests.",
            test="tests/papers/test_efficientvit.py::test_kernels_go_by_head",
        ),
        Difference(
            id="efficientvit.d3",
            paper_says="The tables give FLOPs.",
            code_does=(
                "Multiply-adds of convolutions and matrix products are counted; softmax and "
                "reductions are not."
            ),
            effect="A factor of two against papers that count both operations of a multiply-add.",
            test=(
                "tests/papers/test_efficientvit.py::test_published_flops_are_multiply_adds_without_softmax"
            ),
        ),
    ),
)
