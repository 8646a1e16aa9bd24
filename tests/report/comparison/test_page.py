import json
import re
from pathlib import Path

import matplotlib
import pytest

from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.comparison.data import read_arms
from matrix_ssl.report.comparison.figures import accuracy_over_time, intervals, look
from matrix_ssl.report.comparison.page import write_page
from tests.report.run.test_page import Page
from tests.support.synthetic_comparison import METHODS, failed, make_comparison


def write(folder: Path, results: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(results), encoding="utf-8")
    return write_page(folder)


def parse(folder: Path, results: object) -> Page:
    return Page(write(folder, results).read_text(encoding="utf-8"))


def complete() -> dict:
    """Ten methods, five seeds; two runs and a trial failed."""
    results = make_comparison()
    results["rows"][10:12] = [failed("byol", 0), failed("byol", 1, "the loss was not finite at step 99")]
    results["tuning"]["rows"][3] = {"method": "simsiam", "trial": 0, "settings": {}, "error": "no memory"}
    return results


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return parse(tmp_path_factory.mktemp("out"), complete())


def test_sections_come_in_order(page):
    headings = [text for path, text in page.texts if path[-1] in ("h1", "h2", "h3")]
    assert headings == [
        "10 methods compared",
        "Results",
        "Differences from matrix_ssl",
        "Difference from matrix_ssl, linear",
        "Which is better than which",
        "Training",
        "Accuracy against time",
        "Effective rank and matrix entropy",
        "Tuning",
        "Failures",
        "Settings",
        "Command",
    ]


def test_header_says_what_came_out_and_what_is_missing(page):
    assert "matrix_ssl is first: it classifies 98.3% of the 360 test images correctly, simsiam 97.7%" in page.text()
    assert "byol: 2 of 5 failed; its means cover the others." in page.text("section")
    assert "50 of 50" in page.text("dl")


def test_results_have_every_method_and_measure(page):
    heads = [text for path, text in page.texts if path[-2:] == ("tr", "th") and "thead" in path]
    assert heads[:13] == [
        "method", "seeds", "1 label", "5 labels", "10 labels", "linear", "1-NN", "20-NN", "linear − matrix_ssl",
        "time", "CPU time", "images/s", "peak MiB",
    ]  # fmt: skip
    rows = [text for path, text in page.texts if path[-1] == "th" and "tbody" in path]
    assert rows[:10] == [*METHODS[:-1], "own"]
    assert rows[10:12] == ["raw pixels", "untrained network"]
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    bold = [text for path, text in page.texts if path[-1] == "strong"]
    assert len(bold) == 10
    assert "[−0.91, −0.23]" in page.text("table")


def test_matrix_says_in_words_who_is_better(page):
    words = [
        text for path, text in page.texts if path[-1] == "td" and text in ("better", "worse", "unclear", "unknown")
    ]
    assert len(words) == 10 * 9
    grid = [words[9 * i : 9 * i + 9] for i in range(10)]
    for i in range(10):
        for j in range(i):
            there, back = grid[i][j], grid[j][i - 1]
            assert {there, back} in ({"better", "worse"}, {"unclear"})
    assert "better" in words
    assert len([text for path, text in page.texts if path[-1] == "span" and text.startswith("p ")]) == 90


def test_figures_have_text_alternatives_with_numbers(page):
    drawings = page.all("svg")
    assert len(drawings) == 3
    named = {element["id"] for _, element in page.elements if "id" in element}
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(drawing["aria-labelledby"].split()) <= named
    interval, time, rank = [text for path, text in page.texts if path[-1] == "desc"]
    assert "simsiam: −0.57 points (−0.91 to −0.23, 5 seeds)." in interval
    assert re.search(
        r"matrix_ssl \d\d\.\d% after 8 s, 93\.\d% after 39 s \(from 9\d\.\d* to 9\d\.\d* over 5 seeds\)", time
    )
    assert re.search(r"effective rank: matrix_ssl [\d.]+ at epoch 8, [\d.]+ at epoch 80", rank)
    assert "matrix entropy (nats): " in rank
    for method in (*METHODS[:-1], "own"):
        assert method in time


