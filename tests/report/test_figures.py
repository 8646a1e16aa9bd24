"""What figures share."""

import pytest

from matrix_ssl.report import svg
from matrix_ssl.report.figures import legend


@pytest.mark.parametrize("count", [1, 2, 5, 7, 10, 12])
@pytest.mark.parametrize("width", [1, 9])
def test_a_legend_reads_row_by_row(count: int, width: int) -> None:
    names = [f"{place:0{width}d}" for place in range(count)]
    with svg.drawing():
        figure = svg.new_figure(200)
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            axes.plot([place, place], label=name)
        legend(figure, names)
        figure.draw_without_rendering()
        drawn = figure.legends[0]
        boxes = {text.get_text(): text.get_window_extent() for text in drawn.get_texts()}
        colours = [line.get_color() for line in axes.lines]
        marks = [line.get_color() for line in drawn.legend_handles]
    rows = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert rows == names
    assert marks == [colours[names.index(text.get_text())] for text in drawn.get_texts()]
