"""The page of explore in a real browser, by mouse, keyboard and finger, on a desk and on a phone."""

import csv
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

import matplotlib.path
import numpy as np
import pytest

from matrix_ssl.evaluate.trained.label_subsets import match_names, read_names
from matrix_ssl.report.explore.contents import Categories, Numbers
from matrix_ssl.report.explore.page import square, write_page
from tests.support.browser import CHROMIUM, DRIVER, contrast, open_browser, requested, show
from tests.support.explored import MARKUP, make_contents

if TYPE_CHECKING:
    from selenium import webdriver

pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator["webdriver.Chrome"]:
    with open_browser(tmp_path_factory.mktemp("profile"), webgl=True) as driver:
        yield driver


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page, its contents and the folder of downloads."""
    folder = tmp_path_factory.mktemp("explored")
    contents = make_contents(folder)
    return write_page(folder, contents), contents, tmp_path_factory.mktemp("downloads")


class Desk:
    """The opened page and what a reader does with it."""

    def __init__(self, browser, page, contents, downloads):
        self.browser, self.page, self.contents, self.downloads = browser, page, contents, downloads
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)

    def open(self, width=1280, mode="light"):
        show(self.browser, self.page, width=width, mode=mode, height=900)
        self.until("return document.documentElement.dataset.ready")
        self.box = self.run("""
            scrollTo(0, 0);
            document.getElementById('map').scrollIntoView();
            const box = document.getElementById('canvas').getBoundingClientRect();
            return [box.left, box.top, box.width, box.height]""")
        return self

    def run(self, script):
        return self.browser.execute_script(script)

    def until(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not (result := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return result

    def text(self, selector):
        return self.run(f"return document.querySelector({selector!r}).textContent")

    def places(self):
        """Where on the screen the points are, (n, 2), when all of the map is in view."""
        left, top, width, height = self.box
        x, y = square(self.contents.points).T
        return np.stack([left + width / 2 + x * height / 2, top + height / 2 - y * height / 2], axis=1)

    def mouse(self, kind, place, buttons=0, modifiers=0):
        event = {
            "type": kind,
            "x": place[0],
            "y": place[1],
            "modifiers": modifiers,
            "buttons": buttons,
            "clickCount": 1,
        }
        if kind != "mouseMoved":
            event["button"] = "left"
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def click(self, place):
        self.mouse("mouseMoved", place)
        self.mouse("mousePressed", place, 1)
        self.mouse("mouseReleased", place)

    def drag(self, corners, modifiers=0):
        self.mouse("mouseMoved", corners[0])
        self.mouse("mousePressed", corners[0], 1, modifiers)
        for start, end in itertools.pairwise(corners):
            for step in np.linspace(0.2, 1, 5):
                self.mouse("mouseMoved", start + step * (end - start), 1, modifiers)
                time.sleep(0.02)  # the lasso takes no points faster than the hand
        self.mouse("mouseReleased", corners[-1], 0, modifiers)

    def press(self, key, code=0):
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": code or ord(key[0].upper()), **text}
            self.browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def touch(self, kind, *fingers):
        points = [{"x": float(x), "y": float(y), "id": i} for i, (x, y) in enumerate(fingers)]
        self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def downloaded(self, name):
        path = self.downloads / name
        end = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < end, [one.name for one in self.downloads.iterdir()]
            time.sleep(0.05)
        content = path.read_bytes()
        path.unlink()
        return content.decode(errors="surrogateescape")

    def lonely(self):
        """A point that no other is near, so that the mouse means it."""
        places = self.places()
        gaps = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(len(places))
        return int(gaps.min(axis=1).argmax())


@pytest.fixture
def desk(browser, made):
    return Desk(browser, *made)


@pytest.mark.parametrize("width", WIDTHS)
def test_quiet_console_no_network_and_nothing_over_the_side(desk, width):
    desk.browser.get_log("performance")
    desk.open(width)
    folder = desk.page.parent.as_uri()
    assert [url for url in requested(desk.browser) if not url.startswith((folder, "data:", "blob:"))] == []
    assert desk.browser.get_log("browser") == []
    for name in ("selection", "clusters", "duplicates", "outliers", "issues", "balance"):
        desk.run(f"document.getElementById('tab-{name}').click()")
        assert desk.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth") == 0, name
        assert desk.run(f"return document.getElementById('list-{name}').textContent.length") > 50
    sizes = desk.run("""
        return [...document.querySelectorAll('button, select, input')].filter(e => e.offsetParent)
            .map(e => e.getBoundingClientRect()).map(b => Math.min(b.width, b.height))""")
    assert min(sizes) >= 24  # WCAG 2.2, 2.5.8
    assert desk.run("return document.images.length") == 0
    assert desk.text("h1") == f"photos {MARKUP}"
    assert MARKUP in desk.text("#legend") and MARKUP in desk.text("#list-clusters")


def test_hover_shows_the_image_and_click_its_neighbours(desk):
    desk.open()
    image = desk.lonely()
    place = desk.places()[image]
    desk.mouse("mouseMoved", place - [3, 0])
    desk.mouse("mouseMoved", place)
    name = desk.contents.places[image].rpartition("/")[2]
    desk.until(f"return !tip.hidden && tip.textContent.includes({name!r})")
    sheet = desk.run("return getComputedStyle(tip.querySelector('.thumbnail')).backgroundImage")
    assert f"sheets/{image // 256:04d}.jpg" in sheet
    desk.click(place)
    desk.until(f"return document.querySelector('#image h2')?.textContent === {name!r}")
    near = desk.run("return [...document.querySelectorAll('#image .grid [data-image]')].map(e => +e.dataset.image)")
    assert near == desk.contents.neighbours[image].tolist()
    names = desk.run("return [...document.querySelectorAll('#image .grid .name')].map(e => e.textContent)")
    assert names == [desk.contents.places[other].rpartition("/")[2] for other in near]
    href = desk.run("return document.querySelector('#image a').href")
    assert href.endswith("/" + desk.contents.places[image].replace(" ", "%20"))
    desk.run("document.querySelector('#image .grid [data-image]').click()")
    assert desk.text("#image h2") == desk.contents.places[near[0]].rpartition("/")[2]


def test_hostile_names_are_text_that_shows_what_it_is(desk):
    desk.open()
    desk.run("document.getElementById('tab-outliers').click(); window.alert = () => { window.called = true; }")
    shown = []
    for image in (0, 1):
        desk.run(f"""
            const button = document.querySelector('[data-image]').cloneNode();
            button.dataset.image = {image};
            document.querySelector('#list-outliers').append(button);
            button.click()""")
        shown.append(desk.text("#image h2"))
    assert shown == ["script><b>&amp;.jpg", "photo\\u202egpj.exe"]
    assert desk.run("return document.querySelectorAll('#image b, #image img').length") == 0
    assert desk.run("return window.called") is None


def test_names_of_any_bytes_are_linked_and_downloaded_as_they_are(browser, tmp_path):
    names = [
        "caf\udce9 100%#?.jpg", "a\\b.jpg", " edge.jpg ", '"quoted".jpg', "two\nlines.jpg", "./dot.jpg", "plain, x.jpg",
        "caf\u00e9\U0001f600.jpg",
    ]  # fmt: skip
    contents = make_contents(tmp_path, len(names))
    contents = dataclasses.replace(contents, places=[f"photos/{name}" for name in names], issues=[])
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    desk = Desk(browser, write_page(tmp_path, contents), contents, downloads).open()
    links = []
    for image in range(len(names)):
        desk.run(f"document.querySelector('#list-clusters [data-image=\"{image}\"]').click()")
        links.append(desk.run("return document.querySelector('#image a').getAttribute('href')"))
    decoded = [unquote(link, errors="surrogateescape") for link in links]
    assert [link.rpartition("photos/")[2] for link in decoded] == names
    assert "caf%E9%20100%25%23%3F.jpg" in links[0].replace("%e9", "%E9") and "a%5Cb.jpg" in links[1]
    desk.run("document.querySelectorAll('#legend button').forEach(e => e.click())")
    assert desk.text("#list-selection .count") == "8 of 8 images"
    desk.run("document.getElementById('paths').click()")
    listed = tmp_path / "listed.txt"
    listed.write_bytes(desk.downloaded("paths.txt").encode(errors="surrogateescape"))
    places = list(contents.places)
    assert read_names(listed) == places
    assert match_names(places, read_names(listed), where="", dataset="").tolist() == list(range(len(names)))
    desk.run("document.getElementById('table').click()")
    rows = list(csv.reader(io.StringIO(desk.downloaded("selection.csv"), newline="")))
    assert [row[0] for row in rows[1:]] == places


def coverage_in_words(contents, chosen):
    """The sentence about images of which one, or one of its five nearest, is chosen."""
    rows = np.flatnonzero(np.isin(contents.places, chosen))
    covered = np.isin(np.arange(len(contents.places)), rows) | np.isin(contents.neighbours[:, :5], rows).any(axis=1)
    return f"The selection covers {100 * covered.mean():.1f}% of all images"


@pytest.mark.parametrize("button", [False, True], ids=["shift", "button"])
def test_lasso_selects_what_is_inside_and_downloads_it(desk, button):
    desk.open()
    places = desk.places()
    middle = places[desk.contents.clusters.codes == 2].mean(axis=0)
    corners = middle + 70 * np.array([[-1, -1], [1.1, -0.9], [1, 1], [-0.9, 0.6], [-1, -1]])
    if button:
        desk.run("document.getElementById('lasso').click()")
    desk.drag(corners, modifiers=0 if button else 8)
    desk.until("return document.querySelector('#list-selection .count')?.textContent")
    desk.run("document.getElementById('paths').click()")
    chosen = desk.downloaded("paths.txt").splitlines()
    inside = matplotlib.path.Path(corners).contains_points(places)
    line = np.concatenate([np.linspace(a, b, 200) for a, b in itertools.pairwise(corners)])
    edge = np.linalg.norm(places[:, None] - line, axis=2).min(axis=1) < 3  # pixels: there rounding decides
    expected = {desk.contents.places[image] for image in np.flatnonzero(inside)}
    unsure = {desk.contents.places[image] for image in np.flatnonzero(edge)}
    assert len(expected) > 20
    assert set(chosen) ^ expected <= unsure
    assert len(chosen) == len(set(chosen))
    assert desk.text("#coverage").startswith(coverage_in_words(desk.contents, chosen))
    duration = desk.run("return performance.getEntriesByName('lasso').map(e => e.duration)")
    assert len(duration) == 1
    if button:
        desk.run("document.getElementById('pan').click()")
    desk.run("document.querySelector('#list-selection .bar').lastChild.click()")
    assert desk.run("return document.querySelector('#list-selection .count')") is None


def test_the_table_has_every_column(desk):
    desk.open()
    desk.run("""
        const find = document.getElementById('find');
        find.value = 'script';
        find.dispatchEvent(new Event('change'));
        document.getElementById('table').click()""")
    header, row = csv.reader(desk.downloaded("selection.csv").splitlines())
    assert header == ["path", "label", "cluster", "outlier score", "confidence", MARKUP]
    assert row[:3] == [desk.contents.places[0], MARKUP, "1"]
    assert float(row[3]) == pytest.approx(desk.contents.outlier_scores[0], rel=1e-3)
    assert row[4] == ""  # no number


def test_numbers_and_sentences_are_exact(browser, tmp_path):
    values = [2.0**53 - 1, 1234567.0, 0.123456789012, np.nan, 1e-12, 5e6]
    contents = dataclasses.replace(
        make_contents(tmp_path, 9),
        labels=Categories("label", np.zeros(9, int), ["only"]),
        issues=None,
        columns=[
            Numbers("id", np.array([*values, 1.0, 2.0, 3.0])),
            Numbers("score", np.full(9, 0.1, np.float32)),
            Categories("site", np.array([0] * 4 + [-1] * 5), ["north"]),
            Categories("none", np.full(9, -1), []),
            Categories("fold", np.array([0] * 8 + [1]), ["a", "b"]),
        ],
    )
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    desk = Desk(browser, write_page(tmp_path, contents), contents, downloads).open()
    desk.browser.get_log("browser")
    desk.run("document.getElementById('tab-balance').click()")
    sentences = []
    for number, name in enumerate(("label", "cluster", "id", "score", "site", "none", "fold")):
        desk.run(f"""
            const choice = document.getElementById('colour-by');
            choice.value = {number};
            choice.dispatchEvent(new Event('change'))""")
        if name in ("label", "site", "none", "fold"):
            sentences.append(desk.text("#list-balance p"))
        if name == "id":
            ends = desk.run("return [...document.querySelectorAll('#legend > span')].map(e => e.textContent)")
            assert (ends[0], ends[-1]) == ("1e-12", "9007199254740991")
    assert sentences == [
        "All images have the same label.",
        "All images with one have the same site. 5 images have none.",
        "No image has a none.",
        "The largest fold has 8 times the images of the smallest; 2 are as uneven as 1.4 of equal size.",
    ]
    desk.run("""
        document.getElementById('colour-by').value = 0;
        document.getElementById('colour-by').dispatchEvent(new Event('change'));
        document.querySelector('#legend button').click();
        document.getElementById('table').click()""")
    rows = list(csv.DictReader(desk.downloaded("selection.csv").splitlines()))
    assert [float(row["id"] or "nan") for row in rows[:6]] == pytest.approx(values, rel=0, abs=0, nan_ok=True)
    assert {row["score"] for row in rows} == {"0.1"} and [row["site"] for row in rows[3:5]] == ["north", ""]
    assert desk.browser.get_log("browser") == []


def test_all_of_it_by_keyboard(desk):
    desk.open()
    desk.run("document.getElementById('map').focus()")
    places = desk.places()
    desk.press("ArrowRight", 39)
    first = desk.until("return document.querySelector('#image h2')?.textContent")
    assert first == "script><b>&amp;.jpg"  # what follows the slash of the markup in the name
    for key, code, direction in (("ArrowRight", 39, [1, 0]), ("ArrowUp", 38, [0, -1]), ("ArrowLeft", 37, [-1, 0])):
        before = desk.run("return document.querySelector('#image .path').textContent")
        desk.press(key, code)
        after = desk.run("return document.querySelector('#image .path').textContent")
        moves = places[desk.contents.places.index(after)] - places[desk.contents.places.index(before)]
        assert moves @ direction > 0, (key, before, after)
        assert desk.text("#status").startswith(after.rpartition("/")[2])
    desk.press("Enter", 13)
    assert desk.text("#list-selection .count") == "1 of 300 images"
    desk.press("l", 76)
    assert desk.text("#list-selection .count") == "300 of 300 images"
    desk.press("Escape", 27)
    assert "Nothing is selected" in desk.text("#list-selection")
    desk.run("document.querySelector('[role=tab][aria-selected=true]').focus()")
    desk.press("ArrowRight", 39)
    assert desk.run("return document.activeElement.id") == "tab-clusters"
    assert desk.run("return [...document.querySelectorAll('[role=tab]')].filter(e => e.tabIndex === 0).length") == 1
    unnamed = desk.run("""
        const named = e => e.textContent.trim() || e.labels?.length
            || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby');
        return [...document.querySelectorAll('button, select, input, [role=tabpanel], [role=application]')]
            .filter(e => !named(e)).map(e => e.outerHTML)""")
    assert unnamed == []
    ids = desk.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_dark_mode_follows_at_once_and_text_stands_out(desk):
    desk.open()
    image, colours = desk.lonely(), {}
    label = desk.contents.clusters.codes[image]
    for mode in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": mode}]
        desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        dark = json.dumps(mode == "dark")
        desk.until(f"return matchMedia('(prefers-color-scheme: dark)').matches === {dark}")
        pairs = desk.run("""
            const ground = e => {
                for (; e; e = e.parentElement) {
                    const c = getComputedStyle(e).backgroundColor;
                    if (c !== 'rgba(0, 0, 0, 0)') return c;
                }
            };
            const texts = 'h1, h3, p, li, span, dt, dd, th, td, button, summary, label';
            return [...document.querySelectorAll(texts)].filter(e => e.offsetParent && e.textContent.trim())
                .map(e => [getComputedStyle(e).color, ground(e)])""")
        assert len(pairs) > 50
        for text, behind in {tuple(pair) for pair in pairs}:
            assert contrast(text, behind) >= 4.5, (mode, text, behind)
        left, top = (desk.places()[image] - desk.box[:2]).round().tolist()
        read = f"""
            const copy = document.createElement('canvas').getContext('2d');
            copy.drawImage(document.getElementById('canvas'), {left}, {top}, 1, 1, 0, 0, 1, 1);
            const expected = getComputedStyle(document.documentElement).getPropertyValue('--class-{label}');
            const drawn = [...copy.getImageData(0, 0, 1, 1).data];
            copy.fillStyle = expected;
            copy.fillRect(0, 0, 1, 1);
            return [drawn, [...copy.getImageData(0, 0, 1, 1).data]]"""
        for _ in range(20):  # the map is drawn again, later on a busy machine
            colours[mode] = desk.run(read)
            drawn, expected = np.array(colours[mode])
            if np.abs(drawn[:3] - expected[:3]).max() < 40:
                break
            time.sleep(0.5)
        assert drawn[3] > 200
        assert np.abs(drawn[:3] - expected[:3]).max() < 40, colours  # points are a little transparent
    assert colours["light"] != colours["dark"]


def test_legend_colours_and_lists_select(desk):
    desk.open()
    desk.run("document.querySelectorAll('#legend button')[1].click()")
    assert desk.text("#list-selection .count") == "60 of 300 images"
    assert desk.run("return document.querySelectorAll('#legend button')[1].getAttribute('aria-pressed')") == "true"
    desk.run("""
        const choice = document.getElementById('colour-by');
        choice.value = [...choice.options].findIndex(o => o.text === 'confidence');
        choice.dispatchEvent(new Event('change'))""")
    ends = desk.run("return [...document.querySelectorAll('#legend > span')].map(e => e.textContent)")
    numbers = desk.contents.columns[1].values
    assert [float(ends[0]), float(ends[2])] == pytest.approx([np.nanmin(numbers), np.nanmax(numbers)], rel=1e-3)
    desk.run("document.getElementById('tab-duplicates').click(); document.getElementById('spare').click()")
    assert desk.text("#list-selection .count") == "3 of 300 images"
    desk.run("document.getElementById('tab-issues').click()")
    suspects = desk.run("return [...document.querySelectorAll('#list-issues [data-image]')].map(e => e.innerText)")
    assert [text.split("\n") for text in suspects] == [
        ["00007.jpg", "class 2", f"→ {MARKUP}", "4.0%"],
        ["00008.jpg", "class 3", "→ class 1", "20.0%"],
    ]
    desk.run("document.getElementById('tab-balance').click()")
    assert desk.text("#tab-balance") == "Lowest, highest"
    (low, high) = desk.run("""return [...document.querySelectorAll('#list-balance ul')].map(
        list => Number(list.querySelector('[data-image]').dataset.image))""")
    assert [numbers[low], numbers[high]] == [np.nanmin(numbers), np.nanmax(numbers)]
    desk.run("""
        const choice = document.getElementById('colour-by');
        choice.value = 0;
        choice.dispatchEvent(new Event('change'))""")
    assert "5 are as uneven as 5.0 of equal size" in desk.text("#list-balance")


def test_a_finger_taps_draws_and_two_zoom(desk):
    desk.open(390)
    places, image = desk.places(), desk.lonely()
    desk.touch("touchStart", places[image])
    desk.touch("touchEnd")
    desk.until(f"return document.querySelector('#image .path')?.textContent === {desk.contents.places[image]!r}")
    left, top, width, height = desk.box
    middle = np.array([left + width / 2, top + height / 2])
    picture = "return document.getElementById('canvas').toDataURL()"
    before = desk.run(picture)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchMove", 100)):
        aside = np.array([apart, 0])
        desk.touch(kind, middle - aside, middle + aside)
    desk.touch("touchEnd")
    desk.until(f"return document.getElementById('canvas').toDataURL() !== {before!r}")
    desk.run("document.getElementById('all').click(); document.getElementById('lasso').click()")
    time.sleep(0.3)
    corners = middle + 0.48 * height * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    desk.touch("touchStart", corners[0])
    for start, end in itertools.pairwise(corners):
        for step in (0.25, 0.5, 0.75, 1):
            desk.touch("touchMove", start + step * (end - start))
            time.sleep(0.02)
    desk.touch("touchEnd")
    assert int(desk.until("return document.querySelector('#list-selection .count')?.textContent").split()[0]) > 250


def test_without_webgl_the_lists_work(desk):
    script = """
        const original = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
            return kind.startsWith('webgl') ? null : original.call(this, kind, ...rest);
        };"""
    added = desk.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    desk.browser.get_log("browser")  # of what other tests did to the canvas
    try:
        desk.open()
        assert desk.run("return document.getElementById('no-map').offsetHeight") > 0
        desk.run("document.getElementById('tab-clusters').click()")
        desk.run("document.querySelector('#list-clusters [data-image]').click()")
        assert desk.text("#image h2")
        assert desk.browser.get_log("browser") == []
    finally:
        desk.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
