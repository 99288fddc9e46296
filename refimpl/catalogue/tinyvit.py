"""The paper TinyViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="tinyvit",
    name="TinyViT",
    title="TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
    authors="Kan Wu, Jinnian Zhang, Houwen Peng, Mengchen Liu, Bin Xiao, Jianlong Fu, Lu Yuan",
    venue="ECCV",
    year=2022,
    idea=(
        "Run the large teacher once; store, for each augmented image, a seed and its few largest "
        "probabilities, and let any small student learn from those."
    ),
    arxiv="2207.10666",
    code="https://github.com/microsoft/Cream/tree/main/TinyViT",
    commit="4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9",
    licence="MIT",
    variants=("5m", "11m", "21m", "21m_384", "21m_512"),
    # from ImageNet-22k with the teacher, then fine-tuned on ImageNet-1k
    top1=(("5m", 80.7), ("11m", 83.2), ("21m", 84.8), ("21m_384", 86.2), ("21m_512", 86.5)),
    kernels=("sparse_target_loss",),
    claims=(
        Claim(
            id="tinyvit.1",
            statement="The few largest probabilities of the teacher teach as well as all of them.",
            reported="K = 100 of 21,841 classes",
            kind="miniature",
        ),
        Claim(
            id="tinyvit.2",
            statement="Records of a seed and K probabilities need little disk.",
            reported="16 GB for ImageNet-1k × 300 epochs, 481 GB for ImageNet-22k × 90 epochs",
            kind="identity",
        ),
        Claim(
            id="tinyvit.3",
            statement=(
                "The label must belong to the same augmented view: fresh views under the old "
                "labels are worse."
            ),
            reported="reason for storing the seed",
            kind="miniature",
        ),
        Claim(
            id="tinyvit.4",
            statement=(
                "A small student learns more from the teacher's soft labels than from hard labels "
                "in the same number of steps."
            ),
            reported="distillation in pretraining lets small models profit from large data",
            kind="miniature",
        ),
        Claim(
            id="tinyvit.5",
            statement=(
                "TinyViT-21M equals Swin-B in accuracy with 4.2 times fewer parameters and, at 512 "
                "pixels, has 11 % of Swin-L's."
            ),
            reported="84.8 % and 86.5 % top-1",
            kind="out_of_reach",
            needs="ImageNet-1k and a GPU; ImageNet-22k and 32 GPUs for training",
            command=(
                "evaluate tiny_vit_21m_22kto1k_distill.pth and "
                "tiny_vit_21m_22kto1k_512_distill.pth as the official TinyViT/docs/EVALUATION.md "
                "describes"
            ),
        ),
        Claim(
            id="tinyvit.6",
            statement=(
                "Small students come from shrinking a larger model under limits on parameters and "
                "throughput."
            ),
            reported="constrained local search on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="tinyvit.7",
            statement="A training step from stored records is faster than one with a live teacher.",
            reported="no overhead of the teacher",
            kind="miniature",
        ),
        Claim(
            id="tinyvit.8",
            statement="The models have the published sizes.",
            reported="5.4, 11 and 21 M parameters; 1.3, 2.0 and 4.3 G multiply-adds",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="tinyvit.d1",
            paper_says="The rest of the probability is spread over the other classes.",
            code_does=(
                "Probabilities are stored as float16; their sum can pass 1, and the rest becomes "
                "negative (−4e-7)."
            ),
            effect=(
                "Harmless in a cross-entropy, fatal in a loss that takes the logarithm of the "
                "target."
            ),
        ),
        Difference(
            id="tinyvit.d2",
            paper_says="Sparse logits are stored.",
            code_does="Probabilities are stored, after the softmax.",
            effect="Temperature can't be changed afterwards.",
        ),
        Difference(
            id="tinyvit.d3",
            paper_says="16 GB for ImageNet-1k over 300 epochs.",
            code_does="The default K is 100; the figure fits K = 10.",
            effect="With the default, the records of ImageNet-1k take 145 GiB.",
        ),
        Difference(
            id="tinyvit.d4",
            paper_says="CutMix mixes labels by the area of the box.",
            code_does=(
                "In the paired mode the target keeps the ratio drawn, not the one after the box is "
                "cut at the border."
            ),
            effect="Only a printed accuracy is affected: the teacher labels the mixed image.",
        ),
        Difference(
            id="tinyvit.d5",
            paper_says="Images are padded for windows.",
            code_does=(
                "Tokens are padded before the layer normalisation, and padded keys are not masked."
            ),
            effect="Padding takes part in attention with the value of the norm's bias.",
        ),
        Difference(
            id="tinyvit.d6",
            paper_says="Class indices are stored.",
            code_does="They are 16-bit signed integers.",
            effect="At most 32,768 classes.",
        ),
        Difference(
            id="tinyvit.d7",
            paper_says="The bias of attention is a parameter.",
            code_does="A gathered copy is cached when `eval()` is called.",
            effect=(
                "Weights loaded into a model that is already in evaluation mode keep the old bias."
            ),
        ),
    ),
)
