import base64
import html
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from matrix_ssl.errors import RunFolderError
from matrix_ssl.report import write_report
from matrix_ssl.report.figures import Curve, thin
from matrix_ssl.report.run import figures
from matrix_ssl.report.run.data import read_run
from matrix_ssl.report.run.page import verdict
from matrix_ssl.report.svg import COLOURS
from tests.support.pages import Page, check_golden, check_page, read_page
from tests.support.synthetic_run import CLASSES, DIMENSION, make_arrays, make_lines, make_run

GOLDEN = Path(__file__).parents[2] / "golden" / "run_page.txt"


def report(run: Path) -> Page:
    return read_page(write_report(run))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return report(make_run(tmp_path_factory.mktemp("runs") / "first"))


def test_the_page_is_complete(page):
    check_page(page)
    assert page.those("h2") == [
        "Everything measured", "Training", "Representation", "Nearest neighbours", "Settings and use",
    ]  # fmt: skip


def test_the_text_is_that_of_the_golden_file(page):
    check_golden(page, GOLDEN, until="summary: Complete configuration")  # every setting is in it


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (0.165, "+0.4 points against raw pixels, no clear gain: within the spread over draws"),
        (0.05, "−11.1 points against raw pixels, a loss"),
    ],
)
def test_verdict_does_not_flatter(tmp_path, mean, words):
    run = make_run(tmp_path / "r", lines=2)
    path = run / "evaluation" / "cifar10" / "low-shot.json"
    results = json.loads(path.read_text())
    results["measures"]["low_shot_1"]["accuracy"] = mean
    path.write_text(json.dumps(results))
    assert words in verdict(read_run(run))


def test_a_difference_inside_the_interval_is_no_clear_gain(tmp_path):
    run = make_run(tmp_path / "r", lines=2)
    path = run / "evaluation" / "cifar10" / "knn.json"
    results = json.loads(path.read_text())
    results["measures"]["knn_1"] |= {"accuracy": 0.0, "interval": [0.0, 1.0]}
    path.write_text(json.dumps(results))
    assert "no clear gain: within the interval of the test images. It gains most" in verdict(read_run(run))


def test_an_encoder_that_gains_nowhere_gains_most_nowhere(tmp_path):
    run = make_run(tmp_path / "r", lines=2)
    for path in (run / "evaluation" / "cifar10").glob("*.json"):
        results = json.loads(path.read_text())
        for score in results["measures"].values():
            score["accuracy"] = 0.01
        path.write_text(json.dumps(results))
    said = verdict(read_run(run))
    assert "a loss" in said and "gains most" not in said


@pytest.mark.parametrize(
    ("paired", "words"),
    [
        ({"difference": 0.1, "interval": [0.0, 0.3], "p": 1.0}, "no clear gain: the 95 % interval of the difference"),
        ({"difference": 0.1, "interval": [0.1, 0.1], "p": 0.25}, "no clear gain: McNemar's exact test gives p = 0.25"),
        ({"difference": 0.1, "interval": [0.02, 0.18], "p": 0.01}, "points against raw pixels, a gain"),
        ({"difference": 0.1, "interval": [0.02, 0.18], "draws": 10}, "points against raw pixels, a gain"),
    ],
)
def test_a_paired_difference_decides(tmp_path, paired, words):
    run = make_run(tmp_path / "r", lines=2)
    path = run / "evaluation" / "cifar10" / "low-shot.json"
    results = json.loads(path.read_text())
    results["measures"]["low_shot_1"] |= {"accuracy": 0.165}  # within the spread over draws, which no longer matters
    results["differences"] = {"raw_pixels": {"low_shot_1": paired}}
    path.write_text(json.dumps(results))
    assert words in verdict(read_run(run))


def test_classes_by_accuracy_with_what_they_are_mistaken_for(tmp_path):
    run = make_run(tmp_path / "r", lines=2, classes=["cat", "dog", "<b>ship</b>"])
    labels = np.repeat([0, 1, 2], [4, 5, 2])
    predicted = np.array([[0, 0, 0, 0, 1, 1, 0, 2, 0, 2, 2]])
    arrays = {"labels": labels, "classes": np.array(["cat", "dog", "<b>ship</b>"]), "linear": predicted}
    np.savez(run / "evaluation" / "cifar10" / "linear.npz", **arrays)
    made = report(run)
    cells = made.those("tr", "th") + made.those("tr", "td")
    at = cells.index("dog")
    assert cells[at : at + 3] == ["dog", "cat", "<b>ship</b>"]
    first = made.those("tr", "td").index("40.0%")
    assert made.those("tr", "td")[first - 1 : first + 8] == [
        "5", "40.0%", "cat, 40.0%", "4", "100.0%", "–", "2", "100.0%", "–",
    ]  # fmt: skip
    np.savez(run / "evaluation" / "cifar10" / "linear.npz", **(arrays | {"labels": labels + 9}))
    assert "By class" not in report(run).those("h2")


