"""The paper DVT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="dvt",
    name="DVT",
    title="Denoising Vision Transformers",
    authors=(
        "Jiawei Yang, Katie Z Luo, Jiefeng Li, Congyue Deng, Leonidas Guibas, Dilip Krishnan, "
        "Kilian Q. Weinberger, Yonglong Tian, Yue Wang"
    ),
    venue="ECCV",
    year=2024,
    idea=(
        "A feature map is content plus a pattern tied to position; views of one image at different "
        "places separate the two, and one block learns to do it in one pass."
    ),
    arxiv="2401.02957",
    code="https://github.com/Jiawei-Yang/Denoising-ViT",
    commit="82704df9ba253c9696dcf3a8239434e3cbacf19d",
    licence="MIT",
    variants=("denoiser_small", "denoiser_base", "denoiser_large", "denoiser_giant"),
    kernels=("grid_encode",),
    claims=(
        Claim(
            id="dvt.1",
            statement=(
                "Feature maps of vision transformers carry an artifact tied to position: position "
                "explains more of their variance, and can be read off them better, than in a "
                "network without position embedding."
            ),
            reported="visible in DINO, DINOv2, CLIP, MAE, DeiT-III and others",
            kind="miniature",
            rule=(
                "Supported when in each of three seeds R² of position is higher by 0.3, and η² "
                "higher, with an embedding of sines and cosines than without any; else "
                "inconclusive."
            ),
        ),
        Claim(
            id="dvt.2",
            statement=(
                "The position embedding at the input is the cause: a network trained without one "
                "shows no such artifact."
            ),
            reported="vision transformers retrained without position embedding",
            kind="miniature",
            rule=(
                "Supported when without an embedding R² of position stays below 0.1 in three seeds "
                "and the features of a blank image differ by less than 1e-4; contradicted "
                "otherwise."
            ),
        ),
        Claim(
            id="dvt.3",
            statement=(
                "The feature map of an all-zero image already shows the pattern: it agrees with "
                "the mean map over many images."
            ),
            reported="shown in figures",
            kind="miniature",
            rule=(
                "Supported when the cosine of the blank image's map and the mean map, both "
                "centred, is above 0.5 in each of three seeds; else inconclusive."
            ),
        ),
        Claim(
            id="dvt.4",
            statement=(
                "For each image, fitting content F, shared artifact G and residual over many views "
                "separates them: position can be read from F far less than from the raw features."
            ),
            reported="768 views and 25 000 steps an image",
            kind="miniature",
            rule=(
                "Supported when R² of position falls by more than 0.3 from raw features to F in "
                "each of three seeds; contradicted otherwise."
            ),
        ),
        Claim(
            id="dvt.5",
            statement=(
                "One transformer block with a position embedding learns the cleaning from a set of "
                "images and does it on images it has not seen."
            ),
            reported="trained on 10 000 images of VOC, applied to others",
            kind="miniature",
            rule=(
                "Supported when on unseen images the denoised features show less of the position "
                "than raw ones, by both measures and in each of three seeds; else inconclusive."
            ),
        ),
        Claim(
            id="dvt.6",
            statement="Denoised features are better for dense prediction.",
            reported=(
                "up to +3.84 mIoU; DINOv2-base on VOC 83.52 → 84.92 mIoU, but MAE-base on ADE20K "
                "23.84 → 23.25"
            ),
            kind="miniature",
            rule=(
                "Supported when in each of three seeds F beats its control without G, and the "
                "denoiser the raw features, in mIoU; contradicted when none of these differences "
                "is positive; else inconclusive."
            ),
        ),
        Claim(
            id="dvt.7",
            statement=(
                "The gains hold for DINOv2-base on VOC, ADE20K and NYU depth with linear probes."
            ),
            reported="VOC 83.52 → 84.92 mIoU, ADE20K 47.02 → 48.54 mIoU, NYU RMSE 0.3965 → 0.3811",
            kind="out_of_reach",
            needs="pretrained DINOv2 weights, PASCAL VOC, ADE20K, NYU depth and a GPU",
            command=(
                "evaluate the denoisers of the hub repository jjiaweiyang/DVT with the official "
                "repository's sample_scripts in its mmsegmentation environment"
            ),
        ),
    ),
    differences=(
        Difference(
            id="dvt.d1",
            paper_says="Every patch of a view is placed where it lies in the whole image.",
            code_does=(
                "The first and last patches are placed on the edges of the crop, not on patch "
                "centres."
            ),
            effect=(
                "Coordinates are off by up to half a patch, most for small grids; kept, centres "
                "are an exercise."
            ),
            test="tests/papers/test_dvt.py::test_first_and_last_patch_sit_on_the_edges_of_the_crop",
        ),
        Difference(
            id="dvt.d2",
            paper_says="Adam with weight decay 1e-5 fits each image.",
            code_does=(
                "The loss is multiplied by 2¹⁰ by a gradient scaler, which nothing unscales before "
                "the step."
            ),
            effect=(
                "Adam does not notice, but its L2 weight decay becomes 1024 times weaker; the "
                "scaler is left out here."
            ),
            test="tests/papers/test_dvt.py::test_a_scaled_loss_weakens_adam_s_weight_decay",
        ),
        Difference(
            id="dvt.d3",
            paper_says="The warm-up length of stage 2 is an argument.",
            code_does="The argument is ignored; 15 % of the steps are used.",
            effect="Changing the option changes nothing.",
            test="tests/papers/test_dvt.py::test_square_root_scaling_of_the_learning_rate",
        ),
        Difference(
            id="dvt.d4",
            paper_says="The learning rate is scaled linearly with the batch (help text).",
            code_does="It is scaled with the square root.",
            effect="At batch 128 the rate is 1.41e-4, not 1e-4.",
            test="tests/papers/test_dvt.py::test_square_root_scaling_of_the_learning_rate",
        ),
        Difference(
            id="dvt.d5",
            paper_says="The second phase starts at half of the steps.",
            code_does="The test is `step > N // 2`.",
            effect="Step N/2 itself still trains the artifact map G.",
            test="tests/papers/test_dvt.py::test_stage_1_separates_place_from_position",
        ),
        Difference(
            id="dvt.d6",
            paper_says="One map per image is the denoised feature map.",
            code_does=(
                "Two are stored: `denoised_feats` is F on the full-image grid, `denoised_features` "
                "is y − G − h; stage 2 learns F."
            ),
            effect="The two differ: y − G − h still holds what the fitted G missed.",
            test="tests/papers/test_dvt.py::test_what_is_kept_is_the_field_not_the_difference",
        ),
    ),
)
