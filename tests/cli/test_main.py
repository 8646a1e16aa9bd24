"""The command line from the first command to the last, as a user runs it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import matrix_ssl
from matrix_ssl import config
from matrix_ssl.cli.main import commands
from matrix_ssl.config.recipes import find_recipe, list_recipes
from matrix_ssl.data import open_source, split_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from matrix_ssl.training import setup
from tests.support import runs
from tests.support.comparisons import TWO_DRAWS
from tests.support.runs import BARE, from_files, make_images, succeed, tiny

DIGITS = open_source("digits", split="train", data_root=None)
KNN = {"knn_1", "knn_10", "knn_20", "knn_200"}
FROZEN = ("knn", "linear", "low-shot")
MEASURES = {*KNN, "linear", "low_shot_1", "low_shot_5", "low_shot_10"}
EVALUATION = {
    f"evaluation/digits/{name}.{ending}" for name in ("knn", "linear", "low-shot") for ending in ("json", "npz")
}
FILES = {
    *EVALUATION,
    "config.json", "environment.json", "metrics.jsonl", "summary.json", "encoder.safetensors", "evaluation.npz",
    "report.html", "views.npz", "checkpoints/step-000000022.safetensors", ".lock",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which handwritten digits were learned and evaluated; the run is ``r``."""
    folder = tmp_path_factory.mktemp("done")
    pretrained = succeed(folder, tiny())
    assert pretrained.out == "encoder r/encoder.safetensors\nreport  r/report.html\n"
    assert "This dataset has labels. To measure accuracy: matrix-ssl evaluate r" in pretrained.err
    assert "matrix-ssl explore r --out r/explored" in pretrained.err
    assert files(folder / "r") == FILES - {"evaluation.npz", *EVALUATION}
    evaluated = succeed(folder, ["evaluate", "r", "--device", "cpu"])
    for word in ("encoder", "raw", "untrained", "linear", "20-NN", "points against", "report  r/report.html"):
        assert word in evaluated.out
    assert evaluated.err == ""
    return folder


