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
    variants=(
        *("2_4_32", "4_4_32", "6_4_32", "7_4_32", "7_4_32_wider", "9_12_64", "12_12_224"),
        *("2_4_32_teacher", "4_4_32_teacher", "6_4_32_teacher", "7_4_32_teacher"),
        *("7_4_32_wider_teacher", "9_12_64_teacher", "12_12_224_teacher"),
        *("7_4_32_plus", "9_12_64_plus"),
    ),
    kernels=("relu_attention",),
    claims=(
        Claim(
            id="mpcvit.1",
            statement=(
                "Softmax accounts for the major latency bottleneck of a Vision Transformer in "
                "secure computation: of the rounds of messages it takes most."
            ),
            reported="profiles of a ViT on a two-party engine: softmax dominates the latency",
            kind="identity",
            # share: of a block's rounds, 65 tokens of 256 channels, that the four softmax maps take
            rule="supports if share > 0.5; contradicts if share <= 0.5",
        ),
        Claim(
            id="mpcvit.2",
            statement="… due to a high communication complexity: it also moves most of the bytes.",
            reported="softmax has the highest communication of all operators",
            kind="identity",
            # share: the same of the bytes, both directions, weights and tokens secret
            rule="supports if share > 0.5; contradicts if share <= 0.5",
        ),
        Claim(
            id="mpcvit.3",
            statement=(
                "Attention variants differ widely in cost, in the order softmax, ReLU-softmax, "
                "squared (2Quad), scaling."
            ),
            reported="112.23, 71.82 and 44.63 s (softmax, ReLU-softmax, scaling), CIFAR-10",
            kind="identity",
            # wrong: neighbours in that order whose rounds or bytes do not fall
            rule="supports if wrong == 0; contradicts if wrong > 0",
        ),
        Claim(
            id="mpcvit.4",
            statement=(
                "Softmax can be selectively replaced or linearised without compromising the "
                "accuracy."
            ),
            reported="CIFAR-10: 93.21 % with half of the heads as ReLU-softmax; softmax 93.97 %",
            kind="miniature",
            # Errors of testing; the luck of training comes on top. Best: half of the claim; the
            # median: that choosing does not matter.
            rule=(
                "It is supported where, for some share of ReLU-softmax heads up to a half, the "
                "best and the median choice lie within 2 standard errors of softmax in every "
                "start; else inconclusive, as a small network trained briefly can not refute it."
            ),
        ),
        Claim(
            id="mpcvit.5",
            statement="Scaling attention everywhere loses accuracy.",
            reported="CIFAR-10: 92.23 % against 93.97 %",
            kind="miniature",
            # least, most: how far it lies below softmax, in standard errors, over the seeds
            rule="supports if least > 4; contradicts if most <= 2",
        ),
        Claim(
            id="mpcvit.6",
            statement=(
                "A simple yet effective search finds the heads that need ReLU-softmax: its choice "
                "is more accurate than others at equal budget."
            ),
            reported="ablation against random and reversed choices on CIFAR",
            kind="miniature",
            # rank: of the search's choice (λ = 0.01) among all choices of its size, 0 the best and
            # 1 the worst, the mean over the sizes 1, 2, 3 of 4 heads and the seeds; chance is 0.5
            rule="supports if rank < 1 / 3; contradicts if rank > 1 / 2",
        ),
        Claim(
            id="mpcvit.7",
            statement=(
                "The number of ReLU-softmax heads is the latency, wherever they stand, so that a "
                "penalty on their number is a latency-aware search."
            ),
            reported="latency grows with the number of heads: 48.03 to 63.56 s for μ = 0.1 to 0.7",
            kind="miniature",
            # maps, network: modelled seconds between distant machines of 9 heads of 28, spread over
            # the seven layers, over those of 9 heads packed into the fewest layers; of the
            # attention maps alone, and of all seven blocks. The claim is of latency, so both count.
            rule=(
                "supports if maps <= 1.5 and network <= 1.5; "
                "contradicts if maps > 1.5 and network > 1.5"
            ),
        ),
        Claim(
            id="mpcvit.8",
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
            id="mpcvit.9",
            statement=(
                "MPCViT+: without GELU the two linear layers of an MLP become one, which lowers "
                "rounds and bytes."
            ),
            reported="MPCViT+ has a better front of accuracy and latency than MPCViT",
            kind="identity",
            # rounds, bytes: of a merged MLP over those of the plain one, all 65 tokens
            rule="supports if rounds < 1 and bytes < 1; contradicts if rounds >= 1 or bytes >= 1",
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
                "A network that was not binarised gives wrong results without a word; here it is "
                "the mixture that was searched."
            ),
            test="tests/papers/test_mpcvit.py::test_the_mixture_is_straight_in_alpha_and_passes_no_raw_scores",
        ),
        Difference(
            id="mpcvit.d2",
            paper_says="The architecture parameter lies between 0 and 1.",
            code_does="The line that clamps it is commented out.",
            effect="Values outside are possible; here too.",
            test="tests/papers/test_mpcvit.py::test_search_then_binarise_then_train_again",
        ),
        Difference(
            id="mpcvit.d3",
            paper_says="A share μ of the heads keeps ReLU-softmax.",
            code_does="L·H − int((1 − μ)·L·H) heads do, the product cut off.",
            effect="For μ = 0.3 nine of 28 heads, not eight; for μ = 0.7 twenty.",
            test="tests/papers/test_mpcvit.py::test_binarise_keeps_the_largest",
        ),
        Difference(
            id="mpcvit.d4",
            paper_says="The teacher is the same network with softmax.",
            code_does=(
                "Its class creates expansion layers and a large tensor that no forward pass uses."
            ),
            effect="28.7 M parameters in the state, 3.7 M used.",
            test="tests/papers/test_mpcvit.py::test_the_official_teacher_holds_tensors_that_nothing_reads",
        ),
        Difference(
            id="mpcvit.d5",
            paper_says="Pre-norm blocks normalise their branches (the usual form).",
            code_does="The second norm is applied to the residual stream itself.",
            effect=(
                "The stream is renormalised in each block, a habit of the compact transformers it "
                "builds on."
            ),
            test="tests/papers/test_mpcvit.py::test_norm1_acts_on_the_stream_itself",
        ),
    ),
)
