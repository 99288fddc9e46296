"""ToC3D and its bases, EVA-02 and StreamPETR's memory, against the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import refimpl
from refimpl.bases.eva import EvaBlock, padded_windows, rotated, rotation_table, whole_map
from refimpl.bases.streampetr import (
    History,
    QueryMemory,
    fourier_code,
    moved,
    point_code,
    sine_code,
)
from refimpl.lab import measure
from refimpl.papers.toc3d import (
    NAMES,
    PADDING_SCORE,
    RoutedBlock,
    Selector,
    ToC3D,
    foreground_labels,
    route,
    saliency_loss,
)
from shared import models

STEM = "toc3d"
RENAMED = {
    "global_attn_indexes": "global_blocks",
    "pruning_num_queries": "num_queries",
    "pruning_loc": "selector_blocks",
    "token_ratio": "keep_ratios",
    "ratio": "keep_ratio",
    "use_represent_tokens": "bridge",
    "embed_dim": "dim",
}
NOT_OURS = ("img_size", "prev_exists", "rope_acc", "query_dim")


def options(kwargs: dict, **rename: str) -> dict:
    """Official arguments under our names; lists become tuples."""
    found = {}
    for name, value in kwargs.items():
        if name in NOT_OURS:
            continue
        value = tuple(value) if isinstance(value, list) else value
        found[rename.get(name, RENAMED.get(name, name))] = value
    return found


def history_of(inputs: list[Tensor], exists: bool) -> History:
    return History(*inputs, torch.full((len(inputs[0]),), float(exists)))


# ---------------------------------------------------------------- reference outputs


def test_official(official_case):
    kind = next(name for name in BUILDERS if official_case.name.startswith(name))
    with torch.inference_mode():
        BUILDERS[kind](official_case)


def positional_encodings(case):
    points, scalar, vector = case.inputs()
    given = case.data["arguments"]
    found = {
        "pos3d": point_code(points, given["pos3d num_pos_feats"]),
        "pos1d": sine_code(scalar, given["pos1d num_pos_feats"]),
        "nerf": fourier_code(vector, given["nerf bands"]),
    }
    case.check(found)


def merge_tokens(case):
    """The bridge of `route`, where nothing else is kept but one more token of highest score."""
    tokens, scores = case.inputs()
    first = torch.full((len(tokens), 1, tokens.shape[2]), 7.0)
    seen = []

    def update(packed, places):
        seen.append(packed[:, 1:])
        return torch.zeros_like(packed)

    highest = torch.zeros(len(tokens), 1)
    route(torch.cat([first, tokens], 1), torch.cat([highest, scores], 1), 1, update)
    case.check(seen[0])


def rope_with_selection(case):
    given = case.data["arguments"]
    t, index, t_full = case.inputs()
    table = rotation_table(
        given["grid"], 2 * given["dim (half a head)"], positions=given["pretrain length"]
    )
    chosen = tuple(part[index][:, None] for part in table)
    found = {"rotated": rotated(t, chosen), "rotated_full": rotated(t_full, table)}
    case.check(found | {"cos": table[0], "sin": table[1]})


def window_partition(case):
    (x,) = case.inputs()
    given = case.data["arguments"]
    side = given["window"]
    windows = padded_windows(x, side, given["pad_value"])
    padded = [size + -size % side for size in x.shape[1:3]]
    found = {"windows": windows.unflatten(1, (side, side)), "padded": torch.tensor(padded)}
    case.check(found | {"back": whole_map(windows, x.shape[1:3], side)})


def semantic_loss(case):
    boxes, masks = case.inputs()
    given = case.data["arguments"]
    empty = boxes[:0]
    labels = foreground_labels(
        [boxes] + [empty] * (given["views"] - 1), masks.shape[-2:], given["patch"]
    )
    loss = saliency_loss(masks.flatten(1, 2), labels, given["loss_weight"])
    case.check({"target": labels, "loss": loss})


def query_memory(case):
    given = case.data["arguments"]

    def recorded(name):
        return torch.from_numpy(np.asarray(case.recorded(name)))

    frames = sorted({name[:2] for name in case.data["inputs"] if name[0] == "t"})
    dim = recorded("t0_embedding").shape[-1]
    memory = QueryMemory.empty(
        1,
        recorded("pseudo_reference_points"),
        given["memory_len"],
        dim,
        tuple(given["pc_range"]),
    )
    found = {}
    for i, t in enumerate(frames):
        pose, time = recorded(f"{t}_ego_pose"), recorded(f"{t}_timestamp")
        memory = memory.aligned(pose, time, torch.tensor([float(i > 0)]))
        found |= fields(memory, f"{t}_pre")
        frame = (recorded(f"{t}_{part}") for part in ("embedding", "boxes", "class_logits"))
        memory = memory.pushed(*frame, pose, time, given["topk"])
        found |= fields(memory, f"{t}_post")
    case.check(found)


def fields(memory: QueryMemory, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}_embedding": memory.embedding,
        f"{prefix}_reference_point": memory.reference_point,
        f"{prefix}_timestamp": memory.timestamp,
        f"{prefix}_egopose": memory.ego_pose,
        f"{prefix}_velo": memory.velocity,
    }


def selector_of(case, **more) -> Selector:
    selector = Selector(**{"keep_ratio": 0.5} | options(case.kwargs) | more)
    case.fill(selector)
    case.check_params(selector)
    return selector.eval()


def motion_aware_queries(case):
    dim = case.data["state"]["in_conv.0.weight"][0]
    case.check(selector_of(case, dim=dim).queries(History(*case.inputs())))


def selectors(case):
    x, mask, *history = case.inputs()
    selector = selector_of(case)
    given = history_of(history, case.kwargs["prev_exists"])
    found = selector(x, mask.sigmoid(), given)
    order = found.scores.flatten(1).argsort(stable=True, dim=-1, descending=True)
    dropped = order[:, found.kept.shape[1] :]
    flat = found.scores.flatten(1)
    case.check(
        {
            "output.keep_score": flat.gather(1, found.kept),
            "output.drop_score": flat.gather(1, dropped),
            "output.keep_idx": found.kept,
            "output.drop_idx": dropped,
            "output.mask": found.mask,
            "output.score": found.scores,
        }
    )
    if not case.kwargs["prev_exists"]:
        alone = selector(x, mask.sigmoid(), None)
        torch.testing.assert_close(alone.scores, found.scores)


def eva_block(case):
    block = EvaBlock(**options(case.kwargs))
    case.fill(block, NAMES["official"])
    case.check_params(block)
    case.check(block.eval()(*case.inputs(), rotation_of(block)))


def rotation_of(block: EvaBlock):
    head_dim = block.norm1.normalized_shape[0] // block.attn.num_heads
    return rotation_table(block.window_size, head_dim)


def router_block(case):
    x, noise = case.inputs()
    block = RoutedBlock(**options(case.kwargs))
    case.fill(block)
    case.check_params(block)
    case.check(block.eval()(x, rotation_of(block), noise.sigmoid().log()))


def backbone(case):
    """Features within 1e-3, as selection is a jump; kept tokens as sets, equal."""
    images, *history = case.inputs()
    model = ToC3D(**options(case.kwargs, embed_dim="embed_dim"))
    case.fill(model, spec=case.data["state"] or own_names(model))
    case.check_params(model)
    given = history_of(history, case.kwargs["prev_exists"])
    features, selections = model.eval().select(images, given)
    found = {"output.feat": features}
    for i, selection in enumerate(selections):
        found[f"output.mask{i}"] = selection.mask
        found[f"output.keep{i}"] = selection.kept.sort(-1).values
    case.check({name: found[name] for name in case.data["outputs"]}, rtol=1e-3)
    assert all(case.deviations.get(f"output.keep{i}", 0) == 0 for i in range(len(selections)))


def own_names(model) -> dict[str, list[int]]:
    """For files that leave the state dict to another: official names are ours."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


