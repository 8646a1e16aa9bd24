"""How fast the page of ``explore`` opens and answers a lasso, in Chromium without a graphics card.

    matrix-ssl explore RUN --data imagenette128 --out runs/page
    python -m benchmarks.speed.explore_page --page runs/page [--points 50000]

Two pages: that of real images, which ``explore`` wrote, and one of made-up points. Each is opened once to warm the
browser up and then ``--rounds`` times, in a window of 1280 by 900 pixels. Measured by the page itself: from the start
of navigation until the map is drawn, from the release of the mouse until the list of the selection is built, and until
the next frame is drawn. Where other programs run on the machine, CPU time says more: of all processes of the browser
until the map is drawn, and of the scripts of the page for the list. The load average is recorded. Without a graphics
card the browser draws by software, on the CPU.
"""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness import command_line, save, spread
from matrix_ssl.report.explore.page import PAGE, write_page
from tests.support.browser import open_browser, show
from tests.support.explored import make_contents

if TYPE_CHECKING:
    from selenium import webdriver

_READY = "return performance.getEntriesByName('ready').map(e => e.startTime)[0]"
_DURATION = "return performance.getEntriesByName('lasso{}').map(e => e.duration)[0]"


def wait(browser: "webdriver.Chrome", script: str) -> float:
    """The result of a script as soon as it has one."""
    end = time.monotonic() + 300
    while (result := browser.execute_script(script)) is None:
        if time.monotonic() > end:
            raise TimeoutError(script)
        time.sleep(0.02)
    return float(result)


def cpu_seconds(browser: "webdriver.Chrome") -> float:
    """Of all processes of the browser so far."""
    processes = psutil.Process(browser.service.process.pid).children(recursive=True)
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def script_ms(browser: "webdriver.Chrome") -> float:
    """CPU time of the scripts of the page so far."""
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return 1000 * float(next(one["value"] for one in metrics if one["name"] == "ScriptDuration"))


def draw_lasso(browser: "webdriver.Chrome") -> float:
    """A square around the middle half of the map, with Shift held; the CPU time of the answer to its end, in ms."""
    before = 0.0
    left, top, width, height = browser.execute_script(
        "const b = document.getElementById('canvas').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    x, y, reach = left + width / 2, top + height / 2, height / 4
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -0.9)]
    for number, (right, down) in enumerate(corners):
        for kind in {0: ["mouseMoved", "mousePressed"], 4: ["mouseMoved", "mouseReleased"]}.get(number, ["mouseMoved"]):
            event = {"type": kind, "x": x + right * reach, "y": y + down * reach, "modifiers": 8, "clickCount": 1}
            held = kind == "mousePressed" or (kind == "mouseMoved" and number > 0)
            button = "none" if kind == "mouseMoved" else "left"
            before = script_ms(browser)
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "buttons": int(held), "button": button})
            time.sleep(0.05)
    return script_ms(browser) - before


def measure(browser: "webdriver.Chrome", page: Path, *, rounds: int) -> dict[str, Any]:
    """Opens a page and draws a lasso, several times."""
    names = ("ready_ms", "ready_cpu_ms", "lasso_ms", "lasso_cpu_ms", "lasso_drawn_ms")
    values: dict[str, list[float]] = {name: [] for name in names}
    selected = 0.0
    for turn in range(rounds + 1):
        browser.get("about:blank")
        before = cpu_seconds(browser)
        show(browser, page, height=900)
        ready = wait(browser, _READY)
        cpu = 1000 * (cpu_seconds(browser) - before)
        lasso_cpu = draw_lasso(browser)
        lasso, drawn = (wait(browser, _DURATION.format(name)) for name in ("", " drawn"))
        count = "return document.querySelector('#list-selection .count').textContent.replaceAll(',', '').split(' ')[0]"
        selected = wait(browser, count)
        if turn:
            for name, value in zip(values, (ready, cpu, lasso, lasso_cpu, drawn), strict=True):
                values[name].append(value)
    sheets = sum(path.stat().st_size for path in (page.parent / "sheets").iterdir())
    sizes = {"page_mb": page.stat().st_size / 1e6, "sheets_mb": sheets / 1e6, "selected": int(selected)}
    return {**sizes, **{name: spread(numbers) for name, numbers in values.items()}}


def main() -> None:
    """Writes the pages, measures, prints and saves."""
    parser = command_line(__doc__, "explore_page.json")
    parser.add_argument("--page", type=Path, help="Folder of a page that explore wrote.")
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    points, rounds = (500, 1) if options.quick else (options.points, options.rounds)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder) / "profile", webgl=True) as browser:
        pages = {}
        if options.page:
            page = (options.page / PAGE).resolve()
            (count,) = re.findall(r"Images</span> ([\d,]+)", page.read_text(encoding="utf-8"))
            pages[f"{count} images"] = page
        made_up = Path(folder) / "points"
        made_up.mkdir()
        made = make_contents(made_up, points, classes=20, side=96, neighbours=12)
        pages[f"{points:,} points"] = write_page(made_up, made)
        for name, page in pages.items():
            load = os.getloadavg()[0]
            results[name] = {**measure(browser, page, rounds=rounds), "load_average": load}
            medians = {key: round(value["median"]) for key, value in results[name].items() if isinstance(value, dict)}
            print(f"{name}: {medians}, load {load:.1f}")
        versions = {"chromium": browser.capabilities["browserVersion"], "drawing": "SwiftShader, on the CPU"}
    save(options.out, {"rounds": rounds, "pages": results}, versions=versions)


if __name__ == "__main__":
    main()
