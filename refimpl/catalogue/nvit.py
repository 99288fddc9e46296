"""The paper NViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="nvit",
    name="NViT",
    title="Global Vision Transformer Pruning with Hessian-Aware Saliency",
    authors="Huanrui Yang, Hongxu Yin, Maying Shen, Pavlo Molchanov, Hai Li, Jan Kautz",
    venue="CVPR",
    year=2023,
    idea=(
        "One score for every prunable structure of a transformer, comparable across layers, minus "
        "the latency that its removal saves: the shape follows from cutting."
    ),
    arxiv="2110.04869",
    code="https://github.com/NVlabs/NViT",
    commit="48feca4216403f49e8861ba5aa5745f5e383947f",
    licence="Nvidia Source Code License-NC",
    claims=(
        Claim(
            id="nvit.1",
            statement="NViT-B loses almost nothing against DeiT-B at a fraction of its cost.",
            reported=(
                "83.29 against 83.36 % top-1; 2.6× fewer FLOPs, 2.5× fewer parameters (5.1× with "
                "2:4 sparsity), 1.86× the speed"
            ),
            kind="out_of_reach",
            needs="ImageNet-1k; 32 GPUs for training, eight for evaluation",
            command=(
                "python -m torch.distributed.launch --nproc_per_node=8 --use_env eval_nvit.py "
                "--finetune path/to/ft_checkpoint.pth --data-path /path/to/ImageNet2012/ "
                "--batch-size 256  # official repository"
            ),
        ),
        Claim(
            id="nvit.2",
            statement=(
                "The score is comparable across structures; pruning by magnitude empties some "
                "structures and spares others."
            ),
            reported="motivation of the method",
            kind="miniature",
        ),
        Claim(
            id="nvit.3",
            statement=(
                "The score of a group follows the change of the loss when the group is removed."
            ),
            reported="strong correlation (appendix)",
            kind="miniature",
        ),
        Claim(
            id="nvit.4",
            statement=(
                "Subtracting the latency saved reaches a latency target at higher accuracy than "
                "without."
            ),
            reported="latency table of a V100",
            kind="miniature",
        ),
        Claim(
            id="nvit.5",
            statement=(
                "What survives has a shape: middle blocks larger than the ends, value width nearly "
                "untouched."
            ),
            reported="figures for DeiT-B",
            kind="miniature",
        ),
        Claim(
            id="nvit.6",
            statement="Networks built by that shape beat DeiT at equal cost.",
            reported="ReViT-S 81.22 against 81.01, ReViT-T 74.20 against 72.84 % top-1",
            kind="out_of_reach",
            needs="ImageNet-1k and 300 epochs on eight GPUs",
            command=(
                "train ReViT-T and ReViT-S as the README of the official repository's revit folder "
                "describes"
            ),
        ),
        Claim(
            id="nvit.7",
            statement=(
                "Under the paper's substitution the Hessian criterion of a group is the squared "
                "sum of weight times gradient."
            ),
            reported="derivation in the paper",
            kind="identity",
        ),
        Claim(
            id="nvit.8",
            statement="The redistributed networks have the published sizes.",
            reported="ReViT-S 23 M and 4.7 G, ReViT-T 5.9 M and 1.3 G",
            kind="identity",
        ),
        Claim(
            id="nvit.9",
            statement=(
                "At half of the units removed from a small transformer the score keeps accuracy "
                "within a point of the dense network's."
            ),
            reported="near-lossless pruning of DeiT-B",
            kind="miniature",
        ),
    ),
    differences=(
        Difference(
            id="nvit.d1",
            paper_says="One criterion for all structures.",
            code_does=(
                "Sums are divided by 12, 12, 2, 2 and 1 (embedding, heads, query–key, value, MLP) "
                "before squaring; the 12 of heads is two flags firing at once."
            ),
            effect=(
                "The divisors decide the balance between structures and stand nowhere in the text; "
                "reproduced and named."
            ),
        ),
        Difference(
            id="nvit.d2",
            paper_says="A group holds all weights that die together.",
            code_does=(
                "Query–key groups are scored from queries alone, values without the projection, "
                "MLP units without the second layer."
            ),
            effect="No loss for the first two (their sums are equal); for the MLP it is a choice.",
        ),
        Difference(
            id="nvit.d3",
            paper_says="The pruning model is released.",
            code_does="Its constructor reads an undefined name.",
            effect="It can't be built; the evident value is used here.",
        ),
        Difference(
            id="nvit.d4",
            paper_says="First and last blocks follow the rule of the small ones.",
            code_does="The redistribution code gives them ten heads and a doubled query–key width.",
            effect="Sizes of the released networks follow the code.",
        ),
        Difference(
            id="nvit.d5",
            paper_says="A masked network equals the dense one that is cut from it.",
            code_does="Layer normalisation runs over all channels, zeros included.",
            effect="Removing embedding channels changes the function; other structures are exact.",
        ),
        Difference(
            id="nvit.d6",
            paper_says="The loss is on the class token (eq. 8).",
            code_does="The mean of class and distillation logits is compared with the label.",
            effect="Another objective than the one printed.",
        ),
        Difference(
            id="nvit.d7",
            paper_says="The latency weight η may be zero.",
            code_does=(
                "With η = 0 a variable stays undefined, and the total uses the embedding width of "
                "the step before."
            ),
            effect="The plain criterion can't be run as released.",
        ),
    ),
)
