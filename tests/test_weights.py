"""Weights in and out: strict, safe, and able to say what is wrong; a refused load leaves the model as it was."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.weights import first_difference, load, load_official, save

CASE = golden.load("efficientvit", "m0")


def model():
    return refimpl.create_model("efficientvit_m0").eval()


def official() -> dict[str, torch.Tensor]:
    """A complete official state dict, buffers included."""
    state = CASE.state()
    for name, shape in CASE.data["state"].items():
        state.setdefault(name, torch.zeros(shape, dtype=torch.int64))
    return state


@pytest.fixture(scope="module")
def filled():
    return load_official(model(), official())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
def test_files_and_wrappers_load(tmp_path, filled, ending, wrapper):
    path, state = tmp_path / f"weights.{ending}", official()
    if ending == "safetensors":
        if wrapper:
            pytest.skip("safetensors files are flat")
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    assert same(load_official(model(), path), filled)


def test_the_averaged_weights_come_first(tmp_path, filled):
    raw = {k: v + 1 if v.is_floating_point() else v for k, v in official().items()}
    torch.save({"model": raw, "state_dict_ema": official()}, tmp_path / "both.pth")
    assert same(load_official(model(), tmp_path / "both.pth"), filled)


def test_parallel_training_prefix_is_taken_off(filled):
    assert same(load_official(model(), {f"module.{k}": v for k, v in official().items()}), filled)


def drop(state):
    del state["head.l.weight"]


def renamed(state):
    state["head.l.wieght"] = state.pop("head.l.weight")


def transposed(state):
    state["head.l.weight"] = state["head.l.weight"].T.contiguous()


def wrong_type(state):
    state["head.l.weight"] = state["head.l.weight"].to(torch.int64)


def extra(state):
    state["head.l.scale"] = torch.ones(3)


@pytest.mark.parametrize(
    ("corrupt", "words"),
    [
        (drop, ["missing", "head.linear.weight", "(1000, 192)"]),
        (renamed, ["missing", "head.linear.weight", "head.linear.wieght"]),
        (transposed, ["head.linear.weight", "(192, 1000)", "(1000, 192)"]),
        (wrong_type, ["head.linear.weight", "int64", "float32"]),
        (extra, ["left over", "head.linear.scale"]),
    ],
)
def test_each_corruption_is_named_and_changes_nothing(corrupt, words):
    ours, state = model(), official()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    corrupt(state)
    with pytest.raises(ValueError) as error:
        load_official(ours, state)
    assert all(word in str(error.value) for word in words), error.value
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="don't fit"):
        load_official(refimpl.create_model("efficientvit_m1"), official())


class Payload:
    """What a hostile checkpoint holds: code that runs when it is unpickled."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pickled_payload_is_refused_unread(tmp_path, capsys):
    ours, path = model(), tmp_path / "hostile.pth"
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    torch.save({"model": official(), "args": Payload()}, path)
    with pytest.raises(ValueError, match="pickled"):
        load_official(ours, path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"pickled|can't be read"):
        load_official(ours, path)
    assert "never" not in capsys.readouterr().out
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_truncated_files_and_foreign_files_are_refused(tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    save(model(), tmp_path / "whole.safetensors")
    torch.save(official(), tmp_path / "whole.pth")
    whole = (tmp_path / f"whole.{ending}").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<!DOCTYPE html><title>404</title>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cut.{ending}"):
            load_official(model(), path)


def test_a_missing_file_and_another_ending(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_official(model(), tmp_path / "none.pth")
    (tmp_path / "weights.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="safetensors"):
        load_official(model(), tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="dictionary"):
        load_official(model(), [1, 2])


def test_our_own_files_come_back(tmp_path, filled):
    save(filled, tmp_path / "ours.safetensors")
    assert same(load(model(), tmp_path / "ours.safetensors"), filled)


def test_the_first_differing_layer_is_found(filled):
    theirs = load_official(model(), official())
    images, pairs = CASE.inputs()[0][:1], {name: name for name, _ in filled.named_modules() if name}
    assert first_difference(filled, theirs, images, pairs) == "no difference"
    with torch.no_grad():
        theirs.stages[1].blocks[0].ffn0.pw1.conv.weight.mul_(1.01)
    assert first_difference(filled, theirs, images, pairs).startswith(
        "stages.1.blocks.0.ffn0.pw1.conv: differs"
    )


def test_rules_rename_and_drop():
    rules = [(r"\.ab$", None), (r"^old\.(\d)", lambda m: f"new.{int(m[1]) + 1}")]
    assert weights.rename("old.3.weight", rules) == "new.4.weight"
    assert weights.rename("old.3.ab", rules) is None