def test_ten_methods_look_different(page):
    arms = read_arms(make_comparison(seeds=1)).arms
    looks = [look(arm) for arm in arms]
    assert len({(style["color"], style["marker"]) for style in looks}) == 10
    assert len({(style["marker"], str(style["linestyle"])) for style in looks}) == 10  # without colour, too
    legend = [text for path, text in page.texts if path[-1] == "text" and text in (*METHODS, "own")]
    assert [legend.count(name) for name in (*METHODS[1:-1], "own")] == [3] * 9  # two legends, and an axis of names


def test_a_line_is_the_mean_over_seeds_at_common_steps():
    results = make_comparison(seeds=2, methods=METHODS[:1])
    for row, values in zip(results["rows"], ([0.1, 0.3, 0.5], [0.2, None, 0.8]), strict=True):
        row["curve"] = [
            {"step": 10 * i, "seconds": 1.0 + i + row["seed"], "knn_20_held_out": value}
            for i, value in enumerate(values)
        ]  # fmt: skip
    figure = accuracy_over_time(read_arms(results).groups())
    assert figure.table[1] == ["matrix_ssl", "15.0% after 2 s", "65.0% after 4 s", "65.0% after 4 s"]


def test_tuning_shows_every_trial_and_the_choice(page):
    cells = [text for path, text in page.texts if path[-1] == "td"]
    assert cells.count("chosen") == 10
    assert cells.count("failed") == 1
    assert cells.count("optimizer.learning_rate=0.005") == 10
    assert "20% of them" in page.text()
    assert "network.width=16" in page.text()


def test_failures_come_with_their_messages(page):
    messages = [text for path, text in page.texts if path[-1] == "pre" and "ul" in path]
    assert messages == ["the loss was not finite at step 12", "the loss was not finite at step 99", "no memory"]
    assert "byol, seed 1" in page.text("li")
    assert "simsiam, tuning, trial 0" in page.text("li")


def test_settings_and_command(page):
    assert "matrix-ssl compare demo --methods all --seeds 5" in page.text("pre")
    for key in ("network.encoder", "augment.crop", "torch", "method.temperature=0.1"):
        assert key in page.text("details")


