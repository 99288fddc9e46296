"""The paper EfficientViM: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientvim",
    name="EfficientViM",
    title="EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
    authors="Sanghyeok Lee, Joonmyung Choi, Hyunwoo J. Kim",
    venue="CVPR",
    year=2025,
    idea=(
        "Linear maps commute with the read-out of a state-space layer, so its expensive "
        "projections can act on a few hidden states and not on every token."
    ),
    arxiv="2411.15241",
    code="https://github.com/mlvlab/EfficientViM",
    commit="304340cb9c339b61669250d058525c9cdadd5e93",
    licence="MIT",
    variants=("m1", "m2", "m3", "m4", "m1_dist", "m2_dist", "m3_dist", "m4_dist"),
    top1=(
        ("m1", 72.9),
        ("m2", 75.4),
        ("m3", 77.6),
        ("m4", 79.4),
        ("m1_dist", 74.6),
        ("m2_dist", 76.7),
        ("m3_dist", 79.1),
        ("m4_dist", 80.7),
    ),
    kernels=("hsm_ssd", "ssd"),
    claims=(
        Claim(
            id="efficientvim.1",
            statement=(
                "EfficientViM is up to 0.7 points more accurate on ImageNet than SHViT at higher "
                "speed."
            ),
            reported=(
                "72.9, 75.4, 77.6, 79.4 % top-1 (M1–M4, 300 epochs), 73.5 % (M1, 450 epochs); 7 % "
                "faster than SHViT-S2"
            ),
            kind="out_of_reach",
            needs="ImageNet-1k and a GPU for the accuracies and speeds, eight GPUs for training",
            command=(
                "evaluate the official checkpoints (EfficientViM_M1_e300.pth … "
                "EfficientViM_M4_e450.pth, linked from the official README) on the ImageNet "
                "validation set with the official repository's classification folder, and time "
                "both families on one GPU"
            ),
        ),
        Claim(
            id="efficientvim.2",
            statement=(
                "A hidden-state mixer costs fewer multiply-adds than a state-space-duality layer: "
                "the term L·D² becomes N·D², with L tokens, N states and D channels."
            ),
            reported="O(LD²) against O(ND² + LND)",
            kind="identity",
            rule=(
                "Supported when the counter gives 5lND + 27lN + 3lD² and 5lND + 27lN + 3ND² at "
                "every size tried; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvim.3",
            statement=(
                "In a state-space-duality layer the linear projections of the tokens take most of "
                "the time."
            ),
            reported="profile on a GPU: the linear projections are the bottleneck",
            kind="miniature",
            rule=(
                "Supported when the linear projections of the tokens take more than half of the "
                "parts' time; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvim.4",
            statement=(
                "Without the gate, mixing channels on the hidden states equals mixing them on the "
                "tokens; with the gate the two functions differ."
            ),
            reported="derivation in the paper",
            kind="identity",
            rule=(
                "Supported when both orders agree to 1e-9 without the gate and differ by more than "
                "0.1 of the norm with it; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvim.5",
            statement="Fusing the hidden states of all stages in the head raises accuracy.",
            reported="gain in the paper's ImageNet ablation",
            kind="miniature",
            rule=(
                "Supported when accuracy rises by more than 0.01 in each of three seeds; "
                "contradicted when it falls by as much in each; else inconclusive."
            ),
        ),
        Claim(
            id="efficientvim.6",
            statement=(
                "One head whose states weight the tokens each in their own way does the work of "
                "many heads: the weight maps of its states differ."
            ),
            reported="same accuracy as multi-head at higher throughput",
            kind="miniature",
            rule=(
                "Supported when the closest pair of the states' maps correlates below 0.5; "
                "contradicted when pairs correlate above 0.9 on average; else, or where the "
                "verdict differs between seeds 0 to 3, inconclusive."
            ),
        ),
        Claim(
            id="efficientvim.7",
            statement="Distillation from RegNetY-160 raises the accuracy of every model.",
            reported="72.9 → 74.6, 75.4 → 76.7, 77.6 → 79.1, 79.4 → 80.7 % top-1, 300 epochs",
            kind="out_of_reach",
            needs="ImageNet-1k, the RegNetY-160 teacher, eight GPUs",
            command=(
                "evaluate the official checkpoints EfficientViM_M{1..4}_e300.pth and "
                "EfficientViM_M{1..4}_dist.pth on the ImageNet validation set with the official "
                "repository's classification folder"
            ),
        ),
        Claim(
            id="efficientvim.8",
            statement=(
                "The layer is faster than the same layer with its projections on the tokens, and "
                "the ratio grows with the number of tokens."
            ),
            reported=(
                "higher throughput than multi-head and non-causal state-space duality on a GPU"
            ),
            kind="miniature",
            rule=(
                "Supported when the layer mixed on tokens takes more than 1.1 times as long at the "
                "third size, and the ratio is larger at the last size than at the first; "
                "contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvim.9",
            statement="The four models have the published multiply-adds.",
            reported="239, 355, 656 and 1111 M",
            kind="identity",
            rule=(
                "Supported when all four counts lie between 0.98 and 1 of the published ones, "
                "which also count norms and activations; contradicted otherwise."
            ),
        ),
    ),
    differences=(
        Difference(
            id="efficientvim.d1",
            paper_says=(
                "A learned parameter A per state sets the importance of tokens together with Δ."
            ),
            code_does=(
                "A is added to the logits of a softmax over tokens and does not depend on the "
                "token."
            ),
            effect=(
                "A cancels: its gradient is rounding noise and no value of it changes the output. "
                "It is kept so that official weights load."
            ),
            test="tests/papers/test_efficientvim.py::test_A_is_dead",
        ),
        Difference(
            id="efficientvim.d2",
            paper_says="Sub-layers ask for a batch-normalisation scale that starts at zero.",
            code_does="A final initialisation pass sets every batch-normalisation scale to 1.",
            effect=(
                "No sub-layer starts as zero; each is blended in with a learned weight that starts "
                "at one half."
            ),
            test="tests/papers/test_efficientvim.py::test_starts_as_the_official_code_really_does",
        ),
        Difference(
            id="efficientvim.d3",
            paper_says="The layer mixes a feature map of any height and width.",
            code_does=(
                "The classification code takes the side as the integer square root of the number "
                "of tokens."
            ),
            effect=(
                "Images that are not square fail in the official classifier; here the grid is "
                "passed."
            ),
            test=(
                "tests/papers/test_efficientvim.py::test_any_rectangle_is_mixed_where_the_official_classifier_needs_a_square"
            ),
        ),
        Difference(
            id="efficientvim.d4",
            paper_says="The tables give FLOPs.",
            code_does="The counter counts multiply-adds.",
            effect=(
                "A reader who compares with papers that count two operations a multiply-add is off "
                "by a factor of two."
            ),
            test="tests/papers/test_efficientvim.py::test_multiply_adds_beside_the_published_flops",
        ),
    ),
)
