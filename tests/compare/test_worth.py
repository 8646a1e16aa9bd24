"""``matrix-ssl worth``: what it compares, that it compares it fairly, and that it resumes wherever it was killed."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.pages import publish_worth
from matrix_ssl.cli.main import commands
from matrix_ssl.compare.worth import labels, measuring
from matrix_ssl.compare.worth.measuring import Answers
from matrix_ssl.compare.worth.plan import Plan, TuningSettings, make_plan
from matrix_ssl.compare.worth.training import read_result
from matrix_ssl.config import RunConfig, to_dict
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import Source, open_source
from matrix_ssl.data.sources import choose_subset
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.evaluate.features import Features, extract
from matrix_ssl.evaluate.probes.crossed import crossed_interval
from matrix_ssl.evaluate.trained.fine_tune import FineTune, fine_tune
from matrix_ssl.evaluate.trained.label_subsets import from_list
from matrix_ssl.report.worth.data import read_worth
from matrix_ssl.report.worth.words import sentence
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import read_config
from tests.support import runs
from tests.support.runs import BARE, TINY, fail, make_images, succeed, tiny

ARMS = ["pixels_frozen", "random_frozen", "public_frozen", "public_small_frozen", "adapted_frozen", "scratch_frozen",
        "random_tuned", "public_tuned", "adapted_tuned", "scratch_tuned"]  # fmt: skip
CPU = torch.device("cpu")


def worth(*more: str, data: str = "digits", seeds: int = 2) -> list[str]:
    """Arguments on 8-pixel digits enlarged to 12, whose public encoder was trained at 8."""
    settings = [*TINY, "data.subset=150", "data.image_size=12", "batch_size=32"]
    words = [word for setting in settings if "width" not in setting for word in ("--set", setting)]
    tuning = [
        word
        for one in ("steps=2", "batch_size=16", "gentle_rates=0.001,2", "rates=none")
        for word in ("--tune-set", one)
    ]
    return ["worth", "demo", "--data", data, "--from", "public.safetensors", "--seeds", str(seeds), "--epochs", "1",
            "--test-images", "90", "--out", "w", "--device", "cpu", *words, *tuning, *more]  # fmt: skip


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of somebody else."""
    folder = tmp_path_factory.mktemp("public")
    succeed(folder, tiny(), before=BARE)
    succeed(folder, ["export", "r", "--format", "safetensors", "--out", "public.safetensors"])
    return folder


@pytest.fixture(scope="module")
def done(public: Path) -> Path:
    """The folder ``w`` of a comparison that has ended, and what it said."""
    ended = succeed(public, worth())
    (public / "out").write_text(ended.out)
    (public / "err").write_text(ended.err)
    return public / "w"


@pytest.fixture(scope="module")
def images() -> tuple[Source, Source]:
    """The training and test images of ``worth``."""
    train, test = (open_source("digits", split=split, data_root=None) for split in ("train", "test"))
    return choose_subset(train, 150, seed=0), choose_subset(test, 90, seed=0)


