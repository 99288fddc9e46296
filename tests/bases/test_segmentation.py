"""Masks: losses and scores beyond the reference outputs of `building_unetpp`; the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refimpl.bases.segmentation import (
    confusion,
    definitions,
    largest_mean_iou,
    overlap_loss,
    scores,
    segmentation_loss,
    tables_with,
)
from shared import models

STEM = "segmentation"
LOGITS = torch.randn(3, 1, 6, 5, generator=torch.Generator().manual_seed(0))
MASKS = (
    LOGITS + torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(1)) > 0.5
).long()


def test_dice_of_a_batch_is_not_the_mean_of_its_images():
    """And a batch without a building has loss 0, whatever is said of it."""
    whole = overlap_loss(LOGITS, MASKS)
    apart = torch.stack([overlap_loss(LOGITS[i : i + 1], MASKS[i : i + 1]) for i in range(3)])
    assert abs(whole - apart.mean()) > 1e-3
    assert overlap_loss(LOGITS, torch.zeros_like(MASKS)) == 0


def test_losses_of_the_perfect_mask_and_their_order():
    sure = 40.0 * (2 * MASKS - 1)
    for alpha, beta in ((0.5, 0.5), (1, 1), (0.3, 0.7)):
        assert overlap_loss(sure, MASKS, alpha, beta) < 1e-6
        assert 0 < overlap_loss(LOGITS, MASKS, alpha, beta) < 1
    dice, jaccard = overlap_loss(LOGITS, MASKS), overlap_loss(LOGITS, MASKS, 1, 1)
    torch.testing.assert_close(1 - jaccard, (1 - dice) / (1 + dice))  # J = D / (2 − D)


def test_the_training_loss_is_the_mean_over_heads():
    one = segmentation_loss(LOGITS, MASKS)
    other = segmentation_loss(-LOGITS, MASKS)
    torch.testing.assert_close(segmentation_loss((LOGITS, -LOGITS), MASKS), (one + other) / 2)
    entropy = F.binary_cross_entropy_with_logits(LOGITS, MASKS.float())
    torch.testing.assert_close(one, entropy + overlap_loss(LOGITS, MASKS))


def test_losses_have_right_gradients():
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: segmentation_loss(z, MASKS), logits)


def test_scores_by_hand():
    counts = torch.tensor([[6, 2, 3, 9], [0, 0, 0, 20]])
    found = scores(counts)
    assert found["building IoU"] == pytest.approx(6 / 11)
    assert found["mean IoU"] == pytest.approx((6 / 11 + 29 / 34) / 2)
    by_image = scores(counts, "image")
    assert by_image["building IoU"] == pytest.approx((6 / 11 + 1) / 2)  # an empty image counts 1
    assert scores(counts, "none")["recall"].tolist() == pytest.approx([6 / 9, 1])


def test_nothing_to_divide_by_is_a_perfect_score():
    """Also inside a mean: no building, some found, and the mean of class recalls is 1, not 0.92."""
    empty = scores(torch.tensor([[0, 23, 0, 121]]))
    assert empty["building IoU"] == 0
    assert empty["recall"] == empty["class-mean accuracy"] == 1
    assert empty["specificity"] == pytest.approx(121 / 144)


def random_tables(count: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(4, 0.5), count).T


def test_no_table_has_a_mean_iou_above_the_bound():
    cells = random_tables(20_000)
    found = definitions(*cells)
    bound = np.array([largest_mean_iou(a) for a in found["pixel accuracy"]])
    assert (found["mean IoU"] <= bound + 1e-12).all()
    assert np.allclose(found["micro IoU"], bound)
    even = definitions(0.4, 0.15, 0.05, 0.4)
    assert even["mean IoU"] == pytest.approx(largest_mean_iou(0.8), abs=2e-3)


@pytest.mark.parametrize("kind", ["pixel accuracy", "class-mean accuracy"])
def test_the_table_that_scores_came_from_is_found(kind):
    for cells in (0.144, 0.011, 0.024, 0.821), (0.35, 0.12, 0.08, 0.45), (0.25, 0.02, 0.13, 0.6):
        found = definitions(*cells)
        wanted = {name: float(found[name]) for name in (kind, "mean IoU", "building precision")}
        assert any(np.allclose(cells, table, atol=1e-6) for table in tables_with(wanted, 400))


PUBLISHED = {"accuracy": 0.9223, "IoU": 0.8832, "precision": 0.932}


def test_published_scores_need_the_mean_of_class_recalls():
    """By pixel the mean IoU could be 85.6 % at most; by class there is a table with few roofs."""
    accuracy, iou, precision = PUBLISHED.values()
    assert largest_mean_iou(accuracy) == pytest.approx(0.8558, abs=1e-4)
    wanted = {"pixel accuracy": accuracy, "mean IoU": iou, "building precision": precision}
    assert tables_with(wanted) == []
    tables = tables_with(
        {"class-mean accuracy": accuracy, "mean IoU": iou, "building precision": precision}
    )
    few = min(tables, key=lambda cells: cells[0] + cells[2])
    assert few[0] + few[2] == pytest.approx(0.168, abs=1e-3)
    assert definitions(*few)["building IoU"] == pytest.approx(0.805, abs=2e-3)
    assert definitions(*few)["pixel accuracy"] == pytest.approx(0.965, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: overlap_loss(LOGITS, MASKS[..., :-1]), "both must be (batch, 1, height, width)"),
        (lambda: overlap_loss(LOGITS[0], MASKS[0]), "both must be (batch, 1, height, width)"),
        (lambda: overlap_loss(LOGITS, 255 * MASKS), "masks must hold 0 (background) and 1"),
        (lambda: overlap_loss(LOGITS, MASKS, alpha=-1), "alpha=-1 must be at least 0"),
        (lambda: segmentation_loss((), MASKS), "at least one tensor"),
        (lambda: confusion(LOGITS > 0, MASKS[:2]), "masks are (2, 1, 6, 5)"),
        (lambda: confusion(LOGITS.numpy() > 0, MASKS), "prediction must be a torch.Tensor"),
        (lambda: scores(torch.ones(4)), "counts must be (images, 4)"),
        (lambda: scores(torch.ones(0, 4)), "counts must be (images, 4)"),
        (lambda: scores(torch.ones(1, 4), "mean"), "reduction='mean'"),
        (lambda: largest_mean_iou(92.23), "pixel_accuracy=92.23 must be between 0 and 1"),
        (lambda: tables_with({"recall": 0.9, "F1": 0.8, "mean IoU": 0.7}), "unknown accuracy"),
        (lambda: tables_with({"pixel accuracy": 0.9}), "an accuracy and two more scores"),
        (lambda: tables_with({"pixel accuracy": 90, "F1": 0.8, "recall": 0.7}), "between 0 and 1"),
    ],
)
def test_bad_input_is_named(call, words):
    models.assert_refused(call, words)
