"""A teacher's labels on disk, each with the seed of the view that it was given for.

TinyViT's format: Wu and others, *TinyViT: Fast Pretraining Distillation for Small Vision
Transformers*, ECCV 2022, arXiv 2207.10666; microsoft/Cream @ 4a13c40, TinyViT/data/augmentation and
save_logits.py. Files that the official code wrote can be read.

    <root>/logits_top{K}_epoch{e}/rank{r}-keys.txt      a key a line, in the order of the records
    <root>/logits_top{K}_epoch{e}/rank{r}-values.bin    record i at byte i · (4 + 4 K)
    <root>/logits_top{K}_epoch{e}/rank{r}-about.json    ours: classes, count, checksum, a view

    record: int32 seed | K × int16 class | K × float16 probability      little endian, best first

Values are memory-mapped: a record is read where it lies, and nothing else is. Keys are text beside
them, and cost what their names cost. Per picture and epoch a record is used once by each student.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refimpl import checks

SEEDS = 2**31  # a seed is at least 0 and less than this
MOST_CLASSES = 2**15  # that int16 can number
ROUNDING = 2.0**-10  # of float16: a sum of probabilities may pass 1 by this
SHOWN = 64  # numbers of a view that are kept, to know it again
BLOCK = 65_536  # records that are looked through at once


def record_bytes(top_k: int) -> int:
    """Bytes of a record: seed, classes and probabilities."""
    return record_type(top_k).itemsize


def storage_bytes(images: int, epochs: int, top_k: int) -> int:
    """Bytes of all records of a training, without the keys."""
    checks.integer(0, images=images, epochs=epochs)
    return images * epochs * record_bytes(top_k)


def record_type(top_k: int) -> np.dtype:
    """A record as NumPy reads it: 4 + 4 K bytes, nothing between the fields."""
    checks.integer(1, top_k=top_k)
    fields = ("seed", "<i4"), ("classes", "<i2", (top_k,)), ("probabilities", "<f2", (top_k,))
    return np.dtype(list(fields))


def pack(seeds: Sequence[int], probabilities: Tensor, top_k: int) -> np.ndarray:
    """Records (b,) of `record_type` from all probabilities (b, C) of a teacher.

    Of equal probabilities any may be kept.
    """
    if probabilities.dim() != 2:
        raise ValueError(f"probabilities must be (b, C), got {tuple(probabilities.shape)}")
    check_sizes(probabilities.shape[1], top_k)
    if len(seeds) != len(probabilities):
        raise ValueError(f"{len(seeds)} seeds for {len(probabilities)} rows of probabilities")
    if not all(0 <= int(seed) < SEEDS for seed in seeds):
        raise ValueError(f"seeds must be at least 0 and less than 2³¹, got {list(seeds)[:8]}")
    values, classes = probabilities.topk(top_k)
    records = np.empty(len(values), record_type(top_k))
    records["seed"] = np.asarray(seeds)
    records["classes"] = classes.cpu().numpy()
    records["probabilities"] = values.float().cpu().numpy()
    if problem := first_problem(records, probabilities.shape[1]):
        raise ValueError(f"probabilities are none of a teacher's: {problem}")
    return records


def check_sizes(num_classes: int, top_k: int) -> None:
    """Raise a `ValueError` unless a record can hold `top_k` of so many classes."""
    checks.integer(1, num_classes=num_classes, top_k=top_k)
    if num_classes > MOST_CLASSES:
        raise ValueError(f"num_classes={num_classes} must be at most 32768: numbers are int16")
    if top_k > num_classes:
        raise ValueError(f"top_k={top_k} must be at most num_classes={num_classes}")


def first_problem(records: np.ndarray, num_classes: int) -> str | None:
    """What is wrong with the first record that can't be one, or `None`."""
    classes = records["classes"]
    p = records["probabilities"].astype(np.float32)
    ordered = np.sort(classes, axis=1)
    tests = {
        "a negative seed": records["seed"] < 0,
        f"a class outside 0 … {num_classes - 1}": (classes < 0) | (classes >= num_classes),
        "a class twice": ordered[:, 1:] == ordered[:, :-1],
        "a probability outside 0 … 1": ~((p >= 0) & (p <= 1)),
        "probabilities that rise": p[:, 1:] > p[:, :-1],
        "probabilities with a sum above 1": p.sum(1) > 1 + ROUNDING,
    }
    for what, wrong in tests.items():
        rows = wrong if wrong.ndim == 1 else wrong.any(1)
        if rows.any():
            return f"record {int(rows.argmax())} has {what}"
    return None


