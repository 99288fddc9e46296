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
    kernels=("packed_product",),
    claims=(
        Claim(
            id="efficientqat.1",
            statement="A 2-bit Llama-2-70B needs less memory than Llama-2-13B in float16.",
            reported="19.2 GB against 24.2 GB (GiB, in fact)",
            kind="identity",
            # large, small: GiB of the 2-bit 70B (groups of 64) and of the float16 13B, by shapes.
            rule="supports if large < small; contradicts if large >= small",
        ),
        Claim(
            id="efficientqat.2",
            statement=(
                "The 2-bit 70B model loses less than 3 points and beats the 13B model in float16; "
                "it is trained on a single A100-80GB in 41 hours."
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
            # all_gain: bits per character by which training everything in a block is better than
            # training scale and zero point alone, the least over starts; grid_gain: the same of
            # scale and zero point over rounding. 0.05 bits is ten times the pilot's spread.
            rule=(
                "supports if all_gain > 0.05 and grid_gain > 0.05; "
                "contradicts if all_gain < -0.05 or grid_gain < -0.05"
            ),
        ),
        Claim(
            id="efficientqat.4",
            statement=(
                "Training the step sizes end to end afterwards lowers perplexity further with a "
                "few per cent of the parameters."
            ),
            reported="Llama-2-7B w2g64: perplexity 7.65 → 6.86",
            kind="miniature",
            # gain: bits per character by which E2E-QP lowers the loss after Block-AP, the least
            # over starts.
            rule="supports if gain > 0.02; contradicts if gain < -0.02",
        ),
        Claim(
            id="efficientqat.5",
            statement=(
                "The format is plain integers: packing and unpacking is exact, and a matrix–vector "
                "product reads 16/2.28 times fewer bytes than in float16 (w2g64)."
            ),
            reported="uniform quantisation, friendly to hardware",
            kind="identity",
            # wrong: codes that differ after packing and unpacking at 2, 3, 4 and 8 bits; fewer:
            # bytes of a float16 matrix over those of the packed one, 2 bits, groups of 64.
            rule=(
                "supports if wrong == 0 and fewer > 16 / 2.29; "
                "contradicts if wrong > 0 or fewer < 16 / 2.29"
            ),
        ),
        Claim(
            id="efficientqat.6",
            statement=(
                "In 2-bit training of a 70B model weights, gradients and moments fit one 80 GB "
                "GPU: those of one block, then the packed model with those of its step sizes."
            ),
            reported="a 70B model on one 80 GB GPU",
            kind="identity",
            # block, scales: GB of weights, gradients and AdamW's moments of Llama-2-70B, w2g64, in
            # the first and in the second phase, the packed model included in the second.
            rule="supports if block < 80 and scales < 80; contradicts otherwise",
        ),
        Claim(
            id="efficientqat.7",
            statement=(
                "The gradients of the quantiser with straight-through rounding have the closed "
                "forms that follow from its definition."
            ),
            reported="definition of the quantiser",
            kind="identity",
            # error: the largest difference between autograd and the closed forms, in float64.
            rule="supports if error < 1e-9; contradicts if error >= 1e-9",
        ),
        Claim(
            id="efficientqat.8",
            statement=(
                "A 2-bit model trained this way is better than a float16 model of as many bytes "
                "(here: trained for as many steps as the model had before its repair)."
            ),
            reported="2-bit 70B (19.2 GB) beats float16 13B (24.2 GB) by 1.67 points",
            kind="miniature",
            # lead: bits per character by which the 2-bit model is better than the float16 model of
            # at least its bytes, the mean over starts; spread: the standard deviation of that lead.
            rule="supports if lead > 2 * spread; contradicts if lead < -2 * spread",
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
            test=(
                "tests/papers/test_efficientqat.py::"
                "test_a_zero_point_outside_the_codes_is_clamped_before_it_is_packed"
            ),
        ),
        Difference(
            id="efficientqat.d2",
            paper_says="Integers are those that training saw.",
            code_does="The block is cast to float16 before its weights are rounded and packed.",
            effect=(
                "A weight near the middle between two levels can take the other one; here the "
                "codes are those of the last step of training."
            ),
            test=(
                "tests/papers/test_efficientqat.py::"
                "test_codes_of_a_float16_block_can_differ_from_those_that_trained"
            ),
        ),
        Difference(
            id="efficientqat.d3",
            paper_says="All weights of a block are trained.",
            code_does=(
                "Every parameter whose name contains “weight” is trained, the norms included; "
                "biases are buffers and stay."
            ),
            effect="Norm weights move too.",
            test="tests/papers/test_efficientqat.py::test_all_weights_train_and_biases_stay",
        ),
        Difference(
            id="efficientqat.d4",
            paper_says="The gradient is clipped (argument of block training).",
            code_does="The argument is never passed on; the norm is only logged.",
            effect="No clipping in the first phase, nor here.",
            test="tests/papers/test_efficientqat.py::test_gradients_of_a_block_are_not_clipped",
        ),
        Difference(
            id="efficientqat.d5",
            paper_says="Cosine schedule.",
            code_does=(
                "The rate is read with `get_lr()` outside of a step, which applies the recursion "
                "once more."
            ),
            effect="One step ahead of the cosine; plain cosine here.",
            test="tests/papers/test_efficientqat.py::test_learning_rates_follow_a_plain_cosine",
        ),
        Difference(
            id="efficientqat.d6",
            paper_says="19.2 GB and 24.2 GB.",
            code_does=(
                "The figures are GiB; the repository's table uses another unit for the same models."
            ),
            effect="Sizes are recomputed here from the shapes, with the unit named.",
            test="tests/papers/test_efficientqat.py::test_sizes_follow_from_the_shapes_in_gib",
        ),
        Difference(
            id="efficientqat.d7",
            paper_says="3-bit weights.",
            code_does="Ten values are packed into 32 bits, two bits stay empty.",
            effect="A 3-bit weight takes 3.2 bits.",
            test="tests/papers/test_efficientqat.py::test_three_bits_take_more_than_three",
        ),
    ),
)
