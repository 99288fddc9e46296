"""The paper STViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="stvit",
    name="STViT",
    title="Making Vision Transformers Efficient from A Token Sparsification View",
    authors=(
        "Shuning Chang, Pichao Wang, Ming Lin, Fan Wang, David Junhao Zhang, Rong Jin, Mike Zheng "
        "Shou"
    ),
    venue="CVPR",
    year=2023,
    idea=(
        "Replace image tokens by a few semantic tokens, made by attention like cluster centres "
        "from pooled seeds, and recover the image tokens where they are needed."
    ),
    arxiv="2303.08685",
    code="https://github.com/changsn/STViT-R",
    commit="b4a27a07fc282198466b3b688ebecc6f146cc9fd",
    licence="MIT",
    variants=("deit_tiny", "deit_small", "deit_base", "r_swin_tiny", "r_swin_small", "r_swin_base"),
    top1=(("r_swin_small", 82.7), ("r_swin_base", 83.2)),
    kernels=("few_query_attention",),
    claims=(
        Claim(
            id="stvit.1",
            statement=(
                "Only 16 semantic tokens on DeiT-Tiny, -Small and -Base reduce the multiply-adds "
                "by nearly 60 %."
            ),
            reported="nearly 60 % fewer FLOPs",
            kind="out_of_reach",
            needs="the place of the module in DeiT, which the text does not give",
            command=(
                "none exists: the DeiT form was never released; our models have the module after "
                "the fourth block because that saves nearly 60 %, so to count them is circular"
            ),
        ),
        Claim(
            id="stvit.2",
            statement=(
                "Only 16 semantic tokens on DeiT improve the speed of inference by more than 100 %."
            ),
            reported="more than 100 % on GPUs",
            kind="miniature",
            rule=(
                "supports if speedup > 2; contradicts if speedup < 1.5; where speedup is the "
                "smaller of DeiT-Tiny's and -Small's, one image, one CPU thread"
            ),
        ),
        Claim(
            id="stvit.3",
            statement="A few semantic tokens attain the same accuracy as all image tokens.",
            reported="DeiT with 16 semantic tokens: no loss on ImageNet",
            kind="miniature",
            rule=(
                "supports if most_behind < 2 and share < 60 and dense_short < 2; contradicts if "
                "least_behind > 2 and dense_short < 2; where behind is by how many points 16 "
                "centres stay behind three dense blocks over starts, share the % of their "
                "multiply-adds, dense_short how far the worst dense net is from the oracle"
            ),
        ),
        Claim(
            id="stvit.4",
            statement=(
                "16 semantic tokens in each window speed Swin up by around 20 % with a slight "
                "increase of accuracy."
            ),
            reported="about 20 % more speed for Swin-T, -S and -B",
            kind="out_of_reach",
            needs="ImageNet-1k and GPUs; the plain Swin version was never released",
            command=(
                "none exists: train Swin with semantic tokens for 300 epochs by the released "
                "recipe and compare top-1 and throughput"
            ),
        ),
        Claim(
            id="stvit.5",
            statement=(
                "Recovery restores detailed spatial information, which makes the network work for "
                "dense tasks."
            ),
            reported="basis of the detection results",
            kind="miniature",
            rule=(
                "supports if least_lead > 2 and lasting > 2; contradicts if most_lead < 0; where "
                "lead is by how many points pooled centres that are asked back are before pooled "
                "and resized ones, over starts, four centres, compact objects, lasting the same "
                "after four times as many steps"
            ),
        ),
        Claim(
            id="stvit.6",
            statement=(
                "Semantic tokens are best initialised by pooling in space and refined by "
                "attention: objects that are compact."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
            rule=(
                "supports if most_behind <= 1; contradicts if least_behind > 2; where behind is by "
                "how many points the better of pooled and of learned centres alone leads, over "
                "starts and 4 and 16 centres"
            ),
        ),
        Claim(
            id="stvit.7",
            statement=(
                "Semantic tokens are best initialised by pooling in space and refined by "
                "attention: objects whose tokens are scattered."
            ),
            reported="ablation on ImageNet (images, where objects are compact)",
            kind="miniature",
            rule=(
                "supports if most_behind <= 1; contradicts if least_behind > 2; where behind is by "
                "how many points the better of pooled and of learned centres alone leads, over "
                "starts and 4 and 16 centres"
            ),
        ),
        Claim(
            id="stvit.8",
            statement="Semantic tokens represent cluster centres.",
            reported="figures of attention maps",
            kind="miniature",
            rule=(
                "supports if least_margin > 0.1; contradicts if most_margin < -0.1; where margin "
                "is purity minus the largest of a fixed grid's, of shuffled groups' and of pooled "
                "centres that never ask, over starts"
            ),
        ),
        Claim(
            id="stvit.9",
            statement=(
                "STViT-R takes over 30 % of the multiply-adds off the backbone (Swin-S and Swin-B "
                "as released)."
            ),
            reported="over 30 % fewer FLOPs; 49.6 and 87.8 M parameters in the logs",
            kind="identity",
            rule=(
                "supports if least > 30; contradicts if most < 30; where least and most are the % "
                "saved, over the two models"
            ),
        ),
        Claim(
            id="stvit.10",
            statement=(
                "STViT-R is competitive with the original networks in object detection and "
                "instance segmentation."
            ),
            reported=(
                "Cascade Mask R-CNN: 51.8 box and 44.7 mask AP (Swin-S), 52.2 and 45.2 (Swin-B)"
            ),
            kind="out_of_reach",
            needs="COCO and GPUs",
            command=(
                "evaluate the detection models of the repository changsn/STViT-R-Object-Detection "
                "on COCO"
            ),
        ),
        Claim(
            id="stvit.11",
            statement="Semantic tokens extend to video recognition.",
            reported="Video Swin on Kinetics",
            kind="out_of_reach",
            needs="Kinetics and GPUs; no code for video was released",
            command="none exists",
        ),
    ),
    differences=(
        Difference(
            id="stvit.d1",
            paper_says="Semantic tokens are initialised by pooling in space.",
            code_does="The pooling is an adaptive maximum, with overlapping cells.",
            effect="Average pooling, the usual reading, gives other tokens.",
            test="tests/papers/test_stvit.py::test_seeds_are_maxima_of_overlapping_cells",
        ),
        Difference(
            id="stvit.d2",
            paper_says="The module works on any feature map.",
            code_does="Key windows (size 10, stride 4) are fixed for a 14×14 grid.",
            effect=(
                "The released classifier runs at 224 pixels only; here windows are computed, and "
                "equal the released ones at 14."
            ),
            test=(
                "tests/papers/test_stvit.py::test_key_windows_cover_the_image_and_their_own_window"
            ),
        ),
        Difference(
            id="stvit.d3",
            paper_says="Each layer has a residual connection.",
            code_does=(
                "The first generation layer of the released models drops its pooled seed from the "
                "residual path."
            ),
            effect="Its output starts at the layer scale, 1e-5; the next norm rescales it.",
            test="tests/papers/test_stvit.py::test_without_the_shortcut_tokens_start_at_nothing",
        ),
        Difference(
            id="stvit.d4",
            paper_says="Sixteen semantic tokens a window.",
            code_does=(
                "The released models use nine for each 7×7 window; the configuration's value is "
                "not passed on, the default holds."
            ),
            effect="Their savings belong to 36 tokens an image; parameters do not tell.",
            test="tests/papers/test_stvit.py::test_released_models_have_nine_tokens_a_window",
        ),
        Difference(
            id="stvit.d5",
            paper_says="Layer scale is on (the logs).",
            code_does=(
                "The builder never passes the option to the Swin blocks; only the semantic blocks "
                "have it."
            ),
            effect="The parameter count proves it; a loader that expects the scales finds none.",
            test="tests/papers/test_stvit.py::test_only_semantic_blocks_have_layer_scales",
        ),
        Difference(
            id="stvit.d6",
            paper_says="The log of Swin-S gives 2.31 GFLOPs.",
            code_does="The builder's counter counts stage 3 as zero.",
            effect="Counted here: 5.80 G for Swin-S, 10.23 G for Swin-B.",
            test="tests/papers/test_stvit.py::test_the_log_counts_the_third_stage_as_nothing",
        ),
        Difference(
            id="stvit.d7",
            paper_says="Padded keys are masked (the detection code's option).",
            code_does=(
                "The mask covers the corner where padded rows and columns meet, and everything "
                "where nothing is padded."
            ),
            effect=(
                "On maps that are multiples of seven, zeros beyond the border are looked at like "
                "tokens; elsewhere most of the padding of the map is."
            ),
            test=(
                "tests/papers/test_stvit.py::"
                "test_mask_of_the_detection_form_covers_a_corner_or_everything"
            ),
        ),
    ),
)