def test_no_figure_stands_twice(tmp_path):
    run, draw = make_run(tmp_path / "r", lines=6), np.random.default_rng(3)
    scores = iter(draw.permutation(np.arange(101, 990)).tolist())

    def score(name: str) -> dict:
        middle = next(scores) / 1000
        interval = [next(scores) / 1000, next(scores) / 1000]
        draws = {"sd_over_draws": next(scores) / 1000} if name.startswith("low") else {}
        return {"accuracy": middle, "interval": interval, "mean_per_class": next(scores) / 1000} | draws

    for path in (run / "evaluation" / "cifar10").glob("*.json"):
        result = json.loads(path.read_text())
        for measures in (result["measures"], *result["baselines"].values()):
            measures.update({name: score(name) for name in measures})
        path.write_text(json.dumps(result))
    text = "\n".join(" ".join(line) for line in report(run).lines).split("summary: Complete configuration")[0]
    axes_and_lists = r"step [\d,]+|^tr: \d+ [\d.].*$|^li: .*$"  # the spectrum and similarities have equal values
    text = re.sub(axes_and_lists, "", text, flags=re.MULTILINE)
    numbers = re.findall(r"(?<![\w.,])[+−]?\d[\d,]*\.\d+|\d{2},\d{3}(?!\d)", text)
    assert len(numbers) > 60
    repeated = {number for number in numbers if numbers.count(number) > 1}
    assert not repeated


def test_columns_and_classes_that_say_nothing_new_are_left_out(tmp_path, page):
    assert "by class" in page.those("tr", "th")
    run = make_run(tmp_path / "r", lines=2, classes=["cat", "dog"])
    for path in (run / "evaluation" / "cifar10").glob("*.json"):
        result = json.loads(path.read_text())
        for score in result["measures"].values():
            score["mean_per_class"] = score["accuracy"]
        path.write_text(json.dumps(result))
    arrays = {"labels": np.array([0, 1, 1]), "classes": np.array(["cat", "dog"])}
    np.savez(run / "evaluation" / "cifar10" / "linear.npz", **arrays, linear=arrays["labels"][None])
    made = report(run)
    assert "by class" not in made.those("tr", "th") and "By class" not in made.those("h2")
    assert "The mean of the accuracies of the classes is the same; guessing gives 10.0." in made.text("p")
    np.savez(run / "evaluation" / "cifar10" / "knn.npz", **arrays, knn_20=np.array([[0, 1, 0]]))
    assert "By 20-NN on the frozen features, the hardest class first." in report(run).text("p")


def test_few_images_or_steps_are_named_with_what_to_do(tmp_path, page):
    assert "teach an encoder little" not in page.text()
    run = make_run(tmp_path / "r", lines=2)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"steps": 80, "data": {"name": "mine", "images": 300}}))
    text = report(run).text()
    assert "So few steps on so few images teach an encoder little." in text and "matrix-ssl worth --data FOLDER" in text


def test_table_has_accuracies_intervals_and_baselines(page):
    cells = page.those("tr", "td")
    assert cells[:6] == ["77.1", "76.1 to 78.1", "77.0", "35.3", "30.2", "79.4"]
    assert sum("± 2.0" in text for text in cells) == 9  # three rows of draws; a single linear fit has no spread


def test_figures_have_text_alternatives_with_numbers(page):
    loss, _, rank, _, spectrum, points, _ = page.those("desc")
    lines = make_lines(200)
    assert f"loss: {lines[0]['loss']:.4g} at step 0, {lines[-1]['loss']:.4g} at step 1,990" in loss
    assert f"features: {lines[0]['effective_rank']:.4g} at step 0" in rank
    assert f"largest of {DIMENSION} eigenvalues" in spectrum
    assert "airplane 100, automobile 100" in points


def test_projection_entropy_is_the_logarithm_of_its_rank(page):
    rank = make_lines(200)[-1]["effective_rank_projection"]
    assert f"projection: 0 at step 0, {np.log(rank):.4g} at step 1,990" in page.text("desc")


