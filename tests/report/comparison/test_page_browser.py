"""The page of a comparison in a real browser: it draws, fits a phone, follows dark mode, and needs neither network nor
script."""

import json
from pathlib import Path

import pytest

from matrix_ssl.report.comparison.page import write_comparison
from tests.report.run import test_page_browser as of_report
from tests.support.synthetic_comparison import METHODS, failed, make_comparison

pytestmark = [of_report.pytestmark, pytest.mark.slow]  # quick: a page of report/run/test_page_browser.py
browser = of_report.browser


@pytest.fixture(scope="module", params=["ten", "longer", "one"])
def page(request, tmp_path_factory) -> Path:
    """Pages of the kinds of comparison that look different."""
    if request.param == "ten":
        results = make_comparison()
        results["rows"][10:12] = [failed("byol", 0), failed("byol", 1, "an_error_without_any_space_" * 9)]
        results["rows"][0]["settings"] = {"method.a_setting_with_a_long_name": "x" * 90}
    elif request.param == "longer":
        longest = ["matrix_ssl", "maximum_entropy_coding_as_published", "simsiam", f"/tmp/{'y' * 50}.py"]
        results = make_comparison(seeds=3, methods=longest, rivals_budget=1600)
    else:
        results = make_comparison(seeds=1, methods=METHODS[:2])
    out = tmp_path_factory.mktemp("out")
    (out / "compare.json").write_text(json.dumps(results), encoding="utf-8")
    return write_comparison(out)


def test_console_is_quiet_and_the_network_unused(browser, page):
    of_report.test_console_is_quiet_and_the_network_unused(browser, page)


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_runs_over_the_side(browser, page, width):
    of_report.test_nothing_runs_over_the_side(browser, page, width)


def test_figure_text_is_legible_on_a_phone(browser, page):
    of_report.test_figure_text_is_legible_on_a_phone(browser, page)


def test_text_stands_out_in_both_modes(browser, page):
    of_report.test_text_stands_out_in_both_modes(browser, page)


def test_every_figure_is_drawn(browser, page):
    of_report.show(browser, page)
    figures = browser.execute_script("""
        return [...document.querySelectorAll('figure svg')].map(svg => {
            const drawn = [...svg.querySelectorAll('path, use')].filter(e => {
                const box = e.getBoundingClientRect();
                return getComputedStyle(e).stroke !== 'none' && (box.width > 0 || box.height > 0);
            });
            return [svg.getBoundingClientRect().width, drawn.length, svg.querySelectorAll('text').length];
        })""")
    assert len(figures) == 3
    for width, drawn, texts in figures:
        assert width > 300
        assert drawn > 5
        assert texts > 3


def test_dark_mode_recolours_page_and_drawings(browser, page):
    colours = {}
    for mode in ("light", "dark"):
        of_report.show(browser, page, mode=mode)
        colours[mode] = browser.execute_script("""
            const style = s => getComputedStyle(document.querySelector(s));
            return [style('body').color, style('body').backgroundColor, style('#figure-time svg text').fill,
                    style('#figure-time [id*=line2d] path[clip-path]').stroke]""")
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))


def test_a_phone_shows_every_number_with_its_heading(browser, page):
    of_report.show(browser, page, width=360)
    heading, width = browser.execute_script("""
        const cell = document.querySelector('.comparison tbody td:nth-child(3)');
        return [getComputedStyle(cell, '::before').content, cell.closest('table').getBoundingClientRect().width]""")
    assert heading == '"1 label"'
    assert width <= 360


def test_it_needs_no_script(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        of_report.show(browser, page)
        text = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1, "pierce": True})
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    shown = json.dumps(text)
    assert "Best linear accuracy" in shown
    assert "Accuracy against time" in shown
