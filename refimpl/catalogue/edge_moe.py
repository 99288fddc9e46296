"""The paper Edge-MoE: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="edge_moe",
    name="Edge-MoE",
    title=(
        "Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level "
        "Sparsity via Mixture-of-Experts"
    ),
    authors="Rishov Sarkar, Hanxue Liang, Zhiwen Fan, Zhangyang Wang, Cong Hao",
    venue="ICCAD",
    year=2023,
    idea=(
        "A mixture-of-experts transformer in fixed point on a small chip: reorder attention, "
        "softmax and patches until memory traffic no longer decides."
    ),
    arxiv="2305.18691",
    code="https://github.com/sharc-lab/Edge-MoE",
    commit="984b23bd7e733335213f3a33eac6a3947872973f",
    licence="none stated",
    variants=("tiny", "small", "small_k4", "base_k4"),
    kernels=("grouped_experts",),
    claims=(
        Claim(
            id="edge_moe.1",
            statement="The accelerator is more energy-efficient than a GPU and a CPU.",
            reported="2.24× (GPU), 4.90× (CPU)",
            kind="out_of_reach",
            needs="a ZCU102 board, a power meter, the two hosts",
            command=(
                "load the bitstream of the official repository on a ZCU102 and measure energy per "
                "image beside the PyTorch model on both hosts"
            ),
        ),
        Claim(
            id="edge_moe.2",
            statement=(
                "Reordered attention fetches a constant number of blocks a step whatever the "
                "parallelism, and computes plain attention."
            ),
            reported="constant bandwidth",
            kind="identity",
            rule=(
                "supports if apart <= 1e-12 and peak <= 2; contradicts if apart > 1e-12 or peak > 2"
            ),
        ),
        Claim(
            id="edge_moe.3",
            statement="One-pass softmax equals two-pass softmax up to rounding.",
            reported="no loss of accuracy",
            kind="identity",
            rule=(
                "supports if ratio <= 1.5 and without_maximum > 100000; contradicts if ratio > 1.5"
            ),
        ),
        Claim(
            id="edge_moe.4",
            statement="GELU as ReLU minus a small table is accurate.",
            reported="negligible error at low cost",
            kind="identity",
            rule=(
                "supports if error <= 1e-4 and entries < direct_entries; contradicts if"
                " error > 1e-4"
            ),
        ),
        Claim(
            id="edge_moe.5",
            statement=(
                "One linear unit serves all layers: queries, keys, values, projection, MLP and"
                " experts."
            ),
            reported="one unit in the design",
            kind="identity",
            rule="supports if wrong == 0; contradicts if wrong > 0",
        ),
        Claim(
            id="edge_moe.6",
            statement="Working expert by expert loads the weights of each used expert once.",
            reported="no memory overhead for experts",
            kind="identity",
            rule="supports if loads == used; contradicts if loads > used",
        ),
        Claim(
            id="edge_moe.7",
            statement="Each task uses experts of its own in a pool that all tasks share.",
            reported="task-level sparsity: one gate a task",
            kind="miniature",
            rule=(
                "supports if least_drop >= 30 and least_beyond_control >= 20; contradicts if"
                " least_drop < 10"
            ),
        ),
        Claim(
            id="edge_moe.8",
            statement="A few experts of many keep quality at a fraction of the multiply-adds.",
            reported="over 80 % less computation (M³ViT, against other multi-task networks)",
            kind="miniature",
            rule=(
                "supports if least_gain > 10 and most_lost <= 5; contradicts if least_gain <= 0"
                " or least_lost > 5"
            ),
        ),
    ),
    differences=(
        Difference(
            id="edge_moe.d1",
            paper_says="Any routing of patches to experts works.",
            code_does=(
                "If all patches choose one expert, the reader takes the direct path and the writer "
                "waits for indices that never come."
            ),
            effect="The hardware deadlocks and the simulation crashes; not reproduced.",
            test="tests/papers/test_edge_moe.py::test_all_tokens_may_choose_one_expert",
        ),
        Difference(
            id="edge_moe.d2",
            paper_says="The two best experts of a patch are found by insertion.",
            code_does=(
                "Shifted entries stay unassigned when nothing is inserted; the stack slot happens "
                "to hold the old value."
            ),
            effect="Correct by luck; the evident intent is implemented.",
            test="tests/papers/test_edge_moe.py::test_the_two_best_are_found_in_any_order",
        ),
        Difference(
            id="edge_moe.d3",
            paper_says="The variance is computed as E[x²] − E[x]².",
            code_does="With truncation it can be zero or negative for nearly constant tokens.",
            effect="Division by zero, or the root of a negative number; real tokens do not hit it.",
            test="tests/papers/test_edge_moe.py::test_layer_norm_of_constant_tokens_is_refused",
        ),
        Difference(
            id="edge_moe.d4",
            paper_says="M³ViT's load compares logits with logits.",
            code_does="Raw logits are compared with thresholds from softmaxed values.",
            effect="Units are mixed when noise is on; the published command has none.",
            test="tests/papers/test_edge_moe.py::test_the_chance_of_a_choice_needs_one_unit",
        ),
        Difference(
            id="edge_moe.d5",
            paper_says="M³ViT-small has four experts a patch, ratio 1 (README's command).",
            code_does=(
                "Its configuration file says two experts, ratio 2, as does the accelerator; the "
                "command line wins."
            ),
            effect="43 M or 72 M parameters under one name.",
            test="tests/papers/test_edge_moe.py::test_parameters_of_the_table",
        ),
        Difference(
            id="edge_moe.d6",
            paper_says="Fixed point is close to float.",
            code_does="Every product is truncated towards minus infinity.",
            effect="Errors have a sign: a sum over 192 inputs is low by 96 steps on average.",
            test="tests/papers/test_edge_moe.py::test_products_are_cut_one_by_one_and_drift",
        ),
    ),
)
