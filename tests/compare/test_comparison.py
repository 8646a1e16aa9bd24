"""What comparisons find is what a person would find by hand, and what they say of it is all there."""

import itertools
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import matrix_ssl
from matrix_ssl import config
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import read_config
from matrix_ssl.training import setup
from matrix_ssl.training.task import Observer
from tests.support import runs
from tests.support.comparisons import FEW, TWO_DRAWS, compare, fail, job_folders, moments, results, words
from tests.support.runs import BARE, TINY, make_images, succeed

MEASURES = {"knn_1", "knn_20", "linear", "low_shot_1", "low_shot_5", "low_shot_10"}
BOTH = words("--seeds", "2", "--trials", "2", "--budget", "1", "--rivals-budget", "2", settings=())
STEPS = {1: 22, 2: 44}  # by epochs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison ``c`` of two methods that has ended, and what it said."""
    folder = tmp_path_factory.mktemp("done")
    ended = compare(folder, BOTH)
    (folder / "out").write_text(ended.out)
    (folder / "err").write_text(ended.err)
    return folder


def run_folder(row: dict) -> Path:
    """Where the run of a row lies."""
    return Path("c", "runs", f"{row['method']}-{row['epochs']}-epochs", f"seed-{row['seed']}")


def test_every_run_has_a_row(done: Path) -> None:
    found = [(row["method"], row["epochs"], row["seed"]) for row in results(done)["rows"]]
    assert found == [
        ("matrix_ssl", 1, 0), ("matrix_ssl", 1, 1),
        ("simsiam", 1, 0), ("simsiam", 1, 1), ("simsiam", 2, 0), ("simsiam", 2, 1),
    ]  # fmt: skip
    assert {run_folder(row) for row in results(done)["rows"]} <= set(job_folders(done))


def test_every_row_is_complete(done: Path) -> None:
    for row in results(done)["rows"]:
        assert row["accuracy"].keys() == MEASURES
        assert all(0 < value["mean"] < 1 and value["n"] >= 1 for value in row["accuracy"].values())
        assert row["steps"] == STEPS[row["epochs"]] and row["bad_steps"] == 0
        assert row["parameters"] == sum(p.numel() for p in load_encoder(done / run_folder(row)).parameters())
        assert 0.01 < row["seconds"] < 600
        assert row["images_per_second"] == pytest.approx(64 * row["steps"] / row["seconds"])
        assert 100 < row["peak_memory_mib"] < 10_000
        environment = row["environment"]
        assert environment.keys() >= {"torch", "torchvision", "numpy", "python", "processor", "commit"}
        assert (environment["matrix_ssl"], environment["device"]) == (matrix_ssl.__version__, "cpu")


def test_the_head_describes_the_comparison(done: Path) -> None:
    found = results(done)
    assert found["command"].startswith("matrix-ssl compare demo --methods matrix_ssl,simsiam --out c --device cpu")
    assert (found["recipe"], found["reference"], found["methods"]) == ("demo", "matrix_ssl", ["matrix_ssl", "simsiam"])
    assert (found["seeds"], found["budget"], found["rivals_budget"], found["measure"]) == ([0, 1], 1, 2, "linear")
    digests = {f"{part}_digest": open_source("digits", split=part, data_root=None).digest for part in ("train", "test")}
    assert found["data"] == {"name": "digits", "train": 1437, "test": 360, "classes": 10, **digests}
    settings = found["settings"]
    assert (settings["network.width"], settings["batch_size"], settings["views.0.rotation"]) == (8, 64, 15.0)
    assert not {key for key in settings if key.startswith("method.") or key in ("seed", "epochs")}
    assert found["environment"].keys() >= {"torch", "python", "commit"}
    assert found["environment"]["matrix_ssl"] == matrix_ssl.__version__
    assert found["baselines"].keys() == {"raw_pixels", "random_network"}
    assert all(values.keys() == MEASURES for values in found["baselines"].values())
    assert found["baselines"]["raw_pixels"]["knn_1"]["mean"] > 0.95  # handwritten digits are that easy