def files(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def copy_run(done: Path, target: Path) -> Path:
    """A run of one's own to change."""
    shutil.copytree(done / "r", target / "r")
    return target / "r"


def test_the_run_folder_is_complete(done: Path) -> None:
    assert files(done / "r") == FILES
    summary = read_json(done / "r" / "summary.json")
    assert summary.keys() == {
        "recipe", "finished", "steps", "epochs", "parameters", "seconds", "seconds_training", "skipped", "bad_steps",
        "negative_determinants", "data", "run",
    }  # fmt: skip
    assert (summary["recipe"], summary["finished"], summary["steps"], summary["skipped"]) == ("demo", True, 22, 0)
    assert summary["seconds"] == summary["seconds_training"] > 0
    results = {name: read_json(done / "r" / "evaluation" / "digits" / f"{name}.json") for name in FROZEN}
    for values in results.values():
        test = open_source("digits", split="test", data_root=None)
        assert values["set"] == {
            "train": {"name": "digits", "images": 1437, "classes": 10, "digest": DIGITS.digest},
            "test": {"name": "digits", "images": 360, "classes": 10, "digest": test.digest},
        }
        assert (values["weights"], values["pretraining_images"]) == ("student", True)
        assert (values["training_images"], values["unreadable"]) == (1437, 0)
        assert values["baselines"].keys() == {"raw_pixels", "random_network"}
        for measures in values["baselines"].values():
            assert measures.keys() == values["measures"].keys()
        for name, value in values["measures"].items():
            assert 0 <= value["interval"][0] <= value["accuracy"] <= value["interval"][1] <= 1
            assert ("sd_over_draws" in value) == name.startswith("low_shot")
            assert value["draws"] == (10 if name.startswith("low_shot") else 1)
    assert {name for values in results.values() for name in values["measures"]} == MEASURES
    assert results["knn"]["baselines"]["raw_pixels"]["knn_1"]["accuracy"] > 0.95  # handwritten digits are that easy


def test_the_configuration_comes_back(done: Path) -> None:
    settings = [word for word in tiny()[6:] if word != "--set"]
    known = ["data.images=1437", f"data.digest={DIGITS.digest}"]
    expected = setup.complete(config.override(find_recipe("demo"), [*settings, *known]))
    assert read_config(done / "r") == expected


def test_the_environment_is_described(done: Path) -> None:
    found = read_json(done / "r" / "environment.json")
    expected = {"device": "cpu", "device_name": "cpu", "threads": 1, "processes": 1}
    assert found.items() >= {**expected, "matrix_ssl": matrix_ssl.__version__}.items()
    assert found["command"] == ["matrix-ssl", *tiny()]
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__


def test_the_images_of_the_report_have_their_documented_form(done: Path) -> None:
    with np.load(done / "r" / "evaluation.npz", allow_pickle=False) as arrays:
        found = {name: (arrays[name].dtype.str[1:], arrays[name].shape) for name in arrays}
        assert arrays["classes"].tolist() == [str(k) for k in range(10)]
    points, (queries, neighbours) = found["map"][1][0], found["gallery_similarity"][1]
    assert 100 <= points <= 360
    del found["classes"]
    places = [found.pop(name)[1] for name in ("gallery_query_where", "gallery_neighbour_where")]
    assert places == [(queries,), (queries, neighbours)]
    assert found == {
        "run": ("U16", ()), "map": ("f4", (points, 2)), "map_labels": ("i8", (points,)),
        "gallery_query": ("u1", (queries, 8, 8, 1)), "gallery_neighbours": ("u1", (queries, neighbours, 8, 8, 1)),
        "gallery_query_label": ("i8", (queries,)), "gallery_neighbour_label": ("i8", (queries, neighbours)),
        "gallery_similarity": ("f4", (queries, neighbours)),
    }  # fmt: skip


def test_the_same_command_again_says_complete_and_changes_nothing(done: Path) -> None:
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (done / "r").rglob("*") if path.is_file()}
    again = succeed(done, tiny())
    assert again.err.startswith("r is complete. Use --fresh to start over.\n")
    assert again.out == "encoder r/encoder.safetensors\nreport  r/report.html\n"
    for path, (content, moment) in kept.items():
        assert path.read_bytes() == content, path
        assert path.stat().st_mtime_ns == moment or path.name in ("report.html", ".lock")


def test_settings_that_do_not_decide_the_run_may_change(done: Path) -> None:
    assert "is complete" in succeed(done, tiny("log_every=7", "checkpoint_every=3"), before=BARE).err


def test_other_settings_in_the_same_folder_are_listed(done: Path) -> None:
    kept = {path: path.read_bytes() for path in (done / "r").rglob("*") if path.is_file()}
    message = runs.fail(done, tiny("optimizer.learning_rate=0.1", "method.ridge=0.2", epochs=3))
    assert message == (
        "r was started with other settings (epochs: 1 -> 3; method.options.ridge: 0.1 -> 0.2; optimizer.learning_rate: "
        "0.005 -> 0.1): choose another folder, or use --fresh to start over."
    )
    assert kept == {path: path.read_bytes() for path in (done / "r").rglob("*") if path.is_file()}


def test_fresh_keeps_the_old_folder(done: Path, tmp_path: Path) -> None:
    old = {name: (done / "r" / name).read_bytes() for name in FILES}
    copy_run(done, tmp_path)
    for number in (1, 2):
        ended = succeed(tmp_path, [*tiny("seed=5", "data.subset=128"), "--fresh"], before=BARE)
        assert f"Kept the previous run as r.{number}" in ended.err
        assert "resuming" not in ended.err
    assert {name: (tmp_path / "r.1" / name).read_bytes() for name in FILES} == old
    assert runs.tensors(tmp_path / "r") == runs.tensors(tmp_path / "r.2") != runs.tensors(tmp_path / "r.1")


