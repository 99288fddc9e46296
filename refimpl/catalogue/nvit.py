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
    variants=("revit_t", "revit_s", "prunable_base"),
    top1=(("revit_t", 74.20), ("revit_s", 81.22)),
    kernels=("segment_scores",),
    claims=(
        Claim(
            id="nvit.1",
            statement=(
                "NViT-B loses almost nothing against DeiT-B: 2.6× fewer FLOPs, 5.1× fewer "
                "parameters and 1.9× the speed, near-lossless."
            ),
            reported=(
                "83.29 against 83.36 % top-1; 2.6× fewer FLOPs, 2.57× fewer parameters (5.1× with "
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
                "The score is comparable across all structures and layers, so that they can be "
                "ranked together; magnitude is not: it empties some and spares others."
            ),
            reported="motivation of the method",
            kind="miniature",
            # same: Spearman of the ranking of QK and V units before and after a change of weights
            # that leaves the function alone; dead: mean rank of planted units that never fire; both
            # in the worst start for the claim. The part on apart was added after the numbers, and
            # is stricter.
            rule=(
                "supports if score_same >= 0.99 and magnitude_same < 0.8 and score_dead < 0.1 and "
                "magnitude_dead > 0.9 and apart < 3; contradicts if score_same < 0.9 or score_dead "
                "> 0.5; where same is the rank correlation when weights change and the function "
                "does not, dead the mean rank of planted dead units (0 goes first, 1 last), and "
                "apart how many times further the removal of one kind moves the loss than that of "
                "another at equal score"
            ),
        ),
        Claim(
            id="nvit.3",
            statement=(
                "The score of a group follows the true change of the loss when the group is "
                "removed."
            ),
            reported="strong correlation (appendix)",
            kind="miniature",
            # least, most: over the starts, Spearman of the score with |change of the loss| less
            # that of magnitude: all units together, and the worst axis alone
            rule=(
                "supports if least_pooled > 0 and least_axis > 0 and score > 0.5; contradicts if "
                "most_pooled < 0 or score < 0.2; where score is the rank correlation with the "
                "true change, least over the starts, and the others its lead over magnitude's"
            ),
        ),
        Claim(
            id="nvit.4",
            statement=(
                "Subtracting η times the latency saved reaches a latency target at higher accuracy "
                "than the score alone."
            ),
            reported="latency table of a V100",
            kind="miniature",
            # gain: points of accuracy at equal estimated cost, with η over without, per start
            rule="supports if least_gain > 1; contradicts if most_gain < -1",
        ),
        Claim(
            id="nvit.5",
            statement=(
                "What survives has a shape: middle blocks larger than the ends, value width nearly "
                "untouched, attention cut more than the MLP."
            ),
            reported="figures for DeiT-B",
            kind="miniature",
            # middle, ends: multiply-adds of blocks 2 and 3 over those of blocks 1 and 4, per start
            rule=(
                "supports if least_middle_to_ends > 1 and least_value > 0.9; contradicts if "
                "most_middle_to_ends < 1; where the first compares multiply-adds of the two middle "
                "blocks with those of the ends, and value is the share of value units that stays"
            ),
        ),
        Claim(
            id="nvit.6",
            statement="Networks of that shape, trained from scratch, beat DeiT at equal cost.",
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
            # apart: relative distance of the two for every unit looked at
            rule="supports if apart < 1e-4; contradicts otherwise",
        ),
        Claim(
            id="nvit.8",
            statement="The redistributed networks have the published sizes.",
            reported="ReViT-S 23 M and 4.7 G, ReViT-T 5.9 M and 1.3 G",
            kind="identity",
            # worst: largest relative distance of the four numbers
            rule="supports if worst < 0.05; contradicts otherwise",
        ),
        Claim(
            id="nvit.9",
            statement=(
                "Pruned to half of its work by the global score, a network keeps its accuracy "
                "within a point."
            ),
            reported="near-lossless pruning of DeiT-B",
            kind="miniature",
            # lost: points below the dense network at half of its multiply-adds after recovery,
            # least and most over the starts
            rule="supports if most_lost <= 1; contradicts if least_lost > 1",
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
            test="tests/papers/test_nvit.py::test_divisors_are_those_of_the_released_code",
        ),
        Difference(
            id="nvit.d2",
            paper_says="A group holds all weights that die together.",
            code_does=(
                "Query–key groups are scored from queries alone, values without the projection, "
                "MLP units without the second layer."
            ),
            effect="No loss for the first two (their sums are equal); for the MLP it is a choice.",
            test=(
                "tests/papers/test_nvit.py::"
                "test_queries_stand_for_keys_and_values_for_the_projection_but_fc1_not_for_fc2"
            ),
        ),
        Difference(
            id="nvit.d3",
            paper_says="The pruning model is released.",
            code_does="Its constructor reads an undefined name.",
            effect="It can't be built; the evident value, learned positions, is used here.",
            test=(
                "tests/papers/test_nvit.py::"
                "test_the_prunable_case_was_recorded_with_a_repaired_constructor"
            ),
        ),
        Difference(
            id="nvit.d4",
            paper_says="First and last blocks follow the rule of the small ones.",
            code_does=(
                "The redistribution code gives them ten heads and a doubled query–key width, and "
                "rounds before it doubles the middle ones."
            ),
            effect=(
                "Sizes follow the code; its ReViT-T has 5.3 M parameters where the table has 5.9 M."
            ),
            test=(
                "tests/papers/test_nvit.py::"
                "test_the_rule_of_the_text_has_small_ends_and_the_code_large_ones"
            ),
        ),
        Difference(
            id="nvit.d5",
            paper_says="A masked network equals the dense one that is cut from it.",
            code_does="Layer normalisation runs over all channels, zeros included.",
            effect="Removing embedding channels changes the function; other structures are exact.",
            test=(
                "tests/papers/test_nvit.py::test_cutting_channels_out_changes_what_the_norms_see"
            ),
        ),
        Difference(
            id="nvit.d6",
            paper_says="The loss is on the class token (eq. 8).",
            code_does="The mean of class and distillation logits is compared with the label.",
            effect="Another objective than the one printed.",
            test=(
                "tests/papers/test_nvit.py::"
                "test_the_label_is_compared_with_the_mean_of_both_classifiers"
            ),
        ),
        Difference(
            id="nvit.d7",
            paper_says="The latency weight η may be zero.",
            code_does=(
                "With η = 0 a variable stays undefined, and the total uses the embedding width of "
                "the step before."
            ),
            effect="The plain criterion can't be run as released; here it can.",
            test=(
                "tests/papers/test_nvit.py::"
                "test_without_eta_the_plain_score_is_ranked_by_the_current_width"
            ),
        ),
    ),
)
