"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

GRADIENTS = """
def gradients(w, s, z, u, bits):
    ratio = w / s
    shifted = ratio.round() + z
    low, high = shifted < 0, shifted > 2**bits - 1
    inside = ~(low | high)
    bound = high * (2**bits - 1.0)
    by_w = {by_w}
    by_s = {by_s}
    by_z = {by_z}
    return by_w, by_s.sum(1)[:, None], by_z.sum(1)[:, None]
"""
RIGHT = {
    "by_w": "u * inside",
    "by_s": "u * (inside * (ratio.round() - ratio) + ~inside * (bound - z))",
    "by_z": "-u * s * ~inside",
}


def gradients(**changes):
    return GRADIENTS.format(**RIGHT | changes)


BY_AUTOGRAD = """
def gradients(w, s, z, u, bits):
    leaves = [t.clone().requires_grad_() for t in (w, s, z)]
    return torch.autograd.grad(fake_quantise(*leaves, bits), leaves, u)
"""

GRID = """
def grid_with_zero(weight, bits, group_size):
    groups = weight.reshape(-1, group_size)
    zero = torch.zeros(len(groups), 1)
    low = torch.cat([groups, zero], 1).min(1, keepdim=True).values
    high = torch.cat([groups, zero], 1).max(1, keepdim=True).values
    s = (high - low) / {steps}
    return s, {z}
"""


def grid(steps="(2**bits - 1)", z="-(low / s).round()"):
    return GRID.format(steps=steps, z=z)


PACK = """
def pack3(codes):
    words = []
    for part in codes.view(-1, 32).tolist():
        number = sum(code << {shift} * i for i, code in enumerate(part))
        words += [number >> 32 * j & 0xFFFFFFFF for j in {order}]
    return torch.tensor(words)


def unpack3(words):
    codes = []
    for part in words.view(-1, 3).tolist():
        number = sum(word << 32 * j for j, word in zip({order}, part))
        codes += [number >> {shift} * i & {mask} for i in range(32)]
    return torch.tensor(codes)
"""


def packing(shift="3", order="(0, 1, 2)", mask="7"):
    return PACK.format(shift=shift, order=order, mask=mask)


TEN_A_WORD = """
def pack3(codes):
    return pack(codes[:, None], 3)[:, 0].long() % 2**32


def unpack3(words):
    return unpack(words.int()[:, None], 10 * len(words), 3)[:, 0].long()
"""
SIGNED = packing().replace(
    "return torch.tensor(words)",
    "return torch.tensor(words) - 2**32 * (torch.tensor(words) > 2**31)",
)
NOT_BACK = packing().replace("return torch.tensor(codes)", "return torch.tensor(codes).flip(0)")

ANSWERS = {
    1: Answers(
        right=[gradients(), BY_AUTOGRAD],
        wrong=[
            gradients(by_w="u"),  # a clipped weight gets a gradient, too
            gradients(by_s="u * inside * (ratio.round() - ratio)"),  # clipped ones forgotten
            gradients(by_s="u * (inside * ratio.round() + ~inside * (bound - z))"),
            gradients(by_s="u * (inside * (ratio.round() - ratio) + ~inside * bound)"),
            gradients(by_z="-u * ~inside"),  # without the step size
            gradients(by_z="u * s * ~inside"),  # sign
            gradients(by_z="-u * s"),  # in range as well
            "def gradients(w, s, z, u, bits):\n    return u, s, z",
        ],
    ),
    2: Answers(
        right=[grid(), grid(z="((0 - low) / s).round()")],
        wrong=[
            "def grid_with_zero(weight, bits, group_size):\n"
            "    return initial_grid(weight, bits, group_size)",
            "def grid_with_zero(weight, bits, group_size):\n"
            "    s, z = initial_grid(weight, bits, group_size)\n"
            "    return s, z.clamp(0, 2**bits - 1)",  # clamped, the range unchanged
            grid(steps="2**bits"),  # levels, not steps
            grid(z="-(low / s)"),  # not whole
            grid(z="-(high / s).round()"),  # the other end
        ],
    ),
    3: Answers(
        right=[packing(), packing(order="(2, 1, 0)")],
        wrong=[
            TEN_A_WORD,  # the format as it is: four words
            packing(shift="4", mask="15"),  # four bits each
            SIGNED,  # negative words
            NOT_BACK,
            packing(mask="3"),  # the third bit lost
        ],
    ),
}

test_exercise = mutations("efficientqat", ANSWERS)
