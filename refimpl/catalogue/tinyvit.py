"""The paper TinyViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="tinyvit",
    name="TinyViT",
    title="TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
    authors="Kan Wu, Jinnian Zhang, Houwen Peng, Mengchen Liu, Bin Xiao, Jianlong Fu, Lu Yuan",
    venue="ECCV",
    year=2022,
    idea=(
        "Run the large teacher once; store, for each augmented image, a seed and its few largest "
        "probabilities, and let any small student learn from those."
    ),
    arxiv="2207.10666",
    code="https://github.com/microsoft/Cream/tree/main/TinyViT",
    commit="4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9",
    licence="MIT",
    variants=("5m", "11m", "21m", "21m_384", "21m_512"),
    # from ImageNet-22k with the teacher, then fine-tuned on ImageNet-1k
    top1=(("5m", 80.7), ("11m", 83.2), ("21m", 84.8), ("21m_384", 86.2), ("21m_512", 86.5)),
    kernels=("sparse_target_loss",),
    claims=(
        Claim(
            id="tinyvit.1",
            statement=(
                "Sparse labels, the teacher's few largest probabilities with the rest spread "
                "evenly, teach as well as all of its probabilities."
            ),
            reported="K = 100 of 21,841 classes",
            kind="miniature",
            # loss: points of accuracy by which sparse labels are worse than dense ones, mean over
            # the starts; the worst of all K and both temperatures whose kept mass is 0.95 or more.
            rule="supports if loss < 1; contradicts if loss > 3",
        ),
        Claim(
            id="tinyvit.2",
            statement="Records of a seed and K probabilities need little disk.",
            reported="16 GB for ImageNet-1k × 300 epochs, 481 GB for ImageNet-22k × 90 epochs",
            kind="identity",
            # small, large: GiB of 1,281,167 × 300 records with K = 10, and of 14,197,122 × 90 with
            # K = 100, rounded
            rule=(
                "supports if small == 16 and large == 481; "
                "contradicts if small != 16 or large != 481"
            ),
        ),
        Claim(
            id="tinyvit.3",
            statement=(
                "The label must belong to the same augmented view: fresh views under the old "
                "labels are worse."
            ),
            reported="reason for storing the seed; no figure of its own",
            kind="miniature",
            # least, most: points of accuracy by which replayed views are better than fresh ones
            # under the same records (temperature 1, K = 10), the smallest and largest of the starts
            rule="supports if least > 1; contradicts if most <= 0",
        ),
        Claim(
            id="tinyvit.4",
            statement=(
                "Distillation in pretraining transfers knowledge: a small student learns more from "
                "the teacher's stored labels than from hard labels in the same number of steps."
            ),
            reported=(
                "5M 80.7 % with the teacher's labels of ImageNet-22k, 79.1 % from scratch on "
                "ImageNet-1k; 21M 84.8 % and 83.1 % (data and teacher differ)"
            ),
            kind="miniature",
            # least, most: points of accuracy by which K = 10 is better than hard labels after the
            # longest training shown, the smallest and largest of the starts
            rule="supports if least > 0.5; contradicts if most <= 0",
        ),
        Claim(
            id="tinyvit.5",
            statement=(
                "TinyViT-21M equals Swin-B pretrained on ImageNet-21k with 4.2 times fewer "
                "parameters and, at 512 pixels, is slightly better than Swin-L with 11 % of its."
            ),
            reported="84.8 % and 86.5 % top-1",
            kind="out_of_reach",
            needs="ImageNet-1k and a GPU; ImageNet-22k and 32 GPUs for training",
            command=(
                "evaluate tiny_vit_21m_22kto1k_distill.pth and "
                "tiny_vit_21m_22kto1k_512_distill.pth as the official TinyViT/docs/EVALUATION.md "
                "describes"
            ),
        ),
        Claim(
            id="tinyvit.6",
            statement=(
                "Small students come from shrinking a larger model under limits on parameters and "
                "throughput."
            ),
            reported="constrained local search on ImageNet",
            kind="out_of_reach",
            needs="ImageNet-1k, and GPUs to train candidates; the search's code was not released",
            command="none exists: `refimpl.papers.tinyvit.contract` with a training as its score",
        ),
        Claim(
            id="tinyvit.7",
            statement=(
                "Labels stored in advance save a training step the teacher's memory and its "
                "computation."
            ),
            reported="no figure in the abstract",
            kind="miniature",
            # least, most: time of a step with a live teacher over that of a step from stored
            # records, seed replay and reading included, the smallest and largest of the rounds
            rule="supports if least > 1.1; contradicts if most < 1",
        ),
        Claim(
            id="tinyvit.8",
            statement="The models have the published sizes.",
            reported="5.4, 11 and 21 M parameters; 1.3, 2.0 and 4.3 G multiply-adds",
            kind="identity",
            # wrong: of the six numbers, how many differ when rounded as published
            rule="supports if wrong == 0; contradicts if wrong > 0",
        ),
        Claim(
            id="tinyvit.9",
            statement=(
                "The teacher's labels let small models profit from massive pretraining data, on "
                "which they otherwise saturate."
            ),
            reported="gains of pretraining on ImageNet-22k with and without the teacher",
            kind="out_of_reach",
            needs="ImageNet-22k, a CLIP-ViT-L/14 fine-tuned on it, and 32 GPUs",
            command=(
                "official TinyViT/docs/TRAINING.md: save the teacher's labels, pretrain on "
                "ImageNet-22k with and without them, fine-tune on ImageNet-1k"
            ),
        ),
        Claim(
            id="tinyvit.10",
            statement="TinyViT transfers well to downstream tasks.",
            reported="linear probes, few-shot classification and COCO detection",
            kind="out_of_reach",
            needs="COCO, the few-shot data sets and a GPU",
            command="fine-tune tiny_vit_21m_22k_distill.pth as a detector's backbone on COCO",
        ),
    ),
    differences=(
        Difference(
            id="tinyvit.d1",
            paper_says="The rest of the probability is spread over the other classes.",
            code_does=(
                "Probabilities are stored as float16; their sum can pass 1, and the rest becomes "
                "negative (−4e-7)."
            ),
            effect=(
                "Harmless in a cross-entropy, fatal in a loss that takes the logarithm of the "
                "target."
            ),
            test=(
                "tests/bases/test_teacher_records.py::"
                "test_rounding_can_push_the_kept_mass_above_one"
            ),
        ),
        Difference(
            id="tinyvit.d2",
            paper_says="Sparse logits are stored.",
            code_does="Probabilities are stored, after the softmax.",
            effect=(
                "Another temperature can't be had afterwards: the tail's share would change too, "
                "and is not known."
            ),
            test="tests/bases/test_teacher_records.py::test_records_hold_probabilities",
        ),
        Difference(
            id="tinyvit.d3",
            paper_says="16 GB for ImageNet-1k over 300 epochs.",
            code_does="The default K is 100; the figure fits K = 10.",
            effect="With the default, the records of ImageNet-1k take 145 GiB.",
            test="tests/bases/test_teacher_records.py::test_published_sizes",
        ),
        Difference(
            id="tinyvit.d4",
            paper_says="CutMix mixes labels by the area of the box.",
            code_does=(
                "In the paired mode the target keeps the ratio drawn, not the one after the box is "
                "cut at the border."
            ),
            effect="Only a printed accuracy is affected: the teacher labels the mixed image.",
            test=(
                "tests/bases/test_teacher_records.py::test_a_box_at_the_border_keeps_the_ratio_drawn"
            ),
        ),
        Difference(
            id="tinyvit.d5",
            paper_says="Images are padded for windows.",
            code_does=(
                "Tokens are padded before the layer normalisation, and padded keys are not masked."
            ),
            effect="Padding takes part in attention with the value of the norm's bias.",
            test=(
                "tests/papers/test_tinyvit.py::test_padding_takes_part_with_the_bias_of_the_norm"
            ),
        ),
        Difference(
            id="tinyvit.d6",
            paper_says="Class indices are stored.",
            code_does="They are 16-bit signed integers.",
            effect="At most 32,768 classes.",
            test="tests/bases/test_teacher_records.py::test_bad_sizes_are_named",
        ),
        Difference(
            id="tinyvit.d7",
            paper_says="The bias of attention is a parameter.",
            code_does="A gathered copy is cached when `eval()` is called.",
            effect=(
                "Weights loaded into a model that is already in evaluation mode keep the old bias."
            ),
            test="tests/papers/test_tinyvit.py::test_no_stale_bias_after_loading",
        ),
        Difference(
            id="tinyvit.d8",
            paper_says="Mixed images have mixed labels.",
            code_does=(
                "In the paired mode images are mixed within pairs, labels with those of the "
                "mirrored batch."
            ),
            effect="Only a printed accuracy is affected: the teacher labels the mixed image.",
            test=(
                "tests/papers/test_tinyvit.py::"
                "test_recorded_targets_are_mixed_with_those_of_the_mirrored_batch"
            ),
        ),
    ),
)
