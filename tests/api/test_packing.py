"""Packing: what is stored, the same bytes however it was interrupted, and reading without loading."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.api import packing
from matrix_ssl.data import open_source
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.kinds import packed
from matrix_ssl.data.packing import PackSettings
from matrix_ssl.data.sources import Splits
from matrix_ssl.errors import ConfigError, DataError, RunFolderError
from matrix_ssl.runs.files import read_json, write_json
from tests.support.runs import fail, succeed

SMALL = PackSettings(shard_mib=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes and two splits, of which two files fill a shard of 1 MiB; one file cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for number in range(count):
            path = folder / split / f"class {number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (440, 330 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, compress_level=0)
    (folder / "train" / "class 0" / "3.jpg").write_bytes(b"no image")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "packed"
    packing.pack(str(photos), out, settings=SMALL, workers=0)
    return out


def test_images_labels_and_splits_are_those_of_the_folder(photos: Path, whole: Path) -> None:
    assert list(contents(whole)) == ["test_00000.npz", "train_00000.npz", "train_00001.npz", "train_00002.npz"]
    for split in ("train", "test"):
        before, after = (open_source(str(folder), split=split, data_root=None) for folder in (photos, whole))
        readable = [i for i in range(len(before)) if not before.where(i).endswith("3.jpg")]
        assert len(after) == len(readable) == (5 if split == "train" else 2)
        assert before.labels is not None and after.labels is not None
        assert after.classes == before.classes and after.labels.tolist() == before.labels[readable].tolist()
        assert all(torch.equal(after.read(j), before.read(i)) for j, i in enumerate(readable))
    [unreadable] = [one for file in read_json(whole / packing.FILES) for one in file["unreadable"]]
    assert unreadable[0].endswith("3.jpg") and "not an image" in unreadable[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bytes_are_the_same_after_an_interruption(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    real, calls = packing._write, [0]

    def stop(path: Path, *rest: object) -> object:
        calls[0] += 1
        if calls[0] == 2:
            real(path, *rest)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(str(photos), tmp_path, settings=SMALL, workers=workers)
    packing.pack(str(photos), tmp_path, settings=SMALL, workers=workers)
    assert calls[0] == 5  # the file that was written and not noted is written again
    assert contents(tmp_path) == contents(whole)
    assert read_json(tmp_path / packing.FILES) == read_json(whole / packing.FILES)


def test_a_finished_folder_is_verified_and_repaired(photos: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, path = contents(whole), whole / "train_00001.npz"
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    packing.pack(str(photos), whole, settings=SMALL, workers=0)
    assert contents(whole) == expected
    monkeypatch.setattr(packing, "_write", None)  # nothing is left to write
    packing.pack(str(photos), whole, settings=SMALL, workers=0)


def test_larger_images_become_as_small_as_the_short_side(photos: Path, tmp_path: Path) -> None:
    packing.pack(str(photos), tmp_path, settings=PackSettings(short_side=64, quality=100), workers=0)
    before, after = (open_source(str(folder), split="test", data_root=None) for folder in (photos, tmp_path))
    expected = TV.resize(before.read(0), [64], antialias=True)
    assert after.read(0).shape == expected.shape == (3, 85, 64)
    assert (after.read(0).float() - expected.float()).abs().mean() < 12  # JPEG halves the resolution of colours
    assert sum(map(len, contents(tmp_path).values())) < 200_000


def test_images_in_memory_are_stored_without_loss(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    pixels, places = torch.from_numpy(images).permute(0, 3, 1, 2), Places.whole(["raw"], [6])
    source = MemorySource("raw", pixels, places, labels=None, classes=None)
    packing.pack(Splits(lambda: source, None), tmp_path / "out", workers=0)
    after = open_source(str(tmp_path / "out"), split="train", data_root=None)
    assert all(torch.equal(after.read(i), source.read(i)) for i in range(6))


def test_a_large_file_is_mapped_and_read_alike(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole / "train_00000.npz"
    loaded = packed.read_shard(path)
    monkeypatch.setattr(packed, "MAPPED_FROM", 0)
    mapped = packed.read_shard(path)
    assert torch.equal(mapped.content, loaded.content) and mapped.offsets.tolist() == loaded.offsets.tolist()
    assert isinstance(packed._load(path)["jpeg"], np.memmap)
    compressed = path.with_name("compressed_train.npz")
    np.savez_compressed(compressed, jpeg=loaded.content.numpy(), offs=loaded.offsets)
    assert torch.equal(packed.read_shard(compressed).content, loaded.content)
    compressed.unlink()


def test_files_that_were_not_packed_together_are_noticed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    first, second, *_ = sorted(folder.glob("train_*.npz"))

    def refused() -> str:
        with pytest.raises(DataError) as error:
            open_source(str(folder), split="train", data_root=None)
        return str(error.value).removeprefix(str(folder))

    more = folder / "train_00009.npz"
    more.write_bytes(first.read_bytes())
    assert refused().startswith(
        "/train_00009.npz is not among the files that checksums.json lists; put the right files"
    )
    more.unlink()
    again = second.read_bytes()
    second.write_bytes(again + b"more")
    assert f"train_00001.npz has {len(again) + 4:,} bytes, and checksums.json says {len(again):,}; put" in refused()
    second.unlink()
    assert refused().startswith(" lacks train_00001.npz, which checksums.json lists; put the right files there, or run")
    second.write_bytes(again)
    listed = read_json(folder / "checksums.json")
    last = max((one for one in listed if one["split"] == "train"), key=lambda one: one["stop"])
    write_json(folder / "checksums.json", [one for one in listed if one is not last])
    (folder / last["name"]).unlink()
    assert f" has {last['start']} of the {last['stop']} images of the split 'train'; put" in refused()
    (folder / "pack.json").write_text("{")
    assert refused().startswith(": pack.json or checksums.json cannot be read (")


def test_mistakes_are_named(photos: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"other settings \(settings.quality: 90 -> 50"):
        packing.pack(str(photos), whole, settings=PackSettings(shard_mib=1, quality=50), workers=0)
    with pytest.raises(DataError, match="are grey"):
        packing.pack("digits", tmp_path / "grey", workers=0)
    with pytest.raises(ConfigError, match="quality"):
        PackSettings(quality=101)
    for number in range(20):
        (tmp_path / "bad" / f"{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"none")
    with pytest.raises(DataError, match="20 of 20 images cannot be read"):
        packing.pack(str(tmp_path / "bad"), tmp_path / "out", workers=0)
    [file] = packing.pack(str(tmp_path / "bad"), tmp_path / "out", workers=0, max_unreadable=1.0)
    assert file.images == 0 and len(file.unreadable) == 20


def test_the_command(photos: Path, whole: Path, tmp_path: Path) -> None:
    result = succeed(tmp_path, ["pack", str(photos), "p", "--shard-mib", "1", "--workers", "0"])
    assert "train: 5 images in 3 files" in result.out and "next    matrix-ssl pretrain --data" in result.out
    assert "Left out" in result.err and contents(tmp_path / "p") == contents(whole)
    assert "is inside the images' folder" in fail(tmp_path, ["pack", str(photos), str(photos)])
    again = succeed(tmp_path, ["pack", str(photos), "my packed", "--workers", "0"])
    assert "next    matrix-ssl pretrain --data 'my packed'" in again.out
