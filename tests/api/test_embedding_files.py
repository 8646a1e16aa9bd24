"""Features in files of every format: read back by other libraries, resumed, of patches, of a block, and of mirrors."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from torch import nn

import matrix_ssl
from matrix_ssl.api import evaluation
from matrix_ssl.cli.main import commands
from matrix_ssl.config import DataConfig
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError
from matrix_ssl.evaluate.dense import BlockFeatures, MirrorMean
from matrix_ssl.evaluate.embedding_files import ENDINGS, read_embedding, read_patches, write_embedding
from matrix_ssl.evaluate.features import Embedding

SMALL = Embedding(
    np.arange(6, dtype=np.float32).reshape(3, 2) / 7, ["a/1,\n.png", "a/é\udcff.png", "b/\"2'.png"],
    np.array([0, 0, 1]), ["a", "b, c"], "0123", [], ["00" * 32, "11" * 32, "22" * 32], None, "random/resnet18", "4567",
)  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    write_embedding(path, SMALL)
    read = read_embedding(path)
    assert np.array_equal(read.features, SMALL.features) and read.features.dtype == np.float32
    escaped = [one.encode(errors="backslashreplace").decode() for one in SMALL.paths]
    assert read.paths == (escaped if ending == ".parquet" else SMALL.paths)
    assert np.array_equal(read.labels, SMALL.labels) and read.classes == SMALL.classes
    assert read.digests == SMALL.digests
    if ending in (".npz", ".parquet", ".safetensors"):
        assert (read.digest, read.encoder, read.encoder_digest) == ("0123", "random/resnet18", "4567")


@pytest.mark.parametrize("ending", [".csv", ".npy", ".parquet"])
def test_names_with_line_ends_and_other_bytes_are_read(tmp_path: Path, ending: str) -> None:
    odd = replace(SMALL, paths=["a\r.png", "a\n.png", "a\r\n,.png"], classes=["\rx", "\udcff"])
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    write_embedding(tmp_path / f"x{ending}", odd)
    read = read_embedding(tmp_path / f"x{ending}")
    assert read.paths == odd.paths and read.labels.tolist() == [0, 0, 1]
    assert read.classes == (["\rx", "\\udcff"] if ending == ".parquet" else odd.classes)


@pytest.mark.parametrize("ending", [".csv", ".npy"])
def test_places_of_another_program_may_be_longer_than_names_of_files(tmp_path: Path, ending: str) -> None:
    places = ["https://example.org/" + "x" * 300, "y\0.png", "z"]
    path = tmp_path / f"x{ending}"  # in another folder than the current one
    write_embedding(path, replace(SMALL, paths=places))
    assert read_embedding(path).paths == places


def test_a_write_that_fails_leaves_features_and_facts_as_they_were(tmp_path: Path) -> None:
    """A .npy file has its facts beside it; the second of the two cannot be written here."""
    write_embedding(tmp_path / "x.npy", SMALL)
    other = replace(SMALL, features=SMALL.features + 1, paths=["x", "y", "z"])
    (tmp_path / "x.npy.csv").unlink()
    (tmp_path / "x.npy.csv").mkdir()
    with pytest.raises(MatrixSSLError, match="Cannot write"):
        write_embedding(tmp_path / "x.npy", other)
    assert np.array_equal(np.load(tmp_path / "x.npy"), SMALL.features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.npy.csv"]


def test_other_libraries_read_the_files(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    paths = ["a/1,\n.png", "a/é.png", "b/\"2'.png"]  # pandas takes Unicode alone
    for ending in ENDINGS:
        write_embedding(tmp_path / f"x{ending}", replace(SMALL, paths=paths))
    parquet = pandas.read_parquet(tmp_path / "x.parquet")
    assert np.array_equal(np.stack(parquet["features"]), SMALL.features) and list(parquet["label"])[-1] == "b, c"
    table = pandas.read_csv(tmp_path / "x.csv", keep_default_na=False)
    assert np.array_equal(table[["f0", "f1"]].to_numpy(np.float32), SMALL.features)
    assert list(table["path"]) == list(parquet["path"]) == paths
    with (tmp_path / "x.npy.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == paths
    tensors = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert np.array_equal(tensors["features"], SMALL.features) and np.array_equal(tensors["labels"], SMALL.labels)
    assert np.array_equal(np.load(tmp_path / "x.npy"), SMALL.features)


def test_files_of_other_programs_and_damaged_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", SMALL.features)
    read = read_embedding(tmp_path / "plain.npy")
    assert read.paths == ["plain.npy[0]", "plain.npy[1]", "plain.npy[2]"] and read.labels is None
    np.savez(tmp_path / "short.npz", features=SMALL.features, where=np.array(["a"]))
    np.savez(tmp_path / "wrong.npz", features=SMALL.features, labels=np.array([0, 1, 9]), classes=np.array(["a"]))
    (tmp_path / "text.csv").write_text("path,f0\na,1\nb,one\n")
    (tmp_path / "twice.csv").write_text("path,f0,f0\na,1,2\n")
    (tmp_path / "nan.csv").write_text("path,f0\na,1\nb,nan\n")
    (tmp_path / "outliers.csv").write_text("rank,distance,path\n1,0.5,a\n2,0.4,b\n")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name, message in (
        ("short.npz", "3 rows of features and 1 of where"), ("wrong.npz", "labels that are not indices of its classes"),
        ("text.csv", "cannot be read as a table"), ("nan.csv", "finite numbers"), ("cut.safetensors", "cannot be read"),
        ("absent.csv", "cannot be read"), ("twice.csv", "the column 'f0' is there twice"),
        ("outliers.csv", "it lists images by rank, distance; name a file that matrix-ssl embed wrote"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_embedding(tmp_path / name)
    for name in ("x.txt", "x"):
        with pytest.raises(ConfigError, match="features are written to"):
            write_embedding(tmp_path / name, SMALL)


@pytest.mark.parametrize(("facts", "message"), [
    ({"where": np.array(5)}, "where holds something else than text"),
    ({"where": np.array([["a"], ["b"], ["c"]])}, "where holds something else than text"),
    ({"labels": np.zeros((3, 1), int)}, "labels that are not whole numbers"),
    ({"labels": np.array([0, 0.5, 1])}, "labels that are not whole numbers"),
    ({"labels": np.array([0, 0, 2**63], np.uint64), "classes": np.array(["a"])}, "labels that are not whole numbers"),
    ({"labels": np.array([0, 0, 0]), "classes": np.array(3)}, "classes holds something else than text"),
    ({"encoder": np.array(["a", "b"])}, "encoder holds something else than text"),
    ({"labels": np.array([0, 1, 0]), "classes": np.array(["a", "a"])}, "two classes have the name 'a'"),
])  # fmt: skip
def test_facts_of_other_kinds(tmp_path: Path, facts: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", features=SMALL.features, **facts)
    with pytest.raises(DataError, match=message):
        read_embedding(tmp_path / "x.npz")


@pytest.mark.parametrize(("text", "message"), [
    ("path,f0\na,1,2\n", "row 1 has 3 cells and the heading 2"), ("path,f0\n\na\n", "row 2 has 1 cells"),
    (",path,f0\n0,a,1\n", "column 1 has no name"), ("1,2\n3,4\n", "the first row holds numbers"),
    ("path;f0\na;1\n", "its cells are separated by ';'"),
])  # fmt: skip
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_embedding(tmp_path / "x.csv")


def test_a_shape_below_zero(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", SMALL.features)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content.replace(b"(3, ", b"(-3,"))
    with pytest.raises(DataError, match="expected at least one row"):
        read_embedding(tmp_path / "x.npy")


@pytest.mark.parametrize(("where", "message"), [
    ("[" * 100_000, "nested too deeply"), ("5", "something else than text"),
    ('["\\ud800", "a", "b"]', "else than text"),
    ('{"0": 1}', "something else than text"), ("9" * 5000, "5000 digits"), ("[", "cannot be read"),
])  # fmt: skip
def test_metadata_of_other_kinds(tmp_path: Path, where: str, message: str) -> None:
    safetensors.numpy.save_file({"features": SMALL.features}, tmp_path / "x.safetensors", metadata={"where": where})
    with pytest.raises(DataError, match=message):
        read_embedding(tmp_path / "x.safetensors")


def test_labels_without_names_and_tables_of_spreadsheets(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=SMALL.features, labels=np.array([7, 2**40, 7]))
    read = read_embedding(tmp_path / "x.npz")
    assert read.labels.tolist() == [0, 1, 0] and read.classes == ["7", f"{2**40}"]
    (tmp_path / "x.csv").write_text("\ufeffpath,label,f0\na,p,1\nb,q,2\n")
    assert read_embedding(tmp_path / "x.csv").paths == ["a", "b"]
    (tmp_path / "x.csv").write_text("path,label,f0\na,p,1\nb,,2\n")
    with pytest.raises(DataError, match="row 2 has no label and others have"):
        read_embedding(tmp_path / "x.csv")
    np.savez(tmp_path / "x.npz", features=SMALL.features.astype(np.float64) * 1e300)
    with pytest.raises(DataError, match=r"row 0, column 1 is 1\.4\d+e\+299; leave such rows out"):
        read_embedding(tmp_path / "x.npz")


def test_digests_are_those_of_the_files() -> None:
    embedded = matrix_ssl.open("of_folder").embed(quiet=True)
    assert embedded.digests == [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in embedded.paths]
    assert embedded.encoder == str(Path("of_folder").absolute()) and len(embedded.encoder_digest) == 16


def test_a_stopped_embedding_resumes_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = matrix_ssl.open("of_folder"), matrix_ssl.open("of_folder").embed(quiet=True)
    sizes, batches = [], evaluation.features.evaluation_batches

    def small(source, data, *, device):
        sizes.append(len(source))
        for number, batch in enumerate(batches(source, data, device=device, batch_size=16)):
            if number == 1 and len(sizes) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(evaluation.features, "evaluation_batches", small)
    with pytest.raises(KeyboardInterrupt):
        run.embed(quiet=True, keep=tmp_path / "rows")
    resumed = run.embed(quiet=True, keep=tmp_path / "rows")
    assert sizes == [40, 24] and np.array_equal(resumed.features, whole.features) and resumed.paths == whole.paths
    run.embed(quiet=True, keep=tmp_path / "rows", tta=True)  # a different question starts over
    assert sizes == [40, 24, 40]


def test_the_command_leaves_its_file_alone_and_refuses_formats(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["embed", "of_folder", "--device", "cpu", "--out", str(tmp_path / "x.csv")])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    for words, message in ((["--out", "x.txt"], "features are written to .npz"),
                           (["--out", "x.csv", "--patches"], "a table has one row an image"),
                           (["--out", "x.npz", "--layer", "layer9"], "has no block 'layer9'")):  # fmt: skip
        error = CliRunner().invoke(commands, ["embed", "of_folder", "--device", "cpu", *words]).exception
        assert isinstance(error, MatrixSSLError) and message in str(error)
    assert not list(Path().glob(".x*")) and not list(Path().glob("x.*"))


class Block(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Maps(nn.Module):
    """Two blocks whose outputs are known: maps (n, 2, 4, 4), and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