def test_the_trials_are_told_and_the_best_of_them_chosen(done: Path) -> None:
    tuning = results(done)["tuning"]
    assert (tuning["trials"], tuning["budget"], tuning["held_out"]) == (2, 1, 0.2)
    rate = find_recipe("demo").optimizer.learning_rate
    for method in ("matrix_ssl", "simsiam"):
        trials = [row for row in tuning["rows"] if row["method"] == method]
        assert [row["trial"] for row in trials] == [0, 1]
        settings = [{}, {"optimizer.learning_rate": 2 * rate}]
        assert [row["settings"] for row in trials] == settings
        (chosen,) = [row for row in trials if row["chosen"]]
        scores = [(row["accuracy"]["linear"], row["accuracy"]["knn_20"]) for row in trials]
        assert len(set(scores)) > 1 and scores[chosen["trial"]] == max(scores)
        for row in (row for row in results(done)["rows"] if row["method"] == method):
            used = read_config(done / run_folder(row))
            expected = {"optimizer.learning_rate": rate} | chosen["settings"]
            assert row["settings"]["optimizer.learning_rate"] == expected["optimizer.learning_rate"]
            assert used.optimizer.learning_rate == expected["optimizer.learning_rate"]
            assert row["settings"].items() >= {f"method.{k}": v for k, v in used.method.options.items()}.items()


def test_trials_learn_from_four_fifths_of_the_training_images(done: Path) -> None:
    """1437 digits; a fifth of every class is held out."""
    images = {path: read_config(done / path).data.images for path in job_folders(done)[1:]}
    assert {n for path, n in images.items() if "tuning" in path.parts} == {1150}
    assert {n for path, n in images.items() if "runs" in path.parts} == {1437}


def by_hand(value: dict) -> dict:
    """Mean, deviation and number of draws of a measure in the file of a protocol."""
    close = {"rel": 1e-14, "abs": 0.0}  # a mean of means and a mean of all differ in their last bit
    deviation = pytest.approx(value.get("sd_over_draws", 0.0), **close)
    return {"mean": pytest.approx(value["accuracy"], **close), "sd": deviation, "n": value["draws"]}