BUILDERS = {
    "positional_encodings": positional_encodings,
    "merge_tokens": merge_tokens,
    "rope_with_selection": rope_with_selection,
    "window_partition": window_partition,
    "semantic_loss": semantic_loss,
    "query_memory": query_memory,
    "motion_aware_queries": motion_aware_queries,
    "selector": selectors,
    "eva_block": eva_block,
    "router_block": router_block,
    "backbone": backbone,
}


# ---------------------------------------------------------------- the family


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        ("toc3d_large_fast", {}, 311_060_574),
        ("toc3d_large_faster", {}, 311_060_574),
        ("toc3d_large_fast", dict(keep_ratios=()), 303_388_608),  # the dense backbone
        ("toc3d_base_fast", dict(keep_ratios=()), 85_848_576),
    ],
)
def test_parameter_counts(name, options, params):
    with torch.device("meta"):
        assert measure.parameters(refimpl.create_model(name, **options)) == params


def history(batch=2, queries=5):
    sizes = ((256,), (3,), (2,), (1,), (4, 4))
    drawn = [torch.randn(batch, queries, *size) for size in sizes]
    return History(*drawn, torch.randn(batch, 4, 4))


@pytest.mark.parametrize(("ratios", "gmacs"), [((), 404.8), ((0.7, 0.5, 0.5), 336.9)])
def test_multiply_adds_of_a_view(ratios, gmacs):
    """The sheet's counts, with a history."""
    with torch.device("meta"):
        model = refimpl.create_model("toc3d_large_fast", keep_ratios=ratios)
        given = history(1, 64)
        counted = measure.macs(model, torch.empty(1, 3, 320, 800), given)
    assert counted / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_selectors_and_wide_windows_are_spread_by_rule():
    with torch.device("meta"):
        large = refimpl.create_model("toc3d_large_faster")
        base = refimpl.create_model("toc3d_base_faster")
    assert large.selector_blocks == (6, 12, 18) and base.selector_blocks == (3, 6, 9)
    wide = [i for i, block in enumerate(large.blocks) if block.window_size == 20]
    assert wide == [2, 5, 8, 11, 14, 17, 20, 23]
    kept = [block.keep for block in large.blocks if isinstance(block, RoutedBlock)]
    assert kept[:3] == [128, 128, 200]  # ⌊0.5 · 256⌋ and ⌊0.5 · 400⌋