def folder_of(root: Path, top_k: int, epoch: int) -> Path:
    return Path(root) / f"logits_top{top_k}_epoch{epoch}"


class RecordWriter:
    """Writes the records of one epoch and one rank; used in a `with` statement.

    The files get their names when the block ends without an error, so a broken run leaves none that
    could be taken for whole. Files that exist are never written over.
    """

    def __init__(self, root: str | Path, epoch: int, num_classes: int, top_k: int, rank: int = 0):
        check_sizes(num_classes, top_k)
        checks.integer(0, epoch=epoch, rank=rank)
        self.num_classes, self.top_k = num_classes, top_k
        self.folder = folder_of(root, top_k, epoch)
        self.stem = f"rank{rank}"
        if (self.folder / f"{self.stem}-values.bin").exists():
            raise ValueError(f"{self.folder} holds records of rank={rank} already")
        self.keys: set[str] = set()
        self.view: dict | None = None
        self.checksum = 0

    def __enter__(self) -> RecordWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key_file = self.part("keys.txt").open("w", encoding="utf-8", newline="\n")
        self.value_file = self.part("values.bin").open("wb")
        return self

    def part(self, name: str) -> Path:
        """Where a file is until it is whole."""
        return self.folder / f"{self.stem}-{name}.part"

    def append(
        self,
        keys: Sequence[str],
        seeds: Sequence[int],
        probabilities: Tensor,
        views: Tensor | None = None,
    ) -> None:
        """Write a record per row of probabilities (b, C).

        keys: names of the pictures, each once per epoch; views: what the teacher saw (b, …); a few
        numbers of the very first are kept, by which a reader finds whether seeds still replay.
        """
        for key in keys:
            if not key or key != key.strip() or len(key.splitlines()) != 1:
                raise ValueError(f"keys must be single lines, without blanks around; got {key!r}")
        twice = self.keys & set(keys)
        if twice or len(set(keys)) != len(keys):
            raise ValueError(f"keys must be different, got {sorted(twice) or list(keys)} again")
        if len(keys) != len(probabilities):
            raise ValueError(f"{len(keys)} keys for {len(probabilities)} rows of probabilities")
        if probabilities.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"probabilities must be (b, {self.num_classes}), got {tuple(probabilities.shape)}"
            )
        raw = pack(seeds, probabilities, self.top_k).tobytes()
        self.key_file.writelines(f"{key}\n" for key in keys)
        self.value_file.write(raw)
        self.checksum = zlib.crc32(raw, self.checksum)
        self.keys.update(keys)
        if self.view is None and views is not None:
            self.view = {"key": keys[0], "numbers": sample(views[0])}

    def __exit__(self, kind, error, trace) -> None:
        self.key_file.close()
        self.value_file.close()
        names = ["about.json", "keys.txt", "values.bin"]
        if kind is not None:
            for name in names:
                self.part(name).unlink(missing_ok=True)
            return
        about = {
            "classes": self.num_classes,
            "records": len(self.keys),
            "crc32": self.checksum,
            "view": self.view,
        }
        self.part("about.json").write_text(json.dumps(about), encoding="utf-8")
        for name in names:
            self.part(name).rename(self.folder / f"{self.stem}-{name}")


