"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations

MACS = """
def block_macs(n, m, c):
    gather = {gather}
    refine = {refine}
    scatter = {scatter}
    return gather + refine + scatter + {light}
"""


def macs(
    gather="2 * (m + n) * c * c + 2 * n * m * c",
    refine="12 * m * c * c + 2 * m * m * c",
    scatter="(m + n) * c * c + n * m * c",
    light="n * c * c",
):
    return MACS.format(gather=gather, refine=refine, scatter=scatter, light=light)


SCATTER = """
def scatter_transposed(scores, values):
    weights = {weights}
    return {result}
"""


def scatter(weights="scores.softmax(3).transpose(2, 3)", result="torch.matmul(weights, values)"):
    return SCATTER.format(weights=weights, result=result)


SWITCH = """
from copy import deepcopy


def with_scatter(net, how):
    net = {copy}
    for block in net.blocks[:-1]:
        {what}
    return net
"""

RIGHT_SWITCH = """if how == "none":
            block.scatter.proj = nn.Linear(*block.scatter.proj.weight.shape)
            block.scatter.proj.requires_grad_(False)
            block.scatter.proj.weight.mul_(0)
            block.scatter.proj.bias.mul_(0)
        block.scatter.renormalise = how == "softmax\""""


def switch(copy="deepcopy(net)", what=RIGHT_SWITCH):
    return SWITCH.format(copy=copy, what=what)


test_exercise = mutations(
    "lookupvit",
    {
        1: Answers(
            right=[
                macs(),
                "def block_macs(n, m, c):\n    return lookup_macs(n, m, c)\n",
            ],
            wrong=[
                macs(scatter="(m + n) * c * c + 2 * n * m * c"),  # scores computed again
                macs(gather="2 * (m + n) * c * c + n * m * c"),  # one product of the two
                macs(light="8 * n * c * c"),  # a full MLP on the shelf
                macs(refine="12 * m * c * c"),
                "def block_macs(n, m, c):\n    return vit_macs(n, c)\n",
            ],
        ),
        2: Answers(
            right=[
                scatter(),
                scatter(
                    "scores.softmax(-1)",
                    "torch.einsum('b h m n, b h m d -> b h n d', weights, values)",
                ),
            ],
            wrong=[
                scatter("scores.mT.softmax(-1)"),  # a softmax of its own
                scatter("scores.softmax(2).mT"),
                scatter("scores.softmax(-1).mT", "weights @ values.flip(2)"),
                scatter("scores.softmax(-1)", "values.mT @ weights"),  # turned around
                scatter("scores.mT"),  # no softmax at all
            ],
        ),
        3: Answers(
            right=[switch()],
            wrong=[
                switch(copy="net"),  # changes the net itself
                switch(what='block.scatter.renormalise = how == "softmax"'),  # never none
                switch(what=RIGHT_SWITCH.replace('= how == "softmax"', "= True")),
                switch(what=RIGHT_SWITCH.replace('= how == "softmax"', '= how == "transposed"')),
                switch(
                    what="""if how == "none":
            nn.init.zeros_(block.scatter.proj.weight)
        block.scatter.renormalise = how == "softmax\""""
                ),  # its bias is still written
            ],
        ),
    },
)
