"""ConViT: equal to the reference outputs; convolutional start; separable positions; the gate."""

import re

import pytest
import torch

import refimpl
from refimpl import weights
from refimpl.bases.deit import Attention, Block
from refimpl.deploy import deploy
from refimpl.deploy.convit import FixedGPSA, kronecker, positional_factors, separable_product
from refimpl.papers.convit import GPSA, VARIANTS, ConViT, non_locality, relative_features
from refimpl.viz import attention as seen
from shared import models

STEM = "convit"
SMALL = dict(
    img_size=32,
    patch_size=8,
    num_classes=5,
    embed_dim=36,
    depth=3,
    num_heads=9,
    local_up_to_layer=2,
)


def test_official(official_case):
    arguments = official_case.arguments
    if "gate" in arguments:
        return initial_layer(official_case, **arguments)
    if official_case.name.startswith("mhsa"):
        return plain_attention(official_case)
    if "dim" in official_case.kwargs:
        return whole(
            official_case, GPSA(**official_case.kwargs), lambda layer, x: {"output": layer(x)}
        )
    variant = max((v for v in VARIANTS if official_case.name.startswith(v)), key=len)
    with_stages = any("." in name for name in official_case.data["outputs"])
    whole(
        official_case,
        refimpl.create_model(f"convit_{variant}", **official_case.kwargs),
        stages if with_stages else lambda model, x: {"output": model(x)},
    )
    with torch.device("meta"):
        official_case.check_params(refimpl.create_model(f"convit_{variant}"))


def whole(case, model, outputs):
    """Ours are the official names: the model itself says which tensors the file leaves out."""
    spec = case.data.get("state") or {
        name: list(tensor.shape) for name, tensor in model.state_dict().items()
    }
    case.fill(model.eval(), spec=spec)
    case.check_params(model)
    with torch.inference_mode():
        assert case.check(outputs(model, *case.inputs())) < 1e-5


def stages(model, images):
    named = weights.trace(
        model, images, ["patch_embed", *(f"blocks.{i}" for i in range(len(model.blocks)))]
    )
    tokens = model.forward_features(images)
    found = {"output." + name.replace("blocks.", "block"): tensor for name, tensor in named.items()}
    found["output.patch_embed"] = named["patch_embed"]
    return found | {"output.cls": tokens[:, 0], "output.logits": model.forward_head(tokens)}


def initial_layer(case, num_heads, grid, locality_strength, gate, query_row):
    x, qk = torch.from_numpy(case.recorded("x")), torch.from_numpy(case.recorded("qk_weight"))
    layer = GPSA(x.shape[-1], num_heads, locality_strength=locality_strength).eval()
    assert torch.equal(layer.gating_param, torch.full((num_heads,), gate))
    layer.qk.weight.data = qk
    with torch.no_grad(), seen.record(layer) as maps:
        layer(x)
        centres, _ = layer.centres()
        case.check(
            {
                "rel_indices_row_mid": relative_features(grid, grid)[query_row],
                "pos_proj_weight": layer.pos_proj.weight,
                "gating": layer.gating_param,
                "pos_attention_row_mid": layer.positional_map(grid, grid)[:, query_row],
                "attention_row_mid": maps[0].weights[:, :, query_row],
                "nonlocality": non_locality(maps[0].weights, grid, grid),
                "centre_distance": centres.norm(dim=-1),
            },
            rtol=1e-6,
        )


def plain_attention(case):
    x, qkv = torch.from_numpy(case.recorded("x")), torch.from_numpy(case.recorded("qkv_weight"))
    (heads,) = case.data["outputs"]["nonlocality"]["shape"]
    side = round(x.shape[1] ** 0.5)
    layer = Attention(x.shape[-1], heads, qkv_bias=False).eval()
    layer.qkv.weight.data = qkv
    with torch.no_grad(), seen.record(layer) as maps:
        layer(x)
    case.check(
        {
            "nonlocality": non_locality(maps[0].weights, side, side),
            "attention_mean": maps[0].weights.mean(0),
        },
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("tiny", 5_710_512),
        ("small", 27_777_322),
        ("small_plus", 48_979_882),
        ("base", 86_540_040),
        ("base_plus", 153_134_856),
    ],
)
def test_parameter_counts_of_the_paper(variant, params):
    with torch.device("meta"):
        assert (
            sum(p.numel() for p in refimpl.create_model(f"convit_{variant}").parameters()) == params
        )


