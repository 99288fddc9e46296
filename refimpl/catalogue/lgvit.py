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
    variants=("vit_base", "deit_base", "swin_base"),
    kernels=("exit_scores",),
    claims=(
        Claim(
            id="lgvit.1",
            statement=(
                "Early exits are 1.8 times as fast at competitive accuracy, multiply-adds of heads "
                "counted, and better than static networks of that cost."
            ),
            reported=(
                "about 1.8× by layers: ViT-B/16, DeiT-B, Swin-B; CIFAR-100, Food-101, ImageNet"
            ),
            kind="miniature",
            rule=(
                "supports if speedup >= 1.8 and loss <= 1 and static_lag > 2; contradicts if "
                "speedup < 1.2 or loss > 5 or static_lag < 0; where speedup is true cost against "
                "the shortest static net as good, loss in points to the last classifier, "
                "static_lag the points by which the best static net of at most that cost is "
                "behind, each worst over starts, at one threshold"
            ),
        ),
        Claim(
            id="lgvit.2",
            statement=(
                "Exits in shallow layers lack sufficient feature representations: a head with a "
                "neighbourhood reads there what one of the same size without it cannot."
            ),
            reported="probing of ViT exits; accuracy of every exit",
            kind="miniature",
            rule=(
                "supports if local_lead > 2; contradicts if local_lead < 0; where local_lead is "
                "the least lead in points, over starts, of the head with the 3×3 convolution over "
                "the 1×1 head, on tokens that no layer has mixed and a local task"
            ),
        ),
        Claim(
            id="lgvit.3",
            statement=(
                "Exits in deep layers lack target semantics: a head that aggregates globally reads "
                "there what a linear exit cannot."
            ),
            reported="probing of ViT exits; accuracy of every exit",
            kind="miniature",
            rule=(
                "supports if strided_lead > 2; contradicts if strided_lead < -2; where "
                "strided_lead is the least lead in points, over starts, of the attention head of "
                "stride 2 over the linear exit, on a task of two marks far apart"
            ),
        ),
        Claim(
            id="lgvit.4",
            statement=(
                "Heterogeneous heads, local ones early and global ones late, are better than one "
                "kind everywhere."
            ),
            reported="ablation on CIFAR-100",
            kind="miniature",
            rule="not tested here: it takes images on which depth pays, trained long enough",
        ),
        Claim(
            id="lgvit.5",
            statement=(
                "The second stage trains the exits and leaves backbone and final classifier "
                "exactly as they were."
            ),
            reported="backbone frozen in stage 2",
            kind="identity",
            rule="supports if moved == 0; contradicts if moved > 0; where moved counts numbers",
        ),
        Claim(
            id="lgvit.6",
            statement=(
                "Counting layers (12 over the mean exit layer) measures the speed-up in "
                "multiply-adds."
            ),
            reported="speed-up is reported by layers",
            kind="identity",
            rule=(
                "supports if gap < 1; contradicts if gap >= 1; where gap is by how many % layers "
                "overstate it, ViT-B/16 leaving after layer 6"
            ),
        ),
        Claim(
            id="lgvit.7",
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
            test="tests/papers/test_lgvit.py::test_a_global_head_drops_tokens_and_averages_none",
        ),
        Difference(
            id="lgvit.d2",
            paper_says="The final classifier teaches the exits.",
            code_does=(
                "In stage 2 its logits are computed without the backbone's last layer "
                "normalisation, which inference applies."
            ),
            effect="Teacher and deployed classifier differ.",
            test="tests/papers/test_lgvit.py::test_the_official_teacher_is_not_the_deployed_classifier",
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
            test="tests/papers/test_lgvit.py::test_the_second_stage_works_for_one_special_token",
        ),
        Difference(
            id="lgvit.d4",
            paper_says="An image leaves when its own confidence passes the threshold.",
            code_does="The code takes the maximum over the whole batch.",
            effect=(
                "With more than one image, one confident image makes all leave; here the test is "
                "per image."
            ),
            test="tests/papers/test_lgvit.py::test_one_sure_image_keeps_nobody_from_staying",
        ),
        Difference(
            id="lgvit.d5",
            paper_says="Speed-up counts layers.",
            code_does="The cost of the heads is not counted.",
            effect="With heads counted, leaving ViT-B at layer 6 gives 1.85×, not 2×.",
            test=(
                "tests/papers/test_lgvit.py::"
                "test_heads_cost_seven_per_cent_that_counting_layers_leaves_out"
            ),
        ),
    ),
)