# ---------------------------------------------------------------- properties of the idea

SMALL = dict(embed_dim=32, depth=6, num_heads=2, window_size=3, global_window_size=4)
SMALL |= dict(num_queries=5, pretrain_img_size=64)


def small(**options) -> ToC3D:
    torch.manual_seed(0)
    return models.lively(ToC3D(**SMALL | options))


def block_of(ratio, **options):
    torch.manual_seed(0)
    return models.lively(RoutedBlock(32, 2, 4, ratio, **options))


def test_all_kept_is_a_plain_block_where_nothing_is_padded():
    """toc3d.d5: on a map that windows divide the two agree, elsewhere the order of pad and norm
    shows."""
    routed = block_of(1.0)
    plain = EvaBlock(32, 2, 4).eval()
    plain.load_state_dict(routed.state_dict())
    table = rotation_of(plain)
    with torch.no_grad():
        for grid, same in (((8, 4), True), ((7, 5), False)):
            x = torch.randn(2, *grid, 32)
            apart = models.error(routed(x, table, torch.zeros(2, *grid)), plain(x, table))
            assert (apart < 1e-5) == same


def test_redundant_tokens_of_a_window_move_together():
    """The free path adds one change to all of them; without a bridge they stay."""
    x, scores = torch.randn(1, 4, 4, 32), torch.randn(1, 4, 4).sigmoid().log()
    low = scores.flatten().argsort()[:8]
    for bridge in (True, False):
        block = block_of(0.5, bridge=bridge)
        with torch.no_grad():
            moved = (block(x, rotation_of(block), scores) - x).view(16, 32)[low]
        torch.testing.assert_close(moved, moved[:1].expand(8, -1), rtol=1e-4, atol=1e-5)
        assert bool(moved.abs().max() > 0.1) == bridge


def test_only_the_order_of_salient_scores_matters():
    x, scores = torch.randn(1, 4, 4, 32), torch.randn(1, 4, 4).sigmoid().log()
    block = block_of(0.5)
    higher = torch.where(scores > scores.flatten().median(), scores / 2, scores)
    with torch.no_grad():
        table = rotation_of(block)
        torch.testing.assert_close(block(x, table, scores), block(x, table, higher))


def test_bridge_prefers_the_least_salient():
    """toc3d.d1: scores are negative, so a lower one is a larger share of their sum."""
    tokens = torch.eye(4)[None]
    scores = torch.tensor([[-0.1, -1.0, -2.0, -3.0]])
    seen = []

    def update(packed, places):
        seen.append(packed)
        return torch.zeros_like(packed)

    route(tokens, scores, 1, update)
    torch.testing.assert_close(seen[0][0, 1], torch.tensor([0.0, 1, 2, 3]) / 6)