def test_a_damaged_encoder_of_a_complete_run_is_written_again(done: Path, tmp_path: Path) -> None:
    run = copy_run(done, tmp_path)
    whole = (run / "encoder.safetensors").read_bytes()
    (run / "encoder.safetensors").write_bytes(whole[:-3])
    ended = succeed(tmp_path, tiny(), before=BARE)
    assert "Warning: r/encoder.safetensors is damaged" in ended.err and "Resuming after step 22 of 22" in ended.err
    assert (run / "encoder.safetensors").read_bytes() == whole


@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_embedded_features_are_those_of_the_encoder(done: Path, tmp_path: Path, weights: str) -> None:
    target = tmp_path / "my features.npz"
    ended = succeed(done, ["embed", "r", "--out", str(target), "--weights", weights, "--device", "cpu"])
    assert ended.out == f"{target}: 1437 images, 16 features each.\n" and ended.err == ""
    source = open_source("digits", split="train", data_root=None)
    assert source.images is not None
    settings = read_config(done / "r").data
    pixels = (source.images.double().numpy() / 255 - settings.mean[0]) / settings.std[0]
    with torch.no_grad():
        expected = load_encoder(done / "r", weights=weights).double()(torch.from_numpy(pixels)).numpy()
    with np.load(target, allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
        assert arrays["features"].dtype == np.float32
        assert arrays["where"].tolist() == [source.where(i) for i in range(1437)]
        assert arrays["labels"].tolist() == source.labels.tolist() and arrays["classes"].tolist() == source.classes


def test_student_and_teacher_differ(done: Path) -> None:
    student, teacher = (load_encoder(done / "r", weights=w).state_dict() for w in ("student", "teacher"))
    assert any(not torch.equal(student[name], teacher[name]) for name in student)


def test_the_teacher_is_evaluated_on_request(done: Path, tmp_path: Path) -> None:
    run = copy_run(done, tmp_path)
    command = ["evaluate", "r", "--protocol", " knn ,linear", "--weights", "teacher", "--device", "cpu"]
    succeed(tmp_path, command, before=BARE)
    student, teacher = (read_json(run / "evaluation" / name / "knn.json") for name in ("digits", "digits-teacher"))
    assert (student["weights"], teacher["weights"]) == ("student", "teacher")
    assert teacher["measures"].keys() == KNN and teacher["measures"] != student["measures"]
    assert (run / "evaluation" / "digits-teacher" / "linear.json").exists()


def test_export_writes_what_the_encoder_holds(done: Path, tmp_path: Path) -> None:
    ended = succeed(done, ["export", "r", "--out", str(tmp_path / "e.safetensors")])
    assert f"{tmp_path / 'e.safetensors'}: 36 of 36 tensors of tiny_resnet (student), sha256 " in ended.out
    found, expected = load_file(tmp_path / "e.safetensors"), load_encoder(done / "r").state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_export_stands_in_the_run_folder_by_default(done: Path, tmp_path: Path) -> None:
    copy_run(done, tmp_path)
    succeed(tmp_path, ["export", "r", "--weights", "teacher"])
    assert files(tmp_path / "r") == {*FILES, "export.safetensors", "export.safetensors.md"}


def test_the_report_can_be_written_again(done: Path, tmp_path: Path) -> None:
    run = copy_run(done, tmp_path)
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert succeed(tmp_path, ["report", "r"]).out == "report  r/report.html\n"
    assert (run / "report.html").read_bytes() == page


def test_a_flat_folder_of_images_without_labels(tmp_path: Path) -> None:
    """Is learned from, and looked at, without figures; the default run folder has its name."""
    make_images(tmp_path / "my photos", 48)
    command = [word for word in from_files("my photos", "log_every=1", epochs=2) if word not in ("--out", "r")]
    ended = succeed(tmp_path, command)
    run = tmp_path / "runs" / "my photos"
    assert f"report  {run.relative_to(tmp_path)}/report.html" in ended.out
    assert [line["step"] for line in runs.lines(run)] == [1, 2, 3, 4, 5, 6]
    evaluated = succeed(tmp_path, ["evaluate", "runs/my photos", "--device", "cpu"])
    assert evaluated.err == (
        "'my photos' has no labels: put each class in a folder of its own, or name a .csv table with the labels. "
        "Writing only the embedding map and the nearest-neighbour gallery.\n"
    )
    summary = read_json(run / "summary.json")
    assert not (run / "evaluation").exists() and summary["data"] == {"name": "my photos", "images": 48}
    with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
        assert arrays["map"].shape == (48, 2) and set(arrays["map_labels"].tolist()) == {-1}
        assert arrays["gallery_query"].shape[-1] == 3
    assert files(tmp_path / "my photos") == {f"{i:03d}.jpg" for i in range(48)}  # nothing is written there


def test_of_labelled_folders_a_fifth_is_held_out(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        make_images(tmp_path / "insects" / name, 20)
    succeed(tmp_path, from_files("insects"), before=BARE)
    command = ["evaluate", "r", "--protocol", "knn,low-shot", "--device", "cpu"]
    evaluated = succeed(tmp_path, command, before=f"{BARE}\n{TWO_DRAWS}")
    assert "holding out 20% of each class" in evaluated.err
    folder = tmp_path / "r" / "evaluation"
    results = read_json(folder / "insects" / "low-shot.json")
    insects = open_source(str(tmp_path / "insects"), split="train", data_root=None)
    learn, judge = split_source(insects, 0.2, 0)
    digests = {split: results["set"][split]["digest"] for split in ("train", "test")}
    assert digests == {"train": learn.digest, "test": judge.digest}
    assert (results["training_images"], results["set"]["test"]["images"], results["pretraining_images"]) == (
        32,
        8,
        True,
    )
    assert results["measures"].keys() == {"low_shot_1", "low_shot_5", "low_shot_10"}
    assert read_json(folder / "insects" / "knn.json")["measures"].keys() == KNN - {"knn_200"}
    make_images(tmp_path / "others" / "ant", 5)
    make_images(tmp_path / "others" / "bee", 5)
    command = ["evaluate", "r", "--protocol", "knn", "--test-data", "others", "--device", "cpu"]
    assert "holding out" not in succeed(tmp_path, command, before=BARE).err
    others = open_source(str(tmp_path / "others"), split="train", data_root=None)
    results = read_json(folder / "insects-others" / "knn.json")
    assert results["set"]["test"] == {"name": "others", "images": 10, "classes": 2, "digest": others.digest}
    assert (results["training_images"], results["pretraining_images"]) == (40, True)


def test_tensorboard_events_hold_the_metrics(tmp_path: Path) -> None:
    succeed(tmp_path, [*tiny("log_every=2", "data.subset=512"), "--logger", "tensorboard"], before=BARE)
    reader = (
        "import json, sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator('r/tensorboard'); events.Reload()\n"
        "print(json.dumps({k: [[e.step, e.value] for e in events.Scalars(k)] for k in events.Tags()['scalars']}))"
    )
    ended = subprocess.run([sys.executable, "-c", reader], cwd=tmp_path, capture_output=True, text=True, check=True)
    found, lines = json.loads(ended.stdout), runs.lines(tmp_path / "r")
    assert found.keys() >= {"loss", "effective_rank", "learning_rate"}
    for key in ("loss", "effective_rank"):
        assert [step for step, _ in found[key]] == [line["step"] for line in lines]
        values = [value for _, value in found[key]]
        assert values == pytest.approx([line[key] for line in lines], rel=1e-6)


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_the_settings_that_a_recipe_shows_can_be_given_back(tmp_path: Path, name: str) -> None:
    shown = succeed(tmp_path, ["recipes", name]).out.splitlines()
    assert f"recipe={name}" in shown
    complete = setup.complete(find_recipe(name))
    assert setup.complete(config.override(find_recipe(name), shown)) == complete
    default = config.RunConfig()
    as_many_views = dataclasses.replace(default, views=default.views[: len(complete.views)])
    assert setup.complete(config.override(as_many_views, shown)) == complete


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "images"], ["--help"]])
def test_output_that_nobody_reads_ends_with_the_code_of_a_closed_pipe(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "matrix_ssl", *words], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_group_without_a_command_shows_its_help(tmp_path: Path) -> None:
    ended = succeed(tmp_path, ["llm"])
    assert "finetune" in ended.out and not ended.err


