"""Measures of files, encoders and checkpoints, and the command with its page."""

import json
import weakref

import numpy as np
import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.api import measuring
from matrix_ssl.api import run as run_module
from matrix_ssl.api.pretraining import pretrain
from matrix_ssl.cli import measure as commands
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.feature_rows import rows_of
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.evaluate.measure import choose, compare_rows, measure_rows
from matrix_ssl.matrix import of_features
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.ranks import statistics
from matrix_ssl.runs.checkpoint import list_checkpoints
from tests.support.encoder_runs import make_run
from tests.support.matrix_samples import rows
from tests.support.runs import make_images, run

X = rows(80, 6).float()
Y = (X @ rows(6, 6, seed=1).float())[:, :4] + 0.1 * rows(80, 4, seed=2).float()


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    np.savez(tmp_path / "y.npz", features=Y.numpy(), data_digest=np.array("a"))
    return tmp_path


def test_ranks_and_spectrum():
    one = measure_rows(rows_of(X, "x"), population=1000)
    assert {name: rank["value"] for name, rank in one["ranks"].items()} == pytest.approx(
        matrix.rank_report(X).values(), rel=1e-6
    )
    assert one["spectrum"] == pytest.approx(matrix.spectrum(X).tolist(), rel=1e-5)
    rank = one["ranks"]["effective_rank"]
    assert rank["low"] < rank["value"] < rank["high"] and rank["quarter"] < rank["value"] <= rank["expected"]
    shifted = measure_rows(rows_of(X + 100, "x"))
    assert shifted["mean_share"] == pytest.approx(1, abs=1e-3)
    assert "low" not in measure_rows(rows_of(X[:10], "x"))["ranks"]["rank_me"]


def test_every_matrix_is_decomposed_once(monkeypatch):
    """Two matrices of all samples, of eight leaving one group out, of two halves and of four quarters."""
    calls = []
    monkeypatch.setattr(statistics, "eigenvalues", lambda a: calls.append(a) or linalg.eigenvalues(a))
    measure_rows(rows_of(X, "x"))
    assert len(calls) == 2 * (1 + 8 + 2 + 4)


