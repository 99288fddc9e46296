"""The paper EfficientQAT: its claims with their rules, and where its code departs from its text."""

from refimpl.catalogue import Claim, Difference, Paper

PAPER = Paper(
    stem="efficientqat",
    name="EfficientQAT",
    title="EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
    authors="Mengzhao Chen, Wenqi Shao, Peng Xu, Jiahao Wang, Peng Gao, Kaipeng Zhang, Ping Luo",
    venue="ACL",
    year=2025,
    idea=(
        "Train all weights and quantisation parameters one block at a time, then only the step "
        "sizes end to end: 2-bit language models on one GPU."
    ),
    arxiv="2407.11062",
    code="https://github.com/OpenGVLab/EfficientQAT",
    commit="78fd3fb6b6a2e70cc29d9e5d5f4fc6c3ea250619",
    licence="none stated",
    claims=(
        Claim(
            id="efficientqat.1",
            statement="A 2-bit Llama-2-70B needs less memory than Llama-2-13B in float16.",
            reported="19.2 GB against 24.2 GB",
            kind="identity",
        ),
        Claim(
            id="efficientqat.2",
            statement=(
                "The 2-bit 70B model loses less than 3 points and beats the 13B model in float16."
            ),
            reported=(
                "69.48 against 72.41 (70B) and 67.81 (13B), mean of five zero-shot tasks; 41 h on "
                "one A100-80GB"
            ),
            kind="out_of_reach",
            needs="Llama-2-70B weights and an 80 GB GPU",
            command=(
                "CUDA_VISIBLE_DEVICES=0 python main_block_ap.py --resume_quant <folder of "
                "ChenMnZ/Llama-2-70b-EfficientQAT-w2g64> --net Llama-2 --wbits 2 --group_size 64 "
                "--eval_ppl --eval_tasks piqa,arc_easy,arc_challenge,hellaswag,winogrande  # "
                "official repository"
            ),
        ),
        Claim(
            id="efficientqat.3",
            statement=(
                "Training all parameters of a block is better than training its quantisation "
                "parameters alone, and both beat rounding to nearest."
            ),
            reported="ablation on Llama-2-7B",
            kind="miniature",
        ),
        Claim(
            id="efficientqat.4",
            statement=(
                "Training the step sizes end to end afterwards lowers perplexity further with a "
                "few per cent of the parameters."
            ),
            reported="Llama-2-7B w2g64: perplexity 7.65 → 6.86",
            kind="miniature",
        ),
        Claim(
            id="efficientqat.5",
            statement=(
                "The format is plain integers: packing and unpacking is exact, and a matrix–vector "
                "product reads 16/2.28 times fewer bytes than in float16 (w2g64)."
            ),
            reported="uniform quantisation, friendly to hardware",
            kind="identity",
        ),
        Claim(
            id="efficientqat.6",
            statement="Training needs the memory of one block, then that of the packed model.",
            reported="a 70B model on one 80 GB GPU",
            kind="identity",
        ),
        Claim(
            id="efficientqat.7",
            statement=(
                "The gradients of the quantiser with straight-through rounding have the closed "
                "forms that follow from its definition."
            ),
            reported="definition of the quantiser",
            kind="identity",
        ),
    ),
    differences=(
        Difference(
            id="efficientqat.d1",
            paper_says="The zero point lies in the range of the codes.",
            code_does=(
                "It is initialised unclamped, clamped in the forward pass, and the unclamped value "
                "is packed."
            ),
            effect=(
                "A group without zero in its range wraps around and spills into its neighbours' "
                "bits; here it is clamped before packing."
            ),
        ),
        Difference(
            id="efficientqat.d2",
            paper_says="Integers are those that training saw.",
            code_does=(
                "They are recovered at packing time with a float16 step size but a float32 product "
                "of zero point and step size."
            ),
            effect="Codes can differ by one when a step size is not exact in float16.",
        ),
        Difference(
            id="efficientqat.d3",
            paper_says="All weights of a block are trained.",
            code_does=(
                "Every parameter whose name contains “weight” is trained, the norms included; "
                "biases are buffers and stay."
            ),
            effect="Norm weights move too.",
        ),
        Difference(
            id="efficientqat.d4",
            paper_says="The gradient is clipped (argument of block training).",
            code_does="The argument is never passed on; the norm is only logged.",
            effect="No clipping in the first phase.",
        ),
        Difference(
            id="efficientqat.d5",
            paper_says="Cosine schedule.",
            code_does=(
                "The rate is read with `get_lr()` outside of a step, which applies the recursion "
                "once more."
            ),
            effect="One step ahead of the cosine; plain cosine here.",
        ),
        Difference(
            id="efficientqat.d6",
            paper_says="19.2 GB and 24.2 GB.",
            code_does=(
                "The figures are GiB; the repository's table uses another unit for the same models."
            ),
            effect="Sizes are recomputed here from the shapes, with the unit named.",
        ),
        Difference(
            id="efficientqat.d7",
            paper_says="3-bit weights.",
            code_does="Ten values are packed into 32 bits, two bits stay empty.",
            effect="A 3-bit weight takes 3.2 bits.",
        ),
    ),
)