def test_recipes_are_listed_with_their_first_sentence(tmp_path: Path) -> None:
    lines = succeed(tmp_path, ["recipes"]).out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(list_recipes())
    assert all(len(line) > 30 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo"], "runs/demo"),
        (["demo", "--data", "digits"], "runs/demo-digits"),
        (["--data", "my photos"], "runs/my photos"),
        (["--data", "my photos/"], "runs/my photos"),
        (["--data", "./my.photos"], "runs/my.photos"),
        (["--data", "."], "runs/here"),
        (["--data", "shards/set.npz"], "runs/set"),
        (["--data", "hf:user/set"], "runs/set"),
        (["cifar10"], "runs/cifar10"),
        (["cifar10", "--data", "/"], "runs/cifar10"),
    ],
)
def test_the_default_run_folder_is_named_after_recipe_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    from matrix_ssl.training.configure import run_folder

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = arguments[0] if not arguments[0].startswith("-") else "images"
    data = arguments[arguments.index("--data") + 1] if "--data" in arguments else None
    assert run_folder(recipe, data, None) == Path(expected)


def test_paths_with_spaces_and_through_other_folders(done: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    arguments = [word if word != "r" else "../c d/my run" for word in tiny("data.subset=64")]
    ended = succeed(tmp_path / "a b", arguments, before=BARE)
    assert "encoder ../c d/my run/encoder.safetensors" in ended.out
    succeed(tmp_path, ["report", "c d/my run"])
    succeed(tmp_path / "c d" / "my run", ["export", "."])
    assert {"report.html", "export.safetensors"} <= files(tmp_path / "c d" / "my run")


def test_the_version_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "matrix_ssl", "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == f"matrix-ssl, version {matrix_ssl.__version__}\n" and ended.stderr == ""


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    shown = succeed(tmp_path, [])
    assert shown.err == "" and "Commands:" in shown.out and shown.out == succeed(tmp_path, ["-h"]).out


def every_command(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of all commands and subcommands."""
    for name, command in group.commands.items():
        yield (*names, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *names, name)


@pytest.mark.parametrize("words", list(every_command(commands)), ids=" ".join)
def test_every_command_and_every_option_explains_itself(words: tuple[str, ...]) -> None:
    command: click.Command = commands
    context = click.Context(commands, info_name="matrix-ssl", **commands.context_settings)
    for word in words:
        assert isinstance(command, click.Group) and word in command.get_help(context)
        command = command.commands[word]
        context = click.Context(command, context, info_name=word, terminal_width=110)
    text = command.get_help(context)
    assert text.startswith(f"Usage: matrix-ssl {' '.join(words)} ")
    assert max(len(line) for line in text.splitlines()) <= 110
    assert command.help is not None and command.help.strip().endswith(".")
    for option in command.params:
        if isinstance(option, click.Option):
            sentence = (option.help or "").partition("  [default: ")[0]
            assert sentence[:1].isupper(), option.opts
            assert sentence.endswith("."), option.opts


def test_the_index_of_the_documentation_lists_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "index.md").read_text()
    assert [name for name in commands.commands if f"| `matrix-ssl {name}" not in page] == []
