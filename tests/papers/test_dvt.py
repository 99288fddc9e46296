"""DVT: equal to the reference outputs; views; both stages on a problem whose answer is known."""

import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import refimpl
from refimpl import weights
from refimpl.papers import dvt
from refimpl.papers.dvt import ArtifactModel, Crop, Denoiser, NeuralField
from refimpl.viz import artifacts
from refimpl.viz.attention import record

STEM = "dvt"
FIELD = dict(num_levels=3, features_per_level=4, base_resolution=4, max_resolution=16)


def test_official(official_case):
    kinds = {
        "denoiser": check_denoiser,
        "stage1_losses": check_stage1_losses,
        "stage1_maps": check_stage1_maps,
        "stage1_lr": check_stage1_lr,
        "stage2_lr": check_stage2_lr,
        "stage2_loss": check_stage2_loss,
        "view_coords": check_view_coords,
        "maps": check_maps,
    }
    (check,) = (kinds[kind] for kind in kinds if official_case.name.startswith(kind))
    check(official_case)


def check_denoiser(case):
    model = Denoiser(**case.kwargs).eval()
    # a file that leaves the tensors out: ours under their official names
    spec = case.data.get("state") or {
        official(name, case.kwargs): list(t.shape) for name, t in model.state_dict().items()
    }
    case.fill(model, spec=spec)
    case.check_params(model)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        output = model(*case.inputs())
    case.check(output)
    attention = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op)
    )
    if case.data["macs"]:
        assert (counter.get_total_flops() - attention) // 2 == case.data["macs"]


def official(name, kwargs):
    return (
        name.replace("blocks.0.", "denoiser.")
        if kwargs.get("num_blocks", 1) == 1
        else name.replace("blocks.", "denoiser.")
    )


def noise_model(case):
    g = case.recorded("shared_artifacts")
    model = ArtifactModel(*g.shape[1:])
    state = {"shared_artifacts": g} | {
        n: case.recorded(n) for n in case.data["inputs"] if n.startswith("residual_predictor")
    }
    return weights.load_official(
        model, {name: torch.from_numpy(value) for name, value in state.items()}
    )


def check_stage1_losses(case):
    found = {}
    for phase in (1, 2):
        noise = noise_model(case)
        raw, field = (
            torch.from_numpy(case.recorded("raw")),
            torch.from_numpy(case.recorded("field")).requires_grad_(),
        )
        noise.shared_artifacts.requires_grad_(phase == 1)
        artifact = noise.artifact(torch.from_numpy(case.recorded("artifact_coords")))
        losses = dvt.stage1_loss(
            raw, field, artifact, noise.residual_predictor(raw) if phase == 2 else None
        )
        losses["loss"].backward()
        found |= {f"phase{phase}.{name}": value for name, value in losses.items()}
        found |= {
            f"phase{phase}.grad_field": field.grad,
            f"phase{phase}.grad_shared_artifacts": noise.shared_artifacts.grad,
        }
        found |= {
            f"phase{phase}.grad_{name}": p.grad
            for name, p in noise.residual_predictor.named_parameters(prefix="residual_predictor")
        }
    case.check(found, rtol=1e-5)


def check_stage1_maps(case):
    noise = noise_model(case)
    raw = torch.from_numpy(case.recorded("raw"))
    parts = noise.decompose(raw, torch.from_numpy(case.recorded("field")).view_as(raw))
    total = dvt.stage1_loss(raw, parts["field"], parts["artifact"], parts["residual"])["loss"]
    names = dict(
        shared_patterns="artifact",
        pred_residual="residual",
        pred_features="predicted",
        denoised_feats="field",
        denoised_features="subtracted",
    )
    case.check(
        {official: parts[ours] for official, ours in names.items()} | {"loss": total}, rtol=1e-5
    )
    rows, cols = raw.shape[1:3]
    sampled = noise.artifact(dvt.artifact_coords((rows, cols)).view(-1, 2))
    torch.testing.assert_close(
        sampled.view_as(parts["artifact"]), parts["artifact"]
    )  # sampling hits the grid


def check_stage1_lr(case):
    a = case.arguments
    steps = case.recorded("iteration")
    case.check(
        torch.tensor(
            [
                dvt.stage1_lr(s, a["num_iters"], a["warmup_iters"], a["lr"], a["min_lr"])
                for s in steps.tolist()
            ],
            dtype=torch.float64,
        ),
        rtol=1e-12,
    )


def check_stage2_lr(case):
    a = case.arguments
    steps = case.recorded("iteration")
    case.check(
        torch.tensor(
            [
                dvt.stage2_lr(
                    s, a["base_value"], a["final_value"], a["total_iters"], a["warmup_iters"]
                )
                for s in steps.tolist()
            ],
            dtype=torch.float64,
        ),
        rtol=1e-12,
    )


