"""Features that are kept for a folder whose images change, against those computed anew."""

import hashlib
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import matrix_ssl
from matrix_ssl.api.evaluation import embed_source, open_images
from matrix_ssl.config import DataConfig
from matrix_ssl.data import identity
from matrix_ssl.data.kinds.folder import FolderSource
from matrix_ssl.errors import ConfigError, DataError, UnreadableImage
from matrix_ssl.evaluate import feature_files, kept
from matrix_ssl.evaluate import features as frozen
from matrix_ssl.evaluate.embedding_files import read_embedding, read_patches
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.runs.folder import lock
from tests.support import runs

DATA = DataConfig(image_size=8, workers=0)


class Counting(nn.Module):
    """Eight random projections of the pixels; counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.register_buffer("weight", torch.randn(3 * 8 * 8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x.flatten(1) @ self.weight


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(10):
        write(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


def features(*places: Path, keep: Path | None, encoder: nn.Module | None = None) -> tuple[Embedding, int]:
    """The features of folders, and how many images the encoder has seen for them."""
    source = open_images(tuple(map(str, places)), DATA, split="train", data_root=None, download=False)
    encoder = encoder or Counting()
    found = embed_source(encoder, DATA, source, device="cpu", quiet=False, keep=keep)
    return found, encoder.seen  # type: ignore[return-value]


def check(*places: Path, keep: Path, seen: int) -> None:
    """Demands the features that are computed anew, in the same order, and so many images that the encoder has seen."""
    (found, count), (expected, _) = features(*places, keep=keep), features(*places, keep=None)
    assert (found.paths, found.digest, found.unreadable) == (expected.paths, expected.digest, expected.unreadable)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-5)
    assert count == seen


def test_only_new_and_changed_images_are_read(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    check(photos, keep=keep, seen=0)
    capsys.readouterr()
    write(photos / "11.png", 11)  # between 1 and 2, and at the end
    write(photos / "z" / "12.png", 12)
    (photos / "3.png").unlink()
    write(photos / "5.png", 50)
    check(photos, keep=keep, seen=3)
    said = capsys.readouterr().err
    assert "3 of 11 images are new or have changed; the features of the others are kept." in said
    check(photos, keep=keep, seen=0)
    assert "images are new" not in capsys.readouterr().err
    (photos / "0.png").unlink()
    check(photos, keep=keep, seen=0)
    assert sorted(path.name for path in keep.iterdir() if path.is_dir()) == ["rows"]


def test_a_folder_may_be_named_in_other_words(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the settings of a run, from the root on, and as typed, relative to the current folder."""
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    monkeypatch.chdir(tmp_path)
    write(photos / "a.png", 11)
    check(Path("photos"), keep=keep, seen=1)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    write(photos / "b.png", 12)
    check(Path("../photos"), keep=keep, seen=1)


