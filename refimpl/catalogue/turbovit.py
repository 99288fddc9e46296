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
    claims=(
        Claim(
            id="turbovit.1",
            statement="TurboViT is over 2.47 times smaller than FasterViT-0 at the same accuracy.",
            reported="hence under 12.7 M parameters at 82.1 % top-1",
            kind="out_of_reach",
            needs="the unpublished architecture and weights, ImageNet-1k",
            command=(
                "none exists: neither code, widths nor weights were published; the chapter counts "
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
            needs="the unpublished architecture and weights, ImageNet-1k",
            command=(
                "none exists: neither code, widths nor weights were published; the chapter counts "
                "which Hiera-shaped designs satisfy the bound"
            ),
        ),
        Claim(
            id="turbovit.3",
            statement="TurboViT is several times faster than FasterViT-0.",
            reported="over 3.21× lower latency, over 3.18× higher throughput",
            kind="out_of_reach",
            needs="the unpublished architecture and a GPU",
            command="none exists: neither code, widths nor weights were published",
        ),
        Claim(
            id="turbovit.4",
            statement=(
                "A generator searched under hard constraints proposes better designs than random "
                "search with the same number of evaluations."
            ),
            reported="the principle of the method",
            kind="miniature",
        ),
        Claim(
            id="turbovit.5",
            statement=(
                "After unrolling the tokens once, every mask unit and every pooling is a "
                "contiguous reshape, equal to explicit windows."
            ),
            reported="Hiera's code",
            kind="identity",
        ),
        Claim(
            id="turbovit.6",
            statement=(
                "Local attention early and global attention late saves multiply-adds without loss "
                "of accuracy."
            ),
            reported="Hiera on ImageNet",
            kind="miniature",
        ),
        Claim(
            id="turbovit.7",
            statement=(
                "Hiera-shaped networks exist within the bounds that follow from the paper's ratios."
            ),
            reported="under 12.7 M parameters and 2.21 G multiply-adds",
            kind="identity",
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
        ),
        Difference(
            id="turbovit.d2",
            paper_says="A generator–inquisitor pair solves the constrained problem.",
            code_does="The update rule is unpublished.",
            effect="A cross-entropy method takes its place here, and is marked as ours.",
        ),
        Difference(
            id="turbovit.d3",
            paper_says="Hiera returns class scores.",
            code_does="The official head applies softmax in evaluation mode; timm's does not.",
            effect="Logits are returned here.",
        ),
        Difference(
            id="turbovit.d4",
            paper_says="The third stage attends globally (Hiera).",
            code_does="The first block of a stage uses the previous stage's flag.",
            effect="That block still attends within mask units.",
        ),
        Difference(
            id="turbovit.d5",
            paper_says="Biases start at zero, as usual (Hiera).",
            code_does="They start at 0.02, those of the layer norms too.",
            effect="Reproduced.",
        ),
    ),
)