def test_padding_competes_and_counts():
    """toc3d.d2: a window with 4 rows of the map keeps all its real tokens, and zeros beside them;
    where padding is among the redundant, the bridge is nearly nothing."""
    block = block_of(0.5)
    scores = torch.randn(1, 2, 4).sigmoid().log()  # 8 of 16 tokens are real
    seen = []

    def update(packed, places):
        seen.append((packed, places))
        return torch.zeros_like(packed)

    x = torch.randn(1, 2, 4, 32)
    windows = padded_windows(x, 4)
    padded = padded_windows(scores[..., None], 4, PADDING_SCORE)[..., 0]
    route(windows, padded, block.keep, update)
    packed, places = seen[0]
    assert sorted(places[0, :8].tolist()) == list(range(8))
    route(windows, padded, 4, update)
    assert seen[1][0][0, 4].abs().max() < 1e-5 < packed[0, :8].abs().min() + 1
    with torch.device("meta"):
        model = refimpl.create_model("toc3d_large_fast", keep_ratios=(0.5,) * 3)
        dense = refimpl.create_model("toc3d_large_fast", keep_ratios=())
        macs = [measure.macs(m, torch.empty(1, 3, 320, 800)) for m in (model, dense)]
    assert 0.65 < macs[0] / macs[1] < 0.80  # half kept in three of four blocks would be 0.63


def test_mask_is_drawn_in_training_alone():
    """toc3d.d3: as the official code draws it in evaluation too, its inference is random."""
    model = small()
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        drawn = small().train()
        first, second = (drawn.select(images)[1][0].mask for _ in range(2))
    assert not torch.equal(first, second)


def test_routed_blocks_drop_no_path():
    """toc3d.d7"""
    model = small(drop_path_rate=0.5)
    kinds = [(type(block), block.drop_path.p > 0) for block in model.blocks]
    assert kinds == [(EvaBlock, False)] + [(RoutedBlock, False)] * 5
    assert [b.drop_path.p > 0 for b in small(drop_path_rate=0.5, keep_ratios=()).blocks[1:]]


def test_bridge_has_the_place_after_the_last_kept_rank():
    """toc3d.d6: place k of the window, whatever token stands there."""
    places = []

    def update(packed, where):
        places.append(where)
        return torch.zeros_like(packed)

    route(torch.randn(2, 9, 4), torch.randn(2, 9).sigmoid().log(), 4, update)
    assert places[0][:, 4].tolist() == [4, 4]


def test_each_sample_decides_for_its_own_history():
    """toc3d.d8: a scene that begins beside one that runs is treated as it would be alone."""
    model = small()
    images = torch.randn(4, 3, 64, 80)  # two cameras each
    given = history()
    mixed = given._replace(exists=torch.tensor([1.0, 0.0]))
    with torch.no_grad():
        both = model(images, mixed)
        torch.testing.assert_close(
            both[:2], model(images[:2], History(*(t[:1] for t in given[:6])))
        )
        torch.testing.assert_close(both[2:], model(images[2:]))


def test_queries_follow_the_car_and_the_objects():
    """Pose and points moved alike change nothing; another velocity does."""
    torch.manual_seed(0)
    selector = models.lively(Selector(32, 0.5, num_queries=5))
    given = history(1)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]]))
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, torch.tensor([5.0, 2.0, 0.5])
    points = given.reference_point @ turn.T + pose[:3, 3]
    elsewhere = given._replace(
        reference_point=points, inverse_pose=given.inverse_pose @ pose.inverse()
    )
    with torch.no_grad():
        here = selector.queries(given)
        torch.testing.assert_close(selector.queries(elsewhere), here, rtol=1e-3, atol=1e-3)
        faster = selector.queries(given._replace(velocity=given.velocity + 1))
    assert models.error(faster, here) > 0.01


def test_memory_hands_out_relative_times_and_poses():
    """toc3d.d4: as released, clock seconds of 1.5e9 in float32, where half a second is nothing."""
    memory = QueryMemory.empty(1, torch.rand(2, 3), 6, dim=256)
    pose, clock = torch.eye(4)[None].clone(), torch.tensor([1.5e9], dtype=torch.float64)
    pose[:, 0, 3] = 100.0
    frame = (torch.randn(1, 5, 256), torch.randn(1, 5, 10), torch.randn(1, 5, 3))
    memory = memory.aligned(pose, clock, torch.zeros(1)).pushed(*frame, pose, clock, 3)
    next_pose = pose.clone()
    next_pose[:, 0, 3] = 103.0
    now = clock + 0.5
    ours = memory.history(3, next_pose, now)
    code = memory.history(3, next_pose, now, released=True)
    assert (ours.timestamp == 0.5).all()
    assert ours.ego_pose[0, 0, 0, 3] == pytest.approx(-3)
    assert (code.timestamp == -1.5e9).all()  # minus the clock, in steps of 128
    assert code.ego_pose[0, 0, 0, 3] == pytest.approx(100)
    assert torch.equal(code.timestamp, (code.timestamp.double() + 0.5).float())
    aligned = memory.aligned(next_pose, now, torch.ones(1))
    torch.testing.assert_close(aligned.timestamp[:, :3], ours.timestamp.double())
    torch.testing.assert_close(aligned.ego_pose[:, :3], ours.ego_pose)
    seen = moved(ours.inverse_pose, ours.reference_point)
    torch.testing.assert_close(aligned.reference_point[:, :3], seen)


