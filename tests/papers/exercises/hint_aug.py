"""Answers to the exercises: right ones in another form, and mistakes that readers make."""

from shared.exercises import Answers, mutations


def noise(formula, inside="inside"):
    return f"""
def noise_attack(images, inside, noise, radius, low, high):
    moved = {formula}
    return torch.where({inside}, moved, images)
"""


def climb(lines):
    return f"""
def climb(model, images, inside, target, epsilon):
    {lines}
"""


BY_HAND = """leaf = images.clone().requires_grad_()
    loss = F.cross_entropy(model(leaf), target)
    (slope,) = torch.autograd.grad(loss, leaf)
    moved = (images + epsilon * slope.sign()).clamp(0, 1)
    return torch.where(inside, moved, images)"""


def changes(line, blocks="len(pretrained.blocks)"):
    return f"""
def changes(pretrained, tuned, images):
    found = []
    for block in range({blocks}):
        old, new = (attention_scores(net, images, block) for net in (pretrained, tuned))
        found.append({line})
    return found
"""


test_exercise = mutations(
    "hint_aug",
    {
        1: Answers(
            right=[
                noise("(images + radius * (noise * 2 - 1)).clamp(low, high)"),
                noise("torch.minimum(torch.maximum(images + 2*radius*noise - radius, low), high)"),
            ],
            wrong=[
                noise("(images + radius * noise).clamp(low, high)"),  # to one side
                noise("(images + 2 * radius * noise - radius)"),  # not clipped
                noise("(images + noise - 0.5).clamp(low, high)"),
                noise("(images + 2 * radius * noise - radius).clamp(low, high)", "~inside"),
                noise("(images + 2 * radius * noise - radius).clamp(0, 1)"),
            ],
        ),
        2: Answers(
            right=[climb(BY_HAND)],
            wrong=[
                climb("return pushed(model, images, inside, target, epsilon)"),
                climb("return pushed(model, images, inside, target, -2 * epsilon)"),
                climb("return pushed(model, images, ~inside, target, -epsilon)"),
                climb("return images"),
                climb(BY_HAND.replace("slope.sign()", "slope")),
                climb(BY_HAND.replace(".clamp(0, 1)", "")),
            ],
        ),
        3: Answers(
            right=[changes("torch.dist(old, new, p=float('inf'))")],
            wrong=[
                changes("(old - new).max()"),  # signed
                changes("(old - new).abs().mean()"),
                changes("(old - new).abs().max()", blocks="2"),
                changes("(old - new).abs().sum(1).max()"),
            ],
        ),
    },
)
