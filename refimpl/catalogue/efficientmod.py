"""The paper EfficientMod: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientmod",
    name="EfficientMod",
    title="Efficient Modulation for Vision Networks",
    authors="Xu Ma, Xiyang Dai, Jianwei Yang, Bin Xiao, Yinpeng Chen, Yun Fu, Lu Yuan",
    venue="ICLR",
    year=2024,
    idea=(
        "Multiply the hidden layer of an MLP by a convolutional context: one block that mixes "
        "space and channels at once, without attention's quadratic cost."
    ),
    arxiv="2403.19963",
    code="https://github.com/ma-xu/EfficientMod",
    commit="ec04df6da43b91414f3fd9ad0ea7a1161be6157c",
    licence="Apache-2.0",
    variants=("xxs", "xs", "s", "s_conv"),
    top1=(("xxs", 76.0), ("xs", 78.3), ("s", 81.0), ("s_conv", 80.5)),
    kernels=("modulation_gate", "depthwise_gelu"),
    claims=(
        Claim(
            id="efficientmod.1",
            statement="EfficientMod-s is more accurate and faster than EfficientFormerV2-S2.",
            reported="+0.6 points top-1 on ImageNet, 25 % faster on a GPU",
            kind="out_of_reach",
            needs="ImageNet-1k and a GPU",
            command=(
                "python3 validate.py /path/to/imagenet --model {model} -b 256 --checkpoint "
                "{/path/to/checkpoint}  # official repository"
            ),
        ),
        Claim(
            id="efficientmod.2",
            statement=(
                "EfficientMod-s is 2.9 points more accurate than MobileViTv2-1.0 at the same "
                "latency on a GPU."
            ),
            reported="81.0 against 78.1 % top-1, without distillation",
            kind="out_of_reach",
            needs="ImageNet-1k and a GPU",
            command=(
                "train with the official train_distill.py without a teacher, evaluate with "
                "validate.py, and time both networks on one GPU"
            ),
        ),
        Claim(
            id="efficientmod.3",
            statement=(
                "The product of context and value is more accurate than their sum, and both are "
                "more accurate than no context."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="efficientmod.4",
            statement=(
                "One unified block takes less time per multiply-add than modulation followed by an "
                "MLP."
            ),
            reported="lower latency on a GPU",
            kind="miniature",
        ),
        Claim(
            id="efficientmod.5",
            statement=(
                "Attention blocks in the last stages take a small share of the time and help."
            ),
            reported="gain on ImageNet without loss of speed",
            kind="miniature",
        ),
        Claim(
            id="efficientmod.6",
            statement="EfficientMod-s is better in segmentation on ADE20K than EfficientFormerV2.",
            reported="+3.6 mIoU",
            kind="out_of_reach",
            needs="ADE20K and GPUs",
            command=(
                "run the semantic segmentation recipe of the official repository's segmentation "
                "folder"
            ),
        ),
        Claim(
            id="efficientmod.7",
            statement=(
                "The modulation is dynamic: the kernel that acts at a pixel depends on the input, "
                "where a convolution's does not."
            ),
            reported="stated in the paper",
            kind="identity",
        ),
        Claim(
            id="efficientmod.8",
            statement="EfficientMod-s has fewer parameters than EfficientFormerV2-S2.",
            reported="fewer parameters at +0.6 points",
            kind="identity",
        ),
        Claim(
            id="efficientmod.9",
            statement="The models have the published sizes.",
            reported="4.7, 6.6, 12.9 and 12.9 M parameters (xxs, xs, s, s-Conv)",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="efficientmod.d1",
            paper_says="EfficientMod-s has fewer parameters than EfficientFormerV2-S2.",
            code_does=(
                "The released model has 12.90 M, EfficientFormerV2-S2 12.71 M with both heads and "
                "12.42 M with one."
            ),
            effect="The comparison of sizes does not hold for the released models.",
        ),
        Difference(
            id="efficientmod.d2",
            paper_says="Linear layers and convolutions start from a truncated normal.",
            code_does=(
                "The test for the layer's type reads `isinstance(m, nn.Linear or nn.Conv2d)`, "
                "which is true for linear layers only."
            ),
            effect="Convolutions keep PyTorch's default initialisation.",
        ),
        Difference(
            id="efficientmod.d3",
            paper_says="Per-stage lists set ratio, context size and groups of each block.",
            code_does=(
                "The lists are longer than the stages are deep; only the first entries count."
            ),
            effect="Reading the lists gives a deeper network than the one that is built.",
        ),
        Difference(
            id="efficientmod.d4",
            paper_says="Attention dropout applies in training.",
            code_does="The call passes the dropout probability in evaluation mode too.",
            effect="Harmless only because the probability is 0.",
        ),
    ),
)
