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
        ),
        Claim(
            id="deit_lt.2",
            statement=(
                "A teacher that labels the mixed image teaches better than one that labels the "
                "clean image."
            ),
            reported="out-of-distribution distillation beats in-distribution",
            kind="miniature",
        ),
        Claim(
            id="deit_lt.3",
            statement=(
                "The class token becomes the expert of the head, the distillation token that of "
                "the tail."
            ),
            reported="accuracies by group for both tokens",
            kind="miniature",
        ),
        Claim(
            id="deit_lt.4",
            statement=(
                "Distilled early blocks attend more locally than those of the plain transformer."
            ),
            reported="mean attention distance of blocks 1 and 2",
            kind="miniature",
        ),
        Claim(
            id="deit_lt.5",
            statement="A teacher trained for flat minima gives features of lower rank.",
            reported="rank by block",
            kind="miniature",
        ),
        Claim(
            id="deit_lt.6",
            statement="Re-weighting late lifts the tail at a small loss in the head.",
            reported="ablation in the paper",
            kind="miniature",
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
        ),
    ),
    differences=(
        Difference(
            id="deit_lt.d1",
            paper_says="Tiny, small and base models.",
            code_does="The patch embedding keeps its default width of 768.",
            effect="Only the base model runs; the others fail at the first forward pass.",
        ),
        Difference(
            id="deit_lt.d2",
            paper_says="Re-weighting is an option.",
            code_does="Without it the flag becomes the tuple (False,), which is true.",
            effect="The loss is always re-weighted.",
        ),
        Difference(
            id="deit_lt.d3",
            paper_says="Soft distillation with class weights.",
            code_does="Log-probabilities are multiplied by the weights and divided by their sum.",
            effect="No longer a divergence of distributions; in no recipe.",
        ),
        Difference(
            id="deit_lt.d4",
            paper_says="Masked attention and early stopping are options.",
            code_does="The block accepts them and ignores them.",
            effect="Setting them changes nothing.",
        ),
        Difference(
            id="deit_lt.d5",
            paper_says="Soft labels enter the base loss.",
            code_does=(
                "A bare try and except turns integer labels into one-hot ones when the soft loss "
                "fails."
            ),
            effect="Wrong inputs pass without a word.",
        ),
        Difference(
            id="deit_lt.d6",
            paper_says="Rare classes are weighted late.",
            code_does="By then the learning rate is near its floor.",
            effect="The late stage is a gentle nudge.",
        ),
    ),
)
