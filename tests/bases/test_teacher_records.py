"""Teacher's labels on disk and views from seeds: ranks and epochs, round trips, what does not fit.

That bytes, streams and mixes are the official ones is shown in tests/papers/test_tinyvit.py.
"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from refimpl.bases import replayed_views, teacher_records
from refimpl.bases.replayed_views import ReplayedRandom, ReplayedViews, mix_pairs, record_epoch
from refimpl.bases.teacher_records import (
    RecordWriter,
    TeacherRecords,
    pack,
    record_bytes,
    storage_bytes,
)
from shared.models import assert_refused

CLASSES, KEPT = 12, 3


def test_published_sizes():
    """16 GB is K = 10, not the code's default of 100; 481 GB is K = 100. Both count 2³⁰ bytes."""
    assert record_bytes(10) == 44 and record_bytes(100) == 404
    assert round(storage_bytes(1_281_167, 300, 10) / 2**30) == 16
    assert round(storage_bytes(14_197_122, 90, 100) / 2**30) == 481
    assert round(storage_bytes(1_281_167, 300, 100) / 2**30) == 145


# ------------------------------------------------------------------ a small training set


def augment(picture: torch.Tensor, rng: ReplayedRandom) -> torch.Tensor:
    """A shift and noise."""
    down, right = rng.randint(-1, 1), rng.randint(-1, 1)
    noise = torch.from_numpy(rng.gauss(0, 0.1, tuple(picture.shape))).float()
    return picture.roll((down, right), (1, 2)) + noise


KEYS = [f"n{i % 3}/{i}.png" for i in range(10)]


def pictures() -> torch.Tensor:
    return torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def teacher() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    nn.init.normal_(net[1].weight)
    return net


def write(root, epochs=2, ranks=2, mix=None, **kwargs) -> None:
    """Two epochs by two ranks, each with every second picture, in an order of its own."""
    for epoch in range(epochs):
        for rank in range(ranks):
            mine = list(range(rank, 10, ranks))[:: -1 if epoch else 1]
            with RecordWriter(root, epoch, CLASSES, KEPT, rank) as writer:
                record_epoch(
                    *(teacher(), pictures()[mine], [KEYS[i] for i in mine], augment, writer),
                    np.random.default_rng([epoch, rank]),
                    batch_size=2,
                    mix=mix,
                )


def views(root, epoch=0, data=None, keys=KEYS, function=augment, rank=0) -> ReplayedViews:
    records = TeacherRecords(root, CLASSES, KEPT, rank)
    return ReplayedViews(pictures() if data is None else data, keys, function, records, epoch)


def test_round_trip_of_two_ranks_and_shuffled_keys(tmp_path):
    """The view is the teacher's to the bit, and the label the one that it gave for it."""
    write(tmp_path)
    for epoch in (0, 1):
        for rank in (0, 1):
            replayed = views(tmp_path, epoch, rank=rank)
            batch = next(replayed_views.batches(replayed, 10))
            images, seeds, classes, p = batch
            for i, picture in enumerate(pictures()):
                assert torch.equal(images[i], augment(picture, ReplayedRandom(int(seeds[i]))))
            with torch.no_grad():
                wanted, order = teacher()(images).softmax(1).topk(KEPT)
            assert torch.equal(order, classes)
            assert torch.equal(wanted.half().float(), p)
            error, moved = replayed_views.agreement(teacher(), replayed)
            assert error < 1e-3 and moved == 0
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    assert records.epochs == [0, 1] and records.verify(0) == records.verify(1) == 10
    first, second = (records.read(epoch, KEYS).seeds for epoch in (0, 1))
    assert not torch.equal(first, second)
    shuffled = records.read(0, KEYS[::-1])
    assert torch.equal(shuffled.seeds, first.flip(0))


def test_one_class_kept_and_nothing_read(tmp_path):
    with RecordWriter(tmp_path, 0, CLASSES, 1) as writer:
        writer.append(KEYS[:2], [5, 6], torch.full((2, CLASSES), 1 / CLASSES))
    records = TeacherRecords(tmp_path, CLASSES, 1)
    assert records.read(0, KEYS[:2]).classes.shape == (2, 1)
    assert records.read(0, []).seeds.shape == (0,)
    assert records.verify(0) == 2


def test_a_teacher_in_training_mode_is_refused(tmp_path):
    with RecordWriter(tmp_path, 0, CLASSES, KEPT) as writer:
        call = (teacher().train(), pictures(), KEYS, augment, writer, np.random.default_rng(0))
        assert_refused(lambda: record_epoch(*call), "teacher is in training mode")


def test_a_rank_reads_no_other_keys_for_what_it_wrote(tmp_path):
    write(tmp_path)
    records = TeacherRecords(tmp_path, CLASSES, KEPT, rank=1)
    records.read(0, [KEYS[1], KEYS[3]])
    assert [shard.rows_by_key is None for shard in records.shards(0)] == [False, True]


