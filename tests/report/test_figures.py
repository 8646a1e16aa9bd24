"""What figures share."""

import re

import numpy as np
import pytest

from matrix_ssl.report import svg
from matrix_ssl.report.figures import Curve, Panel, legend, stacked
from matrix_ssl.report.run.figures import embedding_map, spectrum


@pytest.mark.parametrize("count", [1, 2, 5, 7, 10, 12])
@pytest.mark.parametrize("width", [1, 9])
def test_a_legend_reads_row_by_row(count: int, width: int) -> None:
    names = [f"{'_' * (place % 2)}{place:0{width}d}" for place in range(count)]  # Matplotlib hides those with "_"
    with svg.drawing():
        figure = svg.new_figure(200)
        axes = figure.add_subplot()
        lines = [axes.plot([place, place])[0] for place in range(count)]
        legend(figure, names, lines)
        figure.draw_without_rendering()
        drawn = figure.legends[0]
        boxes = {text.get_text(): text.get_window_extent() for text in drawn.get_texts()}
        colours = [line.get_color() for line in axes.lines]
        marks = [line.get_color() for line in drawn.legend_handles]
    rows = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert rows == names
    assert marks == [colours[names.index(text.get_text())] for text in drawn.get_texts()]


def test_names_that_begin_with_an_underscore() -> None:
    classes = ["cat", "_background_", "_"]
    points = np.random.default_rng(0).normal(size=(30, 2))
    drawn = embedding_map(points, np.arange(30) % 3, classes).svg
    assert all(f">{name}<" in drawn for name in classes)
    assert "_features.npy" in spectrum([("_features.npy", np.array([0.6, 0.4])), ("x", np.array([0.9, 0.1]))]).svg


def test_names_that_look_like_parts_of_a_drawing_stay_as_they_are() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    for classes in (
        ['id="x', 'href="#y', "url(#z)"],
        ['d="1.23456"', "font-family: x;", "#0a0b05"],
        ["#0a0bff", "b", "c"],
    ):
        drawn = embedding_map(points, np.arange(30) % 3, classes).svg
        texts = re.findall(r">([^<>\n]*)</text>", drawn)
        assert set(texts) == set(classes)
    drawn = embedding_map(points, np.arange(30) % 3, ["a\u202eb", "c\x1bd", "\udce9"]).svg
    assert set(re.findall(r">([^<>\n]*)</text>", drawn)) == {"a\\u202eb", "c\\x1bd", "\\udce9"}


def test_what_is_not_printable_is_escaped_for_screen_readers_too() -> None:
    x = np.arange(4.0)
    curve = Curve("a\u202e</desc>b", x, x, style={"color": "red"})
    figurine = stacked("n", "T\u202e", [Panel("p", [curve])], axis="x", caption="")
    assert figurine is not None and "\u202e" not in figurine.svg
    assert "a\\u202e&lt;/desc&gt;b: 0 at step 0" in figurine.svg and "T\\u202e</title>" in figurine.svg


def test_names_that_are_shortened_alike_have_a_line_each() -> None:
    names = ["experiment_alpha_contrastive", "experiment_gamma_contrastive"]
    x = np.arange(4.0)
    curves = [Curve(name, x, x + i, x + i, x + i, style={"color": "red"}, legend=name) for i, name in enumerate(names)]
    figurine = stacked("n", "Title", [Panel("p", curves)], axis="x", caption="")
    assert figurine is not None and figurine.svg.count("experiment…ntrastive") >= 2
