"""A run in Python: its encoder, features, accuracies and how it looks in a notebook."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import matrix_ssl
from matrix_ssl.cli.main import commands
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, DataError, RunFolderError
from tests.api.conftest import LABELS, PIXELS, TINY


def features_of(run: matrix_ssl.Run, images: object) -> np.ndarray:
    encoder = run.encoder()
    with torch.no_grad():
        return encoder(encoder.preprocess(images)).numpy()


def test_preprocess_of_files_is_that_of_evaluation() -> None:
    run = matrix_ssl.open("of_folder")
    embedded = run.embed(quiet=True)
    assert embedded.paths == sorted(map(str, Path("photos").absolute().glob("*/*.png"))) and len(embedded) == 40
    for images in (embedded.paths, list(map(Path, embedded.paths)), [Image.open(path) for path in embedded.paths]):
        assert np.array_equal(features_of(run, images), embedded.features)
    assert np.array_equal(embedded.labels, np.sort(LABELS)) and embedded.classes == ["a", "b"]


def test_preprocess_of_arrays_is_that_of_evaluation() -> None:
    run = matrix_ssl.open("of_array")
    embedded = run.embed((PIXELS, LABELS), quiet=True)
    for images in (PIXELS, PIXELS.transpose(0, 3, 1, 2), PIXELS / 255, torch.from_numpy(PIXELS), list(PIXELS)):
        assert np.array_equal(features_of(run, images), embedded.features)
    grey = PIXELS[..., 0]
    assert np.array_equal(features_of(run, grey), run.embed(grey, quiet=True).features)
    assert np.array_equal(embedded.labels, LABELS) and embedded.paths[3] == "array[3]"


def test_preprocess_of_a_dataset_of_pillow_is_that_of_evaluation() -> None:
    run = matrix_ssl.open("of_array")
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    assert np.array_equal(features_of(run, images), run.embed(images, quiet=True).features)


def test_preprocess_of_images_of_16_bits_is_that_of_evaluation(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 4000, (16, 20, 20)).astype(np.uint16)
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    run = matrix_ssl.pretrain(str(tmp_path), out=tmp_path.with_name("of_levels"), white_level=4095, **TINY)
    embedded = run.embed(quiet=True)
    for images in (embedded.paths, [Image.open(path) for path in embedded.paths]):
        assert np.array_equal(features_of(run, images), embedded.features)
    of_array = run.embed(levels, quiet=True).features  # its crops are not rounded
    np.testing.assert_allclose(of_array, embedded.features, rtol=0, atol=0.05)
    for images in (levels, list(levels), torch.from_numpy(levels.astype(np.int32)).to(torch.uint16)):
        assert np.array_equal(features_of(run, images), of_array)


def test_preprocess_of_single_images_and_mistakes() -> None:
    run = matrix_ssl.open("of_folder")
    preprocess = run.encoder().preprocess
    assert preprocess("photos/a/00.png").shape == preprocess(Image.open("photos/a/00.png")).shape == (1, 3, 16, 16)
    assert preprocess([PIXELS[0], PIXELS[0, :9]]).shape == (2, 3, 16, 16)
    for images, message in (("absent.png", "absent.png"), (PIXELS[0], "uint8 of shape"), ([], "no images"),
                            ([3], "expected an image of Pillow")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            preprocess(images)


def test_the_encoder_is_that_of_the_run() -> None:
    encoder = matrix_ssl.Run("of_folder").encoder()
    assert isinstance(encoder, torch.nn.Module) and not encoder.training
    again = load_encoder("of_folder").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in encoder.state_dict().items())
    copy = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(copy(copy.preprocess(PIXELS)), encoder(encoder.preprocess(PIXELS)))


def test_embedding_is_what_the_command_writes(tmp_path: Path) -> None:
    matrix_ssl.open("of_folder").embed(quiet=True).save(tmp_path / "ours.npz")
    words = ["embed", "of_folder", "--device", "cpu", "--out", str(tmp_path / "theirs.npz")]
    commands.main(words, standalone_mode=False)
    with np.load(tmp_path / "ours.npz") as ours, np.load(tmp_path / "theirs.npz") as theirs:
        assert set(ours) == set(theirs) == {
            "features", "where", "digests", "data_digest", "encoder", "encoder_digest", "labels", "classes"
        }  # fmt: skip
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_is_what_the_files_hold() -> None:
    run = matrix_ssl.open("of_folder")
    table = run.evaluate(protocols=["knn"], report=False, quiet=True, device="cpu")
    stored = json.loads(Path("of_folder/evaluation/photos/knn.json").read_text())
    assert table["knn_1"].accuracy == table.accuracies["knn_1"] == stored["measures"]["knn_1"]["accuracy"]
    assert list(table) == list(stored["measures"]) and stored["pretraining_images"]
    assert "1-NN" in repr(table) and "untrained network" in repr(table)
    html = table._repr_html_()
    assert html.count("<tr>") == 1 + len(table) and html.startswith("<table><caption>Accuracy in % on photos")
    assert "<caption>of_folder" in run._repr_html_() and "1-NN" in run._repr_html_()


def test_a_single_name_needs_no_list() -> None:
    """A text is not taken for a list of its letters."""
    run = matrix_ssl.open("of_folder")
    table = run.evaluate(protocols="knn", report=False, quiet=True, device="cpu")
    assert table.accuracies == run.evaluate(protocols=["knn"], report=False, quiet=True, device="cpu").accuracies
    with pytest.raises(ConfigError, match="no logger 'csvv'"):
        matrix_ssl.pretrain("photos", out="x", loggers="csvv", **TINY)
    with pytest.raises(ConfigError, match="Unknown setting 'epoch'"):
        matrix_ssl.pretrain("photos", out="x", settings="epoch=3", **TINY)
    with pytest.raises(ConfigError, match=r"Unknown setting 'linear_sgd\.epoch'"):
        run.evaluate(protocols="linear-sgd", settings="linear_sgd.epoch=3", quiet=True)
    assert not Path("x").exists()


def test_measure_and_diagnose_are_functions_of_the_package(tmp_path: Path) -> None:
    for data in ("photos", PIXELS):
        measured = matrix_ssl.measure("of_folder", data, quiet=True, device="cpu", against="of_array")
        assert len(measured["features"]) == 2 and len(measured["comparisons"]) == 1
        diagnosed = matrix_ssl.diagnose("of_folder", data, device="cpu", images=20)
        assert diagnosed["rows"][-1]["block"] and diagnosed["encoder"] == "of_folder"
    assert not list(Path().glob("*.json"))
    matrix_ssl.diagnose("of_folder", out=str(tmp_path / "d"), device="cpu", images=20)
    assert {path.name for path in (tmp_path / "d").iterdir()} >= {"diagnose.json", "diagnose.html"}
    with pytest.raises(DataError, match="absent"):
        matrix_ssl.measure("of_folder", "absent")


def test_evaluation_on_other_images() -> None:
    table = matrix_ssl.open("of_array").evaluate(
        (PIXELS[:30], LABELS[:30]), test_data=(PIXELS[30:], LABELS[30:]), protocols=["linear"], report=False,
        quiet=True, device="cpu",
    )  # fmt: skip
    assert table.evaluation.test.images == 10 and not table.evaluation.is_own
    with pytest.raises(DataError, match="'array' has no labels"):
        matrix_ssl.open("of_array").evaluate(PIXELS, protocols=["knn"], quiet=True)
    with pytest.raises(ConfigError, match="'nn' does not exist"):
        matrix_ssl.open("of_array").evaluate((PIXELS, LABELS), protocols=["nn"], quiet=True)


def test_images_of_another_program_are_asked_for() -> None:
    run = matrix_ssl.open("of_array")
    for call in (run.embed, run.evaluate):
        with pytest.raises(DataError, match=r"were in the memory of a program \(array\)"):
            call(quiet=True)
    with pytest.raises(DataError, match="name images with --data"):
        commands.main(["evaluate", "of_array", "--device", "cpu"], standalone_mode=False)


def test_what_a_run_says_about_itself() -> None:
    run = matrix_ssl.open("of_folder")
    text = "Run('of_folder': encoder tiny_resnet, 16 px, method matrix_entropy, images 40, training 2"
    assert repr(run).startswith(text) and run.config.network.width == 8  # not the method's option of this name
    assert run.config.epochs == 2 and run.summary["steps"] == 4
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]


def test_encoders_of_elsewhere(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    for where in (str(tmp_path / "weights.pth"), "random/resnet18"):
        run = matrix_ssl.open(where, out=tmp_path / "imported")
        assert run.encoder().preprocess(PIXELS[:2]).shape == (2, 3, 224, 224)
        assert run.embed(PIXELS[:2], quiet=True).features.shape == (2, 512) and not run.folder.exists()
        with pytest.raises(DataError, match="does not name a dataset"):
            run.embed(quiet=True)
    assert "resnet18, 224 px" in run._repr_html_()


def test_an_encoder_of_elsewhere_is_evaluated_in_a_run_of_its_own(tmp_path: Path) -> None:
    run = matrix_ssl.open("random/shufflenet_v2_x0_5", out=tmp_path / "imported")
    table = run.evaluate((PIXELS, LABELS), protocols=["knn"], report=False, quiet=True, device="cpu")
    assert table["knn_1"].accuracy > 0.5 and (tmp_path / "imported" / "evaluation").exists()
    assert len(matrix_ssl.open(tmp_path / "imported").embed(PIXELS, quiet=True)) == 40


def test_a_mistyped_name_is_refused() -> None:
    run = matrix_ssl.open("of_folder")
    for split in ("validation", "Train", None):
        for call in (run.embed, lambda **given: matrix_ssl.Collection("of_folder", **given),
                     lambda **given: matrix_ssl.diagnose("of_folder", **given)):  # fmt: skip
            with pytest.raises(ConfigError, match=f"split={split!r} does not exist"):
                call(split=split)
    for weights in ("ema", "Student", None, ""):
        calls = (run.encoder, run.embed, run.evaluate, matrix_ssl.open("random/shufflenet_v2_x0_5").encoder,
                 lambda **given: matrix_ssl.measure("of_folder", checkpoints=True, **given))  # fmt: skip
        for call in calls:
            with pytest.raises(ConfigError, match=f"weights={weights!r} does not exist"):
                call(weights=weights)
    assert not list(Path("of_folder").glob("evaluation/*-ema"))
    with pytest.raises(ConfigError, match=r"baseline_sizes='huge' does not exist\. Known: both, own, run\."):
        run.evaluate(baselines="random/shufflenet_v2_x0_5", baseline_sizes="huge")
    with pytest.raises(ConfigError, match=r"rule=None does not exist\. Known: facility-location"):
        matrix_ssl.Collection("of_folder", quiet=True).select(3, rule=None)


def test_what_is_no_run() -> None:
    with pytest.raises(RunFolderError, match="photos is not a run folder"):
        matrix_ssl.open("photos")
    with pytest.raises(CheckpointError, match="absent"):
        matrix_ssl.open("absent")
    for where, name in ((None, "NoneType"), (3, "int"), (b"of_folder", "bytes")):
        for call in (matrix_ssl.open, matrix_ssl.Collection, matrix_ssl.measure, matrix_ssl.diagnose):
            with pytest.raises(ConfigError, match=f"An encoder of type {name}: name a run folder"):
                call(where)
    with pytest.raises(ConfigError, match="encoder= is for a run that was trained with a module"):
        matrix_ssl.open("of_folder", encoder=torch.nn.Flatten())
