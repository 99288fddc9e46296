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
            kind="miniature",
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
            statement=(
                "The KAN block is more accurate than an MLP with the same number of parameters."
            ),
            reported="ablation on MedMNIST, not matched in parameters",
            kind="miniature",
        ),
        Claim(
            id="medvitv2.5",
            statement=(
                "Dilated neighbourhood attention widens the receptive field and keeps features "
                "from collapsing."
            ),
            reported="needed for the larger models",
            kind="miniature",
        ),
        Claim(
            id="medvitv2.6",
            statement=(
                "The network is robust to corruptions: balanced errors stay below the reference's."
            ),
            reported="MedMNIST-C, five severities",
            kind="miniature",
        ),
        Claim(
            id="medvitv2.7",
            statement=(
                "A KAN layer with G bumps has G times the weights of a linear layer of the same "
                "widths."
            ),
            reported="called efficient; G = 8",
            kind="identity",
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
        ),
        Difference(
            id="medvitv2.d2",
            paper_says="Neighbourhood attention is dilated.",
            code_does="Every block passes no dilation, which means 1.",
            effect="The released network is not dilated.",
        ),
        Difference(
            id="medvitv2.d3",
            paper_says="KAN layers learn a function on each edge.",
            code_does="The bumps are fixed and shared; only their weights are learned.",
            effect="A radial basis network with sech² bumps.",
        ),
        Difference(
            id="medvitv2.d4",
            paper_says="Keys and values of the global block are pooled in space.",
            code_does="The flattened sequence is pooled in runs of s².",
            effect="Strips, not squares.",
        ),
        Difference(
            id="medvitv2.d5",
            paper_says="The squeeze width is a quarter of the hidden width.",
            code_does="The reduction is set to the number of output channels.",
            effect="The squeeze has three channels.",
        ),
        Difference(
            id="medvitv2.d6",
            paper_says="Published parameter counts.",
            code_does="Each global block keeps a feed-forward module that is never run.",
            effect="About a tenth of the parameters is dead; the keys are needed for loading.",
        ),
        Difference(
            id="medvitv2.d7",
            paper_says="The best model is chosen by accuracy.",
            code_does="The variable receives the AUC on the test split.",
            effect="Published figures are chosen on the test set.",
        ),
        Difference(
            id="medvitv2.d8",
            paper_says="ChestMNIST is multi-label, trained with a binary loss.",
            code_does="Its outputs pass through a softmax before the evaluator.",
            effect="Few scores pass one half; accuracy sits near that of predicting nothing.",
        ),
    ),
)