def test_features_of_blocks_and_patches() -> None:
    encoder, images = Maps(), torch.randn(2, 3, 4, 5)[..., :4]
    data = DataConfig(image_size=4)
    first = encoder.blocks[0](images)
    assert torch.allclose(BlockFeatures(encoder, data, layer="blocks.0", patches=False)(images), first.mean((2, 3)))
    patches = BlockFeatures(encoder, data, layer="blocks.0", patches=True)
    assert patches.grid == (4, 4)
    assert torch.allclose(patches(images).unflatten(1, (4, 4, 3)), first.permute(0, 2, 3, 1))
    mirrored = MirrorMean(patches)
    other = encoder.blocks[0](images.flip(-1)).flip(-1)
    assert torch.allclose(mirrored(images).unflatten(1, (4, 4, 3)), ((first + other) / 2).permute(0, 2, 3, 1))
    assert torch.allclose(MirrorMean(encoder)(images), (encoder(images) + encoder(images.flip(-1))) / 2)


def test_patches_of_a_transformer_are_without_its_class_token() -> None:
    timm = pytest.importorskip("timm")
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0, class_token=True
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    kept: list[torch.Tensor] = []
    encoder.blocks[1].register_forward_hook(lambda *a: kept.append(a[2]))
    patches = BlockFeatures(encoder, DataConfig(image_size=32), layer=None, patches=True)
    with torch.no_grad():
        rows = patches(images)
    assert patches.grid == (4, 4) and torch.equal(rows.unflatten(1, (16, -1)), kept[-1][:, 1:])


def test_patches_in_a_file(tmp_path: Path) -> None:
    embedded = matrix_ssl.open("of_folder").embed(quiet=True, patches=True)
    rows, columns = embedded.grid
    assert embedded.features.shape[:2] == (40, rows * columns) and f"{rows} x {columns} patches" in repr(embedded)
    embedded.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["grid"].tolist() == [rows, columns] and file["features"].shape == embedded.features.shape
    for ending in (".npz", ".safetensors"):
        embedded.save(tmp_path / f"x{ending}")
        read = read_patches(tmp_path / f"x{ending}")
        assert read.grid == embedded.grid and np.array_equal(read.features, embedded.features)
        assert (read.paths, read.classes, read.digest) == (embedded.paths, embedded.classes, embedded.digest)
        replace(embedded, features=embedded.features[:, 1:]).save(tmp_path / f"y{ending}")
        with pytest.raises(DataError, match=f"y{ending} cannot be read as .* are not of {rows} x {columns} patches"):
            read_patches(tmp_path / f"y{ending}")
    with pytest.raises(ConfigError, match="a table has one row an image"):
        embedded.save(tmp_path / "x.csv")
