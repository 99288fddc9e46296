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
            statement="At equal size LookupViT needs half of the multiply-adds of ViT.",
            reported="2× fewer FLOPs",
            kind="identity",
        ),
        Claim(
            id="lookupvit.2",
            statement=(
                "One trained model serves several numbers of compressed tokens, nearly as well as "
                "a model trained for each."
            ),
            reported="one model, several token counts",
            kind="miniature",
        ),
        Claim(
            id="lookupvit.3",
            statement=(
                "The block uses standard high-level operators only: matrix products, softmax, "
                "normalisation."
            ),
            reported="stated in the abstract",
            kind="identity",
        ),
        Claim(
            id="lookupvit.4",
            statement="LookupViT is more robust to corrupted images than ViT.",
            reported="up to 4 % better on ImageNet-C, -R, -A, -O",
            kind="miniature",
        ),
        Claim(
            id="lookupvit.5",
            statement="Compressed tokens look at the informative places of an image.",
            reported="mechanism of the method; the paper's figures were not available to us",
            kind="miniature",
        ),
        Claim(
            id="lookupvit.6",
            statement="Without writing back to the lookup tokens accuracy falls.",
            reported="mechanism of the method; the paper's tables were not available to us",
            kind="miniature",
        ),
        Claim(
            id="lookupvit.7",
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
                "block against 12 D²: about 135 M against 86 M)."
            ),
            effect=(
                "Cheaper to run, not smaller; this rests on our reading of the block, as no "
                "official code exists."
            ),
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
        ),
        Difference(
            id="lookupvit.d3",
            paper_says="Fewer tokens cost less.",
            code_does="With many compressed tokens the block costs more than ViT's.",
            effect="At 196 tokens and width 768 the break-even lies near 105 compressed tokens.",
        ),
    ),
)
