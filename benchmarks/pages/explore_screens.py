"""The images of docs/explore.md: a page of ``explore`` on a desk in light mode, and on a phone in dark mode.

make demo && matrix-ssl explore runs/demo --out runs/explored
python -m benchmarks.pages.explore_screens runs/explored
"""

import argparse
import base64
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.harness import ROOT
from benchmarks.speed.explore_page import draw_lasso, wait
from matrix_ssl.report.explore.page import PAGE
from tests.support.browser import open_browser, show

if TYPE_CHECKING:
    from selenium import webdriver

FIGURES = ROOT / "docs" / "figures"
_READY = "return performance.getEntriesByName('ready').map(e => e.startTime)[0]"


def save(browser: "webdriver.Chrome", name: str) -> None:
    """Writes what the window shows."""
    time.sleep(2)  # sheets are loaded, the map is drawn
    content = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(FIGURES / name, optimize=True)


def main() -> None:
    """Opens the page twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder that explore wrote.")
    page = (parser.parse_args().folder / PAGE).resolve()
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder) / "profile", webgl=True) as browser:
        show(browser, page, height=860)
        wait(browser, _READY)
        browser.execute_script("document.querySelector('#list-clusters [data-image]').click()")
        save(browser, "explore.png")
        show(browser, page, width=390, height=844, mode="dark")
        wait(browser, _READY)
        browser.execute_script("document.getElementById('map').scrollIntoView()")
        draw_lasso(browser)
        wait(browser, "return performance.getEntriesByName('lasso drawn').map(e => e.duration)[0]")
        browser.execute_script("document.getElementById('status').scrollIntoView({block: 'center'})")
        save(browser, "explore_phone.png")


if __name__ == "__main__":
    main()
