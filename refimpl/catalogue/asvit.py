"""The paper As-ViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="asvit",
    name="As-ViT",
    title="Auto-scaling Vision Transformers without Training",
    authors="Wuyang Chen, Wei Huang, Xianzhi Du, Xiaodan Song, Zhangyang Wang, Denny Zhou",
    venue="ICLR",
    year=2022,
    idea=(
        "Judge a network before training: how much does it stretch a circle of inputs, and how "
        "well conditioned is its tangent kernel? Then grow the best seed."
    ),
    arxiv="2202.11921",
    code="https://github.com/VITA-Group/AsViT",
    commit="e326ccaf63e05f241f8f48a0e045b63d221be62a",
    licence="MIT",
    variants=("seed", "small", "base", "large"),
    top1=(("small", 81.2), ("base", 82.5), ("large", 83.5)),
    kernels=("gradient_gram",),
    claims=(
        Claim(
            id="asvit.1",
            statement="Length distortion at initialisation measures expressivity.",
            reported="a longer curve is called more expressive",
            kind="miniature",
            # bent: |length / (2π · mean radius) − 1| of the curves, the largest over the topologies
            # at the official initialisation: 0 for a linear map, which folds nothing. This claim
            # and the next were one: its rule is split into halves, thresholds unchanged.
            rule=(
                "supports if bent > 0.001; contradicts if bent < 0.001; where bent is how far the "
                "longest curve over its radius is from a circle's, at the official initialisation"
            ),
        ),
        Claim(
            id="asvit.2",
            statement="Length distortion ranks topologies like their trained accuracy.",
            reported="strong Kendall correlation on ImageNet",
            kind="miniature",
            # tau, p: Kendall's over all topologies; rival: the largest tau of parameters,
            # multiply-adds, patch size and early accuracy; within: tau of pairs with one kernel
            rule=(
                "supports if tau > 0 and p < 0.05 and tau > rival and within > 0; contradicts if "
                "tau <= 0 and within <= 0 and rival_p < 0.05; where tau and p are of all "
                "topologies, within is tau among those of one patch size, rival is the tau of the "
                "best of parameters, multiply-adds, patch size and early loss, rival_p the least p"
            ),
        ),
        Claim(
            id="asvit.3",
            statement="A small condition number of the tangent kernel tells trainable topologies.",
            reported="negative Kendall correlation on ImageNet",
            kind="miniature",
            # tau of −condition, so that higher is better for all
            rule=(
                "supports if tau > 0 and p < 0.05 and tau > rival and within > 0; contradicts if "
                "tau <= 0 and within <= 0 and rival_p < 0.05; where tau and p are of minus the "
                "condition number, the others as in claim 2"
            ),
        ),
        Claim(
            id="asvit.4",
            statement=(
                "A policy trained on both scores finds better topologies than random draws of the "
                "same number."
            ),
            reported="one topology, found for ImageNet, grown into the family",
            kind="miniature",
            # place: of the policy's final choice among all trained topologies by accuracy, 0 best,
            # 1 worst, mean over policies; rival_place: of the best by both ranks among random draws
            # of the same number. At first the rival was one blind draw, 0.5: this is stricter.
            rule=(
                "supports if place + 2 * error < rival_place; contradicts if place - 2 * error > "
                "rival_place; where place is the mean place by accuracy of what the policies end "
                "with (0 the best, 1 the worst), rival_place that of the best by the same scores "
                "among as many random draws, error the standard error of place"
            ),
        ),
        Claim(
            id="asvit.5",
            statement="The scores need no labels, and seconds where a training needs hours.",
            reported="training-free",
            kind="miniature",
            # share: processor time of both scores over that of one (short) training
            rule=(
                "supports if share < 0.2; contradicts if share > 1; where share is the time of "
                "both scores over the time of one short training, on one core"
            ),
        ),
        Claim(
            id="asvit.6",
            statement="The three networks of the family have the published sizes.",
            reported="29.0, 52.6 and 88.1 M parameters; 5.3, 8.9 and 22.6 G FLOPs",
            kind="identity",
            # apart: largest distance from the published parameters, in M, and multiply-adds
            rule=(
                "supports if parameters_apart < 0.1 and macs_apart < 0.05; contradicts otherwise; "
                "where parameters_apart is in million, macs_apart a share of the published"
            ),
        ),
        Claim(
            id="asvit.7",
            statement=(
                "Coarse tokens early in training save multiply-adds and time at almost equal "
                "accuracy."
            ),
            reported="progressive tokenisation on ImageNet",
            kind="miniature",
            # points of accuracy: lost, full less progressive at equal steps; gained, progressive
            # less full at equal multiply-adds; over, progressive less coarse tokens all the way,
            # which was added when a reader missed it, and is stricter
            rule=(
                "supports if most_lost <= 1 and least_gained > 0 and least_over > 0; contradicts "
                "if least_lost > 1 and most_gained <= 0; where lost is against fine tokens at "
                "equal steps, gained against fine tokens at equal multiply-adds, over against "
                "coarse tokens all the way, in points, least and most over the starts"
            ),
        ),
        Claim(
            id="asvit.8",
            statement="The family is accurate on ImageNet.",
            reported="81.2, 82.5 and 83.5 % top-1",
            kind="out_of_reach",
            needs="ImageNet-1k and TPUs; the training code was not released",
            command="none exists: train the three genotypes with the DeiT recipe for 300 epochs",
        ),
        Claim(
            id="asvit.9",
            statement="Design and scaling together take half a day on one GPU.",
            reported="12 hours on one V100",
            kind="out_of_reach",
            needs="a V100 and ImageNet images for the kernel",
            command=(
                "CUDA_VISIBLE_DEVICES=0 python ./search/reinforce.py --save_dir "
                "./output/REINFORCE-imagenet --data_path /path/to/imagenet  # then "
                "./search/grow.py, official repository"
            ),
        ),
        Claim(
            id="asvit.10",
            statement="As a backbone it is strong in detection.",
            reported="52.7 mAP on COCO",
            kind="out_of_reach",
            needs="COCO, GPUs and weights that were not released",
            command="none exists: neither detection code nor weights were released",
        ),
        Claim(
            id="asvit.11",
            statement="One growing run from the found topology passes through all three networks.",
            reported="Small, Base and Large from one run",
            kind="out_of_reach",
            needs=(
                "the authors' log of the run: the released rule does not lead from Small to Base, "
                "but another may have been used"
            ),
            command="python ./search/grow.py  # official repository, after its reinforce.py",
        ),
    ),
    differences=(
        Difference(
            id="asvit.d1",
            paper_says="The Gauss-map length is the length of the curve of unit tangents.",
            code_does=(
                "The code holds ‖v‖ constant, and divides speeds of shape (n,) by norms of shape "
                "(n, 1): an n × n table is summed."
            ),
            effect=(
                "Another quantity than the one in the text, several times as large; the kept score "
                "is not affected."
            ),
            test="tests/papers/test_asvit.py::test_official",
        ),
        Difference(
            id="asvit.d2",
            paper_says="The candidate with the better scores is grown.",
            code_does=(
                "Where rank sums tie, the code takes the smaller value also of the length, where "
                "larger is better, and looks at the first two tied candidates only."
            ),
            effect="A tie can go to the worse candidate; reproduced.",
            test=(
                "tests/papers/test_asvit.py::"
                "test_a_tie_goes_to_the_smaller_value_also_where_larger_is_better"
            ),
        ),
        Difference(
            id="asvit.d3",
            paper_says="Both scores judge the same network.",
            code_does="Switching normalisation on again re-initialises every weight.",
            effect="Length distortion and kernel see different random weights.",
            test=(
                "tests/papers/test_asvit.py::test_the_two_scores_see_different_weights_in_the_"
                "released_code_and_one_set_here"
            ),
        ),
        Difference(
            id="asvit.d4",
            paper_says="The models have 29.0, 52.6 and 88.1 M parameters.",
            code_does=(
                "The code leaves the position embedding off, which gives 28.8, 52.3 and 87.6 M."
            ),
            effect="The trained models must have had it: with it all three figures are met.",
            test="tests/papers/test_asvit.py::test_parameters_are_the_published_ones",
        ),
        Difference(
            id="asvit.d5",
            paper_says="Ten points on a circle.",
            code_does="Both ends are sampled.",
            effect="Nine distinct points; one is counted twice.",
            test="tests/papers/test_asvit.py::test_both_ends_of_the_circle_are_one_point",
        ),
        Difference(
            id="asvit.d6",
            paper_says="Candidates are scored at their size.",
            code_does=(
                "Scores use a proxy of a quarter of the width; the limit on parameters uses the "
                "real one."
            ),
            effect="Order at proxy width decides.",
            test=(
                "tests/papers/test_asvit.py::"
                "test_scores_are_of_the_proxy_and_the_limit_is_of_the_real_network"
            ),
        ),
        Difference(
            id="asvit.d7",
            paper_says="Progressive tokenisation trains faster.",
            code_does="No code for it was released.",
            effect="Its schedule here is an assumption, and marked so.",
            test=(
                "tests/papers/test_asvit.py::"
                "test_the_schedule_is_an_assumption_and_ends_with_fine_tokens"
            ),
        ),
        Difference(
            id="asvit.d8",
            paper_says="A topology whose kernel can't be computed is a bad one.",
            code_does=(
                "Its condition number is set to −1, the best there is, and the mark `bad` is "
                "cleared as soon as the length is measured."
            ),
            effect="Such a topology would be rewarded; here it counts as the worst yet.",
            test=(
                "tests/papers/test_asvit.py::test_a_kernel_without_numbers_counts_as_the_worst_yet"
            ),
        ),
        Difference(
            id="asvit.d9",
            paper_says="One growing run passes through Small, Base and Large.",
            code_does=(
                "A step adds one layer and at most 20 % of width; from Small to Base one layer is "
                "added and 32 % of width."
            ),
            effect=(
                "The released rule leads neither from Small to Base, as their counts identify "
                "them, nor to exactly Large from Base."
            ),
            test=(
                "tests/papers/test_asvit.py::"
                "test_the_released_rule_does_not_lead_from_one_published_network_to_the_next"
            ),
        ),
    ),
)
