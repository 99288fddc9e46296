"""Weights in and out: strict, safe, and able to say what is wrong.

A refused load leaves the model as it was.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases.deit import resample_positions
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


# ---- Containers in which people get weights


def small(seed: int = 0, **kwargs) -> nn.Module:
    """A model that is quickly built."""
    torch.manual_seed(seed)
    return refimpl.create_model("deit_tiny", **dict(depth=1, img_size=32) | kwargs).eval()


def prefixed(prefix: str, state=None) -> dict[str, torch.Tensor]:
    return {prefix + name: t for name, t in (state or small().state_dict()).items()}


CONTAINERS = {
    "bare": prefixed(""),
    "of torch.compile": prefixed("_orig_mod."),
    "of distributed training": {"model": prefixed("module.")},
    "of both": {"net": prefixed("_orig_mod.module.")},
    "of Lightning": {"state_dict": prefixed("model."), "epoch": 3},
    "under another key": {"model_state_dict": prefixed("")},
    "of timm": {"arch": "deit", "optimizer": {"state": {0: {"step": torch.ones(())}}}}
    | {"state_dict": prefixed(""), "metric": 0.5},
    "an average": {"model_ema": prefixed("module.") | {"n_averaged": torch.tensor(7)}},
    "two keys deep": {"checkpoint": {"model": prefixed("")}},
    "half precision": {name: t.half() for name, t in prefixed("").items()},
    "of NumPy": {name: t.numpy() for name, t in prefixed("").items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_are_looked_into(tmp_path, container):
    """As an object, and as a file of any name."""
    wanted = small()
    if container == "half precision":
        wanted = wanted.half().float()
    assert same(load_official(small(seed=1), CONTAINERS[container]), wanted)
    for name in ("a.ckpt", "a.pth.tar", "A.PTH", "weights"):
        torch.save(CONTAINERS[container], tmp_path / name)
        assert same(load_official(small(seed=1), tmp_path / name), wanted)


def test_safetensors_load_under_any_name(tmp_path):
    save(small(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "b.bin")
    assert same(load_official(small(seed=1), tmp_path / "b.bin"), small())


class Settings(dict):
    """What training scripts keep beside the weights: a dictionary of their own class."""


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_tensors_are_left_out_and_named(tmp_path, options, protocol):
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "where": Path("/tmp"),
        "config": Settings(lr=0.1, inner=Settings(a=[1])),
        "tags": {"a", "b"},
    }
    path = tmp_path / "training.pth"
    torch.save({"model": small().state_dict()} | beside, path, pickle_protocol=protocol, **options)
    with pytest.warns(UserWarning, match="training.pth: left out .*argparse.Namespace") as warned:
        assert same(load_official(small(seed=1), path), small())
    assert "Settings" in str(warned[0].message) and "pathlib" in str(warned[0].message)


def test_a_model_that_was_pickled_whole_is_not_loaded(tmp_path):
    path = tmp_path / "whole.pth"
    for content in (small(), {"ema": small(), "epoch": 3}):
        torch.save(content, path)
        with (
            pytest.warns(UserWarning, match="VisionTransformer"),
            pytest.raises(ValueError, match=r"save its state_dict\(\) instead"),
        ):
            load_official(small(), path)


def test_counts_of_batches_may_be_missing(filled):
    state = {n: t for n, t in official().items() if not n.endswith("num_batches_tracked")}
    assert same(load_official(model(), state), filled)


def test_a_model_on_the_meta_device_is_filled():
    with torch.device("meta"):
        ours = small()
    ours.cls_token.requires_grad_(False)
    load_official(ours, {name: t.double() for name, t in small().state_dict().items()})
    assert same(ours, small())
    assert {p.device.type for p in ours.parameters()} == {"cpu"}
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert not ours.cls_token.requires_grad and ours.pos_embed.requires_grad
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ours(images), small()(images))


def test_what_the_weights_lack_keeps_a_model_on_the_meta_device():
    with torch.device("meta"):
        ours = small()
    with pytest.raises(ValueError, match="meta device.*head.weight.*build it on the CPU"):
        load_official(ours, small().state_dict(), leave_out=("head.",))
    assert all(p.is_meta for p in ours.parameters())


# ---- What is wrong, in words


def refused(ours: nn.Module, source) -> str:
    """The message, in whole sentences; the model is unchanged."""
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_official(ours, source)
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())
    assert "\x1b" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "the pointer of a file in Git",
        ),
        (b"<!DOCTYPE html>\n<html><title>404</title>", "a web page"),
        (b"Not Found", "a text that begins with 'Not Found'"),
        (b"", "an empty file"),
        (b"\x00\x01\xfe\xff" * 9, "a file of another format"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "c.pth").write_bytes(content)
    assert refused(small(), tmp_path / "c.pth").startswith(f"c.pth is no checkpoint but {words}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_called_what_it_is(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "program.pt")
    assert "torch.jit.load" in refused(small(), tmp_path / "program.pt")


def test_the_prefix_that_would_fit_is_named():
    state = prefixed("backbone.") | {"neck.weight": torch.ones(3)}
    said = refused(small(), {"state_dict": state})
    assert "Under the prefix 'backbone.' every tensor is there" in said
    assert "left over: neck.weight" in said and "under 'state_dict'" in said


def test_a_checkpoint_without_tensors_names_its_keys():
    assert "'epoch', 'args'" in refused(small(), {"epoch": 3, "args": "none"})


def test_other_classes_are_named_with_the_remedy():
    ours, official = small(num_classes=7), small(seed=1)
    said = refused(ours, official.state_dict())
    assert "for 1000 classes, the model for num_classes=7" in said and "'head.'" in said
    own = ours.head.weight.clone()
    load_official(ours, official.state_dict(), leave_out=("head.",))
    assert torch.equal(ours.head.weight, own) and torch.equal(ours.norm.bias, official.norm.bias)
    assert torch.equal(ours.pos_embed, official.pos_embed)
    ours = small(num_classes=0)
    assert "leave_out=('head',)" in refused(ours, official.state_dict())
    load_official(ours, official.state_dict(), leave_out=("head",))
    assert torch.equal(ours.pos_embed, official.pos_embed)


def test_another_resolution_is_named_with_the_remedy():
    ours, state = small(img_size=64), small(seed=1).state_dict()
    said = refused(ours, state)
    assert "(1, 5, 192), wanted (1, 17, 192)" in said and "resample_positions" in said
    patches = resample_positions(state["pos_embed"][:, 1:], (2, 2), (4, 4))
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], patches], dim=1)
    assert torch.equal(load_official(ours, state).pos_embed, state["pos_embed"])


def test_a_fused_model_says_so():
    assert "The model is fused: load the weights first" in refused(small().fuse(), prefixed(""))


@pytest.mark.parametrize("other", ["efficientvit_m1", "efficientvit_m5", "deit_tiny", "many"])
def test_any_refusal_comes_soon(other, monkeypatch):
    """Looking for near names is what takes time: few names, each among few others."""
    looked, find = [], weights.get_close_matches

    def counted(name, names, n):
        looked.append(len(names))
        return find(name, names, n)

    monkeypatch.setattr(weights, "get_close_matches", counted)
    if other == "many":
        state = {f"layer{i}.{j}.weight": torch.ones(3) for i in range(60) for j in range(60)}
    else:
        state = refimpl.create_model(other).state_dict()
    said = refused(model(), state)
    assert len(said.splitlines()) < 30 and " more" in said
    assert len(looked) <= 6 and max(looked, default=0) <= 50


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
    with pytest.raises(ValueError, match="weights.ckpt is no checkpoint but a text"):
        load_official(model(), tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="dictionary"):
        load_official(model(), [1, 2])


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pt", "bin", "ckpt"])
def test_our_own_files_come_back(tmp_path, ending):
    path = tmp_path / f"ours.{ending}"
    save(small(), path)
    assert same(load(small(seed=1), path), small())
    fused = small().fuse()
    save(fused, path)
    assert same(load(small(seed=1).fuse(), path), fused)


def test_saving_refuses_other_endings(tmp_path):
    for name in ("ours.npz", "ours"):
        with pytest.raises(ValueError, match=f"path='{name}' must end in .safetensors"):
            save(small(), tmp_path / name)
    assert not list(tmp_path.iterdir())


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
