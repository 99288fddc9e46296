"""The paper LeanVec: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="leanvec",
    name="LeanVec",
    title="LeanVec: Search your vectors faster by making them fit",
    authors="Mariano Tepper, Ishwar Singh Bhati, Cecilia Aguerrebere, Mark Hildebrand, Ted Willke",
    venue="TMLR",
    year=2024,
    idea=(
        "Search in a low-dimensional projection learned from data and queries, with 8-bit codes, "
        "then re-rank the few candidates at full dimension."
    ),
    arxiv="2312.16335",
    code="https://github.com/IntelLabs/ScalableVectorSearch",
    commit="4c6ba382ab8ec5acd09924e725cb6b6c1ede977a",
    licence="AGPL-3.0",
    kernels=("lvq_inner_product",),
    claims=(
        Claim(
            id="leanvec.1",
            statement=(
                "A linear projection to d ≪ D dimensions with quantised vectors and re-ranking "
                "keeps the recall of full-dimensional search."
            ),
            reported="high recall at a fraction of the memory traffic",
            kind="miniature",
            rule=(
                "Supported when recall@10 stays above 0.95 in both data sets with a third or less "
                "of the numbers; else inconclusive."
            ),
        ),
        Claim(
            id="leanvec.2",
            statement=(
                "Where queries are distributed unlike the data, the query-aware projection gives "
                "higher recall than PCA at the same dimension."
            ),
            reported="clear gains on cross-modal data sets",
            kind="miniature",
            rule=(
                "Supported when the gain over PCA is positive in every seed at 8 and 16 of 192 "
                "numbers; contradicted when it is negative in all; else inconclusive."
            ),
        ),
        Claim(
            id="leanvec.3",
            statement=(
                "Where queries are distributed like the data, the query-aware projection is not "
                "worse than PCA."
            ),
            reported="competitive on in-distribution data sets",
            kind="miniature",
            rule=(
                "Supported when the query-aware projection is never more than 0.02 of recall below "
                "PCA; contradicted when it always is; else inconclusive."
            ),
        ),
        Claim(
            id="leanvec.4",
            statement=(
                "Search and index construction are faster than the state of the art at equal "
                "recall."
            ),
            reported="up to 3.7× search throughput, up to 4.9× faster construction",
            kind="out_of_reach",
            needs=(
                "a server with over a hundred threads; collections of 1 to 100 million embeddings"
            ),
            command=(
                "build and search a LeanVec and a float16 index of the `scalable-vs` package at "
                "equal recall on the paper's data sets and compare queries per second"
            ),
        ),
        Claim(
            id="leanvec.5",
            statement="A lower loss of the projection gives better search.",
            reported="the loss is the objective of the method",
            kind="miniature",
            rule=(
                "Supported when no data set has less loss together with less recall than PCA; "
                "contradicted otherwise."
            ),
        ),
        Claim(
            id="leanvec.6",
            statement=(
                "A distance in d dimensions on 8-bit codes reads about 4·D/d times fewer bytes "
                "than one in D dimensions on float32."
            ),
            reported="from the layout of the vectors",
            kind="identity",
            rule=(
                "Supported when a vector takes d + 8 bytes against 4·D, and without the eight "
                "bytes of constants the ratio is exactly 4·D/d; contradicted otherwise."
            ),
        ),
    ),
    differences=(
        Difference(
            id="leanvec.d1",
            paper_says="The projections have orthonormal columns.",
            code_does="Frank–Wolfe works on the relaxed set and nothing projects its result back.",
            effect="The columns of the returned matrices are orthonormal up to about 0.1 only.",
            test=(
                "tests/papers/test_leanvec.py::test_frank_wolfe_returns_data_first_and_is_not_orthonormal"
            ),
        ),
        Difference(
            id="leanvec.d2",
            paper_says="The query projection A stands before the data projection B.",
            code_does="The function returns (B, A): data first, query second.",
            effect="Swapped matrices still run, and search badly.",
            test=(
                "tests/papers/test_leanvec.py::test_frank_wolfe_returns_data_first_and_is_not_orthonormal"
            ),
        ),
        Difference(
            id="leanvec.d3",
            paper_says="Frank–Wolfe starts at A = B = 0.",
            code_does=(
                "The first gradient of A is exactly zero, so the first step takes the singular "
                "vectors of a zero matrix."
            ),
            effect=(
                "A starts as the first columns of the identity, up to sign: whatever LAPACK "
                "returns; the loss is then far above PCA's."
            ),
            test=(
                "tests/papers/test_leanvec.py::test_frank_wolfe_starts_from_the_identity_and_far_above_pca"
            ),
        ),
        Difference(
            id="leanvec.d4",
            paper_says="An eigenvector search is the second optimiser of the paper.",
            code_does="Neither the repository nor the package holds it.",
            effect=(
                "The version here rests on a summary of the paper; which normaliser stands at "
                "which end of β is our convention."
            ),
            test="tests/papers/test_leanvec.py::test_ends_of_the_eigenvector_search",
        ),
        Difference(
            id="leanvec.d5",
            paper_says=(
                "Scale and bias of a quantised vector are float16 (header of the official code)."
            ),
            code_does="The published package reconstructs with float32 constants.",
            effect=(
                "With float16 constants about 3 % of 8-bit codes differ by one; float32 is used "
                "here, float16 is a storage option."
            ),
            test="tests/papers/test_leanvec.py::test_float16_constants_move_a_few_codes",
        ),
        Difference(
            id="leanvec.d6",
            paper_says="The first pass of the graph build is called with α = 1.",
            code_does="Neighbours are generated with the configured α; only reverse edges use 1.",
            effect="The first pass already keeps longer edges.",
            test="tests/papers/test_leanvec.py::test_first_pass_prunes_with_the_configured_alpha",
        ),
        Difference(
            id="leanvec.d7",
            paper_says="Both projections reduce the same data.",
            code_does="PCA centres the data, the query-aware projection does not.",
            effect=(
                "Their losses are comparable only when one says which Gram matrix is meant; graphs "
                "under inner product react to the centring."
            ),
            test="tests/papers/test_leanvec.py::test_pca_centres_and_the_others_do_not",
        ),
    ),
)