def answers(folder: Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    with np.load(folder / "answers" / f"{arm}-seed-{seed}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("readable", "expected"), [([0, 2, 3], 0), ([1, 2, 3], 1), ([2, 3], 0), ([0, 1, 2, 3], None)])
def test_unreadable_images_may_leave_one_labelled_class_or_none(readable: list[int], expected: int | None) -> None:
    """One label a class, images 0 and 1, of which an evaluation can read so many."""
    classes, vectors = torch.tensor([0, 1, 0, 1]), torch.tensor([[0.0], [1.0], [0.1], [0.9]])
    train = Features({"": vectors[readable]}, np.array(readable), classes[readable], [])
    test = Features({"": vectors}, np.arange(4), classes, [])
    few = [labels.Budget("labels_1", "1 label a class", (np.array([0, 1]),))]
    found = measuring.classify(train, test, few, 2, seed=0, costs={})
    assert found.predicted["labels_1"].tolist() == ([0, 1, 0, 1] if expected is None else [expected] * 4)
    assert found.facts["penalties"].keys() == found.facts["classifier_seconds"].keys() == {"labels_1"}


def test_labels_are_the_same_for_all_and_balanced(images: tuple[Source, Source]) -> None:
    source, (true, _) = images[0], images[0].labelled()
    chosen, left_out = labels.budgets(source, 2)
    assert [one.key for one in chosen] == ["labels_1", "percent_10", "labels_5", "all"]
    assert left_out == [
        f"10 labels a class are left out: a class has {np.bincount(true).min()} training images.",
        "1 % of the labels are left out: as many as 1 label a class.",
    ]
    for one, count in zip(chosen, (1, None, 5, None), strict=True):
        for seed in range(2):
            counts = np.bincount(true[one.images[seed]], minlength=10)
            assert np.unique(one.images[seed]).tolist() == one.images[seed].tolist()
            assert count is None or set(counts) == {count}
        assert (one.key == "all") == np.array_equal(*one.images)
    assert set(chosen[0].images[1]) < set(chosen[2].images[1])  # five labels contain the one
    assert len(chosen[-1].images[0]) == len(source)
    whole = labels.budgets(open_source("digits", split="train", data_root=None), 1)[0]
    assert [one.key for one in whole] == ["labels_1", "labels_5", "labels_10", "percent_10", "all"]


@pytest.mark.parametrize("count", [10, 64, 100, 2000])
def test_trainings_with_labels_have_one_rate_and_enough_steps(count: int) -> None:
    tuning = TuningSettings(steps=50, gentle_rates=((0.001, 2.0), (0.01, 2.0)), rates=((0.02, 40.0),))
    gentle, plain = tuning.for_labels(count, 2)
    for settings in (gentle, plain):
        steps = settings.epochs * (count // settings.batch_size)
        assert 50 <= steps < 50 + count // settings.batch_size
        assert (settings.scale, settings.decay) == ("unit", "step")
    assert (gentle.head, gentle.statistics, plain.head, plain.statistics) == ("regression", "kept", "random", "batch")
    for rates, expected in ((gentle.rates, tuning.gentle_rates), (plain.rates, tuning.rates)):
        scale = gentle.batch_size / 256
        assert [pytest.approx((scale * encoder, scale * head)) for encoder, head in rates] == list(expected)
    (first,) = tuning.for_labels(count, 1)  # nothing can be held out
    assert first == dataclasses.replace(gentle, rates=gentle.rates[:1])
    (only,) = dataclasses.replace(tuning, gentle_rates=None).for_labels(count, 2)
    assert only == plain
    with pytest.raises(ConfigError, match="give the rates of one candidate or more"):
        dataclasses.replace(tuning, gentle_rates=None, rates=None)


def test_every_arm_has_results(done: Path) -> None:
    results = read_json(done / "worth.json")
    assert [f"{arm['network']}_{arm['use']}" for arm in results["arms"]] == ARMS
    keys = {one["key"] for one in results["budgets"]}
    assert all(arm["accuracy"].keys() == keys for arm in results["arms"]) and results["done"] == results["total"]
    assert {arm["image_size"] for arm in results["arms"] if arm["use"] == "tuned"} == {12}
    sizes = {arm["network"]: arm["image_size"] for arm in results["arms"] if arm["use"] == "frozen"}
    assert (sizes["public"], sizes["public_small"], sizes["adapted"], sizes["scratch"]) == (8, 12, 12, 12)
    assert results["public"]["reference"] == "public.safetensors" and len(results["public"]["sha256"]) == 64
    assert len(results["differences"]) == len(ARMS) * (len(ARMS) - 1) / 2 * len(keys)
    for network in ("adapted", "scratch"):
        config = read_config(done / "runs" / network / "seed-1")
        assert (config.seed, config.network.encoder, config.network.width) == (1, "tiny_resnet", 8)
        assert bool(config.start.sha256) == (network == "adapted")
        planned = read_json(done / "plan.json")["adapted" if network == "adapted" else "base"]["optimizer"]
        assert to_dict(config)["optimizer"] == planned
    rates = [read_config(done / "runs" / name / "seed-0").optimizer.learning_rate for name in ("adapted", "scratch")]
    assert rates[0] < rates[1] == find_recipe("demo").optimizer.learning_rate
    for arm in results["arms"]:
        assert len(arm["pretraining"]) == (2 if arm["network"] in ("adapted", "scratch") else 0)
        assert all(one["seconds"] > 0 and one["cpu_seconds"] > 0 for one in arm["pretraining"])
    assert not list(done.rglob("classifier.safetensors")) and not (done / "features").exists()


def test_the_test_images_are_read_after_all_trainings(done: Path) -> None:
    trained = max(path.stat().st_mtime_ns for path in (*done.glob("runs/*/*/*"), *done.glob("tuned/*/*/*")))
    assert trained < min(path.stat().st_mtime_ns for path in (done / "answers").iterdir())


def test_a_frozen_arm_is_what_scikit_learn_makes_of_the_features(done: Path, images: tuple[Source, Source]) -> None:
    run = done / "runs" / "scratch" / "seed-1"
    x, x_test = (extract({"": load_encoder(run)}, one, read_config(run).data, device=CPU) for one in images)
    mean, std = x.vectors[""].double().mean(0), x.vectors[""].double().std(0, correction=0)
    facts = read_json(done / "answers" / "scratch_frozen-seed-1.json")
    for one in labels.budgets(images[0], 2)[0]:
        names = done / "labels" / f"{one.key}-seed-1.txt"
        rows = from_list(images[0], names)
        assert rows.tolist() == one.images[1].tolist()
        classifier = LogisticRegression(C=1 / facts["penalties"][one.key], tol=1e-9, max_iter=10_000)
        classifier.fit(((x.vectors[""] - mean) / std).numpy()[rows], x.labels.numpy()[rows])
        expected = classifier.predict(((x_test.vectors[""] - mean) / std).numpy())
        assert (answers(done, "scratch_frozen", 1)[one.key] == expected).mean() > 0.98


def test_a_tuned_arm_is_a_fine_tuning_by_hand(done: Path, images: tuple[Source, Source], tmp_path: Path) -> None:
    run, train = done / "runs" / "adapted" / "seed-0", images[0]
    labelled = train.subset(labels.budgets(train, 2)[0][2].images[0])
    stored = read_json(done / "tuned" / "adapted" / "labels_5-seed-0" / "result.json")
    settings = FineTune(**{**stored["settings"], "view": TuningSettings().view.__class__(**stored["settings"]["view"]),
                           "rates": tuple(map(tuple, stored["settings"]["rates"]))})  # fmt: skip
    encoder = load_encoder(run)
    outcome = fine_tune(
        encoder, 16, labelled, images[1], read_config(run).data,
        settings=settings, folder=tmp_path / "t", device=CPU, display=Display(quiet=True), seed=0,
    )  # fmt: skip
    assert answers(done, "adapted_tuned", 0)["labels_5"].tolist() == outcome.scores.argmax(1).tolist()
    assert stored["train_accuracy"] == outcome.train_accuracy


def test_differences_are_paired(done: Path, images: tuple[Source, Source]) -> None:
    true, results = images[1].labelled()[0], read_json(done / "worth.json")
    gains = np.stack([
        (answers(done, "adapted_frozen", seed)["all"] == true).astype(float)
        - (answers(done, "scratch_frozen", seed)["all"] == true)
        for seed in range(2)
    ])  # fmt: skip
    pair = {"a": "adapted_frozen", "b": "scratch_frozen", "budget": "all"}
    (row,) = [row for row in results["differences"] if row.items() >= pair.items()]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((gains.mean(), *crossed_interval(gains)))


def test_an_image_that_one_arm_could_not_read_counts_for_none(
    done: Path, images: tuple[Source, Source], public: Path
) -> None:
    shutil.copytree(done, public / "less")
    path = public / "less" / "answers" / "scratch_frozen-seed-0.npz"
    with np.load(path) as arrays:
        left = {name: values[1:] if values.ndim else values for name, values in arrays.items()}
    np.savez(path, **left)
    succeed(public, worth("--out", "less"))
    true, results = images[1].labelled()[0][1:], read_json(public / "less" / "worth.json")
    right = {
        arm: np.stack([answers(done, f"{arm}_frozen", seed)["all"][1:] == true for seed in range(2)]).astype(float)
        for arm in ("adapted", "scratch")
    }
    for arm, values in right.items():
        (found,) = [one for one in results["arms"] if (one["network"], one["use"]) == (arm, "frozen")]
        assert found["accuracy"]["all"]["seeds"] == pytest.approx(values.mean(axis=1))
    pair = {"a": "adapted_frozen", "b": "scratch_frozen", "budget": "all"}
    (row,) = [row for row in results["differences"] if row.items() >= pair.items()]
    assert row["mean"] == pytest.approx((right["adapted"] - right["scratch"]).mean())


def test_the_page_and_the_terminal(done: Path) -> None:
    page, out = (done / "worth.html").read_text(), (done.parent / "out").read_text()
    for text in ("Was pre-training worth it?", "labelled images a class", "public 12 px", "Costs in minutes",
                 "no difference is supported", "those of 12 pixels"):  # fmt: skip
        assert text in page, text
    assert "adapted tuned" in out and "results w/worth.json" in out and "no difference is supported" in out
    assert "src=" not in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


@pytest.mark.slow  # quick: test_faults
def test_a_diverged_training_is_a_result(public: Path, tmp_path: Path) -> None:
    shutil.copy(public / "public.safetensors", tmp_path)
    message = fail(tmp_path, worth("--set", "optimizer.learning_rate=1e30", seeds=1))
    assert message == "2 trainings failed; the page gives the reasons."
    results = read_json(tmp_path / "w" / "worth.json")
    measured = [f"{arm['network']}_{arm['use']}" for arm in results["arms"] if arm["accuracy"]]
    assert measured == [arm for arm in ARMS if not arm.startswith(("adapted", "scratch"))]
    assert "scratch failed: " in (tmp_path / "w" / "worth.html").read_text() and results["done"] == results["total"]


def test_what_is_published_is_what_was_measured(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worth.md").write_text("# A\n\n<!-- digits:begin -->\n<!-- digits:end -->\n\nB\n")
    words = ["publish_worth", str(done), "digits", "--results", str(tmp_path), "--docs", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    publish_worth.main()
    page, results = (tmp_path / "worth.md").read_text(), read_json(tmp_path / "worth_digits.json")
    assert sentence(read_worth(done)) in page and "matrix-ssl worth demo --data digits" in page
    score = results["arms"][0]["accuracy"]["all"]["mean"]
    assert f"{100 * score:.1f}" in next(line for line in page.splitlines() if line.startswith("| raw pixels |"))
    assert page.startswith("# A") and page.endswith("B\n") and str(tmp_path) not in json.dumps(results)


def test_what_is_published_has_the_weights_by_their_name() -> None:
    values = {"command": "matrix-ssl worth --from '/a b/c/w.pth' --out x", "public": {"reference": "/a b/c/w.pth"}}
    assert publish_worth.without_folder(values) == {
        "command": "matrix-ssl worth --from 'w.pth' --out x", "public": {"reference": "w.pth"}
    }  # fmt: skip
    relative = {"public": {"reference": "w.pth"}, "adapted_settings": {"start": {"reference": "/a b/c/w.pth"}}}
    assert publish_worth.without_folder(relative)["adapted_settings"] == {"start": {"reference": "w.pth"}}
    hub = {"command": "matrix-ssl worth --from timm/x", "public": {"reference": "timm/x"}}
    assert publish_worth.without_folder(hub) == hub


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[2], [0, 1, 2, 3]])
def test_a_killed_command_resumes_and_ends_alike(done: Path, public: Path, tmp_path: Path, kills: list[int]) -> None:
    """Killed in a pre-training, in a training with labels, between the files of an answer, and in a second answer."""
    shutil.copy(public / "public.safetensors", tmp_path)
    kill = f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    stops = [
        "import matrix_ssl.training.engine as e; real = e.Engine.update\n"
        f"def stop(self, *rest):\n    if self.task.step == 2 and 'adapted' in str(self.folder): {kill}\n"
        "    return real(self, *rest)\ne.Engine.update = stop; e._SECONDS_BETWEEN_CHECKPOINTS = 0.0",
        "import matrix_ssl.compare.worth.training as t; real = t.save_weights\n"
        f"def stop(path, *rest):\n    if 'public' in str(path) and 'labels_5' in str(path): {kill}\n"
        "    return real(path, *rest)\nt.save_weights = stop",
        "import matrix_ssl.compare.worth.measuring as m; real = m.write_json\n"
        f"def stop(path, *rest):\n    if 'public_small' in str(path): {kill}\n"
        "    return real(path, *rest)\nm.write_json = stop",
        "import matrix_ssl.compare.worth.training as t; real = t.load_classifier\n"
        f"def stop(folder, *rest, **words):\n    if 'adapted' in str(folder) and 'all' in str(folder): {kill}\n"
        "    return real(folder, *rest, **words)\nt.load_classifier = stop",
    ]  # fmt: skip
    for number in kills:
        assert runs.run(tmp_path, worth(seeds=1), before=f"import os; {stops[number]}").code == -signal.SIGKILL
    ended = succeed(tmp_path, worth(seeds=1))
    assert "no difference is supported" in ended.out or "gains" in ended.out or "behind" in ended.out
    for arm in ARMS:
        assert {key: value.tolist() for key, value in answers(tmp_path / "w", arm, 0).items()} == {
            key: value.tolist() for key, value in answers(done, arm, 0).items()
        }, arm
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "answers").iterdir()}
    succeed(tmp_path, worth(seeds=1))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "answers").iterdir()}


