"""The paper ConViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="convit",
    name="ConViT",
    title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
    authors=(
        "Stéphane d'Ascoli, Hugo Touvron, Matthew Leavitt, Ari Morcos, Giulio Biroli, Levent Sagun"
    ),
    venue="ICML",
    year=2021,
    idea=(
        "Attention heads that start as the taps of a convolution, with a learned gate through "
        "which each head may leave locality behind."
    ),
    arxiv="2103.10697",
    code="https://github.com/facebookresearch/convit",
    commit="0a9340aaf50dd101c2d3766e575f24085afc92ed",
    licence="ambiguous: Apache-2.0 and CC-BY-NC are both stated",
    variants=("tiny", "tiny_plus", "small", "small_plus", "base", "base_plus"),
    top1=(
        ("tiny", 73.1),
        ("tiny_plus", 76.6),
        ("small", 81.3),
        ("small_plus", 82.2),
        ("base", 82.4),
        ("base_plus", 82.5),
    ),
    claims=(
        Claim(
            id="convit.1",
            statement=(
                "Gated positional self-attention can be initialised as a convolution: with gate 1 "
                "and large locality strength each head reads exactly one fixed offset."
            ),
            reported="exact in the limit, from the paper's derivation",
            kind="identity",
            rule=(
                "Supported when, with gate 1 and strength 40, the heads' outputs are nine shifted "
                "copies of the input to less than 1e-4 in the interior; contradicted otherwise."
            ),
        ),
        Claim(
            id="convit.2",
            statement="ConViT is more accurate on ImageNet than DeiT at equal size.",
            reported="73.1 against 72.2 (Ti), 81.3 against 79.8 (S), 82.4 against 81.8 % top-1 (B)",
            kind="out_of_reach",
            needs="ImageNet-1k; four to sixteen GPUs for training",
            command=(
                "python main.py --eval --model convit_tiny --pretrained --data-path "
                "/path/to/imagenet  # official repository; documented result 73.116 % top-1"
            ),
        ),
        Claim(
            id="convit.3",
            statement=(
                "ConViT learns from fewer images: its lead over a plain transformer is positive "
                "and shrinks as the training set grows."
            ),
            reported=(
                "S on 5, 10, 30, 50, 100 % of ImageNet: 47.9, 59.6, 73.7, 78.2, 81.4 against "
                "DeiT's 34.7, 48.0, 66.1, 74.6, 79.9 % top-1"
            ),
            kind="miniature",
            rule=(
                "Supported when the lead over a plain transformer is positive at 50 images in each "
                "of three seeds and on average at 200, and smaller on average at 1,000 than at 50; "
                "contradicted when it is negative on average at every size though all networks "
                "know their training images; else inconclusive."
            ),
        ),
        Claim(
            id="convit.4",
            statement=(
                "During training gates fall and attention becomes less local, more so in late "
                "layers."
            ),
            reported="curves of gates and non-locality over 300 epochs",
            kind="miniature",
            rule=(
                "Supported when a mean gate falls by more than 0.01 and the second layer's non- "
                "locality rises by more than 0.02 patches and by more than the first's; "
                "contradicted when all gates rise by more than 0.01 and both non-localities fall "
                "by more than 0.02; else inconclusive."
            ),
        ),
        Claim(
            id="convit.5",
            statement="Plain attention, too, learns locality in its early layers.",
            reported="non-locality of DeiT's early layers falls during training",
            kind="miniature",
            rule=(
                "Supported when the first layer's non-locality falls by more than 0.02 patches in "
                "each of three seeds; contradicted when it rises by as much in each; else "
                "inconclusive."
            ),
        ),
        Claim(
            id="convit.6",
            statement="Both the convolutional start and the trainable gate contribute.",
            reported=(
                "100 ImageNet classes, all data and 10 %: ConViT 82.2 and 59.7, gates frozen 78.6 "
                "and 54.3, DeiT 79.1 and 47.8 % top-1"
            ),
            kind="miniature",
            rule=(
                "Supported when the full layer beats both ablations at 50 images in each of three "
                "seeds; contradicted when it beats neither on average; else inconclusive."
            ),
        ),
        Claim(
            id="convit.7",
            statement="The models have the published sizes.",
            reported="5.7, 10, 27.8, 49.0, 86.5 and 153 M parameters (Ti, Ti+, S, S+, B, B+)",
            kind="identity",
            rule=(
                "Supported when all six counts lie within 2 % of the published millions; "
                "contradicted otherwise."
            ),
        ),
    ),
    differences=(
        Difference(
            id="convit.d1",
            paper_says="Non-locality is measured on the attention of each layer.",
            code_does=(
                "The training log feeds raw patch embeddings to every layer: no position "
                "embedding, no norm, no preceding blocks."
            ),
            effect=(
                "The logged curves are not those of the attention that the network uses; here real "
                "activations are used."
            ),
            test=(
                "tests/papers/test_convit.py::test_non_locality_of_raw_patch_embeddings_is_not_the_network_s"
            ),
        ),
        Difference(
            id="convit.d2",
            paper_says="The relative features are (‖δ‖², δ₁, δ₂).",
            code_does="The code stores (δ_column, δ_row, ‖δ‖²).",
            effect="Same function; a weight read in the paper's order is misread.",
            test=(
                "tests/papers/test_convit.py::test_relative_features_are_column_row_and_squared_distance"
            ),
        ),
        Difference(
            id="convit.d3",
            paper_says="Positional scores have a bias for each head.",
            code_does="The bias is constant over keys and stands before a softmax.",
            effect=(
                "It cancels: no effect and no gradient. It is kept so that official weights load."
            ),
            test="tests/papers/test_convit.py::test_the_bias_has_no_effect",
        ),
        Difference(
            id="convit.d4",
            paper_says="The mixed attention is renormalised.",
            code_does=(
                "The mix of two softmaxes with weights 1 − σ(λ) and σ(λ) is divided by its sum."
            ),
            effect="The sum is 1 already: rounding only.",
            test="tests/papers/test_convit.py::test_the_mix_needs_no_renormalisation",
        ),
        Difference(
            id="convit.d5",
            paper_says="Positional attention depends on no input.",
            code_does="It is computed for every image of the batch.",
            effect=(
                "B times the work and memory for equal numbers; it is also separable into rows and "
                "columns, which the code does not use."
            ),
            test="tests/papers/test_convit.py::test_positions_depend_on_no_image_and_need_no_map",
        ),
    ),
)
