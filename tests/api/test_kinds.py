"""A folder of images with five bands of 16 bits, from the first command to embeddings and exported weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import matrix_ssl
from matrix_ssl.api.packing import pack
from matrix_ssl.api.preprocess import Preprocess
from matrix_ssl.config import DataConfig
from matrix_ssl.config.reading import Reading
from matrix_ssl.data import open_source
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.packing import PackSettings
from matrix_ssl.encoder import load_encoder
from matrix_ssl.encoder.exporting import export
from matrix_ssl.encoder.opening import open_checkpoint
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.report import write_report
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from tests.support.encoder_runs import make_run

tifffile = pytest.importorskip("tifffile")
SETTINGS = {"data.image_size": 8, "data.workers": 0, "network.encoder": "tiny_resnet", "network.width": 8,
            "method.hidden_dim": 16, "method.output_dim": 8, "epochs": 2, "batch_size": 16,
            "precision": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 tiles each, which differ in the ratio of two bands."""
    folder, r = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    for number in range(40):
        kind = number % 2
        tile = r.integers(200, 3000, (12, 12, 5)).astype(np.uint16)
        tile[..., 3] = tile[..., 2] // (1 + kind)
        path = folder / ("field", "water")[kind] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, tile, photometric="minisblack", planarconfig="contig")
    return folder


def values(tiles: Path) -> np.ndarray:
    return np.stack([tifffile.imread(path) for path in sorted(tiles.glob("*/*.tif"))]).astype(np.float64)


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> matrix_ssl.Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    return matrix_ssl.pretrain(tiles, recipe="satellite", out=out, settings=SETTINGS, quiet=True, report=False)