def test_workers_get_no_copy_of_the_file_and_the_same_views(tmp_path):
    write(tmp_path)
    replayed = views(tmp_path)
    assert len(pickle.dumps(replayed.records)) < 1000
    again = pickle.loads(pickle.dumps(replayed))
    assert torch.equal(again[3][0], replayed[3][0])
    loader = torch.utils.data.DataLoader(replayed, batch_size=5, num_workers=1)
    found = torch.cat([batch[0] for batch in loader])
    assert torch.equal(found, torch.stack([replayed[i][0] for i in range(10)]))


def test_labels_of_mixed_images_fit_the_same_mix_later(tmp_path):
    def mix(images, seeds):
        return mix_pairs(images, seeds)[0]

    write(tmp_path, epochs=1, ranks=1, mix=mix)
    images, seeds, classes, p = next(replayed_views.batches(views(tmp_path), 10))
    with torch.no_grad():
        again = teacher()(mix(images, seeds.tolist())).softmax(1)
        plain = teacher()(images).softmax(1)
    assert torch.equal(again.topk(KEPT).indices, classes)
    assert not torch.equal(plain.topk(KEPT).indices, classes)


def test_a_box_at_the_border_keeps_the_ratio_drawn():
    """λ is that of the whole box, also where the border cuts it."""
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)] * 40)
    mixed, drawn = mix_pairs(images, list(range(0, 240, 3)), mixup_alpha=0.0)
    area = mixed[::2].mean((1, 2, 3))
    bound = 1 - torch.tensor(drawn)
    assert (area < bound + 1e-6).all()
    assert (area < bound - 0.1).any()


def test_no_alpha_no_mix():
    images = torch.randn(2, 1, 4, 4)
    mixed, drawn = mix_pairs(images, [1, 2], mixup_alpha=0, cutmix_alpha=0)
    assert torch.equal(mixed, images) and drawn == [1.0]


def test_records_hold_probabilities():
    """A shift of all logits changes no byte; another temperature does, and needs the tail."""
    logits = 3 * torch.randn(4, CLASSES, dtype=torch.float64)
    raw = pack(range(4), logits.softmax(1), KEPT).tobytes()
    assert pack(range(4), (logits + 5).softmax(1), KEPT).tobytes() == raw
    softer = pack(range(4), (logits / 3).softmax(1), KEPT)
    kept = torch.from_numpy(np.frombuffer(raw, softer.dtype)["probabilities"].astype(np.float64))
    powers = kept ** (1 / 3)
    assert not np.allclose(powers / powers.sum(1, keepdim=True), softer["probabilities"], 1e-2)


def test_rounding_can_push_the_kept_mass_above_one():
    """Of float16: the rest that a student is given is then negative, by less than 1e-3."""
    p = torch.linspace(3, 9, 600)[:, None] * torch.tensor([1.0, 0.5, 0.0])
    records = pack(range(600), p.softmax(1), 3)
    mass = records["probabilities"].astype(np.float32).sum(1)
    assert (mass > 1).any() and mass.max() < 1 + teacher_records.ROUNDING


def test_a_broken_run_leaves_nothing_that_looks_whole(tmp_path):
    with pytest.raises(RuntimeError), RecordWriter(tmp_path, 0, CLASSES, KEPT) as writer:
        writer.append(["a"], [1], torch.full((1, CLASSES), 1 / CLASSES))
        raise RuntimeError
    assert list((tmp_path / "logits_top3_epoch0").iterdir()) == []
    assert_refused(lambda: TeacherRecords(tmp_path, CLASSES, KEPT), "no records with top_k=3")


# ------------------------------------------------------------------ what does not fit


def damaged(root, name: str, change) -> None:
    path = root / "logits_top3_epoch0" / name
    path.write_bytes(change(path.read_bytes()))


def flipped(at: int, value: bytes):
    return lambda raw: raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"\xff\xff\xff\xff", "a negative seed"),
        (4, b"\x0c\x00", "a class outside 0 … 11"),
        (6, b"\xff\xff", "a class outside 0 … 11"),
        (10, b"\x00\x7e", "a probability outside 0 … 1"),
        (10, b"\x00\x3c\x00\x3c", "a sum above 1"),
        (10, b"\x00\x00", "probabilities that rise"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, at, value, words):
    write(tmp_path, epochs=1)
    damaged(tmp_path, "rank0-values.bin", flipped(at, value))
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    assert_refused(lambda: records.read(0, KEYS), words)
    assert_refused(lambda: records.read(0, KEYS), "key 'n0/0.png'")
    assert_refused(lambda: records.verify(0), words)


def test_a_class_twice_is_named(tmp_path):
    write(tmp_path, epochs=1)
    damaged(tmp_path, "rank0-values.bin", lambda raw: raw[:6] + raw[4:6] + raw[8:])
    assert_refused(lambda: TeacherRecords(tmp_path, CLASSES, KEPT).read(0, KEYS), "a class twice")


def test_what_only_a_checksum_finds(tmp_path):
    write(tmp_path, epochs=1)
    damaged(tmp_path, "rank0-values.bin", flipped(0, b"\x01"))
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    records.read(0, KEYS)
    assert_refused(lambda: records.verify(0), "rank0: the checksum")


