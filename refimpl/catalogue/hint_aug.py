"""The paper Hint-Aug: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="hint_aug",
    name="Hint-Aug",
    title=(
        "Hint-Aug: Drawing Hints from Foundation Vision Transformers Towards Boosted Few-Shot "
        "Parameter-Efficient Tuning"
    ),
    authors="Zhongzhi Yu, Shang Wu, Yonggan Fu, Shunyao Zhang, Yingyan (Celine) Lin",
    venue="CVPR",
    year=2023,
    idea=(
        "Ask the pretrained network where evidence should lie and which classes look alike, and "
        "use both to augment a handful of training images."
    ),
    arxiv="2304.12520",
    code="https://github.com/GATECH-EIC/Hint-Aug",
    commit="575116ae274cafe39c0121aac31d69a9a0bebd43",
    licence="MIT",
    variants=("adapter", "lora", "vpt"),
    claims=(
        Claim(
            id="hint_aug.1",
            statement=(
                "In few-shot tuning, Hint-Aug is more accurate than the best augmentation baseline."
            ),
            reported="+0.04 to +32.91 points over five data sets, three tuning methods, 1–16 shots",
            kind="miniature",
            rule=(
                "supports if least_sure > 0; contradicts if most_sure < -1; where both are in "
                "points over the weakest gain against three rivals of as many steps (a second "
                "plain step, noise in the detected patch, erasing of a random patch): its mean "
                "minus, and plus, two standard errors over draws"
            ),
        ),
        Claim(
            id="hint_aug.2",
            statement="On Pets it is better with half of the data.",
            reported="+2.22 points with half the shots",
            kind="out_of_reach",
            needs="the Pets data set, ViT-B/16 weights pretrained on ImageNet-21k, a GPU",
            command=(
                "sh Adapter.sh  # official repository, folder script, data set and shots set in "
                "the script; as released its attack is noise, see the differences"
            ),
        ),
        Claim(
            id="hint_aug.3",
            statement=(
                "Over-fitting shows as attention that moves to patches which the pretrained "
                "network ignores."
            ),
            reported="attention maps before and after tuning",
            kind="miniature",
            rule=(
                "supports if least_ratio > 3; contradicts if most_ratio <= 1.5; where ratio is "
                "how often the detector chooses the patch that carries the shortcut, over "
                "chance, least and most over ways of tuning"
            ),
        ),
        Claim(
            id="hint_aug.4",
            statement=(
                "Attacking one detected patch towards a confusable class is better than attacking "
                "the whole image, without a target, or towards a random class."
            ),
            reported=(
                "whole image −0.80 to −1.72, untargeted −3.32 to −5.71, random class −1.05 to "
                "−2.57 points"
            ),
            kind="miniature",
            rule=(
                "supports if least_sure > 0; contradicts if most_sure < -1; where both are in "
                "points over the weakest gain against the three other attacks: its mean minus, "
                "and plus, two standard errors over draws"
            ),
        ),
        Claim(
            id="hint_aug.5",
            statement="Detector and confusion label each help alone, and most together.",
            reported="+1.04 to 2.28 and +2.10 to 4.27 points alone",
            kind="miniature",
            rule=(
                "supports if least_sure > 0; contradicts if most_sure < -1; where both are in "
                "points over the weakest of three gains (detector alone and label alone over a "
                "second plain step, both over each alone): its mean minus, and plus, two "
                "standard errors over draws"
            ),
        ),
        Claim(
            id="hint_aug.6",
            statement="Accuracy hardly depends on the radius of the attack.",
            reported="0.03–0.21 points for a fivefold radius",
            kind="miniature",
            rule=(
                "supports if apart + 2 * spread < 1 and sure > 0; contradicts if apart - 2 * "
                "spread > 1; where apart is by how many points the attack with a fifth of the "
                "radius is off the full one, on the known patch, spread its standard error, "
                "sure the full one's gain over a second plain step minus two standard errors"
            ),
        ),
        Claim(
            id="hint_aug.7",
            statement="As released, the attack equals plain noise in the chosen patches.",
            reported="not a claim of the paper: found in the released code",
            kind="identity",
            rule=(
                "supports if different == 0; contradicts otherwise; where different is how many "
                "pixels of the released attack's recorded outputs differ from plain noise"
            ),
        ),
    ),
    differences=(
        Difference(
            id="hint_aug.d1",
            paper_says="A patch is pushed by the gradient towards a confusable class.",
            code_does=(
                "The loss is a cross-entropy against an all-zero target, or its gradient never "
                "reaches the optimiser."
            ),
            effect=(
                "The released attack is plain noise of the same radius, bit for bit. The paper's "
                "attack is implemented; the released one is kept as a function."
            ),
            test=(
                "tests/papers/test_hint_aug.py::"
                "test_the_released_attack_knows_neither_network_nor_label"
            ),
        ),
        Difference(
            id="hint_aug.d2",
            paper_says="The cross-entropy to the confusion label is minimised.",
            code_does="With the commented-out line restored the optimiser increases it.",
            effect="It would move away from the confusable class.",
            test=(
                "tests/papers/test_hint_aug.py::test_the_restored_attack_moves_away_from_its_target"
            ),
        ),
        Difference(
            id="hint_aug.d3",
            paper_says="A detector fires when attention has drifted from the pretrained network's.",
            code_does="The threshold 0.7 is compared with a quantity that can't exceed 0.071.",
            effect=(
                "The detector never fires: the fallback, the two most attended patches, always "
                "runs."
            ),
            test=("tests/papers/test_hint_aug.py::test_the_released_detector_can_never_fire"),
        ),
        Difference(
            id="hint_aug.d4",
            paper_says="The patch with the largest absolute drift is chosen.",
            code_does="The difference is signed, pretrained minus tuned.",
            effect="It would pick patches that tuning neglects, not those it favours.",
            test=("tests/papers/test_hint_aug.py::test_the_released_difference_is_signed"),
        ),
        Difference(
            id="hint_aug.d5",
            paper_says="LoRA and adapters start as the identity.",
            code_does="A later pass re-initialises every linear layer.",
            effect="Both perturb the pretrained network at step 0.",
            test=(
                "tests/papers/test_hint_aug.py::"
                "test_tuning_starts_from_the_pretrained_network_and_as_released_beside_it"
            ),
        ),
        Difference(
            id="hint_aug.d6",
            paper_says="The first block's prompts are trained.",
            code_does="They are replaced by the block's own before use.",
            effect="Dead parameters, counted as trainable.",
            test=(
                "tests/papers/test_hint_aug.py::"
                "test_the_first_prompts_are_replaced_before_anybody_reads_them"
            ),
        ),
        Difference(
            id="hint_aug.d7",
            paper_says="Clean and attacked images have separate norms (option).",
            code_does="Both branches share one parameter, with another ε.",
            effect="Switching does nothing but change ε from 1e-6 to 1e-5.",
            test=(
                "tests/papers/test_hint_aug.py::test_switchable_norms_change_nothing_but_epsilon"
            ),
        ),
        Difference(
            id="hint_aug.d8",
            paper_says="The true label, as a distribution, is the target of the attacked image.",
            code_does="The target is 1.0 at the true class and 0.1 elsewhere.",
            effect="It does not sum to one.",
            test=("tests/papers/test_hint_aug.py::test_the_released_target_is_no_distribution"),
        ),
        Difference(
            id="hint_aug.d9",
            paper_says="Gradients are projected against each other (PCGrad).",
            code_does="The code divides by the norm, not by its square.",
            effect="The conflicting part is not removed exactly.",
            test=(
                "tests/papers/test_hint_aug.py::test_the_released_projection_leaves_some_conflict"
            ),
        ),
        Difference(
            id="hint_aug.d10",
            paper_says="The confusion label leaves the image's own class out, and sums to one.",
            code_does="It is the softmax of summed logits, the own class among them.",
            effect="Sums are tens, so the label is nearly one class, as a rule the image's own.",
            test=("tests/papers/test_hint_aug.py::test_the_released_label_is_mostly_the_own_class"),
        ),
        Difference(
            id="hint_aug.d11",
            paper_says="A patch's score is the attention that it gets.",
            code_does="Each column of the attention map is first scaled to length one.",
            effect="How much a patch is looked at is lost; how evenly is left.",
            test=(
                "tests/papers/test_hint_aug.py::"
                "test_the_released_score_forgets_how_much_a_patch_is_looked_at"
            ),
        ),
    ),
)