def direct(layer, x, grid):
    """GPSA as the official code has it, positions with their bias, the mix renormalised.

    Returns the output and the map (b, heads, n, n).
    """
    b, n, c = x.shape
    heads, d = layer.num_heads, c // layer.num_heads
    q, k = layer.qk(x).view(b, n, 2, heads, d).permute(2, 0, 3, 1, 4)
    v = layer.v(x).view(b, n, heads, d).transpose(1, 2)
    content = (q @ k.transpose(-2, -1) * d**-0.5).softmax(-1)
    position = layer.pos_proj(relative_features(*grid).to(x)).permute(2, 0, 1).softmax(-1)
    gate = layer.gating_param.sigmoid()[:, None, None]
    mixed = (1 - gate) * content + gate * position
    mixed = mixed / mixed.sum(-1, keepdim=True)
    return layer.proj((mixed @ v).transpose(1, 2).reshape(b, n, c)), mixed


GRIDS = [(1, (3, 3)), (4, (5, 5)), (9, (4, 4)), (6, (2, 7)), (3, (1, 4))]  # heads and grid


def random_layer(heads, grid):
    """A layer with random weights, bias and gate, and tokens for it, in float64."""
    layer = GPSA(heads * 5, heads, qkv_bias=True, grid=grid).double().eval()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return layer, torch.randn(3, grid[0] * grid[1], heads * 5, dtype=torch.float64)


@pytest.mark.parametrize(("heads", "grid"), GRIDS)
def test_the_layer_equals_the_official_form(heads, grid):
    """For random weights, bias and gate; on rectangles too."""
    layer, x = random_layer(heads, grid)
    wanted, mixed = direct(layer, x, grid)
    with seen.record(layer) as maps:
        torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(maps[0].weights.double(), mixed, rtol=0, atol=1e-6)
    assert maps[0].grid == grid
    position = layer.pos_proj(relative_features(*grid).double()).permute(2, 0, 1).softmax(-1)
    torch.testing.assert_close(layer.positional_map(*grid), position)


@pytest.mark.parametrize(("heads", "grid"), GRIDS)
def test_separable_positions_equal_the_map(heads, grid):
    """The fused layer never makes P, and computes the same; its map, shown on demand, is A."""
    layer, x = random_layer(heads, grid)
    p_row, p_col = positional_factors(layer.pos_proj.weight, *grid)
    assert p_row.shape == (heads, grid[0], grid[0]) and p_col.shape == (heads, grid[1], grid[1])
    torch.testing.assert_close(kronecker(p_row, p_col), layer.positional_map(*grid))
    v = torch.randn(2, heads, grid[0] * grid[1], 3, dtype=torch.float64)
    torch.testing.assert_close(separable_product(p_row, p_col, v), layer.positional_map(*grid) @ v)
    wanted, mixed = direct(layer, x, grid)
    with seen.record(layer) as own, seen.record(fixed := FixedGPSA(layer)) as maps:
        layer(x)
        torch.testing.assert_close(fixed(x), wanted)
    torch.testing.assert_close(maps[0].weights.double(), mixed, rtol=0, atol=1e-6)
    assert maps[0].layout == own[0].layout


def test_gradients_equal_those_of_the_official_form():
    layer = GPSA(20, 4).double()
    x = torch.randn(2, 16, 20, dtype=torch.float64)
    upstream = torch.randn_like(x)
    ours = torch.autograd.grad(
        layer(x), [p for p in layer.parameters() if p.requires_grad], upstream
    )
    layer.pos_proj.bias.requires_grad_()
    theirs = torch.autograd.grad(direct(layer, x, (4, 4))[0], list(layer.parameters()), upstream)
    theirs = dict(zip(dict(layer.named_parameters()), theirs, strict=True))
    # the bias cancels: no gradient beyond rounding
    assert theirs.pop("pos_proj.bias").abs().max() < 1e-12
    for a, b in zip(ours, theirs.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_bias_has_no_effect():
    layer = GPSA(36, 9).eval()
    x = torch.randn(1, 25, 36)
    before = layer(x)
    layer.pos_proj.bias.data.normal_(std=100)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1, 2])