@pytest.mark.parametrize("index", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_a_row_is_what_an_evaluation_by_hand_gives(done: Path, tmp_path: Path, index: int) -> None:
    row = results(done)["rows"][index]
    shutil.copytree(done / run_folder(row), tmp_path / "r")
    command = ["evaluate", "r", "--device", "cpu", "--protocol", "knn,low-shot"]
    succeed(tmp_path, command, before=f"{BARE}\n{TWO_DRAWS}")
    folder = tmp_path / "r" / "evaluation" / "digits"
    results_by_hand = [read_json(folder / f"{name}.json") for name in ("knn", "low-shot")]
    measures = {key: value for values in results_by_hand for key, value in values["measures"].items()}
    # an evaluation by hand has more neighbours, and would choose the penalty of the linear classifier
    others = row["accuracy"].keys() - {"linear"}
    assert len(others) == 5
    for key in others:
        assert row["accuracy"][key] == by_hand(measures[key])
    data = read_config(tmp_path / "r").data
    learn, judge = (
        extract(
            {"": load_encoder(tmp_path / "r")}, open_source("digits", split=part, data_root=None), data,
            device=torch.device("cpu"), on_progress=lambda *_: None,
        )
        for part in ("train", "test")
    )  # fmt: skip
    probe = fit_logistic_regression(learn.vectors[""], learn.labels, classes=10, l2=1.0)
    assert row["accuracy"]["linear"]["mean"] == accuracy(probe.predict(judge.vectors[""]), judge.labels)
    if index == 0:  # the untrained network is that of the first seed
        for name, found in results(done)["baselines"].items():
            measures = {key: v for values in results_by_hand for key, v in values["baselines"][name].items()}
            assert all(found[key] == by_hand(measures[key]) for key in others)


def test_the_curve_has_held_out_accuracy_at_the_kept_moments(done: Path) -> None:
    for row in results(done)["rows"]:
        moments_ = {1, *(-(-row["steps"] * i // 5) for i in range(1, 6))}
        curve = {point["step"]: point for point in row["curve"]}
        assert list(curve) == sorted({*moments_, *range(10, row["steps"] + 1, 10)})
        assert {step for step, point in curve.items() if "knn_20_held_out" in point} == moments_
        assert all(0 < curve[step]["knn_20_held_out"] < 1 for step in moments_)
        assert all(point.keys() >= {"epoch", "seconds", "loss", "effective_rank"} for point in curve.values())
        seconds = [point["seconds"] for point in row["curve"]]
        assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(row["seconds"], abs=0.01)


@pytest.mark.parametrize(
    ("method", "epochs", "seed"), [pytest.param("matrix_ssl", 1, 0, marks=pytest.mark.slow), ("simsiam", 2, 1)]
)
def test_the_weights_are_those_of_a_plain_pre_training(
    done: Path, tmp_path: Path, method: str, epochs: int, seed: int
) -> None:
    """To the bit, though accuracy was measured in between."""
    (row,) = [r for r in results(done)["rows"] if (r["method"], r["epochs"], r["seed"]) == (method, epochs, seed)]
    rate = row["settings"]["optimizer.learning_rate"]
    settings = (*TINY, f"epochs={epochs}", f"seed={seed}", f"optimizer.learning_rate={rate}")
    arguments = ["pretrain", "demo", "--method", method, "--out", "r", "--device", "cpu"]
    succeed(tmp_path, [*arguments, *(word for setting in settings for word in ("--set", setting))], before=BARE)
    folder = done / run_folder(row)
    assert read_config(folder) == read_config(tmp_path / "r")
    assert runs.tensors(folder) == runs.tensors(tmp_path / "r")
    without_curve = [{k: v for k, v in line.items() if k != "knn_20_held_out"} for line in runs.timeless(folder)]
    assert without_curve == runs.timeless(tmp_path / "r") != runs.timeless(folder)


def test_the_terminal_shows_each_job_and_the_table(done: Path) -> None:
    out, (head, *told) = (done / "out").read_text(), (done / "err").read_text().splitlines()
    assert head == "2 methods, 11 jobs (0 done), 2 at a time on cpu: c"
    counts = [int(line.partition(" of 11:")[0]) for line in told]
    assert counts == sorted(counts) and counts[-1] == len(counts) == 11  # two may end in the same moment
    labels = [line.split(": ")[1] for line in told]
    trials = {f"{m}, trial {i}" for m in ("matrix_ssl", "simsiam") for i in range(2)}
    assert trials < set(labels) and len(set(labels)) == 11
    pattern = r"\d+ of 11: [\w, ]+: (linear \d+\.\d, \d+ s|done)"
    assert all(re.fullmatch(pattern, line) for line in told), told
    for text in ("raw pixels", "untrained", "reference", "results c/compare.json", "page    c/compare.html"):
        assert text in out
    assert "Traceback" not in out and "failed" not in out
    page = (done / "c" / "compare.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "simsiam" in page


def test_the_same_command_again_runs_nothing(done: Path) -> None:
    before, results_before = moments(done), results(done)
    ended = compare(done, BOTH, before="import matrix_ssl.compare.schedule as s; s._start = None\n")
    assert moments(done) == before and len(before) == 11
    assert ended.err == "2 methods, 11 jobs (11 done), 2 at a time on cpu: c\n"
    assert ended.out == (done / "out").read_text() and results(done) == results_before


def test_settings_that_an_earlier_version_lacked_have_their_defaults(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "c", tmp_path / "c")
    plan, jobs = tmp_path / "c" / "plan.json", list((tmp_path / "c").rglob("job.json"))
    for path, key in [(plan, "base"), *((job, "config") for job in jobs)]:
        values = read_json(path)
        del values[key]["data"]["crop_mode"], values[key]["keep_checkpoints"]
        write_json(path, values)
    before, rows = moments(tmp_path), results(tmp_path)["rows"]
    ended = compare(tmp_path, BOTH, before="import matrix_ssl.compare.schedule as s; s._start = None\n")
    assert ended.err == "2 methods, 11 jobs (11 done), 2 at a time on cpu: c\n"
    assert moments(tmp_path) == before and results(tmp_path)["rows"] == rows and len(jobs) > 8
    longer = words("--seeds", "1", "--budget", "1", "--trials-from", "c", out="d", settings=())
    assert compare(tmp_path, longer).err.startswith("4 trials are those of c.\n")


def test_a_public_encoder_gets_a_row_without_training(done: Path, tmp_path: Path) -> None:
    """One of the runs stands for it: it must have the accuracy that this run has."""
    shutil.copytree(done / "c", tmp_path / "c")
    shutil.copytree(tmp_path / "c" / "runs" / "simsiam-1-epochs" / "seed-1", tmp_path / "public")
    before = moments(tmp_path)
    ended = compare(tmp_path, [*BOTH, "--baseline", "public"])
    (new,) = moments(tmp_path).keys() - before.keys()
    assert moments(tmp_path).items() >= before.items() and new.startswith("c/public/public-8-px-")
    (public,) = results(tmp_path)["public"]
    (row,) = [r for r in results(tmp_path)["rows"] if (r["method"], r["epochs"], r["seed"]) == ("simsiam", 1, 1)]
    assert public["accuracy"] == row["accuracy"] and public["seconds"] > 0
    assert (public["name"], public["reference"], public["image_size"]) == ("public, 8 px", "public", 8)
    assert re.search(r"12 of 12: public, 8 px: linear \d+", ended.err) and "public" in ended.out
    page = (tmp_path / "c" / "compare.html").read_text()
    assert f"SHA-256 {public['sha256'][:12]}" in page and "a frozen public encoder, not trained here" in page


def test_a_second_budget_takes_the_trials_of_the_first(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "c", tmp_path / "c")
    longer = words("--seeds", "1", "--budget", "2", "--trials-from", "c", methods="matrix_ssl,simsiam,simclr", out="d",
                   settings=())  # fmt: skip
    ended = compare(tmp_path, longer)
    assert ended.err.startswith("4 trials are those of c.\n3 methods, 10 jobs (4 done), 2 at a time on cpu: d\n")
    trials = list((tmp_path / "d" / "tuning").rglob("result.json"))
    before, after = results(tmp_path), results(tmp_path, "d")
    assert [row for row in after["tuning"]["rows"] if row["method"] != "simclr"] == before["tuning"]["rows"]
    assert len(trials) == 6 and {row["method"] for row in after["tuning"]["rows"]} == set(after["methods"])
    assert {key: value for key, value in after["tuning"].items() if key != "rows"} == {
        key: value for key, value in before["tuning"].items() if key != "rows"
    }
    for row in after["rows"]:  # with the settings that were chosen, and the weights that a run of two epochs gives
        (same,) = [r for r in before["rows"] if (r["method"], r["seed"], r["epochs"]) == (row["method"], 0, 2)] or [row]
        assert row["settings"] == same["settings"] and row["accuracy"] == same["accuracy"]
    shutil.rmtree(tmp_path / "c")  # it is not needed any more
    assert compare(tmp_path, longer).err.startswith("6 trials are those of c.\n3 methods, 10 jobs (10 done)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials-from", "c", "--trials", "3"], "--trials-from takes trials as they were made: remove --trials."),
        (["--trials-from", "c", "--set", "batch_size=32"],
         "--trials-from c has trials with other settings (base.batch_size: 64 -> 32): choose the same ones"),
        (["--trials-from", "nowhere"], "--trials-from nowhere is not the folder of a comparison: it has no plan.json."),
    ],
)  # fmt: skip
def test_trials_that_do_not_fit(done: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "c").symlink_to(done / "c")
    said = fail(tmp_path, words("--seeds", "1", "--budget", "2", *options, out="d", settings=()))
    assert message in said and not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (["--set", "batch_size=32"], "d", "--trials-from c has trials with other settings (base.batch_size: 64 -> 32)"),
        ([], "c", "--trials-from c is the folder that --fresh sets aside: choose a different one with --out."),
    ],
)
def test_trials_that_do_not_fit_set_no_comparison_aside(
    done: Path, tmp_path: Path, options: list[str], out: str, message: str
) -> None:
    for name in {"c", out}:
        shutil.copytree(done / "c", tmp_path / name)
    more = ("--seeds", "1", "--budget", "2", "--trials-from", "c", "--fresh", *options)
    assert message in fail(tmp_path, words(*more, out=out, settings=()))
    assert {path.name for path in tmp_path.iterdir()} == {"c", out}


