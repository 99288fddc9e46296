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
    claims=(
        Claim(
            id="asvit.1",
            statement=(
                "Length distortion at initialisation ranks topologies like their trained accuracy."
            ),
            reported="strong Kendall correlation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="asvit.2",
            statement="The score needs no labels, no data and seconds a topology.",
            reported="training-free",
            kind="miniature",
        ),
        Claim(
            id="asvit.3",
            statement=(
                "A policy trained on both scores finds better topologies than random draws of the "
                "same number."
            ),
            reported="seed topology 8,2,3 / 4,1,2 / 4,1,4 / 4,1,6 / 32",
            kind="miniature",
        ),
        Claim(
            id="asvit.4",
            statement="One growing run gives a family with the published sizes.",
            reported="29.0, 52.6 and 88.1 M parameters; 5.3, 8.9 and 22.6 G FLOPs",
            kind="identity",
        ),
        Claim(
            id="asvit.5",
            statement="The family is accurate on ImageNet.",
            reported="81.2, 82.5 and 83.5 % top-1",
            kind="out_of_reach",
            needs="ImageNet-1k and TPUs; the training code was not released",
            command="none exists: train the three genotypes with the DeiT recipe for 300 epochs",
        ),
        Claim(
            id="asvit.6",
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
            id="asvit.7",
            statement=(
                "Coarse tokens early in training save multiply-adds and time at almost equal "
                "accuracy."
            ),
            reported="progressive tokenisation on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="asvit.8",
            statement="As a backbone it is strong in detection.",
            reported="52.7 mAP on COCO",
            kind="out_of_reach",
            needs="COCO, GPUs and weights that were not released",
            command="none exists: neither detection code nor weights were released",
        ),
    ),
    differences=(
        Difference(
            id="asvit.d1",
            paper_says="The Gauss-map length is the length of the curve of unit tangents.",
            code_does="The code differentiates v / ‖v‖ with ‖v‖ held constant.",
            effect="Another quantity than the one in the text; the kept score is not affected.",
        ),
        Difference(
            id="asvit.d2",
            paper_says="Ties in growing are broken in favour of the better score.",
            code_does=(
                "The code takes the smaller value also where larger is better, and looks at the "
                "first two tied candidates only."
            ),
            effect="A tie can go to the worse candidate; reproduced.",
        ),
        Difference(
            id="asvit.d3",
            paper_says="Both scores judge the same network.",
            code_does="Switching normalisation on again re-initialises every weight.",
            effect="Length distortion and kernel see different random weights.",
        ),
        Difference(
            id="asvit.d4",
            paper_says="The models have 29.0, 52.6 and 88.1 M parameters.",
            code_does=(
                "The code leaves the position embedding off, which gives 28.8, 52.3 and 87.6 M."
            ),
            effect="The trained models must have had it: with it all three figures are met.",
        ),
        Difference(
            id="asvit.d5",
            paper_says="Ten points on a circle.",
            code_does="Both ends are sampled.",
            effect="Nine distinct points; one is counted twice.",
        ),
        Difference(
            id="asvit.d6",
            paper_says="Candidates are scored at their size.",
            code_does=(
                "Scores use a proxy of a quarter of the width; the limit on parameters uses the "
                "real one."
            ),
            effect="Order at proxy width decides.",
        ),
        Difference(
            id="asvit.d7",
            paper_says="Progressive tokenisation trains faster.",
            code_does="No code for it was released.",
            effect="Its schedule here is an assumption, and marked so.",
        ),
    ),
)
