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
    claims=(
        Claim(
            id="fmvit.1",
            statement="FMViT is more accurate than ResNet-101 at similar latency.",
            reported="83.3 against 80.8 % top-1 (TensorRT)",
            kind="out_of_reach",
            needs="the unpublished network, ImageNet-1k, TensorRT",
            command=(
                "none exists: neither code nor weights were released; the procedure is to train "
                "the network under the paper's recipe and time it in TensorRT"
            ),
        ),
        Claim(
            id="fmvit.2",
            statement="FMViT equals EfficientNet-B5 in accuracy and is faster.",
            reported="43 % faster (TensorRT)",
            kind="out_of_reach",
            needs="the unpublished network, ImageNet-1k, TensorRT",
            command=(
                "none exists: neither code nor weights were released; the procedure is to time "
                "both networks in TensorRT at equal accuracy"
            ),
        ),
        Claim(
            id="fmvit.3",
            statement="FMViT is more accurate than MobileOne at similar latency on a phone.",
            reported="78.5 against 75.9 % top-1 (CoreML)",
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
                "Attention lowers the share of high spatial frequencies in its features and "
                "convolution does not, so mixing the bands is more accurate than either."
            ),
            reported="stated in the abstract; the paper's tables were not available to us",
            kind="miniature",
        ),
        Claim(
            id="fmvit.5",
            statement=(
                "The training form with parallel branches and its folded deployment form are the "
                "same function."
            ),
            reported="deployment-friendly design; no deviation given",
            kind="identity",
        ),
        Claim(
            id="fmvit.6",
            statement="The deployment form is faster than the training form.",
            reported="motivation of the design, timed in TensorRT and CoreML",
            kind="miniature",
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
        ),
        Difference(
            id="fmvit.d2",
            paper_says=(
                "gMLP is the paper's name of a convolutional multi-group reparameterisation."
            ),
            code_does="The name is taken by an earlier gated MLP, which is another thing.",
            effect="Readers who look the name up find the wrong layer.",
        ),
        Difference(
            id="fmvit.d3",
            paper_says="Keys and values are pooled in space (Next-ViT, the lineage).",
            code_does=(
                "The lineage's code pools the flattened sequence: runs of s² tokens along a row, "
                "not s × s squares."
            ),
            effect=(
                "The reconstruction pools squares; lineage weights load, outputs differ where s > "
                "1."
            ),
        ),
    ),
)
