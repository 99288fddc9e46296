"""The paper Optimizing ViViT.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="vivit",
    name="Optimizing ViViT",
    title="Optimizing ViViT Training: Time and Memory Reduction for Action Recognition",
    authors="Shreyank N Gowda, Anurag Arnab, Jonathan Huang",
    venue="ECCV",
    year=2024,
    idea=(
        "In a video transformer nearly all work is in the spatial encoder: freeze it, start the "
        "temporal one well, and pay for forward passes only."
    ),
    arxiv="2306.04822",
    variants=(
        "fe_b16x2_k400",
        "fe_l16x2_k400",
        "fe_l16x2_k600",
        "fe_l16x2_ek100",
        "fe_l16x2_ssv2",
        "spacetime_b16x2_k400",
    ),
    claims=(
        Claim(
            id="vivit.1",
            statement=(
                "Freezing the spatial encoder costs about half of full training or less, the first "
                "stage included."
            ),
            reported="training cost down by about 50 %",
            kind="miniature",
            # least, most: processor time of both stages until full training's last score, less a
            # point, is met, over the time that full training needs for the same; over the starts.
            # Where it is not met, the time spent: a lower bound
            rule="supports if most < 0.7; contradicts if least > 1",
        ),
        Claim(
            id="vivit.2",
            statement="Accuracy is kept.",
            reported="equal or up to 1.79 points better on six benchmarks",
            kind="miniature",
            # least, most: points by which the paper's two stages are better than full training at
            # its end, the smallest and largest of the starts. At first it was full training of
            # equal work: this is stricter
            rule="supports if least > -1; contradicts if most < -1",
        ),
        Claim(
            id="vivit.3",
            statement=(
                "Naive freezing, with a random temporal encoder, is far less accurate than full "
                "training."
            ),
            reported="low accuracy (abstract)",
            kind="miniature",
            # least, most: points by which full training is better than a frozen image model's eye
            # under a random temporal encoder
            rule="supports if least > 10; contradicts if most < 2",
        ),
        Claim(
            id="vivit.4",
            statement=(
                "Starting the temporal encoder from a first stage with few frames is more accurate "
                "than a random start."
            ),
            reported="one of the two remedies named in the abstract",
            kind="miniature",
            # least, most: points after the last step by which the first stage's temporal encoder is
            # better than a random one, both behind the first stage's frozen eye
            rule="supports if least > 1; contradicts if most < -1",
        ),
        Claim(
            id="vivit.5",
            statement="A small adapter after the frozen encoder is not worse than none.",
            reported="the other remedy named in the abstract",
            kind="miniature",
            # least, most: points by which the adapter is better than none, all else equal
            rule="supports if least > -1; contradicts if most < -1",
        ),
        Claim(
            id="vivit.6",
            statement=(
                "With a frozen spatial encoder, activations saved for the backward pass hardly "
                "grow with the number of frames."
            ),
            reported="larger models or more frames in the same memory",
            kind="identity",
            # flatter: bytes saved for a further frame with a frozen spatial encoder, over those
            # when all is trained
            rule="supports if flatter < 0.2; contradicts if flatter > 0.5",
        ),
        Claim(
            id="vivit.7",
            statement="Nearly all multiply-adds of the factorised encoder are in the spatial part.",
            reported="motivation of the method",
            kind="identity",
            # share: of the base model's multiply-adds, at 32 frames
            rule="supports if share > 0.95; contradicts otherwise",
        ),
        Claim(
            id="vivit.8",
            statement="Cost and accuracy hold on six video benchmarks.",
            reported="about 50 % of the cost; accuracy kept or up to 1.79 points better",
            kind="out_of_reach",
            needs="Kinetics-400 and five further video data sets, accelerators; no official code",
            command=(
                "none exists: train the ViViT factorised encoder of google-research/scenic in two "
                "stages, the second with the spatial encoder frozen"
            ),
        ),
    ),
    differences=(
        Difference(
            id="vivit.d1",
            paper_says=(
                "An inflated kernel starts from the central frame (baseline, random-start "
                "initialiser)."
            ),
            code_does="The initialiser indexes the width axis, not time.",
            effect=(
                "One column of pixels is non-zero in all frames; loading from an image model is "
                "right. Not reproduced."
            ),
            test=(
                "tests/papers/test_vivit.py::"
                "test_the_official_random_start_puts_the_kernel_into_one_column_of_every_frame"
            ),
        ),
        Difference(
            id="vivit.d2",
            paper_says="The temporal encoder has four layers.",
            code_does=(
                "The large Kinetics configurations have twenty-four, those for Something-Something "
                "and Epic four."
            ),
            effect="Parameter counts differ by about 250 M between configurations of one name.",
            test=(
                "tests/papers/test_vivit.py::"
                "test_the_large_models_have_twenty_four_temporal_layers_on_kinetics_alone"
            ),
        ),
        Difference(
            id="vivit.d3",
            paper_says="The method's adapter and training schedule.",
            code_does="No official code exists; the adapter's form and widths here are ours.",
            effect="Results of the adapter arm can't be compared number by number.",
            test=("tests/papers/test_vivit.py::test_the_adapter_is_ours_and_small"),
        ),
        Difference(
            id="vivit.d4",
            paper_says="Layer drop regularises training.",
            code_does="The kept branch is not rescaled.",
            effect="Activations are larger at test time than the mean in training.",
            test=("tests/papers/test_vivit.py::test_dropped_branches_are_not_scaled_up"),
        ),
    ),
)