def test_files_that_do_not_fit_each_other(tmp_path):
    write(tmp_path, epochs=1)
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    damaged(tmp_path, "rank0-keys.txt", lambda raw: raw + b"more\n")
    assert_refused(lambda: records.read(0, KEYS), "names 6 keys, 6 different ones, for 5 records")
    damaged(tmp_path, "rank0-values.bin", lambda raw: raw[:-1])
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    assert_refused(lambda: records.read(0, KEYS), "no multiple of 16: not written with top_k=3")
    damaged(tmp_path, "rank0-values.bin", lambda raw: raw[:-15])
    assert_refused(lambda: records.read(0, KEYS), "holds 4 records, written were 5")


def test_a_key_of_two_ranks(tmp_path):
    p = torch.full((1, CLASSES), 1 / CLASSES)
    for rank in (0, 1):
        with RecordWriter(tmp_path, 0, CLASSES, KEPT, rank) as writer:
            writer.append(["a"], [rank], p)
    records = TeacherRecords(tmp_path, CLASSES, KEPT)
    assert_refused(lambda: records.verify(0), "key 'a' is in rank0 and in rank1")


def test_labels_of_other_pictures_classes_or_another_augment(tmp_path):
    write(tmp_path)

    def other(picture, rng):
        rng.random()
        return augment(picture, rng)

    words = "does not come out of its seed again"
    assert_refused(lambda: views(tmp_path, data=pictures().flip(0)), words)
    assert_refused(lambda: views(tmp_path, function=other), words)
    assert_refused(lambda: views(tmp_path, data=pictures()[..., :3]), words)
    assert_refused(lambda: views(tmp_path, epoch=2), "epoch=2 is not stored; there are 0, 1")
    assert_refused(lambda: views(tmp_path, keys=KEYS[:9]), "10 pictures want as many different")
    assert_refused(lambda: views(tmp_path, keys=[KEYS[0]] * 10), "1 different ones")
    renamed = [*KEYS[:9], "new"]
    assert_refused(lambda: views(tmp_path, keys=renamed)[9], "key='new' has no record in epoch 0")
    records = TeacherRecords(tmp_path, 40, KEPT)
    assert_refused(lambda: records.read(0, KEYS), "holds labels of 12 classes, not num_classes=40")
    assert_refused(lambda: TeacherRecords(tmp_path, CLASSES, 4), "no records with top_k=4")
    assert_refused(lambda: TeacherRecords(tmp_path, 2, 3), "top_k=3 must be at most num_classes=2")


def test_another_machine_may_round_a_view_otherwise(tmp_path):
    write(tmp_path, epochs=1)

    def almost(picture, rng):
        return augment(picture, rng) * (1 + 1e-6)

    assert len(views(tmp_path, function=almost)) == 10


P = torch.full((2, CLASSES), 1 / CLASSES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a"], [1, 2], P), "1 keys for 2 rows"),
        ((["a", "a"], [1, 2], P), "keys must be different"),
        ((["a", "b\nc"], [1, 2], P), "keys must be single lines"),
        ((["a", ""], [1, 2], P), "keys must be single lines"),
        ((["a", "b"], [1], P), "1 seeds for 2 rows"),
        ((["a", "b"], [1, 2**31], P), "seeds must be at least 0 and less than 2³¹"),
        ((["a", "b"], [1, -1], P), "seeds must be at least 0"),
        ((["a", "b"], [1, 2], P[:, :5]), "probabilities must be (b, 12), got (2, 5)"),
        ((["a", "b"], [1, 2], 12 * P), "a sum above 1"),
        ((["a", "b"], [1, 2], P - 1), "a probability outside 0 … 1"),
    ],
)
def test_bad_records_are_not_written(tmp_path, arguments, words):
    with RecordWriter(tmp_path, 0, CLASSES, KEPT) as writer:
        assert_refused(lambda: writer.append(*arguments), words)
        writer.append(["a"], [1], P[:1])
        assert_refused(lambda: writer.append(["a"], [1], P[:1]), "['a'] again")


def test_bad_sizes_are_named(tmp_path):
    assert_refused(lambda: RecordWriter(tmp_path, 0, 32_769, 5), "at most 32768: numbers are int16")
    assert_refused(lambda: RecordWriter(tmp_path, 0, 5, 0), "top_k=0")
    assert_refused(lambda: RecordWriter(tmp_path, -1, 5, 2), "epoch=-1")
    assert_refused(lambda: storage_bytes(-1, 2, 3), "images=-1")
    assert_refused(lambda: ReplayedRandom(-1), "seed=-1")
    assert_refused(lambda: mix_pairs(torch.ones(3, 1, 2, 2), [1, 2, 3]), "even, got 3 and 3")
    assert_refused(lambda: mix_pairs(torch.ones(2, 1, 2, 2), [1]), "got 2 and 1")
    write(tmp_path, epochs=1)
    assert_refused(lambda: RecordWriter(tmp_path, 0, CLASSES, KEPT), "records of rank=0 already")
    about = tmp_path / "logits_top3_epoch0" / "rank0-about.json"
    assert json.loads(about.read_text(encoding="utf-8"))["records"] == 5
