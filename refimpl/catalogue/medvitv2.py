"""The paper MedViTV2: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="medvitv2",
    name="MedViTV2",
    title=(
        "Medical Image Classification with KAN-Integrated Transformers and Dilated Neighborhood "
        "Attention"
    ),
    authors="Omid Nejati Manzari, Hojat Asgariandehkordi, Taha Koleilat, Yiming Xiao, Hassan Rivaz",
    venue="Applied Soft Computing",
    year=2025,
    idea=(
        "Neighbourhood attention for what is near, pooled attention for what is far, and layers of "
        "fixed bumps with learned weights in place of the MLP."
    ),
    arxiv="2502.13693",
    code="https://github.com/Omid-Nejati/MedViTV2",
    commit="8d54f66",
    licence="MIT",
    variants=("tiny", "small", "base", "large"),
    kernels=("kan_layer", "neighbourhood_attention"),
    claims=(
        Claim(
            id="medvitv2.1",
            statement="MedViTV2 is the best known in nearly all of its experiments.",
            reported="27 of 29, 17 clean and 12 corrupted sets",
            kind="out_of_reach",
            needs="MedMNIST+ and five further data sets at 224 pixels, GPUs",
            command=(
                "python main.py --model_name 'MedViT_small' --dataset 'breastmnist' --pretrained "
                "False  # official repository, for each data set and size"
            ),
        ),
        Claim(
            id="medvitv2.2",
            statement="It gains over its predecessor, most on corrupted images.",
            reported="+4.6 (MedMNIST), +5.8 (others), +13.4 points (MedMNIST-C)",
            kind="out_of_reach",
            needs="the first MedViT, MedMNIST+ and MedMNIST-C at 224 pixels, GPUs",
            command=(
                "python main.py --model_name 'MedViT_large' --dataset 'pathmnist' --pretrained "
                "False  # both official repositories, each data set, then medmnistc's evaluator"
            ),
        ),
        Claim(
            id="medvitv2.3",
            statement="It needs less computation than its predecessor.",
            reported="44 % less",
            kind="out_of_reach",
            needs="the first MedViT, which this package does not hold",
            command=(
                "count the multiply-adds of both official models at 224 pixels with "
                "torch.utils.flop_counter"
            ),
        ),
        Claim(
            id="medvitv2.4",
            statement="A KAN layer in the MLP's place makes the network more accurate.",
            reported="ablation on MedMNIST, not matched in parameters",
            kind="miniature",
            # gain: right answers on clean images of the network with KANs less that with MLPs of as
            # many parameters, the same start, least and greatest over starts; learned: the least
            # share of right answers of both, so that nets that learned nothing decide nothing.
            rule=(
                "supports if least_gain > 0.01 and learned > 0.5; "
                "contradicts if greatest_gain < -0.01 and learned > 0.5"
            ),
        ),
        Claim(
            id="medvitv2.5",
            statement=(
                "Dilated neighbourhood attention widens the receptive field: it captures global "
                "context."
            ),
            reported="needed for the larger models; no figure of its own",
            kind="miniature",
            # mixed, near: by how many points two layers of dilations (1, 4) and (1, 1) exceed the
            # share of the commoner answer, asked for the token four steps away; the least (mixed)
            # and the greatest (near) over starts.
            rule="supports if mixed > 0.2 and near < 0.05; contradicts if mixed < 0.05",
        ),
        Claim(
            id="medvitv2.6",
            statement=(
                "The network is robust to corruptions: balanced errors stay below the reference's."
            ),
            reported="MedMNIST-C: BE 0.711, rBE 0.893 in the released logs (small, mean of 12)",
            kind="out_of_reach",
            needs="MedMNIST-C, and the errors of its AlexNet",
            command=(
                "python main.py --model_name 'MedViT_small' --dataset 'dermamnist' && "
                "medmnistc's evaluator on its predictions  # both official repositories"
            ),
        ),
        Claim(
            id="medvitv2.7",
            statement="The KAN is efficient: it costs no more than the MLP whose place it takes.",
            reported="called efficient; G = 8 bumps for each coordinate",
            kind="identity",
            # ratio: weights of a KAN C → 2C → C over those of an MLP of the same widths.
            rule="supports if ratio <= 1; contradicts if ratio > 1",
        ),
        Claim(
            id="medvitv2.8",
            statement="Dilated attention keeps features of large models from collapsing.",
            reported="given as the reason for dilation; no figure of its own",
            kind="out_of_reach",
            needs="the large model trained with and without dilation",
            command=(
                "python main.py --model_name 'MedViT_large' --dataset 'pathmnist'  # official "
                "repository, with dilation=8, 4, 2 in LFP and without"
            ),
        ),
    ),
    differences=(
        Difference(
            id="medvitv2.d1",
            paper_says="Attention looks at square neighbourhoods of the image.",
            code_does="Maps are turned into tokens by a reshape, without moving the channel axis.",
            effect=(
                "A token is a run of values of one channel, and a window spans channels and "
                "strips. Released weights need it; both layouts are offered."
            ),
            test="tests/papers/test_medvitv2.py::test_official_tokens_are_runs_of_one_channel",
        ),
        Difference(
            id="medvitv2.d2",
            paper_says="Neighbourhood attention is dilated.",
            code_does="Every block passes no dilation, which means 1.",
            effect="The released network is not dilated.",
            test="tests/papers/test_medvitv2.py::test_released_network_passes_no_dilation",
        ),
        Difference(
            id="medvitv2.d3",
            paper_says="KAN layers learn a function on each edge.",
            code_does="The bumps are fixed and shared; only their weights are learned.",
            effect="A radial basis network with sech² bumps.",
            test=(
                "tests/papers/test_medvitv2.py::test_a_kan_layer_is_linear_in_its_weights_and_additive_in_its_coordinates"
            ),
        ),
        Difference(
            id="medvitv2.d4",
            paper_says="Keys and values of the global block are pooled in space.",
            code_does="The flattened sequence is pooled in runs of s².",
            effect="Strips, not squares.",
            test="tests/papers/test_medvitv2.py::test_keys_are_means_of_runs_along_rows",
        ),
        Difference(
            id="medvitv2.d5",
            paper_says="The squeeze width is a quarter of the hidden width.",
            code_does="The reduction is set to the number of output channels.",
            effect="The squeeze has three channels.",
            test="tests/papers/test_medvitv2.py::test_the_squeeze_has_three_channels",
        ),
        Difference(
            id="medvitv2.d6",
            paper_says="Published parameter counts.",
            code_does="Each global block keeps a feed-forward module that is never run.",
            effect="About a tenth of the parameters is dead; the keys are needed for loading.",
            test=(
                "tests/papers/test_medvitv2.py::test_the_feed_forward_layer_of_a_global_block_is_never_run"
            ),
        ),
        Difference(
            id="medvitv2.d7",
            paper_says="ChestMNIST is multi-label, trained with a binary loss for each label.",
            code_does="Its outputs pass through a softmax before the evaluator.",
            effect="At most one of 14 scores passes one half; accuracy nears that of none.",
            test="tests/papers/test_medvitv2.py::test_a_softmax_lets_one_label_pass_at_most",
        ),
    ),
)