@pytest.mark.parametrize("heads", [1, 4, 9, 16, 25])
def test_convolutional_start(heads, alpha):
    layer = GPSA(heads * 2, heads, locality_strength=alpha)
    k = round(heads**0.5)
    rows, cols = torch.arange(heads) % k - (k - 1) / 2, torch.arange(heads) // k - (k - 1) / 2
    wanted = torch.stack([2 * cols, 2 * rows, torch.full((heads,), -1.0)], 1)
    torch.testing.assert_close(layer.pos_proj.weight.detach(), alpha * wanted)
    centres, strength = layer.centres()
    torch.testing.assert_close(strength, torch.full((heads,), float(alpha)))
    torch.testing.assert_close(centres, torch.stack([cols, rows], 1))
    assert torch.equal(layer.v.weight, torch.eye(heads * 2)) and torch.equal(
        layer.gate(), torch.full((heads,), torch.tensor(1.0).sigmoid().item())
    )
    if k % 2:  # odd kernels: the largest weight of the middle query lies on the head's centre
        side = k + 2
        middle = side // 2
        argmax = layer.positional_map(side, side)[:, middle * side + middle].argmax(-1)
        assert torch.equal(argmax, ((middle + rows) * side + middle + cols).long())


def test_heads_beyond_a_square_stay_small_and_random():
    layer = GPSA(24, 6, locality_strength=2.0)
    _, strength = layer.centres()
    torch.testing.assert_close(strength[:4], torch.full((4,), 2.0))
    assert 0 < layer.pos_proj.weight[4:].abs().max() < 0.5


def test_with_gate_one_and_large_strength_the_layer_is_a_convolution():
    """Claim 1 in its limit: nine shifted copies of the values, in the interior."""
    layer = GPSA(36, 9, locality_strength=40.0).eval()
    layer.gating_param.data.fill_(40.0)
    grid = torch.randn(1, 6, 6, 36)
    values = layer.v(grid)
    copies = []
    for head, (col, row) in enumerate(layer.centres()[0].round().long().tolist()):
        copies.append(values.roll((-row, -col), (1, 2))[..., head * 4 : head * 4 + 4])
    wanted = layer.proj(torch.cat(copies, -1))[:, 1:-1, 1:-1]
    found = layer(grid.view(1, 36, 36)).view(1, 6, 6, 36)[:, 1:-1, 1:-1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_uniform_attention_has_the_grid_s_mean_distance():
    for side, wanted in ((14, 7.281), (8, 4.136)):
        uniform = torch.full((2, 3, side**2, side**2), 1 / side**2)
        torch.testing.assert_close(
            non_locality(uniform, side, side), torch.full((3,), wanted), rtol=0, atol=1e-3
        )
        torch.testing.assert_close(non_locality(uniform, side, side), seen.non_locality(uniform))
    with pytest.raises(ValueError, match="leave the class token out"):
        non_locality(torch.ones(1, 1, 17, 17) / 17, 4, 4)


def test_forward_is_head_of_features_and_every_parameter_but_the_cancelling_bias_learns():
    model = ConViT(**SMALL, drop_path_rate=0.1)
    images = torch.randn(2, 3, 32, 32)
    model(images).square().sum().backward()
    silent = {
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    }
    assert silent == {f"blocks.{i}.attn.pos_proj.bias" for i in range(2)}
    model.eval()
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 17, 36)
    assert torch.equal(model.forward_head(tokens), model(images))


