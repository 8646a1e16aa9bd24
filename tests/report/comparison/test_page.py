import json
import re
from pathlib import Path

import matplotlib
import pytest

from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.comparison.data import Comparison, parse_comparison
from matrix_ssl.report.comparison.figures import accuracy_over_time, look
from matrix_ssl.report.comparison.page import write_comparison
from tests.support.pages import Page, check_golden, check_page, read_page
from tests.support.synthetic_comparison import METHODS, failed, make_comparison

GOLDEN = Path(__file__).parents[2] / "golden" / "comparison_page.txt"


def write(folder: Path, results: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(results), encoding="utf-8")
    return write_comparison(folder)


def parse(folder: Path, results: object) -> Page:
    return read_page(write(folder, results))


def comparison(results: object) -> Comparison:
    return parse_comparison(results, Path("compare.json"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """Ten methods, five seeds; two runs and a trial failed."""
    results = make_comparison()
    results["rows"][10:12] = [failed("byol", 0), failed("byol", 1, "the loss was not finite at step 99")]
    results["tuning"]["rows"][3] = {"method": "simsiam", "trial": 0, "settings": {}, "error": "no memory"}
    return parse(tmp_path_factory.mktemp("out"), results)


def test_the_page_is_complete(page):
    check_page(page)
    assert page.those("h2") == [
        "Results", "Differences from matrix_ssl", "Which is better than which", "Training", "Tuning", "Failures",
        "Settings",
    ]  # fmt: skip


def test_the_text_is_that_of_the_golden_file(tmp_path):
    results = make_comparison(methods=METHODS[:3], seeds=3, rivals_budget=160)
    results["rows"][4] = failed("simsiam", 1)
    check_golden(parse(tmp_path, results), GOLDEN)


def test_results_have_every_method_and_the_best_of_each_column(page):
    heads = [text for text in page.those("tr", "th") if text not in METHODS]
    assert heads[:13] == [
        "method", "seeds", "1 label", "5 labels", "10 labels", "linear", "1-NN", "20-NN", "linear − matrix_ssl",
        "time", "CPU time", "images/s", "peak MiB",
    ]  # fmt: skip
    rows = page.those("tbody", "tr", "th")
    assert rows[:12] == [*METHODS[:-1], "own", "raw pixels", "untrained network"]
    assert len(page.those("strong")) == 10
    assert "[−0.91, −0.23]" in page.text("table")
    assert "2 of 5 failed" in page.text("table") and "byol: 2 of 5 failed." in page.text("section")
    assert "50 of 50" in page.text("dl")


def test_matrix_says_in_words_who_is_better(page):
    words = [text for text in page.those("td") if text in ("better", "worse", "unclear", "unknown")]
    grid = [words[9 * i : 9 * i + 9] for i in range(10)]
    pairs = [{grid[i][j], grid[j][i - 1]} for i in range(10) for j in range(i)]
    assert len(words) == 90 and all(pair in ({"better", "worse"}, {"unclear"}) for pair in pairs)
    assert "better" in words
    assert len([text for text in page.those("td", "span") if text.startswith("p ")]) == 90 + 9  # and of the differences


def test_figures_have_text_alternatives_with_numbers(page):
    interval, time, rank = page.those("desc")
    assert "simsiam: −0.57 points (−0.91 to −0.23, 5 seeds)." in interval
    assert re.search(r"matrix_ssl: \d\d\.\d% after 8 s, 93\.\d% after 39 s; lowest \d", time)
    assert re.search(r"effective rank: matrix_ssl: [\d.]+ at epoch 8, [\d.]+ at epoch 80", rank)
    assert "matrix entropy (nats): " in rank
    assert all(method in time for method in (*METHODS[:-1], "own"))


def test_ten_methods_look_different(page):
    looks = [look(entry) for entry in comparison(make_comparison(seeds=1)).entries]
    assert len({(style["color"], style["marker"]) for style in looks}) == 10
    assert len({(style["marker"], str(style["linestyle"])) for style in looks}) == 10  # without colour, too
    legend = [text for text in page.those("text") if text in (*METHODS, "own")]
    assert [legend.count(name) for name in (*METHODS[1:-1], "own")] == [3] * 9  # two legends, and an axis of names


def test_a_curve_is_the_mean_over_seeds_at_common_steps():
    results = make_comparison(seeds=2, methods=METHODS[:1])
    for row, values in zip(results["rows"], ([0.1, 0.3, 0.5], [0.2, None, 0.8]), strict=True):
        row["curve"] = [
            {"step": 10 * i, "seconds": 1.0 + i + row["seed"], "knn_20_held_out": value}
            for i, value in enumerate(values)
        ]  # fmt: skip
    _, row = accuracy_over_time(comparison(results).groups()).table
    assert (row[0], row[1], row[-1]) == ("matrix_ssl", "15.0% after 2 s", "65.0% after 4 s")


def test_tuning_shows_every_trial_and_the_choice(page):
    cells = page.those("td")
    assert (cells.count("chosen"), cells.count("failed")) == (10, 1)
    assert cells.count("optimizer.learning_rate=0.005") == 10


def test_failures_come_with_their_messages(page):
    assert page.those("li", "pre") == [
        "the loss was not finite at step 12", "the loss was not finite at step 99", "no memory",
    ]  # fmt: skip
    assert page.those("li") == ["byol, seed 0", "byol, seed 1", "simsiam, tuning, trial 0"]


def test_one_seed_shows_no_interval_and_no_matrix(tmp_path):
    page = parse(tmp_path, make_comparison(seeds=1, methods=METHODS[:3]))
    assert page.those("td", "span") == []
    assert "Which is better than which" not in page.those("h2")


def test_a_comparison_that_is_running(tmp_path):
    results = make_comparison(seeds=3, methods=METHODS[:3])
    results["rows"] = results["rows"][:4]
    results["tuning"] = None
    page = parse(tmp_path, results)
    assert "4 of 9 runs" in page.text("section")
    assert "Tuning" not in page.those("h2")
    assert "n = 1" in page.text("table")


@pytest.mark.parametrize("rows", [[], [failed("a", 0), failed("b", 0)], [{"method": "a", "seed": 0, "curve": [{}]}]])
def test_without_a_measurement_there_is_no_drawing(tmp_path, rows):
    page = parse(tmp_path, {"rows": rows, "reference": "a", "seeds": [0], "methods": ["a", "b"]})
    assert page.those("header", "p")[-1] == "Nothing has been measured yet."
    assert page.all("svg") == []


def test_longer_training_has_panels_and_a_matrix_of_its_own(tmp_path):
    page = parse(tmp_path, make_comparison(seeds=3, methods=METHODS[:4], rivals_budget=160))
    assert {"80 epochs", "160 epochs (matrix_ssl 80 epochs)"} <= set(page.those("h3"))
    assert {"20-NN accuracy in %: 80 epochs", "20-NN accuracy in %: 160 epochs"} <= set(page.those("text"))
    assert sum("simsiam, 160 epochs" in text for text in page.those("desc")) == 3


def test_a_difference_that_is_the_same_for_every_seed(tmp_path):
    results = make_comparison(seeds=3, methods=METHODS[:2])
    for i, row in enumerate(results["rows"]):
        row["accuracy"] = {"linear": {"mean": 0.75 + 0.125 * (i > 2), "sd": 0.0, "n": 1}}
    page = parse(tmp_path, results)
    assert "+12.50 p = 0.25" in " ".join(page.text("table").split()) and "[12.50" not in page.text("table")
    assert "has no interval" in page.text("section") and "sign test" in page.text("section")


def test_text_is_escaped(tmp_path):
    hostile = "<script>alert(1)"
    results = make_comparison(seeds=2, methods=[hostile, "$x$", "猫", '"q" & x'])
    results |= {"recipe": hostile, "command": hostile, "settings": {hostile: hostile}}
    results["environment"] = {"device": hostile}
    results["data"]["name"] = hostile
    results["rows"].append(failed(hostile, 7, hostile))
    results["tuning"]["rows"].append({"method": hostile, "trial": 9, "settings": {hostile: 1}, "error": hostile})
    page = parse(tmp_path, results)
    check_page(page)
    assert all(text in page.text("svg") for text in ("alert(1)", "猫", "$x$"))


def test_a_name_that_is_not_unicode_can_be_written(tmp_path):
    (tmp_path / "compare.json").write_text('{"rows": [], "command": "compare \\udcff"}')
    assert "compare \\udcff" in write_comparison(tmp_path).read_text(encoding="utf-8")


def test_same_file_gives_the_same_bytes_whatever_the_settings_of_matplotlib(tmp_path):
    results = make_comparison(seeds=2, methods=METHODS[:2])
    expected = write(tmp_path / "0", results).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "axes.grid": True, "lines.linewidth": 9}):
        assert write(tmp_path / "1", results).read_bytes() == expected
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"compare.json", "compare.html"}


def test_a_file_that_is_no_comparison(tmp_path):
    with pytest.raises(RunFolderError, match=r"compare\.json"):
        write(tmp_path, [])
    assert not (tmp_path / "compare.html").exists()