def test_an_image_of_the_same_size_and_time_is_told_apart(photos: Path, tmp_path: Path) -> None:
    """Its time of change is set back, as copying programs do; that of its entry in the folder cannot be."""
    for name in ("0.bmp", "1.bmp"):
        Image.new("RGB", (9, 9), (int(name[0]) * 50, 7, 7)).save(photos / name)
    check(photos, keep=tmp_path / "keep", seen=12)
    before = (photos / "0.bmp").stat()
    (photos / "0.bmp").write_bytes((photos / "1.bmp").read_bytes())
    os.utime(photos / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    check(photos, keep=tmp_path / "keep", seen=1)


def test_unreadable_images_are_tried_again(photos: Path, tmp_path: Path) -> None:
    (photos / "4.png").write_bytes(b"no image")
    check(photos, keep=tmp_path / "keep", seen=9)
    (photos / "a.png").write_bytes(b"no image either")
    check(photos, keep=tmp_path / "keep", seen=0)
    write(photos / "4.png", 4)
    check(photos, keep=tmp_path / "keep", seen=1)


@pytest.mark.parametrize("all_of_them", [False, True])
def test_images_that_can_be_read_after_an_installation(
    all_of_them: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files stay as they are, and so does the dataset's digest."""
    read = FolderSource.read

    def without_package(self: FolderSource, index: int) -> torch.Tensor:
        if all_of_them or self.where(index).endswith(("2.png", "7.png")):
            raise UnreadableImage(self.where(index), "install what reads it")
        return read(self, index)

    keep = tmp_path / "keep"
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", without_package)
        if all_of_them:
            with pytest.raises(DataError, match="none of the 10 images"):
                features(photos, keep=keep)
        else:
            check(photos, keep=keep, seen=8)
            check(photos, keep=keep, seen=0)
    check(photos, keep=keep, seen=10 if all_of_them else 2)
    check(photos, keep=keep, seen=0)


def test_a_change_that_the_digest_of_a_large_dataset_misses(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "START", 60)
    for number in range(3):
        Image.new("RGB", (9, 9), (number, 7, 7)).save(photos / f"{number}.bmp")
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=13)
    before = features(photos, keep=None)[0].digest
    pixels = bytearray((photos / "1.bmp").read_bytes())
    pixels[100:] = bytes(200 for _ in pixels[100:])
    (photos / "1.bmp").write_bytes(pixels)
    assert features(photos, keep=None)[0].digest == before
    check(photos, keep=keep, seen=1)
    check(photos, keep=keep, seen=0)


def test_several_folders_and_another_encoder(photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "more" / "1.png", 1)
    keep = tmp_path / "keep"
    check(photos, tmp_path / "more", keep=keep, seen=11)
    write(tmp_path / "more" / "0.png", 0)
    check(photos, tmp_path / "more", keep=keep, seen=1)
    other = Counting()
    other.weight *= 2
    write(tmp_path / "more" / "2.png", 2)
    found, seen = features(photos, tmp_path / "more", keep=keep, encoder=other)
    assert seen == 13
    np.testing.assert_allclose(
        found.features, 2 * features(photos, tmp_path / "more", keep=None)[0].features, rtol=1e-5, atol=1e-5
    )


def test_images_in_one_file_are_all_read(tmp_path: Path, photos: Path) -> None:
    files = [path.read_bytes() for path in sorted(photos.glob("*.png"))]

    def pack(files: list[bytes]) -> None:
        np.savez(
            tmp_path / "p.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offs=np.cumsum([0, *map(len, files)])
        )

    pack(files[:9])
    check(tmp_path / "p.npz", keep=tmp_path / "keep", seen=9)
    pack(files)
    check(tmp_path / "p.npz", keep=tmp_path / "keep", seen=10)


def command(folder: Path, *words: str) -> tuple[Embedding, str]:
    """Features that ``matrix-ssl embed`` writes, and what it says."""
    ended = runs.succeed(folder, ["embed", "random/tiny_resnet", "--data", "photos", "--device", "cpu", *words])
    return read_embedding(folder / words[words.index("--out") + 1]), ended.err


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_embed_adds_new_images_to_its_file(ending: str, photos: Path, tmp_path: Path) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    file = f"f{ending}"
    command(tmp_path, "--out", file)
    write(photos / "11.png", 11)
    (photos / "3.png").unlink()
    (photos / "5.png").rename(photos / "renamed.png")
    (photos / "bad.png").write_bytes(b"no image")
    found, said = command(tmp_path, "--out", file)
    assert "2 of 11 images are new or have changed; the features of the others are kept." in said
    expected, _ = command(tmp_path, "--out", f"again{ending}")
    assert (found.paths, found.digest, found.encoder_digest) == (
        expected.paths, expected.digest, expected.encoder_digest,
    )  # fmt: skip
    assert (
        found.digests
        == expected.digests
        == [hashlib.sha256((tmp_path / p).read_bytes()).hexdigest() for p in found.paths]
    )
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-5)
    _, said = command(tmp_path, "--out", file, "--tta")  # other features
    assert "images are new" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file, f"again{ending}", "photos"])


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_embed_adds_patches_of_new_images_to_its_file(ending: str, photos: Path, tmp_path: Path) -> None:
    words = ["embed", "random/tiny_resnet", "--data", "photos", "--device", "cpu", "--patches", "--out"]
    file, again = f"f{ending}", f"again{ending}"
    runs.succeed(tmp_path, [*words, file])
    write(photos / "11.png", 11)
    said = runs.succeed(tmp_path, [*words, file]).err
    assert "1 of 11 images are new or have changed; the features of the others are kept." in said
    runs.succeed(tmp_path, [*words, again])
    found, expected = read_patches(tmp_path / file), read_patches(tmp_path / again)
    assert (found.paths, found.digests, found.grid) == (expected.paths, expected.digests, expected.grid)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-5)
    assert "images are new" not in runs.succeed(tmp_path, [*words, file, "--tta"]).err  # other features
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read as features of patches"):
        read_patches(tmp_path / file)
    runs.succeed(tmp_path, [*words, file])  # a damaged file is replaced
    np.testing.assert_allclose(read_patches(tmp_path / file).features, expected.features, rtol=1e-5, atol=1e-5)


