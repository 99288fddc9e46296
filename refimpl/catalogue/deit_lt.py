"""The paper DeiT-LT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="deit_lt",
    name="DeiT-LT",
    title=(
        "DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets"
    ),
    authors=(
        "Harsh Rangwani, Pradipto Mondal, Mayank Mishra, Ashish Ramayee Asokan, R. Venkatesh Babu"
    ),
    venue="CVPR",
    year=2024,
    idea=(
        "When most classes are rare, let a small convolutional network teach a transformer through "
        "a token of its own, on mixed images, with rare classes weighted late."
    ),
    arxiv="2404.02900",
    code="https://github.com/val-iisc/DeiT-LT",
    commit="bc369700932a950fa8535df80b37f973ac7aae11",
    licence="MIT",
    variants=("tiny", "small", "base"),
    claims=(
        Claim(
            id="deit_lt.1",
            statement=(
                "Distillation from a convolutional teacher lifts a transformer on long-tailed data "
                "far above the plain one, most in the middle and the tail."
            ),
            reported="CIFAR-10-LT, imbalance 100: 62.6 → 87.5 %",
            kind="miniature",
            rule=(
                "supports if least_gain > 5 and rare_gain > head_gain; contradicts if most_gain < "
                "1; where gain is in points of the two tokens' mean over the better of two plain "
                "ViTs, mixed and unmixed, all classes, the least and most over draws, rare_gain "
                "and head_gain over the mixed one, the means of middle and tail and of the head"
            ),
        ),
        Claim(
            id="deit_lt.2",
            statement=(
                "Distilling through mixed images teaches better when they are outside of what the "
                "teacher was trained on."
            ),
            reported="out-of-distribution distillation beats in-distribution",
            kind="miniature",
            rule=(
                "supports if least_lead > 2 and gap < 2; contradicts if most_lead < -2; where lead "
                "is in points of the DIST token, all classes, before the same student whose "
                "teacher was trained on mixed images too, over draws, gap by how many points that "
                "teacher is worse than the other"
            ),
        ),
        Claim(
            id="deit_lt.3",
            statement=(
                "The class token becomes the expert of the head, the distillation token that of "
                "the tail."
            ),
            reported="accuracies by group for both tokens",
            kind="miniature",
            rule=(
                "supports if least_tail > 2 and head > 1; contradicts if most_tail < 0 or head < "
                "-1; where tail is DIST − CLS in the tail, least and most over draws, head CLS − "
                "DIST in the head, their mean, in points"
            ),
        ),
        Claim(
            id="deit_lt.4",
            statement=(
                "Distilled early blocks attend more locally than those of the plain transformer."
            ),
            reported="mean attention distance of blocks 1 and 2",
            kind="miniature",
            rule=(
                "supports if least_drop > 0.1; contradicts if most_drop < 0; where drop is by how "
                "many patches the first block looks less far than the plain ViT's, over draws"
            ),
        ),
        Claim(
            id="deit_lt.5",
            statement="A teacher trained for flat minima gives DIST tokens of lower rank.",
            reported="rank by block",
            kind="miniature",
            rule=(
                "supports if least_drop >= 1; contradicts if most_drop <= -1; where drop is by how "
                "many components fewer hold 99 % of the variance of the DIST tokens with a SAM "
                "teacher than with one trained without SAM, over draws"
            ),
        ),
        Claim(
            id="deit_lt.6",
            statement="Re-weighting late lifts the tail at a small loss in the head.",
            reported="ablation in the paper",
            kind="miniature",
            rule=(
                "supports if least_tail_gain > 2 and head_loss < 3; contradicts if most_tail_gain "
                "< 0; where gain and loss are in points of the DIST token against the same "
                "training without, over draws, head_loss the mean"
            ),
        ),
        Claim(
            id="deit_lt.7",
            statement="The gains hold on CIFAR-100-LT, ImageNet-LT and iNaturalist-2018.",
            reported="55.6, 59.1 and 75.1 % against 35.0, 37.5 and 54.2 % (plain ViT)",
            kind="out_of_reach",
            needs="the data sets, teacher checkpoints and several GPUs for 1000 epochs or more",
            command=(
                "bash sh/eval_imagenetlt.sh  # official repository, checkpoint set in the script"
            ),
        ),
        Claim(
            id="deit_lt.8",
            statement=(
                "Class counts, class weights and both stages of the loss are those of the "
                "definition."
            ),
            reported="equations of the paper",
            kind="identity",
            rule=(
                "supports if wrong == 0; contradicts otherwise; where wrong is the number of "
                "recorded official outputs that are not met"
            ),
        ),
    ),
    differences=(
        Difference(
            id="deit_lt.d1",
            paper_says="Tiny, small and base models.",
            code_does="The patch embedding keeps its default width of 768.",
            effect="Only the base model runs; the others fail at the first forward pass.",
            test="tests/papers/test_deit_lt.py::test_every_width_runs_at_its_own_size",
        ),
        Difference(
            id="deit_lt.d2",
            paper_says="Re-weighting is an option.",
            code_does="Without it the flag becomes the tuple (False,), which is true.",
            effect="The loss is always re-weighted; here it is what was asked for.",
            test="tests/papers/test_deit_lt.py::test_deferred_loss_changes_at_its_step",
        ),
        Difference(
            id="deit_lt.d3",
            paper_says="Soft distillation with class weights.",
            code_does="Log-probabilities are multiplied by the weights and divided by their sum.",
            effect="No longer a divergence of distributions; in no recipe.",
            test=(
                "tests/papers/test_deit_lt.py::test_weighted_log_probabilities_are_no_distribution"
            ),
        ),
        Difference(
            id="deit_lt.d4",
            paper_says="Rare classes are weighted late.",
            code_does="By then the cosine schedule is within 5 % of its floor.",
            effect="The late stage is a gentle nudge.",
            test="tests/papers/test_deit_lt.py::test_late_weights_are_a_gentle_nudge",
        ),
    ),
)
