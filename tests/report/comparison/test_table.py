import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from matrix_ssl.config.method_names import method_names
from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.comparison import table
from matrix_ssl.report.comparison.data import Comparison, parse_comparison, read_comparison
from matrix_ssl.report.comparison.table import rows
from matrix_ssl.report.comparison.words import notes, p_value, verdict
from matrix_ssl.report.formats import points
from tests.support.synthetic_comparison import METHODS, failed, make_comparison, make_row, score


def small(accuracies: dict[str, list[float]], **more) -> dict:
    """Results with a linear accuracy for each method and seed."""
    runs = [
        {"method": m, "seed": s, "epochs": 4, "accuracy": {"linear": score(value)}}
        for m, values in accuracies.items() for s, value in enumerate(values)
    ]  # fmt: skip
    seeds = list(range(max(map(len, accuracies.values()))))
    return {"methods": list(accuracies), "reference": "a", "budget": 4, "seeds": seeds, "rows": runs} | more


def read(results: object) -> Comparison:
    return parse_comparison(results, Path("compare.json"))


def markdown(results: dict) -> str:
    return table.markdown(read(results))


def printed(results: dict, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table.terminal(read(results)))
    return console.file.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_deviation_and_difference_worked_by_hand():
    found = {row.label: row for row in rows(read(small({"a": [0.5, 0.6, 0.7], "b": [0.8, 0.8, 0.8]})))}
    (accuracy,) = found["a"].accuracy
    assert (accuracy.value, accuracy.spread, accuracy.best) == ("60.0", ("± 10.0",), False)
    (accuracy,) = found["b"].accuracy
    assert (accuracy.value, accuracy.spread, accuracy.best) == ("80.0", ("± 0.0",), True)
    # differences 0.3, 0.2, 0.1: mean 0.2, sd 0.1, t = 4.3027 with 2 degrees of freedom
    reach = 4.302653 * 10 / math.sqrt(3)
    assert found["b"].difference.value == "+20.00"
    assert found["b"].difference.spread == (f"[−{reach - 20:.2f}, {20 + reach:.2f}]", "p = 0.074")  # of t = 2√3
    assert found["a"].difference.value == "–"
    assert found["a"].remark == "reference"


def test_entries_come_by_the_main_measure_and_are_labelled_by_method_and_epochs():
    results = make_comparison(seeds=2, methods=[METHODS[0], METHODS[1], METHODS[-1]], rivals_budget=24)
    labels = [row.label for row in rows(read(results))]
    assert set(labels) == {
        "matrix_ssl", "simsiam", "own", "simsiam, 24 epochs", "own, 24 epochs", "raw pixels", "untrained network",
    }  # fmt: skip
    assert labels[0] == "matrix_ssl"
    assert labels[-2:] == ["raw pixels", "untrained network"]


def test_names_stay_different():
    given = ["simsiam", "/a/own.py", "b/simsiam.py", "c/mine.py", "d\\mine.py", "byol"]
    assert list(method_names(given).values()) == [
        "simsiam", "own", "b/simsiam.py", "c/mine.py", "d\\mine.py", "byol",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 100])
def test_ten_methods_fit_on_a_terminal(width):
    results = make_comparison()
    results["rows"][10:12] = [failed("byol", 0), failed("byol", 1)]
    lines = printed(results, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for row in rows(read(results)):
        line = next(line for line in lines if line.strip().startswith(row.label.split()[0]))
        assert all(cell.value in line.split() for cell in row.accuracy), row.label
    assert re.search(r"−0\.57.*\n.*\[−0\.91, −0\.23\]", text)
    assert "2 of 5 failed" in text
    assert "2,915" in text


def test_markdown_has_one_cell_for_each_heading_and_the_best_in_bold():
    text = markdown(make_comparison())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(cells(line)) for line in lines}) == 1
    assert cells(lines[0]) == [
        "method", "seeds", "1 label", "5 labels", "10 labels", "linear", "1-NN", "20-NN", "linear − matrix_ssl",
        "time", "CPU time", "images/s", "peak MiB",
    ]  # fmt: skip
    assert len(lines) == 2 + 10 + 2
    first = cells(lines[2])
    assert first[0] == "matrix_ssl (reference)"
    assert first[5] == "**98.3** ± 0.2"
    assert first[-1] == "**500**"
    for column in range(2, 13):
        bold = [cells(line)[column] for line in lines if "**" in cells(line)[column]]
        assert len(bold) == (0 if column == 8 else 1), column


def test_equal_accuracies_are_both_best():
    text = markdown(small({"a": [0.5001], "b": [0.5002], "c": [0.4]}))
    assert text.count("**50.0**") == 2


def test_best_time_is_the_shortest_and_the_best_rate_the_highest():
    results = small({"a": [0.5], "b": [0.6]})
    results["rows"][0] |= {"seconds": 7.0, "cpu_seconds": 9.0, "images_per_second": 100.0, "peak_memory_mib": 9.0}
    results["rows"][1] |= {"seconds": 70.0, "cpu_seconds": 8.0, "images_per_second": 200.0, "peak_memory_mib": 90.0}
    a, b = sorted(rows(read(results)), key=lambda row: row.label)
    assert [cell.best for cell in a.costs] == [True, False, False, True]
    assert [cell.best for cell in b.costs] == [False, True, True, False]


