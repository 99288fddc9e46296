"""The rule behind the reference outputs, and that the certificate can fail."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

import refimpl
from refimpl import golden

CASE = golden.load("efficientvit", "m0")


def test_the_rule_by_kind_of_tensor():
    assert golden.values("a.weight", (200, 10)).std() == pytest.approx(1 / np.sqrt(10), rel=0.1)
    assert golden.values("a.bias", (1000,)).std() == pytest.approx(0.1, rel=0.1)
    for name in ("norm.weight", "norm.running_var"):
        x = golden.values(name, (1000,))
        assert 0.5 <= x.min() < 0.52 and 1.48 < x.max() <= 1.5
    assert golden.values("a.running_var", (4, 4)).min() >= 0.5  # by name before by rank
    assert golden.values("a.weight", (2, 3)).dtype == np.float32


def test_the_rule_depends_on_name_and_salt_alone():
    a = golden.values("x.weight", (5,))
    assert np.array_equal(a, golden.values("x.weight", (5,)))
    assert not np.array_equal(a, golden.values("y.weight", (5,)))
    assert not np.array_equal(a, golden.values("x.weight", (5,), "salt"))
    # the name seeds the generator
    assert float(a[0]) == pytest.approx(
        np.random.default_rng(zlib.crc32(b"x.weight")).uniform(0.5, 1.5, 5)[0]
    )


def test_special_fill_and_kept_tensors():
    state = CASE.state()
    plain = golden.values("blocks1.0.dw0.m.bn.weight", (64,))
    assert np.allclose(state["blocks1.0.dw0.m.bn.weight"], 0.4 * plain)
    data = {**CASE.data, "kept_at_init": ["head.l.bias"]}
    kept = golden.Case("efficientvit", "m0", data)
    assert "head.l.bias" not in kept.state()
    model = refimpl.create_model("efficientvit_m0")
    with torch.no_grad():
        model.head.linear.bias.fill_(7.0)
    assert (kept.fill(model).head.linear.bias == 7).all()


def test_another_salt_gives_other_inputs():
    salted = golden.Case("efficientvit", "m0", {**CASE.data, "fill_salt": "s"})
    assert not torch.equal(CASE.inputs()[0], salted.inputs()[0])


def certificate(spoil=lambda model: None) -> float:
    model = refimpl.create_model("efficientvit_m0")
    CASE.fill(model)
    spoil(model)
    model.eval()
    with torch.inference_mode():
        return CASE.check(model(*CASE.inputs()))


def scale_attention(model):
    for name, parameter in model.named_parameters():
        if ".query_convs." in name and ".norm." in name:
            parameter.data.mul_(1.01)  # the queries, and with them 1/√d


def scale_kernel(model):
    model.stages[2].blocks[2].dw1.conv.weight.data.mul_(1.01)


def swap_heads(model):
    attention = model.stages[1].blocks[0].mixer.attn
    convs = attention.query_convs
    convs[0], convs[1] = convs[1], convs[0]


def drop_pixel(model):
    model.patch_embed[0].conv.weight.data[0, 0, 0, 0] = 0


@pytest.mark.parametrize(
    "spoil", [scale_attention, scale_kernel, swap_heads, drop_pixel], ids=lambda f: f.__name__
)
def test_a_constant_off_by_one_per_cent_turns_it_red(spoil):
    assert certificate() < 1e-5
    with pytest.raises(AssertionError, match="deviates"):
        certificate(spoil)


def test_a_wrong_count_shape_or_nan_turns_it_red():
    with pytest.raises(AssertionError, match="parameters"):
        CASE.check_params(refimpl.create_model("efficientvit_m1"))
    with pytest.raises(AssertionError, match="shape"):
        CASE.check(torch.zeros(2, 999))
    with pytest.raises(AssertionError, match="deviates"):
        CASE.check(torch.full((2, 1000), float("nan")))
    with pytest.raises(AssertionError, match="no output"):
        golden.load("efficientvit", "m0_stages").check({"output.blocks1": torch.zeros(1)})


def test_a_file_without_a_count_is_no_proof_of_one():
    uncounted = golden.Case("efficientvit", "m0", {**CASE.data, "params": None})
    with pytest.raises(AssertionError, match="records no number of parameters"):
        uncounted.check_params(refimpl.create_model("efficientvit_m0"))


def test_the_certificate_is_equality():
    model = refimpl.create_model("efficientvit_m0")
    assert golden.certify(model, CASE) < 1e-5 and not model.training
    with pytest.raises(AssertionError, match="efficientvit/m0: output 'output' deviates"):
        golden.certify(model, CASE, lambda images: 1.01 * model(images))


def test_unknown_cases_say_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="m0"):
        golden.load("efficientvit", "m9")
    (tmp_path / "efficientvit").mkdir()
    (tmp_path / "efficientvit" / "other.json").write_text(json.dumps(CASE.data), encoding="utf-8")
    assert [c.name for c in golden.cases("efficientvit", tmp_path)] == ["other"]
