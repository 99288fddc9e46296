"""The paper MPCViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="mpcvit",
    name="MPCViT",
    title=(
        "MPCViT: Searching for Accurate and Efficient MPC-Friendly Vision Transformer with "
        "Heterogeneous Attention"
    ),
    authors=(
        "Wenxuan Zeng, Meng Li, Wenjie Xiong, Tong Tong, Wen-jie Lu, Jin Tan, Runsheng Wang, Ru "
        "Huang"
    ),
    venue="ICCV",
    year=2023,
    idea=(
        "Between two parties who may not see the data, a comparison costs nine messages where a "
        "product costs one: search, head by head, where attention can do without softmax."
    ),
    arxiv="2211.13955",
    code="https://github.com/PKU-SEC-Lab/mpcvit",
    commit="27db5c4576299e8d23edc59c4833225ccf661896",
    licence="none stated",
    claims=(
        Claim(
            id="mpcvit.1",
            statement=(
                "In secure two-party computation softmax has the largest share of the "
                "communication of a transformer block."
            ),
            reported="softmax is the bottleneck of the latency",
            kind="identity",
        ),
        Claim(
            id="mpcvit.2",
            statement=(
                "Attention variants differ widely in cost, in the order softmax, ReLU-softmax, "
                "squared, scaling."
            ),
            reported="latency on a two-party engine",
            kind="identity",
        ),
        Claim(
            id="mpcvit.3",
            statement=(
                "ReLU-softmax is as accurate as softmax, pure scaling attention a little less."
            ),
            reported="CIFAR-10: 93.97 (softmax), 93.52 (ReLU-softmax), 92.23 % (scaling)",
            kind="miniature",
        ),
        Claim(
            id="mpcvit.4",
            statement=(
                "The search finds the heads that need ReLU-softmax: its choice is more accurate "
                "than a random or the reversed one at equal budget."
            ),
            reported="ablation on CIFAR",
            kind="miniature",
        ),
        Claim(
            id="mpcvit.5",
            statement="MPCViT is more accurate and faster than a plain ViT, MPCFormer and THE-X.",
            reported="Tiny-ImageNet: +1.9, +1.3, +3.6 points; 6.2×, 2.9×, 1.9× lower latency",
            kind="out_of_reach",
            needs="Tiny-ImageNet, GPU days, two machines with a two-party computation engine",
            command=(
                "python inference.py --config configs/datasets/tiny_imagenet.yml --model "
                "vit_9_12_64 <data> --model-checkpoint <checkpoint>  # official repository; "
                "latency needs an engine that it does not hold"
            ),
        ),
        Claim(
            id="mpcvit.6",
            statement=(
                "Making GELU linear for some tokens and merging the two linear layers around it "
                "lowers rounds and bytes of an MLP."
            ),
            reported="MPCViT+ has a better front",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="mpcvit.d1",
            paper_says="A head is either ReLU-softmax or scaling.",
            code_does=(
                "In the inference code a head whose parameter is neither 0 nor 1 passes the raw "
                "scores on."
            ),
            effect=(
                "A network that was not binarised gives wrong results without a word; here the "
                "mixture and the binary form are separate."
            ),
        ),
        Difference(
            id="mpcvit.d2",
            paper_says="The architecture parameter lies between 0 and 1.",
            code_does="The line that clamps it is commented out.",
            effect="Values outside are possible; here too.",
        ),
        Difference(
            id="mpcvit.d3",
            paper_says="Latency is part of the results.",
            code_does="The repository holds no secure computation at all.",
            effect=(
                "Seconds can't be reproduced from it; rounds and bytes of a simulated protocol are "
                "counted here."
            ),
        ),
        Difference(
            id="mpcvit.d4",
            paper_says="The teacher is the same network with softmax.",
            code_does=(
                "Its class creates expansion layers and a large tensor that no forward pass uses."
            ),
            effect="28.7 M parameters in the state, 3.7 M used.",
        ),
        Difference(
            id="mpcvit.d5",
            paper_says="Variants with sine position embeddings exist.",
            code_does="The embedding is forced to be learnable in every case.",
            effect="The `_sine` models equal the plain ones.",
        ),
        Difference(
            id="mpcvit.d6",
            paper_says="Pre-norm blocks normalise their branches (the usual form).",
            code_does="The second norm is applied to the residual stream itself.",
            effect=(
                "The stream is renormalised in each block, a habit of the compact transformers it "
                "builds on."
            ),
        ),
    ),
)