def test_ids_are_unique_and_references_resolve(page):
    ids = [element["id"] for _, element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    used = {element["xlink:href"].removeprefix("#") for element in page.all("use")}
    for _, element in page.elements:
        used |= set((element.get("aria-labelledby") or "").split()) | set(
            (element.get("aria-describedby") or "").split()
        )
    assert used
    assert used <= set(ids)


def test_nothing_outside_the_file_and_no_script(page):
    for tag, attributes in page.elements:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
    assert "url(" not in page.text("style")
    assert "@import" not in page.text("style")
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_one_seed_says_so_and_shows_no_spread(tmp_path):
    page = parse(tmp_path, make_comparison(seeds=1, methods=METHODS[:3]))
    assert "One seed only: there is no spread" in page.text("section")
    assert "with one seed there is no interval" in page.text("figcaption")
    assert "±" not in page.text()
    assert "[" not in " ".join(text for path, text in page.texts if "table" in path and "details" not in path)
    assert "Which is better than which" not in page.text("h2")


def test_a_comparison_that_is_running(tmp_path):
    results = make_comparison(seeds=3, methods=METHODS[:3])
    results["rows"] = results["rows"][:4]
    results["tuning"] = None
    page = parse(tmp_path, results)
    assert "4 of 9 runs are done" in page.text("section")
    assert "Tuning" not in page.text("h2")
    assert "n = 1" in page.text("table")


@pytest.mark.parametrize("results", [{}, {"rows": [], "methods": ["a"], "seeds": [0]}, {"rows": [3], "tuning": []}])
def test_next_to_nothing(tmp_path, results):
    page = parse(tmp_path, results)
    assert "Nothing has been measured yet." in page.text()
    assert page.all("svg") == []


def test_rows_of_the_least_content(tmp_path):
    rows = [{"method": "a", "seed": s} for s in (0, 1)] + [{"method": "b", "seed": 0, "error": None, "curve": [{}, 1]}]
    page = parse(tmp_path, {"rows": rows, "reference": "a"})
    assert [text for path, text in page.texts if path[-1] == "th" and "tbody" in path] == ["a", "b"]
    assert page.all("svg") == []


def test_only_failures(tmp_path):
    page = parse(tmp_path, {"rows": [failed("a", 0), failed("b", 0)], "reference": "a", "budget": 80})
    assert "Nothing has been measured yet." in page.text()
    assert "a: 1 of 1 failed." in page.text()


def test_rivals_with_a_longer_training_have_panels_and_a_matrix_of_their_own(tmp_path):
    page = parse(tmp_path, make_comparison(seeds=3, methods=METHODS[:4], rivals_budget=160))
    headings = [text for path, text in page.texts if path[-1] == "h3"]
    assert "80 epochs" in headings
    assert "160 epochs (matrix_ssl 80 epochs)" in headings
    ticks = page.text("text")
    assert "20-NN accuracy in %: 80 epochs" in ticks
    assert "20-NN accuracy in %: 160 epochs" in ticks
    assert len([d for path, d in page.texts if path[-1] == "desc" and "simsiam, 160 epochs" in d]) == 3


def test_a_difference_that_is_the_same_for_every_seed(tmp_path):
    results = make_comparison(seeds=3, methods=METHODS[:2])
    for i, row in enumerate(results["rows"]):
        row["accuracy"] = {"linear": {"mean": 0.75 + 0.125 * (i > 2), "sd": 0.0, "n": 1}}
    page = parse(tmp_path, results)
    assert "[12.50, 12.50]" in page.text("table")
    assert "p value is the sign test's" in page.text()
    assert "p = 0.25" in page.text("table")


def test_text_is_escaped(tmp_path):
    hostile = "<script>alert(1)"
    results = make_comparison(seeds=2, methods=[hostile, "$x$", "猫", '"q" & x'])
    results |= {
        "recipe": hostile,
        "command": hostile,
        "settings": {hostile: hostile},
        "environment": {"device": hostile},
    }
    results["data"]["name"] = hostile
    results["rows"].append(failed(hostile, 7, hostile))
    results["tuning"]["rows"].append({"method": hostile, "trial": hostile, "settings": {hostile: 1}, "error": hostile})
    page = parse(tmp_path, results)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "alert(1)" in page.text("svg")
    assert "猫" in page.text("svg")
    assert "$x$" in page.text("svg")


def test_a_name_that_is_not_unicode_can_be_written(tmp_path):
    (tmp_path / "compare.json").write_text('{"rows": [], "command": "compare \\udcff"}')
    assert "compare \\udcff" in write_page(tmp_path).read_text(encoding="utf-8")


def test_same_file_gives_the_same_bytes_whatever_the_settings_of_matplotlib(tmp_path):
    results = make_comparison(seeds=2, methods=METHODS[:2])
    expected = write(tmp_path / "0", results).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "axes.grid": True, "lines.linewidth": 9}):
        assert write(tmp_path / "1", results).read_bytes() == expected
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"compare.json", "compare.html"}


def test_every_colour_in_a_drawing_follows_the_mode():
    drawing = intervals(read_arms(make_comparison(seeds=2))).svg
    assert "#" not in re.sub(r'(href="|url\()#', "", drawing)
    assert "var(--class-1)" in drawing


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_comparison(tmp_path, content):
    if content is not None:
        (tmp_path / "compare.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"compare\.json"):
        write_page(tmp_path)
    assert not (tmp_path / "compare.html").exists()
