"""The paper Breast tumours with EfficientNet.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="breast_efficientnet",
    name="Breast tumours with EfficientNet",
    title="Breast Tumor Classification Using EfficientNet Deep Learning Model",
    authors="Majid Behzadpour, Bengie L. Ortiz, Ebrahim Azizi, Kai Wu",
    venue="arXiv",
    year=2024,
    idea=(
        "Eight tumour types, one of them eight times as common as another: weight the loss, "
        "augment the rare, start from the two-class task — and check each against a fair control."
    ),
    arxiv="2411.17870",
    variants=("b0",),
    claims=(
        Claim(
            id="breast_efficientnet.1",
            statement=(
                "Intensive augmentation and cost-sensitive learning raise the recall of benign "
                "cases and the accuracy over two classes."
            ),
            reported="recall 0.92 → 0.95, accuracy 97.35 → 98.23 % (BreakHis)",
            kind="miniature",
            # Gains in points, least and most over the draws of tissue, over flips and a plain loss
            # at equal steps. Five draws that agree by chance: 1 in 32.
            rule=(
                "supports if least_recall > 0 and least_accuracy > 0; "
                "contradicts if most_recall < 0 or most_accuracy < 0"
            ),
        ),
        Claim(
            id="breast_efficientnet.2",
            statement=(
                "Intensive augmentation is more accurate over eight classes than regular "
                "augmentation."
            ),
            reported="91.27 → 94.54 %",
            kind="miniature",
            # Gains in points over flips alone, plain loss, equal steps; least and most over draws.
            rule=(
                "supports if least_accuracy > 0 and least_recall > 0; "
                "contradicts if most_accuracy < 0 or most_recall < 0; "
                "where recall is the mean over the eight types"
            ),
        ),
        Claim(
            id="breast_efficientnet.3",
            statement=(
                "Starting from the weights of the two-class task makes the eight-class net more "
                "accurate."
            ),
            reported="94.54 → 95.04 %, without a control of equal steps",
            kind="miniature",
            # Gain in points over training on eight classes for all of both stages' steps; alone:
            # over the second stage's steps only, as the paper compares.
            rule=(
                "supports if least_accuracy > 0; "
                "contradicts if most_accuracy < 0 and most_alone < 0"
            ),
        ),
        Claim(
            id="breast_efficientnet.4",
            statement=(
                "Minority classes gain precision substantially while their recall stays high."
            ),
            reported="mucinous and papillary carcinoma",
            kind="miniature",
            # Means over the six rare types, intensive and weighted over flips and a plain loss.
            rule=(
                "supports if least_precision > 0 and least_recall > -1; "
                "contradicts if most_precision < 0 or most_recall < -1; "
                "where gains are in points"
            ),
        ),
        Claim(
            id="breast_efficientnet.5",
            statement=(
                "The published recalls and accuracies fit together: the gain in accuracy is the "
                "gain in benign recall."
            ),
            reported="0.92 → 0.95 and 97.35 → 98.23 % at a benign share of 31.4 %",
            kind="identity",
            # The malignant recall that accuracy and benign recall leave, before and after.
            rule=(
                "supports if before > 0.99 and before <= 1 and after > 0.99 and after <= 1; "
                "contradicts otherwise"
            ),
        ),
        Claim(
            id="breast_efficientnet.6",
            statement="The figures hold on BreakHis with a split by patient.",
            reported="98.23 % (two classes), 95.04 % (eight); the split is not stated",
            kind="out_of_reach",
            needs="BreakHis (7,909 images of 82 patients, on request) and a GPU",
            command=(
                "none exists: no official code was found; fine-tune an EfficientNet with ImageNet "
                "weights under the described augmentation and weights, split by patient"
            ),
        ),
    ),
    differences=(
        Difference(
            id="breast_efficientnet.d1",
            paper_says="The loss is weighted by class.",
            code_does=(
                "PyTorch divides by the sum of weights in the batch, Keras by the batch size."
            ),
            effect=(
                "In PyTorch, a batch of one class has the same loss whatever its weight; both "
                "forms are offered."
            ),
            test=(
                "tests/papers/test_breast_efficientnet.py::test_what_a_batch_s_loss_is_divided_by"
            ),
        ),
        Difference(
            id="breast_efficientnet.d2",
            paper_says="Augmentation multiplies the samples of rare classes.",
            code_does="If this is done before splitting, copies of one image fall on both sides.",
            effect="Test scores rise without learning; here the split comes first.",
            test=(
                "tests/papers/test_breast_efficientnet.py"
                "::test_copies_made_before_a_split_fall_on_both_sides"
            ),
        ),
    ),
)
