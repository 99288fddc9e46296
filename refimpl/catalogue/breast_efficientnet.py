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
    claims=(
        Claim(
            id="breast_efficientnet.1",
            statement=(
                "Intensive augmentation and class weights raise the recall of the benign minority "
                "without loss of accuracy."
            ),
            reported="recall 0.92 → 0.95, accuracy 97.35 → 98.23 % (two classes, BreakHis)",
            kind="miniature",
        ),
        Claim(
            id="breast_efficientnet.2",
            statement="Intensive augmentation raises accuracy over eight classes.",
            reported="91.27 → 94.54 %",
            kind="miniature",
        ),
        Claim(
            id="breast_efficientnet.3",
            statement=(
                "Starting from the two-class weights is more accurate than training on eight "
                "classes for the same number of steps."
            ),
            reported="94.54 → 95.04 %, without such a control",
            kind="miniature",
        ),
        Claim(
            id="breast_efficientnet.4",
            statement="Rare classes gain precision at high recall.",
            reported="mucinous and papillary carcinoma",
            kind="miniature",
        ),
        Claim(
            id="breast_efficientnet.5",
            statement=(
                "The published recalls and accuracies fit together: the gain in accuracy is the "
                "gain in benign recall."
            ),
            reported="0.92 → 0.95 and 97.35 → 98.23 % at a benign share of 31.4 %",
            kind="identity",
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
            paper_says="An EfficientNet is trained on BreakHis.",
            code_does=(
                "No code was found; variant, split and strengths are not stated in what we could "
                "read."
            ),
            effect="The idea is reproduced, not the authors' network.",
        ),
        Difference(
            id="breast_efficientnet.d2",
            paper_says="The loss is weighted by class.",
            code_does=(
                "PyTorch divides by the sum of weights in the batch, Keras by the batch size."
            ),
            effect=(
                "In PyTorch, a batch of one class has the same loss whatever its weight; both "
                "forms are offered."
            ),
        ),
        Difference(
            id="breast_efficientnet.d3",
            paper_says="Augmentation multiplies the samples of rare classes.",
            code_does="If this is done before splitting, copies of one image fall on both sides.",
            effect="Test scores rise without learning; here the split comes first.",
        ),
    ),
)
