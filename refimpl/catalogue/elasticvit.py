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
    claims=(
        Claim(
            id="elasticvit.1",
            statement=(
                "Subnets cut from one set of weights, without retraining, grow in accuracy with "
                "their size."
            ),
            reported="67.2 % at about 60 M FLOPs to 80.0 % at about 800 M",
            kind="miniature",
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
        ),
        Claim(
            id="elasticvit.4",
            statement=(
                "Sampling neighbouring sizes lowers the conflict and makes a better supernet."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="elasticvit.5",
            statement=(
                "A memory of good subnets and a preference for width over depth help further."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="elasticvit.6",
            statement="A subnet equals a stand-alone network with the sliced weights.",
            reported="definition of weight sharing",
            kind="identity",
        ),
        Claim(
            id="elasticvit.7",
            statement="The published subnets have the published FLOPs by the authors' formula.",
            reported="about 60 M (T1) to about 800 M (L3)",
            kind="identity",
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
        ),
        Difference(
            id="elasticvit.d2",
            paper_says="Layer normalisation.",
            code_does="The normalised shape is tokens and channels together.",
            effect="A group norm with one group: a token's output depends on all others.",
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
        ),
        Difference(
            id="elasticvit.d4",
            paper_says="Mutation changes resolution, depth and all other genes.",
            code_does=(
                "A new resolution is drawn and never stored; depth mutation leaves out the largest "
                "depth."
            ),
            effect="Resolution changes by crossover only.",
        ),
        Difference(
            id="elasticvit.d5",
            paper_says="Bias tables are not decayed.",
            code_does="The list of exclusions is overwritten by another.",
            effect="They do decay.",
        ),
        Difference(
            id="elasticvit.d6",
            paper_says="Search for latency on devices.",
            code_does="A latency predictor is referred to, not shipped.",
            effect="The public code searches by FLOPs only.",
        ),
        Difference(
            id="elasticvit.d7",
            paper_says="The supernet has 40.5 M parameters.",
            code_does=(
                "Expansion weights are sized by the stage's largest input, not by the previous "
                "stage's."
            ),
            effect="Some columns are never used by any subnet.",
        ),
    ),
)