def test_palette_reaches_wcag_aa():
    def luminance(colour):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for mode in (0, 1):
        paper = COLOURS["paper"][mode]
        for name in ("ink", "soft", "alarm"):
            assert contrast(COLOURS[name][mode], paper) >= 4.5, name
        assert contrast(COLOURS["ink"][mode], COLOURS["panel"][mode]) >= 4.5
        for name in ("ink", "alarm"):
            assert contrast(COLOURS[name][mode], COLOURS["alarm-panel"][mode]) >= 4.5, name
        for name, modes in COLOURS.items():
            if name.startswith(("series", "ramp", "class")):
                assert contrast(modes[mode], paper) >= 3, name


def test_same_files_give_the_same_bytes_whatever_the_settings_of_matplotlib(tmp_path):
    expected = write_report(make_run(tmp_path / "0" / "run", lines=5)).read_bytes()
    run = make_run(tmp_path / "1" / "run", lines=5)
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "axes.grid": True, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert write_report(run).read_bytes() == expected
        assert dict(matplotlib.rcParams) == before


def test_only_the_page_is_left_in_the_folder(tmp_path):
    run = write_lines(make_run(tmp_path / "run"), [])
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_gallery_images_are_described_and_come_back_unchanged(page):
    images = page.all("img")
    arrays = make_arrays(CLASSES)
    assert len(images) == 6 * (1 + 7)
    assert images[0]["alt"] == "query image 1, class airplane"
    assert images[3]["alt"] == "neighbour 3 of query 1, class automobile, similarity 0.96"
    assert all(image["class"] == "pixelated" for image in images)
    payload = images[3]["src"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(payload))) as image:
        np.testing.assert_array_equal(np.asarray(image), arrays["gallery_neighbours"][0, 2])
    assert "Of the 42 neighbours, 41 have the class of their query" in page.text()


def test_large_images_are_reduced(tmp_path):
    page = report(make_run(tmp_path / "run", lines=1, side=300))
    assert not any("class" in image for image in page.all("img"))
    assert max(len(image["src"]) for image in page.all("img")) < 16_000


def test_unlabelled_grey_images(tmp_path):
    page = report(make_run(tmp_path / "run", lines=2, classes=[], channels=1, side=28))
    assert "These images have no labels to measure accuracy with. The effective rank" in page.text("header")
    assert "They carry no labels." in page.text("desc")
    assert page.all("img")[0]["alt"] == "query image 1"
    assert "Everything measured" not in page.text("h2")
    assert "Not evaluated yet" not in page.text()


def test_many_classes_are_not_named_on_the_map():
    drawing = figures.embedding_map(np.eye(30, 2), np.arange(30), [f"kind {i}" for i in range(30)])
    assert "The 30 classes share 24 hues." in drawing.caption
    assert "kind" not in drawing.svg


def test_points_of_the_map_are_counted():
    points = np.zeros((4000, 2))
    points[:10] = np.nan
    caption = figures.embedding_map(points, np.zeros(4000, int), ["a"]).caption
    assert "Points skipped because they are not finite: 10." in caption
    assert "Shown are 3,000 of 3,990 points" in caption


@pytest.mark.parametrize("count", [2, 10, 15, 20])
def test_classes_on_the_map_differ_in_colour_or_shape(count):
    points = np.stack([np.arange(count), np.arange(count)], 1).astype(float)
    drawing = figures.embedding_map(points, np.arange(count), [f"c{i}" for i in range(count)]).svg
    looks = set(re.findall(r'<use xlink:href="#([^"]*)"[^>]*style="fill: ([^;"]*)', drawing))
    assert len({look for look in looks if "--class" in look[1]}) >= count


def test_text_from_the_run_is_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    run = make_run(tmp_path / "<b>run", classes=[hostile, "a & b", "$x$", "猫", '"q"'])
    lines = make_lines(2)
    for line in lines:
        line[hostile] = 1.0
        line["cost_$"] = 2.0
    lines[-1]["alarm"] = [hostile]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["name"] = "<i>set"
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "environment.json").write_text(json.dumps({hostile: hostile, "device_name": hostile}))
    (run / "evaluation" / "cifar10").rename(run / "evaluation" / "<i>set")
    page = report(run)
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert any("alert(1)" in text for path, text in page.texts if "svg" in path)
    assert "猫" in page.text("svg")
    assert "cost $" in page.text("svg")


