"""The paper ZZ-Example: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="zz_example",
    name="ZZ-Example",
    title="Leaning on the Mean",
    authors="No Body",
    venue="Nowhere",
    year=2024,
    idea="Let every token move a learned fraction of the way to the mean of all.",
    arxiv="0000.00000",
    variants=("tiny", "small"),
    claims=(
        Claim(
            id="zz_example.1",
            statement="Leaning leaves the mean of the tokens where it is.",
            reported="by its equation",
            kind="identity",
            rule="supports if error < 1e-6; contradicts if error >= 1e-6",
        ),
        Claim(
            id="zz_example.2",
            statement="Leaning matters for networks of a thousand million parameters.",
            reported="a table",
            kind="out_of_reach",
            needs="a hundred GPUs",
            command="python train.py --everything",
        ),
    ),
    differences=(
        Difference(
            id="zz_example.d1",
            paper_says="The fraction lies between 0 and 1.",
            code_does="It is a free parameter.",
            effect="A fraction above 1 carries tokens past the mean.",
            test="tests/papers/test_zz_example.py::test_a_fraction_above_one_passes_the_mean",
        ),
    ),
)