def test_failed_runs_are_counted_everywhere():
    results = make_comparison(methods=METHODS[:3])
    results["rows"][5:7] = [failed("simsiam", 0), failed("simsiam", 1)]
    results["rows"][10:] = [failed("byol", seed) for seed in range(5)]
    c = read(results)
    assert [len(entry.failures) for entry in c.entries] == [0, 2, 5]
    for text in (markdown(results), "\n".join(printed(results, 100)), " ".join(notes(c))):
        assert "2 of 5 failed" in text
        assert "5 of 5 failed" in text
    byol = next(row for row in rows(c) if row.label == "byol")
    assert (byol.seeds.value, byol.accuracy[0].value) == ("0", "–")


def test_one_seed_has_no_spread():
    results = make_comparison(seeds=1, methods=METHODS[:3])
    c = read(results)
    assert not any(cell.spread for row in rows(c) for cell in row.cells)
    assert len(notes(c)) == 1 and "One seed" in notes(c)[0]


def test_a_comparison_that_is_running():
    results = make_comparison(seeds=3, methods=METHODS[:3], rivals_budget=160)
    assert notes(read(results)) == []
    results["rows"] = results["rows"][:4]
    assert "4 of 15 runs" in notes(read(results))[0]


@pytest.mark.parametrize("results", [{}, {"rows": []}])
def test_nothing_yet(results):
    assert verdict(read(results)) == ["Nothing has been measured yet."]
    assert verdict(read(results))[0] in markdown(results) and verdict(read(results))[0] in printed(results, 80)[-1]


def test_a_repeated_run_replaces_the_earlier_one():
    results = small({"a": [0.5, 0.6]})
    results["rows"] += [{"method": "a", "seed": 0, "epochs": 4, "error": "no"}]
    (entry,) = read(results).entries
    assert (entry.scores("linear"), len(entry.failures)) == ({1: 0.6}, 1)


def test_what_is_missing_is_empty():
    results = small({"a": [0.5, 0.6, 0.7]})
    del results["rows"][0]["accuracy"]
    results["rows"][1] |= {"seconds": 3.0, "images_per_second": None, "curve": [{"step": 1, "loss": None}]}
    (entry,) = read(results).entries
    assert entry.scores("linear") == {1: 0.6, 2: 0.7}
    assert (entry.cost("seconds"), entry.cost("images_per_second")) == (3.0, None)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"rows": [3]}, "rows.0"),
        ({"rows": None}, "rows"),
        ({"methods": 3}, "methods"),
        ({"tuning": []}, "tuning"),
        ({"baselines": []}, "baselines"),
        ({"data": {"test": "many"}}, "data.test"),
        ({"rows": [{"seed": 1}]}, "rows.0.method"),
        ({"rows": [{"method": "a", "seed": 1, "seconds": "long"}]}, "rows.0.seconds"),
        ({"rows": [{"method": "a", "seed": 1, "seconds": 10**400}]}, "rows.0.seconds"),
        ({"rows": [{"method": "a", "seed": 1, "curve": 3}]}, "rows.0.curve"),
        ({"rows": [{"method": "a", "seed": 1, "accuracy": {"linear": {"mean": math.nan}}}]}, "rows.0.accuracy.linear"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_file_and_place(tmp_path, change, place):
    (tmp_path / "compare.json").write_text(json.dumps(small({"a": [0.5]}) | change))
    with pytest.raises(
        RunFolderError, match=rf"compare\.json is damaged at {re.escape(place)}.*run matrix-ssl compare"
    ):
        read_comparison(tmp_path)


@pytest.mark.parametrize(("reference", "pairs"), [("a", 3), ("b", 3), ("c", 6)])
def test_the_best_two_are_tested_with_the_pairs_of_the_reference_where_one_is_it(reference, pairs):
    generator = np.random.default_rng(0)
    scores = {name: (mean + generator.normal(0, 0.02, 5)).tolist() for name, mean in
              (("a", 0.6), ("b", 0.57), ("c", 0.5), ("d", 0.45))}  # fmt: skip
    comparison = read(small(scores, reference=reference))
    a_minus_b = stats.ttest_rel(scores["a"], scores["b"]).pvalue
    (sentence,) = verdict(comparison)
    assert f"then b with {100 * np.mean(scores['b']):.1f}%" in sentence
    assert f", adjusted by Holm's method over {pairs} pairs)." in sentence
    shown = float(sentence.split(" p = ")[1].split(",")[0])
    if pairs == 3:
        other, sign = (
            (comparison.against_reference["b"], -1) if reference == "a" else (comparison.against_reference["a"], 1)
        )
        assert f"difference {100 * sign * other.difference.mean:.2f} points" in sentence
        assert shown == pytest.approx(other.adjusted_p, abs=6e-4)
    assert shown >= a_minus_b - 6e-4


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        (
            {"a": [0.5, 0.6, 0.7], "b": [0.7, 0.81, 0.9]},
            "b with 80.3% of 1,234 test images, then a with 60.0% (difference 20.33 points, 95% interval 18.90 to "
            "21.77, p < 0.001).",
        ),
        (
            {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.7, 0.8]},  # t = 0.5, two degrees of freedom
            "b with 63.3% of 1,234 test images, then a with 60.0% (difference 3.33 points, 95% interval −25.35 to "
            "32.02, p = 0.67).",
        ),
        (  # one test image more with every seed: a t test without spread would give p = 0
            {"a": [0.5, 0.6, 0.7], "b": [0.51, 0.61, 0.71]},
            "b with 61.0% of 1,234 test images, then a with 60.0% (difference 1.00 points, p = 0.25).",
        ),
        (
            {"a": [0.5, 0.6], "b": [0.9]},
            "b with 90.0% of 1,234 test images, then a with 55.0% (difference 40.00 points, one common seed).",
        ),
        ({"a": [0.5, 0.6]}, "a with 55.0% of 1,234 test images; no other method has been measured yet."),
    ],
)
def test_the_verdict_has_best_second_difference_interval_and_p(accuracies, sentence):
    assert verdict(read(small(accuracies, data={"test": 1234}))) == [f"Best linear accuracy at 4 epochs: {sentence}"]