def test_similarity():
    pair = compare_rows(rows_of(X, "x"), rows_of(Y, "y"))
    x, y = (X - X.mean(0)).double(), (Y - Y.mean(0)).double()
    cka = (y.mT @ x).norm() ** 2 / (x.mT @ x).norm() / (y.mT @ y).norm()
    assert pair["linear_cka"] == pytest.approx(cka.item(), rel=1e-6)
    joint = of_features.joint_entropy(X, Y).item()
    mutual = of_features.mutual_information(X, Y).item()
    kernels = [torch.nn.functional.normalize(z.double(), dim=1) for z in (X, Y)]
    single = [matrix.von_neumann_entropy(z @ z.mT).item() for z in kernels]
    assert sum(single) == pytest.approx(joint + mutual, rel=1e-4)
    assert pair["mir"] == pytest.approx(mutual / min(single), rel=1e-4)
    assert pair["hdr"] == pytest.approx(abs(single[0] - single[1]) / max(single), rel=1e-4)
    same = compare_rows(rows_of(X, "x"), rows_of(-3 * X, "y"))
    assert (same["linear_cka"], same["hdr"]) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert [same[name] for name in ("cca", "svcca", "pwcca", "rsa")] == pytest.approx([1] * 4)
    assert same["procrustes"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rank", [None, 3])
def test_similarities_from_a_covariance_are_those_of_the_features(rank):
    x = rows(90, 7, rank=rank) * torch.arange(1, 8) ** -1.5 + 2
    y = x[:, :5] @ rows(5, 5, seed=1) + rows(90, 5, seed=2) * torch.arange(5)  # no two correlations alike
    pair = compare_rows(rows_of(x, "x"), rows_of(y, "y"))
    expected = {
        "cca": matrix.cca(x, y, power=2), "svcca": matrix.svcca(x, y), "pwcca": matrix.pwcca(x, y),
        "procrustes": matrix.procrustes_distance(x, y), "rsa": matrix.rsa(x, y), "linear_cka": matrix.linear_cka(x, y),
    }  # fmt: skip
    assert {name: pair[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-7
    )


def test_similarities_that_mean_nothing_are_absent():
    x, y = rows(12, 7), rows(12, 6, seed=1)  # with as many columns as images every correlation is one
    few = compare_rows(rows_of(x, "x"), rows_of(y, "y"))
    assert not few.keys() & {"cca", "pwcca", "svcca"} and few.keys() >= {"linear_cka", "procrustes", "rsa", "mir"}
    constant = compare_rows(rows_of(X, "x"), rows_of(torch.ones(80, 2), "y"))
    assert (constant["linear_cka"], constant["procrustes"]) == (0, 2)
    assert not constant.keys() & {"cca", "pwcca", "svcca", "rsa"}


def test_the_rule_says_when_it_cannot_tell():
    def one(name, value, low):
        return {"name": name, "ranks": {"rank_me": {"value": value, "low": low}}}

    assert choose([one("a", 3.0, 2.9), one("b", 5.0, 4.8), one("c", 4.9, 4.7)])["distinct"] is False
    clear = choose([one("a", 3.0, 2.9), one("b", 5.0, 4.8)])
    assert (clear["chosen"], clear["second"], clear["distinct"]) == ("b", "a", True)
    assert any("noise" in sentence for sentence in clear["failures"])


def test_features_against_features(files):
    out = files / "out"
    result = measuring.measure(files / "x.npy", against=[files / "y.npz"], out=out)
    assert json.loads((out / "measure.json").read_text()) == result
    page = (out / "measure.html").read_text()
    for text in (
        "linear CKA",
        "SVCCA",
        "Procrustes distance",
        "RSA",
        "Participation ratio",
        "LiDAR",
        "x.npy",
        "y.npz",
        "Garrido et al.",
    ):
        assert text in page


def test_files_of_one_name_are_told_apart(files):
    places = [files / folder / "features.npy" for folder in ("a", "b")]
    for place, features in zip(places, (X, Y), strict=True):
        place.parent.mkdir()
        np.save(place, features.numpy())
    result = measuring.measure(places[0], against=[places[1], files / "y.npz"])
    names = [*map(str, places), "y.npz"]
    assert [one["name"] for one in result["features"]] == names
    assert [(pair["first"], pair["second"]) for pair in result["comparisons"]] == [(names[0], n) for n in names[1:]]
    np.save(places[1], Y[:50].numpy())
    with pytest.raises(DataError, match=rf"{places[0]} has 80 rows and {places[1]} 50: --against"):
        measuring.measure(places[0], against=places[1])


def test_errors(files):
    np.save(files / "short.npy", X[:50].numpy())
    np.savez(files / "other.npz", features=Y.numpy(), data_digest=np.array("b"))
    with pytest.raises(DataError, match=r"x\.npy has 80 rows and short\.npy 50: --against compares .* same order\.$"):
        measuring.measure(files / "x.npy", against=[files / "short.npy"])
    with pytest.raises(DataError, match=r"y\.npz and other\.npz are features of different datasets"):
        measuring.measure(files / "y.npz", against=[files / "other.npz"])
    with pytest.raises(ConfigError, match=r"--checkpoints is for a run, and .*x\.npy is not one"):
        measuring.measure(files / "x.npy", checkpoints=True, out=files / "out")
    (files / "x.csv").write_text("where,f0\na.png,1.0\n")
    for words in ((files / "x.csv", ()), (files / "x.npy", [files / "x.csv"])):
        with pytest.raises(DataError, match=r"x\.csv: features are read from \.npy, .* write them as"):
            measuring.measure(words[0], against=words[1])
    assert not (files / "out").exists()


def test_networks_of_elsewhere_are_in_memory_one_after_the_other(monkeypatch):
    networks, alive, real = [], [], run_module.open_encoder

    def opened(*args, **words):
        result = real(*args, **words)
        networks.append(weakref.ref(result.encoder))
        return result

    def embed(*args, **words):
        alive.append(sum(network() is not None for network in networks))
        return Embedding(X.numpy(), [], None, None, "a", [])

    monkeypatch.setattr(run_module, "open_encoder", opened)
    monkeypatch.setattr(measuring.evaluation, "embed", embed)
    where = "random/tiny_resnet"
    result = measuring.measure(where, "digits", against=[where, where], device="cpu", quiet=True)
    assert len(result["features"]) == 3 and alive == [1, 1, 1]


def test_the_checkpoints_of_a_run(tmp_path):
    folder, _ = make_run(tmp_path / "run", "network.width=8", base=find_recipe("demo"))
    out = tmp_path / "out"
    result = measuring.measure(folder, "digits", checkpoints=True, split="test", quiet=True, out=out)
    names = [one["name"] for one in result["features"]]
    assert names == [measuring.UNTRAINED, "step 2", "finished encoder"]
    first, second, third = result["features"]
    assert second["ranks"] == third["ranks"] and first["ranks"] != second["ranks"]  # the same weights
    assert result["choice"]["chosen"] in names[1:] and not result["choice"]["distinct"]
    among = result["checkpoints"]
    assert among["names"] == names and among["linear_cka"][1] == pytest.approx(among["linear_cka"][2])
    assert among["linear_cka"][0][1] < 1 and among["matrix_kl"][1][2] == pytest.approx(0, abs=1e-6)
    page = (out / "measure.html").read_text()
    assert "Checkpoint against checkpoint" in page and "Matrix KL, checkpoints" in page


def test_checkpoints_that_stay_are_measured(tmp_path):
    pretrain(
        "digits", recipe="demo", out=tmp_path / "run", report=False, quiet=True, device="cpu", epochs=6, width=8,
        precision="float32", batch_size=32, settings={"data.subset": 64, "keep_checkpoints": 3, "checkpoint_every": 11},
    )  # fmt: skip
    steps = [path.stem for path in list_checkpoints(tmp_path / "run")]
    assert steps == [f"step-{step:09d}" for step in (4, 8, 11, 12)]  # thirds of 12 steps, and the newest two
    result = measuring.measure(tmp_path / "run", checkpoints=True, split="test", quiet=True)
    assert [one["name"] for one in result["features"]][1:4] == ["step 4", "step 8", "step 11"]
    assert result["choice"]["chosen"] in ("step 4", "step 8", "step 11", "step 12", "finished encoder")


@pytest.mark.parametrize("population", [79, 0, -5])
def test_a_population_smaller_than_the_sample(files, population):
    with pytest.raises(ConfigError, match=rf"--population {population} is less than the 80 rows of .*x\.npy"):
        measuring.measure(files / "x.npy", population=population, quiet=True)


def test_kinds_and_names_that_are_refused_at_once(files, monkeypatch):
    monkeypatch.setattr(measuring, "measure_rows", None)
    for words, message in (
        ({"population": "100"}, "population='100': expected a whole number"), ({"split": "val"}, "split='val'"),
        ({"population": 1e3}, "population=1000.0: expected a whole number"), ({"device": "gpu"}, "device=gpu"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            measuring.measure(files / "x.npy", quiet=True, **words)


def test_the_home_folder(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    result = measuring.measure("~/x.npy", against="~/y.npz", out="~/out", quiet=True)
    assert [one["samples"] for one in result["features"]] == [80, 80] and (files / "out" / "measure.json").exists()
    make_run(files / "run", "network.encoder=tiny_resnet", "network.width=8", "data.image_size=16")
    make_images(files / "photos" / "ant", 4)
    words = {"checkpoints": True, "quiet": True, "device": "cpu"}
    assert len(measuring.measure("~/run", "~/photos", **words)["features"]) > 1


def test_the_command(files):
    ended = run(files, ["measure", "x.npy", "--against", "y.npz", "--population", "1000", "--out", "out"])
    assert ended.code == 0, ended.err
    assert "RankMe" in ended.out and "linear CKA" in ended.out and "out/measure.html" in ended.out
    ended = run(files, ["measure", "x.csv"])
    assert ended.code != 0 and "Traceback" not in ended.err


@pytest.mark.parametrize("command", [commands.measure, commands.diagnose])
def test_images_that_cannot_be_read_are_named(tmp_path, capfd, command):
    files = make_images(tmp_path / "photos" / "ant", 4)
    files[2].write_bytes(b"")
    run, _ = make_run(tmp_path / "run", "network.encoder=tiny_resnet", "network.width=8", "data.image_size=16")
    words = [str(run), "--data", f"{tmp_path}/photos", "--out", f"{tmp_path}/out", "--device", "cpu"]
    command.main(words, standalone_mode=False)
    assert f"Skipped {files[2]}: the file is empty.\n" in capfd.readouterr().err
    (result,) = (tmp_path / "out").glob("*.json")
    assert json.loads(result.read_text())["unreadable"] == [[str(files[2]), "the file is empty"]]
