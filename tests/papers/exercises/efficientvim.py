"""The exercises on EfficientViM: other right answers pass, plausible wrong ones don't."""

from shared.exercises import Answers, mutations

CHUNKED = """
def chunked(x, a, B, C, S, q):
    y = []
    for x_c, a_c, B_c, C_c in zip(x.split(q), a.split(q), B.split(q), C.split(q)):
        M = segsum(a_c).exp()
        since_start = {since}
        y.append((M * (C_c @ B_c.T)) @ x_c + since_start[:, None] * (C_c @ S))
        S = {keep} * S + (B_c * {to_end}[:, None]).T @ x_c
    return torch.cat(y), S
"""
right = dict(since="a_c.cumsum(0).exp()", keep="since_start[-1]", to_end="M[-1]")

LOOP = """
def chunked(x, a, B, C, S, q):
    y = []
    for t in range(len(x)):
        S = a[t].exp() * S + torch.outer(B[t], x[t])
        y.append(C[t] @ S)
    return torch.stack(y), S
"""
ANSWERS = {
    1: Answers(
        right=[
            CHUNKED.format(**right),
            """
def chunked(x, a, B, C, S, q):
    if len(x) <= q:
        log = a.cumsum(0)
        M = (log[:, None] - log).tril().exp().tril()
        y = (M * (C @ B.T)) @ x + log.exp()[:, None] * (C @ S)
        return y, log[-1].exp() * S + (B * (log[-1] - log).exp()[:, None]).T @ x
    first, S = chunked(x[:q], a[:q], B[:q], C[:q], S, q)
    rest, S = chunked(x[q:], a[q:], B[q:], C[q:], S, q)
    return torch.cat([first, rest]), S
""",
        ],
        wrong=[
            CHUNKED.format(**right | {"keep": "1"}),  # the old state does not fade over a chunk
            CHUNKED.format(
                **right | {"since": "M[:, 0]"}
            ),  # forgets the decay of the chunk's first step
            CHUNKED.format(
                **right | {"to_end": "torch.ones(len(x_c))"}
            ),  # no decay to the end of the chunk
            CHUNKED.format(**right).replace(
                "return torch.cat(y), S", "return torch.cat(y), torch.zeros_like(S)"
            ),
            CHUNKED.format(**right).replace("return torch.cat(y), S", "return torch.cat(y)"),
            LOOP,  # right, but step by step
        ],
    ),
    2: Answers(
        right=[
            "def saving(l, D, N, e=1):\n    return l * 3 * e * D**2 - N * 3 * e * D**2",
            (
                "def saving(tokens, width, states, e=1):\n    inner = e * width\n    return "
                "(2 * inner * width + width * inner) * (tokens - states)"
            ),
        ],
        wrong=[
            # the expansion is forgotten
            "def saving(l, D, N, e=1):\n    return 3 * D * D * (l - N)",
            "def saving(l, D, N, e=1):\n    return 3 * e * D * D * l",
            "def saving(l, D, N, e=1):\n    return 2 * e * D * D * (l - N)",  # without W_out
            # never negative
            "def saving(l, D, N, e=1):\n    return max(0, 3 * e * D * D * (l - N))",
        ],
    ),
    3: Answers(
        right=[
            "def living_weights(dt, A):\n    return (dt * A.unsqueeze(1)).softmax(1)",
            (
                "def living_weights(dt, A):\n    return torch.softmax(dt - (1 - A[:, None]) "
                "* torch.linspace(0, 1, dt.shape[1]), -1)"
            ),
        ],
        wrong=[
            # as the paper: dead
            "def living_weights(dt, A):\n    return (dt + A[:, None] - 1).softmax(-1)",
            # does not sum to 1
            "def living_weights(dt, A):\n    return dt.softmax(-1) * A[:, None]",
            "def living_weights(dt, A):\n    return (dt * A[:, None]).softmax(0)",  # over states
            "def living_weights(dt, A):\n    return dt.softmax(-1)",  # without A
            # changes the weights at A = 1
            "def living_weights(dt, A):\n    return (dt / (1 + A[:, None])).softmax(-1)",
        ],
    ),
}

test_exercise = mutations("efficientvim", ANSWERS)