def check_stage2_loss(case):
    losses = dvt.fitting_loss(*(torch.from_numpy(case.recorded(n)) for n in ("pred", "target")))
    case.check(
        {
            "l2": losses["patch_l2_loss"],
            "cosine": losses["cosine_similarity_loss"],
            "loss": losses["loss"],
        },
        rtol=1e-5,
    )


def check_view_coords(case):
    a = case.arguments
    plain, flipped = (
        dvt.patch_coords(
            Crop(a["top"], a["left"], a["height"], a["width"], flip),
            (a["image_height"], a["image_width"]),
            (a["patches_h"], a["patches_w"]),
        )
        for flip in (False, True)
    )
    case.check({"coords": plain, "coords_flipped": flipped}, rtol=1e-6)


def check_maps(case):
    features = torch.from_numpy(case.recorded("features"))[0]
    case.check(
        {
            "similarity_to_centre": artifacts.similarity_map(features),
            "norm_map": artifacts.norm_map(features),
        },
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("variant", "params"),
    [("small", 2_300_160), ("base", 8_139_264), ("large", 13_998_080), ("giant", 30_434_304)],
)
def test_denoiser_sizes_of_the_paper(variant, params):
    assert (
        sum(p.numel() for p in refimpl.create_model(f"dvt_denoiser_{variant}").parameters())
        == params
    )


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_official_denoiser_checkpoints_load(num_blocks, tmp_path):
    kwargs = dict(feat_dim=64, noise_map_height=4, noise_map_width=5, num_blocks=num_blocks)
    source, target = Denoiser(**kwargs).eval(), Denoiser(**kwargs).eval()
    state = {official(name, kwargs): tensor for name, tensor in source.state_dict().items()} | {
        "vit.cls_token": torch.zeros(1, 1, 64)
    }
    torch.save({"denoiser": state, "step": 7}, tmp_path / "denoiser.pth")
    x = torch.randn(2, 4, 5, 64)
    assert torch.equal(weights.load_official(target, tmp_path / "denoiser.pth")(x), source(x))


def test_denoiser_learns_everywhere_and_records():
    model = Denoiser(feat_dim=128, noise_map_height=3, noise_map_width=4, num_blocks=2)
    x = torch.randn(2, 3, 4, 128)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    plain = model(x)
    with record(model) as maps:
        assert torch.equal(model(x), plain)
    assert [m.weights.shape for m in maps] == [(2, 2, 12, 12)] * 2
    assert maps[0].to_image().shape == (2, 2, 12, 12)


def test_a_batch_is_shuffled_and_every_epoch_visits_each_pair_once():
    visits = []

    class Spy(Denoiser):
        def forward(self, features):
            visits.append(features[:, 0, 0, 0].tolist())
            return super().forward(features)

    raw = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, 2, 2, 64)
    dvt.fit_denoiser(Spy(64, 2, 2), raw, raw, 6, 2, g=torch.Generator().manual_seed(0))
    assert [len(batch) for batch in visits] == [2, 2, 1] * 2
    first, second = sum(visits[:3], []), sum(visits[3:], [])
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4] and first != second


def test_without_embedding_the_denoiser_knows_no_position():
    model = Denoiser(feat_dim=64, enable_pe=False).eval()
    x = torch.randn(1, 3, 4, 64)
    torch.testing.assert_close(
        model(x.roll((1, 2), (1, 2))), model(x).roll((1, 2), (1, 2)), rtol=1e-4, atol=1e-5
    )


def test_a_crop_that_is_the_image_has_the_whole_image_s_coordinates():
    coords = dvt.patch_coords(Crop(0, 0, 40, 60), (40, 60), (3, 5))
    assert coords.shape == (3, 5, 2)
    torch.testing.assert_close(coords[0, :, 0], torch.linspace(0, 1, 5))
    torch.testing.assert_close(coords[:, 0, 1], torch.linspace(0, 1, 3))


def test_first_and_last_patch_sit_on_the_edges_of_the_crop():
    """Difference dvt.d1: centres would lie half a patch inside."""
    x = dvt.patch_coords(Crop(0, 8, 16, 16), (32, 32), (4, 4))[0, :, 0] * 32
    torch.testing.assert_close(x, torch.tensor([8.0, 8 + 16 / 3, 8 + 32 / 3, 24.0]))
    centres = 8 + 16 * (torch.arange(4) + 0.5) / 4
    assert (x - centres).abs().max() == 2.0


