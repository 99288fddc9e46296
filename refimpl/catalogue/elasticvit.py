"""The paper ElasticViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="elasticvit",
    name="ElasticViT",
    title=(
        "ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision Transformer on "
        "Diverse Mobile Devices"
    ),
    authors=(
        "Chen Tang, Li Lyna Zhang, Huiqiang Jiang, Jiahang Xu, Ting Cao, Quanlu Zhang, Yuqing "
        "Yang, Zhi Wang, Mao Yang"
    ),
    venue="ICCV",
    year=2023,
    idea=(
        "Subnets of very different size pull shared weights apart: let each training step sample "
        "neighbours in size, and remember which subnets were good."
    ),
    arxiv="2303.09730",
    code="https://github.com/microsoft/Moonlit/tree/main/ElasticViT",
    commit="348a402c00bfef07e97d969361606223556da6de",
    licence="MIT",
    variants=("t1", "t2", "s1", "s2", "m", "l1", "l1_5", "l2", "l3"),
    top1=(("t1", 67.2), ("s1", 77.2), ("l3", 80.0)),
    kernels=("cropped_bias_attention",),
    claims=(
        Claim(
            id="elasticvit.1",
            statement=(
                "Subnets cut from one set of weights, without retraining, grow in accuracy with "
                "their size."
            ),
            reported="67.2 % at about 60 M FLOPs to 80.0 % at about 800 M",
            kind="miniature",
            # rising: share of starts in which the largest of six sizes beats the smallest by more
            # than 5 points and no size is more than 2 points below the one before; floor: the
            # lowest accuracy in %, where chance is 10
            rule=(
                "supports if rising == 1 and floor > 30; contradicts if rising == 0; where rising "
                "is the share of starts in which accuracy rises with size, floor the lowest in %"
            ),
        ),
        Claim(
            id="elasticvit.2",
            statement="ElasticViT-S1 is faster on a phone than EfficientNet-B0 and as accurate.",
            reported="2.62× faster, +0.1 points",
            kind="out_of_reach",
            needs="phones and ImageNet-1k",
            command=(
                "evaluate the released supernet at S1's genotype after recalibrating batch "
                "normalisation, with the official ElasticViT folder, and time both networks on a "
                "phone"
            ),
        ),
        Claim(
            id="elasticvit.3",
            statement=(
                "Under uniform sampling, gradients of subnets on shared weights disagree more the "
                "more their FLOPs differ."
            ),
            reported="gradient similarity falls with the difference in FLOPs",
            kind="miniature",
            # least, most: over the starts, how far the mean cosine falls from equal sizes (another
            # batch) to the smallest and the largest
            rule=(
                "supports if least >= 0.2; contradicts if most <= 0; where least and most are, "
                "over the starts, how far the cosine falls from equal to farthest sizes"
            ),
        ),
        Claim(
            id="elasticvit.4",
            statement=(
                "Sampling neighbouring sizes lowers the conflict and makes a better supernet."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
            # a lead: mean accuracy of the walk's six sizes minus that of a sampler, same start
            rule=(
                "supports if least > spread; contradicts if most < -spread; where least and most "
                "are of the walk's leads over both uniform samplers in all starts, in points, and "
                "spread is the largest minus the smallest of these leads"
            ),
        ),
        Claim(
            id="elasticvit.5",
            statement=(
                "A memory of good subnets and a preference for width over depth help further."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
            rule="It takes a memory that fills over hundreds of epochs; nothing here measures it.",
        ),
        Claim(
            id="elasticvit.6",
            statement="A subnet equals a stand-alone network with the sliced weights.",
            reported="definition of weight sharing",
            kind="identity",
            rule=(
                "supports if apart < 1e-5; contradicts if apart >= 1e-5; where apart is the "
                "largest difference of outputs as a fraction of their norm"
            ),
        ),
        Claim(
            id="elasticvit.7",
            statement="The published subnets have the published FLOPs by the authors' formula.",
            reported="about 60 M (T1) to about 800 M (L3)",
            kind="identity",
            rule=(
                "supports if apart < 1e-6; contradicts if apart >= 1e-6; where apart is the "
                "largest difference from the authors' values in million multiply-adds"
            ),
        ),
    ),
    differences=(
        Difference(
            id="elasticvit.d1",
            paper_says="Query, key and value weights are sliced for each head.",
            code_does=(
                "Rows are sliced in three blocks, joined, then viewed head by head with another "
                "split."
            ),
            effect=(
                "What a head calls query, key and value straddles the blocks; reproduced exactly."
            ),
            test="tests/papers/test_elasticvit.py::test_what_a_head_calls_keys_straddles_the_thirds",
        ),
        Difference(
            id="elasticvit.d2",
            paper_says="Layer normalisation.",
            code_does="The normalised shape is tokens and channels together.",
            effect="A group norm with one group: a token's output depends on all others.",
            test="tests/papers/test_elasticvit.py::test_the_norm_looks_at_all_tokens",
        ),
        Difference(
            id="elasticvit.d3",
            paper_says="FLOPs of a subnet.",
            code_does=(
                "The formula leaves out squeeze-excite and shortcuts of reductions and counts the "
                "depthwise 3×3 on values as one operation."
            ),
            effect=(
                "Limits in the paper are in this formula, not in a counter's figures: 62.9 M for "
                "64.9 M (T1)."
            ),
            test="tests/papers/test_elasticvit.py::test_the_formula_leaves_out_gates_shortcuts_and_most_of_the_values_convolution",
        ),
        Difference(
            id="elasticvit.d4",
            paper_says="Mutation changes resolution, depth and all other genes.",
            code_does=(
                "A new resolution is drawn and never stored; depth mutation leaves out the largest "
                "depth."
            ),
            effect="Resolution changes by crossover only; ours follows the paper.",
            test="tests/papers/test_elasticvit.py::test_mutation_reaches_every_resolution_and_depth",
        ),
        Difference(
            id="elasticvit.d5",
            paper_says="Bias tables are not decayed.",
            code_does="The list of exclusions is overwritten by another.",
            effect="They do decay.",
            test="tests/papers/test_elasticvit.py::test_bias_tables_decay_and_bottlenecks_do_not",
        ),
        Difference(
            id="elasticvit.d6",
            paper_says="FLOPs of a subnet, at each of six resolutions.",
            code_does="A reduction's input grid is counted as twice its output grid.",
            effect="An odd side counts as even: T2 at 160 pixels is charged 2.0 M too much.",
            test="tests/papers/test_elasticvit.py::test_an_odd_side_is_counted_as_even",
        ),
        Difference(
            id="elasticvit.d7",
            paper_says="The supernet has 40.5 M parameters.",
            code_does=(
                "Expansion weights are sized by the stage's largest input, not by the previous "
                "stage's."
            ),
            effect="Some columns are never used by any subnet.",
            test="tests/papers/test_elasticvit.py::test_some_columns_are_used_by_no_network",
        ),
    ),
)
