"""The paper FMViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="fmvit",
    name="FMViT",
    title="FMViT: A multiple-frequency mixing Vision Transformer",
    authors="Wei Tan, Yifeng Geng, Xuansong Xie",
    venue="arXiv",
    year=2023,
    idea=(
        "Mix a band that attention blurs with bands that convolutions sharpen, and build it so "
        "that the whole network folds into plain operators."
    ),
    arxiv="2311.05707",
    code="https://github.com/tany0699/FMViT",
    commit="40b6bbf33f8fe44944d41338aed4cf0ab3c47d64",
    licence="Apache-2.0 (README only: no code was released)",
    variants=("r_nano", "r_s"),
    claims=(
        Claim(
            id="fmvit.1",
            statement=(
                "FMViT is 2.5 points more accurate on ImageNet than ResNet-101, at similar latency "
                "in TensorRT."
            ),
            reported="83.3 against 80.8 % top-1",
            kind="out_of_reach",
            needs="the unpublished network, ImageNet-1k, TensorRT",
            command=(
                "none exists: neither code nor weights were released; the procedure is to train "
                "the network under the paper's recipe and time it in TensorRT"
            ),
        ),
        Claim(
            id="fmvit.2",
            statement=(
                "FMViT is as accurate on ImageNet as EfficientNet-B5 and 43 % faster in TensorRT."
            ),
            reported="43 % faster",
            kind="out_of_reach",
            needs="the unpublished network, ImageNet-1k, TensorRT",
            command=(
                "none exists: neither code nor weights were released; the procedure is to time "
                "both networks in TensorRT at equal accuracy"
            ),
        ),
        Claim(
            id="fmvit.3",
            statement=(
                "FMViT is 2.6 points more accurate on ImageNet than MobileOne, at similar latency "
                "in CoreML."
            ),
            reported="78.5 against 75.9 % top-1",
            kind="out_of_reach",
            needs="the unpublished network, ImageNet-1k, an iPhone with CoreML",
            command=(
                "none exists: neither code nor weights were released; the procedure is to time "
                "both networks in CoreML"
            ),
        ),
        Claim(
            id="fmvit.4",
            statement=(
                "One block captures local and global information, which neither attention nor "
                "convolution does alone."
            ),
            reported="stated in the abstract, of blending features of different frequencies",
            kind="miniature",
            # On a scene with one local and one global question, over all seeds, in % right:
            # conv_global: the most that convolution alone gets on the global question;
            # attention_local: the most that attention alone gets on the local one;
            # mixed_local, mixed_global: the least that the block of serial bands gets.
            # Oracles: 100 and 95.3 %; a token's own value alone gives 50 and 69.2 %.
            rule=(
                "supports if conv_global < 75 and attention_local < 60 and mixed_local > 98 and "
                "mixed_global > 93.3; contradicts if mixed_local < 75 or mixed_global < 75"
            ),
        ),
        Claim(
            id="fmvit.5",
            statement=(
                "More bands, in proportions, are better than the two serial bands of the lineage "
                "(Next-ViT)."
            ),
            reported="the point of 'multiple-frequency'; the paper's tables were not at hand",
            kind="miniature",
            # least, most: of (three bands − two serial bands) over the seeds, in points of the mean
            # of the three questions, at equal width; headroom: oracle − serial pair, the same mean,
            # the largest over seeds. Room was asked for after a first measurement, where the pair
            # had reached the oracle: without it neither verdict is fair.
            rule=(
                "supports if least > 2 and headroom > 2; contradicts if most < 1 and headroom > 2"
            ),
        ),
        Claim(
            id="fmvit.6",
            statement=(
                "Attention (without positions and pooling) is a low-pass filter in the strong "
                "sense: the higher the frequency, the less comes through."
            ),
            reported="not in the abstract; a strong reading of the literature that it builds on",
            kind="identity",
            # fall: the largest, over sharpnesses, of the gain of softmax attention without
            # positions at frequency 1 less that at 7, on a ring of 16 tokens, each fed alone.
            rule="supports if fall > 1e-12; contradicts if fall <= 1e-12",
        ),
        Claim(
            id="fmvit.7",
            statement=(
                "In trained networks attention's features have a smaller share of high frequencies "
                "than what enters it, and convolution's do not."
            ),
            reported="the premise, from the literature that the paper builds on",
            kind="miniature",
            # attention, convolution: share of energy beyond half of Nyquist's frequency in what a
            # path gives, over that in what it is fed; the mean over paths of a recorded net on
            # pictures of clothes.
            rule=(
                "supports if attention < 0.8 and convolution > attention + 0.2; contradicts if "
                "attention > 1 or convolution < attention"
            ),
        ),
        Claim(
            id="fmvit.8",
            statement=(
                "Reparameterisation leaves the function unchanged: branches and norms fold into "
                "one convolution each, also in the mixing block, and the attention."
            ),
            reported="deployment-friendly design; no deviation given",
            kind="identity",
            # error: the largest ‖folded − train form‖ / ‖train form‖ over units, blocks, networks.
            rule="supports if error < 1e-5; contradicts if error >= 1e-5",
        ),
        Claim(
            id="fmvit.9",
            statement="The deployment form is faster than the training form.",
            reported="motivation of the design, timed in TensorRT and CoreML",
            kind="miniature",
            # slowest: median time of the folded network over that of the train form, the larger of
            # batches 1 and 8; spread: the sum of both relative interquartile ranges.
            rule="supports if slowest < 1 - spread; contradicts if slowest > 1 + spread",
        ),
        Claim(
            id="fmvit.10",
            statement=(
                "In one block the wiring decides: a convolution that reads what attention gave "
                "learns to combine near and far, one beside it does not."
            ),
            reported="not in the abstract; the lineage (Next-ViT) is wired in series",
            kind="miniature",
            # On the question that needs near and far at once, in % right: serial_both: the least
            # over seeds of two serial bands; parallel_both: the most of two parallel ones. Written
            # after the numbers, with the thresholds of claim 4, which stood before them.
            rule=(
                "supports if serial_both > 93.3 and parallel_both < 75; "
                "contradicts if parallel_both > 93.3 or serial_both < 75"
            ),
        ),
    ),
    differences=(
        Difference(
            id="fmvit.d1",
            paper_says="The network is available in the repository.",
            code_does="The repository holds a README and a licence, no code and no weights.",
            effect=(
                "Everything built here is a reconstruction from the abstract and from the lineage "
                "(Next-ViT, MobileOne); it is called so and can't be checked."
            ),
            test="tests/papers/test_fmvit.py::test_it_never_looks_like_the_authors_model",
        ),
        Difference(
            id="fmvit.d2",
            paper_says=(
                "gMLP is the paper's name of a convolutional multi-group reparameterisation."
            ),
            code_does="The name is taken by an earlier gated MLP, which is another thing.",
            effect="Readers who look the name up find the wrong layer.",
            test="tests/papers/test_fmvit.py::test_the_name_gmlp_is_not_the_gated_mlp",
        ),
        Difference(
            id="fmvit.d3",
            paper_says="Keys and values are pooled in space (Next-ViT, the lineage).",
            code_does=(
                "The lineage's code pools the flattened sequence: runs of s² tokens along a row, "
                "not s × s squares."
            ),
            effect="The reconstruction pools squares, and so departs from the lineage where s > 1.",
            test="tests/bases/test_nextvit.py::test_keys_are_means_of_runs_along_a_row",
        ),
    ),
)