def test_views_show_what_their_coordinates_say():
    """An image whose colour is the coordinate: patches carry what their crop covers."""
    size = 64
    row, col = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    views, coords = dvt.make_views(
        torch.stack([col, row]), 12, (8, 8), torch.Generator().manual_seed(0)
    )
    assert views.shape == (13, 2, size, size) and coords.shape == (13, 8, 8, 2)
    assert torch.equal(views[-1], torch.stack([col, row]))
    seen = torch.nn.functional.avg_pool2d(views, 8).permute(0, 2, 3, 1)  # (x, y) per patch
    half_patch = (coords[:, 0, -1, 0] - coords[:, 0, 0, 0]).abs().max() / 14 + 0.02
    assert (seen - coords).abs().max() < half_patch
    direction = (coords[:-1, 0, -1, 0] - coords[:-1, 0, 0, 0]).sign()
    assert set(direction.tolist()) == {-1.0, 1.0}


def test_crops_keep_to_their_ranges():
    g = torch.Generator().manual_seed(1)
    crops = [dvt.sample_crop(200, 300, g) for _ in range(400)]
    for c in crops:
        assert c.top >= 0 and c.top + c.height <= 200 and c.left >= 0 and c.left + c.width <= 300
        assert 0.095 < c.height * c.width / 60000 < 0.505 and 0.73 < c.width / c.height < 1.36
    assert 120 < sum(c.flip for c in crops) < 280
    # no such crop fits: the middle square
    assert dvt.sample_crop(10, 1000, g, area=(0.9, 1.0)).height == 10


def test_the_residual_passes_no_gradient_to_field_or_artifact_and_gets_none_from_them():
    raw, field, artifact, residual = (torch.randn(9, 8).requires_grad_() for _ in range(4))
    losses = dvt.stage1_loss(raw.detach(), field, artifact, residual)
    (losses["patch_l2_loss"] + losses["cosine_similarity_loss"]).backward(retain_graph=True)
    assert residual.grad is None and field.grad is not None
    field.grad = artifact.grad = None
    (losses["residual_loss"] + losses["residual_sparsity_loss"]).backward()
    assert field.grad is None and artifact.grad is None and residual.grad is not None


def made_features(views=40, side=6, dim=8, seed=0):
    """Features that are F(place) + G(position) exactly, for known F and G."""
    g = torch.Generator().manual_seed(seed)
    _, coords = dvt.make_views(torch.zeros(1, 48, 48), views, (side, side), g)
    waves = torch.randn(2, dim, generator=g) * 1.5
    truth_f = torch.sin(coords @ waves)
    truth_g = torch.randn(side, side, dim, generator=g)
    return truth_f + truth_g, coords, truth_f, truth_g


def centred_cosine(a, b):
    a, b = (x.reshape(-1, x.shape[-1]) - x.reshape(-1, x.shape[-1]).mean(0) for x in (a, b))
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_stage_1_separates_place_from_position():
    torch.manual_seed(0)
    raw, coords, truth_f, truth_g = made_features()
    steps = []
    field, noise = dvt.fit_image(
        raw,
        coords,
        300,
        256,
        torch.Generator().manual_seed(0),
        field=FIELD,
        on_step=lambda step, losses: steps.append((step, losses)),
    )
    assert [s for s, _ in steps] == list(range(300)) and steps[-1][1][
        "patch_l2_loss"
    ] < 0.25 * steps[0][1]["patch_l2_loss"]
    assert (
        "residual_loss" not in steps[150][1] and "residual_loss" in steps[151][1]
    )  # difference dvt.d5: step N/2 is still phase 1
    with torch.no_grad():
        found = field(coords[-1])
        assert (
            centred_cosine(found, truth_f[-1]) > 0.7 > 0.6 > centred_cosine(raw[-1], truth_f[-1])
        )  # few crops reach the image's corners
        assert centred_cosine(noise.artifact_map()[0], truth_g) > 0.9
        parts = noise.decompose(raw[-1:], found[None])
    torch.testing.assert_close(parts["predicted"] - parts["field"], raw[-1:] - parts["subtracted"])
    assert not noise.training and not field.training


def test_stage_1_without_artifacts_keeps_g_at_zero():
    torch.manual_seed(0)
    raw, coords, truth_f, _ = made_features()
    _, noise = dvt.fit_image(
        raw, coords, 20, 64, torch.Generator().manual_seed(0), artifacts=False, field=FIELD
    )
    assert not noise.shared_artifacts.any()


def test_the_artifact_map_is_frozen_in_the_second_phase():
    torch.manual_seed(0)
    raw, coords, *_ = made_features(views=4)
    maps = {}
    original = dvt.stage1_loss

    def spy(raw, field, artifact, residual=None):
        maps.setdefault(residual is not None, []).append(artifact.requires_grad)
        return original(raw, field, artifact, residual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dvt, "stage1_loss", spy)
        dvt.fit_image(raw, coords, 10, 16, field=FIELD)
    assert maps == {False: [True] * 6, True: [False] * 4}


