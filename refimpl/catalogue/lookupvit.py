"""The paper LookupViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="lookupvit",
    name="LookupViT",
    title="LookupViT: Compressing visual information to a limited number of tokens",
    authors="Rajat Koner, Gagan Jain, Prateek Jain, Volker Tresp, Sujoy Paul",
    venue="ECCV",
    year=2024,
    idea=(
        "Think on a few compressed tokens; let them look things up in the full set, and write back "
        "to it through the same scores."
    ),
    arxiv="2407.12753",
    variants=("tiny", "small", "base", "large"),
    kernels=("scatter_attention",),
    claims=(
        Claim(
            id="lookupvit.1",
            statement="At equal size LookupViT reduces the FLOPs of ViT by a factor of two.",
            reported="2× fewer FLOPs",
            kind="identity",
            rule=(
                "supports if least >= 1.9; contradicts if least < 1.5; where least is the smaller "
                "of ViT-Base's multiply-adds over LookupViT-Base's with 25 tokens at 224 pixels "
                "and with 100 at 384"
            ),
        ),
        Claim(
            id="lookupvit.2",
            statement="Accuracy is kept or improved at half of the FLOPs: a label of the image.",
            reported="equal or better accuracy in three domains",
            kind="miniature",
            rule=(
                "supports if most_behind <= 1 and share <= 50; contradicts if least_behind > 1; "
                "where behind is by how many points LookupViT stays behind ViT in the game with "
                "noise of 0.6, over starts (on clean scenes both are always right), share the % of "
                "ViT's multiply-adds"
            ),
        ),
        Claim(
            id="lookupvit.3",
            statement="Fewer FLOPs are less time.",
            reported="implied: the abstract counts FLOPs",
            kind="miniature",
            rule=(
                "supports if most <= 0.8; contradicts if least >= 1; where least and most are the "
                "ends of the middle half of LookupViT-Small's time over ViT-Small's in five "
                "rounds, the lower and the higher of 224 and 384 pixels, one image, one CPU thread"
            ),
        ),
        Claim(
            id="lookupvit.4",
            statement=(
                "One trained model serves several numbers of compressed tokens, nearly as well as "
                "a model trained for each."
            ),
            reported="one model, several token counts",
            kind="miniature",
            rule=(
                "supports if most_behind <= 2; contradicts if least_behind > 4; where behind is by "
                "how many points the one model stays behind each trained for one number, digits, "
                "means of the starts, the largest and the smallest over numbers"
            ),
        ),
        Claim(
            id="lookupvit.5",
            statement="LookupViT is more robust than ViT to corrupted images.",
            reported="up to 4 % better on ImageNet-C, -R, -A, -O",
            kind="miniature",
            rule=(
                "supports if least_lead > 2; contradicts if most_lead < -2; where lead is in "
                "points before ViT in the game, over starts and over noise of 0.6 and 1.0"
            ),
        ),
        Claim(
            id="lookupvit.6",
            statement="Compressed tokens look at the informative places of an image.",
            reported="mechanism of the method; the paper's figures were not available to us",
            kind="miniature",
            rule=(
                "supports if least > 10; contradicts if most < 2; where least and most are how "
                "many times an even look's weight the marked token gets in the block that looks "
                "there most, over starts"
            ),
        ),
        Claim(
            id="lookupvit.7",
            statement="Without writing back to the lookup tokens accuracy falls: one label.",
            reported="mechanism of the method; the paper's tables were not available to us",
            kind="miniature",
            rule=(
                "supports if least_loss > 2; contradicts if most_loss < 0.5; where loss is in "
                "points without the scatter, over starts, in the game and on digits"
            ),
        ),
        Claim(
            id="lookupvit.8",
            statement="Without writing back accuracy falls: an answer of every lookup token.",
            reported="mechanism of the method; the paper's tables were not available to us",
            kind="miniature",
            rule=(
                "supports if least_loss > 2 and most_without < 15; contradicts if most_loss < 0.5; "
                "where loss is in points without the scatter, over starts, most_without the best "
                "% without it (chance: 12.5)"
            ),
        ),
        Claim(
            id="lookupvit.9",
            statement=(
                "The block uses standard high-level operators only: matrix products, softmax, "
                "normalisation."
            ),
            reported="stated in the abstract",
            kind="identity",
            rule=(
                "supports if unusual == 0; contradicts otherwise; where unusual is the number of "
                "kinds of operators in a block besides matrix products, softmax, normalisation, "
                "GELU, sums, products and reshaping"
            ),
        ),
        Claim(
            id="lookupvit.10",
            statement=(
                "Accuracy is kept or raised on ImageNet-1K and -21K, Kinetics-400, "
                "Something-Something v2 and COCO captions."
            ),
            reported="equal or better at 2× fewer FLOPs",
            kind="out_of_reach",
            needs="the unpublished code and weights, the data sets, accelerators",
            command=(
                "none exists: no official code was found; train ViT-B/16 and LookupViT-B/16 under "
                "one recipe and compare"
            ),
        ),
    ),
    differences=(
        Difference(
            id="lookupvit.d1",
            paper_says="The abstract states fewer FLOPs.",
            code_does=(
                "From the block's layout, LookupViT-B has more parameters than ViT-B (19 D² a "
                "block against 12 D²: 134 M against 87 M)."
            ),
            effect=(
                "Cheaper to run, not smaller; this rests on our reading of the block, as no "
                "official code exists."
            ),
            test="tests/papers/test_lookupvit.py::test_the_block_has_more_weights_than_vit_s",
        ),
        Difference(
            id="lookupvit.d2",
            paper_says="The scores of the gathering step are used again for writing back.",
            code_does=(
                "Re-implementations normalise them anew over the other axis, or use the old "
                "probabilities transposed."
            ),
            effect=(
                "Rows of the second form do not sum to one. Both are offered; which is the "
                "authors' is unknown."
            ),
            test="tests/papers/test_lookupvit.py::test_the_transposed_weights_do_not_sum_to_one",
        ),
        Difference(
            id="lookupvit.d3",
            paper_says="Fewer tokens cost less.",
            code_does="With many compressed tokens the block costs more than ViT's.",
            effect="At 196 tokens and width 768 the break-even lies near 105 compressed tokens.",
            test=(
                "tests/papers/test_lookupvit.py::"
                "test_too_many_compressed_tokens_cost_more_than_they_save"
            ),
        ),
        Difference(
            id="lookupvit.d4",
            paper_says="Compressed tokens are classified (our reading).",
            code_does=(
                "The last block's scatter and light MLP then change nothing; a re-implementation "
                "keeps them and adds the mean of the lookup tokens before the classifier."
            ),
            effect=(
                "Here they are left out, or, with pool='both', used: parts without a gradient "
                "would stop distributed training."
            ),
            test=("tests/papers/test_lookupvit.py::test_features_head_gradients_and_fused_form"),
        ),
    ),
)