def test_a_quick_look_is_smaller_where_nothing_else_is_set(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def stop(*configs: RunConfig, **rest: Any) -> None:
        plans.append(make_plan(*configs, **rest))
        raise ConfigError("Stopped.")

    monkeypatch.setattr("matrix_ssl.compare.worth.plan.make_plan", stop)
    command = ["worth", "demo", "--from", str(public / "public.safetensors")]
    for more in ([], ["--quick"], ["--quick", "--seeds", "2", "--set", "data.subset=99", "--tune-set", "steps=7"]):
        with pytest.raises(ConfigError, match="Stopped"):
            commands.main([*command, *more], standalone_mode=False)
    sizes = [(p.seeds, p.base.epochs, p.base.data.subset, p.test_images, p.tuning.steps) for p in plans]
    usual = (3, find_recipe("demo").epochs, 0, 0, TuningSettings().steps)
    assert sizes == [usual, (1, 2, 1000, 1000, 40), (2, 2, 99, 1000, 7)]
    assert plans[1].tuning.view.flip == 0 and len(plans[1].tuning.gentle_rates or ()) == 1  # digits are not flipped


def test_a_damaged_answer_is_named(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "public_frozen-seed-0"
    for ending in (".json", ".npz"):
        shutil.copy(done / "answers" / f"public_frozen-seed-0{ending}", tmp_path)
    path.with_suffix(".npz").write_bytes(b"PK")
    with pytest.raises(RunFolderError, match=r"seed-0\.npz is damaged .* Remove it and public_frozen-seed-0.json, and"):
        Answers.read(path, question="")


def test_results_of_a_different_training_are_noticed(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"seconds": 1.0, "question": "a seed-0"})
    assert read_result(tmp_path, question="a seed-0") == {"seconds": 1.0}
    with pytest.raises(RunFolderError, match=r"result\.json belongs to a different training: put its own file back"):
        read_result(tmp_path, question="a seed-1")
    write_json(tmp_path / "result.json", {"seconds": "long"})
    with pytest.raises(RunFolderError, match=r"is damaged at seconds: .*; remove it to train again"):
        read_result(tmp_path, question="a seed-0")
    for seed in (0, 1):
        answers = Answers({"all": np.array([seed])}, np.array([0]), {"cost": seed})
        answers.write(tmp_path / f"{seed}", question=f"seed {seed}")
    read = Answers.read(tmp_path / "1", question="seed 1")
    assert read is not None and read.facts == {"cost": 1} and list(read.predicted) == ["all"]
    for ending in (".npz", ".json"):
        shutil.copy(tmp_path / f"0{ending}", tmp_path / f"1{ending}")
        with pytest.raises(RunFolderError, match="belongs to a different training"):
            Answers.read(tmp_path / "1", question="seed 1")


def test_a_plan_gives_way_until_a_training_has_kept_something(public: Path, tmp_path: Path) -> None:
    """The adaptation has failed in its first step, before which it has written the weights that it starts from."""
    shutil.copy(public / "public.safetensors", tmp_path)
    stop = (
        "import matrix_ssl.training.engine as e\n"
        "from matrix_ssl.errors import TrainingError\n"
        "def stop(*_): raise TrainingError('Stopped.')\n"
        "e.Engine.update = stop"
    )
    assert fail(tmp_path, worth(seeds=1), before=stop) == "Stopped."
    (start,) = (tmp_path / "w").rglob("*.safetensors")
    assert start.name == "step-000000000.safetensors"
    other = worth("--set", "optimizer.learning_rate=0.01", seeds=1)
    assert fail(tmp_path, other, before=stop) == "Stopped."
    assert read_json(tmp_path / "w" / "plan.json")["base"]["optimizer"]["learning_rate"] == 0.01
    start.with_name("step-000000001.safetensors").touch()
    assert "w was started with other settings (" in fail(tmp_path, worth(seeds=1))


def test_a_folder_belongs_to_its_plan(done: Path) -> None:
    assert "with other settings (seeds: 2 -> 1)" in fail(done.parent, worth(seeds=1))
    assert "(tuning.steps: 2 -> 3)" in fail(done.parent, worth("--tune-set", "steps=3"))


def test_settings_that_an_earlier_version_lacked_have_their_defaults(done: Path, public: Path) -> None:
    shutil.copytree(done, public / "old")
    plan = read_json(public / "old" / "plan.json")
    del plan["base"]["data"]["crop_mode"], plan["adapted"]["data"]["crop_mode"]
    write_json(public / "old" / "plan.json", plan)
    before = read_json(done / "worth.json")
    succeed(public, worth("--out", "old"))
    assert read_json(public / "old" / "worth.json") | {"command": before["command"]} == before


def test_images_without_labels_or_weights_are_refused_before_anything_is_written(public: Path) -> None:
    make_images(public / "plain", 4)
    message = fail(public, worth("--out", "x", data="plain"))
    assert message.startswith("'plain' has no labels to compare by: put each class in a folder of its own, or name a")
    assert "absent.safetensors" in fail(public, worth("--out", "x", "--from", "absent.safetensors"))
    assert "Unknown setting 'step'" in fail(public, worth("--out", "x", "--tune-set", "step=3"))
    assert not (public / "x").exists()
