"""The paper LGViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="lgvit",
    name="LGViT",
    title="LGViT: Dynamic Early Exiting for Accelerating Vision Transformer",
    authors="Guanyu Xu, Jiawei Hao, Li Shen, Han Hu, Yong Luo, Hui Lin, Jialie Shen",
    venue="ACM Multimedia",
    year=2023,
    idea=(
        "Let easy images leave early: exits with convolutions in shallow layers, where locality "
        "lacks, and with pooled attention in deep ones."
    ),
    arxiv="2308.00255",
    code="https://github.com/falcon-xu/LGViT",
    commit="3147fb803ad54eadf8de85d34f43b9fb5440f3a0",
    licence="MIT",
    claims=(
        Claim(
            id="lgvit.1",
            statement=(
                "A threshold exists at which early exits are 1.8 times as fast with at most a "
                "point of accuracy lost."
            ),
            reported=(
                "about 1.8× for ViT-B/16, DeiT-B and Swin-B on CIFAR-100, Food-101 and ImageNet"
            ),
            kind="miniature",
        ),
        Claim(
            id="lgvit.2",
            statement=(
                "Plain linear exits are poor in shallow layers; LGViT's heads are better there."
            ),
            reported="probe study in the paper",
            kind="miniature",
        ),
        Claim(
            id="lgvit.3",
            statement=(
                "Convolution heads early and attention heads late are better than either kind "
                "everywhere."
            ),
            reported="ablation in the paper",
            kind="miniature",
        ),
        Claim(
            id="lgvit.4",
            statement=(
                "The second stage raises the exits and leaves backbone and final classifier "
                "exactly as they were."
            ),
            reported="backbone frozen in stage 2",
            kind="identity",
        ),
        Claim(
            id="lgvit.5",
            statement=(
                "The speed-up by layers (12 over the mean exit layer) is the speed-up in "
                "multiply-adds."
            ),
            reported="speed-up is reported by layers",
            kind="identity",
        ),
        Claim(
            id="lgvit.6",
            statement="The speed-up holds at the paper's scale.",
            reported="1.8× at competitive accuracy, three backbones, three data sets",
            kind="out_of_reach",
            needs="CIFAR-100, Food-101, ImageNet; three GPUs",
            command=(
                "source train_baseline_deit.sh; source train_distillation_deit.sh; source "
                "eval_highway_deit.sh  # official repository, folder scripts, paths set first"
            ),
        ),
    ),
    differences=(
        Difference(
            id="lgvit.d1",
            paper_says="The global head pools the token grid by averages.",
            code_does="The average pooling has kernel 1: it subsamples.",
            effect="Three quarters (stride 2) or more of the tokens are dropped, not averaged.",
        ),
        Difference(
            id="lgvit.d2",
            paper_says="The final classifier teaches the exits.",
            code_does=(
                "In stage 2 its logits are computed without the backbone's last layer "
                "normalisation, which inference applies."
            ),
            effect="Teacher and deployed classifier differ.",
        ),
        Difference(
            id="lgvit.d3",
            paper_says="Stage 2 works for ViT, DeiT and Swin.",
            code_does=(
                "The code drops two leading tokens: right for DeiT, one too many for ViT; the Swin "
                "class lacks the stage-2 loss."
            ),
            effect=(
                "ViT breaks against heads with 196 tokens; the paper's Swin results can't come "
                "from this file."
            ),
        ),
        Difference(
            id="lgvit.d4",
            paper_says="An image leaves when its own confidence passes the threshold.",
            code_does="The code takes the maximum over the whole batch.",
            effect=(
                "With more than one image, one confident image makes all leave; here the test is "
                "per image."
            ),
        ),
        Difference(
            id="lgvit.d5",
            paper_says="Speed-up counts layers.",
            code_does=(
                "Swin's exits are numbered from 0 when leaving early and from 1 at the end; the "
                "cost of the heads is not counted."
            ),
            effect=(
                "Swin's speed-up is overestimated by a layer; with heads counted, leaving ViT-B at "
                "layer 6 gives 1.85×, not 2×."
            ),
        ),
        Difference(
            id="lgvit.d6",
            paper_says="Scripts set the weight of the homogeneous distillation loss.",
            code_does="Class and scripts use different names for it.",
            effect="The scripts' value does not arrive.",
        ),
    ),
)
