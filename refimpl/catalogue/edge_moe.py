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
        ),
        Claim(
            id="edge_moe.3",
            statement="One-pass softmax equals two-pass softmax up to rounding.",
            reported="no loss of accuracy",
            kind="identity",
        ),
        Claim(
            id="edge_moe.4",
            statement="GELU as ReLU minus a small table is accurate.",
            reported="negligible error at low cost",
            kind="identity",
        ),
        Claim(
            id="edge_moe.5",
            statement="One linear unit serves all layers, direct or through a queue.",
            reported="one unit in the design",
            kind="identity",
        ),
        Claim(
            id="edge_moe.6",
            statement="Working expert by expert loads the weights of each used expert once.",
            reported="no memory overhead for experts",
            kind="identity",
        ),
        Claim(
            id="edge_moe.7",
            statement=(
                "Two tasks use different experts of one pool, and two of sixteen experts need an "
                "eighth of the experts' multiply-adds."
            ),
            reported="over 80 % less computation (M³ViT)",
            kind="miniature",
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
        ),
        Difference(
            id="edge_moe.d2",
            paper_says="The two best experts of a patch are found by insertion.",
            code_does=(
                "Shifted entries stay unassigned when nothing is inserted; the stack slot happens "
                "to hold the old value."
            ),
            effect="Correct by luck; the evident intent is implemented.",
        ),
        Difference(
            id="edge_moe.d3",
            paper_says="The variance is computed as E[x²] − E[x]².",
            code_does="With truncation it can be zero or negative for nearly constant tokens.",
            effect="Division by zero, or the root of a negative number; real tokens do not hit it.",
        ),
        Difference(
            id="edge_moe.d4",
            paper_says="M³ViT's load compares logits with logits.",
            code_does="Raw logits are compared with thresholds from softmaxed values.",
            effect="Units are mixed when noise is on; the published command has none.",
        ),
        Difference(
            id="edge_moe.d5",
            paper_says="M³ViT-small has four experts a patch, ratio 1 (README's command).",
            code_does=(
                "Its configuration file says two experts, ratio 2, as does the accelerator; the "
                "command line wins."
            ),
            effect="43 M or 72 M parameters under one name.",
        ),
        Difference(
            id="edge_moe.d6",
            paper_says="M³ViT offers two gate classes.",
            code_does="One names an argument `num_task`, its callers pass `num_tasks`.",
            effect="The second gate can't be built through the layer as released.",
        ),
        Difference(
            id="edge_moe.d7",
            paper_says="Fixed point is close to float.",
            code_does="Every product is truncated towards minus infinity.",
            effect="Errors have a sign: a sum over 192 inputs is low by 96 steps on average.",
        ),
    ),
)
