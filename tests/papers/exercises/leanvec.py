"""Right answers in another form to the chapter's exercises, and the mistakes that readers make."""

from shared.exercises import Answers, mutations

GRADIENT = "def grad_A(A, B, K_Q, K_X):\n    return "
GRAM = "def centred_gram(K_X, mean, n):\n    return "
LEVEL = """
def next_level(rest, step, bits):
    levels = {levels}
    codes = torch.{rounding}((rest{shift}) * levels / step).clip(0, {top})
    return {answer}
"""


def level(
    levels="2**bits - 1",
    rounding="round",
    shift=" + 0.5 * step",
    top="levels",
    answer="codes.long(), step * (codes / levels - 0.5)",
):
    return LEVEL.format(levels=levels, rounding=rounding, shift=shift, top=top, answer=answer)


ANSWERS = {
    1: Answers(
        right=[
            GRADIENT + "2 * K_Q @ (A @ B.T - np.eye(len(A))) @ K_X @ B",
            "def grad_A(A, B, K_Q, K_X):\n    E = A @ B.T @ K_X @ B - K_X @ B"
            "\n    return (K_Q + K_Q.T) @ E",
        ],
        wrong=[
            GRADIENT + "K_Q @ A @ (B.T @ K_X @ B) - K_Q @ K_X @ B",  # the 2 of the square
            GRADIENT + "2 * K_Q @ A @ (B.T @ K_X @ B)",  # the linear term
            GRADIENT + "2 * K_X @ B @ (A.T @ K_Q @ A) - 2 * K_X @ K_Q @ A",  # of B
            GRADIENT + "2 * K_Q @ A @ (B.T @ K_X @ B) - 2 * K_X @ K_Q @ B",  # the product reversed
            GRADIENT + "2 * K_Q @ A @ (B.T @ K_X @ B) + 2 * K_Q @ K_X @ B",  # sign
            GRADIENT + "(2 * K_Q @ (A @ B.T - np.eye(len(A))) @ K_X @ B).T",  # transposed
        ],
    ),
    2: Answers(
        right=[
            GRAM + "K_X - np.outer(n * mean, mean)",
            "def centred_gram(K_X, mean, n):\n    s = n * mean[:, None]"
            "\n    return K_X - s @ s.T / n",
        ],
        wrong=[
            GRAM + "K_X - np.outer(mean, mean)",  # forgets n
            GRAM + "K_X / n - np.outer(mean, mean)",  # the covariance
            GRAM + "K_X - 2 * n * np.outer(mean, mean)",  # the cross terms without the square
            GRAM + "K_X - n * mean",  # no outer product
            GRAM + "K_X - n * (mean @ mean)",  # a number
            GRAM + "K_X - (n - 1) * np.outer(mean, mean)",
        ],
    ),
    3: Answers(
        right=[level(), level(rounding="floor", shift=" + 0.5 * step + 0.5 * step / levels")],
        wrong=[
            level(shift=""),  # does not shift to zero
            level(levels="2**bits", top="levels"),  # one level too many
            level(levels="2**bits", top="levels - 1"),  # the largest cannot be reached
            level(rounding="floor"),  # cuts instead of rounding
            level(rounding="ceil"),
            level(answer="codes.long(), step * codes / levels"),  # does not shift back
            level(
                answer="step * (codes / levels - 0.5), step * (codes / levels - 0.5)"
            ),  # no codes
        ],
    ),
}

test_exercise = mutations("leanvec", ANSWERS)