def test_the_class_token_joins_after_the_local_blocks():
    model = ConViT(**SMALL).eval()
    images = torch.randn(1, 3, 32, 32)
    before = weights.trace(model, images, ["blocks.1", "blocks.2"])
    model.cls_token.data += 1
    after = weights.trace(model, images, ["blocks.1", "blocks.2"])
    assert before["blocks.1"].shape == (1, 16, 36) and torch.equal(
        before["blocks.1"], after["blocks.1"]
    )
    assert before["blocks.2"].shape == (1, 17, 36) and not torch.allclose(
        before["blocks.2"], after["blocks.2"]
    )


def test_recording_changes_nothing_and_gives_every_map():
    model = ConViT(**SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    plain = model(images)
    with seen.record(model) as maps:
        assert torch.equal(model(images), plain)
    assert [m.name for m in maps] == [f"blocks.{i}.attn" for i in range(3)]
    assert [m.weights.shape for m in maps] == [(2, 9, 16, 16)] * 2 + [(2, 9, 17, 17)]
    for m in maps:
        torch.testing.assert_close(
            m.weights.sum(-1), torch.ones(m.weights.shape[:3]), rtol=0, atol=1e-6
        )
        assert m.to_image().shape == (2, 9, 16, 16)


@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"local_up_to_layer": 0}])
def test_fused_model(change):
    """Equal logits and maps; the class token alone; a second `fuse` changes nothing."""
    model = ConViT(**SMALL | change, drop_path_rate=0.3).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    images = torch.randn(2, 3, 32, 32)
    fused = model.fuse()
    with torch.no_grad(), seen.record(model) as maps:
        wanted = model(images)
    with torch.no_grad(), seen.record(fused) as again:
        got = fused(images)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(fused.fuse()(images), fused(images))
    assert fused.forward_features(images).shape == (2, 1, 36)
    assert [(m.name, m.layout) for m in again] == [(m.name, m.layout) for m in maps]
    for a, b in zip(again, maps, strict=True):
        torch.testing.assert_close(a.weights, b.weights, rtol=0, atol=1e-5)
    assert not any(isinstance(m, GPSA) for m in fused.modules()) and isinstance(
        model.blocks[-1], Block
    )
    assert {t.dtype for t in model.double().fuse().state_dict().values()} == {torch.float64}


def test_images_need_not_be_square():
    model = ConViT(**SMALL | dict(img_size=(32, 48))).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad(), seen.record(model) as maps:
        logits = model(images)
        torch.testing.assert_close(model.fuse()(images), logits, rtol=1e-4, atol=1e-5)
    assert [m.grid for m in maps] == [(4, 6)] * 3
    assert [m.to_image().shape for m in maps] == [(2, 9, 24, 24)] * 3


def test_without_classes_the_features_come_out():
    model = ConViT(**SMALL | dict(num_classes=0)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model.forward_features(images)[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    """Forward and backward as built, forward as fused."""
    model = ConViT(**SMALL)
    images = torch.randn(2, 3, 32, 32)
    wanted = model.eval()(images)
    with torch.autocast("cpu", dtype):
        fused = model.fuse()(images)
        logits = model.train()(images)
    for found in (logits, fused):
        assert torch.dist(found.float(), wanted) < 0.05 * wanted.norm()
    logits.float().square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_int8_quantisation_leaves_positions_alone(fused):
    model = ConViT(**SMALL).eval()
    model = model.fuse() if fused else model
    images = torch.randn(2, 3, 32, 32)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with torch.no_grad():
        wanted = model(images)
        assert torch.dist(quantised(images), wanted) < 0.1 * wanted.norm()


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step):
    def build():
        torch.manual_seed(0)
        return models.lively(ConViT(**SMALL))

    step(build, torch.randn(4, 3, 32, 32))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_fused_model_takes_any_batch():
    model = ConViT(**SMALL).eval().fuse()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, images[:1])
        torch.testing.assert_close(traced(images), model(images))


def test_a_layer_for_any_grid_stays_as_it_is_when_fused():
    model = torch.nn.Sequential(GPSA(36, 9), GPSA(36, 9, grid=(2, 8))).eval()
    fused = deploy(model)
    assert type(fused[0]) is GPSA and type(fused[1]) is FixedGPSA
    x = torch.randn(2, 16, 36)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_no_local_layers_is_a_plain_transformer():
    model = ConViT(**SMALL | dict(local_up_to_layer=0)).eval()
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 17, 36)
    assert not any(isinstance(m, GPSA) for m in model.modules())


