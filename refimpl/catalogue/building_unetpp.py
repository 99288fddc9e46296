"""The paper Buildings with U-Net++.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="building_unetpp",
    name="Buildings with U-Net++",
    title=(
        "Performance Analysis of Various EfficientNet Based U-Net++ Architecture for Automatic "
        "Building Extraction from High Resolution Satellite Images"
    ),
    authors=(
        "Tareque Bashar Ovi, Nomaiya Bashree, Protik Mukherjee, Shakil Mosharrof, Masuma Anjum "
        "Parthima"
    ),
    venue="arXiv",
    year=2023,
    idea=(
        "Find roofs from above with a nested decoder on an EfficientNet, and learn how much a "
        "score depends on its definition."
    ),
    arxiv="2310.06847",
    variants=(
        *("b0", "b1", "b2", "b3", "b4"),
        *("b0_supervised", "b1_supervised", "b2_supervised", "b3_supervised", "b4_supervised"),
        *("unet_b0", "unet_b1", "unet_b2", "unet_b3", "unet_b4"),
    ),
    kernels=("upsample_concat_conv",),
    claims=(
        Claim(
            id="building_unetpp.1",
            statement=(
                "With EfficientNet-B4 the mean accuracy, the mean IoU and the mean precision are "
                "92.23, 88.32 and 93.2 %: numbers that can hold together under some of the usual "
                "definitions."
            ),
            reported="92.23, 88.32 and 93.2 % on Massachusetts Buildings",
            kind="identity",
            # readings: of the twelve definitions (accuracy of pixels or mean of class recalls; IoU
            # of buildings, mean of classes or micro; precision of buildings or mean of classes)
            # those under which one table of pixels with less than a quarter of buildings, as an
            # aerial image has, gives all three numbers.
            rule=(
                "supports if readings > 0; contradicts otherwise; where readings is the number of "
                "definitions, of twelve, under which a table with under 25 % buildings exists"
            ),
        ),
        Claim(
            id="building_unetpp.2",
            statement=(
                "The nested network significantly outperforms earlier methods: here U-Nets on the "
                "same encoder with as many multiply-adds."
            ),
            reported="significantly better than earlier methods",
            kind="miniature",
            # Positive control: U-Net beats no skips by 0.05 IoU in every start, else not tested.
            rule=(
                "supports if worst > spread; contradicts if best < 0; where worst and best are the "
                "least and the greatest gain in IoU over starts, against the better of a wider and "
                "a deeper U-Net, and spread the largest range over starts of the three"
            ),
        ),
        Claim(
            id="building_unetpp.3",
            statement="Deep supervision improves the model's sensitivity to buildings.",
            reported="deep supervision and redesigned skips improve sensitivity",
            kind="miniature",
            rule=(
                "supports if worst > spread; contradicts if best < 0; where worst and best are the "
                "least and the greatest gain in IoU of the last head over starts, against the same "
                "network without supervision, and spread the larger range over starts"
            ),
        ),
        Claim(
            id="building_unetpp.4",
            statement=(
                "Larger EfficientNets extract more relevant features: of B0 to B4, B4 is best."
            ),
            reported="best of five encoders: B4",
            kind="miniature",
            rule="B0 and B4, trained for equal steps. With one encoder: not tested here.",
        ),
        Claim(
            id="building_unetpp.5",
            statement=(
                "A network with deep supervision can be pruned at test time: an earlier head is "
                "faster at a small loss."
            ),
            reported="stated in the papers on U-Net++",
            kind="miniature",
            rule=(
                "supports if lost < 0.01 and work <= 0.7; contradicts if lost > 0.03; where lost "
                "is the mean over starts of the last head's IoU less the second's, and work the "
                "second's share of the decoder's multiply-adds"
            ),
        ),
        Claim(
            id="building_unetpp.6",
            statement="The scores hold on Massachusetts Buildings.",
            reported="92.23 % mean accuracy, 88.32 % mean IoU, 93.2 % mean precision",
            kind="out_of_reach",
            needs="Massachusetts Buildings (151 tiles) and a GPU",
            command=(
                "none exists: no official code was found; train segmentation_models.pytorch's "
                "UnetPlusPlus('efficientnet-b4') on the tiles at 256 pixels"
            ),
        ),
    ),
    differences=(
        Difference(
            id="building_unetpp.d1",
            paper_says="Mean accuracy 92.23 %, mean IoU 88.32 % and mean precision 93.2 %.",
            code_does=(
                "Of one table of pixels, accuracy by pixel allows a mean IoU of at most 85.6 %, "
                "and three means over classes have no table."
            ),
            effect=(
                "Accuracy must be the mean of class recalls and precision that of buildings: then "
                "all three fit. An inference of ours, not the authors' statement."
            ),
            test="tests/bases/test_segmentation.py::test_published_scores_need_the_mean_of_class_recalls",
        ),
        Difference(
            id="building_unetpp.d2",
            paper_says="U-Net++ with deep supervision.",
            code_does=(
                "The common library has one head, on an extra full-resolution block that the "
                "U-Net++ paper does not have."
            ),
            effect="Heads for the four depths are added here, in models of their own.",
            test="tests/papers/test_building_unetpp.py::test_there_is_no_head_on_the_reference_s_finest_nodes",
        ),
        Difference(
            id="building_unetpp.d3",
            paper_says="The encoder pads as TensorFlow does.",
            code_does="The padding is fixed when the network is built, for its nominal image size.",
            effect="At 256 pixels the maps of B1–B4 are misaligned; reproduced.",
            test="tests/papers/test_building_unetpp.py::test_paddings_are_those_of_the_nominal_size",
        ),
        Difference(
            id="building_unetpp.d4",
            paper_says="Nodes X(i, j) of the U-Net++ paper.",
            code_does="The library numbers them the other way round.",
            effect="A figure read with the library's names shows another node.",
            test="tests/papers/test_building_unetpp.py::test_the_library_counts_nodes_the_other_way",
        ),
        Difference(
            id="building_unetpp.d5",
            paper_says="Dice loss of an image.",
            code_does=(
                "Sums run over the whole batch, and a batch without positive pixels has loss 0."
            ),
            effect="Not the mean of the images' losses.",
            test="tests/bases/test_segmentation.py::test_dice_of_a_batch_is_not_the_mean_of_its_images",
        ),
        Difference(
            id="building_unetpp.d6",
            paper_says="Skips take the encoder's last map of each size.",
            code_does="With B0 the map at stride 16 leaves after the first of three blocks.",
            effect="Two blocks of B0 are seen by the deepest map alone; B1–B4 are as expected.",
            test="tests/papers/test_building_unetpp.py::test_b0_alone_hands_over_its_map_at_stride_16_early",
        ),
    ),
)