def test_methods_and_seeds_can_be_added(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "c", tmp_path / "c")
    before, rows = moments(tmp_path), results(tmp_path)["rows"]
    settings = ("--seeds", "3", "--trials", "2", "--budget", "1", "--rivals-budget", "2")
    ended = compare(tmp_path, words(*settings, methods="simclr,matrix_ssl,simsiam", settings=()))
    assert ended.err.startswith("3 methods, 22 jobs (11 done), 2 at a time on cpu: c\n")
    assert moments(tmp_path).items() >= before.items()
    found = results(tmp_path)
    assert found["methods"] == ["simclr", "matrix_ssl", "simsiam"] and found["reference"] == "matrix_ssl"
    assert [row for row in found["rows"] if row["method"] != "simclr" and row["seed"] < 2] == rows
    assert len(found["rows"]) == 3 + 2 * 6 and "simclr" in ended.out


def test_observation_costs_no_time_and_changes_no_weight(tmp_path: Path) -> None:
    """An observer that sleeps, draws random numbers and leaves the encoder as it is given."""
    settings = [*TINY, "epochs=1"]
    source = open_source("digits", split="train", data_root=None)
    chosen = setup.identify_data(setup.complete(config.override(find_recipe("demo"), settings)), source)
    seen: list[tuple[bool, bool]] = []

    class Slow(Observer):
        def observe(self, encoder: torch.nn.Module) -> dict[str, float]:
            seen.append((encoder.training, torch.is_grad_enabled()))
            time.sleep(0.5)
            return {"drawn": float(torch.rand(()))}

    losses, seconds = [], []
    for name in ("alone", "observed"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", config.to_dict(chosen))
        loop = setup.prepare(chosen, source=source, device=torch.device("cpu"), display=Display(quiet=True))
        loop.observer = Slow() if name == "observed" else Observer()
        before = time.monotonic()
        summary = loop.train(tmp_path / name)
        seconds.append((summary["seconds_training"], time.monotonic() - before))
        losses.append([line["loss"] for line in runs.lines(tmp_path / name)])
        assert loop.method.encoder.training
    assert seen == [(False, False)] * 6
    assert losses[0] == losses[1] and runs.tensors(tmp_path / "alone") == runs.tensors(tmp_path / "observed")
    counted, passed = seconds[1]
    assert counted <= passed - 6 * 0.5
    assert [line["step"] for line in runs.lines(tmp_path / "observed") if "drawn" in line] == [1, 5, 9, 14, 18, 22]


AUDIT = """
import os, sys
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("test.npz"):
        who = "comparison" if sys.argv[1] == "compare" else sys.argv[1]
        when = ", after its training" if os.path.exists(who + "/encoder.safetensors") else ""
        with open("opened.txt", "a") as file:
            file.write(who + when + "\\n")
        if "tuning" in who:
            raise RuntimeError("a trial reads the test images")
sys.addaudithook(watch)
"""


def pack(folder: Path, counts: dict[str, int]) -> None:
    """Writes packed sets of handwritten digits in two classes, in colour."""
    for name, count in counts.items():
        files = [path.read_bytes() for path in make_images(folder / name, count)]
        shutil.rmtree(folder / name)
        labels = np.arange(count) % 2
        content = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", jpeg=content, offs=np.cumsum([0, *map(len, files)]), y=labels)


def on_images(*options: str) -> list[str]:
    """Arguments for a comparison of one method on the folder ``set``."""
    arguments = words(
        "--data", "set", "--seeds", "1", "--trials", "2", "--budget", "1",
        methods="simsiam", settings=("network.encoder=tiny_resnet", "data.image_size=16", "batch_size=16"),
    )  # fmt: skip
    return ["compare", "images", *arguments[2:], *options]


def test_trials_never_open_the_test_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pack(tmp_path / "set", {"train": 60, "test": 30})
    compare(tmp_path, on_images(), before=AUDIT)
    opened = (tmp_path / "opened.txt").read_text().splitlines()
    run = "c/runs/simsiam-1-epochs/seed-0, after its training"
    assert sorted(who for who, _ in itertools.groupby(opened)) == ["c/baselines", run, "comparison"]  # at one time each
    found = results(tmp_path)["data"]
    assert found.items() >= {"name": "set", "train": 60, "test": 30, "classes": 2}.items()
    assert found["train_digest"] != found["test_digest"]


@pytest.mark.slow
def test_statistics_are_measured_once_and_every_run_has_them(tmp_path: Path) -> None:
    ended = compare(
        tmp_path, words("--seeds", "1", "--trials", "1", "--budget", "1", settings=(*FEW, "data.mean=", "data.std="))
    )
    assert ended.err.count("Measured on ") == 1
    measured = read_json(tmp_path / "c" / "plan.json")["base"]["data"]
    assert len(measured["mean"]) == len(measured["std"]) == 1
    runs_of = [tmp_path / folder for folder in job_folders(tmp_path) if (tmp_path / folder / "config.json").exists()]
    assert len(runs_of) == 2
    for folder in runs_of:
        assert read_config(folder).data.mean == tuple(measured["mean"])
