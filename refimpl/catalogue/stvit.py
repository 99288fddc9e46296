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
    claims=(
        Claim(
            id="stvit.1",
            statement="Sixteen semantic tokens in DeiT remove about 60 % of the multiply-adds.",
            reported="about 60 % fewer FLOPs for DeiT-T, -S and -B",
            kind="identity",
        ),
        Claim(
            id="stvit.2",
            statement="The reduced DeiT keeps its accuracy at more than twice the throughput.",
            reported="no loss at over 100 % more throughput",
            kind="out_of_reach",
            needs="ImageNet-1k and GPUs; the DeiT version was never released",
            command=(
                "none exists: train DeiT with the semantic-token module for 300 epochs by the "
                "released Swin recipe and compare top-1"
            ),
        ),
        Claim(
            id="stvit.3",
            statement=(
                "Swin with sixteen semantic tokens a window is faster and slightly more accurate."
            ),
            reported="about 20 % more speed",
            kind="out_of_reach",
            needs="ImageNet-1k and GPUs; the plain Swin version was never released",
            command=(
                "none exists: train Swin with semantic tokens for 300 epochs by the released "
                "recipe and compare top-1 and throughput"
            ),
        ),
        Claim(
            id="stvit.4",
            statement=(
                "With recovery of the image tokens the backbone loses over 30 % of its "
                "multiply-adds and keeps the quality of detection."
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
            id="stvit.5",
            statement=(
                "For a dense task, recovered tokens are better than semantic tokens enlarged by "
                "nearest neighbour."
            ),
            reported="basis of the detection results",
            kind="miniature",
        ),
        Claim(
            id="stvit.6",
            statement=(
                "Seeds from spatial pooling refined by attention are more accurate than pooled or "
                "learned tokens alone."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="stvit.7",
            statement=(
                "Attention maps of the generation layers group image tokens by content, like "
                "clusters."
            ),
            reported="figures in the paper",
            kind="miniature",
        ),
        Claim(
            id="stvit.8",
            statement=(
                "On a small classification task, four semantic tokens are as accurate as all "
                "tokens at less than half of the multiply-adds."
            ),
            reported="the same at ImageNet scale, see 2",
            kind="miniature",
        ),
        Claim(
            id="stvit.9",
            statement=(
                "The released Swin-S and Swin-B models with recovery save a third of the "
                "multiply-adds."
            ),
            reported=(
                "82.7 and 83.2 % top-1 at over 30 % fewer FLOPs; 49.6 and 87.8 M parameters in the "
                "logs"
            ),
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="stvit.d1",
            paper_says="Seeds come from spatial pooling.",
            code_does="The pooling is an adaptive maximum, with overlapping bins.",
            effect="Average pooling, the usual reading, gives other tokens.",
        ),
        Difference(
            id="stvit.d2",
            paper_says="The module works on any feature map.",
            code_does="Key windows (size 10, stride 4) are fixed for a 14×14 grid.",
            effect=(
                "The released classifier runs at 224 pixels only; here sizes are computed, and "
                "equal the released ones at 14."
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
        ),
        Difference(
            id="stvit.d4",
            paper_says="Sixteen semantic tokens a window.",
            code_does="The released models use nine for each 7×7 window.",
            effect="Their savings belong to nine tokens.",
        ),
        Difference(
            id="stvit.d5",
            paper_says="Layer scale is on (the logs).",
            code_does=(
                "The builder never passes the option to the Swin blocks; only the semantic blocks "
                "have it."
            ),
            effect="The parameter count proves it; a loader that expects the scales finds none.",
        ),
        Difference(
            id="stvit.d6",
            paper_says="The log gives 2.31 GFLOPs.",
            code_does="The builder's counter counts stage 3 as zero.",
            effect="Counted here: 5.80 G for Swin-S, 10.23 G for Swin-B.",
        ),
        Difference(
            id="stvit.d7",
            paper_says="The sampling window is set in the configuration.",
            code_does="The value is not passed on; the default 3 applies.",
            effect="Changing the configuration changes nothing.",
        ),
    ),
)