def test_means_over_different_seeds_are_said_to_be():
    """The best one by its mean lacks the seed that was hard for the other, and is worse where both have been run."""
    c = read(small({"a": [0.9, 0.88, 0.4], "b": [0.85, 0.84]}))
    (sentence,) = verdict(c)
    assert "b with 84.5%, then a with 72.7% (difference −4.50 points over 2 common seeds, " in sentence
    assert any(note.startswith("Some methods lack seeds that others have: means are over") for note in notes(c))
    assert not any("lack seeds" in note for note in notes(read(small({"a": [0.9, 0.88], "b": [0.85, 0.84], "c": []}))))


def test_longer_training_is_a_sentence_of_its_own():
    results = make_comparison(seeds=5, methods=METHODS[:3])
    longer = [make_row(METHODS[i], i, seed, 160) for i in (1, 2) for seed in range(5)]
    for row in longer:
        row["accuracy"]["linear"]["mean"] += 0.02
    results["rows"] += longer
    first, second = verdict(read(results))
    assert "at 80 epochs: matrix_ssl with 98.3%" in first
    assert "at 160 epochs (matrix_ssl 80 epochs): simsiam, 160 epochs with" in second


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "p < 0.001"), (0.012, "p = 0.012"), (0.0499, "p < 0.05"), (0.0501, "p = 0.050"), (0.25, "p = 0.25")],
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_another_main_measure():
    results = make_comparison(seeds=2, methods=METHODS[:2]) | {"measure": "knn_20"}
    assert "20-NN − matrix_ssl" in markdown(results)
    assert "Best 20-NN accuracy" in verdict(read(results))[0]


def test_labels_are_escaped_in_markdown_and_plain_on_a_terminal():
    hostile = "a|b*c*<b>[red](x)`_d_"
    results = small({"a": [0.5], hostile: [0.6]})
    line = next(line for line in markdown(results).splitlines() if "c" in line and line.startswith("| a"))
    assert line.startswith(r"| a\|b\*c\*\<b\>\[red\](x)\`\_d\_ |")
    assert "[red]" in "".join("".join(printed(results, 100)).split())


@pytest.mark.parametrize(
    ("difference", "sign", "text"),
    [(0.0123, "", "1.23"), (0.0123, "+", "+1.23"), (-0.2, "+", "−20.00"), (-0.00001, "+", "0.00"), (0.0, "+", "0.00")],
)
def test_points(difference, sign, text):
    assert points(difference, sign=sign) == text


def test_devices_and_bad_steps_are_noted():
    results = make_comparison(seeds=1, methods=METHODS[:2])
    results["rows"][0] |= {"environment": {"device_name": "Other"}, "bad_steps": 3}
    text = " ".join(notes(read(results)))
    assert "Other, Some Processor" in text
    assert "matrix_ssl 3" in text


def test_processors_and_versions_of_a_comparison_that_was_resumed_elsewhere_are_noted():
    results = make_comparison(seeds=2, methods=METHODS[:2])
    here = {"device": "cpu", "device_name": "cpu", "processor": "Old", "matrix_ssl": "1.0", "commit": "abc"}
    for row in results["rows"]:
        row["environment"] = here
    assert not any("The runs used" in note for note in notes(read(results)))
    results["rows"][3]["environment"] = here | {"processor": "New", "commit": "def"}
    text = " ".join(notes(read(results)))
    assert "different devices, so their times are not comparable: Old, New." in text
    assert "contribute to their differences: matrix-ssl 1.0, commit abc; matrix-ssl 1.0, commit def." in text


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_a_file_that_holds_no_comparison_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "compare.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"compare\.json.*(choose|run matrix-ssl compare)"):
        read_comparison(tmp_path)
    (tmp_path / "compare.json").write_text('{"rows": []}')
    assert read_comparison(tmp_path).entries == []
