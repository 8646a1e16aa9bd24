"""The report in a real browser: it draws, fits a phone, follows dark mode and asks the network for nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from matrix_ssl.report import write_report
from matrix_ssl.report.comparison.page import write_comparison
from tests.support.browser import CHROMIUM, DRIVER, contrast, open_browser, requested, show
from tests.support.quick import some
from tests.support.synthetic_comparison import make_comparison
from tests.support.synthetic_run import make_run

if TYPE_CHECKING:
    from selenium import webdriver

pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator["webdriver.Chrome"]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """The page of a comparison, of which more kinds have slow tests of their own."""
    out = tmp_path_factory.mktemp("comparison")
    (out / "compare.json").write_text(json.dumps(make_comparison()), encoding="utf-8")
    return write_comparison(out)


@pytest.fixture(scope="module", params=some(["labelled", "many", "alarmed"], "labelled"))
def page(request, tmp_path_factory) -> Path:
    """Pages of the kinds of run that look different."""
    run = tmp_path_factory.mktemp("runs") / f"{request.param}-with-a-long-name-without-any-space_{'x' * 60}"
    if request.param == "many":
        return write_report(make_run(run, lines=3000, classes=[f"class {i}" for i in range(100)], side=96))
    make_run(run, classes=[] if request.param == "alarmed" else None)
    if request.param == "alarmed":
        (run / "summary.json").unlink()
        line = {"step": 9999, "loss": 1.0, "alarm": ["Collapse: the features span 1.0 directions."]}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + '\n{"step"')
    return write_report(run)


def test_console_is_quiet_and_the_network_unused(browser, page):
    browser.get_log("performance")
    show(browser, page)
    assert browser.get_log("browser") == []
    sent = requested(browser)
    assert page.as_uri() in sent
    own = ("data:", "chrome:")  # the latter: of the browser, as it starts
    assert [url for url in sent if url != page.as_uri() and not url.startswith(own)] == []


def test_every_figure_is_drawn(browser, page):
    show(browser, page)
    figures = browser.execute_script("""
        return [...document.querySelectorAll('figure svg')].map(svg => {
            const drawn = [...svg.querySelectorAll('path, use')].filter(e => {
                const style = getComputedStyle(e), box = e.getBoundingClientRect();
                return (style.fill !== 'none' || style.stroke !== 'none') && (box.width > 0 || box.height > 0);
            });
            const box = svg.getBoundingClientRect();
            return [box.width, box.height, drawn.length, svg.querySelectorAll('text').length];
        })""")
    assert len(figures) >= 6
    for width, height, drawn, _ in figures:
        assert width > 300
        assert height > 150
        assert drawn > 3
    assert sum(texts > 3 for *_, texts in figures) >= 6


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_runs_over_the_side(browser, page, width):
    show(browser, page, width=width)
    sizes = "const e = document.documentElement; return [innerWidth, e.scrollWidth - e.clientWidth]"
    assert browser.execute_script(sizes) == [width, 0]
    browser.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    assert browser.execute_script(sizes) == [width, 0]
    outside = browser.execute_script("""
        return [...document.querySelectorAll('figure svg text')].filter(t => {
            const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
            return box.left < frame.left - 2 || box.right > frame.right + 2 || box.bottom > frame.bottom + 2;
        }).map(t => t.textContent)""")
    assert outside == []


def test_figure_text_is_legible_on_a_phone(browser, page):
    show(browser, page, width=360)
    sizes = browser.execute_script("""
        return [...document.querySelectorAll('figure svg text')].map(t =>
            parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)""")
    assert min(sizes) >= 10


def test_dark_mode_recolours_page_and_drawings(browser, page):
    colours = {}
    for mode in ("light", "dark"):
        show(browser, page, mode=mode)
        colours[mode] = browser.execute_script("""
            const style = s => getComputedStyle(document.querySelector(s));
            return [style('body').color, style('body').backgroundColor, style('figcaption').color,
                    style('#figure-loss svg text').fill, style('#figure-loss [id*=line2d] path[clip-path]').stroke]""")
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))
    assert colours["light"][1] == "rgb(255, 255, 255)"


def test_text_stands_out_in_both_modes(browser, page):
    for mode in ("light", "dark"):
        show(browser, page, mode=mode)
        pairs = browser.execute_script("""
            const ground = e => {
                for (; e; e = e.parentElement) {
                    const c = getComputedStyle(e).backgroundColor;
                    if (c !== 'rgba(0, 0, 0, 0)') return c;
                }
            };
            const texts = 'h1, h2, h3, p, li, span, dt, dd, th, td, code, pre, summary, figcaption, text';
            return [...document.querySelectorAll(texts)].map(e => {
                const style = getComputedStyle(e);
                return [e.closest('svg') ? style.fill : style.color, ground(e)];
            })""")
        assert len(pairs) > 100
        for text, ground in {tuple(pair) for pair in pairs}:
            assert contrast(text, ground) >= 4.5, (mode, text, ground)


def test_all_images_load(browser, tmp_path):
    show(browser, write_report(make_run(tmp_path / "run")))
    sizes = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(sizes) == 48
    assert all(complete and width == 32 and alt for complete, width, alt in sizes)


def test_the_page_of_a_comparison_is_quiet_fits_a_phone_and_can_be_read(browser, comparison):
    test_console_is_quiet_and_the_network_unused(browser, comparison)
    test_nothing_runs_over_the_side(browser, comparison, 360)
    test_figure_text_is_legible_on_a_phone(browser, comparison)
    test_text_stands_out_in_both_modes(browser, comparison)