def sample(view: Tensor) -> list[float]:
    """Up to 64 numbers of a view, evenly spread, by which it is known again."""
    flat = view.detach().flatten().double().cpu()
    return flat[:: max(len(flat) // SHOWN, 1)][:SHOWN].tolist()


class Records(NamedTuple):
    """Stored labels of b views: seeds (b,) int64, classes (b, K) int64, probabilities (b, K)."""

    seeds: Tensor
    classes: Tensor
    probabilities: Tensor


class Shard:
    """What one rank wrote in one epoch: values mapped at once, keys read when one is asked for."""

    def __init__(self, folder: Path, stem: str, num_classes: int, top_k: int):
        self.stem = stem
        self.folder = folder
        path = folder / f"{stem}-values.bin"
        size = path.stat().st_size
        if size % record_bytes(top_k):
            raise ValueError(
                f"{path} has {size} bytes, which is no multiple of {record_bytes(top_k)}: not"
                f" written with top_k={top_k}, or cut off"
            )
        kind = record_type(top_k)
        self.values = np.memmap(path, kind, "r") if size else np.empty(0, kind)
        about = folder / f"{stem}-about.json"
        self.about = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
        if self.about.get("classes", num_classes) != num_classes:
            raise ValueError(
                f"{path} holds labels of {self.about['classes']} classes, not num_classes="
                f"{num_classes}"
            )
        if self.about.get("records", len(self.values)) != len(self.values):
            raise ValueError(
                f"{path} holds {len(self.values)} records, written were {self.about['records']}"
            )
        self.rows_by_key: dict[str, int] | None = None

    @property
    def rows(self) -> dict[str, int]:
        """Key -> number of its record."""
        if self.rows_by_key is None:
            path = self.folder / f"{self.stem}-keys.txt"
            keys = path.read_text(encoding="utf-8").splitlines()
            self.rows_by_key = {key: row for row, key in enumerate(keys)}
            if not len(self.rows_by_key) == len(keys) == len(self.values):
                raise ValueError(
                    f"{path} names {len(keys)} keys, {len(self.rows_by_key)} different ones, for"
                    f" {len(self.values)} records"
                )
        return self.rows_by_key


class TeacherRecords:
    """Labels on disk, by epoch and key. Safe to hand to the workers of a `DataLoader`.

    rank: whose file is looked into first, so that a rank that trains on what it labelled never
    reads the others' keys. Every record is checked when it is read.
    """

    def __init__(self, root: str | Path, num_classes: int, top_k: int, rank: int = 0):
        check_sizes(num_classes, top_k)
        checks.integer(0, rank=rank)
        self.root, self.num_classes, self.top_k, self.rank = Path(root), num_classes, top_k, rank
        self.opened: tuple[int, list[Shard]] | None = None  # one epoch at a time
        if not self.epochs:
            raise ValueError(f"there are no records with top_k={top_k} in root={str(root)!r}")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": None}  # a pickled memory map would be a copy of the file

    @property
    def epochs(self) -> list[int]:
        """The epochs that are stored."""
        found = self.root.glob(f"logits_top{self.top_k}_epoch*/rank*-values.bin")
        return sorted({int(path.parent.name.rpartition("epoch")[2]) for path in found})

    def shards(self, epoch: int) -> list[Shard]:
        """What the ranks wrote, this rank's first."""
        if self.opened is None or self.opened[0] != epoch:
            if epoch not in self.epochs:
                there = ", ".join(map(str, self.epochs))
                raise ValueError(f"epoch={epoch!r} is not stored; there are {there}")
            folder = folder_of(self.root, self.top_k, epoch)
            stems = [path.name.split("-")[0] for path in folder.glob("rank*-values.bin")]
            stems.sort(key=lambda stem: (stem != f"rank{self.rank}", int(stem[4:])))
            sizes = self.num_classes, self.top_k
            self.opened = epoch, [Shard(folder, stem, *sizes) for stem in stems]
        return self.opened[1]

    def read(self, epoch: int, keys: Sequence[str]) -> Records:
        """The labels of these pictures in this epoch, in the order of the keys."""
        records = np.empty(len(keys), record_type(self.top_k))
        for i, key in enumerate(keys):
            records[i] = self.find(epoch, key)
        if problem := first_problem(records, self.num_classes):
            number = int(problem.split()[1])
            raise ValueError(
                f"of epoch {epoch}, keys {list(keys)[:4]} …, {problem} (key {keys[number]!r}):"
                f" num_classes={self.num_classes} is not what it was written for, or it is damaged"
            )
        return Records(
            torch.from_numpy(records["seed"].astype(np.int64)),
            torch.from_numpy(records["classes"].astype(np.int64)),
            torch.from_numpy(records["probabilities"].astype(np.float32)),
        )

    def find(self, epoch: int, key: str) -> np.ndarray:
        """The record of one key."""
        for shard in self.shards(epoch):
            row = shard.rows.get(key)
            if row is not None:
                return shard.values[row]
        raise ValueError(f"key={key!r} has no record in epoch {epoch} of {str(self.root)!r}")

    def verify(self, epoch: int) -> int:
        """Look through a whole epoch and return its number of records.

        Raises `ValueError` for a record that can't be one, a wrong checksum, a key of two ranks.
        """
        owner: dict[str, str] = {}
        for shard in self.shards(epoch):
            checksum = 0
            for start in range(0, len(shard.values), BLOCK):
                block = shard.values[start : start + BLOCK]
                checksum = zlib.crc32(block.tobytes(), checksum)
                if problem := first_problem(block, self.num_classes):
                    raise ValueError(f"{shard.stem}, records from {start} on: {problem}")
            if shard.about.get("crc32", checksum) != checksum:
                raise ValueError(f"{shard.stem}: the checksum is not that of what was written")
            for key in shard.rows:
                if key in owner:
                    raise ValueError(f"key {key!r} is in {owner[key]} and in {shard.stem}")
                owner[key] = shard.stem
        return len(owner)
