"""The paper Foot ulcers with synthetic images.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="dfu_ensemble",
    name="Foot ulcers with synthetic images",
    title=(
        "Boosting EfficientNets Ensemble Performance via Pseudo-Labels and Synthetic Images by "
        "pix2pixHD for Infection and Ischaemia Classification in Diabetic Foot Ulcers"
    ),
    authors="Louise Bloch, Raphael Brüngel, Christoph M. Friedrich",
    venue="Diabetic Foot Ulcers Grand Challenge (Springer LNCS)",
    year=2021,
    idea=(
        "Too few images of a rare wound: label what is unlabelled with an ensemble, and render "
        "every image as if it were of each other class."
    ),
    arxiv="2112.00065",
    code="https://github.com/LouiseBloch/FHDO_DFUC2021",
    commit="9f4f50f",
    licence="none stated",
    claims=(
        Claim(
            id="dfu_ensemble.1",
            statement=(
                "One synthetic image for each real image of every other class gives one real to "
                "three synthetic and equal classes."
            ),
            reported="extended set 8.68 times the labelled one, real to synthetic 1 : 3",
            kind="identity",
        ),
        Claim(
            id="dfu_ensemble.2",
            statement=(
                "Models and ensemble trained on the extended set are better than those trained on "
                "the labelled set."
            ),
            reported="macro F1 in the challenge",
            kind="miniature",
        ),
        Claim(
            id="dfu_ensemble.3",
            statement="Rare classes gain most, common ones are not harmed.",
            reported="large boosts for rare classes",
            kind="miniature",
        ),
        Claim(
            id="dfu_ensemble.4",
            statement="Synthetic images are varied and no copies.",
            reported="visual inspection",
            kind="miniature",
        ),
        Claim(
            id="dfu_ensemble.5",
            statement=(
                "The gain is the generator's: plain oversampling or pseudo-labels alone gain less "
                "in the same number of steps."
            ),
            reported="not tested in the paper: control added here",
            kind="miniature",
        ),
        Claim(
            id="dfu_ensemble.6",
            statement="The team's entry ranked among the first in the challenge.",
            reported="macro F1 about 0.60, third place (secondary source)",
            kind="out_of_reach",
            needs=(
                "DFUC2021 (on request, hidden test labels), GPUs for four translators and seven "
                "classifiers"
            ),
            command=(
                "train with the snippets of the official repository and pix2pixHD's train.py on "
                "one class at a time, then submit to the challenge"
            ),
        ),
    ),
    differences=(
        Difference(
            id="dfu_ensemble.d1",
            paper_says="Images are translated from maps of real images.",
            code_does="Neither the maps nor the generator's options are in the public code.",
            effect="Edge maps are used here, and said so.",
        ),
        Difference(
            id="dfu_ensemble.d2",
            paper_says="Adam with a step schedule (hyper-parameter table).",
            code_does="A new optimiser and schedule are built after every epoch.",
            effect=(
                "Moments restart 29 times, and the schedule of base model 3 never reaches its step."
            ),
        ),
        Difference(
            id="dfu_ensemble.d3",
            paper_says="Training without warm-up lasts 30 epochs.",
            code_does="The first of them runs frozen at learning rate 0.",
            effect="Only batch statistics move in it.",
        ),
        Difference(
            id="dfu_ensemble.d4",
            paper_says="Training accuracy and F1 are printed for each epoch.",
            code_does="They are those of the last mini-batch.",
            effect="An indentation slip; the printed curves mislead.",
        ),
        Difference(
            id="dfu_ensemble.d5",
            paper_says="The full-size image goes to the first discriminator (pix2pixHD).",
            code_does="It goes through the weights named by the last scale.",
            effect="Names and scales run in opposite directions.",
        ),
        Difference(
            id="dfu_ensemble.d6",
            paper_says="Unlabelled images get pseudo-labels.",
            code_does="So do the test images.",
            effect="Fine for a challenge; no estimate of clinical use.",
        ),
    ),
)
