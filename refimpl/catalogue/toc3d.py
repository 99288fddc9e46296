"""The paper ToC3D: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="toc3d",
    name="ToC3D",
    title="Make Your ViT-based Multi-view 3D Detectors Faster via Token Compression",
    authors=(
        "Dingyuan Zhang, Dingkang Liang, Zichang Tan, Xiaoqing Ye, Cheng Zhang, Jingdong Wang, "
        "Xiang Bai"
    ),
    venue="ECCV",
    year=2024,
    idea=(
        "The objects that a car saw half a second ago tell its cameras which image tokens matter "
        "now; the others take a short cut."
    ),
    arxiv="2409.00633",
    code="https://github.com/DYZhang09/ToC3D",
    commit="32ae96126ed6ed2d2dcba4af668846572b347d81",
    licence="Apache-2.0",
    claims=(
        Claim(
            id="toc3d.1",
            statement="Detection stays nearly as good at clearly less time.",
            reported=(
                "nuScenes, ViT-L, 800×320: NDS 61.2 → 60.9 (Fast) → 60.5 (Faster); 317 → 281 → 237 "
                "ms"
            ),
            kind="out_of_reach",
            needs="nuScenes, the released checkpoints, eight GPUs for training",
            command=(
                "evaluate the four released models with the official repository's test script on "
                "the nuScenes validation split"
            ),
        ),
        Claim(
            id="toc3d.2",
            statement=(
                "Queries from past frames find foreground tokens better than a random or a fixed "
                "choice."
            ),
            reported="ablation on nuScenes",
            kind="miniature",
        ),
        Claim(
            id="toc3d.3",
            statement="Modelling the motion of the car and of the objects improves the choice.",
            reported="ablation on nuScenes",
            kind="miniature",
        ),
        Claim(
            id="toc3d.4",
            statement=(
                "Redundant tokens that follow a representative are closer to the full computation "
                "than tokens that are only passed on."
            ),
            reported="ablation on nuScenes",
            kind="miniature",
        ),
        Claim(
            id="toc3d.5",
            statement="The saving grows with resolution.",
            reported="ViT-L backbone, 1600×800: 1222 → 965 → 791 ms",
            kind="identity",
        ),
        Claim(
            id="toc3d.6",
            statement=(
                "The backbone needs about 17 % (Fast) and 34 % (Faster) fewer multiply-adds a view."
            ),
            reported="time of the backbone: −12.8 and −28.0 %",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="toc3d.d1",
            paper_says="A representative averages the redundant tokens by their scores.",
            code_does="Scores are log-probabilities, negative, and are divided by their sum.",
            effect=(
                "The least salient tokens get the largest weight; reproduced, the exponential is "
                "an exercise."
            ),
        ),
        Difference(
            id="toc3d.d2",
            paper_says="A share ρ of the tokens is kept.",
            code_does="Padded tokens of a window compete and count.",
            effect=(
                "Windows at the border keep all real tokens plus zeros; the saving is smaller than "
                "ρ suggests."
            ),
        ),
        Difference(
            id="toc3d.d3",
            paper_says="Scores are deterministic at test time.",
            code_does="The soft mask is drawn with Gumbel noise in evaluation too.",
            effect="Inference is random.",
        ),
        Difference(
            id="toc3d.d4",
            paper_says="History queries carry relative time and pose.",
            code_does="The backbone gets absolute time stamps (about 1.5e9 s) and global poses.",
            effect=(
                "In float32 a time step is 128 s and its sines are noise; all four are aligned "
                "here, with a flag for the code's form."
            ),
        ),
        Difference(
            id="toc3d.d5",
            paper_says="Routed and plain blocks differ in routing only.",
            code_does="Routed blocks pad before the first norm, plain ones after it.",
            effect="They agree only where nothing is padded.",
        ),
        Difference(
            id="toc3d.d6",
            paper_says="The representative has a position.",
            code_does="Its rotary index is the number of kept tokens.",
            effect="It gets the place of some other token of the window.",
        ),
        Difference(
            id="toc3d.d7",
            paper_says="Stochastic depth regularises the blocks.",
            code_does="Routed blocks build it and never apply it.",
            effect="No regularisation from the first selector on.",
        ),
        Difference(
            id="toc3d.d8",
            paper_says="A new scene starts without history.",
            code_does="The flag of the first sample decides for the batch.",
            effect="Mixed batches get the wrong history.",
        ),
    ),
)
