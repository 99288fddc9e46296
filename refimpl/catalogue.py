"""The papers as data: what each says, what is claimed, where its code departs from its text. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["identity", "miniature", "out_of_reach"]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be tested. `reported` is the paper's own figure, `command` what would test it where it is out of reach here."""

    id: str  # "<stem>.<number>"
    statement: str
    reported: str
    kind: Kind
    needs: str = ""  # out_of_reach: the hardware or data that a laptop lacks
    command: str = ""  # out_of_reach: what would test it


@dataclass(frozen=True)
class Difference:
    """Where the official code departs from the paper, or from sense. `test` is the id of a test that shows it."""

    id: str  # "<stem>.d<number>"
    paper_says: str
    code_does: str
    effect: str
    test: str = ""  # "tests/papers/test_<stem>.py::test_name"


@dataclass(frozen=True)
class Paper:
    stem: str
    name: str  # short name, "EfficientViT"
    title: str
    authors: str
    venue: str
    year: int
    part: str  # key of PARTS
    idea: str  # one line
    arxiv: str = ""
    code: str = ""  # repository of the official code, "" where there is none
    commit: str = ""
    licence: str = ""
    variants: tuple[str, ...] = ()  # models that can be created, as in the paper's table
    chapter: bool = False  # the chapter is written
    kernels: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


PARTS: dict[str, str] = {
    "attention": "Attention rebuilt",
    "state_spaces": "State spaces",
    "tokens": "Fewer tokens",
    "bits": "Fewer bits and multiplications",
    "search": "Searching for architectures",
    "learning": "Learning with less",
    "work": "At work",
    "beyond": "Beyond vision",
    "inside": "Seeing inside",
}

# Models that papers start from: prefix of the name -> (module in refimpl.bases, variants).
BASES: dict[str, tuple[str, tuple[str, ...]]] = {}