def test_stage_2_learns_to_take_a_known_artifact_away():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    clean, artifact = (
        torch.randn(40, 4, 4, 64, generator=g),
        2 * torch.randn(1, 4, 4, 64, generator=g),
    )
    denoiser = dvt.fit_denoiser(
        Denoiser(64, 4, 4), clean[:32] + artifact, clean[:32], 150, 16, 2e-3, g
    )
    with torch.no_grad():
        found = denoiser(clean[32:] + artifact)
    assert (found - clean[32:]).square().mean() < 0.5 * artifact.square().mean()


def test_square_root_scaling_of_the_learning_rate():
    """Differences dvt.d3 and dvt.d4: warm-up in 15 % of the steps, rate by root of the batch."""
    rates = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dvt, "update", lambda optimizer, loss, lr: rates.append(lr))
        dvt.fit_denoiser(
            Denoiser(64, 2, 2), torch.randn(8, 2, 2, 64), torch.randn(8, 2, 2, 64), 20, 128
        )
    assert (
        max(rates) == pytest.approx(2e-4 * math.sqrt(128 / 256))
        and rates.index(max(rates)) == 2
        and rates[0] == 0
    )
    assert dvt.stage2_lr(50000, 1.0) == 1e-6


def test_neural_field_and_its_size():
    field = NeuralField(16)
    assert field(torch.rand(3, 4, 2)).shape == (3, 4, 16)
    assert field.table.numel() == pytest.approx(19.7e6, rel=3e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Denoiser(feat_dim=100), "feat_dim=100 must be a positive multiple of 64"),
        (lambda: Denoiser(feat_dim=0), "feat_dim=0 must be a positive multiple of 64"),
        (lambda: Denoiser(num_blocks=0), "num_blocks=0"),
        (lambda: Denoiser(noise_map_height=0), "noise_map_height=0 must be at least 1"),
        (lambda: Denoiser(64)(torch.randn(1, 64, 4, 4)), "features must be (b, h, w, 64)"),
        (lambda: Denoiser(64)(torch.randn(16, 64)), "features must be (b, h, w, 64)"),
        (lambda: ArtifactModel(2, 4, 4), "feat_dim=2"),
        (lambda: ArtifactModel(8, 0, 4), "noise_map_height=0 must be at least 1"),
        (lambda: NeuralField(8, num_levels=0), "num_levels=0"),
        (lambda: dvt.make_views(torch.zeros(32, 32), 3, (4, 4), None), "image must be"),
        (lambda: dvt.make_views(torch.zeros(3, 32, 32), 0, (4, 4), None), "num_views=0"),
        (
            lambda: dvt.fit_image(torch.zeros(2, 4, 4, 8), torch.zeros(3, 4, 4, 2)),
            "coords (3, 4, 4, 2)",
        ),
        (
            lambda: dvt.fit_image(torch.zeros(2, 4, 4, 8), torch.zeros(2, 4, 4, 2), num_steps=1),
            "num_steps=1",
        ),
        (
            lambda: dvt.fit_denoiser(
                Denoiser(64), torch.zeros(2, 4, 4, 64), torch.zeros(3, 4, 4, 64)
            ),
            "must have one shape",
        ),
        (lambda: refimpl.create_model("dvt_denoiser_huge"), "unknown model 'dvt_denoiser_huge'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_scaled_loss_weakens_adam_s_weight_decay():
    """Difference dvt.d2: Adam ignores a factor of 1024 on the loss, its L2 term does not."""

    def step(scale, decay):
        weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        optimizer = torch.optim.Adam([weight], betas=(0.9, 0.99), eps=1e-15, weight_decay=decay)
        for _ in range(3):
            dvt.update(optimizer, scale * (weight * torch.tensor([1e-3, 1e-3])).sum(), 0.01)
        return weight.detach()

    torch.testing.assert_close(step(1024, 0.0), step(1, 0.0))
    assert (
        (step(1024, 1e-3) - step(1, 0.0)).abs().max()
        < 1e-6
        < (step(1, 1e-3) - step(1, 0.0)).abs().max()
    )


def test_what_is_kept_is_the_field_not_the_difference():
    """Difference dvt.d6: two "denoised" maps exist, and they are not one."""
    torch.manual_seed(0)
    raw, field = torch.randn(2, 1, 4, 5, 8).unbind(0)
    parts = ArtifactModel(8, 4, 5).decompose(raw, field)
    assert parts["field"] is field
    torch.testing.assert_close(
        parts["subtracted"] - parts["field"], raw - parts["predicted"]
    )  # what the fit missed
    assert (parts["subtracted"] - field).norm() > 0.1
