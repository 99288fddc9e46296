"""The paper EfficientVMamba.

Its claims with their rules, and where its code departs from its text.
"""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientvmamba",
    name="EfficientVMamba",
    title="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
    authors="Xiaohuan Pei, Tao Huang, Chang Xu",
    venue="arXiv",
    year=2024,
    idea=(
        "Scan four interleaved quarter-grids once each, not the full grid in four directions, and "
        "put a convolution beside the scan for what is near."
    ),
    arxiv="2403.09977",
    code="https://github.com/TerryPei/EfficientVMamba",
    commit="0bc5ee288b402d648641f5494b73e9d152e0c62b",
    licence="Apache-2.0 (README; no licence file)",
    variants=("tiny", "small", "base"),
    top1=(("tiny", 76.5), ("small", 78.7), ("base", 81.8)),
    kernels=("selective_scan",),
    claims=(
        Claim(
            id="efficientvmamba.1",
            statement=(
                "EfficientVMamba-S is 5.6 points more accurate on ImageNet than Vim-Ti at fewer "
                "FLOPs."
            ),
            reported="78.7 % top-1 at 1.3 G against 73.1 % at 1.5 G",
            kind="out_of_reach",
            needs="ImageNet-1k and sixteen GPUs; the CUDA selective scan",
            command=(
                "python -m torch.distributed.launch --nnodes=1 --node_rank=0 --nproc_per_node=8 "
                "main.py --cfg configs/vssm/vssm_efficient_small.yaml --batch-size 128 --data-path "
                "/dataset/ImageNet2012 --output /tmp  # official repository; the file's width must "
                "first be set to 64, see the differences"
            ),
        ),
        Claim(
            id="efficientvmamba.2",
            statement=(
                "The atrous scan visits each token once where four-way scanning visits it four "
                "times, at a cost linear in the number of tokens."
            ),
            reported="N tokens in all against 4N, with skipping step 2",
            kind="identity",
            rule=(
                "Supported when on even maps every pixel is visited once, four-way scanning makes "
                "four times as many visits, and visits equal pixels; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvmamba.3",
            statement=(
                "One atrous-scan layer has a global receptive field: every pixel can depend on "
                "every other."
            ),
            reported="global receptive field, effective receptive field plots",
            kind="miniature",
            rule=(
                "Supported when the middle pixel's output depends on every pixel of a 12 × 12 map "
                "after one layer; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvmamba.4",
            statement=(
                "A convolution branch beside the scan, and squeeze-excite gates on both, raise "
                "accuracy."
            ),
            reported="gains in the paper's ImageNet ablation",
            kind="miniature",
            rule=(
                "Supported when the branch and the gates each raise accuracy by more than 0.02 in "
                "both seeds; contradicted when each lowers it by as much in both; else "
                "inconclusive."
            ),
        ),
        Claim(
            id="efficientvmamba.5",
            statement=(
                "State-space blocks in the early stages and inverted residuals in the late ones "
                "are better than the reverse."
            ),
            reported="gain in the paper's ImageNet ablation",
            kind="out_of_reach",
            needs="ImageNet-1k and sixteen GPUs",
            command=(
                "train the model with the two kinds of block exchanged between stages 1–2 and 3–4 "
                "under the official recipe and compare top-1 after 300 epochs"
            ),
        ),
        Claim(
            id="efficientvmamba.6",
            statement=(
                "The backbones are competitive in object detection on COCO and segmentation on "
                "ADE20K."
            ),
            reported="tables in the paper",
            kind="out_of_reach",
            needs="COCO, ADE20K and GPUs",
            command=(
                "fine-tune the released backbones with the detection and segmentation "
                "configurations that the official README describes"
            ),
        ),
        Claim(
            id="efficientvmamba.7",
            statement="The three models have the published parameter counts and FLOPs.",
            reported="6, 11 and 33 M parameters; 0.8, 1.3 and 4.0 G FLOPs",
            kind="identity",
            rule=(
                "Supported when all parameters lie within 0.05 M and all FLOPs within 0.05 G of "
                "the published ones; contradicted otherwise."
            ),
        ),
        Claim(
            id="efficientvmamba.8",
            statement=(
                "A layer with the atrous scan takes less time than the same layer with four-way "
                "scanning."
            ),
            reported="cheaper scan; no time for one layer given",
            kind="miniature",
            rule=(
                "Supported when four-way scanning takes more than 1.1 times as long at every map "
                "size; contradicted otherwise."
            ),
        ),
    ),
    differences=(
        Difference(
            id="efficientvmamba.d1",
            paper_says="The small model has 11 M parameters.",
            code_does=(
                "The configuration file `vssm_efficient_small.yaml` sets width 96, which gives "
                "24.8 M; the released log and weights have width 64."
            ),
            effect=(
                "Training from the file as it stands makes another model; built here with width 64."
            ),
            test=(
                "tests/papers/test_efficientvmamba.py::test_small_is_the_released_model_and_not_the_configuration_file"
            ),
        ),
        Difference(
            id="efficientvmamba.d2",
            paper_says="The skipping step p is a parameter of the scan.",
            code_does=(
                "Scan and merge only use offsets 0 and 1 of each step, and the merged map is "
                "uninitialised memory elsewhere."
            ),
            effect="Any step but 2 gives undefined values; here another step is refused.",
            test=(
                "tests/papers/test_efficientvmamba.py::test_only_a_step_of_two_visits_every_pixel"
            ),
        ),
        Difference(
            id="efficientvmamba.d3",
            paper_says="The atrous scan keeps a global receptive field.",
            code_does="Four forward scans, one for each parity class, with no backward scan.",
            effect=(
                "Without its 3×3 convolution a scan layer lets a pixel see only earlier pixels of "
                "its own class, at most a quarter of the map; convolutions, depth and the "
                "squeeze-excite mean must supply the rest."
            ),
            test=(
                "tests/papers/test_efficientvmamba.py::test_a_scan_alone_sees_earlier_pixels_of_its_parity_class"
            ),
        ),
        Difference(
            id="efficientvmamba.d4",
            paper_says="FLOPs in one column.",
            code_does=(
                "The scan is counted as nine operations for each token, channel and state, "
                "everything else as multiply-adds."
            ),
            effect=(
                "The two kinds of operation add up to the published figure only under this "
                "convention."
            ),
            test=(
                "tests/papers/test_efficientvmamba.py::test_published_flops_add_multiply_adds_and_scan_operations"
            ),
        ),
        Difference(
            id="efficientvmamba.d5",
            paper_says="The zero-order hold discretises A and B.",
            code_does="A is discretised exactly, B by its first-order term Δ·B, as in Mamba.",
            effect="The error grows with Δ·|A|; the chapter shows both.",
            test=(
                "tests/papers/test_efficientvmamba.py::test_first_order_input_step_is_not_the_exact_hold"
            ),
        ),
    ),
)
