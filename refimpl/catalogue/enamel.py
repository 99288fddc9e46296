"""The paper ENAMEL: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="enamel",
    name="ENAMEL",
    title="How Efficient is LLM-Generated Code? A Rigorous & High-Standard Benchmark",
    authors="Ruizhong Qiu, Weiliang Will Zeng, James Ezick, Christopher Lott, Hanghang Tong",
    venue="ICLR",
    year=2025,
    idea=(
        "Score a program by how far it stays below a time limit set by an expert's solution, and "
        "estimate the best of k samples without bias and with little variance."
    ),
    arxiv="2406.06647",
    code="https://github.com/q-rz/enamel",
    commit="b97da79c779b98eaa8b2a1b17a13d2eb0b6d16a5",
    licence="Apache-2.0",
    claims=(
        Claim(
            id="enamel.1",
            statement=(
                "eff@k with scores of 0 and 1 equals pass@k for every number of samples, of "
                "correct samples and of draws."
            ),
            reported="eff@k generalises pass@k",
            kind="identity",
            rule=(
                "Supported when both agree to 1e-12 for all n up to 40, c and k; contradicted "
                "otherwise."
            ),
        ),
        Claim(
            id="enamel.2",
            statement=(
                "The estimator of eff@k is unbiased: it equals the mean of the maximum over all "
                "subsets of k samples."
            ),
            reported="derived in the paper",
            kind="identity",
            rule=(
                "Supported when the estimator equals the enumeration of all subsets to 1e-14 for n "
                "up to 10 and all k; contradicted otherwise."
            ),
        ),
        Claim(
            id="enamel.3",
            statement=(
                "Rao–Blackwellisation never raises the variance: the estimator's is at most k/n of "
                "that of one random subset."
            ),
            reported="derived in the paper",
            kind="identity",
            rule=(
                "Supported when for uniform scores the ratio of variances, in exact fractions, is "
                "at most k/n for n up to 15 and all k; contradicted otherwise."
            ),
        ),
        Claim(
            id="enamel.4",
            statement=(
                "The recurrence for the weights is numerically stable where factorials overflow."
            ),
            reported="numerically stable implementation, no error given",
            kind="identity",
            rule=(
                "Supported when every weight above 1e-300 has a relative error below 1e-12 up to n "
                "= 1500; contradicted otherwise."
            ),
        ),
        Claim(
            id="enamel.5",
            statement=(
                "Scoring a timed-out level as 0 orders solutions by their complexity, where "
                "averaging finished runs alone reverses the order."
            ),
            reported="right-censored execution time is accounted for",
            kind="miniature",
            rule=(
                "Supported when the order by cost is kept at every limit tried and the mean of "
                "finished runs puts the linear solution last of four; else, or where the verdict "
                "differs between seeds 0 to 3, inconclusive."
            ),
        ),
        Claim(
            id="enamel.6",
            statement="Code written by large language models is far from an expert's efficiency.",
            reported="GPT-4: eff@1 0.454 with pass@1 0.831; GPT-4 Turbo 0.470 with 0.796",
            kind="out_of_reach",
            needs=(
                "the 142 problems, generated tests and language-model samples; Linux, hours of "
                "undisturbed CPU time"
            ),
            command=(
                "python3 demo.py --load_name gpt-4_temp_0.0 --tests cache/eval~tests.pkl  # "
                "official repository, in a container: it runs untrusted code and unpickles its "
                "tests"
            ),
        ),
        Claim(
            id="enamel.7",
            statement="Stronger test generators reject wrong solutions that weak tests accept.",
            reported="lower pass@1 than with HumanEval's own tests",
            kind="miniature",
            rule=(
                "Supported when some wrong programs pass the prompt's examples and all of these "
                "fail the generated cases; contradicted when none of them fails; else "
                "inconclusive."
            ),
        ),
    ),
    differences=(
        Difference(
            id="enamel.d1",
            paper_says="The efficiency score is compared with an expert's solution.",
            code_does="The score is not clipped at 1.",
            effect=(
                "A solution faster than the reference scores above 1; kept, and said to the reader."
            ),
            test="tests/papers/test_enamel.py::test_faster_than_the_reference_scores_above_one",
        ),
        Difference(
            id="enamel.d2",
            paper_says="`reliability_guard` runs before the candidate's code.",
            code_does=(
                "It saves destructive functions and restores them later, but never replaces them "
                "in between."
            ),
            effect=(
                "Nothing is disabled. Not reproduced: the runner here is a separate, limited "
                "process."
            ),
            test="tests/papers/test_enamel.py::test_hostile_samples_leave_the_rest_unharmed",
        ),
        Difference(
            id="enamel.d3",
            paper_says="A run that exceeds its limit is stopped.",
            code_does=(
                "The limit is an alarm signal raised as an exception inside the candidate's "
                "process."
            ),
            effect=(
                "Code that catches every exception in a loop is never stopped; the README admits "
                "it."
            ),
            test="tests/papers/test_enamel.py::test_swallowed_exceptions_end_at_the_limit",
        ),
        Difference(
            id="enamel.d4",
            paper_says="The run time of the candidate is measured.",
            code_does="The candidate shares its process with the timer.",
            effect="Code that replaces `time.time` sets its own score.",
            test="tests/papers/test_enamel.py::test_patched_clock_gains_nothing",
        ),
        Difference(
            id="enamel.d5",
            paper_says="The time limit follows from the reference solution.",
            code_does="Reference times are measured anew for each problem on the present machine.",
            effect=(
                "The limit moves with the machine's load; problems must not be evaluated in "
                "parallel."
            ),
            test="tests/papers/test_enamel.py::test_limit_is_measured_anew",
        ),
    ),
)