def test_only_a_configuration(tmp_path):
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    for path in run.iterdir():
        if path.name != "config.json":
            path.unlink()
    page = report(run)
    assert "Nothing has been measured yet." in page.text("header")
    assert "No training metrics yet" in page.text()
    assert "matrix-ssl evaluate run" in page.text("code")
    assert page.all("svg") == []
    assert "optimizer.learning_rate" in page.text("details")


def test_an_imported_encoder_promises_no_curves(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"imported": {"file": "moco.pth.tar"}}))
    notes = report(run).text("section")
    assert "imported from moco.pth.tar" in notes and "No training metrics" not in notes


@pytest.mark.parametrize("name", ["summary.json", "evaluation.npz", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"PK\x03\x04 cut off", b"half"])
def test_a_missing_or_damaged_piece_leaves_the_rest(tmp_path, name, content):
    run = make_run(tmp_path / "run", lines=5)
    whole = (run / name).read_bytes()
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(whole[: len(whole) // 3] if content == b"half" else content)
    data = read_run(run)
    notes = " ".join(note.text for note in data.notes)
    assert data.log.lines == (5 if name != "metrics.jsonl" else 1 if content == b"half" else 0)
    assert ("gallery_query" in data.arrays) == (name != "evaluation.npz")
    assert (data.summary.steps is not None) == (name != "summary.json") and len(data.evaluations) == 1
    assert bool(data.environment) == (name != "environment.json")
    assert ("not finished" in notes) == (name == "summary.json")
    if content and name != "metrics.jsonl":
        assert f"{name} is damaged" in notes


@pytest.mark.parametrize(
    ("lines", "said"),
    [(5, "This run is not finished. To resume, run"), (0, "No training metrics yet. Start or resume")],
)
def test_an_unfinished_run_names_the_command_that_resumes_it(tmp_path, lines, said):
    run = make_run(tmp_path / "run", lines=5)
    (run / "summary.json").unlink()
    if not lines:
        (run / "metrics.jsonl").unlink()
    words = ["matrix-ssl", "pretrain", "--data", "my photos", "--out", "run"]
    (run / "environment.json").write_text(json.dumps({"command": words}))
    (note,) = re.findall(r"<p>(.*?) <code>(matrix-ssl pretrain.*?)</code></p>", write_report(run).read_text("utf-8"))
    assert note[0].startswith(said) and shlex.split(html.unescape(note[1])) == words


def test_a_damaged_byte_in_a_compressed_archive(tmp_path):
    run = make_run(tmp_path / "run", lines=2)
    np.savez_compressed(run / "evaluation.npz", **make_arrays(CLASSES))
    content = bytearray((run / "evaluation.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (run / "evaluation.npz").write_bytes(bytes(content))
    assert "evaluation.npz is damaged" in read_run(run).notes[0].text


def test_partial_evaluation(tmp_path):
    run = make_run(tmp_path / "run", lines=1)
    arrays = make_arrays(CLASSES)
    arrays["map_labels"] = arrays["map_labels"][:-1]
    np.savez(run / "evaluation.npz", **arrays)
    path = run / "evaluation" / "cifar10" / "low-shot.json"
    results = json.loads(path.read_text())
    del results["baselines"], results["measures"]["low_shot_1"]
    path.write_text(json.dumps(results))
    (path.parent / "linear.json").write_text('{"measures": {"linear": {"accuracy": null}}}')
    page = report(run)
    assert "linear.json is damaged and skipped" in page.text()
    assert "evaluation.npz has no complete gallery" not in page.text()
    assert "evaluation.npz has no complete map" in page.text()
    assert page.all("img")
    assert "60.1 ± 2.0" in page.those("tr", "td")
    assert "5 labels per class: there are no baselines" in page.text("header")


def test_a_pickle_is_not_loaded(tmp_path):
    run = make_run(tmp_path / "run", lines=3)
    np.savez(run / "evaluation.npz", map=np.array([{"a": 1}], dtype=object))
    assert "evaluation.npz is damaged" in read_run(run).notes[0].text


def write_lines(run: Path, lines: list[dict]) -> Path:
    """Replaces the metrics and drops the evaluation, which leaves a page of few figures that is soon written."""
    (run / "evaluation.npz").unlink()
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return run


def test_cut_last_line_and_repeated_steps(tmp_path):
    lines = [{"step": s, "loss": 1.0} for s in range(5)] + [{"step": 2, "loss": 77.0}]
    run = write_lines(make_run(tmp_path / "run"), lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 210, "lo')
    page = report(run)
    assert "Line 7 of metrics.jsonl cannot be read" in page.text()
    assert "highest 77 at step 2." in page.text("desc")


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    values = [1.0, None, float("nan"), float("inf"), "text", 10**400, True, 2.0]
    page = report(write_lines(make_run(tmp_path / "run"), [{"step": s, "loss": v} for s, v in enumerate(values)]))
    assert "Values skipped because they are not finite: 6." in page.text("figcaption")
    assert not re.search(r"\b(nan|inf)\b", page.text("svg"), re.IGNORECASE)


def test_an_outlier_does_not_flatten_the_curve(tmp_path):
    lines = [{"step": s, "loss": 1e6 if s == 50 else s / 200} for s in range(200)]
    page = report(write_lines(make_run(tmp_path / "run"), lines))
    assert "Outliers beyond the vertical axis: 1." in page.text("figcaption")
    assert "highest 1e+06 at step 50" in page.text("desc")
    ticks = [text for path, text in page.texts if "svg" in path and path[-1] == "text"]
    assert "0.5" in ticks


@pytest.mark.parametrize(("count", "neighbours"), [(10_000, 25), pytest.param(100_000, 256, marks=pytest.mark.slow)])
def test_many_lines(tmp_path, count, neighbours):
    noise = np.random.default_rng(0).normal(size=count)
    lines = [{"step": s, "loss": v, "one": v, "two": -v, "effective_rank": 5 + v} for s, v in enumerate(noise.tolist())]
    run = write_lines(make_run(tmp_path / "run"), lines)
    page = report(run)
    assert (run / "report.html").stat().st_size < 500_000
    assert f"The line is the mean of up to {neighbours} neighbouring values" in page.text("figcaption")


def test_thinning_keeps_mean_and_range():
    values = np.random.default_rng(0).normal(size=1001)
    steps, mean, low, high = thin(Curve("", np.arange(1001), values), limit=10)
    groups = np.array_split(values, np.linspace(0, 1001, 10, endpoint=False).astype(int)[1:])
    np.testing.assert_allclose(mean, [g.mean() for g in groups])
    np.testing.assert_array_equal(low, [g.min() for g in groups])
    np.testing.assert_array_equal(high, [g.max() for g in groups])
    assert np.all(np.diff(steps) > 0)


def test_a_method_without_teacher_says_what_is_absent(tmp_path):
    lines = [{"step": i, "loss": 1.0, "invariance": 2.0 * i} for i in range(3)]
    page = report(write_lines(make_run(tmp_path / "run"), lines))
    assert "invariance" in page.text("svg")
    assert "Not logged in this run: effective rank," in page.text()
    assert "Similarity of the two branches" not in page.text("h3")


@pytest.mark.parametrize("spectrum", [[1.0], [1.0, 0.0, -1e-18], [0.25] * 4, [0.0, 0.0]])
def test_degenerate_spectra(tmp_path, spectrum):
    page = report(write_lines(make_run(tmp_path / "run"), [{"step": 0, "spectrum": spectrum}]))
    assert f"largest of {len(spectrum)} eigenvalues {spectrum[0]:.4g}" in page.text("desc")
    assert ("zero up to rounding" in page.text("figcaption")) == (min(spectrum) <= 0)


def test_alarms_of_one_wording_are_one_alarm(tmp_path):
    lines = [{"step": s, "alarm": [f"rank {s / 7:.2f}"]} for s in (10, 20)] + [{"step": 30, "alarm": ["other"]}]
    run = write_lines(make_run(tmp_path / "run"), lines)
    assert read_run(run).log.alarms() == [("rank 2.86", 2, 10, 20), ("other", 1, 30, 30)]
    page = report(run)
    assert [e["role"] for _, e in page.elements if e.get("class") == "alarms"] == ["alert"]
    assert "rank 2.86 (2 times, steps 10 to 20)" in page.text("section")
    assert "optimizer.learning_rate=0.5" in page.text("section")


def test_configuration_and_commands_are_complete(page):
    text = page.text("details")
    for key in ("views.0.crop_scale", "optimizer.weight_decay", "max_bad_steps", "data.mean", "torch"):
        assert key in text
    assert "matrix-ssl embed first --data FOLDER --out features.npz" in page.text("pre")
    assert "matrix-ssl export first --format torchvision" in page.text("pre")


def test_not_a_run_folder(tmp_path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"config\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"epochs": "many"}', b'{"unknown": 1}'])
def test_damaged_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.json"):
        write_report(tmp_path)


@pytest.mark.slow  # quick: test_architecture.py
def test_no_torch_is_loaded():
    code = "import sys, matrix_ssl.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert ended.returncode == 0