def test_labels_leave_out_the_last_row_and_column():
    """A box over the whole image still leaves the edge of the map background."""
    labels = foreground_labels([torch.tensor([[-5.0, -5, 999, 999]])], (4, 6))
    assert labels[0, :3, :5].all() and labels[0, 3].sum() == labels[0, :, 5].sum() == 0


def test_loss_teaches_the_selectors():
    model = small().train()
    images = torch.randn(2, 3, 64, 80)
    labels = torch.zeros(2, 4, 5)
    labels[:, 1:3, 1:3] = 1
    _, selections = model.select(images, history()._replace(exists=torch.ones(2)))
    masks = torch.stack([selection.mask[..., 0] for selection in selections])
    saliency_loss(masks, labels).backward()
    selector = model.score_predictor[0]
    assert selector.aggregate[0].weight.grad.any() and selector.input_proj[0].weight.grad.any()
    sure = saliency_loss(labels.clamp(0.01, 0.99)[None], labels)
    assert sure < 1e-4 < saliency_loss(torch.full((1, 2, 4, 5), 0.5), labels)


def test_fused_form_is_equal_with_a_history_too():
    model = small()
    images, given = torch.randn(4, 3, 64, 80), history()
    fused = model.fuse()
    with torch.inference_mode():
        assert models.error(fused(images, given), model(images, given)) < 1e-5
        assert models.error(fused(images), model(images)) < 1e-5
    assert not any(name.endswith("pc_range") for name, _ in fused.named_parameters())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keep_ratios=(0.01, 0.5, 0.5)), "keep_ratio=0.01 keeps none of 9 tokens"),
        (dict(keep_ratios=(0.5, 0.0)), "keep_ratio=0.0 keeps none"),
        (dict(keep_ratios=(1.5,)), "keep_ratio=1.5 keeps none"),
        (dict(selector_blocks=(1, 2)), "must be equally long"),
        (dict(selector_blocks=(1, 3, 6)), "selector_blocks=(1, 3, 6) must rise and lie in 0 … 5"),
        (dict(selector_blocks=(3, 1, 4)), "selector_blocks=(3, 1, 4) must rise"),
        (dict(global_blocks=(2, 9)), "global_blocks=(2, 9) must rise"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=32"),
        (dict(embed_dim=36, num_heads=6), "head_dim=6 must be a positive multiple of 4"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0 must be at least 0"),
        (dict(num_queries=0), "num_queries=0 must be an integer of at least 1"),
        (dict(pretrain_img_size=8), "pretrain_img_size=8"),
        (dict(window_size=0), "window_size=0 must be an integer of at least 1"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: ToC3D(**SMALL | change), message)


def test_bad_input():
    model, given = small(), history()
    images = torch.randn(4, 3, 64, 80)
    for images_, history_, message in [
        (images[:3], given, "images are 3 views, history is of 2 samples"),
        (images, history(2, 4), "history holds 4 queries, these selectors read 5"),
        (images, history(2, 0), "history holds 0 queries"),
        (images, given._replace(velocity=torch.randn(2, 5, 3)), "velocity must be"),
        (images, given._replace(inverse_pose=torch.randn(1, 4, 4)), "inverse_pose must be"),
        (images[..., :70], given, "images are 64×70 pixels, both sides must be multiples of 16"),
        (images[:, :1], given, "images have 1 channels"),
    ]:
        models.assert_refused(lambda i=images_, h=history_: model(i, h), message)
    memory = QueryMemory.empty(1, torch.rand(2, 3), 6)
    pose, clock = torch.eye(4)[None], torch.zeros(1, dtype=torch.float64)
    for call, message in [
        (lambda: QueryMemory.empty(1, torch.rand(9, 3), 6), "pseudo_points are 9, more than"),
        (lambda: memory.history(0, pose, clock), "num_queries=0 must be at least 1"),
        (lambda: memory.history(7, pose, clock), "at most the 6 queries"),
        (lambda: memory.aligned(pose.expand(2, 4, 4), clock.expand(2), torch.ones(2)), "2 samples"),
        (lambda: foreground_labels([torch.randn(2, 3)], (4, 5)), "boxes[0] must be"),
        (lambda: saliency_loss(torch.rand(1, 2, 4, 5), torch.rand(2, 4, 6)), "labels must be"),
    ]:
        models.assert_refused(call, message)