def test_a_mistyped_command_leaves_what_an_interrupted_one_has_computed(photos: Path, tmp_path: Path) -> None:
    words = ["embed", "random/tiny_resnet", "--device", "cpu", "--out", "f.npz", "--data"]
    runs.fail(tmp_path, [*words, "fotos"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    rows = tmp_path / ".f.npz.rows"
    matrix_ssl.open("random/tiny_resnet").embed(str(photos), quiet=True, device="cpu", keep=rows)
    for wrong in (["fotos"], ["photos", "--layer", "layer9"]):
        runs.fail(tmp_path, [*words, *wrong])
        assert (rows / "rows" / "progress.json").exists()
    with lock(rows):
        assert "is being written by another process" in runs.fail(tmp_path, [*words, "photos"])
    runs.succeed(tmp_path, [*words, "photos"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "photos"]


def test_earlier_features_need_a_folder(photos: Path) -> None:
    run = matrix_ssl.open("random/tiny_resnet")
    embedding = run.embed(str(photos), quiet=True, device="cpu")
    with pytest.raises(ConfigError, match="earlier needs a folder for the features of all images: name it by keep"):
        run.embed(str(photos), quiet=True, device="cpu", earlier=embedding)


class Disturbed(Counting):
    """Lets something happen when it has seen the first images, as another process may do it."""

    def __init__(self, happens: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._happens = happens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        if self.seen == len(x):
            self._happens()
        return rows


def embedded(encoder: nn.Module, *places: Path, **others: Any) -> Embedding:
    """Features with the digests of the images."""
    source = open_images(tuple(map(str, places)), DATA, split="train", data_root=None, download=False)
    return embed_source(encoder, DATA, source, device="cpu", quiet=False, digests=True, **others)


@pytest.mark.parametrize("kept_in", ["memory", "folder"])
@pytest.mark.parametrize("kind", ["folder", "folders", "archive"])
def test_images_that_change_while_features_are_computed_are_computed_again(
    kind: str, kept_in: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, more = tmp_path / "photos.tar", tmp_path / "more"
    write(more / "1.png", 11)
    places = {"folder": [photos], "folders": [more, photos], "archive": [archive]}[kind]

    def write_changing(seed: int) -> None:
        write(photos / "x.bmp", seed)  # all of its versions have the same size
        with tarfile.open(archive, "w") as file:
            file.add(photos, "photos")

    write_changing(12)
    keep = None if kept_in == "memory" else tmp_path / "keep"
    first = embedded(Disturbed(lambda: write_changing(13)), *places, keep=keep)
    lost = [path for path, digest in zip(first.paths, first.digests or (), strict=True) if not digest]
    assert lost == [path for path in first.paths if kind == "archive" or path.endswith("x.bmp")]
    said = capsys.readouterr().err
    assert f"Warning: {len(lost)} of {len(first)} images changed or disappeared while features were computed" in said
    again, encoder = tmp_path / "again", Disturbed()
    second, expected = embedded(encoder, *places, keep=again, earlier=first), embedded(Disturbed(), *places)
    assert encoder.seen == len(lost) and "Warning" not in capsys.readouterr().err
    assert (second.digest, second.digests) == (expected.digest, expected.digests) and second.digest != first.digest
    np.testing.assert_allclose(second.features, expected.features, rtol=1e-5, atol=1e-5)


def test_an_image_that_disappears_while_features_are_computed_stops_nothing(photos: Path, tmp_path: Path) -> None:
    found = embedded(Disturbed((photos / "3.png").unlink), photos, keep=tmp_path / "keep")
    assert [Path(path).name for path in found.paths] == [f"{number}.png" for number in range(10)]
    assert [bool(digest) for digest in found.digests or ()] == [number != 3 for number in range(10)]


def test_an_image_that_changes_after_it_was_recognised_is_computed_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features that an earlier file has of it are not kept for its new version."""
    keep, earlier, digest = tmp_path / "keep", embedded(Counting(), photos), frozen.image_digest

    def changing(source: FolderSource, index: int) -> str:
        found = digest(source, index)
        if index == 9:
            write(photos / "5.png", 50)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "image_digest", changing)
        found = embedded(Counting(), photos, keep=keep, earlier=earlier)
    assert (found.digests or ())[5] == "" and np.array_equal(found.features, earlier.features)
    check(photos, keep=keep, seen=1)


@pytest.mark.parametrize("damage", ["stamps", "cut", "progress"])
def test_what_is_damaged_is_computed_anew(damage: str, photos: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    if damage == "cut":
        (keep / "stamps").write_bytes((keep / "stamps").read_bytes()[:40])
    elif damage == "stamps":
        (keep / "stamps").unlink()
    else:
        shutil.rmtree(keep / "rows")
    write(photos / "a.png", 1)
    check(photos, keep=keep, seen=11)
    write(photos / "b.png", 1)
    check(photos, keep=keep, seen=1)


@pytest.mark.parametrize("change", ["other image", "same image"])
def test_new_images_that_change_after_an_interruption(
    change: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed before it is not taken for the features of other images, or of what an image was before."""
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    for number in range(300):
        write(photos / f"n{number:03}.png", number)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureFiles, "add", stops_after(1))
        with pytest.raises(KeyboardInterrupt):
            features(photos, keep=keep)
    place = photos / ("5.png" if change == "other image" else "n000.png")
    content = place.read_bytes()
    place.unlink()
    place.write_bytes(content)  # the same content, and so the same digest
    check(photos, keep=keep, seen=301 if change == "other image" else 300)


def stops_after(batches: int) -> Callable[..., None]:
    """``FeatureFiles.add`` in a process that is interrupted after some batches."""
    add, left = FeatureFiles.add, [batches]

    def interrupted(self: FeatureFiles, *values: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(self, *values)

    return interrupted


@pytest.mark.parametrize("left", ["old", "both", "swapping"])
def test_what_a_killed_process_left_does_not_stop_the_next(left: str, photos: Path, tmp_path: Path) -> None:
    """Its dataset changed once more: after the rows were replaced, and between the two renames that replace them."""
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    if left == "swapping":
        (keep / "rows").rename(keep / "old")
    else:
        shutil.copytree(keep / "rows", keep / "old")
    if left == "both":
        shutil.copytree(keep / "rows", keep / "next")
    write(photos / "a.png", 11)
    check(photos, keep=keep, seen=1)
    assert sorted(path.name for path in keep.iterdir() if path.is_dir()) == ["rows"]


def test_rows_that_were_merged_in_part_are_not_taken_for_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is stopped while it merges the features of an earlier file, and there are unreadable images."""
    (photos / "0.png").write_bytes(b"no image")
    source = open_images(str(photos), DATA, split="train", data_root=None, download=False)
    earlier = embed_source(Counting(), DATA, source, device="cpu", quiet=True, digests=True)
    write(photos / "a.png", 11)
    source = open_images(str(photos), DATA, split="train", data_root=None, download=False)
    keep = tmp_path / "keep"
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_ROWS", 4)
        patch.setattr(feature_files, "_SECONDS_BETWEEN_SAVES", 0.0)
        patch.setattr(FeatureFiles, "add", stops_after(3))
        with pytest.raises(KeyboardInterrupt):
            embed_source(Counting(), DATA, source, device="cpu", quiet=True, keep=keep, earlier=earlier)
    assert (keep / "next" / "progress.json").exists()
    check(photos, keep=keep, seen=10)


@pytest.mark.parametrize("moment", ["new", "merged", "swapped", "cleared"])
def test_a_killed_process_loses_nothing(moment: str, photos: Path, tmp_path: Path) -> None:
    """Killed after some new images, while rows are merged, and while the folders are renamed and removed."""
    keep = tmp_path / "keep"
    check(photos, keep=keep, seen=10)
    for number in range(300):
        write(photos / f"n{number}.png", number)
    kill = "lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "import matrix_ssl.evaluate.kept as k, matrix_ssl.evaluate.feature_files as f\n"
        "from pathlib import Path\n"
        "from tests.evaluate import test_kept as t\n"
        f"kill = {kill}\n"
    ) + {
        "new": "f._SECONDS_BETWEEN_SAVES = 0.0\n_add = f.FeatureFiles.add\n"
        "def add(self, *a):\n    kill() if self.seen else _add(self, *a)\n"
        "f.FeatureFiles.add = add\n",
        "merged": "_merge = k._merge\n"
        "def merge(*a):\n    f.FeatureFiles.save = kill\n    _merge(*a)\n"
        "k._merge = merge\n",
        "swapped": "_rename = Path.rename\n"
        "Path.rename = lambda self, to: kill() if self.name == 'next' else _rename(self, to)\n",
        "cleared": "k.shutil.rmtree = lambda path, **_: path.name == 'old' and path.exists() and kill()\n",
    }[moment]
    ended = runs.run(
        tmp_path, [], before=f"{code}t.features(Path('photos').absolute(), keep=Path('keep').absolute())\n"
    )
    assert ended.code == -signal.SIGKILL, ended
    check(photos, keep=keep, seen=300 - 256 if moment == "new" else 0)
    assert sorted(path.name for path in keep.iterdir() if path.is_dir()) == ["rows"]
