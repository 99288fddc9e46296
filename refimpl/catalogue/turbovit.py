"""The paper TurboViT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="turbovit",
    name="TurboViT",
    title="TurboViT: Generating Fast Vision Transformers via Generative Architecture Search",
    authors="Alexander Wong, Saad Abbasi, Saeejith Nair",
    venue="arXiv",
    year=2023,
    idea=(
        "Search for a generator of networks, not for a network: it must satisfy hard limits for "
        "every seed. Its material is Hiera's mask units and pooled queries."
    ),
    arxiv="2308.11421",
    licence="none (neither code nor weights were released)",
    variants=("like_48", "like_56", "like_56_deep"),
    kernels=("pooled_query_attention",),
    claims=(
        Claim(
            id="turbovit.1",
            statement="TurboViT is over 2.47 times smaller than FasterViT-0 at the same accuracy.",
            reported="hence under 12.7 M parameters at 82.1 % top-1",
            kind="out_of_reach",
            needs="the architecture, which the abstract does not give, and weights, ImageNet-1k",
            command=(
                "none known: we found neither code, widths nor weights; the chapter counts "
                "which Hiera-shaped designs satisfy the bound"
            ),
        ),
        Claim(
            id="turbovit.2",
            statement=(
                "TurboViT needs over 3.4 times fewer FLOPs than MobileViTv2-2.0 and is more "
                "accurate."
            ),
            reported="hence under 2.21 G; +0.9 points",
            kind="out_of_reach",
            needs="the architecture, which the abstract does not give, and weights, ImageNet-1k",
            command=(
                "none known: we found neither code, widths nor weights; the chapter counts "
                "which Hiera-shaped designs satisfy the bound"
            ),
        ),
        Claim(
            id="turbovit.3",
            statement="TurboViT is several times faster than FasterViT-0.",
            reported="over 3.21× lower latency, over 3.18× higher throughput",
            kind="out_of_reach",
            needs="the architecture, which the abstract does not give, and a GPU",
            command="none known: we found neither code, widths nor weights",
        ),
        Claim(
            id="turbovit.4",
            statement=(
                "A generator searched under hard constraints proposes better designs than random "
                "search with the same number of evaluations."
            ),
            reported="the principle of the method",
            kind="miniature",
            # 300 seeds; a search spends its evaluations on one start's accuracies, and the design
            # that it found is judged by another start's. chance, trivial: the generator's mean less
            # that of random search, and less the better of "the smallest" and "the largest design
            # within the bounds", in points; each with its standard error over searches, and
            # trivial_error with the deviation of the rule's one training, too. control: as chance,
            # where qualities are sums of the choices' by construction, in standard errors.
            rule=(
                "supports if control > 3 and chance > 3 * chance_error and trivial > 3 * "
                "trivial_error; contradicts if control > 3 and (chance < -3 * chance_error or "
                "trivial < -3 * trivial_error); where control is the lead over luck in the world "
                "where choices add up, in its standard errors, chance the lead over luck among "
                "the trained designs, trivial that over the better of smallest and largest"
            ),
        ),
        Claim(
            id="turbovit.5",
            statement=(
                "After unrolling the tokens once, every mask unit and every pooling is a "
                "plain reshape, equal to explicit windows."
            ),
            reported="Hiera's code",
            kind="identity",
            # error: the largest ‖unrolled − windows cut out‖ / ‖windows cut out‖ over layers that
            # pool or do not.
            rule="supports if error < 1e-6; contradicts if error >= 1e-6",
        ),
        Claim(
            id="turbovit.6",
            statement=(
                "Local attention early and global attention late saves multiply-adds without loss "
                "of accuracy."
            ),
            reported="Hiera on ImageNet",
            kind="miniature",
            # In a game where two mask units must be compared, over all starts, in points: blind:
            # the most that local attention everywhere gets; loss: the most by which global
            # attention everywhere beats early local, late global; share: of the attention's
            # multiply-adds that the latter needs, at 224 pixels.
            rule=(
                "supports if blind < 60 and loss < 2 and share < 1; "
                "contradicts if blind < 60 and loss > 5"
            ),
        ),
        Claim(
            id="turbovit.7",
            statement=(
                "Hiera-shaped networks exist within the bounds that follow from the paper's ratios."
            ),
            reported="the ratios; the bounds, 12.7 M and 2.21 G, follow by division",
            kind="identity",
            # within: designs of the chapter's space that meet both bounds.
            rule=(
                "supports if within > 0; contradicts if within <= 0; where within is the number of "
                "random designs that meet both bounds"
            ),
        ),
    ),
    differences=(
        Difference(
            id="turbovit.d1",
            paper_says="An architecture was generated and measured.",
            code_does="No code, no table of widths and no weights are public.",
            effect=(
                "Networks here are stand-ins from Hiera's family, called so; their figures are not "
                "TurboViT's."
            ),
            test="tests/papers/test_turbovit.py::test_it_never_looks_like_the_authors_network",
        ),
        Difference(
            id="turbovit.d2",
            paper_says="A generator–inquisitor pair solves the constrained problem.",
            code_does="The update rule is unpublished.",
            effect="A cross-entropy method takes its place here, and is marked as ours.",
            test="tests/papers/test_turbovit.py::test_the_update_rule_is_marked_as_ours",
        ),
        Difference(
            id="turbovit.d3",
            paper_says="Hiera returns class scores.",
            code_does="The official head applies softmax in evaluation mode; timm's does not.",
            effect="Logits are returned here.",
            test="tests/papers/test_turbovit.py::test_stand_ins_return_logits_where_the_official_head_returns_scores",
        ),
        Difference(
            id="turbovit.d4",
            paper_says="The third stage attends globally (Hiera).",
            code_does="The first block of a stage uses the previous stage's flag.",
            effect="That block still attends within mask units.",
            test="tests/bases/test_hiera.py::test_first_blocks_attend_as_the_stage_before",
        ),
        Difference(
            id="turbovit.d5",
            paper_says="Biases start at zero, as usual (Hiera).",
            code_does="They start at 0.02, those of the layer norms too.",
            effect="Reproduced.",
            test="tests/bases/test_hiera.py::test_weights_start_as_the_authors_start_them",
        ),
    ),
)
