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
    variants=("base_fast", "base_faster", "large_fast", "large_faster"),
    kernels=("select_bridge_scatter",),
    claims=(
        Claim(
            id="toc3d.1",
            statement="Detection stays nearly as good, with up to 30 % less time.",
            reported=(
                "nuScenes, ViT-L, 800×320: NDS 61.2 → 60.9 (Fast) → 60.5 (Faster); 317 → 281 → 237 "
                "ms"
            ),
            kind="out_of_reach",
            needs="nuScenes, the released checkpoints, a GPU as the authors timed on",
            command=(
                "evaluate the four released models with the official repository's test script on "
                "the nuScenes validation split"
            ),
        ),
        Claim(
            id="toc3d.2",
            statement=(
                "History object queries are a foreground prior of high quality: better than a "
                "random choice and than the image alone (tested on objects seen before)."
            ),
            reported="ablation on nuScenes",
            kind="miniature",
            rule=(
                "supports if least_lead > 2; contradicts if most_lead < 0; where lead is in points "
                "right, known objects of the game, history with both motions before the better of "
                "random and image, a tenth of the tokens kept, over starts"
            ),
        ),
        Claim(
            id="toc3d.3",
            statement="Modelling the motion of the car and of the objects improves the choice.",
            reported="ablation on nuScenes",
            kind="miniature",
            rule=(
                "supports if least_step > 2; contradicts if most_step < 0; where step is in points "
                "right, known objects of the game, of the car's motion over none and of the "
                "objects' over the car's, a tenth of the tokens kept, over starts"
            ),
        ),
        Claim(
            id="toc3d.4",
            statement=(
                "Redundant tokens that follow a representative are closer to the full computation "
                "than tokens that are only passed on."
            ),
            reported="ablation on nuScenes",
            kind="miniature",
            rule=(
                "supports if most_error < 0.95; contradicts if least_error > 1; where error is the "
                "distance of the free path's change to the full block's, over the length of the "
                "latter (1: passed on), over starts, blocks and shares kept"
            ),
        ),
        Claim(
            id="toc3d.5",
            statement="The saving grows with resolution.",
            reported="ViT-L's time: −12.8 and −27.9 % at 800×320, −21.1 and −35.3 % at 1600×800",
            kind="identity",
            rule=(
                "supports if least_growth > 1; contradicts otherwise; where growth is by how many "
                "points the share of multiply-adds saved is larger at 1600×800, Fast and Faster"
            ),
        ),
        Claim(
            id="toc3d.6",
            statement="Quality is nearly kept at the ratios of the paper: in the game.",
            reported="NDS −0.3 (Fast) and −0.7 (Faster) of 61.2",
            kind="miniature",
            rule=(
                "supports if least_share > 0.95; contradicts if least_share < 0.8; where share is "
                "right answers over the dense net's, known and new objects apart, image and "
                "history choose, 30 and 50 % kept, over starts"
            ),
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
            test="tests/papers/test_toc3d.py::test_bridge_prefers_the_least_salient",
        ),
        Difference(
            id="toc3d.d2",
            paper_says="A share ρ of the tokens is kept.",
            code_does="Padded tokens of a window compete and count.",
            effect=(
                "Windows at the border keep all real tokens plus zeros; the saving is smaller than "
                "ρ suggests."
            ),
            test="tests/papers/test_toc3d.py::test_padding_competes_and_counts",
        ),
        Difference(
            id="toc3d.d3",
            paper_says="Scores are deterministic at test time.",
            code_does="The soft mask is drawn with Gumbel noise in evaluation too.",
            effect="Inference is random there; here noise is drawn in training alone.",
            test="tests/papers/test_toc3d.py::test_mask_is_drawn_in_training_alone",
        ),
        Difference(
            id="toc3d.d4",
            paper_says="History queries carry relative time and pose.",
            code_does="The backbone gets absolute time stamps (about 1.5e9 s) and global poses.",
            effect=(
                "In float32 a time step is 128 s and its sines are noise; all four are aligned "
                "here, with a flag for the code's form."
            ),
            test="tests/papers/test_toc3d.py::test_memory_hands_out_relative_times_and_poses",
        ),
        Difference(
            id="toc3d.d5",
            paper_says="Routed and plain blocks differ in routing only.",
            code_does="Routed blocks pad before the first norm, plain ones after it.",
            effect="They agree only where nothing is padded.",
            test="tests/papers/test_toc3d.py::test_all_kept_is_a_plain_block_where_nothing_is_padded",
        ),
        Difference(
            id="toc3d.d6",
            paper_says="The representative has a position.",
            code_does="Its rotary index is the number of kept tokens.",
            effect="It gets the place of some other token of the window.",
            test="tests/papers/test_toc3d.py::test_bridge_has_the_place_after_the_last_kept_rank",
        ),
        Difference(
            id="toc3d.d7",
            paper_says="Stochastic depth regularises the blocks.",
            code_does="Routed blocks build it and never apply it.",
            effect="No regularisation from the first selector on.",
            test="tests/papers/test_toc3d.py::test_routed_blocks_drop_no_path",
        ),
        Difference(
            id="toc3d.d8",
            paper_says="A new scene starts without history.",
            code_does="The flag of the first sample decides for the batch.",
            effect="Mixed batches get the wrong history there; here every sample has its own flag.",
            test="tests/papers/test_toc3d.py::test_each_sample_decides_for_its_own_history",
        ),
    ),
)
