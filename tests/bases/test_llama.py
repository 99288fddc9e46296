"""Llama: equal to the reference outputs; positions, causality, shared keys; bad input."""

from __future__ import annotations

import math

import pytest
import torch

import refimpl
from refimpl import weights
from refimpl.bases.llama import NAMES, VARIANTS, Llama, RMSNorm, causal_loss, rotate
from refimpl.viz import attention
from shared import models

STEM = "llama"
SMALL = dict(vocab_size=40, embed_dim=24, hidden_dim=36, depth=2, num_heads=4, num_kv_heads=2)
OURS = {
    "hidden_size": "embed_dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
    "tie_word_embeddings": "tied",
}


def test_official(official_case):
    """The arguments are transformers'; positions are computed, so none is the last."""
    kwargs = dict(official_case.kwargs)
    kwargs.pop("max_position_embeddings", None)
    model = Llama(**{OURS.get(name, name): value for name, value in kwargs.items()}).eval()
    official_case.fill(model, NAMES["official" if model.lm_head else "tied"])
    official_case.check_params(model)
    (drawn,) = official_case.inputs()
    ids = (1000 * drawn.abs()).floor().long() % model.vocab_size
    blocks = []
    model.layers[0].register_forward_hook(lambda module, args, output: blocks.append(output))
    with torch.inference_mode():
        hidden = model.forward_features(ids)
        logits = model.forward_head(hidden)
    outputs = {"logits": logits, "hidden": hidden, "after_block0": blocks[0]}
    official_case.check({f"output.{name}": tensor for name, tensor in outputs.items()})


@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("2_7b", 6_738_415_616),
        ("2_13b", 13_015_864_320),
        ("2_70b", 68_976_648_192),
        ("3_8b", 8_030_261_248),
        ("3_70b", 70_553_706_496),
    ],
)
def test_parameter_counts_of_the_papers(variant, params):
    with torch.device("meta"):
        assert sum(p.numel() for p in Llama(**VARIANTS[variant]).parameters()) == params


def small(**options) -> Llama:
    torch.manual_seed(0)
    return models.lively(Llama(**SMALL | options))


def some_ids(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(40, (batch, length), generator=torch.Generator().manual_seed(1))


def test_what_comes_later_does_not_matter():
    model, ids = small(), some_ids()
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 40
    with torch.inference_mode():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    q, k = (rotate(x.expand(1, 1, 12, 8), 1e4)[0, 0] for x in (q, k))
    scores = q @ k.T
    for distance in range(-11, 12):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))
    assert scores[0].std() > 1e-3


def test_rotation_turns_pairs_half_a_width_apart():
    """Position 1, base 1: every pair by the angle 1."""
    x = torch.eye(4, dtype=torch.float64).expand(1, 1, 4, 4)
    turned = rotate(torch.stack([x[0, 0, :1].expand(2, 4)])[None], 1.0)[0, 0, 1]
    wanted = torch.tensor([math.cos(1), 0, math.sin(1), 0], dtype=torch.float64)
    torch.testing.assert_close(turned, wanted)


def test_shared_keys_are_repeated_keys():
    """With its keys and values written out once per query head, a model computes the same."""
    model, ids = small(), some_ids()
    full = small(num_kv_heads=4)
    state = model.state_dict()
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            state[name] = tensor.unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(full(ids), model(ids))


def test_norm_is_computed_in_float32():
    """Squares of 1000 overflow in float16."""
    norm = RMSNorm(8, 1e-6).half()
    assert norm(torch.full((1, 8), 1000.0).half()).tolist() == [[1.0] * 8]


def test_loss_is_of_the_next_token():
    model, ids = small(), some_ids()
    logs = model(ids).log_softmax(-1)
    wanted = -logs[:, :-1].gather(2, ids[:, 1:, None]).mean()
    torch.testing.assert_close(causal_loss(model, ids), wanted)


def test_recorded_maps_are_causal():
    model, ids = small(), some_ids()
    with torch.inference_mode():
        plain = model(ids)
        with attention.record(model) as maps:
            assert torch.equal(model(ids), plain)
    assert [tuple(m.weights.shape) for m in maps] == [(2, 4, 9, 9)] * 2
    for entry in maps:
        assert not entry.weights.triu(1).any()
        torch.testing.assert_close(entry.weights.sum(-1), torch.ones(2, 4, 9))


def test_tied_classifier_reads_the_embedding():
    model, ids = small(tied=True), some_ids()
    assert "lm_head.weight" not in model.state_dict()
    with torch.inference_mode():
        hidden = model.forward_features(ids)
        assert torch.equal(model(ids), hidden @ model.embed_tokens.weight.T)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_tied_model_next(step):
    step(lambda: small(tied=True), some_ids(4))


def test_a_checkpoint_of_transformers_loads():
    def checkpoint(model):
        names = model.state_dict().items()
        theirs = {(n if n == "lm_head.weight" else f"model.{n}"): t.clone() for n, t in names}
        table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
        return theirs | table  # older files hold the angles

    models.assert_checkpoint_loads(small, checkpoint)


def test_a_tied_checkpoint_may_name_its_matrix_once_or_twice():
    def checkpoint(model, twice):
        state = {f"model.{n}": t.clone() for n, t in model.state_dict().items()}
        shared = {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
        return state | shared if twice else state

    for twice in (False, True):
        models.assert_checkpoint_loads(
            lambda: small(tied=True), lambda model, twice=twice: checkpoint(model, twice)
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"embed_dim": 24.0}, "embed_dim=24.0 must be an integer"),
        ({"depth": 0}, "depth=0"),
        ({"num_heads": 5, "num_kv_heads": 5}, "num_heads=5"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must be at least 1 and divide num_heads=4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0"),
        ({"head_dim": 5}, "head_dim=5 must be a positive multiple of 2"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"rope_base": -1.0}, "rope_base=-1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: Llama(**SMALL | change), words)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(1, 3), "ids are torch.float32, token ids must be integers"),
        (torch.zeros(3, dtype=torch.int64), "got 1 dimensions"),
        (torch.tensor([[0, 40]]), "ids run from 0 to 40, must lie between 0 and 39"),
        (torch.tensor([[-1, 3]]), "ids run from -1 to 3"),
    ],
)
def test_bad_ids_are_named(ids, words):
    models.assert_refused(lambda: small()(ids), words)


def test_bad_calls_are_named():
    models.assert_refused(lambda: causal_loss(small(), some_ids(2, 1)), "at least 2")
    models.assert_refused(lambda: refimpl.create_model("llama_2_8b"), "llama_2_7b")
    wrong = {"model.norm.weight": torch.ones(3)}
    models.assert_refused(lambda: weights.load_official(small(), wrong), "don't fit")