def test_channels_range_mean_and_deviation_are_measured_and_recorded(tiles: Path, run: matrix_ssl.Run) -> None:
    data, pixels = read_config(run.folder).data, values(tiles)
    assert (data.channels, data.value_range) == (5, (0.0, pixels.max()))
    unit = pixels / pixels.max()
    np.testing.assert_allclose(data.mean, unit.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(data.std, unit.std((0, 1, 2)), rtol=1e-5)
    source = open_source(str(tiles), split="train", data_root=None, reading=data.reading)
    np.testing.assert_allclose(source.read(7).permute(1, 2, 0), unit[7], rtol=0, atol=1e-6)


def test_what_was_measured_stays_when_the_run_is_called_again(
    tiles: Path, run: matrix_ssl.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run.folder / "config.json").read_bytes()
    monkeypatch.setattr("matrix_ssl.training.measured.mean_and_deviation", None)
    monkeypatch.setattr("matrix_ssl.training.measured.value_range", None)
    matrix_ssl.pretrain(tiles, recipe="satellite", out=run.folder, settings=SETTINGS, quiet=True, report=False)
    assert (run.folder / "config.json").read_bytes() == before


def test_preprocess_reads_all_bits_of_files_and_arrays_as_an_embedding_does(tiles: Path, run: matrix_ssl.Run) -> None:
    paths = sorted(map(str, tiles.glob("*/*.tif")))[:6]
    arrays = [tifffile.imread(path) for path in paths]
    expected, encoder = run.embed(paths, quiet=True).features, run.encoder()
    assert expected.std() > 0.01
    larger = [np.pad(array, ((8, 8), (8, 8), (0, 0)), mode="wrap") for array in arrays]  # sides above 16
    whole = run.embed(np.stack(larger), quiet=True).features
    with torch.no_grad():
        for files in (paths, list(map(Path, paths))):
            np.testing.assert_array_equal(encoder(encoder.preprocess(files)).numpy(), expected)
        for images in (larger, [torch.from_numpy(array) for array in larger], [a.transpose(2, 0, 1) for a in larger]):
            np.testing.assert_allclose(encoder(encoder.preprocess(images)).numpy(), whole, rtol=0, atol=1e-5)
    assert encoder.preprocess([larger[0], larger[1][:20]]).shape == (2, 5, 8, 8)
    unit = encoder.preprocess(paths[0]) * torch.tensor(run.config.data.std)[:, None, None]
    unit = (unit + torch.tensor(run.config.data.mean)[:, None, None]) * run.config.data.value_range[1]
    np.testing.assert_allclose(unit.mean((0, 2, 3)), arrays[0].mean((0, 1)), rtol=0.1)  # levels, not black
    with pytest.raises(DataError, match=r"Image 0: 3 channels, but data\.channels=5"):
        encoder.preprocess([Image.new("RGB", (20, 20))])


def test_preprocess_of_grey_images_of_16_bits_from_pillow(tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for number in range(16):
        levels = np.random.default_rng(number).integers(100, 4000, (20, 20)).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / "grey" / f"{number:02d}.png")
    paths = sorted(map(str, (tmp_path / "grey").iterdir()))
    settings = SETTINGS | {"epochs": 1}
    run = matrix_ssl.pretrain(
        tmp_path / "grey", recipe="microscopy", out=tmp_path / "run", settings=settings, quiet=True, report=False
    )
    expected, encoder = run.embed(quiet=True).features, run.encoder()
    with torch.no_grad():
        for images in (paths, [Image.open(path) for path in paths], [np.array(Image.open(path)) for path in paths]):
            np.testing.assert_array_equal(encoder(encoder.preprocess(images)).numpy(), expected)


def test_a_range_of_values_is_never_ignored_for_images_of_8_bits_in_memory(tmp_path: Path) -> None:
    """Files of the same numbers are read with it; in memory, 255 is white."""
    pixels = np.random.default_rng(0).integers(0, 128, (4, 9, 9, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    data = DataConfig(image_size=8, workers=0, channels=3, value_range=(0, 127))
    pictures = [Image.open(tmp_path / f"{number}.png") for number in range(4)]
    from_files = Preprocess(data)([tmp_path / f"{number}.png" for number in range(4)])
    assert torch.equal(from_files, Preprocess(data)(pictures))
    for prepare in (lambda: Preprocess(data)(pixels), lambda: Preprocess(data)(list(pixels))):
        with pytest.raises(DataError, match=r"holds 8-bit pixels, from 0 to 255, but data\.value_range is 0 to 127"):
            prepare()
    for images in (pixels, torch.from_numpy(pixels), pictures, [(image, 0) for image in pixels]):
        with pytest.raises(DataError, match=r"data\.value_range is 0 to 127: use image files, or an array of 16 bits"):
            open_source(as_data(images), split="train", data_root=None, reading=data.reading)
        usual = dataclasses.replace(data, value_range=(0, 255)).reading
        assert len(open_source(as_data(images), split="train", data_root=None, reading=usual)) == 4


def test_a_query_that_is_a_file_is_read_with_all_of_its_bands(
    tiles: Path, run: matrix_ssl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIX_SSL_CACHE", str(tmp_path / "cache"))
    images = matrix_ssl.Collection(run.folder, tiles, quiet=True)
    shutil.copy(images.embedding.paths[3], tmp_path / "query.tif")
    listing = images.search(tmp_path / "query.tif", k=1)
    assert listing.paths == [images.embedding.paths[3]] and listing.column("similarity")[0] == pytest.approx(1)


def test_pages_of_features_show_images_with_all_of_their_bands(
    tiles: Path, run: matrix_ssl.Run, tmp_path: Path
) -> None:
    run.embed(tiles, quiet=True).save(tmp_path / "features.npz")
    for data in (None, tiles):
        images = matrix_ssl.Collection(tmp_path / "features.npz", data, quiet=True)
        page = images.outliers(count=3).page(tmp_path / "page.html").read_text(encoding="utf-8")
        assert page.count("data:image/jpeg") == 3
        assert images.source().channels == 5


def test_workers_and_an_interruption_change_no_bit(tiles: Path, run: matrix_ssl.Run, tmp_path: Path) -> None:
    def stop(line: dict) -> None:
        raise KeyboardInterrupt

    again = SETTINGS | {"data.workers": 2, "log_every": 1}
    with pytest.raises(KeyboardInterrupt):
        matrix_ssl.pretrain(tiles, recipe="satellite", out=tmp_path / "run", settings=again, callback=stop, quiet=True)
    stopped = matrix_ssl.pretrain(
        tiles, recipe="satellite", out=tmp_path / "run", settings=again, quiet=True, report=False
    )
    one, two = (load_encoder(each.folder).state_dict() for each in (run, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_level_that_is_named_white_is_not_measured(tiles: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"data.white_level": 4095, "epochs": 1}
    run = matrix_ssl.pretrain(
        tiles, recipe="satellite", out=tmp_path / "r", settings=settings, quiet=True, report=False
    )
    data = read_config(run.folder).data
    assert (data.white_level, data.value_range) == (4095, ())
    np.testing.assert_allclose(data.mean, (values(tiles) / 4095).mean((0, 1, 2)), rtol=1e-5)


def test_packed_images_of_many_bits_are_those_of_the_run(tiles: Path, tmp_path: Path) -> None:
    """Their identity does not depend on the range that was measured: evaluation and resuming know them."""
    packed = tmp_path / "tiles"
    pack(str(tiles), packed, settings=PackSettings(channels=-1), workers=0)
    settings = {**SETTINGS, "epochs": 1}
    run = matrix_ssl.pretrain(
        packed, recipe="satellite", out=tmp_path / "r", settings=settings, quiet=True, report=False
    )
    data = read_config(run.folder).data
    assert data.value_range == (0.0, values(tiles).max())
    digests = {
        open_source(str(packed), split="train", data_root=None, reading=reading).loaded().digest
        for reading in (Reading(channels=-1), data.reading)
    }
    assert digests == {data.digest}
    run.evaluate(protocols=["knn"], quiet=True)
    assert read_json(run.folder / "evaluation" / "tiles" / "knn.json")["pretraining_images"]
    again = settings | {"data.value_range": f"{data.value_range[0]},{data.value_range[1]}"}
    matrix_ssl.pretrain(packed, recipe="satellite", out=run.folder, settings=again, quiet=True, report=False)


def test_evaluate_embed_and_page(run: matrix_ssl.Run, tiles: Path) -> None:
    assert run.evaluate(protocols=["knn"], quiet=True)
    features = run.embed(tiles, quiet=True).features
    assert features.shape[0] == 40
    assert np.isfinite(features).all()
    assert write_report(run.folder).stat().st_size > 1000


@pytest.mark.parametrize(
    ("form", "encoder"), [pytest.param("torchvision", "resnet18", marks=pytest.mark.slow), ("onnx", "tiny_resnet")]
)
def test_export(run: matrix_ssl.Run, tmp_path: Path, form: str, encoder: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    settings = f"network.encoder={encoder}", "network.stem=standard", "data.image_size=16"
    folder, _ = make_run(tmp_path / "r", *settings, base=read_config(run.folder))
    said = export(folder, form=form)  # its own program has read it back
    assert ("set_submodule('conv1', torch.nn.Conv2d(5, 64" in said) == (form == "torchvision")
    export(folder, form="safetensors")
    opened = open_checkpoint(folder / "export.safetensors")
    assert opened.config.data.reading == read_config(folder).data.reading
    with pytest.raises(ConfigError, match="takes colours, and this encoder takes 5 channels"):
        export(folder, form="huggingface") if encoder == "resnet18" else pytest.skip("not a ResNet")


def test_without_a_recipe_signed_values_are_measured_and_the_size_is_that_of_the_images(tmp_path: Path) -> None:
    for k in range(8):
        tile = np.random.default_rng(k).integers(-1000, 2000, (40, 60)).astype(np.int16)
        np.save(tmp_path / f"{k}.npy", tile)
    run = matrix_ssl.pretrain(
        tmp_path, out=tmp_path.parent / "signed", report=False, quiet=True, device="cpu",
        settings={"data.channels": -1, "network.width": 8, "epochs": 1, "data.workers": 0},
    )  # fmt: skip
    data = read_config(run.folder).data
    assert data.channels == 1
    assert data.image_size == 32
    low, high = data.value_range
    assert -1000 <= low < -900 and 1900 < high <= 2000


def test_a_number_of_channels_leaves_the_mean_to_be_measured(tiles: Path, tmp_path: Path) -> None:
    run = matrix_ssl.pretrain(
        tiles, recipe="images_small", out=tmp_path / "r", report=False, quiet=True,
        settings=SETTINGS | {"data.channels": 5, "data.value_range": (0, 10_000), "epochs": 1},
    )  # fmt: skip
    data = read_config(run.folder).data
    assert data.value_range == (0, 10_000)
    np.testing.assert_allclose(data.mean, values(tiles).mean((0, 1, 2)) / 10_000, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"data\.channels=5, but data\.mean has 3 numbers"):
        dataclasses.replace(data, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert json.loads((run.folder / "config.json").read_text())["data"]["pages"] == "first"


def test_an_array_of_any_channels_is_for_every_function_as_files_of_its_numbers(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4096, (24, 20, 18, 5), dtype=np.uint16)
    array[12:, ..., 3] //= 2
    labels = np.repeat([0, 1], 12)
    settings = {**SETTINGS, "epochs": 1, "batch_size": 8}
    run = matrix_ssl.pretrain(array, out=tmp_path / "run", settings=settings, quiet=True, report=False)
    data = read_config(run.folder).data
    assert (data.channels, data.value_range) == (5, (0.0, float(array.max())))
    np.testing.assert_allclose(data.mean, (array / array.max()).mean((0, 1, 2)), rtol=1e-5)
    features = run.embed(array.transpose(0, 3, 1, 2), quiet=True).features
    for row, image in enumerate(array):
        (tmp_path / "files").mkdir(exist_ok=True)
        np.save(tmp_path / "files" / f"{row:02d}.npy", image)
    np.testing.assert_allclose(run.embed(tmp_path / "files", quiet=True).features, features, rtol=1e-4, atol=1e-5)
    assert run.evaluate((array, labels), protocols=["knn"], quiet=True)
    run.explore(array, out=tmp_path / "page", settings={"clusters": 2, "map": "pca"}, quiet=True)
    assert (tmp_path / "page" / "index.html").is_file()
    with pytest.raises(DataError, match="The array has 4-channel images, but 5-channel images are needed"):
        run.embed(array[..., :4], quiet=True)