# The papers in the book's order, part by part. Claims number as the chapters report them; `reported` quotes the paper's figures, never ours.
PAPERS: dict[str, Paper] = {
    paper.stem: paper
    for paper in (
        # ---------------------------------------------------------------- Attention rebuilt
        Paper(
            stem="efficientvit",
            name="EfficientViT",
            title="EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
            authors="Liu, Peng, Zheng, Yang, Hu, Yuan",
            venue="CVPR",
            year=2023,
            part="attention",
            idea="One attention layer between feed-forward layers, its heads fed different channels in a cascade: fewer bytes moved, fewer multiplications, "
            "heads that differ.",
            arxiv="2305.07027",
            code="https://github.com/microsoft/Cream/tree/main/EfficientViT",
            commit="4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9",
            licence="MIT",
            variants=("m0", "m1", "m2", "m3", "m4", "m5"),
            claims=(
                Claim(
                    "efficientvit.1",
                    "The run time of attention is bounded by memory traffic: its element-wise operations and reshapes lie below the machine's ridge point, and "
                    "take a larger share of the time than in a feed-forward layer of equal FLOPs.",
                    "profiles of Swin-T and DeiT-T on a V100: memory-bound operations dominate",
                    "miniature",
                ),
                Claim(
                    "efficientvit.2",
                    "At equal latency, an attention share of 20–40 % of the layers is at least as accurate as the usual 50 %.",
                    "the best share of down-scaled Swin-T and DeiT-T on ImageNet lies at 20–40 %",
                    "miniature",
                ),
                Claim(
                    "efficientvit.3",
                    "Attention maps of the heads of one layer are more alike than those of random queries and keys.",
                    "high average cosine similarity between heads, Swin-T and DeiT-T",
                    "miniature",
                ),
                Claim(
                    "efficientvit.4",
                    "Giving each head its own split of the channels, in a cascade, lowers the similarity between heads.",
                    "lower similarity and higher accuracy than without the cascade, on M4",
                    "miniature",
                ),
                Claim(
                    "efficientvit.5",
                    "M5 is 1.9 points more accurate on ImageNet than MobileNetV3-Large, with more throughput on a GPU and on a CPU.",
                    "77.1 % top-1; +40.4 % throughput on a V100, +45.2 % on a Xeon",
                    "out_of_reach",
                    needs="ImageNet-1k, a V100 and a Xeon server",
                    command="python main.py --eval --model EfficientViT_M5 --resume ./efficientvit_m5.pth --data-path $PATH_TO_IMAGENET && python "
                    "speed_test.py  # official repository, EfficientViT/classification",
                ),
                Claim(
                    "efficientvit.6",
                    "M2 is 1.8 points more accurate on ImageNet than MobileViT-XXS and several times faster.",
                    "70.8 % top-1; 5.8× (GPU), 3.7× (CPU), 7.4× (ONNX) the speed",
                    "out_of_reach",
                    needs="ImageNet-1k, a V100, a Xeon server, ONNX Runtime",
                    command="python main.py --eval --model EfficientViT_M2 --resume ./efficientvit_m2.pth --data-path $PATH_TO_IMAGENET && python "
                    "speed_test.py  # official repository, EfficientViT/classification",
                ),
                Claim(
                    "efficientvit.7",
                    "Folding batch normalisation into the convolutions leaves the function unchanged.",
                    "used for every speed in the paper; no deviation given",
                    "identity",
                ),
                Claim(
                    "efficientvit.8",
                    "With h heads, splitting the channels divides the multiplications of the query, key and value projections by h and leaves the rest of "
                    "attention as it was.",
                    "fewer parameters and FLOPs, from the layer's definition",
                    "identity",
                ),
                Claim(
                    "efficientvit.9",
                    "The six models have the published sizes and grow from M0 to M5 in multiply-adds.",
                    "2.3, 3.0, 4.2, 6.9, 8.8, 12.4 M parameters; 79, 167, 201, 263, 299, 522 M multiply-adds",
                    "identity",
                ),
            ),
            differences=(
                Difference(
                    "efficientvit.d1",
                    "Training starts from a learning rate of 1e-3 at batch 2048.",
                    "The script multiplies its base rate by batch / 512.",
                    "The peak learning rate of the released recipe is 4e-3.",
                ),
                Difference(
                    "efficientvit.d2",
                    "The relative position bias is a parameter of the attention layer.",
                    "In evaluation mode a gathered copy of the bias is cached when `eval()` is called.",
                    "Weights loaded into a model that is already in evaluation mode keep the old bias until `eval()` is called again.",
                ),
            ),
        ),
        # ---------------------------------------------------------------- State spaces
        Paper(
            stem="efficientvim",
            name="EfficientViM",
            title="EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
            authors="Sanghyeok Lee, Joonmyung Choi, Hyunwoo J. Kim",
            venue="CVPR",
            year=2025,
            part="state_spaces",
            idea="Linear maps commute with the read-out of a state-space layer, so its expensive projections can act on a few hidden states and not on every "
            "token.",
            arxiv="2411.15241",
            code="https://github.com/mlvlab/EfficientViM",
            commit="304340cb9c339b61669250d058525c9cdadd5e93",
            licence="MIT",
            claims=(
                Claim(
                    "efficientvim.1",
                    "EfficientViM is up to 0.7 points more accurate on ImageNet than SHViT at higher speed.",
                    "72.9, 75.4, 77.6, 79.4 % top-1 (M1–M4, 300 epochs), 73.5 % (M1, 450 epochs); 7 % faster than SHViT-S2",
                    "out_of_reach",
                    needs="ImageNet-1k and a GPU for the accuracies and speeds, eight GPUs for training",
                    command="evaluate the official checkpoints (EfficientViM_M1_e300.pth … EfficientViM_M4_e450.pth, linked from the official README) on the "
                    "ImageNet validation set with the official repository's classification folder, and time both families on one GPU",
                ),
                Claim(
                    "efficientvim.2",
                    "A hidden-state mixer costs fewer multiply-adds than a state-space-duality layer: the term L·D² becomes N·D², with L tokens, N states and "
                    "D channels.",
                    "O(LD²) against O(ND² + LND)",
                    "identity",
                ),
                Claim(
                    "efficientvim.3",
                    "In a state-space-duality layer the linear projections of the tokens take most of the time.",
                    "profile on a GPU: the linear projections are the bottleneck",
                    "miniature",
                ),
                Claim(
                    "efficientvim.4",
                    "Without the gate, mixing channels on the hidden states equals mixing them on the tokens; with the gate the two functions differ.",
                    "derivation in the paper",
                    "identity",
                ),
                Claim(
                    "efficientvim.5",
                    "Fusing the hidden states of all stages in the head raises accuracy.",
                    "gain in the paper's ImageNet ablation",
                    "miniature",
                ),
                Claim(
                    "efficientvim.6",
                    "One head whose states weight the tokens each in their own way does the work of many heads: the weight maps of its states differ.",
                    "same accuracy as multi-head at higher throughput",
                    "miniature",
                ),
                Claim(
                    "efficientvim.7",
                    "Distillation from RegNetY-160 raises the accuracy of every model.",
                    "72.9 → 74.6, 75.4 → 76.7, 77.6 → 79.1, 79.4 → 80.7 % top-1, 300 epochs",
                    "out_of_reach",
                    needs="ImageNet-1k, the RegNetY-160 teacher, eight GPUs",
                    command="evaluate the official checkpoints EfficientViM_M{1..4}_e300.pth and EfficientViM_M{1..4}_dist.pth on the ImageNet validation set "
                    "with the official repository's classification folder",
                ),
                Claim(
                    "efficientvim.8",
                    "The layer is faster than the same layer with its projections on the tokens, and the ratio grows with the number of tokens.",
                    "higher throughput than multi-head and non-causal state-space duality on a GPU",
                    "miniature",
                ),
                Claim(
                    "efficientvim.9",
                    "The four models have the published multiply-adds.",
                    "239, 355, 656 and 1111 M",
                    "identity",
                ),
            ),
            differences=(
                Difference(
                    "efficientvim.d1",
                    "A learned parameter A per state sets the importance of tokens together with Δ.",
                    "A is added to the logits of a softmax over tokens and does not depend on the token.",
                    "A cancels: its gradient is rounding noise and no value of it changes the output. It is kept so that official weights load.",
                ),
                Difference(
                    "efficientvim.d2",
                    "Sub-layers ask for a batch-normalisation scale that starts at zero.",
                    "A final initialisation pass sets every batch-normalisation scale to 1.",
                    "No sub-layer starts as zero; each is blended in with a learned weight that starts at one half.",
                ),
                Difference(
                    "efficientvim.d3",
                    "The layer mixes a feature map of any height and width.",
                    "The classification code takes the side as the integer square root of the number of tokens.",
                    "Images that are not square fail in the official classifier; here the grid is passed.",
                ),
                Difference(
                    "efficientvim.d4",
                    "The tables give FLOPs.",
                    "The counter counts multiply-adds.",
                    "A reader who compares with papers that count two operations a multiply-add is off by a factor of two.",
                ),
            ),
        ),
        Paper(
            stem="efficientvmamba",
            name="EfficientVMamba",
            title="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
            authors="Xiaohuan Pei, Tao Huang, Chang Xu",
            venue="arXiv",
            year=2024,
            part="state_spaces",
            idea="Scan four interleaved quarter-grids once each, not the full grid in four directions, and put a convolution beside the scan for what is near.",
            arxiv="2403.09977",
            code="https://github.com/TerryPei/EfficientVMamba",
            commit="0bc5ee288b402d648641f5494b73e9d152e0c62b",
            licence="Apache-2.0 (README; no licence file)",
            claims=(
                Claim(
                    "efficientvmamba.1",
                    "EfficientVMamba-S is 5.6 points more accurate on ImageNet than Vim-Ti at fewer FLOPs.",
                    "78.7 % top-1 at 1.3 G against 73.1 % at 1.5 G",
                    "out_of_reach",
                    needs="ImageNet-1k and sixteen GPUs; the CUDA selective scan",
                    command="python -m torch.distributed.launch --nnodes=1 --node_rank=0 --nproc_per_node=8 main.py --cfg "
                    "configs/vssm/vssm_efficient_small.yaml --batch-size 128 --data-path /dataset/ImageNet2012 --output /tmp  # official repository; the "
                    "file's width must first be set to 64, see the differences",
                ),
                Claim(
                    "efficientvmamba.2",
                    "The atrous scan visits each token once where four-way scanning visits it four times, at a cost linear in the number of tokens.",
                    "N tokens in all against 4N, with skipping step 2",
                    "identity",
                ),
                Claim(
                    "efficientvmamba.3",
                    "One atrous-scan layer has a global receptive field: every pixel can depend on every other.",
                    "global receptive field, effective receptive field plots",
                    "miniature",
                ),
                Claim(
                    "efficientvmamba.4",
                    "A convolution branch beside the scan, and squeeze-excite gates on both, raise accuracy.",
                    "gains in the paper's ImageNet ablation",
                    "miniature",
                ),
                Claim(
                    "efficientvmamba.5",
                    "State-space blocks in the early stages and inverted residuals in the late ones are better than the reverse.",
                    "gain in the paper's ImageNet ablation",
                    "out_of_reach",
                    needs="ImageNet-1k and sixteen GPUs",
                    command="train the model with the two kinds of block exchanged between stages 1–2 and 3–4 under the official recipe and compare top-1 "
                    "after 300 epochs",
                ),
                Claim(
                    "efficientvmamba.6",
                    "The backbones are competitive in object detection on COCO and segmentation on ADE20K.",
                    "tables in the paper",
                    "out_of_reach",
                    needs="COCO, ADE20K and GPUs",
                    command="fine-tune the released backbones with the detection and segmentation configurations that the official README describes",
                ),
                Claim(
                    "efficientvmamba.7",
                    "The three models have the published parameter counts and FLOPs.",
                    "6, 11 and 33 M parameters; 0.8, 1.3 and 4.0 G FLOPs",
                    "identity",
                ),
                Claim(
                    "efficientvmamba.8",
                    "A layer with the atrous scan takes less time than the same layer with four-way scanning.",
                    "cheaper scan; no time for one layer given",
                    "miniature",
                ),
            ),
            differences=(
                Difference(
                    "efficientvmamba.d1",
                    "The small model has 11 M parameters.",
                    "The configuration file `vssm_efficient_small.yaml` sets width 96, which gives 24.8 M; the released log and weights have width 64.",
                    "Training from the file as it stands makes another model; built here with width 64.",
                ),
                Difference(
                    "efficientvmamba.d2",
                    "The skipping step p is a parameter of the scan.",
                    "Scan and merge only use offsets 0 and 1 of each step, and the merged map is uninitialised memory elsewhere.",
                    "Any step but 2 gives undefined values; here another step is refused.",
                ),
                Difference(
                    "efficientvmamba.d3",
                    "The atrous scan keeps a global receptive field.",
                    "Four forward scans, one for each parity class, with no backward scan.",
                    "Without its 3×3 convolution a scan layer lets a pixel see only earlier pixels of its own class, at most a quarter of the map; "
                    "convolutions, depth and the squeeze-excite mean must supply the rest.",
                ),
                Difference(
                    "efficientvmamba.d4",
                    "State size, rank of Δ and step are set by the configuration.",
                    "The builder passes them under names that fall into ignored keyword arguments.",
                    "The defaults apply; their numbers happen to be the published ones.",
                ),
                Difference(
                    "efficientvmamba.d5",
                    "One recipe trains all models.",
                    "The released logs and the configuration files disagree (learning rate 2e-3 against 5e-4, mixup 0.2 against 0.8, and more).",
                    "The published accuracies belong to the logs' recipe.",
                ),
                Difference(
                    "efficientvmamba.d6",
                    "FLOPs in one column.",
                    "The scan is counted as nine operations for each token, channel and state, everything else as multiply-adds.",
                    "The two kinds of operation add up to the published figure only under this convention.",
                ),
                Difference(
                    "efficientvmamba.d7",
                    "The zero-order hold discretises A and B.",
                    "A is discretised exactly, B by its first-order term Δ·B, as in Mamba.",
                    "The error grows with Δ·|A|; the chapter shows both.",
                ),
            ),
        ),
        # ---------------------------------------------------------------- Beyond vision
        Paper(
            stem="enamel",
            name="ENAMEL",
            title="How Efficient is LLM-Generated Code? A Rigorous & High-Standard Benchmark",
            authors="Qiu, Zeng, Ezick, Lott, Tong",
            venue="ICLR",
            year=2025,
            part="beyond",
            idea="Score a program by how far it stays below a time limit set by an expert's solution, and estimate the best of k samples without bias and with "
            "little variance.",
            arxiv="2406.06647",
            code="https://github.com/q-rz/enamel",
            commit="b97da79c779b98eaa8b2a1b17a13d2eb0b6d16a5",
            licence="Apache-2.0",
            claims=(
                Claim(
                    "enamel.1",
                    "eff@k with scores of 0 and 1 equals pass@k for every number of samples, of correct samples and of draws.",
                    "eff@k generalises pass@k",
                    "identity",
                ),
                Claim(
                    "enamel.2",
                    "The estimator of eff@k is unbiased: it equals the mean of the maximum over all subsets of k samples.",
                    "derived in the paper",
                    "identity",
                ),
                Claim(
                    "enamel.3",
                    "Rao–Blackwellisation never raises the variance: the estimator's is at most k/n of that of one random subset.",
                    "derived in the paper",
                    "identity",
                ),
                Claim(
                    "enamel.4",
                    "The recurrence for the weights is numerically stable where factorials overflow.",
                    "numerically stable implementation, no error given",
                    "identity",
                ),
                Claim(
                    "enamel.5",
                    "Scoring a timed-out level as 0 orders solutions by their complexity, where averaging finished runs alone reverses the order.",
                    "right-censored execution time is accounted for",
                    "miniature",
                ),
                Claim(
                    "enamel.6",
                    "Code written by large language models is far from an expert's efficiency.",
                    "GPT-4: eff@1 0.454 with pass@1 0.831; GPT-4 Turbo 0.470 with 0.796",
                    "out_of_reach",
                    needs="the 142 problems, generated tests and language-model samples; Linux, hours of undisturbed CPU time",
                    command="python3 demo.py --load_name gpt-4_temp_0.0 --tests cache/eval~tests.pkl  # official repository, in a container: it runs untrusted "
                    "code and unpickles its tests",
                ),
                Claim(
                    "enamel.7",
                    "Stronger test generators reject wrong solutions that weak tests accept.",
                    "lower pass@1 than with HumanEval's own tests",
                    "miniature",
                ),
            ),
            differences=(
                Difference(
                    "enamel.d1",
                    "The efficiency score is compared with an expert's solution.",
                    "The score is not clipped at 1.",
                    "A solution faster than the reference scores above 1; kept, and said to the reader.",
                ),
                Difference(
                    "enamel.d2",
                    "`reliability_guard` runs before the candidate's code.",
                    "It saves destructive functions and restores them later, but never replaces them in between.",
                    "Nothing is disabled. Not reproduced: the runner here is a separate, limited process.",
                ),
                Difference(
                    "enamel.d3",
                    "A run that exceeds its limit is stopped.",
                    "The limit is an alarm signal raised as an exception inside the candidate's process.",
                    "Code that catches every exception in a loop is never stopped; the README admits it.",
                ),
                Difference(
                    "enamel.d4",
                    "The run time of the candidate is measured.",
                    "The candidate shares its process with the timer.",
                    "Code that replaces `time.time` sets its own score.",
                ),
                Difference(
                    "enamel.d5",
                    "The time limit follows from the reference solution.",
                    "Reference times are measured anew for each problem on the present machine.",
                    "The limit moves with the machine's load; problems must not be evaluated in parallel.",
                ),
            ),
        ),
        Paper(
            stem="leanvec",
            name="LeanVec",
            title="LeanVec: Search your vectors faster by making them fit",
            authors="Tepper, Bhati, Aguerrebere, Hildebrand, Willke",
            venue="arXiv",
            year=2023,
            part="beyond",
            idea="Search in a low-dimensional projection learned from data and queries, with 8-bit codes, then re-rank the few candidates at full dimension.",
            arxiv="2312.16335",
            code="https://github.com/IntelLabs/ScalableVectorSearch",
            commit="4c6ba382ab8ec5acd09924e725cb6b6c1ede977a",
            licence="AGPL-3.0",
            claims=(
                Claim(
                    "leanvec.1",
                    "A linear projection to d ≪ D dimensions with quantised vectors and re-ranking keeps the recall of full-dimensional search.",
                    "high recall at a fraction of the memory traffic",
                    "miniature",
                ),
                Claim(
                    "leanvec.2",
                    "Where queries are distributed unlike the data, the query-aware projection gives higher recall than PCA at the same dimension.",
                    "clear gains on cross-modal data sets",
                    "miniature",
                ),
                Claim(
                    "leanvec.3",
                    "Where queries are distributed like the data, the query-aware projection is not worse than PCA.",
                    "competitive on in-distribution data sets",
                    "miniature",
                ),
                Claim(
                    "leanvec.4",
                    "Search throughput rises and index construction gets faster against uncompressed search at equal recall.",
                    "up to 3.7× search throughput, up to 4.9× faster construction",
                    "out_of_reach",
                    needs="a server with over a hundred threads; collections of 1 to 100 million embeddings",
                    command="build and search a LeanVec and a float16 index of the `scalable-vs` package at equal recall on the paper's data sets and compare "
                    "queries per second",
                ),
                Claim(
                    "leanvec.5",
                    "A lower loss of the projection gives better search.",
                    "the loss is the objective of the method",
                    "miniature",
                ),
                Claim(
                    "leanvec.6",
                    "A distance in d dimensions on 8-bit codes reads about 4·D/d times fewer bytes than one in D dimensions on float32.",
                    "from the layout of the vectors",
                    "identity",
                ),
            ),
            differences=(
                Difference(
                    "leanvec.d1",
                    "The projections have orthonormal columns.",
                    "Frank–Wolfe works on the relaxed set and nothing projects its result back.",
                    "The columns of the returned matrices are orthonormal up to about 0.1 only.",
                ),
                Difference(
                    "leanvec.d2",
                    "The query projection A stands before the data projection B.",
                    "The function returns (B, A): data first, query second.",
                    "Swapped matrices still run, and search badly.",
                ),
                Difference(
                    "leanvec.d3",
                    "Frank–Wolfe starts at A = B = 0.",
                    "The first gradient of A is exactly zero, so the first step takes the singular vectors of a zero matrix.",
                    "A starts as the first columns of the identity, up to sign: whatever LAPACK returns; the loss is then far above PCA's.",
                ),
                Difference(
                    "leanvec.d4",
                    "An eigenvector search is the second optimiser of the paper.",
                    "Neither the repository nor the package holds it.",
                    "The version here rests on a summary of the paper; which normaliser stands at which end of β is our convention.",
                ),
                Difference(
                    "leanvec.d5",
                    "Scale and bias of a quantised vector are float16 (header of the official code).",
                    "The published package reconstructs with float32 constants.",
                    "With float16 constants about 3 % of 8-bit codes differ by one; float32 is used here, float16 is a storage option.",
                ),
                Difference(
                    "leanvec.d6",
                    "The first pass of the graph build is called with α = 1.",
                    "Neighbours are generated with the configured α; only reverse edges use 1.",
                    "The first pass already keeps longer edges.",
                ),
                Difference(
                    "leanvec.d7",
                    "Both projections reduce the same data.",
                    "PCA centres the data, the query-aware projection does not.",
                    "Their losses are comparable only when one says which Gram matrix is meant; graphs under inner product react to the centring.",
                ),
            ),
        ),
        # ---------------------------------------------------------------- Seeing inside
        Paper(
            stem="convit",
            name="ConViT",
            title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
            authors="d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun",
            venue="ICML",
            year=2021,
            part="inside",
            idea="Attention heads that start as the taps of a convolution, with a learned gate through which each head may leave locality behind.",
            arxiv="2103.10697",
            code="https://github.com/facebookresearch/convit",
            commit="0a9340aaf50dd101c2d3766e575f24085afc92ed",
            licence="ambiguous: Apache-2.0 and CC-BY-NC are both stated",
            claims=(
                Claim(
                    "convit.1",
                    "Gated positional self-attention can be initialised as a convolution: with gate 1 and large locality strength each head reads exactly one "
                    "fixed offset.",
                    "exact in the limit, from the paper's derivation",
                    "identity",
                ),
                Claim(
                    "convit.2",
                    "ConViT is more accurate on ImageNet than DeiT at equal size.",
                    "73.1 against 72.2 (Ti), 81.3 against 79.8 (S), 82.4 against 81.8 % top-1 (B)",
                    "out_of_reach",
                    needs="ImageNet-1k; four to sixteen GPUs for training",
                    command="python main.py --eval --model convit_tiny --pretrained --data-path /path/to/imagenet  # official repository; documented result "
                    "73.116 % top-1",
                ),
                Claim(
                    "convit.3",
                    "ConViT learns from fewer images: its lead over a plain transformer is positive and shrinks as the training set grows.",
                    "S on 5, 10, 30, 50, 100 % of ImageNet: 47.9, 59.6, 73.7, 78.2, 81.4 against DeiT's 34.7, 48.0, 66.1, 74.6, 79.9 % top-1",
                    "miniature",
                ),
                Claim(
                    "convit.4",
                    "During training gates fall and attention becomes less local, more so in late layers.",
                    "curves of gates and non-locality over 300 epochs",
                    "miniature",
                ),
                Claim(
                    "convit.5",
                    "Plain attention, too, learns locality in its early layers.",
                    "non-locality of DeiT's early layers falls during training",
                    "miniature",
                ),
                Claim(
                    "convit.6",
                    "Both the convolutional start and the trainable gate contribute.",
                    "100 ImageNet classes, all data and 10 %: ConViT 82.2 and 59.7, gates frozen 78.6 and 54.3, DeiT 79.1 and 47.8 % top-1",
                    "miniature",
                ),
                Claim(
                    "convit.7",
                    "The models have the published sizes.",
                    "5.7, 10, 27.8, 49.0, 86.5 and 153 M parameters (Ti, Ti+, S, S+, B, B+)",
                    "identity",
                ),
            ),
            differences=(
                Difference(
                    "convit.d1",
                    "Non-locality is measured on the attention of each layer.",
                    "The training log feeds raw patch embeddings to every layer: no position embedding, no norm, no preceding blocks.",
                    "The logged curves are not those of the attention that the network uses; here real activations are used.",
                ),
                Difference(
                    "convit.d2",
                    "The relative features are (‖δ‖², δ₁, δ₂).",
                    "The code stores (δ_column, δ_row, ‖δ‖²).",
                    "Same function; a weight read in the paper's order is misread.",
                ),
                Difference(
                    "convit.d3",
                    "Positional scores have a bias for each head.",
                    "The bias is constant over keys and stands before a softmax.",
                    "It cancels: no effect and no gradient. It is kept so that official weights load.",
                ),
                Difference(
                    "convit.d4",
                    "The mixed attention is renormalised.",
                    "The mix of two softmaxes with weights 1 − σ(λ) and σ(λ) is divided by its sum.",
                    "The sum is 1 already: rounding only.",
                ),
                Difference(
                    "convit.d5",
                    "Positional attention depends on no input.",
                    "It is computed for every image of the batch.",
                    "B times the work and memory for equal numbers; it is also separable into rows and columns, which the code does not use.",
                ),
                Difference(
                    "convit.d6",
                    "Non-locality can be measured for plain attention layers too.",
                    "The helper of the plain layer moves distances to CUDA by name.",
                    "It fails on a CPU.",
                ),
            ),
        ),
        Paper(
            stem="dvt",
            name="DVT",
            title="Denoising Vision Transformers",
            authors="Jiawei Yang, Katie Z Luo, Jiefeng Li, Congyue Deng, Leonidas Guibas, Dilip Krishnan, Kilian Q. Weinberger, Yonglong Tian, Yue Wang",
            venue="ECCV",
            year=2024,
            part="inside",
            idea="A feature map is content plus a pattern tied to position; views of one image at different places separate the two, and one block learns to "
            "do it in one pass.",
            arxiv="2401.02957",
            code="https://github.com/Jiawei-Yang/Denoising-ViT",
            commit="82704df9ba253c9696dcf3a8239434e3cbacf19d",
            licence="MIT",
            claims=(
                Claim(
                    "dvt.1",
                    "Feature maps of vision transformers carry an artifact tied to position: position explains more of their variance, and can be read off "
                    "them better, than in a network without position embedding.",
                    "visible in DINO, DINOv2, CLIP, MAE, DeiT-III and others",
                    "miniature",
                ),
                Claim(
                    "dvt.2",
                    "The position embedding at the input is the cause: a network trained without one shows no such artifact.",
                    "vision transformers retrained without position embedding",
                    "miniature",
                ),
                Claim(
                    "dvt.3",
                    "The feature map of an all-zero image already shows the pattern: it agrees with the mean map over many images.",
                    "shown in figures",
                    "miniature",
                ),
                Claim(
                    "dvt.4",
                    "For each image, fitting content F, shared artifact G and residual over many views separates them: position can be read from F far less "
                    "than from the raw features.",
                    "768 views and 25 000 steps an image",
                    "miniature",
                ),
                Claim(
                    "dvt.5",
                    "One transformer block with a position embedding learns the cleaning from a set of images and does it on images it has not seen.",
                    "trained on 10 000 images of VOC, applied to others",
                    "miniature",
                ),
                Claim(
                    "dvt.6",
                    "Denoised features are better for dense prediction.",
                    "up to +3.84 mIoU; DINOv2-base on VOC 83.52 → 84.92 mIoU, but MAE-base on ADE20K 23.84 → 23.25",
                    "miniature",
                ),
                Claim(
                    "dvt.7",
                    "The gains hold for DINOv2-base on VOC, ADE20K and NYU depth with linear probes.",
                    "VOC 83.52 → 84.92 mIoU, ADE20K 47.02 → 48.54 mIoU, NYU RMSE 0.3965 → 0.3811",
                    "out_of_reach",
                    needs="pretrained DINOv2 weights, PASCAL VOC, ADE20K, NYU depth and a GPU",
                    command="evaluate the denoisers of the hub repository jjiaweiyang/DVT with the official repository's sample_scripts in its mmsegmentation "
                    "environment",
                ),
            ),
            differences=(
                Difference(
                    "dvt.d1",
                    "Every patch of a view is placed where it lies in the whole image.",
                    "The first and last patches are placed on the edges of the crop, not on patch centres.",
                    "Coordinates are off by up to half a patch, most for small grids; kept, centres are an exercise.",
                ),
                Difference(
                    "dvt.d2",
                    "Adam with weight decay 1e-5 fits each image.",
                    "The loss is multiplied by 2¹⁰ by a gradient scaler, which nothing unscales before the step.",
                    "Adam does not notice, but its L2 weight decay becomes 1024 times weaker; the scaler is left out here.",
                ),
                Difference(
                    "dvt.d3",
                    "The warm-up length of stage 2 is an argument.",
                    "The argument is ignored; 15 % of the steps are used.",
                    "Changing the option changes nothing.",
                ),
                Difference(
                    "dvt.d4",
                    "The learning rate is scaled linearly with the batch (help text).",
                    "It is scaled with the square root.",
                    "At batch 128 the rate is 1.41e-4, not 1e-4.",
                ),
                Difference(
                    "dvt.d5",
                    "The second phase starts at half of the steps.",
                    "The test is `step > N // 2`.",
                    "Step N/2 itself still trains the artifact map G.",
                ),
                Difference(
                    "dvt.d6",
                    "One map per image is the denoised feature map.",
                    "Two are stored: `denoised_feats` is F on the full-image grid, `denoised_features` is y − G − h; stage 2 learns F.",
                    "The two differ: y − G − h still holds what the fitted G missed.",
                ),
                Difference(
                    "dvt.d7",
                    "The neural field has 16 levels.",
                    "The class default is 10, the command's 16.",
                    "Building the field from the class gives another capacity.",
                ),
            ),
        ),
    )
}
