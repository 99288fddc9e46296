"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations


def precision(body):
    return f"""
def precision_at(confusion, counts):
    rows = confusion.double()
    {body}
"""


def chances(formula):
    return f"""
def chances(labels):
    n = torch.bincount(labels).float()
    weights = 1 / n[labels]
    return {formula}
"""


def cheapest(formula):
    return f"""
def cheapest(logits, costs):
    p = logits.softmax(dim=1)
    return {formula}
"""


test_exercise = mutations(
    "breast_efficientnet",
    {
        1: Answers(
            right=[
                precision("return breast.at_shares(confusion, counts).precision"),
                precision(
                    "rates = rows / rows.sum(1, keepdim=True)\n"
                    "    return rates.diagonal() * counts / (counts.double() @ rates)"
                ),
            ],
            wrong=[
                precision("return rows.diagonal() / rows.sum(0)"),  # of the test itself
                precision("return rows.diagonal() / rows.sum(1)"),  # recall
                precision(
                    "rows = rows * counts[:, None]\n    return rows.diagonal() / rows.sum(0)"
                ),
                precision("rows = rows * counts\n    return rows.diagonal() / rows.sum(0)"),
                precision("rows = rows / rows.sum(0)\n    return rows.diagonal() * counts"),
            ],
        ),
        2: Answers(
            right=[
                chances("weights / weights.sum()"),
                chances("class_weights(n.tolist())[labels].float() / len(labels)"),
            ],
            wrong=[
                chances("weights"),  # they sum to 3
                chances("torch.full((len(labels),), 1 / len(labels))"),
                chances("weights.sqrt() / weights.sqrt().sum()"),
                chances("n[labels] / n[labels].sum()"),  # the wrong way
                chances("weights.softmax(0)"),
            ],
        ),
        3: Answers(
            right=[
                cheapest("(p[:, :, None] * costs).sum(1).argmin(1)"),
                cheapest("(-(p @ costs)).argmax(1)"),
            ],
            wrong=[
                cheapest("(p @ costs).argmax(1)"),  # the dearest
                cheapest("(p @ costs.T).argmin(1)"),  # truth and answer exchanged
                cheapest("(logits @ costs).argmin(1)"),  # logits are no chances
                cheapest("costs[p.argmax(1)].argmin(1)"),  # as if the best guess were sure
                cheapest("p.argmax(1)"),
            ],
        ),
    },
)