def test_checkpoints_load(tmp_path):
    source, target = ConViT(**SMALL).eval(), ConViT(**SMALL).eval()
    torch.save(source.state_dict(), tmp_path / "convit.pth")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(
        weights.load_official(target, tmp_path / "convit.pth")(images), source(images)
    )


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_timm_gives_the_same_output(timm, variant):
    name = f"convit_{variant}"
    images = torch.randn(1, 3, 224, 224)
    models.assert_equals_peer(refimpl.create_model(name), timm.create_model(name), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=30), "img_size=30 is not divisible by patch_size=8"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=36"),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(in_chans=0), "in_chans=0 must be at least 1"),
        (dict(local_up_to_layer=3), "local_up_to_layer=3 must be at least 0 and below depth=3"),
        (dict(local_up_to_layer=-1), "local_up_to_layer=-1"),
        (dict(locality_strength=0.0), "locality_strength=0.0 must be above 0"),
        (dict(drop_path_rate=1.5), "drop_path_rate=1.5 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConViT(**SMALL | change)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), "got 3 dimensions"),
        ((1, 1, 32, 32), "1 channels"),
        ((1, 3, 40, 32), "40×32 pixels"),
    ],
)
def test_bad_images(shape, message):
    with pytest.raises(ValueError, match=message):
        ConViT(**SMALL)(torch.randn(shape))


def test_bad_tokens_and_names():
    with pytest.raises(ValueError, match="17 tokens don't fill a grid of 4×4"):
        GPSA(36, 9)(torch.randn(1, 17, 36))
    with pytest.raises(ValueError, match="unknown model 'convit_huge'"):
        refimpl.create_model("convit_huge")


def test_relative_features_are_column_row_and_squared_distance():
    """Difference convit.d2: the code's order, not the paper's (‖δ‖², δ₁, δ₂)."""
    features = relative_features(2, 3)
    assert features.shape == (6, 6, 3)
    assert features[0, 5].tolist() == [2, 1, 5] and features[5, 0].tolist() == [-2, -1, 5]


def test_the_mix_needs_no_renormalisation():
    """Difference convit.d4: rows of (1 − σ)S + σP sum to one already."""
    layer = GPSA(36, 9).double()
    layer.gating_param.data.normal_(std=3)
    with seen.record(layer) as maps:
        layer(torch.randn(2, 25, 36, dtype=torch.float64))
    torch.testing.assert_close(maps[0].weights.sum(-1), torch.ones(2, 9, 25), rtol=0, atol=1e-6)


def test_positions_depend_on_no_image_and_need_no_map():
    """Difference convit.d5: one pair of small factors per layer serves every image of a batch."""
    layer = GPSA(36, 9)
    p_row, p_col = positional_factors(layer.pos_proj.weight, 5, 7)
    assert p_row.shape == (9, 5, 5) and p_col.shape == (9, 7, 7)
    torch.testing.assert_close(torch.kron(p_row[3], p_col[3]), layer.positional_map(5, 7)[3])


def test_non_locality_of_raw_patch_embeddings_is_not_the_network_s():
    """Difference convit.d1: the official log feeds patch embeddings straight to every layer."""
    torch.manual_seed(0)
    model = ConViT(**SMALL).eval()
    for block in model.blocks[:2]:
        block.attn.qk.weight.data *= 40  # content maps that depend on their input …
        block.attn.gating_param.data.fill_(-5.0)  # … and are not hidden by the positional ones
    images = torch.randn(2, 3, 32, 32)
    with seen.record(model) as maps:
        model(images)
        real = non_locality(maps[1].weights, 4, 4)
        maps.clear()
        model.blocks[1].attn(model.patch_embed(images))
        logged = non_locality(maps[0].weights, 4, 4)
    assert (real - logged).abs().max() > 0.01
