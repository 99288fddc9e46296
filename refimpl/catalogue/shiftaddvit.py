"""The paper ShiftAddViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="shiftaddvit",
    name="ShiftAddViT",
    title="ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer",
    authors="Haoran You, Huihong Shi, Yipin Guo, Yingyan (Celine) Lin",
    venue="NeurIPS",
    year=2023,
    idea=(
        "Turn attention's products into sums over binary codes and linear layers into shifts, and "
        "let a router decide which tokens deserve real multiplications."
    ),
    arxiv="2306.06446",
    code="https://github.com/GATECH-EIC/ShiftAddViT",
    commit="47671cf011ad0211b9f6d476dd443157687b63c1",
    licence="Apache-2.0",
    claims=(
        Claim(
            id="shiftaddvit.1",
            statement=(
                "With queries and keys as binary codes, attention's products become additions, and "
                "fine-tuning wins the accuracy back."
            ),
            reported="ImageNet, 100 epochs of fine-tuning",
            kind="miniature",
        ),
        Claim(
            id="shiftaddvit.2",
            statement=(
                "Replacing the linear layers of the MLP by shifts costs accuracy, those of "
                "attention hardly."
            ),
            reported="ablation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="shiftaddvit.3",
            statement=(
                "A mixture of multiplying and shifting experts with a latency-aware balance wins "
                "accuracy back and sends more tokens to the faster expert."
            ),
            reported="PVTv2-B0 on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="shiftaddvit.4",
            statement="The network runs several times faster on a GPU.",
            reported="up to 5.18× lower latency with TVM-tuned kernels",
            kind="out_of_reach",
            needs="a GPU and TVM's tuned operators",
            command=(
                "run the unit tests and throughput scripts of the official repository's folders "
                "Ops_Speedups and pvt"
            ),
        ),
        Claim(
            id="shiftaddvit.5",
            statement="With the paper's unit energies the network needs far less energy.",
            reported="up to 42.9 % less",
            kind="identity",
        ),
        Claim(
            id="shiftaddvit.6",
            statement=(
                "Shift layers can start from pretrained weights: rounding to a power of two is "
                "wrong by at most 41.4 % of a weight."
            ),
            reported="fine-tuned from pretrained networks, not trained from scratch",
            kind="identity",
        ),
        Claim(
            id="shiftaddvit.7",
            statement=(
                "Attention over binary codes needs no multiplication: masked sums equal the matrix "
                "products."
            ),
            reported="definition of the layer",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="shiftaddvit.d1",
            paper_says=(
                "A token's output is the expert's output times its gate, so the router learns."
            ),
            code_does=(
                "The released default router returns exact ones, and the balance loss is set to 0 "
                "in training."
            ),
            effect=(
                "No gradient reaches the router: routing stays random. The paper's rule is "
                "implemented here."
            ),
        ),
        Difference(
            id="shiftaddvit.d2",
            paper_says="The balance compares clean logits with noisy thresholds.",
            code_does="The thresholds are taken from probabilities after the softmax.",
            effect="Units are mixed; here logits are compared with logits.",
        ),
        Difference(
            id="shiftaddvit.d3",
            paper_says="Expert outputs are combined by their gates.",
            code_does="The dispatcher takes log(exp(output)·gate + 2.2e-16).",
            effect=(
                "That gives output plus log gate, not output times gate, and overflows above 88; a "
                "plain sum is used here."
            ),
        ),
        Difference(
            id="shiftaddvit.d4",
            paper_says="Codes come from thresholding each query and key.",
            code_does="The threshold is the mean over the whole tensor, the batch included.",
            effect="An image's output depends on the other images of its batch.",
        ),
        Difference(
            id="shiftaddvit.d5",
            paper_says="The share of tokens sent to the shift expert is reported.",
            code_does="The counter counts over both sorted columns.",
            effect="It always shows 1.0 with two experts.",
        ),
        Difference(
            id="shiftaddvit.d6",
            paper_says="Addition saves energy.",
            code_does=(
                "The model sets the cost of moving operands from memory, buffer and network to "
                "zero for additions."
            ),
            effect=(
                "Most of the saving is less movement by assumption and by narrower operands, not "
                "cheaper arithmetic."
            ),
        ),
        Difference(
            id="shiftaddvit.d7",
            paper_says="Inputs are quantised to fixed point.",
            code_does="Quantising and shifting both round down.",
            effect="A sum over shifted integers has a negative bias against the float product.",
        ),
        Difference(
            id="shiftaddvit.d8",
            paper_says="The hashing is fitted before use.",
            code_does=(
                "The fit runs silently in the first forward pass, in evaluation mode too, and the "
                "flag is not saved."
            ),
            effect="The first batch after loading can change the model.",
        ),
    ),
)
